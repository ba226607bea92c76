"""Configuration of the continuous-note model (V5): a causal decoder over notes whose times are real numbers."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import LlamaConfig


@strict
class ContinuousNotesConfig(LlamaConfig):
    r"""Configuration of [`ContinuousNotesModel`].

    Differs from [`LlamaConfig`]: a step is a note, not a token, so the vocabulary is that of pitches; and it says how
    the times and velocities of a note are modelled and on which grid their probabilities are taken.

    Args:
        vocab_size: Size of the event embedding: 128 MIDI pitches, then beginning and end of a piece.
        hidden_size: Width of the embeddings and of the residual stream; a multiple of `num_attention_heads`.
        intermediate_size: Width of the (gated) feed-forward layer.
        num_hidden_layers: Number of decoder layers.
        num_attention_heads: Number of attention heads per layer.
        max_position_embeddings: Notes that the model is trained on at a time; generation beyond it continues from a
            window of the latest half.
        embedding_dropout: Dropout probability of the summed embeddings of a note.
        attention_dropout: Dropout probability of the attention weights.
        num_mixtures: Components of each mixture of logistic distributions.
        likelihood: What `loss` is made of. "mass": probabilities of grid cells, which can't grow without bound.
            "density": densities over seconds; on music that stands on a grid they favour ever narrower peaks.
        loss_weights: Weights in the loss (never in the reported nats) of time shift, pitch, velocity and duration.
        sampling_rate: Steps a second of the grid that masses of times are taken on; 100 as in performance events.
        velocity_step: Velocities per cell of the grid that masses of velocities are taken on; 1 is MIDI's own, 4
            that of performance events.
        max_time_sec: Generated time shifts and durations are cut here, in seconds.
        pad_token_id: None: rows of padding are told by the attention mask alone.
        bos_token_id: Event (in the pitch column) of the row before the first note.
        eos_token_id: Event of the row after the last note.
        **kwargs: As for [`LlamaConfig`].

    Raises:
        ValueError: If a size or step is not positive, the likelihood is unknown, or the weights are not four
            numbers of at least 0.

    Example:
        >>> model = ContinuousNotesForCausalLM(ContinuousNotesConfig(hidden_size=128, num_hidden_layers=2))
    """

    model_type = "continuous_notes"
    # The last hidden state serves generation; an evaluation loop would gather gigabytes of it.
    keys_to_ignore_at_inference = ["past_key_values", "last_hidden_state"]

    vocab_size: int = 130
    hidden_size: int = 512
    intermediate_size: int = 1408
    num_hidden_layers: int = 6
    num_attention_heads: int = 8
    max_position_embeddings: int = 512
    embedding_dropout: float | int = 0.1
    attention_dropout: float | int | None = 0.1
    num_mixtures: int = 16
    likelihood: str = "mass"
    loss_weights: list[float | int] | tuple[float | int, ...] = (1.0, 1.0, 1.0, 1.0)
    sampling_rate: int = 100
    velocity_step: int = 1
    max_time_sec: float | int = 30.0
    pad_token_id: int | None = None
    bos_token_id: int = 128
    eos_token_id: int = 129

    def __post_init__(self, **kwargs: Any) -> None:
        """Validate first, so that callers get the plain ValueError and not the wrapper of `@strict`."""
        self.validate_architecture()
        super().__post_init__(**kwargs)

    def validate_architecture(self) -> None:
        """Check the values against one another; `@strict` calls this again on load and save.

        Raises:
            ValueError: See the class.
        """
        super().validate_architecture()
        for name in ("num_mixtures", "sampling_rate", "velocity_step", "max_position_embeddings", "max_time_sec"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
        if self.likelihood not in ("mass", "density"):
            raise ValueError(f"likelihood must be mass or density, got {self.likelihood!r}.")
        if len(self.loss_weights) != 4 or min(self.loss_weights) < 0:
            raise ValueError(f"loss_weights must be four numbers of at least 0, got {self.loss_weights}.")
        if not 0 <= self.embedding_dropout < 1:
            raise ValueError(f"embedding_dropout must be in [0, 1), got {self.embedding_dropout}.")


__all__ = ["ContinuousNotesConfig"]
