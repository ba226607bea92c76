"""Generation, from a prompt (or nothing) to MIDI, a piano roll and sound. Wiring only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers.utils import logging

from pianogen_hf import BUNDLED_MODEL
from pianogen_hf.errors import ArgumentError, DataError
from pianogen_hf.evaluation.memorization import RunIndex
from pianogen_hf.evaluation.samples import MIN_NOTES, sample_faults
from pianogen_hf.generation.continuation import Continuation, Length, continue_notes
from pianogen_hf.generation.filling import fill_notes
from pianogen_hf.generation.harmonising import harmonise_notes
from pianogen_hf.generation.note_verbs import accompany_notes, takes_given
from pianogen_hf.generation.passages import bar_start_sec
from pianogen_hf.generation.rejection import Faults, alone, copies, redrawn
from pianogen_hf.generation.transposing import in_c
from pianogen_hf.generation.varying import vary_notes
from pianogen_hf.rendering.audio import save_wav
from pianogen_hf.rendering.piano_roll import save_piano_roll
from pianogen_hf.tokenizers.midi import MidiError, read_midi, write_midi
from pianogen_hf.tokenizers.notes import Notes
from pianogen_hf.workflows.loading import load_engine, load_model
from pianogen_hf.workflows.prompt import read_prompt

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
    verb: str = "continue",
    where: Mapping[str, Any] | None = None,
    length: Length | None = None,
    end: bool = False,
    bpm: float = 90.0,
    png: str | None = None,
    wav: bool = False,
    is_in_c: bool = False,
    max_tries: int = 1,
    no_copies_of: str | None = None,
    max_run: int = 16,
    **options: Any,
) -> None:
    """Generate one sample for each path.

    Args:
        outputs: MIDI files to write.
        model: folder or Hub id; None for the bundled one.
        revision: branch, tag or commit of a model on the Hub.
        trust_remote_code: whether to run code that the model carries.
        engine: "torch", "onnx" or "int8".
        prompt: a MIDI file to work on; None for a piece from nothing.
        programs: instruments of the prompt to read, "piano" or "all".
        verb: "continue" ("extend" and "end" are the same), "fill", "vary", "accompany" or "harmonise".
        where: arguments of the verb's function that say what of the prompt is meant; also `from_seconds`, `from_bar`
            and `until` (seconds), where a passage begins and ends.
        length: how much to continue.
        end: whether to come to an end at the wanted length.
        bpm: quarters a minute of music without a prompt.
        png: also draw each piece: "part", what is new with a few seconds of the prompt around it, or "whole".
        wav: whether also to render its sound.
        is_in_c: whether the prompt is moved to C major or A minor for the model, and all is moved back afterwards.
        max_tries: how often a sample is drawn at most that is no music: silence, crowds, one pitch (see
            `sample_faults`), or a copy.
        no_copies_of: a folder of MIDI files: a sample with more than `max_run` notes in a row of one of them, in any
            key, has a fault.
        max_run: see there.
        **options: as for `continue_notes`: seed, temperature, density ...

    Raises:
        ArgumentError, GenerationError, MidiError, AudioError: for what a user can mend.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()  # of loading weights: ours is that of the music
    notes = None if prompt is None else read_prompt(prompt, programs)
    name = model or BUNDLED_MODEL
    loaded: Any  # every kind has what generation asks of a model
    encoder: Any
    if engine == "torch":
        loaded, encoder = load_model(name, revision, trust_remote_code)
    else:
        loaded, encoder = load_engine(name, engine, revision)
    if prompt is not None and programs == "all" and encoder.keeps_instruments:
        notes = read_midi(prompt, None, drums=True)
    if notes is not None:
        _say_what_was_left_out(str(prompt), notes)
    bar_format = "Generating |{bar}| {n:.0f}% {elapsed}"
    index = None if no_copies_of is None else _index_of(no_copies_of)
    faults = _faults(max_tries, index, max_run)
    if index is not None and takes_given(loaded) and options.get("num_beams", 1) == 1:
        options |= {"copy_index": index, "max_run": max_run}
    with tqdm(total=100, bar_format=bar_format, delay=1e-6) as progress:  # a delay: errors come before any bar
        options |= {
            "num_samples": len(outputs),
            "on_progress": lambda share: progress.update(share * 100 - progress.n),
            "on_message": progress.write,
        }
        task = _Task(loaded, encoder)
        axis = {"us_per_quarter": round(60e6 / bpm), "end": end}

        def write(**chosen: Any) -> list[Continuation]:
            def of(piece: Notes | None) -> list[Continuation]:
                if piece is not None and verb in ("fill", "vary", "accompany", "harmonise"):
                    return getattr(task, verb)(piece, **(where or {}), **chosen)
                return task.go_on(piece, length, **(where or {}), **axis, **chosen)

            return of(notes) if notes is None or not is_in_c else in_c(of, notes)

        results, found = redrawn(write, faults=faults, max_tries=max_tries, **options)
    for path, result, wrong in zip(outputs, results, found, strict=True):
        if wrong:
            print(f"{path}: {', '.join(wrong)} (after {max_tries} tries): try another seed, or more tries")
        _write(result, path, png, wav, result.notes if verb in ("continue", "extend", "end") else result.marked)


def _faults(max_tries: int, index: RunIndex | None, max_run: int) -> Faults:
    """What is looked for in a sample; nothing, where there is one try and nothing that is not to be copied."""
    copied = None if index is None else copies(index, max_run)

    def faults(result: Continuation) -> list[str]:
        found = [] if copied is None else copied(result)
        if max_tries > 1 and len(result.new) >= MIN_NOTES:
            found += sample_faults(alone(result))
        return found

    return faults


def _index_of(folder: str) -> RunIndex:
    """The stretches of all pieces in a folder.

    Raises:
        DataError: if no file can be used.
    """
    from pianogen_hf.data.sources.listing import list_pieces  # brings in datasets, which else nothing here needs

    pieces = {}
    for file in tqdm(list_pieces("folder", folder), desc="Reading what is not to be copied", unit="file"):
        with suppress(MidiError):
            notes = read_midi(file.path)
            if len(notes):
                pieces[file.path] = notes
    if not pieces:
        raise DataError(f"no file in {folder} could be used: give --no_copies_of a folder with MIDI files")
    return RunIndex().fit(list(pieces), pieces.values())


@dataclass(frozen=True)
class _Task:
    """A model and what is asked of it; each verb takes the prompt, and what of it is meant."""

    model: Any
    encoder: Any

    def go_on(
        self,
        prompt: Notes | None,
        length: Length | None,
        *,
        until: float | None = None,
        from_seconds: float | None = None,
        from_bar: int | None = None,
        **options: Any,
    ) -> list[Continuation]:
        if until is not None:
            start = _start_sec(prompt, from_seconds, from_bar) if prompt is not None else 0.0
            start = prompt.with_sustain().end_sec if start is None and prompt is not None else start or 0.0
            if not until > start:
                raise ArgumentError(f"--until {until:g} lies before new music begins, at {start:.1f} s")
            length = Length(seconds=until - start)
        places: dict[str, Any] = {"start_sec": from_seconds, "from_bar": from_bar}
        length = length or Length(seconds=_SECONDS)
        return continue_notes(self.model, self.encoder, length, prompt, **places, **options)

    def fill(self, piece: Notes, **options: Any) -> list[Continuation]:
        return fill_notes(self.model, self.encoder, piece, **options)

    def vary(self, piece: Notes, **options: Any) -> list[Continuation]:
        return vary_notes(self.model, self.encoder, piece, **_with_span(piece, options))

    def accompany(self, part: Notes, **options: Any) -> list[Continuation]:
        return accompany_notes(self.model, self.encoder, part, **_with_span(part, options))

    def harmonise(self, melody: Notes, **options: Any) -> list[Continuation]:
        options = {name: value for name, value in options.items() if value is not None or name == "seed"}
        return harmonise_notes(self.model, self.encoder, melody, **options)


def _with_span(piece: Notes, options: dict[str, Any]) -> dict[str, Any]:
    """Options with the passage as the verbs take it."""
    from_seconds, from_bar, until = (options.pop(name, None) for name in ("from_seconds", "from_bar", "until"))
    return {**options, "start_sec": _start_sec(piece, from_seconds, from_bar), "end_sec": until}


def _start_sec(piece: Notes, from_seconds: float | None, from_bar: int | None) -> float | None:
    return from_seconds if from_bar is None else bar_start_sec(piece, from_bar)


def _say_what_was_left_out(path: str, notes: Notes) -> None:
    if notes.remarks:
        print(f"{path}: {len(notes)} notes taken; left out or mended: {notes.remarks_line}")


def _write(result: Continuation, path: Path, png: str | None, wav: bool, drawn: Notes) -> None:
    write_midi(result.notes, path)
    written = [path]
    if png is not None:
        picture = path.with_suffix(".png")
        is_from_nothing = result.prompt_end_sec == 0 and math.isinf(result.gap_end_sec)
        prompt_end_sec = None if is_from_nothing else result.prompt_end_sec
        around_sec = math.inf if png == "whole" else _AROUND_SEC
        arguments = (drawn, picture, path.stem, prompt_end_sec, result.gap_end_sec, around_sec)
        written.append(save_piano_roll(*arguments))
    if wav:
        written.append(save_wav(result.notes, path.with_suffix(".wav")))
    seconds = max(result.new.end_sec - result.prompt_end_sec, 0.0)
    print(f"{', '.join(map(str, written))}: {len(result.new)} new notes in {seconds:.1f} s")
