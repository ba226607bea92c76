"""How alike two sets of pieces are, feature by feature: overlapping area and Kullback-Leibler divergence.

Source: Yang and Lerch 2020 (online 2018), "On the evaluation of generative models in music", Neural Computing and
Applications 32, section 4. Two comparisons are made of every feature:
    * of its values: one density for each set;
    * of distances, as the paper has it: those between a generated and a real piece against those between two real ones.

Densities are Gaussian kernels with Scott's bandwidth, as in the paper. Here both stand on one grid, and where a set has
(nearly) one value for all pieces its kernel is 1 / 200 of the whole range wide, so that a density exists. Both figures
depend on how many pieces there are, and even two samples of one kind of music do not overlap wholly: the same
comparison between real pieces is the floor that a model is to be measured against.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

_GRID = 1024
_MAX_PIECES = 128  # of a set, whose distances are looked at
_NARROWEST = 1 / 200  # of the range of both sets
_SMALLEST = 1e-10  # of the highest density: keeps the divergence of sets that do not touch finite


def overlap(values: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Overlapping area (1: the same, 0: apart) and divergence in nats of one feature.

    Args:
        values: of the pieces that are judged, shape (n,).
        reference: of those they are held against, shape (m,).

    Returns:
        `overlap`, and `kl`: the divergence of the values from the reference.

    Raises:
        ValueError: if a set is empty.
    """
    if not len(values) or not len(reference):
        raise ValueError("two sets are compared, and one of them is empty")
    _, first, second = densities(values, reference)
    first, second = first / first.sum(), second / second.sum()
    floor = _SMALLEST * max(first.max(), second.max())
    divergence = float((first * np.log((first + floor) / (second + floor))).sum())
    return {"overlap": float(np.minimum(first, second).sum()), "kl": max(divergence, 0.0)}


def distance_overlap(values: np.ndarray, reference: np.ndarray) -> dict[str, float] | None:
    """The same of distances (Yang and Lerch 2020, section 4.2): between the sets, against those within the reference.

    Of larger sets 128 values count, evenly picked: there are as many distances as pairs.

    Returns:
        As `overlap`; None if the reference has fewer than two pieces.
    """
    if len(reference) < 2:
        return None
    values, reference = _some(values), _some(reference)
    within = np.abs(reference[:, None] - reference)[np.triu_indices(len(reference), 1)]
    return overlap(np.abs(values[:, None] - reference).ravel(), within)


def _some(values: np.ndarray) -> np.ndarray:
    rows = np.linspace(0, len(values) - 1, min(len(values), _MAX_PIECES)).round().astype(np.int64)
    return values[rows]


def densities(values: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A grid over both sets and the density of each on it, three arrays of shape (1024,)."""
    both = np.concatenate([values, reference])
    spread = float(both.max() - both.min()) or 1.0
    widths = [max(_scott(each), spread * _NARROWEST) for each in (values, reference)]
    margin = 3 * max(widths)
    grid = np.linspace(both.min() - margin, both.max() + margin, _GRID)
    first, second = (_density(grid, each, width) for each, width in zip((values, reference), widths, strict=True))
    return grid, first, second


def compare_sets(
    pieces: Sequence[Mapping[str, float]], reference: Sequence[Mapping[str, float]]
) -> dict[str, dict[str, float]]:
    """Every feature of two sets of pieces.

    Args:
        pieces: what `piece_metrics` gave for each piece that is judged.
        reference: the same for each piece they are held against.

    Returns:
        By feature: `mean` and `deviation` of both sets (`reference_mean` ...), `overlap`, `kl`, `distance_overlap`,
        `distance_kl`. Pieces too short for a feature are left out of it; one that no piece of a set has is absent.
    """
    rows = {}
    for name in reference[0] if reference else ():
        first, second = _column(pieces, name), _column(reference, name)
        if not len(first) or not len(second):
            continue
        of_distances = distance_overlap(first, second) or {}
        rows[name] = {
            "mean": float(first.mean()),
            "deviation": float(first.std()),
            "reference_mean": float(second.mean()),
            "reference_deviation": float(second.std()),
            **overlap(first, second),
            **{f"distance_{key}": value for key, value in of_distances.items()},
        }
    return rows


def _column(pieces: Sequence[Mapping[str, float]], name: str) -> np.ndarray:
    values = np.array([piece[name] for piece in pieces], dtype=np.float64)
    return values[np.isfinite(values)]


def _scott(values: np.ndarray) -> float:
    return float(values.std(ddof=1)) * len(values) ** -0.2 if len(values) > 1 else 0.0


def _density(grid: np.ndarray, values: np.ndarray, width: float) -> np.ndarray:
    """Mean of Gaussian kernels around the values, in parts: there may be a hundred thousand distances."""
    total = np.zeros_like(grid)
    for part in np.array_split(values, -(-len(values) // 4096)):
        total += np.exp(-0.5 * ((grid[:, None] - part) / width) ** 2).sum(1)
    return total / (len(values) * width * np.sqrt(2 * np.pi))
