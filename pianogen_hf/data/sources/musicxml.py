"""MusicXML scores (.mxl, .musicxml, .xml) as note tables, read with the standard library alone.

It reads what a score sounds like as written: repeats and endings are not expanded, ornaments not played, grace and cue
notes and unpitched percussion left out. Velocities are 64 and programs 0 (piano) throughout, whatever a part names.
Element names follow the MusicXML 4.0 reference (W3C Music Notation Community Group, 2021).
"""

from __future__ import annotations

import io
import itertools
import math
import os
import zipfile
import zlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import numpy as np

from pianogen_hf.errors import DataError
from pianogen_hf.tokenizers.notes import DRUM_CHANNEL, NOTE_DTYPE, TEMPO_DTYPE, TIME_SIGNATURE_DTYPE, Notes

_STEPS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
_USUAL_TICKS_PER_QUARTER = 480
_MOST_TICKS_PER_QUARTER = 32767  # what a MIDI file, and so `Notes`, can hold
_MOST_BYTES = 2**28  # an archive that claims more than this is no score
_VELOCITY = 64


class MusicXMLError(DataError):
    """A MusicXML file that can't be read; the message names the file and the reason."""


class _Note(NamedTuple):
    """A written note; `start` and `length` count the finest divisions of the file, `start` from its measure."""

    measure: int
    start: int
    length: int
    pitch: int
    tie_stop: bool
    tie_start: bool


class _Part(NamedTuple):
    notes: list[_Note]
    lengths: list[tuple[bool, int]]  # of each measure: whether this part sounds in it, and how far it fills it
    tempos: list[tuple[int, int, float]]  # measure, start, quarters per minute
    meters: list[tuple[int, int, int, int]]  # measure, start, numerator, denominator


def read_musicxml(source: str | os.PathLike | bytes) -> Notes:
    """Read a MusicXML score, one track per part.

    Ticks are exact: there are 480 to the quarter, or a larger number where the score divides the quarter otherwise.
    A measure is as long as its fullest part. A short first measure (pickup) gets a time signature of its own length, so
    that the bar lines which follow from the signatures are those of the score.

    Args:
        source: a path, or the file's bytes; compressed or not is seen from the content.

    Returns:
        Notes at sounding pitch, tied notes merged; `track_names` are the part names.

    Raises:
        MusicXMLError: if it can't be read, for whatever reason.
    """
    name = "MusicXML bytes" if isinstance(source, bytes) else str(source)
    try:
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
        return _read_score(ElementTree.fromstring(_unzipped(data)))
    except OSError as error:
        raise MusicXMLError(f"{name}: {error.strerror or error}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise MusicXMLError(f"{name}: broken archive ({error})") from error
    except ElementTree.ParseError as error:
        raise MusicXMLError(f"{name}: not well-formed XML ({error})") from error
    except (ValueError, OverflowError, ArithmeticError, LookupError, RuntimeError) as error:
        # Beside our own refusals: what zipfile and the numbers in a damaged score may raise.
        raise MusicXMLError(f"{name}: {error or type(error).__name__}") from error


def _unzipped(data: bytes) -> bytes:
    """The score inside a compressed file, by the way of its container; other data as it stands."""
    if not data:
        raise ValueError("the file is empty")
    if not data.startswith(b"PK"):
        return data
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        root = ElementTree.fromstring(_member(archive, "META-INF/container.xml")).find(".//{*}rootfile")
        if root is None or "full-path" not in root.attrib:
            raise ValueError("the archive's container names no score")
        return _member(archive, root.attrib["full-path"])


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    if name not in archive.NameToInfo:
        raise ValueError(f"the archive has no {name}")
    if archive.getinfo(name).file_size > _MOST_BYTES:
        raise ValueError(f"{name} in the archive is larger than {_MOST_BYTES} bytes")
    return archive.read(name)


def _read_score(score: Element) -> Notes:
    if score.tag != "score-partwise":
        raise ValueError(f"expected the root element score-partwise, got {score.tag}")
    divisions = math.lcm(1, *(_positive(element) for element in score.iter("divisions")))
    elements = score.findall("part")
    parts = [_read_part(part, divisions) for part in elements]
    starts = _measure_starts(parts)
    rows = [row for track, part in enumerate(parts) for row in _note_rows(part, starts, track)]
    tempos = [(starts[m] + start, round(60e6 / tempo)) for part in parts for m, start, tempo in part.tempos]
    meters = _meters(parts, starts, divisions)
    grid = math.gcd(divisions, *(time for row in rows for time in row[:2]), *(row[0] for row in tempos + meters))
    ticks_per_quarter = _ticks_per_quarter(divisions // grid)

    def in_ticks(timed: list, dtype: np.dtype, columns: int) -> np.ndarray:
        scaled = [
            tuple(time * ticks_per_quarter // divisions for time in row[:columns]) + row[columns:] for row in timed
        ]
        return np.array(scaled, dtype=dtype)

    names = {part.get("id"): " ".join((part.findtext("part-name") or "").split()) for part in score.iter("score-part")}
    return Notes(
        in_ticks(rows, NOTE_DTYPE, 2),
        ticks_per_quarter,
        in_ticks(tempos, TEMPO_DTYPE, 1),
        in_ticks(meters, TIME_SIGNATURE_DTYPE, 1),
        track_names=tuple(names.get(part.get("id"), "") for part in elements),
    )


def _ticks_per_quarter(needed: int) -> int:
    """The usual resolution, raised until `needed` equal steps fit into a quarter."""
    for ticks in (math.lcm(_USUAL_TICKS_PER_QUARTER, needed), needed):
        if ticks <= _MOST_TICKS_PER_QUARTER:
            return ticks
    raise ValueError(f"exact times need {needed} ticks per quarter, more than {_MOST_TICKS_PER_QUARTER}")


def _positive(element: Element) -> int:
    value = int(element.text or "")
    if value < 1:
        raise ValueError(f"{element.tag} must be positive, got {value}")
    return value


def _duration(element: Element, scale: int) -> int:
    """The element's duration in the finest divisions; grace notes have none."""
    text = element.findtext("duration")
    if text is None:
        if element.find("grace") is None:
            raise ValueError(f"a {element.tag} has no duration")
        return 0
    value = int(text)
    if value < 0:
        raise ValueError(f"duration must not be negative, got {value}")
    return value * scale


def _read_part(part: Element, divisions: int) -> _Part:
    """Walk through the measures of a part with a cursor, as the format prescribes."""
    read = _Part([], [], [], [])
    scale, transposition = divisions, 0  # one division to the quarter until the part says otherwise
    for number, measure in enumerate(part.findall("measure")):
        cursor = filled = chord_start = 0
        notes_before = len(read.notes)
        for element in measure:
            tag = element.tag
            if tag == "note":
                length = _duration(element, scale)
                if element.find("chord") is None:
                    chord_start, cursor = cursor, cursor + length
                read.notes.extend(_written_note(element, number, chord_start, length, transposition))
            elif tag == "backup":
                cursor -= _duration(element, scale)
                if cursor < 0:
                    raise ValueError(f"a backup leaves measure {measure.get('number')}")
            elif tag == "forward":
                cursor += _duration(element, scale)
            elif tag == "attributes":
                scale = _scale(element, divisions, scale)
                transposition = _transposition(element, transposition)
                read.meters.extend((number, cursor, *meter) for meter in _meter(element))
            elif tag in ("direction", "sound"):
                read.tempos.extend((number, cursor, tempo) for tempo in _tempo(element))
            filled = max(filled, cursor)
        read.lengths.append((len(read.notes) > notes_before, filled))
    return read


def _written_note(element: Element, measure: int, start: int, length: int, transposition: int) -> Iterator[_Note]:
    """The note, if it sounds: rests, grace notes, cue notes and unpitched percussion yield nothing."""
    pitch = element.find("pitch")
    if pitch is None or length == 0 or element.find("cue") is not None:
        return
    alter = pitch.findtext("alter")
    step, octave = pitch.findtext("step") or "", pitch.findtext("octave")
    if step not in _STEPS or octave is None:
        raise ValueError(f"a pitch has step {step!r} and octave {octave!r}")
    semitones = int(float(alter)) if alter else 0  # quarter tones fall towards the natural: MIDI keys have none
    ties = {tie.get("type") for tie in element.findall("tie")}
    number = 12 * (int(octave) + 1) + _STEPS[step] + semitones + transposition
    yield _Note(measure, start, length, number, "stop" in ties, "start" in ties)


def _scale(attributes: Element, divisions: int, scale: int) -> int:
    element = attributes.find("divisions")
    return scale if element is None else divisions // _positive(element)


def _transposition(attributes: Element, transposition: int) -> int:
    """Semitones from written to sounding pitch from here on."""
    element = attributes.find("transpose")
    if element is None:
        return transposition
    return int(element.findtext("chromatic") or 0) + 12 * int(element.findtext("octave-change") or 0)


def _meter(attributes: Element) -> Iterator[tuple[int, int]]:
    """Numerator and denominator; additive meters such as 3+2/8 are summed, free ones yield nothing."""
    time = attributes.find("time")
    if time is not None and (beats := time.findtext("beats")) is not None:
        yield sum(int(number) for number in beats.split("+")), int(time.findtext("beat-type") or "")


def _tempo(element: Element) -> Iterator[float]:
    """Quarters per minute."""
    for sound in element.iter("sound"):
        if "tempo" in sound.attrib and float(sound.attrib["tempo"]) > 0:
            yield float(sound.attrib["tempo"])


def _measure_starts(parts: list[_Part]) -> list[int]:
    """Where each measure begins, in the finest divisions from the beginning; one more entry for the end.

    Among parts that disagree those with notes come first: a silent part's rest is often longer than the measure.
    """
    starts = [0]
    for lengths in itertools.zip_longest(*(part.lengths for part in parts), fillvalue=(False, 0)):
        starts.append(starts[-1] + max(lengths)[1])
    return starts


def _note_rows(part: _Part, starts: list[int], track: int) -> Iterator[tuple]:
    """Rows of `NOTE_DTYPE` in the finest divisions, tied notes merged.

    A tie is continued by the note of its pitch that begins where it ends, in whatever voice; a tie to nowhere is none.
    """
    rows: list[list[int]] = []
    waiting: dict[tuple[int, int], list[int]] = {}  # pitch and end of notes with a tie that is still open
    for note in sorted(part.notes, key=lambda note: starts[note.measure] + note.start):
        onset = starts[note.measure] + note.start
        row = waiting.pop((note.pitch, onset), None) if note.tie_stop else None
        if row is None:
            row = [onset, 0, note.pitch]
            rows.append(row)
        row[1] += note.length
        if note.tie_start:
            waiting[note.pitch, onset + note.length] = row
    # Each part has a channel, since a key of one is not a key of another; the tenth channel is for drums.
    port, place = divmod(track, 15)
    channel = 16 * port + place + (place >= DRUM_CHANNEL)
    return ((onset, length, pitch, _VELOCITY, 0, False, track, channel) for onset, length, pitch in rows)


def _meters(parts: list[_Part], starts: list[int], divisions: int) -> list[tuple[int, int, int]]:
    """Rows of `TIME_SIGNATURE_DTYPE` in the finest divisions, completed so that full measures begin on a bar line."""
    written = {starts[m] + start: (beats, unit) for part in parts for m, start, beats, unit in part.meters}
    rows, changes = [], sorted(written)
    for start, end in itertools.pairwise(starts):
        while changes and changes[0] <= start:
            rows.append((changes[0], *written[changes.pop(0)]))
        if rows and rows[-1][2]:
            bar = Fraction(4 * divisions * rows[-1][1], rows[-1][2])
            if end - start == bar and (phase := (start - rows[-1][0]) % (end - start)):
                rows += [*_short_meter(start - phase, Fraction(phase, 4 * divisions)), (start, *rows[-1][1:])]
    return rows + [(tick, *written[tick]) for tick in changes]


def _short_meter(tick: int, whole_notes: Fraction) -> Iterator[tuple[int, int, int]]:
    """A time signature for a pickup or another measure cut short, where one can be written."""
    unit = max(4, whole_notes.denominator)
    if unit & (unit - 1) == 0:
        yield tick, int(whole_notes * unit), unit
