"""WAV files are judged by what is in them: header, loudness over time, spectrum."""

from __future__ import annotations

import importlib.util
import sys
import wave
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pianogen_hf.errors import FileError
from pianogen_hf.rendering import audio
from pianogen_hf.rendering.audio import AudioError, save_wav
from pianogen_hf.tokenizers.notes import PEDAL_DTYPE, TEMPO_DTYPE, Notes

needs_renderer = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("midirenderer", "pretty_midi")),
    reason='needs pip install "pianogen_hf[audio]"',
)


RATE = 48_000


def sound(path: Path, notes: Notes) -> np.ndarray:
    """Samples in -1..1 of the rendered file, shape (num_frames, 2)."""
    with wave.open(str(save_wav(notes, path / "sound.wav"))) as wav:
        assert (wav.getnchannels(), wav.getsampwidth(), wav.getframerate()) == (2, 2, RATE)
        return np.frombuffer(wav.readframes(wav.getnframes()), "<i2").reshape(-1, 2) / 32768


def loudness(samples: np.ndarray, start_sec: float, end_sec: float) -> float:
    """Root mean square between two times; 0 beyond the end."""
    part = samples[int(start_sec * RATE) : int(end_sec * RATE)]
    return float(np.sqrt((part**2).mean())) if len(part) else 0.0


def strongest_hz(samples: np.ndarray, rate: int) -> float:
    spectrum = np.abs(np.fft.rfft(samples.mean(axis=1) * np.hanning(len(samples))))
    return float(np.argmax(spectrum) * rate / len(samples))


def with_pedal(notes: Notes, *events: tuple[int, int, int]) -> Notes:
    return replace(notes, pedals=np.array(list(events), dtype=PEDAL_DTYPE))


@needs_renderer
def test_notes_sound_when_they_should_and_silence_is_kept_before_and_cut_after(tmp_path):
    samples = sound(tmp_path, Notes.from_seconds([1.0, 3.0], [0.5, 0.5], [60, 64], [90, 90]))
    assert not samples[: int(0.99 * RATE)].any()
    assert loudness(samples, 1.02, 1.5) > 0.05 and loudness(samples, 3.02, 3.5) > 0.05
    assert loudness(samples, 2.7, 2.98) < 0.02
    assert 3.55 < len(samples) / RATE < 6.5
    assert np.abs(samples[-20:]).max() < 1e-3


@needs_renderer
def test_a_long_held_key_that_died_away_leaves_no_silence_behind(tmp_path):
    samples = sound(tmp_path, Notes.from_seconds([0], [90], [84], [64]))
    assert len(samples) / RATE < 45
    assert np.abs(samples[-RATE:]).max() > 1e-4


@needs_renderer
def test_a4_has_440_hz(tmp_path):
    samples = sound(tmp_path, Notes.from_seconds([0], [2], [69], [80]))
    assert strongest_hz(samples[RATE // 10 : 2 * RATE], RATE) == pytest.approx(440, abs=3)


@needs_renderer
def test_louder_velocity_is_louder(tmp_path):
    samples = sound(tmp_path, Notes.from_seconds([0, 3, 6], [1, 1, 1], [60] * 3, [30, 60, 120]))
    soft, middle, loud = (loudness(samples, start, start + 1) for start in (0, 3, 6))
    assert loud > 2.5 * middle > 6 * soft > 0


@needs_renderer
@pytest.mark.parametrize("velocity", [1, 40, 127])
def test_the_peak_is_one_decibel_below_full_scale_at_any_velocity(tmp_path, velocity):
    samples = sound(tmp_path, Notes.from_seconds([0, 0], [1, 1], [60, 67], [velocity] * 2))
    assert np.abs(samples).max() == pytest.approx(10 ** (-1 / 20), abs=1e-3)


@needs_renderer
def test_a_full_score_is_not_clipped(tmp_path):
    samples = sound(tmp_path, Notes.from_seconds([0] * 60, [1] * 60, [36] * 60, [127] * 60))
    assert (np.abs(samples) > 0.99 * np.abs(samples).max()).sum() < 20


@needs_renderer
def test_the_sustain_pedal_lets_notes_ring(tmp_path):
    notes = Notes.from_seconds([0, 5], [0.3, 0.3], [60, 72], [90, 90])
    dry, held = sound(tmp_path, notes), sound(tmp_path, with_pedal(notes, (100, 127, 0), (3000, 0, 0)))
    assert loudness(held, 1.5, 2.5) > 10 * loudness(dry, 1.5, 2.5)
    assert loudness(held, 4.5, 4.95) < 0.1 * loudness(held, 1.5, 2.5)  # released at 3 s


@needs_renderer
def test_the_pedal_of_another_channel_holds_nothing(tmp_path):
    notes = Notes.from_seconds([0], [0.3], [60], [90])
    own, other = (sound(tmp_path, with_pedal(notes, (100, 127, each), (3000, 0, each))) for each in (0, 1))
    assert loudness(own, 1.5, 2.5) > 0.01 > 10 * loudness(other, 1.5, 2.5)


@needs_renderer
def test_the_tempo_map_sets_the_time(tmp_path):
    tempos = np.array([(0, 500_000), (480, 1_000_000)], dtype=TEMPO_DTYPE)
    notes = Notes.from_columns(480, tempos, onset_tick=[960], duration_tick=[480], pitch=[60])  # 0.5 s + 1 s
    samples = sound(tmp_path, notes)
    assert np.flatnonzero(np.abs(samples).max(axis=1) > 0.01)[0] / RATE == pytest.approx(1.5, abs=0.02)


@needs_renderer
def test_tracks_beyond_sixteen_keep_their_pitch_and_instrument(tmp_path):
    # Twenty piano tracks and an organ last: with a channel per track the organ would share a channel with a piano.
    organ = 19
    one = Notes.from_seconds(np.arange(21) * 0.1, [0.1] * 21, [69] * 21)
    one.table["program"][20] = organ
    many = replace(one, table=one.table.copy())
    many.table["track"] = np.arange(21)
    assert np.array_equal(sound(tmp_path, many), sound(tmp_path, one))


@needs_renderer
def test_drums_and_silent_scores_are_written(tmp_path):
    snare, nothing = (
        Notes.from_columns(480, onset_tick=[0], duration_tick=[100], pitch=[pitch], is_drum=[True]) for pitch in (38, 5)
    )
    assert loudness(sound(tmp_path, snare), 0, 0.2) > 0.01
    assert not sound(tmp_path, nothing).any()  # no such drum in the kit


@needs_renderer
def test_a_note_without_length_is_no_error(tmp_path):
    assert len(sound(tmp_path, Notes.from_seconds([0.5], [0], [60], [90]))) > RATE // 2


@needs_renderer
def test_equal_input_gives_equal_bytes_and_the_path(tmp_path):
    notes = Notes.from_seconds([0, 0.5], [1, 1], [60, 64], [70, 90])
    first, second = save_wav(notes, str(tmp_path / "new" / "a.wav")), save_wav(notes, tmp_path / "b.wav")
    assert first == tmp_path / "new" / "a.wav"
    assert first.read_bytes() == second.read_bytes()
    assert [file.name for file in first.parent.iterdir()] == ["a.wav"]


@needs_renderer
def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(FileError, match="file"):
        save_wav(Notes.from_seconds([0], [0.1], [60]), tmp_path / "file" / "sound.wav")


def test_without_notes_there_is_nothing_to_render(tmp_path):
    with pytest.raises(AudioError, match="no notes to render"):
        save_wav(Notes.from_seconds([], [], []), tmp_path / "sound.wav")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("onset_tick", [8_000_000, 2**31 - 2])
def test_a_piece_of_hours_is_refused_rather_than_filling_the_memory(tmp_path, onset_tick):
    with pytest.raises(AudioError, match="up to 7200 s can be rendered"):
        save_wav(
            Notes.from_columns(480, onset_tick=[onset_tick], duration_tick=[1], pitch=[60]), tmp_path / "sound.wav"
        )


def test_a_missing_renderer_is_named_with_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "midirenderer", None)
    with pytest.raises(AudioError, match=r'midirenderer.*pip install "pianogen_hf\[audio\]"') as caught:
        save_wav(Notes.from_seconds([0], [1], [60]), tmp_path / "sound.wav")
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("spec", [None, importlib.util.find_spec("json")])
def test_a_missing_soundfont_is_named_with_what_to_install(monkeypatch, spec):
    monkeypatch.setattr(audio.importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(AudioError, match=r'SoundFont.*pip install "pianogen_hf\[audio\]"'):
        audio._soundfont()


@needs_renderer
def test_the_soundfont_is_found_without_importing_its_package():
    loaded = "pretty_midi" in sys.modules
    assert audio._soundfont()[:4] == b"RIFF"
    assert ("pretty_midi" in sys.modules) == loaded
