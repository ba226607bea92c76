"""Note transformer (V8): a causal decoder that takes one step per note and draws the note's fields one after the other.

Origin: written for this package. What it is made of comes from others:
    * one step per note, fields in a cascade: Hsiao et al. 2021, "Compound Word Transformer", arXiv 2101.02402; Wang and
      Xia 2021, "MuseBERT" and "PianoTree" for notes as units;
    * rotary positions: Su et al. 2021, arXiv 2104.09864; here of three coordinates of a note, as in "RotIE" and in
      rotary embeddings of images and videos, so that notes may be given out of their order;
    * normalised queries and keys: Henry et al. 2020, arXiv 2010.04245; RMSNorm: Zhang and Sennrich 2019, arXiv
      1910.07467, without gains; squared ReLU: So et al. 2021, "Primer", arXiv 2109.08668.

A row is a note: time shift, pitch or event, velocity, duration (times in seconds, on a grid of `1 / sampling_rate`). It
is either *written*, that is, predicted by the model from the written row before it, or *given* (`token_type_ids` 0 or
1). Written rows stand by onset and pitch, and the time shift of each counts from the onset of the written row before
it. Given rows stand anywhere: theirs counts from the onset of the last written row before them, and may be negative. So
the rows tell where in musical time every note lies, whichever role it has, and a note that lies ahead can be given
before the notes that lead to it.

The next written note is predicted field by field, each head knowing the fields drawn before it:

    time shift, or the end -> pitch -> velocity -> duration

Times are classes (see `time_classes.py`), pitches are drawn from logits of the pitch itself plus logits of its distance
to the pitch written before. A note at the onset of the one before it is higher, because chords are written upwards: no
probability goes to others. A duration is one of the classes, or as long as it takes to end together with one of the
latest notes: what a pedal holds ends with the pedal, and half the notes of a performance end so.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import GenerationMixin, PreTrainedModel, TopPLogitsWarper
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import eager_attention_forward
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .carried_code import CarriesCode
from .configuration_note_transformer import NoteTransformerConfig
from .fast_decoding import let_grow
from .logistic_mixture import draw
from .row_generation import GeneratesRows
from .time_classes import NUM_TIME_CLASSES, middle_step, residual_nats, time_class

# Columns of `input_values`, in the order in which they are drawn.
TIME_SHIFT, PITCH, VELOCITY, DURATION = range(4)
WRITTEN, GIVEN = range(2)  # values of `token_type_ids`
NUM_PITCHES, NUM_VELOCITIES = 128, 128
END_CLASS = NUM_TIME_CLASSES  # of the time shift: the piece, or what is to be written of it, is over
END_ROW = (0.0, 129.0, 0.0, 0.0)  # the event after the last note that is to be written
MIDDLE_PITCH = 60  # stands for the pitch before the first note
# Wavelengths of rotated pairs. Onsets: from a tenth of a second to over a minute, in steps. Index: in rows.
_SHORTEST_STEPS, _LONGEST_STEPS = 8.0, 8192.0
_SHORTEST_INDEX, _LONGEST_INDEX = 2 * math.pi, 4096.0
# Pitches: fractions of the octave first, by which pitches of one class look alike, then ever longer ones.
_PITCH_WAVES = (12.0, 6.0, 4.0, 3.0, 12 / 5, 24.0, 64.0, 192.0)


@dataclass
class NoteTransformerOutput(ModelOutput):
    """What [`NoteTransformerForCausalLM`] returns.

    Attributes:
        loss: Scalar: nats per predicted row. With labels only.
        logits: Of the pitch of row `i + 1`, given its time shift, shape `(batch, length - 1, 128)`. With labels only.
        nats: Negative log-probability of the fields of row `i + 1`, shape `(batch, length - 1, 4)`, 0 where there is
            nothing to predict. Their sum is the cost of the note. With labels only.
        last_hidden_state: Shape `(batch, length, hidden_size)`.
        past_key_values: Cache, if asked for.
        hidden_states: Of every layer, if asked for.
        attentions: Of every layer, if asked for.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    nats: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class NotePlaces:
    """Where rows lie in musical time, and what was written before them.

    Attributes:
        index: Number of the last written row so far, int64, shape `(batch, length)`. So a written row is as far from
            the one before it as ever, whatever is given between them.
        onset: Of each row, in steps, float32, shape as `index`.
        last_written: Place of the last written row so far among these rows, the row itself included, int64, shape as
            `index`; -1 where there is none.
        written_onset: Onset of the last written row so far, the row itself included, shape as `onset`.
        written_pitch: Pitch of that row, int64, shape as `onset`; -1 where it is no note.
        recent_offsets: Where this row and those before it end, whatever their role, the latest first, in steps after
            `written_onset`, float32, shape `(batch, length, num_recent_offsets)`.
    """

    index: torch.Tensor
    onset: torch.Tensor
    last_written: torch.Tensor
    written_onset: torch.Tensor
    written_pitch: torch.Tensor
    recent_offsets: torch.Tensor

    @classmethod
    def of(
        cls,
        input_values: torch.Tensor,
        token_type_ids: torch.Tensor | None,
        config: NoteTransformerConfig,
        past: "NotePlaces | None" = None,
    ) -> "NotePlaces":
        """Places of rows of shape `(batch, length, 4)` that follow those of `past`."""
        shift, duration = torch.round(input_values[..., (TIME_SHIFT, DURATION)].float() * config.sampling_rate).unbind(
            -1
        )
        pitch = input_values[..., PITCH].long()
        pitch = torch.where(pitch < NUM_PITCHES, pitch, -1)
        is_written = torch.ones_like(pitch, dtype=torch.bool) if token_type_ids is None else token_type_ids == WRITTEN
        index, clock = is_written.long().cumsum(1) - 1, (shift * is_written).cumsum(1)
        before = pitch.new_full((len(pitch), 1), -1)
        offsets = clock.new_zeros(len(pitch), config.num_recent_offsets)  # the latest last; none, where time begins
        if past is not None:
            offsets = (past.recent_offsets[:, -1] + past.written_onset[:, -1:]).flip(1)
            index, clock = index + past.index[:, -1:] + 1, clock + past.written_onset[:, -1:]
            before = past.written_pitch[:, -1:]
        order = torch.arange(1, pitch.shape[1] + 1, device=pitch.device)
        last = torch.where(is_written, order, 0).cummax(1).values
        written_pitch = torch.cat([before, pitch], 1).gather(1, last)
        onset = clock + shift * ~is_written
        offsets = torch.cat([offsets, onset + duration], 1)[:, 1:]
        if config.num_recent_offsets:
            recent = offsets.unfold(1, config.num_recent_offsets, 1).flip(2) - clock[..., None]
        else:
            recent = clock.new_zeros(*clock.shape, 0)
        return cls(index, onset, last - 1, clock, written_pitch, recent)


def rms_norm(hidden_states: torch.Tensor, eps: float) -> torch.Tensor:
    """Root mean square normalisation without gains, over the last dimension."""
    return F.rms_norm(hidden_states, hidden_states.shape[-1:], eps=eps)


class NoteTransformerRotaryEmbedding(nn.Module):
    """Angles of the rotated pairs of a head: some turn with the index of a row, some with its onset or its pitch."""

    def __init__(self, config: NoteTransformerConfig):
        super().__init__()
        self.config = config
        # Numbers, because buffers that are not saved come out of `from_pretrained` empty.
        self.frequencies = [each.tolist() for each in self._frequencies(torch.device("cpu"))]

    def forward(
        self, index: torch.Tensor, onset: torch.Tensor, pitch: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines, float32.

        Args:
            index: Shape `(batch, length)`.
            onset: In steps, shape `(batch, length)`.
            pitch: Shape `(batch, length)`.

        Returns:
            Both of shape `(batch, 1, length, head_dim / 2)`.
        """
        coordinates = (index, onset, pitch)
        angles = [
            coordinate.float()[..., None] * torch.tensor(frequencies, device=onset.device)
            for coordinate, frequencies in zip(coordinates, self.frequencies, strict=True)
        ]
        angle = torch.cat(angles, dim=-1)[:, None]
        return angle.cos(), angle.sin()

    def _frequencies(self, device: torch.device) -> list[torch.Tensor]:
        """Radians per unit of each coordinate, for as many pairs as each of them has."""
        pairs = self.config.head_dim // 2
        shares = self.config.rotary_shares
        bounds = [round(pairs * sum(shares[:end]) / sum(shares)) for end in range(4)]
        num_index, num_onset, num_pitch = (high - low for low, high in zip(bounds, bounds[1:], strict=False))
        waves = list(_PITCH_WAVES[:num_pitch]) + [_PITCH_WAVES[-1]] * (num_pitch - len(_PITCH_WAVES))
        return [
            _geometric(_SHORTEST_INDEX, _LONGEST_INDEX, num_index, device),
            _geometric(_SHORTEST_STEPS, _LONGEST_STEPS, num_onset, device),
            2 * math.pi / torch.tensor(waves, device=device),
        ]


def _geometric(shortest: float, longest: float, number: int, device: torch.device) -> torch.Tensor:
    """Frequencies of waves from the shortest to the longest, each longer by the same factor."""
    steps = torch.arange(number, device=device) / max(number - 1, 1)
    return 2 * math.pi / (shortest * (longest / shortest) ** steps)


def apply_rotary(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate the pairs `(i, i + head_dim / 2)` of queries or keys, shape `(batch, num_heads, length, head_dim)`."""
    first, second = states.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(states.dtype)


def squared_relu(hidden_states: torch.Tensor) -> torch.Tensor:
    """`relu(x) ** 2`, as a product: the backward pass of a power takes several times as long."""
    rectified = F.relu(hidden_states)
    return rectified * rectified


def begins_at_zero(module: nn.Module) -> nn.Module:
    """A layer whose weights are zeros at first; transformers asks only those with parameters how they begin."""
    module.begins_at_zero = True  # type: ignore[assignment]
    return module


class NoteTransformerMLP(nn.Module):
    """Position-wise feed-forward network with squared ReLU."""

    def __init__(self, config: NoteTransformerConfig):
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        # Branches add nothing at first.
        self.down_proj = begins_at_zero(nn.Linear(config.intermediate_size, config.hidden_size, bias=False))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.down_proj(squared_relu(self.up_proj(hidden_states)))


class NoteTransformerAttention(nn.Module):
    """Multi-head attention.

    Differs from `LlamaAttention`: queries and keys are normalised, and rotated by three coordinates of each note.
    """

    def __init__(self, config: NoteTransformerConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = True
        self.num_key_value_groups = 1

        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.o_proj = begins_at_zero(nn.Linear(config.hidden_size, config.hidden_size, bias=False))

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        input_shape = hidden_states.shape[:-1]
        hidden_shape = (*input_shape, -1, self.head_dim)
        # (batch, num_heads, length, head_dim)
        query_states, key_states, value_states = (
            project(hidden_states).view(hidden_shape).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        query_states = apply_rotary(rms_norm(query_states, self.config.rms_norm_eps), *position_embeddings)
        key_states = apply_rotary(rms_norm(key_states, self.config.rms_norm_eps), *position_embeddings)
        query_states, key_states = query_states.to(value_states.dtype), key_states.to(value_states.dtype)

        if past_key_values is not None:
            key_states, value_states = past_key_values.update(key_states, value_states, self.layer_idx)

        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        attn_output, attn_weights = attention_interface(
            self,
            query_states,
            key_states,
            value_states,
            attention_mask,
            dropout=0.0 if not self.training else self.attention_dropout,
            scaling=self.scaling,
            **kwargs,
        )
        return self.o_proj(attn_output.reshape(*input_shape, -1)), attn_weights


class NoteTransformerDecoderLayer(GradientCheckpointingLayer):
    """Attention and feed-forward network, each normalised on entry and added to the residual stream."""

    def __init__(self, config: NoteTransformerConfig, layer_idx: int):
        super().__init__()
        self.rms_norm_eps = config.rms_norm_eps
        self.self_attn = NoteTransformerAttention(config, layer_idx)
        self.mlp = NoteTransformerMLP(config)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        attn_output, _ = self.self_attn(
            rms_norm(hidden_states, self.rms_norm_eps),
            position_embeddings=position_embeddings,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            **kwargs,
        )
        hidden_states = hidden_states + self.dropout(attn_output)
        return hidden_states + self.dropout(self.mlp(rms_norm(hidden_states, self.rms_norm_eps)))


class NoteTransformerEmbeddings(nn.Module):
    """Embeds rows: the sum of the embeddings of a note's fields, of its role, and of the controls asked for."""

    def __init__(self, config: NoteTransformerConfig):
        super().__init__()
        self.config = config
        self.embed_time_shift = nn.Embedding(NUM_TIME_CLASSES, config.hidden_size)
        self.embed_pitch = nn.Embedding(config.vocab_size, config.hidden_size)
        self.embed_velocity = nn.Embedding(NUM_VELOCITIES, config.hidden_size)
        self.embed_duration = nn.Embedding(NUM_TIME_CLASSES, config.hidden_size)
        self.embed_role = nn.Embedding(3, config.hidden_size)  # written, given ahead, given behind
        self.embed_controls = begins_at_zero(nn.Embedding(sum(config.control_sizes), config.hidden_size))
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(
        self,
        input_values: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
        control_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Embeddings, shape `(batch, length, hidden_size)`; for the arguments see [`NoteTransformerModel.forward`]."""
        shift, pitch, velocity, duration = classes_of(input_values, self.config.sampling_rate)
        embeds = self.embed_time_shift(shift) + self.embed_pitch(pitch)
        embeds = embeds + self.embed_velocity(velocity) + self.embed_duration(duration)
        role = torch.zeros_like(pitch)
        if token_type_ids is not None:
            role = token_type_ids * (1 + (input_values[..., TIME_SHIFT] < 0))
        embeds = embeds + self.embed_role(role)
        embeds = embeds + self.embed_controls(control_places(control_ids, self.config, pitch.device)).sum(-2)
        return self.dropout(rms_norm(embeds, self.config.rms_norm_eps))


def control_places(
    control_ids: torch.Tensor | None, config: NoteTransformerConfig, device: torch.device
) -> torch.Tensor:
    """Places of controls in a table of all their values, shape `(..., num_controls)`; without ids, nothing is asked."""
    first = torch.tensor((0, *config.control_sizes[:-1]), device=device).cumsum(0)
    return first if control_ids is None else first + control_ids


def classes_of(input_values: torch.Tensor, sampling_rate: int) -> tuple[torch.Tensor, ...]:
    """Class of the time shift (of its size, where it is negative), pitch or event, velocity, class of the duration."""
    steps = torch.round(input_values[..., (TIME_SHIFT, DURATION)].float().abs() * sampling_rate).long()
    shift, duration = time_class(steps[..., 0]), time_class((steps[..., 1] - 1).clamp(min=0))
    pitch, velocity = input_values[..., PITCH].long(), input_values[..., VELOCITY].long()
    return shift, pitch, velocity.clamp(0, NUM_VELOCITIES - 1), duration


class NoteTransformerFieldHead(nn.Module):
    """A small network from what is known to the logits of one field."""

    def __init__(self, config: NoteTransformerConfig, num_classes: int):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.fc2 = begins_at_zero(
            nn.Linear(config.hidden_size, num_classes)
        )  # all outcomes are equally likely at first

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(squared_relu(self.fc1(hidden_states))).float()


class NoteTransformerHeads(nn.Module):
    """The distribution of the next note, field by field; what is drawn is embedded and added for later fields."""

    def __init__(self, config: NoteTransformerConfig):
        super().__init__()
        self.config = config
        self.time_shift_head = NoteTransformerFieldHead(config, NUM_TIME_CLASSES + 1)
        self.pitch_head = NoteTransformerFieldHead(config, NUM_PITCHES + 2 * NUM_PITCHES - 1)
        self.velocity_head = NoteTransformerFieldHead(config, NUM_VELOCITIES - 1)
        self.duration_head = NoteTransformerFieldHead(config, NUM_TIME_CLASSES)
        if config.num_recent_offsets:
            self.offset_head = NoteTransformerFieldHead(config, config.num_recent_offsets + NUM_TIME_CLASSES)
        self.embed_time_shift = nn.Embedding(NUM_TIME_CLASSES, config.hidden_size)
        self.embed_pitch = nn.Embedding(NUM_PITCHES, config.hidden_size)
        self.embed_velocity = nn.Embedding(NUM_VELOCITIES, config.hidden_size)

    def given(self, hidden_states: torch.Tensor, embedding: nn.Embedding, classes: torch.Tensor) -> torch.Tensor:
        """Hidden states that know one more field."""
        return hidden_states + embedding(classes) if self.config.is_cascade else hidden_states

    def pitch_logits(
        self, hidden_states: torch.Tensor, shift: torch.Tensor, written_pitch: torch.Tensor
    ) -> torch.Tensor:
        """Logits of the pitch, shape `(..., 128)`, minus infinity where a chord would go downwards.

        Args:
            hidden_states: Shape `(..., hidden_size)`, knowing the time shift.
            shift: Class of the time shift, shape `(...)`.
            written_pitch: Pitch of the note written before, or -1, shape `(...)`.
        """
        absolute, relative = self.pitch_head(hidden_states).split([NUM_PITCHES, 2 * NUM_PITCHES - 1], dim=-1)
        pitches = torch.arange(NUM_PITCHES, device=shift.device)
        before = torch.where(written_pitch < 0, MIDDLE_PITCH, written_pitch)[..., None]
        logits = absolute + relative.gather(-1, pitches - before + NUM_PITCHES - 1)
        if not self.config.is_cascade:  # the time shift is not known
            return logits
        is_below = (shift == 0)[..., None] & (pitches <= written_pitch[..., None])
        return logits.masked_fill(is_below & (written_pitch < NUM_PITCHES - 1)[..., None], -torch.inf)

    def duration_logits(self, hidden_states: torch.Tensor, left: torch.Tensor) -> torch.Tensor:
        """Logits of the classes of durations, then of ending together with each of the latest notes.

        Args:
            hidden_states: Shape `(..., hidden_size)`, knowing the fields before.
            left: How long each of the latest notes still sounds, in steps, shape `(..., num_recent_offsets)`.

        Returns:
            Shape `(..., num_classes + num_recent_offsets)`, minus infinity for notes that have ended.
        """
        logits = self.duration_head(hidden_states)
        if not self.config.num_recent_offsets:
            return logits
        by_order, by_time = self.offset_head(hidden_states).split([left.shape[-1], NUM_TIME_CLASSES], dim=-1)
        shared = by_order + by_time.gather(-1, time_class((left - 1).clamp(min=0)))
        return torch.cat([logits, shared.masked_fill(left < 1, -torch.inf)], dim=-1)

    def nats(
        self,
        hidden_states: torch.Tensor,
        notes: torch.Tensor,
        written_pitch: torch.Tensor,
        recent_offsets: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What the notes cost, if each follows its hidden state.

        Args:
            hidden_states: Shape `(..., hidden_size)`.
            notes: Shape `(..., 4)`; the fields after the time shift mean nothing in a row that ends a piece.
            written_pitch: Pitch of the note written before each of them, or -1, shape `(...)`.
            recent_offsets: Where the latest rows before each of them end, shape `(..., num_recent_offsets)`; see
                `NotePlaces`.

        Returns:
            Nats, shape `(..., 4)`, and logits of the pitch, shape `(..., 128)`.
        """
        rate = self.config.sampling_rate
        shift, event, velocity, duration = classes_of(notes, rate)
        is_end = event >= NUM_PITCHES
        pitch = event.clamp(max=NUM_PITCHES - 1)

        shift_logits = self.time_shift_head(hidden_states)
        hidden_states = self.given(hidden_states, self.embed_time_shift, shift)
        pitch_logits = self.pitch_logits(hidden_states, shift, written_pitch)
        hidden_states = self.given(hidden_states, self.embed_pitch, pitch)
        velocity_logits = self.velocity_head(hidden_states)
        steps = torch.round(notes[..., (TIME_SHIFT, DURATION)].float() * rate).long()
        within = residual_nats((steps - steps.new_tensor([0, 1])).clamp(min=0))
        left = recent_offsets.long() - steps[..., TIME_SHIFT, None]
        hidden_states = self.given(hidden_states, self.embed_velocity, velocity)
        # Whatever way leads to the duration adds to its probability.
        log_probs = self.duration_logits(hidden_states, left).log_softmax(-1)
        by_class = log_probs.gather(-1, duration[..., None]) - within[..., 1, None]
        by_offset = log_probs[..., NUM_TIME_CLASSES:].masked_fill(left != steps[..., 1, None], -torch.inf)
        duration_nats = -torch.cat([by_class, by_offset], dim=-1).logsumexp(-1)
        nats = [
            _cross_entropy(shift_logits, torch.where(is_end, END_CLASS, shift)) + within[..., 0] * ~is_end,
            _cross_entropy(pitch_logits, pitch),
            _cross_entropy(velocity_logits, (velocity - 1).clamp(min=0)),
            duration_nats,
        ]
        return torch.stack(nats, dim=-1), pitch_logits

    def sample(
        self,
        hidden_states: torch.Tensor,
        written_pitch: torch.Tensor,
        recent_offsets: torch.Tensor,
        draw_class: Callable[[int, torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        """Draw one note, or the end, after each hidden state.

        Args:
            hidden_states: Shape `(batch, hidden_size)`.
            written_pitch: Pitch of the note written before, or -1, shape `(batch,)`.
            recent_offsets: Where the latest rows end, shape `(batch, num_recent_offsets)`; see `NotePlaces`.
            draw_class: Called with a column (`TIME_SHIFT` ...) and its logits, shape `(batch, num_classes)`, in the
                order of the columns; gives classes, shape `(batch,)`. The last class of a time shift is the end; those
                of a duration are followed by ending together with each of the latest rows.

        Returns:
            Rows, shape `(batch, 4)`, float32.
        """
        shift = draw_class(TIME_SHIFT, self.time_shift_head(hidden_states))
        is_end = shift == END_CLASS
        shift = shift.clamp(max=NUM_TIME_CLASSES - 1)
        hidden_states = self.given(hidden_states, self.embed_time_shift, shift)
        pitch = draw_class(PITCH, self.pitch_logits(hidden_states, shift, written_pitch))
        hidden_states = self.given(hidden_states, self.embed_pitch, pitch)
        velocity = draw_class(VELOCITY, self.velocity_head(hidden_states)) + 1
        hidden_states = self.given(hidden_states, self.embed_velocity, velocity)
        shift_steps = middle_step(shift)
        left = recent_offsets.long() - shift_steps[:, None]
        duration = draw_class(DURATION, self.duration_logits(hidden_states, left))
        plain = middle_step(duration.clamp(max=NUM_TIME_CLASSES - 1)) + 1
        steps = torch.cat([plain[:, None], left], 1)
        steps = steps.gather(1, (duration[:, None] - NUM_TIME_CLASSES + 1).clamp(min=0))[:, 0]
        rate = self.config.sampling_rate
        fields = [shift_steps / rate, pitch, velocity, steps / rate]
        rows = torch.stack([each.float() for each in fields], dim=-1)
        return torch.where(is_end[:, None], rows.new_tensor(END_ROW), rows)


def _cross_entropy(logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Nats of each class, shape as `classes`."""
    return F.cross_entropy(logits.flatten(0, -2), classes.flatten(), reduction="none").view(classes.shape)


class NoteTransformerPreTrainedModel(CarriesCode, PreTrainedModel):
    """What the models have in common: configuration, initialisation, and what the attention can and cannot do."""

    config: NoteTransformerConfig  # the Auto classes read this as a class: postponed annotations would break them
    base_model_prefix = "model"
    main_input_name = "input_values"
    supports_gradient_checkpointing = True
    _no_split_modules = ["NoteTransformerDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_sdpa = True
    _can_record_outputs = {
        "hidden_states": NoteTransformerDecoderLayer,
        "attentions": NoteTransformerAttention,
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Linear) and module.bias is None:
            # Uniform with the variance of 1 / inputs: what enters is normalised, and so is what leaves.
            bound = (3 / module.in_features) ** 0.5
            init.uniform_(module.weight, -bound, bound)
        if getattr(module, "begins_at_zero", False):
            init.zeros_(module.weight)  # type: ignore[arg-type]


class NoteTransformerModel(NoteTransformerPreTrainedModel):
    """The decoder without the heads."""

    def __init__(self, config: NoteTransformerConfig):
        super().__init__(config)
        self.embeddings = NoteTransformerEmbeddings(config)
        self.rotary_emb = NoteTransformerRotaryEmbedding(config)
        # The short way from what is asked to what is drawn: by the long one, through all layers, it is hardly learnt.
        self.control_bias = begins_at_zero(nn.Embedding(sum(config.control_sizes), config.hidden_size))
        self.layers = nn.ModuleList(
            [NoteTransformerDecoderLayer(config, layer_idx) for layer_idx in range(config.num_hidden_layers)]
        )
        self.gradient_checkpointing = False

        # Initialize weights and apply final processing
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(  # type: ignore[misc]
        self,
        input_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        control_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPast:
        """Encode rows.

        Args:
            input_values: Rows, shape `(batch, length, 4)`, float32; see the top of this file.
            attention_mask: 1 for rows, 0 for padding, shape `(batch, past + length)`.
            token_type_ids: 0 for written rows, 1 for given ones, shape `(batch, length)`; all are written by default.
            control_ids: What is asked of the notes after each row, 0 where nothing is, shape
                `(batch, length, num_controls)`; nothing by default; see `note_controls.py`.
            position_ids: Index of each row, shape `(batch, length)`; by default the number of written rows so far.
            past_key_values: Cache of the rows before; it also remembers where in musical time they end.
            use_cache: Whether to return a cache.
            **kwargs: `output_hidden_states`, `output_attentions` and what the attention function takes.

        Returns:
            The last hidden state, shape `(batch, length, hidden_size)`, and the cache.

        Raises:
            ValueError: If there are no rows.
        """
        if input_values is None:
            raise ValueError("You must specify input_values")
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        let_grow(past_key_values)
        places = places_of(input_values, token_type_ids, self.config, past_key_values)
        inputs_embeds = self.embeddings(input_values, token_type_ids, control_ids)
        causal_mask = create_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=None,  # an index that stands still is no beginning of another sequence
        )
        pitch = input_values[..., PITCH]
        pitch = torch.where(pitch < NUM_PITCHES, pitch, MIDDLE_PITCH)
        index = places.index if position_ids is None else position_ids.expand_as(places.index)
        position_embeddings = self.rotary_emb(index, places.onset, pitch)

        hidden_states = inputs_embeds
        for decoder_layer in self.layers:
            hidden_states = decoder_layer(
                hidden_states,
                position_embeddings=position_embeddings,
                attention_mask=causal_mask,
                past_key_values=past_key_values,
                use_cache=use_cache,
                **kwargs,
            )
        if past_key_values is not None:
            past_key_values.note_places = places  # type: ignore[attr-defined]

        hidden_states = rms_norm(hidden_states, self.config.rms_norm_eps)
        hidden_states = hidden_states + self.control_bias(control_places(control_ids, self.config, pitch.device)).sum(
            -2
        )
        return BaseModelOutputWithPast(last_hidden_state=hidden_states, past_key_values=past_key_values)


def places_of(
    input_values: torch.Tensor,
    token_type_ids: torch.Tensor | None,
    config: NoteTransformerConfig,
    past_key_values: Cache | None,
) -> NotePlaces:
    """Places of rows after those that a cache holds."""
    return NotePlaces.of(input_values, token_type_ids, config, getattr(past_key_values, "note_places", None))


class NoteTransformerForCausalLM(  # type: ignore[misc]  # `generate` takes and gives rows
    GeneratesRows, NoteTransformerPreTrainedModel, GenerationMixin
):
    """The decoder with a head per field, its likelihood, and a sampling loop of its own.

    Differs from causal models of tokens as `ContinuousNotesForCausalLM` (V5) does: notes are drawn field by field, so
    `generate` is not that of `GenerationMixin`, which stands here for what transformers asks of a model that generates.
    """

    def __init__(self, config: NoteTransformerConfig):
        super().__init__(config)
        self.model = NoteTransformerModel(config)
        self.heads = NoteTransformerHeads(config)

        # Initialize weights and apply final processing
        self.post_init()

    @can_return_tuple
    def forward(  # type: ignore[misc]
        self,
        input_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        control_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> NoteTransformerOutput:
        """Encode rows and, given labels, say what each of them cost.

        Args:
            input_values: See [`NoteTransformerModel.forward`], as for the arguments that are not explained here.
            attention_mask: See there.
            token_type_ids: See there.
            control_ids: See there.
            position_ids: See there.
            past_key_values: See there.
            labels: Pitch or event of each row, shape `(batch, length)`, unshifted. -100 is not predicted; elsewhere
                the whole row of `input_values` is, from the last written row before it.
            use_cache: See there.
            num_items_in_batch: Divides the summed loss (gradient accumulation); by default the predicted rows do.
            **kwargs: See there.

        Returns:
            See [`NoteTransformerOutput`].
        """
        if input_values is None:
            raise ValueError("You must specify input_values")
        # Before the cache learns of the new rows.
        places = places_of(input_values, token_type_ids, self.config, past_key_values)
        outputs: BaseModelOutputWithPast = self.model(
            input_values=input_values,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            control_ids=control_ids,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )
        loss = logits = nats = None
        if labels is not None:
            assert outputs.last_hidden_state is not None
            predicting = places.last_written[:, :-1, None].clamp(min=0)
            nats, logits = self.heads.nats(
                _rows_at(predicting, outputs.last_hidden_state),
                input_values[:, 1:],
                places.written_pitch[:, :-1],
                _rows_at(predicting, places.recent_offsets),
            )
            targets = labels[:, 1:]
            is_note = (targets >= 0) & (targets < NUM_PITCHES)
            counts = is_note[..., None].repeat(1, 1, 4)  # (batch, length - 1, 4)
            counts[..., TIME_SHIFT] |= targets == self.config.eos_token_id
            counts &= (places.last_written[:, :-1] >= 0)[..., None]  # what a cached row predicts was asked there
            nats = torch.where(counts, nats, 0.0)
            loss = nats.sum() / (num_items_in_batch if num_items_in_batch is not None else (targets != -100).sum())

        return NoteTransformerOutput(
            loss=loss,
            logits=logits,
            nats=nats,
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def new_cache(self) -> Cache:
        """An empty cache, for `read`."""
        return DynamicCache(config=self.config)

    def read(self, cache: Cache, rows: np.ndarray, is_given: np.ndarray, control_ids: np.ndarray) -> torch.Tensor:
        """Read rows of one piece that follow those in a cache.

        Args:
            cache: What `new_cache` gave; it takes up the rows.
            rows: Shape `(length, 4)`.
            is_given: Roles, bool, shape `(length,)`.
            control_ids: What is asked of the notes after each row, shape `(length, num_controls)`.

        Returns:
            The last row's hidden state, from which `draw_note` draws, shape `(1, hidden_size)`.
        """
        outputs = self.model(
            input_values=torch.from_numpy(rows.astype(np.float32))[None].to(self.device),
            token_type_ids=torch.from_numpy(np.where(is_given, GIVEN, WRITTEN))[None].to(self.device),
            control_ids=torch.from_numpy(control_ids)[None].to(self.device),
            past_key_values=cache,
            use_cache=True,
        )
        return outputs.last_hidden_state[:, -1]

    def joined(self, hidden_states: list[torch.Tensor]) -> torch.Tensor:
        """What `read` gave for some caches, one under the other, shape `(num_states, hidden_size)`."""
        return torch.cat(hidden_states)

    def rewind(self, cache: Cache, rows: np.ndarray, is_given: np.ndarray) -> None:
        """Let a cache forget all that it took up after its first rows.

        Args:
            cache: What `read` has filled.
            rows: The first rows that it took up, at least one, shape `(length, 4)`.
            is_given: Their roles, bool, shape `(length,)`.
        """
        cache.crop(len(rows) - cache.get_seq_length())  # how many to remove, as a negative number
        roles = torch.from_numpy(np.where(is_given, GIVEN, WRITTEN))[None].to(self.device)
        values = torch.from_numpy(rows.astype(np.float32))[None].to(self.device)
        cache.note_places = NotePlaces.of(values, roles, self.config)  # type: ignore[attr-defined]

    def draw_note(
        self,
        hidden_states: torch.Tensor,
        written_pitch: int,
        recent_offsets: np.ndarray,
        draw_class: Callable[[int, np.ndarray], int],
    ) -> np.ndarray:
        """Draw one note, or the end.

        Args:
            hidden_states: What `read` or `joined` gave.
            written_pitch: Pitch of the note written before, or -1.
            recent_offsets: Where the latest rows end, the latest first, in steps after the onset of the note written
                before, shape `(num_recent_offsets,)`.
            draw_class: Called with a column (`TIME_SHIFT` ...) and its logits after each hidden state, float32, shape
                `(num_states, num_classes)`, in the order of the columns; gives a class. The last class of a time shift
                is the end; those of a duration are followed by ending together with each of the latest rows.

        Returns:
            A row, shape `(4,)`, float32.
        """

        def draw_one(column: int, logits: torch.Tensor) -> torch.Tensor:
            drawn = draw_class(column, logits.float().cpu().numpy())
            return torch.full((len(logits),), drawn, device=logits.device)

        device, number = hidden_states.device, len(hidden_states)
        pitch = torch.full((number,), written_pitch, device=device)
        recent = torch.from_numpy(recent_offsets).to(device).expand(number, -1)
        return self.heads.sample(hidden_states, pitch, recent, draw_one)[0].cpu().numpy()

    def sample(
        self,
        hidden_states: torch.Tensor,
        rows: torch.Tensor,
        temperature: float,
        top_p: float,
        allow_end: bool,
        generator: torch.Generator | None,
    ) -> torch.Tensor:
        """Draw the note after each row; see [`GeneratesRows.sample`]."""
        latest = NotePlaces.of(rows[:, -max(self.config.num_recent_offsets, 1) :], None, self.config)
        draw_class = class_drawer(temperature, top_p, allow_end, generator)
        return self.heads.sample(hidden_states, latest.written_pitch[:, -1], latest.recent_offsets[:, -1], draw_class)


def _rows_at(places: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Values, shape `(batch, length, size)`, of the rows at some places, shape `(batch, number, 1)`."""
    return values.gather(1, places.expand(-1, -1, values.shape[-1]))


def class_drawer(
    temperature: float, top_p: float, allow_end: bool, generator: torch.Generator | None
) -> Callable[[int, torch.Tensor], torch.Tensor]:
    """What `NoteTransformerHeads.sample` draws with: temperature and nucleus, the same for all fields."""

    def draw_class(column: int, logits: torch.Tensor) -> torch.Tensor:
        if column == TIME_SHIFT and not allow_end:
            logits = logits[:, :END_CLASS]
        if top_p < 1:
            logits = TopPLogitsWarper(top_p)(None, logits)
        return draw(logits, temperature, generator)

    return draw_class


__all__ = [
    "NoteTransformerForCausalLM",
    "NoteTransformerModel",
    "NoteTransformerOutput",
    "NoteTransformerPreTrainedModel",
]
