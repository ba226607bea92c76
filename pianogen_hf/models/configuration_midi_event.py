"""Configuration of the two-level model of MIDI events, which reads SkyTNT's midi-model checkpoints."""

from collections.abc import Mapping
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import LlamaConfig, PreTrainedConfig


@strict
class MidiEventConfig(PreTrainedConfig):
    r"""Configuration of [`MidiEventForCausalLM`].

    The published configurations, with `net_config` and `net_token_config` inside, are understood, too.

    Args:
        vocab_size: Number of ids: of special tokens, event types and parameters.
        ids_per_row: Ids that tell an event.
        event_blocks: The grammar that constrains `generate`: for each event type its id, then first id and size of the
            block of each of its parameters. None forbids nothing.
        hidden_size: Width of both nets.
        intermediate_size: Width of the feed-forward layer of the outer net.
        num_hidden_layers: Layers of the outer net, which takes one step per event.
        num_attention_heads: Attention heads of the outer net.
        token_num_hidden_layers: Layers of the inner net, which takes one step per id of an event; by default a quarter
            of the outer net's, as in the original.
        token_num_attention_heads: Attention heads of the inner net; a quarter by default.
        token_intermediate_size: Width of the feed-forward layer of the inner net; a quarter by default.
        max_position_embeddings: Events that the model is trained on at a time; generation beyond it continues from a
            window of the latest half.
        rope_theta: Base of the rotary embeddings.
        rms_norm_eps: Epsilon of the normalisations.
        attention_dropout: Dropout probability of the attention weights.
        initializer_range: Standard deviation of the initial weights.
        use_cache: Whether to return keys and values for decoding.
        pad_token_id: What fills up rows, and rows of padding; its embedding is not trained.
        bos_token_id: First id of the row before the first event.
        eos_token_id: First id of the row after the last event.

    Raises:
        ValueError: If a size is not positive, heads are not of equal, even size, or a published configuration holds
            what its code never wrote.

    Example:
        >>> model = MidiEventForCausalLM(MidiEventConfig(hidden_size=256, num_hidden_layers=4, num_attention_heads=4))
    """

    model_type = "midi_event"
    keys_to_ignore_at_inference = ["logits", "past_key_values", "last_hidden_state"]

    vocab_size: int = 3406
    ids_per_row: int = 8
    event_blocks: list[list[int]] | None = None
    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 12
    num_attention_heads: int = 16
    token_num_hidden_layers: int | None = None
    token_num_attention_heads: int | None = None
    token_intermediate_size: int | None = None
    max_position_embeddings: int = 4096
    rope_theta: float | int = 10000.0
    rms_norm_eps: float = 1e-6
    attention_dropout: float | int = 0.0
    initializer_range: float = 0.02
    use_cache: bool = True
    tie_word_embeddings: bool = False
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2

    def __post_init__(
        self,
        net_config: Any = None,
        net_token_config: Any = None,
        n_embd: int | None = None,
        tokenizer: Any = None,
        **kwargs: Any,
    ) -> None:
        """Take over a published configuration, of which `n_embd` and `tokenizer` say nothing new; then validate."""
        if net_config is not None and net_token_config is not None:
            self._take_published(_as_map(net_config), _as_map(net_token_config))
        self.validate_architecture()
        super().__post_init__(**kwargs)

    def _take_published(self, outer: Mapping[str, Any], inner: Mapping[str, Any]) -> None:
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
            setattr(self, name, outer[name])
        for name in ("intermediate_size", "num_hidden_layers", "num_attention_heads"):
            setattr(self, f"token_{name}", inner[name])
        for name in ("max_position_embeddings", "rms_norm_eps", "attention_dropout", "initializer_range"):
            setattr(self, name, outer.get(name, getattr(self, name)))
        self.rope_theta = (outer.get("rope_parameters") or outer).get("rope_theta", self.rope_theta)
        for config, own in ((outer, self.net_config()), (inner, self.net_token_config())):
            own_values = own.to_dict()
            for name in (
                "vocab_size",
                "hidden_size",
                "hidden_act",
                "num_key_value_heads",
                "attention_bias",
                "mlp_bias",
            ):
                if config.get(name, own_values[name]) not in (own_values[name], None):
                    raise ValueError(f"{name} {config[name]} is not what such a model has ({own_values[name]}).")

    def net_config(self) -> LlamaConfig:
        """Configuration of the outer net."""
        return self._llama(self.num_hidden_layers, self.num_attention_heads, self.intermediate_size)

    def net_token_config(self) -> LlamaConfig:
        """Configuration of the inner net."""
        return self._llama(
            self.token_num_hidden_layers or max(self.num_hidden_layers // 4, 1),
            self.token_num_attention_heads or max(self.num_attention_heads // 4, 1),
            self.token_intermediate_size or max(self.intermediate_size // 4, 1),
        )

    def _llama(self, layers: int, heads: int, intermediate_size: int) -> LlamaConfig:
        shared = ["vocab_size", "hidden_size", "max_position_embeddings", "rms_norm_eps", "attention_dropout"]
        shared += ["initializer_range", "use_cache", "pad_token_id", "bos_token_id", "eos_token_id"]
        return LlamaConfig(
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=intermediate_size,
            rope_parameters={"rope_type": "default", "rope_theta": float(self.rope_theta)},
            **{name: getattr(self, name) for name in shared},
        )

    def validate_architecture(self) -> None:
        """Check the values against one another; `@strict` calls this again on load and save.

        Raises:
            ValueError: See the class.
        """
        for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "ids_per_row"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
        for heads in (
            self.num_attention_heads,
            self.token_num_attention_heads or max(self.num_attention_heads // 4, 1),
        ):
            if self.hidden_size % (2 * heads):
                raise ValueError(f"hidden_size {self.hidden_size} does not make {heads} heads of equal, even size.")
        if not 0 <= self.attention_dropout < 1:
            raise ValueError(f"attention_dropout must be in [0, 1), got {self.attention_dropout}.")


def _as_map(config: Any) -> Mapping[str, Any]:
    return config if isinstance(config, Mapping) else config.to_dict()


__all__ = ["MidiEventConfig"]
