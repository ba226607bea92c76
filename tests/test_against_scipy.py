"""Our statistics against those of scipy, which the package itself does not need."""

from __future__ import annotations

import numpy as np
import pytest

from pianogen_hf.evaluation.distributions import densities, overlap
from pianogen_hf.evaluation.likelihood import paired_bootstrap, standard_error

stats = pytest.importorskip("scipy.stats")
RANDOM = np.random.default_rng(0)
FIRST, SECOND = RANDOM.normal(0, 1, 60), RANDOM.normal(0.7, 1.4, 80)


def test_densities_are_those_of_gaussian_kernels_with_scott_s_bandwidth():
    grid, *ours = densities(FIRST, SECOND)
    for values, density in zip((FIRST, SECOND), ours, strict=True):
        assert density == pytest.approx(stats.gaussian_kde(values, "scott")(grid), rel=1e-6, abs=1e-9)


def test_divergence_is_the_relative_entropy_of_the_densities():
    _, first, second = densities(FIRST, SECOND)
    assert overlap(FIRST, SECOND)["kl"] == pytest.approx(stats.entropy(first, second), rel=1e-3)


def test_the_bootstrap_interval_is_scipy_s():
    notes = RANDOM.integers(50, 200, 80).astype(float)
    first, second = notes * RANDOM.normal(3, 0.4, 80), notes * RANDOM.normal(2.8, 0.4, 80)

    def difference(bits_a, bits_b, notes):
        return bits_a.sum(-1) / notes.sum(-1) - bits_b.sum(-1) / notes.sum(-1)

    ours = paired_bootstrap(first, notes, second, notes)
    theirs = stats.bootstrap(
        (first, second, notes), difference, paired=True, vectorized=False, method="percentile", n_resamples=5000, rng=1
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)


def test_the_standard_error_is_the_spread_of_the_bootstrap():
    notes = RANDOM.integers(50, 200, 200).astype(float)
    bits = notes * RANDOM.normal(3, 0.4, 200)

    def ratio(bits, notes):
        return bits.sum(-1) / notes.sum(-1)

    spread = stats.bootstrap(
        (bits, notes), ratio, paired=True, vectorized=False, n_resamples=5000, rng=1
    ).standard_error
    assert standard_error(bits, notes) == pytest.approx(spread, rel=0.1)
