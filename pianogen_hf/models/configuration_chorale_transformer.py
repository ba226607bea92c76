"""Configuration of the chorale transformer: a causal decoder over a grid of voices, which counts the beat."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class ChoraleTransformerConfig(PreTrainedConfig):
    r"""Configuration of [`ChoraleTransformerModel`].

    The defaults are those of the JSB grid: soprano, alto, tenor and bass of every sixteenth.

    Args:
        vocab_size: Number of token ids. 50 = pad, bos and eos, then 46 pitches and the rest.
        hidden_size: Width of the embeddings and of the residual stream; a multiple of `num_attention_heads`.
        intermediate_size: Width of the feed-forward layer.
        num_hidden_layers: Number of decoder layers.
        num_attention_heads: Number of attention heads per layer; heads are of even size.
        max_position_embeddings: Tokens that the model is trained on at a time; generation beyond it continues from a
            window of the latest ones.
        num_voices: Tokens that make one step of the grid, one for each voice.
        steps_per_bar: Steps after which the beat begins again. Windows are to be cut at multiples of it.
        first_pitch_id: Id of the lowest pitch; the tokens after it rise by semitones.
        num_pitches: Number of tokens that are pitches.
        max_hold: Steps up to which the model is told how long a voice has held what it sings.
        hidden_dropout: Dropout probability of the embeddings and of each residual branch.
        attention_dropout: Dropout probability of the attention weights.
        rms_norm_eps: Epsilon of the normalisations.
        initializer_range: Standard deviation of the initial embeddings.
        use_cache: Whether to return keys and values for decoding.
        tie_word_embeddings: Whether the output projection is the input embedding.
        pad_token_id: Id of the padding token.
        bos_token_id: Id of the beginning-of-sequence token.
        eos_token_id: Id, or ids, of the end-of-sequence token.

    Raises:
        ValueError: If a size is not positive, if heads are not of equal, even size or if a dropout is outside [0, 1).

    Example:
        >>> model = ChoraleTransformerForCausalLM(ChoraleTransformerConfig(num_hidden_layers=2))
    """

    model_type = "chorale_transformer"
    keys_to_ignore_at_inference = ["past_key_values"]

    vocab_size: int = 50
    hidden_size: int = 128
    intermediate_size: int = 512
    num_hidden_layers: int = 3
    num_attention_heads: int = 4
    max_position_embeddings: int = 257
    num_voices: int = 4
    steps_per_bar: int = 16
    first_pitch_id: int = 3
    num_pitches: int = 46
    max_hold: int = 16
    hidden_dropout: float | int = 0.1
    attention_dropout: float | int = 0.0
    rms_norm_eps: float = 1e-6
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
    def head_dim(self) -> int:
        """Size of an attention head."""
        return self.hidden_size // self.num_attention_heads

    def validate_architecture(self) -> None:
        """Check the values against one another; `@strict` calls this again on load and save.

        Raises:
            ValueError: See the class.
        """
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "max_position_embeddings",
            "num_voices",
            "steps_per_bar",
            "num_pitches",
            "max_hold",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.hidden_size % (2 * self.num_attention_heads):
            raise ValueError(
                f"hidden_size {self.hidden_size} does not make {self.num_attention_heads} heads of equal, even size."
            )
        for name in ("hidden_dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}.")


__all__ = ["ChoraleTransformerConfig"]
