"""Configuration of the Multitrack Music Transformer: a causal decoder whose steps are rows of six codes."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

POSITIONS = ("learned", "rotary", "none")
NUM_SPECIAL = 3  # tokens before the first event: pad, bos, eos
# Tokens of the fields of a row, in their order; those of the beats are as many as a config says.
NUM_TYPES, NUM_STEPS, NUM_PITCHES, NUM_DURATIONS, NUM_INSTRUMENTS = 3, 12, 128, 32, 64


@strict
class MultitrackMusicConfig(PreTrainedConfig):
    r"""Configuration of [`MultitrackMusicModel`].

    The defaults are those of the published models.

    Args:
        vocab_size: Number of token ids: three special ones, then those of the fields.
        num_beats: Number of tokens that are beats. A beat's code is one more, because 0 says that a row has none.
        hidden_size: Width of the embeddings and of the residual stream.
        intermediate_size: Width of the feed-forward layer.
        num_hidden_layers: Number of decoder layers.
        num_attention_heads: Number of attention heads per layer.
        head_dim: Size of a head, whatever `hidden_size` is.
        position_embedding_type: "learned" embeddings of the number of a row, "rotary" ones, or "none".
        rotate_values: Whether rotary positions turn values as well as queries and keys, as the library did that the
            published models were trained with.
        max_position_embeddings: Tokens that the model is trained on at a time. It has learned positions for a sixth as
            many rows, because a note has six tokens; rows beyond them share the last one.
        hidden_dropout: Dropout probability of the embeddings and of each residual branch.
        attention_dropout: Dropout probability of the attention weights.
        layer_norm_eps: Epsilon of the normalisations.
        rope_theta: Base of the rotary frequencies.
        initializer_range: Standard deviation of the initial weights of linear layers.
        use_cache: Whether to return keys and values for decoding.
        tie_word_embeddings: Always False: fields have embeddings and heads of their own.
        pad_token_id: Id of the padding token.
        bos_token_id: Id of the beginning of a piece, which is a row of its own.
        eos_token_id: Id, or ids, of the end of a piece.

    Raises:
        ValueError: If a size is not positive, if `vocab_size` has no room for the fields, if `head_dim` is odd, if a
            dropout is outside [0, 1) or `position_embedding_type` is unknown.

    Example:
        >>> model = MultitrackMusicForCausalLM(MultitrackMusicConfig(num_beats=256, vocab_size=498))
    """

    model_type = "multitrack_music"
    keys_to_ignore_at_inference = ["past_key_values"]

    vocab_size: int = 498
    num_beats: int = 256
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 6
    num_attention_heads: int = 8
    head_dim: int = 64
    position_embedding_type: str = "learned"
    rotate_values: bool = False
    max_position_embeddings: int = 6144
    hidden_dropout: float | int = 0.2
    attention_dropout: float | int = 0.2
    layer_norm_eps: float = 1e-5
    rope_theta: float | int = 10000.0
    initializer_range: float = 0.02
    use_cache: bool = True
    tie_word_embeddings: bool = False
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2

    def __post_init__(self, **kwargs: Any) -> None:
        """Validate first, so that callers get the plain ValueError and not the wrapper of `@strict`."""
        self.validate_architecture()
        super().__post_init__(**kwargs)

    @property
    def numbers_of_ids(self) -> tuple[int, ...]:
        """How many tokens each field has, in the order of the fields."""
        return NUM_TYPES, self.num_beats, NUM_STEPS, NUM_PITCHES, NUM_DURATIONS, NUM_INSTRUMENTS

    @property
    def field_sizes(self) -> tuple[int, ...]:
        """Numbers of codes of the fields of a row, 0 ("none", or the beginning of a piece) included."""
        return 5, *(number + 1 for number in self.numbers_of_ids[1:])

    @property
    def max_rows(self) -> int:
        """Rows that have a learned position."""
        return max(self.max_position_embeddings // len(self.numbers_of_ids), 1)

    def validate_architecture(self) -> None:
        """Check the values against one another; `@strict` calls this again on load and save.

        Raises:
            ValueError: See the class.
        """
        for name in (
            "num_beats",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "head_dim",
            "max_position_embeddings",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.vocab_size < NUM_SPECIAL + sum(self.numbers_of_ids):
            raise ValueError(
                f"vocab_size {self.vocab_size} has no room for {self.num_beats} beats and the other fields: it must be "
                f"at least {NUM_SPECIAL + sum(self.numbers_of_ids)}."
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even, got {self.head_dim}.")
        if self.position_embedding_type not in POSITIONS:
            raise ValueError(
                f"position_embedding_type must be one of {', '.join(POSITIONS)}, got {self.position_embedding_type!r}."
            )
        for name in ("hidden_dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}.")


__all__ = ["NUM_SPECIAL", "MultitrackMusicConfig"]
