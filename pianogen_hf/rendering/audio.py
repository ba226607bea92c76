"""WAV files from notes, with nothing but pip packages: no FluidSynth, no other system library.

midirenderer (a SoundFont 2 synthesizer in Rust) plays TimGM6mb, the General MIDI SoundFont that pretty_midi ships. What
it leaves to its caller is done here: the ringing after the last note, and loudness.
"""

from __future__ import annotations

import importlib.util
import io
import os
import wave
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pianogen_hf.errors import PianogenError
from pianogen_hf.tokenizers.files import write_whole
from pianogen_hf.tokenizers.midi import notes_to_midi_bytes
from pianogen_hf.tokenizers.notes import PEDAL_DTYPE, Notes

MAX_SEC = 2 * 3600  # the whole piece is held in memory, at most about 5 GB of it
_RING_SEC = 5.0  # rendered after the last note's end; what is inaudible of it is cut away again
_FADE_SEC = 0.05
_INAUDIBLE = 10 ** (-66 / 20)  # relative to the peak
_PEAK = 10 ** (-1 / 20)  # of full scale: the usual headroom of 1 dB
_FULL_SCALE = 32767


class AudioError(PianogenError):
    """Notes that can't be made audible, or a missing package; the message says which."""


def save_wav(notes: Notes, path: str | os.PathLike) -> Path:
    """Render the notes and write them as a 16-bit stereo WAV file; equal input gives equal bytes.

    The rate is the renderer's, 48 kHz. The sustain pedal sounds. Each program plays with its General MIDI instrument,
    drums with the drum kit. The loudest moment is brought to -1 dB of full scale, so loudness says something within a
    file, not between files. Silence before the first note is kept; the file ends where the last one has died away.

    Args:
        notes: what to render, at most `MAX_SEC` seconds.
        path: the file to write, whole or not at all.

    Returns:
        The path written to.

    Raises:
        AudioError: without notes, if the piece is too long, or if a package is missing.
        FileError: if the file can't be written.
    """
    if not len(notes):
        raise AudioError("no notes to render")
    samples, sample_rate = _rendered(_as_played(notes))
    samples = _without_silent_end(samples).astype(np.float32)
    write_whole(path, _wav_bytes(_normalized(samples, sample_rate), sample_rate))
    return Path(path)


def render_tones(pitches: Sequence[int], seconds: float) -> bytes:
    """One tone after the other, for a player that makes all others of them: a mono WAV file of half the usual rate.

    Args:
        pitches: what sounds.
        seconds: from the beginning of a tone to that of the next; it is held for nine tenths of that.

    Raises:
        AudioError: if a package is missing.
    """
    number = len(pitches)
    onset = np.arange(number) * seconds
    notes = Notes.from_seconds(onset, np.full(number, 0.9 * seconds), pitches, np.full(number, 100))
    samples, rate = _rendered(_as_played(notes))
    mono = samples.astype(np.float32).mean(axis=1)
    mono = mono[: len(mono) // 2 * 2].reshape(-1, 2).mean(axis=1, keepdims=True)
    return _wav_bytes(_normalized(mono[: round(number * seconds * rate / 2)], rate // 2), rate // 2)


def _as_played(notes: Notes) -> Notes:
    """The notes as long as they sound, on one track, with a silent last event that lets them ring.

    The pedal goes into the lengths, so that a key that is struck again does not sound twice.
    """
    played = notes.with_sustain()
    if played.end_sec > MAX_SEC:
        raise AudioError(f"the piece lasts {played.end_sec:.0f} s; up to {MAX_SEC} s can be rendered")
    table = played.table.copy()
    table["track"] = table["channel"] = 0
    end_tick = int(played.sec_to_tick(np.array(played.end_sec + _RING_SEC)))
    # The renderer stops at the last event, whatever still sounds; lifting a pedal that is up changes nothing.
    return replace(played, table=table, pedals=np.array([(end_tick, 0, 0)], dtype=PEDAL_DTYPE))


def _rendered(notes: Notes) -> tuple[np.ndarray, int]:
    """Samples of the notes, int16, shape (num_frames, channels), and their rate in Hz.

    The renderer answers in 16 bits: at velocity 1 it would round to silence, and a very full score would be clipped.
    So it is given louder or softer velocities; loudness goes with the velocity's square, so the proportions stay.
    """
    loudest = int(notes["velocity"].max())
    for ceiling in (max(loudest, 100), 50, 25):
        table = notes.table.copy()
        table["velocity"] = np.maximum(np.rint(table["velocity"] * (ceiling / loudest)), 1)
        samples, rate = _play(notes_to_midi_bytes(replace(notes, table=table)))
        if _peak(samples) < _FULL_SCALE:
            break
    return samples, rate


def _play(midi: bytes) -> tuple[np.ndarray, int]:
    try:
        import midirenderer
    except ImportError as error:
        raise _missing("midirenderer") from error
    with wave.open(io.BytesIO(midirenderer.render_wave_from(_soundfont(), midi))) as wav:
        frames = np.frombuffer(wav.readframes(wav.getnframes()), dtype="<i2")
        return frames.reshape(-1, wav.getnchannels()), wav.getframerate()


def _soundfont() -> bytes:
    """The SoundFont inside pretty_midi, found without importing that package."""
    spec = importlib.util.find_spec("pretty_midi")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        file = Path(folder) / "TimGM6mb.sf2"
        if file.is_file():
            return file.read_bytes()
    raise _missing("the SoundFont of pretty_midi")


def _missing(what: str) -> AudioError:
    return AudioError(f'audio needs {what}, which is not installed: pip install "pianogen_hf[audio]"')


def _without_silent_end(samples: np.ndarray) -> np.ndarray:
    """The frames up to the last audible one; all of them if none is."""
    quiet = _INAUDIBLE * _peak(samples)
    audible = np.any((samples > quiet) | (samples < -quiet), axis=1)
    return samples[: len(samples) - int(np.argmax(audible[::-1]))]


def _peak(samples: np.ndarray) -> float:
    return max(float(samples.max()), -float(samples.min()))


def _normalized(samples: np.ndarray, sample_rate: int) -> np.ndarray:
    """Samples as int16 with their peak at `_PEAK` and a fade over the last moment, so that the cut makes no click.

    The float samples given are used up.
    """
    samples *= _PEAK * _FULL_SCALE / max(_peak(samples), 1e-9)
    fade = min(int(_FADE_SEC * sample_rate), len(samples))
    samples[len(samples) - fade :] *= np.linspace(1, 0, fade, dtype=np.float32)[:, None]
    return np.rint(samples, out=samples).astype("<i2")


def _wav_bytes(samples: np.ndarray, sample_rate: int) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as wav:
        wav.setnchannels(samples.shape[1])
        wav.setsampwidth(2)
        wav.setframerate(sample_rate)
        wav.writeframes(samples.data)
    return file.getvalue()
