"""Generation, from a prompt (or nothing) to MIDI, a piano roll and sound. Wiring only."""

from __future__ import annotations

import argparse
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


def generate(args: argparse.Namespace, outputs: list[Path]) -> None:
    """Generate as the checked options say, one sample for each path.

    Raises:
        ArgumentError, GenerationError, MidiError, AudioError: for what a user can mend.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()  # of loading weights: ours is that of the music
    length = _length(args)
    prompt = _read_prompt(args)
    name = args.model or BUNDLED_MODEL
    model: Any  # every kind has what generation asks of a model
    tokenizer: Any
    if args.engine == "torch":
        model, tokenizer = load_model(name, args.revision, args.trust_remote_code)
    else:
        model, tokenizer = load_engine(name, args.engine, args.revision)
    bar_format = "Generating |{bar}| {n:.0f}% {elapsed}"
    with tqdm(total=100, bar_format=bar_format, delay=1e-6) as progress:  # a delay: errors come before any bar
        options = {
            "num_samples": args.num_samples,
            "seed": args.seed,
            "on_progress": lambda share: progress.update(share * 100 - progress.n),
            "on_message": progress.write,
            **{name: getattr(args, name) for name in ("density", "register", "loudness", "key", "kind")},
            **_decoding_options(args),
        }
        if args.fill is not None and prompt is not None:
            results = fill_notes(model, tokenizer, prompt, *args.fill, **options)
        elif args.accompany is not None and prompt is not None:
            results = accompany_notes(model, tokenizer, prompt, args.accompany, **options)
        else:
            options |= {"us_per_quarter": round(60e6 / args.bpm), "end": args.end}
            results = continue_notes(model, tokenizer, length, prompt, **options)
    for path, result in zip(outputs, results, strict=True):
        _write(result, path, args.png, args.wav)


def _length(args: argparse.Namespace) -> Length:
    wants_default = args.seconds is None and args.notes is None and args.bars is None
    return Length(30.0 if wants_default else args.seconds, args.notes, args.bars)


def _read_prompt(args: argparse.Namespace) -> Notes | None:
    if args.prompt is None:
        return None
    notes = read_midi(args.prompt, PIANO_PROGRAMS if args.programs == "piano" else None)
    if len(notes) == 0:
        raise ArgumentError(f"{args.prompt} has {_why_empty(notes)}")
    if notes.remarks:
        print(f"{args.prompt}: {len(notes)} notes taken; left out or mended: {notes.remarks_line}")
    return notes


def _why_empty(notes: Notes) -> str:
    """What a file without usable notes has, and what helps; `--programs all` is no help against drums."""
    others, drums = (notes.remarks.get(name, 0) for name in ("notes of other instruments", "drum notes"))
    if others:
        return f"only other instruments ({others} notes): give a prompt with piano notes, or --programs all"
    why = f"only drums ({drums} notes)" if drums else "no notes"
    return f"{why}: give a prompt with notes of a piano"


def _decoding_options(args: argparse.Namespace) -> dict[str, Any]:
    if args.num_beams > 1:
        return {"num_beams": args.num_beams, "do_sample": False}
    return {"do_sample": True, "temperature": args.temperature, "top_p": args.top_p, "top_k": args.top_k}


def _write(result: Continuation, path: Path, png: bool, wav: bool) -> None:
    write_midi(result.notes, path)
    written = [path]
    if png:
        prompt_end_sec = result.prompt_end_sec or None
        written.append(save_piano_roll(result.notes, path.with_suffix(".png"), path.stem, prompt_end_sec))
    if wav:
        written.append(save_wav(result.notes, path.with_suffix(".wav")))
    seconds = result.new.end_sec - result.prompt_end_sec
    print(f"{', '.join(map(str, written))}: {len(result.new)} new notes in {seconds:.1f} s")
