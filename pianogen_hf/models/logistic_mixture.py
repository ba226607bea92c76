"""Mixtures of logistic distributions: densities, exact masses of intervals (such as the cells of a grid), and samples.

Papers: Salimans et al. 2017, "PixelCNN++", https://arxiv.org/abs/1701.05517, section 2.1 (masses of intervals as
differences of logistic distribution functions). Over log-time such a mixture is a mixture of log-logistic
distributions over time: positive, many-peaked and heavy-tailed.

Differs from the paper: interval masses are taken in log space by an identity that needs no special cases
(`log_mass`), and scales are bounded.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

# In log-time, narrow enough to put all mass into one step of 10 ms at a second, and no spike that rounding upsets.
_MIN_SCALE = 1e-3
# In log-time, tails fall as time ** (-1 / scale): up to this scale, times keep a finite mean.
_MAX_SCALE = 0.5
VELOCITY_UNIT = 16  # velocities: about as much as one unit of log-time, so that one learning rate suits both
_LOG_ZERO = -30.0  # stands for the logarithm of 0 seconds: no mixture has mass so far down
_FAR = 64.0  # stands for an infinite velocity, in units of velocity; larger numbers would cost digits


class LogisticMixture:
    """A batch of mixtures over real numbers.

    Args:
        raw: Unconstrained parameters, shape `(..., 3 * num_components)`: logits of the weights, offsets of the
            locations from their anchors, and what becomes the scales.
        lowest: Anchor of the first component's location; with offsets of 0 the components stand evenly between
            `lowest` and `highest`, so that none has to be found by chance.
        highest: Anchor of the last one's.
    """

    def __init__(self, raw: torch.Tensor, lowest: float, highest: float) -> None:
        logits, offsets, raw_scale = raw.chunk(3, dim=-1)
        anchors = torch.linspace(lowest, highest, logits.shape[-1] + 2, device=raw.device, dtype=raw.dtype)[1:-1]
        self.log_weights = F.log_softmax(logits, dim=-1)
        self.location = anchors + offsets
        self.scale = _MIN_SCALE + (_MAX_SCALE - _MIN_SCALE) * torch.sigmoid(raw_scale)

    def log_mass(self, lower: torch.Tensor, width: torch.Tensor) -> torch.Tensor:
        """Log-probability of the intervals `[lower, lower + width)`.

        With `s` the logistic function, `s(b) - s(a) = s(b) s(-a) (1 - exp(a - b))`: three factors whose logarithms are
        exact far out in either tail. The width is asked for because `upper - lower` would lose the digits of narrow
        intervals far from 0.

        Args:
            lower: Shape `(...)`; finite (a very low number serves as minus infinity).
            width: Positive and finite, shape `(...)`.

        Returns:
            Shape `(...)`.
        """
        start = (lower[..., None] - self.location) / self.scale
        length = width[..., None] / self.scale
        log_masses = F.logsigmoid(start + length) + F.logsigmoid(-start) + torch.log(-torch.expm1(-length))
        return torch.logsumexp(self.log_weights + log_masses, dim=-1)

    def log_density(self, value: torch.Tensor) -> torch.Tensor:
        """Log-density at `value`, shape `(...)`."""
        z = (value[..., None] - self.location) / self.scale
        log_densities = F.logsigmoid(z) + F.logsigmoid(-z) - torch.log(self.scale)
        return torch.logsumexp(self.log_weights + log_densities, dim=-1)

    def sample(self, temperature: float = 1.0, generator: torch.Generator | None = None) -> torch.Tensor:
        """Draw one value from each mixture.

        Args:
            temperature: Divides the logits of the weights and multiplies the scales; 0 gives the centre of the
                component of most weight.
            generator: Source of randomness.

        Returns:
            Shape `(...)`.
        """
        chosen = draw(self.log_weights, temperature, generator)[..., None]
        location, scale = (each.gather(-1, chosen).squeeze(-1) for each in (self.location, self.scale))
        uniform = torch.rand(location.shape, generator=generator, device=location.device, dtype=location.dtype)
        return location + temperature * scale * torch.logit(uniform, eps=torch.finfo(uniform.dtype).tiny)


def draw(logits: torch.Tensor, temperature: float = 1.0, generator: torch.Generator | None = None) -> torch.Tensor:
    """Draw from categorical distributions.

    Args:
        logits: Shape `(..., num_classes)`.
        temperature: Divides the logits; 0 takes the likeliest class.
        generator: Source of randomness.

    Returns:
        Classes, int64, shape `(...)`.
    """
    if temperature == 0:
        return logits.argmax(-1)
    probabilities = torch.softmax(logits / temperature, dim=-1)
    return torch.multinomial(probabilities.flatten(0, -2), 1, generator=generator).view(logits.shape[:-1])


def time_cells(seconds: torch.Tensor, sampling_rate: int, first: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Grid cells that hold the times, in log-seconds.

    Cell `k` reaches from `k - 1/2` to `k + 1/2` steps; the first one begins at 0.

    Args:
        seconds: Times, any shape.
        sampling_rate: Steps per second.
        first: Number of the first cell: 0 for time shifts, 1 for durations.

    Returns:
        Lower ends and widths, both of the shape of `seconds`.
    """
    step = torch.round(seconds * sampling_rate).clamp(min=first)
    below = step.clamp(min=1) - 0.5
    lower = torch.log(below / sampling_rate)
    first_upper = torch.log(torch.full_like(seconds, (first + 0.5) / sampling_rate))
    is_first = step == first
    return (
        torch.where(is_first, torch.full_like(seconds, _LOG_ZERO), lower),
        torch.where(is_first, first_upper - _LOG_ZERO, torch.log1p(1 / below)),
    )


def velocity_cells(velocity: torch.Tensor, velocity_step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Grid cells that hold the velocities, in units of `VELOCITY_UNIT`; the first and the last one have no outer end.

    Args:
        velocity: MIDI velocities 1..127, any shape.
        velocity_step: Velocities per cell; cell `k` holds those with `velocity // velocity_step == k`.

    Returns:
        Lower ends and widths, both of the shape of `velocity`.
    """
    cell = torch.div(velocity, velocity_step, rounding_mode="floor")
    lower = (cell * velocity_step - 0.5) / VELOCITY_UNIT
    upper = lower + velocity_step / VELOCITY_UNIT
    lower = torch.where(cell <= 1 // velocity_step, torch.full_like(lower, -_FAR), lower)
    upper = torch.where(cell >= 127 // velocity_step, torch.full_like(upper, _FAR), upper)
    return lower, upper - lower


__all__ = ["VELOCITY_UNIT", "LogisticMixture", "draw", "time_cells", "velocity_cells"]
