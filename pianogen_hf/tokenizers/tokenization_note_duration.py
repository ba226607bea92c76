"""Notes, durations and a separator: the encoding of musicautobot, and of ai-music and MIDIGen after it.

Origin: Andrew Shaw 2019, musicautobot (https://github.com/bearpelican/musicautobot); ai-music and MIDIGen
(https://github.com/Ryan-Palmer/MIDIGen) took it over with vocabularies of their own, which this file has, id by id.

A piece is a row of pairs on a grid of steps: a note and its duration; or the separator, and how many steps lie between
two steps at which notes begin. A step's notes stand with the highest first.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from .midi import MidiError, naming, notes_to_midi_bytes, read_chunks, read_midi
from .music21_notes import UNITS, PartNote, melody_and_chords, parts_of_version_5, parts_of_version_9
from .notes import Notes
from .step_actions import most_frequent, with_actions, without_actions
from .tokenization_notes import NoteTokenizer

_SEPARATOR = -1  # stands for the pitch in pairs, as in the systems that this encoding is from
_MAX_WAITS = 12  # longest ones in a row: some 4 minutes at 120 quarters a minute
_TICKS_PER_QUARTER = 480
_DECODED_VELOCITY = 80  # mezzo-forte; the encoding has no velocities


@dataclass(frozen=True)
class _Vocabulary:
    """What the three systems have each in its own way.

    Attributes:
        special_names: ids 0 and up.
        tail_names: ids after the last duration, which no piece has.
        steps_per_quarter: of the grid.
        max_duration: the longest that there is an id for, and for a separator too.
        longest_note: what the system cuts longer notes to.
        pitches: lowest and highest that the system writes.
        has_end: whether the system puts `<eos>` behind a piece.
        pads: whether it puts `<pad>` behind `<bos>`, so that pairs begin at even places.
        cuts_waits: whether it cuts a wait to `max_duration`; if not, a longer one gets an id outside the vocabulary.
    """

    special_names: tuple[str, ...]
    tail_names: tuple[str, ...]
    steps_per_quarter: int
    max_duration: int
    longest_note: int
    pitches: tuple[int, int]
    has_end: bool
    pads: bool
    cuts_waits: bool


_DUMMIES = tuple(f"Dummy_{index}" for index in range(5))
VOCABULARIES = {
    "musicautobot": _Vocabulary(
        ("<bos>", "<pad>", "<eos>", "<s2scls>", "<mask>", "<cseq>", "<mseq>", "<nscls>"),
        (*(f"MeanTempo_{index}" for index in range(10)), *_DUMMIES[:4]),
        *(4, 160, 128, (21, 107), False, True, False),
    ),
    "ai_music": _Vocabulary(("<pad>", "<bos>", "<eos>"), _DUMMIES, 4, 160, 128, (21, 107), True, True, False),
    "midigen": _Vocabulary(("<bos>", "<eos>", "<pad>"), (), 8, 256, 256, (0, 126), True, False, True),
}


class NoteDurationTokenizer(NoteTokenizer):
    """Pairs of a note and its duration, and of a separator and a number of steps, on a grid of beats.

    All notes go to one part. Lost: velocities, programs and tracks, drums, the pedal, tempo and time signatures, time
    finer than a step (a sixteenth, or a thirty-second of midigen), what a note is longer than the longest duration (10
    bars of four quarters, or 8 of midigen), the shorter of two notes of one pitch at one step, and what a wait has
    beyond twelve of the longest separators. Decoded notes have velocity 80 and 120 quarters a minute.

    Where the systems themselves lose music this tokenizer does not, unless `legacy` asks for what they write: notes
    shorter than half a sixteenth are kept, a step long; the notes of a chord keep their own lengths; no note is lost
    where voices are parted, cut at a bar line or put off; all 128 pitches are written; waits longer than the longest
    separator are several in a row, where musicautobot and ai-music write an id outside their vocabulary and midigen
    loses the time.

    Args:
        vocabulary: "musicautobot" (312 ids), "ai_music" (298) or "midigen" (389).
        legacy: whether notes are read and written as the system does it: musicautobot and ai-music with music21 5.7.2,
            midigen with 9.9.2.
        vocab_file: what `train_actions` learnt, as `save_pretrained` stores it; None without action tokens.
    """

    vocab_files_names = {"vocab_file": "actions.json"}
    time_unit: ClassVar[str] = "beat"
    lost_fields: ClassVar[tuple[str, ...]] = ("velocity", "program", "track", "pedal", "tempo")
    rest_prefixes: ClassVar[tuple[str, ...]] = ("Separator",)

    def __init__(
        self, vocabulary: str = "musicautobot", legacy: bool = False, vocab_file: str | None = None, **kwargs: Any
    ) -> None:
        if vocabulary not in VOCABULARIES:
            raise ValueError(f"vocabulary must be one of {', '.join(VOCABULARIES)}, got {vocabulary!r}")
        self.vocabulary, self.legacy = vocabulary, bool(legacy)
        self._rules = VOCABULARIES[vocabulary]
        self.max_duration = self._rules.max_duration
        self.pitch_range = self._rules.pitches if legacy else (0, 127)
        self._set_actions([] if vocab_file is None else json.loads(Path(vocab_file).read_text(encoding="utf-8")))
        if "<mask>" in self._rules.special_names:
            kwargs = {"mask_token": "<mask>", **kwargs}
        super().__init__(vocabulary=vocabulary, legacy=self.legacy, **kwargs)

    @property
    def time_step_sec(self) -> float:
        """A step of the grid, in seconds at 120 quarters a minute."""
        return 0.5 / self._rules.steps_per_quarter

    @property
    def separator_id(self) -> int:
        """The id that lets time pass; a duration follows it, too."""
        return self.num_special

    @property
    def first_pitch_id(self) -> int:
        """The id of pitch 0; the others follow."""
        return self.num_special + 1

    @property
    def first_duration_id(self) -> int:
        """The id of 0 steps, which is never written; the others follow."""
        return self.first_pitch_id + 128

    def _special_names(self) -> list[str]:
        return list(self._rules.special_names)

    def _event_names(self) -> list[str]:
        pitches = [f"Pitch_{pitch}" for pitch in range(128)]
        durations = [f"Duration_{steps}" for steps in range(self._rules.max_duration + 1)]
        names = ["Separator", *pitches, *durations, *self._rules.tail_names]
        actions = ["+".join(names[index - self.num_special] for index in action) for action in self.actions]
        return [*names, *actions]

    # Action tokens ---------------------------------------------------------------------------------------------------

    @property
    def first_action_id(self) -> int:
        """The id of the first action, or the size of the vocabulary if there is none."""
        return self.vocab_size - len(self.actions)

    def train_actions(self, pieces: Iterable[Notes], vocab_size: int) -> None:
        """Give the most frequent time steps of train pieces, all notes with the wait after them, ids of their own.

        Ids of single events stay as they are; actions follow, named after their events ("Pitch_60+Duration_4+...").
        What was learnt before is forgotten. See `step_actions.py`.

        Args:
            pieces: the train pieces.
            vocab_size: `len(tokenizer)` afterwards; fewer if no more steps come twice.

        Raises:
            ValueError: if vocab_size leaves no room for actions, or with `legacy`.
        """
        num_base = self.first_action_id
        if self.legacy:
            raise ValueError("legacy writes the ids of the system alone: learn actions without it")
        if vocab_size <= num_base:
            raise ValueError(f"vocab_size must exceed the {num_base} ids of single events, got {vocab_size}")
        self._set_actions([])
        steps = (self._encode(notes) for notes in pieces)
        self._set_actions(most_frequent(steps, self.separator_id, vocab_size - num_base))
        self._names = [*self._special_names(), *self._event_names()]
        self._ids = {name: index for index, name in enumerate(self._names)}
        self.total_vocab_size = len(self._names)

    def _set_actions(self, actions: Sequence[Sequence[int]]) -> None:
        num_base = self.num_special + 1 + 128 + self.max_duration + 1 + len(self._rules.tail_names)
        self.actions = [tuple(action) for action in actions]
        self._action_ids = {action: num_base + index for index, action in enumerate(self.actions)}

    def save_vocabulary(self, save_directory: str | os.PathLike, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write the actions to `actions.json`, as lists of ids of their events; nothing without them."""
        if not self.actions:
            return ()
        name = (f"{filename_prefix}-" if filename_prefix else "") + self.vocab_files_names["vocab_file"]
        path = Path(save_directory, name)
        path.write_text(json.dumps(self.actions), encoding="utf-8")
        return (str(path),)

    def _single_events(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        return without_actions(np.asarray(ids, dtype=np.int64), self.first_action_id, self.actions)

    # Files as the systems read them ----------------------------------------------------------------------------------

    def encode_midi(self, source: str | os.PathLike | bytes) -> list[int]:
        """Ids of a MIDI file, with all that stands before and behind a piece.

        With `legacy` they are those of the system; a wait of more steps than there are durations then has an id that is
        not in the vocabulary, if the system writes it so. Without, they are `encode_piece` of the file's piano notes.

        Args:
            source: a path, or the file's bytes.

        Raises:
            MidiError: if it can't be read.
        """
        if not self.legacy:
            return self.encode_piece(read_midi(source))
        beginning = [self.bos_token_id] + [self.pad_token_id] * self._rules.pads
        end = [self.eos_token_id] * self._rules.has_end
        return [*beginning, *self._ids_of_pairs(self._system_pairs(source)).tolist(), *end]

    def encode_midi_positions(self, source: str | os.PathLike | bytes) -> list[list[int]]:
        """Ids of a MIDI file with their positions in steps, as rows [id, position].

        The same as `encode_midi` and `positions`, but for waits that a system cuts: its positions go on in the uncut
        time.

        Raises:
            MidiError: if it can't be read.
        """
        ids = np.array(self.encode_midi(source))
        positions = self.positions(ids)
        if self.legacy and self._rules.cuts_waits and len(ids) > 2:
            pairs = self._system_pairs(source)
            positions = np.repeat(pairs[:, 2], 2)
            positions = np.concatenate([positions[:1], positions, positions[-1:]])
        return np.stack([ids, positions], axis=1).tolist()

    def positions(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """The time of each id in steps: all waits that were over before it, int64 (num_ids,); not of action tokens.

        A separator and its number still stand at the time before them; what follows them at the time after. The
        systems add embeddings of the place in the bar (position modulo 32) and of the bar (position // 32).
        """
        ids = np.asarray(ids, dtype=np.int64)
        waits = np.zeros(len(ids) + 2, dtype=np.int64)
        separators = np.flatnonzero(ids[:-1] == self.separator_id)
        steps = ids[separators + 1] - self.first_duration_id
        waits[separators + 2] = np.clip(steps, 0, None)
        return np.cumsum(waits)[: len(ids)]

    def encode_melody_and_chords(self, source: str | os.PathLike | bytes) -> tuple[list[int], list[int]]:
        """Ids of the melody and of the chords of a MIDI file, as musicautobot tells them apart for its translations.

        Two tracks with notes are melody and chords, in this order; of a single one, single notes are the melody, and
        notes that are struck together the chords. Each begins with the token of its kind.

        Raises:
            MidiError: if it can't be read, or more tracks have notes. ValueError: with another vocabulary.
        """
        if self.vocabulary != "musicautobot":
            raise ValueError("only the vocabulary musicautobot has tokens for melody and chords")
        with naming(source):
            _, division, chunks = read_chunks(source)
            parts = melody_and_chords(division, chunks)
        kinds = ("<mseq>", "<cseq>")
        melody, chords = (
            [self._ids[kind], self.pad_token_id, *self._ids_of_pairs(self._pairs_of_parts([part])).tolist()]
            for kind, part in zip(kinds, parts, strict=True)
        )
        return melody, chords

    def note_steps(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Onset, pitch and duration of each note of ids, in steps, int64 of shape (num_notes, 3)."""
        return self._notes_among(self._single_events(ids))[:3].T

    def part_ids(self, kind: str, notes: np.ndarray) -> np.ndarray:
        """A part as an encoder-decoder reads or writes it: the token of its kind, then its notes and waits.

        Args:
            kind: "<mseq>" for a melody, "<cseq>" for what goes with it.
            notes: as `note_steps` gives them, by onset, the highest of a step first.

        Raises:
            ValueError: with another vocabulary than musicautobot's.
        """
        return np.concatenate([[self._part_token(kind)], self._ids_of_steps(*notes.T)[0]])

    def translations(
        self, ids: Sequence[int] | np.ndarray, first_label: int = 1
    ) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """The two translations of musicautobot, of a stretch of a piece: melody to accompaniment, and back.

        A note belongs to the melody if no higher one sounds when it begins; in a chorale that is the soprano. Both
        parts count time from the beginning of the stretch, each begins with the token of its kind (`<mseq>`, `<cseq>`),
        and both end with `<eos>` where the stretch does.

        Args:
            ids: a stretch of what `encode_piece` gives, cut anywhere.
            first_label: index of the first id that is to be predicted.

        Returns:
            Two triples: ids of the given part; ids of the written part; and which of the latter tell what stands at
            `first_label` or later, bool of the same shape.

        Raises:
            ValueError: with another vocabulary than musicautobot's, or with action tokens.
        """
        if self.actions:
            raise ValueError("action tokens join notes of both parts: leave action_vocab_size out")
        ids = np.asarray(ids, dtype=np.int64)
        *notes, place = self._notes_among(ids)
        is_melody, is_new = _is_highest(*notes), place + 1 >= first_label
        end = ids[-1:][ids[-1:] == self.eos_token_id]
        parts = []
        for kind, chosen in (("<mseq>", is_melody), ("<cseq>", ~is_melody)):
            events, owner = self._ids_of_steps(*(each[chosen] for each in notes))
            known = np.concatenate([[False], is_new[chosen][owner], np.full(len(end), len(ids) > first_label)])
            parts.append((np.concatenate([[self._part_token(kind)], events, end]), known))
        (melody, melody_is_new), (accompaniment, accompaniment_is_new) = parts
        return [(melody, accompaniment, accompaniment_is_new), (accompaniment, melody, melody_is_new)]

    def _part_token(self, kind: str) -> int:
        if self.vocabulary != "musicautobot":
            raise ValueError("only the vocabulary musicautobot has tokens for a melody and what goes with it")
        return self._ids[kind]

    def masked(self, ids: Sequence[int] | np.ndarray, kind: str, begin: float = 0, end: float = np.inf) -> list[int]:
        """Ids with pitches, or durations, hidden by `<mask>` in a stretch of beats, for a model to fill in.

        Args:
            ids: of a piece.
            kind: "pitch" or "duration"; durations of waits are hidden, too.
            begin: first beat (quarter) that is hidden.
            end: first beat that is not.

        Raises:
            ValueError: for another kind, or with a vocabulary without `<mask>`.
        """
        first = {"pitch": self.first_pitch_id, "duration": self.first_duration_id}
        if kind not in first or self.mask_token_id is None:
            raise ValueError(f"kind must be pitch or duration, and the vocabulary musicautobot, got {kind!r}")
        ids = self._single_events(ids)
        beats = self.positions(ids) / self._rules.steps_per_quarter
        last = first[kind] + (128 if kind == "pitch" else self.max_duration + 1)
        hidden = (ids >= first[kind]) & (ids < last) & (beats >= begin) & (beats < end)
        return np.where(hidden, self.mask_token_id, ids).tolist()

    def trimmed(self, ids: Sequence[int] | np.ndarray, beats: float) -> list[int]:
        """The ids of the first beats (quarters) of a piece, without the wait that leads out of them."""
        ids = self._single_events(ids)
        ids = ids[self.positions(ids) < beats * self._rules.steps_per_quarter]
        return (ids[:-2] if len(ids) > 1 and ids[-2] == self.separator_id else ids).tolist()

    def _system_pairs(self, source: str | os.PathLike | bytes) -> np.ndarray:
        """Pitch (-1 for a wait), steps and position of each pair that the system makes of a file, int64 (num, 3)."""
        kind, division, chunks = read_chunks(source)
        if kind == 2:
            raise MidiError(f"{'MIDI bytes' if isinstance(source, bytes) else source}: type 2 files can't be encoded")
        parts_of = parts_of_version_9 if self.vocabulary == "midigen" else parts_of_version_5
        return self._pairs_of_parts(parts_of(division, chunks))

    def _pairs_of_parts(self, parts: list[list[PartNote]]) -> np.ndarray:
        """The same, of the notes of parts."""
        cells = self._cells(parts)
        pairs: list[tuple[int, int, int]] = []
        before = 0
        for step in sorted(cells):
            wait = step - before
            if wait:
                wait = min(wait, self.max_duration) if self._rules.cuts_waits else wait
                pairs.append((_SEPARATOR, wait, step - wait))
            pairs += [
                (pitch, cells[step][pitch, part], step) for pitch, part in sorted(cells[step], key=_highest_first)
            ]
            before = step
        return np.array(pairs, dtype=np.int64).reshape(-1, 3)

    def _cells(self, parts: list[list[PartNote]]) -> dict[int, dict[tuple[int, int], int]]:
        """By step, then pitch and part, the length of the longest note that begins there."""
        lowest, highest = self._rules.pitches
        cells: dict[int, dict[tuple[int, int], int]] = {}
        for part, notes in enumerate(parts):
            for note in notes:
                steps = min(self._steps(note.duration), self._rules.longest_note)
                if lowest <= note.pitch <= highest and steps:
                    cell = cells.setdefault(self._steps(note.onset), {})
                    cell[note.pitch, part] = max(steps, cell.get((note.pitch, part), 0))
        return cells

    def _steps(self, units: int) -> int:
        """The nearest number of steps; of two equally near ones the even one."""
        steps, rest = divmod(units * self._rules.steps_per_quarter, UNITS)
        return steps + (2 * rest > UNITS or (2 * rest == UNITS and steps % 2))

    # Notes <-> ids ---------------------------------------------------------------------------------------------------

    def _ids_of_pairs(self, pairs: np.ndarray) -> np.ndarray:
        return (pairs[:, :2] + [self.first_pitch_id, self.first_duration_id]).ravel()

    def _encode(self, notes: Notes) -> np.ndarray:
        if self.legacy:
            ids = self._ids_of_pairs(self._system_pairs(notes_to_midi_bytes(notes)))
            if ids.max(initial=0) >= self.first_duration_id + self.max_duration + 1:
                raise ValueError(f"it has a wait of more than {self.max_duration} steps, for which there is no id")
            return ids
        onset, pitch, steps = self._quantised(notes)
        ids, _ = self._ids_of_steps(onset, pitch, steps)
        return with_actions(ids, self.separator_id, self._action_ids) if self.actions else ids

    def _ids_of_steps(self, onset: np.ndarray, pitch: np.ndarray, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ids of notes in their order, with the waits between them, and for each id the index of the note it is for."""
        wait = np.diff(onset, prepend=0)
        np.minimum(wait, _MAX_WAITS * self.max_duration, out=wait)
        full = np.maximum(wait - 1, 0) // self.max_duration  # longest separators before the one that is left
        last = np.cumsum(full + (wait > 0) + 1) - 1  # the place of each note's pair
        pairs = np.full((last[-1] + 1 if len(last) else 0, 2), (_SEPARATOR, self.max_duration), dtype=np.int64)
        waited = wait > 0
        pairs[last[waited] - 1, 1] = (wait - full * self.max_duration)[waited]
        pairs[last] = np.stack([pitch, steps], axis=1)
        owner = np.searchsorted(last, np.arange(len(pairs)))
        return self._ids_of_pairs(pairs), np.repeat(owner, 2)

    def _quantised(self, notes: Notes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Onset in steps, pitch and duration in steps of the notes that are written, in their order."""
        notes = notes.where(~notes["is_drum"]) if notes["is_drum"].any() else notes
        per_tick = self._rules.steps_per_quarter / notes.ticks_per_quarter
        onset = np.rint(notes["onset_tick"] * per_tick).astype(np.int64)
        steps = np.rint(notes.offset_tick * per_tick).astype(np.int64) - onset
        pitch, steps = notes["pitch"].astype(np.int64), np.clip(steps, 1, self.max_duration)
        order = np.lexsort((-steps, -pitch, onset))
        onset, pitch, steps = onset[order], pitch[order], steps[order]
        is_double = (np.diff(onset, prepend=-1) == 0) & (np.diff(pitch, prepend=-1) == 0)
        return onset[~is_double], pitch[~is_double], steps[~is_double]

    def _decode_events(self, ids: np.ndarray) -> Notes:
        onset, pitch, steps, _ = self._notes_among(self._single_events(ids))
        ticks = _TICKS_PER_QUARTER // self._rules.steps_per_quarter
        return Notes.from_columns(
            _TICKS_PER_QUARTER,
            onset_tick=onset * ticks,
            duration_tick=steps * ticks,
            pitch=pitch,
            velocity=np.full(len(onset), _DECODED_VELOCITY),
        )

    def _notes_among(self, ids: np.ndarray) -> np.ndarray:
        """Onset, pitch and duration of notes, in steps, and where their pairs stand, int64 (4, num_notes)."""
        heads, values = ids[:-1], ids[1:] - self.first_duration_id
        is_head = (heads >= self.separator_id) & (heads < self.first_duration_id)
        place = np.flatnonzero(is_head & (values >= 0) & (values <= self.max_duration))
        pitch, steps = heads[place] - self.first_pitch_id, values[place]
        time = np.cumsum(np.where(pitch == _SEPARATOR, steps, 0))
        return np.stack([time, pitch, steps, place])[:, (pitch != _SEPARATOR) & (steps > 0)]

    def _allowed_events(self, ids: np.ndarray) -> np.ndarray:
        allowed = np.zeros(self.vocab_size, dtype=bool)
        ids = self._single_events(ids[-2 * _MAX_WAITS :])
        last = int(ids[-1]) if len(ids) else None
        if last is not None and last < self.first_duration_id:  # a note or a separator: its duration
            allowed[self.first_duration_id + 1 : self.first_duration_id + self.max_duration + 1] = True
            return allowed
        head = int(ids[-2]) if len(ids) > 1 else None
        if head is not None and self.separator_id < head < self.first_duration_id:
            # A step's notes fall; under the lowest, and after each, time may pass or the piece end.
            allowed[self.first_pitch_id : head] = True
            allowed[[self.separator_id, self.eos_token_id]] = True
            return allowed
        allowed[self.first_pitch_id : self.first_duration_id] = True
        allowed[self.first_action_id :] = True
        allowed[self.separator_id] = head is None or self._may_wait_on(ids)
        allowed[self.eos_token_id] = last is None
        return allowed

    def _may_wait_on(self, ids: np.ndarray) -> bool:
        """Whether the last pairs are longest separators, and not too many."""
        tail = ids[-2 * _MAX_WAITS :]
        tail = tail[len(tail) % 2 :].reshape(-1, 2)
        is_longest = (tail == [self.separator_id, self.first_duration_id + self.max_duration]).all(1)
        return bool(len(tail) and is_longest[-1] and not (is_longest.all() and len(tail) == _MAX_WAITS))


def _is_highest(onset: np.ndarray, pitch: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Which notes begin while no higher one sounds, bool (num_notes,); the highest of a step comes first."""
    end = np.zeros(129, dtype=np.int64)  # when each pitch is silent again
    is_highest = np.zeros(len(onset), dtype=bool)
    for index, (begin, key, length) in enumerate(zip(onset.tolist(), pitch.tolist(), steps.tolist(), strict=True)):
        is_highest[index] = end[key + 1 :].max() <= begin
        end[key] = max(end[key], begin + length)
    return is_highest


def _highest_first(pitch_and_part: tuple[int, int]) -> tuple[int, int]:
    return -pitch_and_part[0], pitch_and_part[1]


__all__ = ["VOCABULARIES", "NoteDurationTokenizer"]
