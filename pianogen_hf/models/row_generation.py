"""Generation of notes one row at a time, for models that draw a row's fields themselves (V5, V8)."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import Cache

TIME_SHIFT, PITCH = 0, 1  # columns of rows


class GeneratesRows:
    """Mixin, to stand before a model whose inputs are rows of notes and that has `model` and `sample`."""

    config: Any
    model: Any
    device: Any
    training: bool
    train: Any
    eval: Any

    def sample(
        self,
        hidden_states: torch.Tensor,
        rows: torch.Tensor,
        temperature: float,
        top_p: float,
        allow_end: bool,
        generator: torch.Generator | None,
    ) -> torch.Tensor:
        """Draw one note, or the end, after each row.

        Args:
            hidden_states: Shape `(batch, hidden_size)`.
            rows: All rows so far, of which they are of the last, shape `(batch, length, 4)`; padding on the left.
            temperature: See `generate`.
            top_p: See `generate`.
            allow_end: Whether a piece may end here.
            generator: Source of randomness.

        Returns:
            Rows, shape `(batch, 4)`.
        """
        raise TypeError(f"{type(self).__name__} can't draw rows")

    @torch.no_grad()
    def generate(
        self,
        input_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        *,
        max_new_tokens: int = 256,
        min_new_tokens: int = 0,
        max_new_seconds: float | None = None,
        temperature: float = 1.0,
        top_p: float = 1.0,
        num_return_sequences: int = 1,
        seed: int | None = None,
    ) -> torch.Tensor:
        """Continue pieces, or begin new ones.

        Where prompt and new notes outgrow `max_position_embeddings`, generation continues from the latest half of it.

        Args:
            input_values: Prompts, shape `(batch, length, 4)`; the beginning of a piece by default.
            attention_mask: 0 for padding, which must stand on the left, shape `(batch, length)`.
            max_new_tokens: Most new notes.
            min_new_tokens: No piece ends before so many new notes.
            max_new_seconds: A piece ends where the onset of a note would lie so far behind the prompt's last onset.
            temperature: Below 1 safer, above 1 wilder; 0 takes the likeliest of everything.
            top_p: Pitches (of a note transformer: all fields) are drawn among the likeliest of this total probability.
            num_return_sequences: Continuations per prompt; those of one prompt stand together.
            seed: Makes the result repeatable, whatever else draws random numbers.

        Returns:
            Prompts and new notes, shape `(batch * num_return_sequences, length + new, 4)`; after a piece has ended,
            rows of its end.

        Raises:
            ValueError: If padding stands on the right, or a setting is out of range.
        """
        check_sampling(attention_mask, max_new_tokens, temperature, top_p)
        was_training = self.training
        self.eval()
        begin = torch.tensor([[[0.0, float(self.config.bos_token_id), 0.0, 0.0]]])
        rows = begin if input_values is None else input_values
        rows = rows.to(self.device, torch.float32).repeat_interleave(num_return_sequences, dim=0)
        mask = torch.ones_like(rows[..., 0], dtype=torch.long)
        if attention_mask is not None:
            mask = attention_mask.to(mask).repeat_interleave(num_return_sequences, dim=0)
        generator = None if seed is None else torch.Generator(self.device).manual_seed(seed)

        elapsed = torch.zeros(len(rows), device=self.device)
        has_ended: torch.Tensor = rows[:, -1, PITCH].eq(self.config.eos_token_id)
        window = CachedWindow(self.model, self.model.config)
        for count in range(max_new_tokens):
            if has_ended.all():
                break
            hidden_states = window.last_hidden_state(rows, mask)
            new = self.sample(hidden_states, rows, temperature, top_p, count >= min_new_tokens, generator)
            elapsed += new[:, TIME_SHIFT]
            if max_new_seconds is not None:
                has_ended |= elapsed >= max_new_seconds
            new = torch.where(has_ended[:, None], end_row(self.config, new), new)
            has_ended |= new[:, PITCH].eq(self.config.eos_token_id)
            rows = torch.cat([rows, new[:, None]], dim=1)
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        self.train(was_training)
        return rows


def end_row(config: Any, like: torch.Tensor) -> torch.Tensor:
    """The row after the last note, shape `(4,)`, with the type and device of `like`."""
    return like.new_tensor([0.0, float(config.eos_token_id), 0.0, 0.0])


class CachedWindow:
    """Runs a decoder over rows that grow by one at a time, with a cache, within the length it was trained on.

    Args:
        decode: The decoder: takes rows, `attention_mask`, `past_key_values` and `use_cache`.
        config: Its configuration.
    """

    def __init__(self, decode: Callable[..., Any], config: Any):
        self.decode, self.config = decode, config
        self.start = 0  # of the window that the cache holds
        self.past_key_values: Cache | None = None

    def last_hidden_state(self, rows: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Hidden state of the last row, shape `(batch, hidden_size)`."""
        length, context = rows.shape[1], self.config.max_position_embeddings
        fed = rows[:, -1:]
        if self.past_key_values is None or length - self.start > context:
            self.start = window_start(length, context)
            self.past_key_values, fed = DynamicCache(config=self.config), rows[:, self.start :]
        outputs = self.decode(
            fed, attention_mask=attention_mask[:, self.start :], past_key_values=self.past_key_values, use_cache=True
        )
        assert outputs.last_hidden_state is not None
        return outputs.last_hidden_state[:, -1]


def window_start(length: int, context: int) -> int:
    """Where a window from scratch begins: at the first row, or at the latest half of the context."""
    return 0 if length <= context else length - max(context // 2, 1)


def check_sampling(attention_mask: torch.Tensor | None, max_new_tokens: int, temperature: float, top_p: float) -> None:
    """Refuse settings of `generate` that are out of range.

    Raises:
        ValueError: If one is, or if padding stands on the right.
    """
    if attention_mask is not None and not bool(attention_mask[:, -1].all()):
        raise ValueError("prompts must be padded on the left")
    if max_new_tokens < 1 or not 0 <= temperature < float("inf") or not 0 < top_p <= 1:
        raise ValueError("max_new_tokens must be at least 1, temperature at least 0, top_p in (0, 1]")
