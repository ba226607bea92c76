"""Generation, from a prompt (or nothing) to MIDI, a piano roll and sound. Wiring only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers.utils import logging

from pianogen_hf import BUNDLED_MODEL
from pianogen_hf.errors import ArgumentError
from pianogen_hf.generation.continuation import Continuation, Length, continue_notes
from pianogen_hf.generation.filling import fill_notes
from pianogen_hf.generation.note_verbs import accompany_notes
from pianogen_hf.rendering.audio import save_wav
from pianogen_hf.rendering.piano_roll import save_piano_roll
from pianogen_hf.tokenizers.midi import PIANO_PROGRAMS, read_midi, write_midi
from pianogen_hf.tokenizers.notes import Notes
from pianogen_hf.workflows.loading import load_engine, load_model

_AROUND_SEC = 5.0  # of a prompt that a picture shows before and after what is new
_SECONDS = 30.0  # of music, where nobody says how much


def generate(
    outputs: list[Path],
    *,
    model: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    engine: str = "torch",
    prompt: str | None = None,
    programs: str = "piano",
    length: Length | None = None,
    fill: Sequence[float] | None = None,
    accompany: str | None = None,
    end: bool = False,
    bpm: float = 90.0,
    png: str | None = None,
    wav: bool = False,
    **options: Any,
) -> None:
    """Generate one sample for each path.

    Args:
        outputs: MIDI files to write.
        model: folder or Hub id; None for the bundled one.
        revision: branch, tag or commit of a model on the Hub.
        trust_remote_code: whether to run code that the model carries.
        engine: "torch", "onnx" or "int8".
        prompt: a MIDI file to continue; None for a piece from nothing.
        programs: instruments of the prompt to read, "piano" or "all".
        length: how much to continue.
        fill: begin and end, in seconds, of a gap of the prompt to fill instead.
        accompany: "below" or "above": where to write a second part to the prompt instead.
        end: whether to come to an end at the wanted length.
        bpm: quarters a minute of music without a prompt.
        png: also draw each piece: "part", what is new with a few seconds of the prompt around it, or "whole".
        wav: whether also to render its sound.
        **options: as for `continue_notes`: seed, temperature, density ...

    Raises:
        ArgumentError, GenerationError, MidiError, AudioError: for what a user can mend.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()  # of loading weights: ours is that of the music
    notes = None if prompt is None else _read_prompt(prompt, programs)
    name = model or BUNDLED_MODEL
    loaded: Any  # every kind has what generation asks of a model
    encoder: Any
    if engine == "torch":
        loaded, encoder = load_model(name, revision, trust_remote_code)
    else:
        loaded, encoder = load_engine(name, engine, revision)
    bar_format = "Generating |{bar}| {n:.0f}% {elapsed}"
    with tqdm(total=100, bar_format=bar_format, delay=1e-6) as progress:  # a delay: errors come before any bar
        options |= {
            "num_samples": len(outputs),
            "on_progress": lambda share: progress.update(share * 100 - progress.n),
            "on_message": progress.write,
        }
        if fill is not None and notes is not None:
            results = fill_notes(loaded, encoder, notes, *fill, **options)
        elif accompany is not None and notes is not None:
            results = accompany_notes(loaded, encoder, notes, accompany, **options)
        else:
            options |= {"us_per_quarter": round(60e6 / bpm), "end": end}
            results = continue_notes(loaded, encoder, length or Length(seconds=_SECONDS), notes, **options)
    for path, result in zip(outputs, results, strict=True):
        _write(result, path, png, wav)


def _read_prompt(path: str, programs: str) -> Notes:
    notes = read_midi(path, PIANO_PROGRAMS if programs == "piano" else None)
    if len(notes) == 0:
        raise ArgumentError(f"{path} has {_why_empty(notes)}")
    if notes.remarks:
        print(f"{path}: {len(notes)} notes taken; left out or mended: {notes.remarks_line}")
    return notes


def _why_empty(notes: Notes) -> str:
    """What a file without usable notes has, and what helps; `--programs all` is no help against drums."""
    others, drums = (notes.remarks.get(name, 0) for name in ("notes of other instruments", "drum notes"))
    if others:
        return f"only other instruments ({others} notes): give a prompt with piano notes, or --programs all"
    why = f"only drums ({drums} notes)" if drums else "no notes"
    return f"{why}: give a prompt with notes of a piano"


def _write(result: Continuation, path: Path, png: str | None, wav: bool) -> None:
    write_midi(result.notes, path)
    written = [path]
    if png is not None:
        picture = path.with_suffix(".png")
        is_from_nothing = result.prompt_end_sec == 0 and math.isinf(result.gap_end_sec)
        places = (None, math.inf) if is_from_nothing else (result.prompt_end_sec, result.gap_end_sec)
        around_sec = math.inf if png == "whole" else _AROUND_SEC
        written.append(save_piano_roll(result.notes, picture, path.stem, *places, around_sec))
    if wav:
        written.append(save_wav(result.notes, path.with_suffix(".wav")))
    seconds = result.new.end_sec - result.prompt_end_sec
    print(f"{', '.join(map(str, written))}: {len(result.new)} new notes in {seconds:.1f} s")
