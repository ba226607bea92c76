"""Generation, from a prompt (or nothing) to MIDI, a piano roll and sound. Wiring only."""

from __future__ import annotations

import argparse
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging

from pianogen_hf import BUNDLED_MODEL
from pianogen_hf.generation.continuation import Continuation, GenerationError, Length, continue_notes
from pianogen_hf.rendering.audio import AudioError, save_wav
from pianogen_hf.rendering.piano_roll import save_piano_roll
from pianogen_hf.tokenizers.midi import PIANO_PROGRAMS, MidiError, read_midi, write_midi
from pianogen_hf.tokenizers.notes import Notes
from pianogen_hf.tokenizers.tokenization_notes import NoteTokenizer
from pianogen_hf.train import load_pretrained
from pianogen_hf.training.arguments import ArgumentError


class OneLineParser(argparse.ArgumentParser):
    """Errors are one line and an exception, not a page of usage."""

    def error(self, message: str) -> Any:
        """Raise what `main` prints."""
        raise ArgumentError(f"{message} (see {self.prog} --help)")


def make_parser() -> argparse.ArgumentParser:
    """The options of `generate.py`."""
    parser = OneLineParser(
        prog="generate.py",
        description="Continue a piece of piano music, or begin one from nothing.",
        epilog="Examples: generate.py --seconds 30 --png --wav ; generate.py --prompt my.mid --bars 8 --output out.mid "
        "; generate.py --model runs/my-model --prompt my.mid --notes 200 --num_samples 4 --temperature 0.9 --seed 7",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", help="model folder or Hub id; by default the small Bach model that comes with the package")
    add("--prompt", metavar="FILE.mid", help="music to continue; without it a piece begins from nothing")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--seconds", type=float, help="seconds of new music (default: 30)")
    length.add_argument("--notes", type=int, help="number of new notes")
    length.add_argument("--bars", type=float, help="bars of new music, by the prompt's last time signature and tempo")
    add("--output", default="out.mid", metavar="OUT.mid", help="where to write; several samples become OUT-1.mid ...")
    add("--num_samples", type=int, default=1, help="how many different pieces (default: 1)")
    add("--seed", type=int, default=0, help="the same seed gives the same music (default: 0)")
    add("--temperature", type=float, default=1.0, help="below 1 safer, above 1 wilder (default: 1.0)")
    add("--top_p", type=float, default=0.95, help="choose among the likeliest ids of this total probability (0.95)")
    add("--top_k", type=int, default=0, help="choose among this many likeliest ids; 0 for all (default)")
    add("--num_beams", type=int, default=1, help="beam search with this many beams instead of sampling")
    add("--bpm", type=float, default=90.0, help="quarters a minute of music without a prompt (default: 90)")
    add("--programs", choices=("piano", "all"), default="piano", help="instruments of the prompt to read")
    add("--png", action="store_true", help="also draw a piano roll beside the MIDI file")
    add("--wav", action="store_true", help="also render the sound beside the MIDI file")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Generate as the command line says; returns the exit code. Errors that a user can mend are one line."""
    try:
        _generate(_checked(make_parser().parse_args(argv)))
    except (ArgumentError, GenerationError, MidiError, AudioError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130
    return 0


def _checked(args: argparse.Namespace) -> argparse.Namespace:
    for name, low in (("num_samples", 1), ("num_beams", 1), ("top_k", 0), ("seed", 0)):
        if not low <= getattr(args, name) < 2**63:
            raise ArgumentError(f"--{name} must be at least {low}, and no more than 18 digits long")
    if not 0 < args.temperature <= 100:
        raise ArgumentError("--temperature must be more than 0, at most 100; for the likeliest music use --num_beams 4")
    if not 0 < args.top_p <= 1:
        raise ArgumentError("--top_p must be more than 0 and at most 1")
    if not 4 <= args.bpm <= 1000:
        raise ArgumentError("--bpm must lie in 4..1000")
    if args.num_beams > 1 and args.num_samples > args.num_beams:
        raise ArgumentError("--num_beams gives at most as many samples as beams")
    if args.wav and any(find_spec(name) is None for name in ("midirenderer", "pretty_midi")):
        raise ArgumentError('--wav needs packages that are not installed: pip install "pianogen_hf[audio]"')
    for path in _output_paths(args):
        _check_writable(path, args.prompt)
    return args


def _check_writable(path: Path, prompt: str | None) -> None:
    """Say before the work what would otherwise be said after it."""
    folder = next(each for each in path.absolute().parents if each.exists())
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise ArgumentError(f"{path} can't be written: give another --output")
    if prompt is not None and path.exists() and Path(prompt).exists() and path.samefile(prompt):
        raise ArgumentError(f"--output {path} would overwrite the prompt: give another name")


def _generate(args: argparse.Namespace) -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()  # of loading weights: ours is that of the music
    wants_default = args.seconds is None and args.notes is None and args.bars is None
    length = Length(30.0 if wants_default else args.seconds, args.notes, args.bars)
    prompt = _read_prompt(args)
    model, tokenizer = load_model(args.model or BUNDLED_MODEL)
    bar_format = "Generating |{bar}| {n:.0f}% {elapsed}"
    with tqdm(total=100, bar_format=bar_format, delay=1e-6) as progress:  # a delay: errors come before any bar
        results = continue_notes(
            model,
            tokenizer,
            length,
            prompt,
            num_samples=args.num_samples,
            seed=args.seed,
            us_per_quarter=round(60e6 / args.bpm),
            on_progress=lambda share: progress.update(share * 100 - progress.n),
            on_message=progress.write,
            **_decoding_options(args),
        )
    for path, result in zip(_output_paths(args), results, strict=True):
        _write(result, path, args.png, args.wav)


def _read_prompt(args: argparse.Namespace) -> Notes | None:
    if args.prompt is None:
        return None
    notes = read_midi(args.prompt, PIANO_PROGRAMS if args.programs == "piano" else None)
    if len(notes) == 0:
        why = f"only other instruments ({notes.excluded_notes} notes)" if notes.excluded_notes else "no notes"
        raise ArgumentError(f"{args.prompt} has {why}: give a prompt with notes, or --programs all")
    return notes


def load_model(name: str | Path) -> tuple[PreTrainedModel, NoteTokenizer]:
    """A model in float32 and its tokenizer, ready to generate on the fastest device there is.

    Raises:
        ArgumentError: if it can't be loaded whole, or its tokenizer is none of this package's.
    """
    if Path(name).is_dir() and not Path(name, "config.json").is_file():
        raise ArgumentError(f"{name} holds no model (no config.json)")
    tokenizer = load_pretrained(AutoTokenizer, str(name))
    if not isinstance(tokenizer, NoteTokenizer):
        raise ArgumentError(f"{name} has no tokenizer of music (it is a {type(tokenizer).__name__})")
    options = {"use_safetensors": True, "dtype": torch.float32, "output_loading_info": True}
    try:
        model, info = load_pretrained(AutoModelForCausalLM, str(name), **options)
    except RuntimeError as error:
        raise ArgumentError(f"{name} can't be opened as a model: its weights do not fit its config.json") from error
    if info["missing_keys"]:  # they would be random numbers
        raise ArgumentError(f"{name} lacks weights, for example {min(info['missing_keys'])}")
    if model.config.vocab_size < len(tokenizer):
        raise ArgumentError(f"{name} has {model.config.vocab_size} outputs for {len(tokenizer)} ids of its tokenizer")
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    return model.to(device).eval(), tokenizer


def _decoding_options(args: argparse.Namespace) -> dict[str, Any]:
    if args.num_beams > 1:
        return {"num_beams": args.num_beams, "do_sample": False}
    return {"do_sample": True, "temperature": args.temperature, "top_p": args.top_p, "top_k": args.top_k}


def _output_paths(args: argparse.Namespace) -> list[Path]:
    """Where each sample goes."""
    path = Path(args.output)
    if not path.name:
        raise ArgumentError(f"--output {args.output!r} is no file name")
    path = path if path.suffix.lower() in (".mid", ".midi") else path.with_name(path.name + ".mid")
    if args.num_samples == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{number}{path.suffix}") for number in range(1, args.num_samples + 1)]


def _write(result: Continuation, path: Path, png: bool, wav: bool) -> None:
    write_midi(result.notes, path)
    written = [path]
    if png:
        prompt_end_sec = result.prompt_end_sec or None
        written.append(save_piano_roll(result.notes, path.with_suffix(".png"), path.stem, prompt_end_sec))
    if wav:
        written.append(save_wav(result.notes, path.with_suffix(".wav")))
    seconds = result.notes.end_sec - result.prompt_end_sec
    print(f"{', '.join(map(str, written))}: {len(result.new)} new notes in {seconds:.1f} s")
