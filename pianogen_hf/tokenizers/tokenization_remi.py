"""REMI, and MidiTok's other one-stream schemes, with or without byte pair encoding.

REMI: Huang and Yang 2020, "Pop Music Transformer" (arXiv 2002.00212), section 3. The events, their quantisation and the
byte pair encoding (Fradet et al. 2023, arXiv 2301.11975) are MidiTok's (Fradet et al. 2021, arXiv 2310.17202), version
3.1; ids and decoded notes are exactly its own. Here: one piano track, this package's special tokens, and a grammar.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np

from .notes import NOTE_DTYPE, TEMPO_DTYPE, TIME_SIGNATURE_DTYPE, Notes
from .remi_encoder import RemiEncoder
from .tokenization_notes import SPECIAL_TOKENS, NoteTokenizer

try:  # only for this one file: a checkpoint with another tokenizer must load without MidiTok
    import miditok
    from symusic import Note, Score, Tempo, TimeSignature, Track
    from tokenizers.models import BPE
except ImportError:
    miditok = None

DEFAULT_CONFIG = {
    "pitch_range": [21, 108],
    "beat_res": {"0_4": 8, "4_12": 4},  # steps per beat: 8 in the first four beats of a length, 4 up to the twelfth
    "num_velocities": 32,
    "use_programs": False,
    "use_tempos": False,
    "use_time_signatures": False,
    "use_pitchdrum_tokens": False,
    "programs": [0],
    "remove_duplicated_notes": True,  # this also puts the notes of a chord into one order, by pitch
    "encode_ids_split": "bar",  # byte pairs never reach over a bar line
}
PERTOK_CONFIG = {
    "ticks_per_quarter": 320,
    "use_microtiming": True,
    "max_microtiming_shift": 0.125,
    "num_microtiming_bins": 30,
    "use_position_toks": False,
}
SCHEMES = ("REMI", "TSD", "MIDILike", "Structured", "PerTok", "BEAT")
# What a single piano track of `Notes` can't give to MidiTok. Sustain: fold it in with `Notes.with_sustain()`.
_UNSUPPORTED = ("use_sustain_pedals", "use_control_changes", "use_pitch_bends", "use_key_signatures", "special_tokens")
_MAX_QUARTERS = 100_000  # 14 hours at 120 bpm; one note at the end of time, in a broken file, would fill the memory
_NOTE_KINDS = ("Pitch", "NoteOn", "Pattern", "MicroTiming", "Velocity", "Duration", "NoteOff")  # in order, in a note
_NEVER = 1 << 20  # greater than every position and pitch


class RemiTokenizer(NoteTokenizer):
    """MidiTok's REMI: bars, positions in the bar, and for each note its pitch, velocity and length in beats.

    All notes are merged into one piano track. Lost: programs, tracks, the pedal, the tempo and the time signatures
    (unless the config asks for the last two), lengths beyond 12 beats, time and velocity finer than the grid, keys
    outside the range, and all but the shortest of several notes of one pitch at one position. Without time signatures
    every bar has four quarters. Signatures and tempos after the last onset are dropped.

    Args:
        scheme: one of `SCHEMES`, by MidiTok's class names. In MIDILike a note whose end is missing is no note.
        config: what differs from `DEFAULT_CONFIG`, as arguments of MidiTok's `TokenizerConfig` in JSON's types (ranges
            of `beat_res` may be tuples or "0_4"); PerTok takes the keys of `PERTOK_CONFIG` too.
        vocab_file: what `train_bpe` learnt, as `save_pretrained` stores it; None without byte pair encoding.

    Raises:
        ImportError: without MidiTok. ValueError: for schemes of several streams, unknown or unsupported config keys.
    """

    vocab_files_names = {"vocab_file": "miditok.json"}  # "tokenizer.json" is taken
    time_unit: ClassVar[str] = "beat"
    rest_prefixes: ClassVar[tuple[str, ...]] = ("Bar", "Rest", "TimeShift", "TimeSig", "Tempo")

    def __init__(
        self,
        scheme: str = "REMI",
        config: dict[str, Any] | None = None,
        vocab_file: str | None = None,
        **kwargs: Any,
    ) -> None:
        if miditok is None:
            raise ImportError("RemiTokenizer needs MidiTok: pip install miditok")
        if scheme not in SCHEMES:
            raise ValueError(
                f"scheme must be one of {', '.join(SCHEMES)} (one piano, one stream of ids), got {scheme!r}"
            )
        self.scheme = scheme
        miditok_config, keys = _miditok_config(scheme, config or {})
        library_class = getattr(miditok, scheme)
        self._miditok = library_class(params=vocab_file) if vocab_file else library_class(miditok_config)
        self.config = _plain_config(self._miditok.config, keys)
        # MidiTok itself remains for what the fast encoder does not cover, and decodes.
        covered = RemiEncoder.covers(self._miditok) and self._miditok.config.encode_ids_split != "beat"
        self._encoder = RemiEncoder(self._miditok) if covered else None
        self.pitch_range = tuple(self._miditok.config.pitch_range)
        super().__init__(scheme=scheme, config=self.config, **kwargs)
        self._build_grammar()

    @property
    def lost_fields(self) -> tuple[str, ...]:  # type: ignore[override]
        """What this scheme throws away by design; depends on the config."""
        optional = {"tempo": "use_tempos", "time_signature": "use_time_signatures"}
        kept = self._miditok.config
        return ("program", "track", "pedal", *(name for name, key in optional.items() if not getattr(kept, key)))

    @property
    def time_step_sec(self) -> float:
        """The finest step of onsets, in seconds at 120 quarters a minute; long notes end on a coarser one."""
        kept = self._miditok.config
        steps = kept.additional_params.get("ticks_per_quarter") if self.scheme == "PerTok" else None
        return 0.5 / (steps or max(kept.beat_res.values()))

    @property
    def velocity_step(self) -> float:
        """How many velocities share an event, on average."""
        return 127 / self._miditok.config.num_velocities

    # Vocabulary and byte pair encoding -------------------------------------------------------------------------------

    @property
    def _offset(self) -> int:
        """Our id minus MidiTok's, whose only special token is PAD_None, id 0."""
        return self.num_special - 1

    def _event_names(self) -> list[str]:
        if not self._miditok.is_trained:
            return [self._miditok[index] for index in range(1, len(self._miditok))]
        return ["+".join(self._base_events(index)) for index in range(1, len(self._miditok))]

    def _base_events(self, miditok_id: int) -> list[str]:
        """Names of the events that one learnt MidiTok id stands for."""
        sequence = miditok.TokSequence(ids=[miditok_id], are_ids_encoded=True)
        self._miditok.decode_token_ids(sequence)
        return sequence.tokens

    def train_bpe(self, pieces: Iterable[Notes], vocab_size: int) -> None:
        """Learn byte pairs from pieces, which must come from the train split only; what was learnt before is forgotten.

        Ids of single events stay as they are; learnt ids follow, named after their events ("Pitch_60+Velocity_63").

        Args:
            pieces: the train pieces.
            vocab_size: `len(tokenizer)` afterwards; fewer if the pieces have no more pairs to merge.

        Raises:
            ValueError: if vocab_size leaves no room for learnt ids.
        """
        num_base = len(self._miditok.vocab) + self._offset
        if vocab_size <= num_base:
            raise ValueError(f"vocab_size must exceed the {num_base} ids of single events, got {vocab_size}")
        # A plain BPE model, rather than MidiTok's default one, writes no extra sign in front of each bar.
        words = [self._words(notes) for notes in pieces]
        self._miditok.train(vocab_size - self._offset, model=BPE(), iterator=words)
        self._names = [*SPECIAL_TOKENS.values(), *self._event_names()]
        self._ids = {name: index for index, name in enumerate(self._names)}
        self.total_vocab_size = len(self._names)
        self._build_grammar()

    def _words(self, notes: Notes) -> list[str]:
        """The piece as MidiTok hands it to the BPE trainer: one character per event, one string per bar."""
        fast = self._fast_events(notes)
        if fast is not None:
            return self._fast_words(fast)
        sequence = self._sequence(notes, encode_ids=False)
        split = {"bar": sequence.split_per_bars, "beat": sequence.split_per_beats, "no": lambda: [sequence]}
        parts = split[self._miditok.config.encode_ids_split]()
        return [self._miditok._ids_to_bytes(part.ids, as_one_str=True) for part in parts if len(part)]

    def save_vocabulary(self, save_directory: str | os.PathLike, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write what byte pair encoding learnt to `miditok.json`; nothing without it."""
        if not self._miditok.is_trained:
            return ()
        name = (f"{filename_prefix}-" if filename_prefix else "") + self.vocab_files_names["vocab_file"]
        path = os.path.join(save_directory, name)
        self._miditok.save(path)
        return (path,)

    # Notes <-> ids ---------------------------------------------------------------------------------------------------

    def _encode(self, notes: Notes) -> np.ndarray:
        fast = self._fast_events(notes)
        if fast is None:
            ids = self._sequence(notes, encode_ids=True).ids
        elif self._miditok.is_trained:
            ids = self._miditok._model.encode(self._fast_words(fast), is_pretokenized=True).ids
        else:
            return fast + self._offset
        return np.array(ids, dtype=np.int64) + self._offset

    def _fast_events(self, notes: Notes) -> np.ndarray | None:
        """MidiTok's ids of single events, made without it; None where only MidiTok knows them."""
        latest = int(notes["onset_tick"][-1]) + int(np.maximum.reduce(notes["duration_tick"])) if len(notes) else 0
        limit = _MAX_QUARTERS * notes.ticks_per_quarter
        if latest > limit and notes.end_tick > limit:  # the exact end only where the quick bound is not enough
            raise ValueError(f"pieces longer than {_MAX_QUARTERS} quarters can't be encoded in beats")
        return None if self._encoder is None else self._encoder.encode(notes)

    def _fast_words(self, ids: np.ndarray) -> list[str]:
        """Single events as characters, one string per bar where byte pairs keep to bars."""
        characters = self._miditok._vocab_base_id_to_byte
        codes = np.array([ord(characters[index]) for index in range(len(characters))], dtype="<u4")
        text = codes[ids].tobytes().decode("utf-32-le")
        if self._miditok.config.encode_ids_split == "no":
            return [text]
        starts = np.flatnonzero(ids == self._miditok.vocab["Bar_None"]).tolist()
        return [text[start:end] for start, end in zip(starts, [*starts[1:], None], strict=True)]

    def _sequence(self, notes: Notes, encode_ids: bool) -> miditok.TokSequence:
        sequences = self._miditok.encode(self._score(notes), encode_ids=encode_ids)
        return sequences[0] if isinstance(sequences, list) else sequences

    def _score(self, notes: Notes) -> Any:
        """All notes in one piano track, ordered as symusic orders those of a file."""
        order = np.lexsort([notes[name] for name in ("velocity", "duration_tick", "pitch", "onset_tick")])
        track: Any = Track(program=0)
        track.notes = Note.from_numpy(
            notes["onset_tick"][order].astype(np.int32),
            notes["duration_tick"][order].astype(np.int32),
            notes["pitch"][order].astype(np.int8),
            notes["velocity"][order].astype(np.int8),
        )
        score: Any = Score(notes.ticks_per_quarter)
        score.tracks.append(track)
        last_onset = notes["onset_tick"].max(initial=0)
        config = self._miditok.config
        if config.use_tempos:
            rows = notes.tempos[notes.tempos["tick"] <= last_onset].tolist()
            score.tempos.extend([Tempo(tick, mspq=us_per_quarter) for tick, us_per_quarter in rows])
        if config.use_time_signatures:
            rows = notes.time_signatures[notes.time_signatures["tick"] <= last_onset].tolist()
            known = [row for row in rows if row[1:] in self._miditok.time_signatures]
            score.time_signatures.extend([TimeSignature(*row) for row in known])
        return score

    def _decode_events(self, ids: np.ndarray) -> Notes:
        events = self._single_events(ids)
        sequence = miditok.TokSequence(tokens=[self._names[index] for index in events])
        score = self._miditok.decode(sequence if self._miditok.one_token_stream else [sequence])
        tables = [_note_table(track.notes.numpy()) for track in score.tracks]
        signatures = score.time_signatures.numpy()
        if not self._miditok.config.use_time_signatures:
            signatures = {name: column[:0] for name, column in signatures.items()}  # MidiTok's 4/4 is but an assumption
        return Notes(
            np.concatenate(tables) if tables else np.zeros(0, NOTE_DTYPE),
            score.ticks_per_quarter,
            _rows(TEMPO_DTYPE, score.tempos.numpy(), tick="time", us_per_quarter="mspq"),
            _rows(TIME_SIGNATURE_DTYPE, signatures, tick="time", numerator="numerator", denominator="denominator"),
        )

    def _single_events(self, ids: np.ndarray) -> np.ndarray:
        """Ids of single events for ids of which some are learnt."""
        if not len(ids) or not self._miditok.is_trained:
            return ids
        return np.concatenate([self._parts[index] for index in ids])

    # Grammar ---------------------------------------------------------------------------------------------------------

    def _build_grammar(self) -> None:
        """Tables over ids: which events an id stands for, which kind may follow which, what an id begins with."""
        self._parts = [np.array([self._ids[name] for name in names.split("+")]) for names in self._names]
        num_base = len(self._miditok.vocab) + self._offset
        kind_names = [name.split("_")[0] for name in self._names[self.num_special : num_base]]
        self._kinds = {name: index for index, name in enumerate(dict.fromkeys(kind_names))}
        no_kind = len(self._kinds)  # of special tokens; nothing leads to it, and it leads to what can begin a piece
        self._kind = np.array([no_kind] * self.num_special + [self._kinds[name] for name in kind_names])
        self._value = np.array([self._event_value(name) for name in self._names[:num_base]])
        self._follows = self._kind_matrix()
        ends = {[kind for kind in _NOTE_KINDS if kind in self._kinds][-1], "TimeSig", "Rest"}
        self._ends = np.array([kind in ends for kind in self._kinds] + [False])
        self._first = np.array([part[0] for part in self._parts])
        self._first_kind = self._kind[self._first]
        has_bar = np.array([self._is_kind(part, "Bar").any() for part in self._parts])
        # How far back the grammar must look: to the last bar, to the beginning, or at one id.
        all_ids = np.ones(len(self._parts), dtype=bool)
        self._is_anchor = {"REMI": has_bar, "MIDILike": ~all_ids}.get(self.scheme, all_ids)
        self._entry = np.array([self._entry_limits(part) for part in self._parts]).T

    def _event_value(self, name: str) -> int:
        """A number for those events whose order counts: a position, a pitch, or the positions in a bar."""
        kind, _, value = name.partition("_")
        if kind == "TimeSig":
            return int(value.split("/")[0]) * self._miditok.config.max_num_pos_per_beat
        return int(value) if kind in ("Position", "Pitch", "NoteOn", "NoteOff") else 0

    def _is_kind(self, events: np.ndarray, name: str) -> np.ndarray:
        """Which events are of the named kind, bool (num_events,)."""
        return self._kind[events] == self._kinds.get(name, -1)

    def _kind_matrix(self) -> np.ndarray:
        """Which kind may follow which, bool (num_kinds + 1, num_kinds + 1); the last row is for nothing written yet."""
        config = self._miditok.config
        graph = {kind: set(after) for kind, after in self._miditok.tokens_types_graph.items()}
        if self.scheme == "PerTok":
            graph = self._pertok_graph()
        if self.scheme == "REMI" and "TimeSig" in graph:
            graph["TimeSig"].discard("Pitch")  # MidiTok's graph allows it, but its encoder always writes a position
        if self.scheme in ("REMI", "BEAT"):
            begin = {"Bar", "Rest"} if config.use_rests else {"Bar"}
        else:
            begin = (graph["Duration" if "Duration" in self._kinds else "NoteOff"] | {"TimeSig", "Tempo"}) - {"NoteOff"}
        matrix = np.zeros((len(self._kinds) + 1,) * 2, dtype=bool)
        for row, followers in enumerate([*(graph[kind] for kind in self._kinds), begin]):
            matrix[row, [self._kinds[kind] for kind in followers if kind in self._kinds]] = True
        return matrix

    def _pertok_graph(self) -> dict[str, set[str]]:
        """Which kind follows which in PerTok, for which MidiTok has no graph."""
        note = [kind for kind in _NOTE_KINDS if kind in self._kinds]
        between = {"Bar", "TimeSig", "Tempo", "TimeShift", "Position", "Pitch"}
        graph = {kind: {after} for kind, after in zip(note, note[1:], strict=False)}
        graph |= {kind: between for kind in (note[-1], "Bar", "TimeSig", "Tempo")}
        return graph | {"TimeShift": {"Pitch"}, "Position": {"Pitch"}}

    def _entry_limits(self, part: np.ndarray) -> tuple[int, int, int]:
        """Of one id: its first and last position in the bar it is written into, and its first pitch at this instant."""
        bar = np.flatnonzero(self._is_kind(part, "Bar") | self._is_kind(part, "TimeSig"))
        in_bar = part[: bar[0]] if len(bar) else part
        steps = np.flatnonzero(self._is_kind(in_bar, "Position"))
        positions = self._value[in_bar[steps]]
        now = in_bar[: steps[0]] if len(steps) else in_bar
        pitches = self._value[now[self._is_kind(now, "Pitch")]]
        return (
            positions[0] if len(positions) else _NEVER,
            positions[-1] if len(positions) else -1,
            pitches[0] if len(pitches) else _NEVER,
        )

    def _allowed_events(self, ids: np.ndarray) -> np.ndarray:
        anchors = np.flatnonzero(self._is_anchor[ids])
        tail = ids[anchors[-1] :] if len(anchors) else ids
        events = self._single_events(tail)
        last_kind = self._kind[events[-1]] if len(events) else -1
        allowed = self._follows[last_kind][self._first_kind]
        may_end = self._ends[last_kind] if len(events) else True  # an empty piece ends where it begins
        if self.scheme == "REMI":
            allowed &= self._in_order(events)
        if self.scheme == "MIDILike":
            sounding = self._sounding(events)
            allowed &= (self._first_kind != self._kinds["NoteOff"]) | sounding[self._value[self._first]]
            may_end &= not sounding.any()
        allowed[self.eos_token_id] = may_end
        return allowed

    def _in_order(self, events: np.ndarray) -> np.ndarray:
        """Ids that keep positions rising, and pitches at each, bool (vocab_size,); `events` go back to the last bar."""
        config = self._miditok.config
        first_position, last_position, first_pitch = self._entry
        bars = np.flatnonzero(self._is_kind(events, "Bar"))
        events = events[bars[-1] :] if len(bars) else events
        steps = np.flatnonzero(self._is_kind(events, "Position"))
        in_order = np.ones(len(self._parts), dtype=bool)
        if not config.use_rests:  # a rest may pass a bar line without a bar event
            sizes = self._value[events[self._is_kind(events, "TimeSig")]]
            size = sizes[-1] if len(sizes) else 4 * config.max_num_pos_per_beat
            last = self._value[events[steps[-1]]] if len(steps) else -1
            # Where it drops the last signature of a finer beat, MidiTok repeats a position for notes between two.
            in_order &= first_position >= last if config.use_time_signatures else first_position > last
            in_order &= last_position < size
        if config.remove_duplicated_notes and not config.use_pitch_intervals:
            now = events[steps[-1] :] if len(steps) else events
            pitches = self._value[now[self._is_kind(now, "Pitch")]]
            in_order &= first_pitch > (pitches[-1] if len(pitches) else -1)
        return in_order

    def _sounding(self, events: np.ndarray) -> np.ndarray:
        """Which pitches sound after all events of a MIDILike piece, bool (128,)."""
        ons, offs = (self._value[events[self._is_kind(events, kind)]] for kind in ("NoteOn", "NoteOff"))
        return np.bincount(ons, minlength=128) > np.bincount(offs, minlength=128)


def _miditok_config(scheme: str, config: dict[str, Any]) -> tuple[miditok.TokenizerConfig, list[str]]:
    """MidiTok's config object from plain values over our defaults, and the keys that were set."""
    extra = PERTOK_CONFIG if scheme == "PerTok" else {}
    values = {**DEFAULT_CONFIG, **extra, **config}
    unknown = sorted(values.keys() - miditok.TokenizerConfig().to_dict().keys() - extra.keys())
    # The attribute controls (ac_) are no notes. PerTok: MidiTok 3.1 fails to decode a tempo after a time signature.
    refused = {*_UNSUPPORTED, *(["use_tempos"] if scheme == "PerTok" else [])}
    unsupported = [key for key in values if key.startswith("ac_") or (key in refused and values[key])]
    if unknown or unsupported:
        raise ValueError(f"{scheme} takes no config {', '.join(unknown + unsupported)}")
    keys = list(values)
    for key in ("beat_res", "beat_res_rest"):
        if key in values:
            values[key] = {_beat_range(beats): steps for beats, steps in values[key].items()}
    if "time_signature_range" in values:
        values["time_signature_range"] = {int(key): value for key, value in values["time_signature_range"].items()}
    return miditok.TokenizerConfig(special_tokens=["PAD"], **values), keys


def _beat_range(beats: Any) -> tuple[int, int]:
    """(0, 4) of (0, 4) or of MidiTok's "0_4"."""
    first, last = beats.split("_") if isinstance(beats, str) else beats
    return int(first), int(last)


def _plain_config(config: miditok.TokenizerConfig, keys: list[str]) -> dict[str, Any]:
    """The named values of MidiTok's config in JSON's types."""
    values = config.to_dict(serialize=True)
    values |= values["additional_params"]
    return json.loads(json.dumps({key: values[key] for key in keys}))


def _rows(dtype: np.dtype, columns: dict[str, np.ndarray], **fields: str) -> np.ndarray:
    """A structured array whose `fields` are filled from symusic's columns."""
    rows = np.zeros(len(columns["time"]), dtype=dtype)
    for field, column in fields.items():
        rows[field] = columns[column]
    return rows


def _note_table(columns: dict[str, np.ndarray]) -> np.ndarray:
    """`NOTE_DTYPE` of a decoded track; ids that no piece has can give times and velocities that no MIDI file has."""
    table = _rows(NOTE_DTYPE, columns, onset_tick="time", duration_tick="duration", pitch="pitch", velocity="velocity")
    table["onset_tick"] = np.maximum(table["onset_tick"], 0)
    table["velocity"] = np.clip(table["velocity"], 1, 127)
    return table
