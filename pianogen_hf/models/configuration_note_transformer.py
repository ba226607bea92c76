"""Configuration of the note transformer (V8): a causal decoder that takes one step per note."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .note_controls import CONTROL_SIZES


@strict
class NoteTransformerConfig(PreTrainedConfig):
    r"""Configuration of [`NoteTransformerModel`].

    Args:
        vocab_size: Size of the event embedding: 128 MIDI pitches, then beginning and end of a piece.
        hidden_size: Width of the embeddings and of the residual stream; a multiple of `num_attention_heads`.
        intermediate_size: Width of the feed-forward layer.
        num_hidden_layers: Number of decoder layers.
        num_attention_heads: Number of attention heads per layer; heads are of even size.
        max_position_embeddings: Rows that the model is trained on at a time; generation beyond it continues from a
            window of the latest ones.
        rotary_shares: How the rotated pairs of each head are shared among three coordinates of a note: its index in the
            sequence, its onset and its pitch. `(1, 0, 0)` is the usual rotary embedding.
        is_cascade: Whether each field of a note is drawn in sight of the fields before it. False draws all four from
            the hidden state alone, which serves as a comparison.
        num_recent_offsets: How many of the latest rows' offsets a note may share, as notes under one pedal do; 0 for
            models made before there was such a choice. It needs the cascade.
        control_sizes: Number of values of each control, "not asked" (0) included; see `NoteControls`.
        hidden_dropout: Dropout probability of the embeddings and of each residual branch.
        attention_dropout: Dropout probability of the attention weights.
        rms_norm_eps: Epsilon of the normalisations.
        initializer_range: Standard deviation of the initial embeddings.
        use_cache: Whether to return keys and values for decoding.
        sampling_rate: Steps a second of the grid of times; 100 as in performance events.
        velocity_step: Velocities per cell of the grid of velocities; always 1, MIDI's own.
        pad_token_id: None: rows of padding are told by the attention mask alone.
        bos_token_id: Event (in the pitch column) of the row before the first note.
        eos_token_id: Event of the row after the last note.

    Raises:
        ValueError: If a size is not positive, if heads are not of equal, even size, if the shares are not three
            numbers of at least 0, or if offsets are to be shared without the cascade.

    Example:
        >>> model = NoteTransformerForCausalLM(NoteTransformerConfig(hidden_size=128, num_hidden_layers=2))
    """

    model_type = "note_transformer"
    keys_to_ignore_at_inference = ["past_key_values", "last_hidden_state"]

    vocab_size: int = 130
    hidden_size: int = 256
    intermediate_size: int = 1024
    num_hidden_layers: int = 8
    num_attention_heads: int = 4
    max_position_embeddings: int = 512
    rotary_shares: list[int | float] | tuple[int | float, ...] = (3, 3, 2)
    is_cascade: bool = True
    num_recent_offsets: int = 0
    control_sizes: list[int] | tuple[int, ...] = CONTROL_SIZES
    hidden_dropout: float | int = 0.0
    attention_dropout: float | int = 0.0
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    use_cache: bool = True
    sampling_rate: int = 100
    velocity_step: int = 1
    tie_word_embeddings: bool = False
    pad_token_id: int | None = None
    bos_token_id: int | None = 128
    eos_token_id: int | list[int] | None = 129

    def __post_init__(self, **kwargs: Any) -> None:
        """Validate first, so that callers get the plain ValueError and not the wrapper of `@strict`."""
        self.validate_architecture()
        super().__post_init__(**kwargs)

    @property
    def head_dim(self) -> int:
        """Size of an attention head."""
        return self.hidden_size // self.num_attention_heads

    def validate_architecture(self) -> None:
        """Check the values against one another; `@strict` calls this again on load and save.

        Raises:
            ValueError: See the class.
        """
        for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "sampling_rate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
        if self.hidden_size % (2 * self.num_attention_heads):
            raise ValueError(
                f"hidden_size {self.hidden_size} does not make {self.num_attention_heads} heads of equal, even size."
            )
        shares = self.rotary_shares
        if len(shares) != 3 or min(shares) < 0 or sum(shares) <= 0:
            raise ValueError(f"rotary_shares must be three numbers of at least 0, not all 0, got {shares}.")
        if self.num_recent_offsets < 0 or (self.num_recent_offsets and not self.is_cascade):
            raise ValueError(
                f"num_recent_offsets must be at least 0, and 0 without is_cascade, got {self.num_recent_offsets}."
            )
        for name in ("hidden_dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}.")


__all__ = ["NoteTransformerConfig"]
