"""Drawing from logits in numpy, with torch's random numbers.

Two ways: `draw` takes as many numbers as there are classes, and is what transformers' own sampling would have drawn;
`choose` takes one, which another language can draw, too: the page without a server does.

It takes few operators: after a step of a model neither the code nor the data of torch's and transformers' are in the
processor's caches, and that is what they cost.
"""

from __future__ import annotations

import numpy as np
import torch


def draw(
    scores: np.ndarray,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
) -> np.ndarray:
    """Draw one token per row, as the warpers of transformers and `torch.multinomial` do with equal random numbers.

    `multinomial` takes the largest quotient of probabilities and exponentially distributed numbers, which asks for no
    normalised probabilities.

    Args:
        scores: Logits, float32, shape `(num_rows, vocab_size)`.
        temperature: What they are divided by.
        top_k: How many of the likeliest tokens are left, all that equal the last of them included; 0 for all.
        top_p: See `nucleus`.
        generator: Source of randomness, on the CPU; None for torch's own.

    Returns:
        Shape `(num_rows,)`.

    Raises:
        ValueError: If logits are not finite, or all of them are minus infinity.
    """
    if temperature != 1:
        scores = scores / np.float32(temperature)
    if 0 < top_k < scores.shape[-1]:
        scores = np.where(scores < np.partition(scores, -top_k)[:, -top_k, None], -np.inf, scores)
    largest = scores.max(-1, keepdims=True)
    if not np.isfinite(largest).all():
        raise ValueError("the model's logits are not finite: its weights are damaged, or all tokens were forbidden")
    weights = np.exp(scores - largest)
    if top_p < 1:
        weights[~nucleus(weights, top_p)] = 0
    weights /= torch.empty(weights.shape).exponential_(generator=generator).numpy()
    return weights.argmax(-1)


def choose(scores: np.ndarray, generator: torch.Generator | None = None) -> int:
    """Draw one class with one random number: the first class up to which more than that share of all lies.

    The number is uniform in [0, 1) with 53 bits, of the Mersenne Twister (Matsumoto and Nishimura 1998) that torch
    seeds on the CPU. `random.js` has the same numbers for the same seed, so that a seed means the same notes there.

    Args:
        scores: Logits of which at least one is finite, float32, shape `(num_classes,)`.
        generator: Source of randomness, on the CPU; None for torch's own.

    Raises:
        ValueError: If logits are not numbers.
    """
    largest = scores.max()
    if not np.isfinite(largest):
        raise ValueError("the model's logits are not finite: its weights are damaged, or all classes were forbidden")
    sums = np.exp((scores - largest).astype(np.float64)).cumsum()
    number = torch.rand((), dtype=torch.float64, generator=generator).item()
    return int(np.searchsorted(sums, number * sums[-1], side="right"))


def nucleus(weights: np.ndarray, top_p: float) -> np.ndarray:
    """The likeliest that together have the probability `top_p`, all that equal the last of them included.

    Args:
        weights: Probabilities, not normalised, shape `(num_rows, num_classes)`.
        top_p: The probability; the likeliest is left whatever it is.

    Returns:
        Bool, shape as `weights`.
    """
    ordered = np.sort(weights)
    sums = ordered.cumsum(-1)
    left = sums > (1 - top_p) * sums[:, -1:]
    left[:, -1] = True
    least = ordered[np.arange(len(ordered)), left.argmax(-1)]
    return weights >= least[:, None]
