"""Mixtures of sources: train examples drawn so that each source gets its share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from torch.utils.data import Sampler


class MixtureSampler(Sampler[int]):
    """Indices of one epoch after the other, in which every source has its share.

    An epoch has as many examples as the train split. Each source goes through all of its examples in a random order,
    then through all again in another, and an epoch takes the next ones of each: where a source's share is greater than
    its size, some of its examples come twice in an epoch; where it is smaller, the rest comes in the next. So no
    example is ever used more than once more than another of its source.

    What an epoch holds is a function of the seed and its number alone, so that a resumed run, and each of several
    processes, draws what an unbroken one draws.

    Args:
        owners: the source of each example, int, shape (num_examples,): places in `weights`.
        weights: a positive number per source, by name; only their ratios count.
        seed: of all orders, at least 0.

    Attributes:
        weights: those of the sources that have examples.
        missing: names of the others, whose weight is ignored.
    """

    def __init__(self, owners: np.ndarray, weights: Mapping[str, float], seed: int = 0) -> None:
        self.seed, self.epoch = seed, 0
        members = {name: np.flatnonzero(owners == place) for place, name in enumerate(weights)}
        self.weights = {name: weight for name, weight in weights.items() if len(members[name])}
        self.missing = [name for name in weights if name not in self.weights]
        self._members = [members[name] for name in self.weights]
        self._quotas = _quotas(np.array(list(self.weights.values())), len(owners))

    def set_epoch(self, epoch: int) -> None:
        """Turn to the examples of another epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return int(self._quotas.sum())

    def __iter__(self) -> Iterator[int]:
        chosen = [self._drawn(source) for source in range(len(self._members))]
        order = np.random.default_rng([self.seed, self.epoch]).permutation(np.concatenate(chosen))
        return iter(order.tolist())

    def _drawn(self, source: int) -> np.ndarray:
        """What this epoch takes of a source: a stretch of its endless row of permutations."""
        rows, quota = self._members[source], int(self._quotas[source])
        start = self.epoch * quota
        first_round, skipped = divmod(start, len(rows))
        rounds = range(first_round, (start + quota) // len(rows) + 1)
        orders = [np.random.default_rng([self.seed, source, each, 1]).permutation(rows) for each in rounds]
        return np.concatenate(orders)[skipped : skipped + quota]


def _quotas(weights: np.ndarray, total: int) -> np.ndarray:
    """Whole numbers with this sum, as nearly in the ratio of the weights as whole numbers can be."""
    exact = weights / weights.sum() * total
    quotas = np.floor(exact).astype(np.int64)
    missing = total - int(quotas.sum())
    quotas[np.argsort(quotas - exact, kind="stable")[:missing]] += 1
    return quotas
