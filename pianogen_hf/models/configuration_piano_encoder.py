"""Configuration of the piano encoder (V1 and V2): an encoder-only transformer with learned absolute positions.

Papers: Vaswani et al. 2017, "Attention Is All You Need", https://arxiv.org/abs/1706.03762 (the encoder);
Devlin et al. 2018, "BERT", https://arxiv.org/abs/1810.04805 (learned positions, masked tokens).
"""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class PianoEncoderConfig(PreTrainedConfig):
    r"""Configuration of [`PianoEncoderModel`].

    The defaults are the sizes of V1 and V2.

    Args:
        vocab_size: Number of token ids of the tokenizer. The mask is no token of it: see `mask_token_id`.
        hidden_size: Width of the embeddings and of the residual stream; a multiple of `num_attention_heads`.
        intermediate_size: Width of the feed-forward layer.
        num_hidden_layers: Number of layers.
        num_attention_heads: Number of attention heads per layer.
        hidden_act: Activation of the feed-forward layer.
        max_position_embeddings: Number of learned positions, hence the longest input, in tokens.
        is_causal: True where a token sees itself and those before it: what [`PianoEncoderForCausalLM`] needs. False
            where it sees all others, too: what [`PianoEncoderForMaskedLM`] needs.
        hidden_dropout: Dropout probability of the embeddings and of each residual branch.
        attention_dropout: Dropout probability of the attention weights.
        layer_norm_eps: Epsilon of the layer normalisations.
        initializer_range: Standard deviation of the initial weights.
        use_cache: Whether to return keys and values for decoding; only a causal model can.
        tie_word_embeddings: Whether the output projection is the input embedding.
        pad_token_id: Id of the padding token.
        bos_token_id: Id of the beginning-of-sequence token.
        eos_token_id: Id, or ids, of the end-of-sequence token.

    Raises:
        ValueError: If a size is not positive, if `hidden_size` is not a multiple of `num_attention_heads` or if a
            dropout is outside [0, 1).

    Example:
        >>> model = PianoEncoderForMaskedLM(PianoEncoderConfig(is_causal=False))
    """

    model_type = "piano_encoder"
    keys_to_ignore_at_inference = ["past_key_values"]

    vocab_size: int = 3000
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 6
    num_attention_heads: int = 8
    hidden_act: str = "gelu"
    max_position_embeddings: int = 512
    is_causal: bool = True
    hidden_dropout: float | int = 0.1
    attention_dropout: float | int = 0.1
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    use_cache: bool = True
    tie_word_embeddings: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2

    @property
    def mask_token_id(self) -> int:
        """The id that hides a token: the first one that the tokenizer does not have, so that no tokenizer needs one."""
        return self.vocab_size

    def __post_init__(self, **kwargs):
        """Validate first, so that callers get the plain ValueError and not the wrapper of `@strict`."""
        self.validate_architecture()
        super().__post_init__(**kwargs)

    def validate_architecture(self) -> None:
        """Check the sizes against one another; `@strict` calls this again on load and save.

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
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.hidden_size % self.num_attention_heads != 0:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) must be a multiple of num_attention_heads "
                f"({self.num_attention_heads})."
            )
        for name in ("hidden_dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}.")


__all__ = ["PianoEncoderConfig"]
