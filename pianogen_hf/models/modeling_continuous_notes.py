"""Continuous notes (V5): a causal decoder over notes whose times are real numbers, each drawn from a density.

Papers: the decoder is that of Touvron et al. 2023, "LLaMA", https://arxiv.org/abs/2302.13971; mixtures of logistic
distributions after Salimans et al. 2017, "PixelCNN++", https://arxiv.org/abs/1701.05517.

Origin: written for this package. A note is one step of the decoder: the embeddings of its fields are summed. The next
note is predicted field by field, each head knowing the fields drawn before it:

    what comes (a note at the same onset, a later note, the end) and, for a later note, the time shift
    -> pitch -> velocity -> duration

Changes from a regression of the raw values, which answers chords and rests alike with their mean (no chords, negative
times) or their median (silence): a chord is an event of its own, a positive time shift or duration is exp of a mixture
of logistic variables (so it can be neither 0 nor negative, has many modes and a heavy tail), and a velocity is
a mixture rounded to 1..127.

Units: seconds, and MIDI numbers. The likelihood is given twice, in nats per note and field:
    * mass: the probability of the grid cell that holds the true value (times: cells of `1 / sampling_rate` seconds
      around its multiples; velocities: cells of `velocity_step`). Such masses sum to 1, and compare with those of
      tokenizers on the same grid.
    * density: of seconds, for positive times; the probabilities of "same onset", of "end" and of the velocity stay.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import GenerationMixin, TopPLogitsWarper
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.llama.modeling_llama import LlamaModel, LlamaPreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple

from .carried_code import CarriesCode
from .configuration_continuous_notes import ContinuousNotesConfig
from .logistic_mixture import VELOCITY_UNIT, LogisticMixture, draw, time_cells, velocity_cells
from .row_generation import GeneratesRows, end_row

# Columns of `input_values`, in the order in which they are drawn.
TIME_SHIFT, PITCH, VELOCITY, DURATION = range(4)
SAME_ONSET, LATER, END = range(3)
NUM_PITCHES = 128
_SHORTEST_SEC, _LONGEST_SEC = 0.005, 8.0  # between these, on a log scale, the components stand at first


@dataclass
class ContinuousNotesOutput(ModelOutput):
    """What [`ContinuousNotesForCausalLM`] returns.

    Attributes:
        loss: Scalar: weighted nats per predicted row, of the kind that `config.likelihood` names. With labels only.
        logits: Of the pitch of row `i + 1`, given its time shift, shape `(batch, length - 1, 128)`. With labels only.
        nats: Negative log-mass of the fields of row `i + 1`, unweighted, shape `(batch, length - 1, 4)`, 0 where
            there is nothing to predict. Their sum is the cost of the note. With labels only.
        density_nats: The same with densities over seconds for times.
        last_hidden_state: Shape `(batch, length, hidden_size)`.
        past_key_values: Cache, if asked for.
        hidden_states: Of every layer, if asked for.
        attentions: Of every layer, if asked for.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    nats: torch.Tensor | None = None
    density_nats: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class ContinuousNotesValueEmbedding(nn.Module):
    """Embeds a number that is at least 0: waves of several lengths over its logarithm or itself, then a projection."""

    num_waves = 8

    def __init__(self, config: ContinuousNotesConfig, is_time: bool):
        super().__init__()
        self.is_time = is_time
        self.proj = nn.Linear(2 * self.num_waves + 1, config.hidden_size)

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        """Embeddings, shape `(..., hidden_size)`, of seconds or velocities of shape `(...)`."""
        # A logarithm that is 0 at 0 s and tells 10 ms from none as well as 2 s from 1 s; both ranges are about 0..8.
        position = torch.log1p(value / _SHORTEST_SEC) if self.is_time else value / VELOCITY_UNIT
        frequency = torch.pi / 8 * 2.0 ** torch.arange(self.num_waves, device=value.device)
        angle = position[..., None] * frequency
        features = torch.cat([position[..., None], angle.sin(), angle.cos()], dim=-1)
        # A layer that was quantised has a method in the place of its weight, and takes float32.
        return self.proj(features.to(getattr(self.proj.weight, "dtype", torch.float32)))


class ContinuousNotesFieldHead(nn.Module):
    """A small network from what is known to the parameters of one field's distribution."""

    def __init__(self, config: ContinuousNotesConfig, out_features: int):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.hidden_size)
        self.fc2 = nn.Linear(config.hidden_size, out_features)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        parameters = self.fc2(F.silu(self.fc1(hidden_states)))
        # Eight bits of mantissa would round a time of a second to 4 ms.
        return parameters.float() if parameters.dtype in (torch.float16, torch.bfloat16) else parameters


class ContinuousNotesHeads(nn.Module):
    """The distribution of the next note, field by field; what is drawn is embedded and added for later fields."""

    def __init__(self, config: ContinuousNotesConfig):
        super().__init__()
        self.config = config
        mixture = 3 * config.num_mixtures
        self.time_shift_head = ContinuousNotesFieldHead(config, 3 + mixture)
        self.pitch_head = ContinuousNotesFieldHead(config, NUM_PITCHES)
        self.velocity_head = ContinuousNotesFieldHead(config, mixture)
        self.duration_head = ContinuousNotesFieldHead(config, mixture)
        self.embed_time_shift = ContinuousNotesValueEmbedding(config, is_time=True)
        self.embed_pitch = nn.Embedding(NUM_PITCHES, config.hidden_size)
        self.embed_velocity = ContinuousNotesValueEmbedding(config, is_time=False)

    def time_shift(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, LogisticMixture]:
        """Log-probabilities of `SAME_ONSET`, `LATER` and `END`, and the log of a later note's time shift."""
        raw = self.time_shift_head(hidden_states)
        return F.log_softmax(raw[..., :3], dim=-1), _log_time_mixture(raw[..., 3:])

    def pitch(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Logits of the pitch, shape `(..., 128)`."""
        return self.pitch_head(hidden_states)

    def velocity(self, hidden_states: torch.Tensor) -> LogisticMixture:
        """The velocity before rounding, in units of `VELOCITY_UNIT`."""
        return LogisticMixture(self.velocity_head(hidden_states), 0.0, 128 / VELOCITY_UNIT)

    def duration(self, hidden_states: torch.Tensor) -> LogisticMixture:
        """The log of the duration in seconds."""
        return _log_time_mixture(self.duration_head(hidden_states))

    def nats(self, hidden_states: torch.Tensor, notes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What the notes cost, if each follows its hidden state.

        Args:
            hidden_states: Shape `(..., hidden_size)`.
            notes: Shape `(..., 4)`; the fields after the time shift mean nothing in a row that ends a piece.

        Returns:
            Nats of masses and nats with densities, shape `(..., 4)` both, and logits of the pitch.
        """
        time_shift, pitch, velocity, duration = notes.unbind(-1)
        is_end = pitch >= NUM_PITCHES
        pitch = pitch.long().clamp(0, NUM_PITCHES - 1)

        events, shift_mixture = self.time_shift(hidden_states)
        hidden_states = hidden_states + self.embed_time_shift(time_shift)
        pitch_logits = self.pitch(hidden_states)
        hidden_states = hidden_states + self.embed_pitch(pitch)
        velocity_mixture = self.velocity(hidden_states)
        duration_mixture = self.duration(hidden_states + self.embed_velocity(velocity))

        log_pitch = F.log_softmax(pitch_logits, dim=-1).gather(-1, pitch[..., None]).squeeze(-1)
        log_velocity = velocity_mixture.log_mass(*velocity_cells(velocity, self.config.velocity_step))

        def columns(shift: torch.Tensor, duration: torch.Tensor) -> torch.Tensor:
            return -torch.stack([torch.where(is_end, events[..., END], shift), log_pitch, log_velocity, duration], -1)

        mass = columns(
            self._log_mass_of_shift(events, shift_mixture, time_shift),
            duration_mixture.log_mass(*time_cells(duration, self.config.sampling_rate, first=1)),
        )
        later = events[..., LATER] + _log_density_of_time(shift_mixture, time_shift)
        density = columns(
            torch.where(time_shift > 0, later, events[..., SAME_ONSET]),
            _log_density_of_time(duration_mixture, duration),
        )
        return mass, density, pitch_logits

    def _log_mass_of_shift(
        self, events: torch.Tensor, mixture: LogisticMixture, time_shift: torch.Tensor
    ) -> torch.Tensor:
        """The cell of 0 holds the event "same onset" and the later notes that are nearer to 0 than to one step."""
        later = events[..., LATER] + mixture.log_mass(*time_cells(time_shift, self.config.sampling_rate, first=0))
        in_first_cell = torch.round(time_shift * self.config.sampling_rate) == 0
        return torch.where(in_first_cell, torch.logaddexp(events[..., SAME_ONSET], later), later)

    def sample(
        self,
        hidden_states: torch.Tensor,
        temperature: float,
        top_p: float,
        allow_end: bool,
        generator: torch.Generator | None,
    ) -> torch.Tensor:
        """Draw one note, or the end, after each hidden state.

        Args:
            hidden_states: Shape `(batch, hidden_size)`.
            temperature: See `draw` and `LogisticMixture.sample`.
            top_p: Pitches are drawn among the likeliest of this total probability.
            allow_end: Whether a piece may end here.
            generator: Source of randomness.

        Returns:
            Rows, shape `(batch, 4)`.
        """
        events, shift_mixture = self.time_shift(hidden_states)
        if not allow_end:
            events = events[..., :END]
        event = draw(events, temperature, generator)
        time_shift = self._sample_time(shift_mixture, temperature, generator) * (event == LATER)
        hidden_states = hidden_states + self.embed_time_shift(time_shift)
        logits = self.pitch(hidden_states)
        if top_p < 1:
            logits = TopPLogitsWarper(top_p)(None, logits)
        pitch = draw(logits, temperature, generator)
        hidden_states = hidden_states + self.embed_pitch(pitch)
        velocity = self.velocity(hidden_states).sample(temperature, generator) * VELOCITY_UNIT
        velocity = torch.floor(velocity + 0.5).clamp(1, 127)
        hidden_states = hidden_states + self.embed_velocity(velocity)
        duration = self._sample_time(self.duration(hidden_states), temperature, generator)
        rows = torch.stack([time_shift, pitch.to(time_shift), velocity, duration], dim=-1)
        return torch.where((event == END)[:, None], end_row(self.config, rows), rows)

    def _sample_time(
        self, mixture: LogisticMixture, temperature: float, generator: torch.Generator | None
    ) -> torch.Tensor:
        return torch.exp(mixture.sample(temperature, generator)).clamp(1e-6, self.config.max_time_sec)


def _log_time_mixture(raw: torch.Tensor) -> LogisticMixture:
    return LogisticMixture(raw, math.log(_SHORTEST_SEC), math.log(_LONGEST_SEC))


def _log_density_of_time(mixture: LogisticMixture, seconds: torch.Tensor) -> torch.Tensor:
    """Log-density per second: that of the logarithm times its derivative. Shape as `seconds`."""
    log_seconds = torch.log(seconds.clamp(min=1e-6))
    return mixture.log_density(log_seconds) - log_seconds


class ContinuousNotesModel(CarriesCode, LlamaModel):
    """The decoder without the heads.

    Differs from `LlamaModel`: a step is a note, and its embedding is the sum of those of its four fields.
    """

    config: ContinuousNotesConfig  # the Auto classes read this as a class: postponed annotations would break them
    main_input_name = "input_values"

    def __init__(self, config: ContinuousNotesConfig):
        super().__init__(config)
        self.embed_time_shift = ContinuousNotesValueEmbedding(config, is_time=True)
        self.embed_velocity = ContinuousNotesValueEmbedding(config, is_time=False)
        self.embed_duration = ContinuousNotesValueEmbedding(config, is_time=True)
        self.dropout = nn.Dropout(config.embedding_dropout)

        # Again, for the modules that the parent does not know
        self.post_init()

    def forward(  # type: ignore[misc]
        self,
        input_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPast:
        """Encode notes.

        Args:
            input_values: Notes, shape `(batch, length, 4)`, float32: time shift in seconds since the previous onset
                (of the first note: since the beginning), pitch or event, velocity, duration in seconds.
            attention_mask: 1 for notes, 0 for padding, shape `(batch, past + length)`.
            position_ids: Index of each note, shape `(batch, length)`; by default they count on from the cache.
            past_key_values: Cache of the notes before.
            inputs_embeds: Embeddings instead of notes, shape `(batch, length, hidden_size)`.
            use_cache: Whether to return a cache.
            **kwargs: As for `LlamaModel`.

        Returns:
            The last hidden state, shape `(batch, length, hidden_size)`, and the cache.

        Raises:
            ValueError: Unless exactly one of notes and embeddings is given.
        """
        if (input_values is None) == (inputs_embeds is None):
            raise ValueError("Pass either input_values or inputs_embeds.")
        if input_values is not None:
            inputs_embeds = self.embed_notes(input_values)
        return super().forward(
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )

    def embed_notes(self, input_values: torch.Tensor) -> torch.Tensor:
        """Summed embeddings, shape `(batch, length, hidden_size)`, of notes of shape `(batch, length, 4)`."""
        time_shift, pitch, velocity, duration = input_values.unbind(-1)
        embeds = self.embed_tokens(pitch.long()) + self.embed_time_shift(time_shift)
        return self.dropout(embeds + self.embed_velocity(velocity) + self.embed_duration(duration))


class ContinuousNotesForCausalLM(  # type: ignore[misc]  # `generate` takes and gives rows
    CarriesCode, GeneratesRows, LlamaPreTrainedModel, GenerationMixin
):
    """The decoder with a head per field, its likelihood, and a sampling loop of its own.

    Differs from `LlamaForCausalLM`: notes are drawn field by field, so `generate` is not that of `GenerationMixin`,
    which stands here for what transformers asks of a model that generates. No pipeline of transformers fits.
    """

    config: ContinuousNotesConfig
    main_input_name = "input_values"

    def __init__(self, config: ContinuousNotesConfig):
        super().__init__(config)
        self.model = ContinuousNotesModel(config)
        self.heads = ContinuousNotesHeads(config)

        # Initialize weights and apply final processing
        self.post_init()

    @can_return_tuple
    def forward(  # type: ignore[misc]
        self,
        input_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ContinuousNotesOutput:
        """Encode notes and, given labels, say what each of them cost.

        Args:
            input_values: See [`ContinuousNotesModel.forward`], as for the arguments that are not explained here.
            attention_mask: See there.
            position_ids: See there.
            past_key_values: See there.
            labels: Pitch or event of each row, shape `(batch, length)`, unshifted. -100 is not predicted; elsewhere
                the whole row of `input_values` is.
            use_cache: See there.
            num_items_in_batch: Divides the summed loss (gradient accumulation); by default the predicted rows do.
            **kwargs: See there.

        Returns:
            See [`ContinuousNotesOutput`].
        """
        outputs: BaseModelOutputWithPast = self.model(
            input_values=input_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )
        loss = logits = nats = density_nats = None
        if labels is not None:
            assert input_values is not None and outputs.last_hidden_state is not None
            targets = labels[:, 1:]
            nats, density_nats, logits = self._score(outputs.last_hidden_state[:, :-1], input_values[:, 1:], targets)
            trained = nats if self.config.likelihood == "mass" else density_nats
            total = (trained * trained.new_tensor(self.config.loss_weights)).sum()
            loss = total / (num_items_in_batch if num_items_in_batch is not None else (targets != -100).sum())

        return ContinuousNotesOutput(
            loss=loss,
            logits=logits,
            nats=nats,
            density_nats=density_nats,
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _score(
        self, hidden_states: torch.Tensor, notes: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Nats of masses and with densities, 0 where nothing is predicted, and logits of the pitch."""
        is_note = (labels >= 0) & (labels < NUM_PITCHES)
        counts = is_note[..., None].repeat(1, 1, 4)  # (batch, length - 1, 4)
        counts[..., TIME_SHIFT] |= labels == self.config.eos_token_id
        with torch.autocast(hidden_states.device.type, enabled=False):
            mass, density, logits = self.heads.nats(hidden_states.to(self.heads.embed_pitch.weight.dtype), notes)
        return torch.where(counts, mass, 0.0), torch.where(counts, density, 0.0), logits

    def sample(
        self,
        hidden_states: torch.Tensor,
        rows: torch.Tensor,
        temperature: float,
        top_p: float,
        allow_end: bool,
        generator: torch.Generator | None,
    ) -> torch.Tensor:
        """Draw the note after each row; see [`ContinuousNotesHeads.sample`]."""
        return self.heads.sample(hidden_states, temperature, top_p, allow_end, generator)


__all__ = ["ContinuousNotesForCausalLM", "ContinuousNotesModel", "ContinuousNotesOutput"]
