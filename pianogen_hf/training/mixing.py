"""Mixtures of sources: train examples drawn so that each source gets its share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from torch.utils.data import Sampler


class MixtureSampler(Sampler[int]):
    """Indices of one epoch after the other, in which every source has its share.

    An epoch has as many examples as the train side. Each source goes through all of its examples in a random order,
    then through all again in another, and an epoch takes the next ones of each: where a source's share is greater than
    its size, some of its examples come twice in an epoch; where it is smaller, the rest comes in the next. So no
    example is ever used more than once more than another of its source.

    What an epoch holds is a function of the seed and its number alone, so that a resumed run, and each of several
    processes, draws what an unbroken one draws.

    Args:
        owners: the source of each example, int, shape (num_examples,): places in `weights`.
        weights: a positive number per source, by name; only their ratios count. That of a source without examples is
            ignored.
        seed: of all orders, at least 0.
    """

    def __init__(self, owners: np.ndarray, weights: Mapping[str, float], seed: int = 0) -> None:
        self.weights, self.seed, self.epoch = dict(weights), seed, 0
        self._members = [np.flatnonzero(owners == source) for source in range(len(weights))]
        rows = zip(weights.values(), self._members, strict=True)
        present = np.array([weight if len(members) else 0 for weight, members in rows])
        self._quotas = _quotas(present, len(owners))

    def set_epoch(self, epoch: int) -> None:
        """Turn to the examples of another epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return int(self._quotas.sum())

    def __iter__(self) -> Iterator[int]:
        chosen = [self._drawn(source) for source, quota in enumerate(self._quotas) if quota]
        order = np.random.default_rng([self.seed, self.epoch]).permutation(np.concatenate(chosen))
        return iter(order.tolist())

    def _drawn(self, source: int) -> np.ndarray:
        """What this epoch takes of a source: a stretch of its endless row of permutations."""
        rows, quota = self._members[source], int(self._quotas[source])
        start = self.epoch * quota
        rounds = range(start // len(rows), -(-(start + quota) // len(rows)))
        orders = [np.random.default_rng([self.seed, source, each, 1]).permutation(rows) for each in rounds]
        first = start - rounds[0] * len(rows)
        return np.concatenate(orders)[first : first + quota]


def _quotas(weights: np.ndarray, total: int) -> np.ndarray:
    """Whole numbers with this sum, as nearly in the ratio of the weights as whole numbers can be."""
    exact = weights / weights.sum() * total
    quotas = np.floor(exact).astype(np.int64)
    missing = total - int(quotas.sum())
    quotas[np.argsort(quotas - exact, kind="stable")[:missing]] += 1
    return quotas
