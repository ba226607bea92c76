"""Masking tokens, and the loss of masked tokens as a bound of the likelihood.

Paper: Hoogeboom et al. 2021, "Autoregressive Diffusion Models", https://arxiv.org/abs/2110.02037, section 3.
"""

import hashlib

import torch
from torch import nn

IGNORED = -100  # the label that no loss counts, by convention of transformers


def draw_mask(
    targets: torch.Tensor, num_masked: torch.Tensor, generator: torch.Generator | None = None
) -> torch.BoolTensor:
    """Choose tokens to hide, uniformly among all sets of the wanted size.

    Args:
        targets: Bool, shape `(batch, length)`: what may be masked.
        num_masked: Shape `(batch,)`: how many to hide in each row, at most as many as there are targets.
        generator: Of the draw, on the CPU.

    Returns:
        Bool, shape `(batch, length)`.
    """
    keys = torch.rand(targets.shape, generator=generator).to(targets.device).masked_fill(~targets, 2.0)
    return (keys.argsort(-1).argsort(-1) < num_masked[:, None]) & targets  # type: ignore[return-value]


def draw_named_mask(targets: torch.Tensor, name: str) -> torch.BoolTensor:
    """Hide k targets of one row, k uniform in 1..all of them; the name alone decides which.

    Args:
        targets: Bool, shape `(1, length)`, on the CPU.
        name: Of the draw: what was drawn before it does not matter.

    Returns:
        Bool, shape `(1, length)`.
    """
    generator = named_generator(name)
    num_masked = torch.randint(1, max(int(targets.sum()), 1) + 1, (1,), generator=generator)
    return draw_mask(targets, num_masked, generator)


def named_generator(name: str) -> torch.Generator:
    """Random numbers that follow from a name alone."""
    digest = hashlib.blake2b(name.encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest))


def label_weights(hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Weights that turn the nats of masked labels into an estimate of the nats of all labels of a row.

    Hoogeboom et al. 2021, section 3: of D labels, k drawn uniformly from 1..D are hidden, in a uniformly drawn place;
    D / k times the sum of their nats has the expectation of what all D cost when written one by one in random order.

    Args:
        hidden: Bool, shape `(batch, length)`: which tokens are masked.
        labels: Shape `(batch, length)`, -100 where there is nothing to predict.

    Returns:
        Float, shape `(batch, length)`: D / k at masked labels and 0 elsewhere, so that a row sums to D.
    """
    counted = labels != IGNORED
    scored = hidden & counted
    num_scored = scored.sum(-1, keepdim=True).clamp(min=1)
    return scored * (counted.sum(-1, keepdim=True) / num_scored)


def label_nats(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of each label, 0 where it is ignored, shape of `labels`."""
    return nn.functional.cross_entropy(logits.transpose(1, 2).float(), labels, ignore_index=IGNORED, reduction="none")
