"""Writing masked tokens with a model that sees both sides: a draft, several tokens a time, then a grammar pass.

Paper: Chang et al. 2022, "MaskGIT", https://arxiv.org/abs/2202.04200, section 3.2: by confidence, on a cosine schedule.
"""

import math
from collections.abc import Callable

import torch
from transformers import LogitsProcessor, LogitsProcessorList, TopPLogitsWarper

from .configuration_piano_encoder import PianoEncoderConfig

# How strongly chance decides, at first, which drawn tokens stay: 4.5 in the code of the paper's authors.
_CHOICE_NOISE = 4.5


class Drawing:
    """Draws tokens from logits, never a special one.

    Args:
        config: Names the special ids.
        temperature: Divides the logits.
        top_p: Draw from the likeliest tokens that together have this probability.
        generator: Makes the result repeatable; on the device of the logits.
    """

    def __init__(
        self, config: PianoEncoderConfig, temperature: float, top_p: float, generator: torch.Generator | None
    ) -> None:
        self.temperature, self.top_p, self.generator = temperature, top_p, generator
        ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
        specials = [each for each in (config.pad_token_id, config.bos_token_id, *ends) if each is not None]
        self.is_event = torch.ones(config.vocab_size, dtype=torch.bool)
        self.is_event[specials] = False

    def __call__(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and their log-probabilities.

        Args:
            logits: Shape `(..., vocab_size)`.

        Returns:
            Two tensors of shape `(...)`.
        """
        shape = logits.shape[:-1]
        logits = logits.float().flatten(0, -2) / self.temperature
        logits = logits.masked_fill(~self.is_event.to(logits.device), -math.inf)
        if self.top_p < 1:
            logits = TopPLogitsWarper(self.top_p)(None, logits)
        log_probs = logits.log_softmax(-1)
        ids = torch.multinomial(log_probs.exp(), 1, generator=self.generator)
        return ids.view(shape), log_probs.gather(-1, ids).view(shape)

    def uniform(self, like: torch.Tensor) -> torch.Tensor:
        """Numbers in (0, 1) of the shape of `like`."""
        drawn = torch.rand(like.shape, generator=self.generator, device=like.device)
        return drawn.clamp(1e-7, 1 - 1e-7)


def draft(
    logits_of: Callable[[torch.Tensor], torch.Tensor],
    ids: torch.Tensor,
    hidden_id: int,
    steps: int,
    order: str,
    drawing: Drawing,
) -> torch.Tensor:
    """Draw every masked token, without regard to grammar.

    Args:
        logits_of: From tokens to logits, shape `(batch, length, vocab_size)`.
        ids: Shape `(batch, length)`.
        hidden_id: What stands where a token is to be drawn.
        steps: Calls of `logits_of`, at most one per masked token.
        order: "confidence" (few tokens at first) or "random" (equally many in each step).
        drawing: How to draw.

    Returns:
        Shape `(batch, length)`, nothing masked.
    """
    hidden = ids == hidden_id
    total = hidden.sum(-1)
    steps = min(steps, int(total.max()) if len(total) else 0)
    for step in range(1, steps + 1):
        drawn, log_probs = drawing(logits_of(ids))
        if order == "random":
            still_hidden = total * (steps - step) // steps
            priority = drawing.uniform(log_probs)
        else:
            still_hidden = (total * math.cos(math.pi / 2 * step / steps) + 1e-4).long()
            gumbel = -(-drawing.uniform(log_probs).log()).log()
            priority = log_probs + _CHOICE_NOISE * (1 - step / steps) * gumbel
        ranks = priority.masked_fill(~hidden, -math.inf).argsort(-1, descending=True).argsort(-1)
        written = hidden & (ranks < (hidden.sum(-1) - still_hidden)[:, None])
        ids = torch.where(written, drawn, ids)
        hidden = hidden & ~written
    return ids


def repair(
    logits_of: Callable[[torch.Tensor], torch.Tensor],
    ids: torch.Tensor,
    mask: torch.Tensor,
    hidden_id: int,
    processor: LogitsProcessor | LogitsProcessorList,
    drawing: Drawing,
) -> torch.Tensor:
    """Draw again, from left to right, what the processor forbids; a forward pass only where there is such a token.

    Args:
        logits_of: From tokens to logits, shape `(batch, length, vocab_size)`.
        ids: Shape `(batch, length)`.
        mask: Bool, shape `(batch, length)`: what may be changed.
        hidden_id: What hides a token while it is drawn again.
        processor: Sets the scores of forbidden tokens to minus infinity.
        drawing: How to draw.

    Returns:
        Shape `(batch, length)`. Where the processor leaves only special ids, the id stays as it was.
    """
    ids = ids.clone()
    no_scores = torch.zeros(len(ids), len(drawing.is_event), device=ids.device)
    for place in mask.any(0).nonzero()[:, 0].tolist():
        allowed = ~processor(ids[:, :place], no_scores).isneginf()  # type: ignore[arg-type]
        wrong = mask[:, place] & ~allowed.gather(-1, ids[:, place, None])[:, 0]
        wrong &= (allowed & drawing.is_event.to(ids.device)).any(-1)
        if wrong.any():
            logits = logits_of(ids.index_put((wrong.nonzero()[:, 0], torch.tensor(place)), torch.tensor(hidden_id)))
            ids[wrong, place] = drawing(logits[:, place].masked_fill(~allowed, -math.inf)[wrong])[0]
    return ids
