"""Configuration of the Music Transformer (V7): a causal decoder with relative positions, and with a memory if wanted.

Paper: Huang et al. 2018, "Music Transformer: Generating Music with Long-Term Structure", https://arxiv.org/abs/1809.04281
"""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class MusicTransformerConfig(PreTrainedConfig):
    r"""Configuration of [`MusicTransformerModel`].

    The defaults give a model of the size used in the paper for performance events (6 layers of width 512).

    Args:
        vocab_size: Number of token ids. 391 = 388 performance events and the pad, bos and eos tokens.
        hidden_size: Width of the embeddings and of the residual stream; a multiple of `num_attention_heads`.
        intermediate_size: Width of the feed-forward layer.
        num_hidden_layers: Number of decoder layers.
        num_attention_heads: Number of attention heads per layer.
        hidden_act: Activation of the feed-forward layer; the paper uses relu.
        max_position_embeddings: Sequence length, in tokens, that the model is trained on. No table has this size (there
            are no absolute positions), so longer inputs work; tools read it as the usual context length.
        max_relative_distance: Number of distinct distances, in tokens, with an embedding of their own: 0 (the token
            itself) to `max_relative_distance - 1`. Larger distances share the last embedding.
        position_embedding_type: "learned" for embeddings of distances per head and layer, as in the paper; "sinusoidal"
            for projected sinusoids, as in Transformer-XL, which has no table and knows distances never met in training.
        attention_window: If set, a token sees only itself and the `attention_window - 1` tokens before it, and caches
            keep no more than that. `None` sees everything before. Also readable as `sliding_window`.
        memory_length: If set, a segment sees so many tokens before it, and caches keep no more than these, however long
            the segments are: train with `batching: contiguous`. With an `attention_window` of one more (or less), how a
            piece is divided into segments changes nothing. `None` keeps all there is.
        knn_layer: Index of a layer that also looks up tokens that have left its memory: the nearest to each query, by
            the products of normalised queries and keys. Needs `memory_length`. The paper has it above the middle.
        knn_memory_size: How many of these tokens are kept.
        knn_neighbours: How many of them a query attends to.
        hidden_dropout: Dropout probability of the embeddings and of each residual branch.
        attention_dropout: Dropout probability of the attention weights.
        layer_norm_eps: Epsilon of the layer normalisations.
        initializer_range: Standard deviation of the initial weights, except for the relative embeddings.
        use_cache: Whether to return keys and values for decoding.
        tie_word_embeddings: Whether the output projection is the input embedding.
        pad_token_id: Id of the padding token.
        bos_token_id: Id of the beginning-of-sequence token.
        eos_token_id: Id, or ids, of the end-of-sequence token.

    Raises:
        ValueError: If a size or distance is not positive, if `hidden_size` is not a multiple of
            `num_attention_heads`, if `attention_window` is smaller than 2, if a dropout is outside [0, 1), if
            `position_embedding_type` is unknown, or if `knn_layer` is no layer or lacks a memory.

    Example:
        >>> config = MusicTransformerConfig(num_hidden_layers=2, max_relative_distance=256)
        >>> model = MusicTransformerForCausalLM(config)
    """

    model_type = "music_transformer"
    keys_to_ignore_at_inference = ["past_key_values"]
    # The name under which transformers looks for a window when it builds masks and caches.
    attribute_map = {"sliding_window": "attention_window"}

    vocab_size: int = 391
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 6
    num_attention_heads: int = 8
    hidden_act: str = "relu"
    max_position_embeddings: int = 2048
    # Half of the training length, as in the paper: motifs recur well beyond it, but rarely at an exact token distance.
    max_relative_distance: int = 1024
    position_embedding_type: str = "learned"
    attention_window: int | None = None
    memory_length: int | None = None
    knn_layer: int | None = None
    knn_memory_size: int = 8192
    knn_neighbours: int = 32
    hidden_dropout: float | int = 0.1
    attention_dropout: float | int = 0.1
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    use_cache: bool = True
    tie_word_embeddings: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2

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
            "max_relative_distance",
            "knn_memory_size",
            "knn_neighbours",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.hidden_size % self.num_attention_heads != 0:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) must be a multiple of num_attention_heads "
                f"({self.num_attention_heads})."
            )
        # A window of 1 sees no past at all, and the sliding caches of transformers cannot represent it.
        if self.attention_window is not None and self.attention_window < 2:
            raise ValueError(f"attention_window must be at least 2 or None, got {self.attention_window}.")
        for name in ("hidden_dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}.")
        if self.position_embedding_type not in ("learned", "sinusoidal"):
            raise ValueError(
                f"position_embedding_type must be 'learned' or 'sinusoidal', got {self.position_embedding_type!r}."
            )
        self._validate_memory()

    def _validate_memory(self) -> None:
        if self.memory_length is not None and self.memory_length < 1:
            raise ValueError(f"memory_length must be at least 1 or None, got {self.memory_length}.")
        if self.knn_layer is None:
            return
        if not 0 <= self.knn_layer < self.num_hidden_layers:
            raise ValueError(f"knn_layer must be in 0..{self.num_hidden_layers - 1} or None, got {self.knn_layer}.")
        if self.memory_length is None:
            raise ValueError("knn_layer looks up what leaves the memory: it needs a memory_length.")


__all__ = ["MusicTransformerConfig"]
