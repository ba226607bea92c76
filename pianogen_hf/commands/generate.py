"""The command line of generation: its options, checked before anything heavy is loaded."""

from __future__ import annotations

import argparse
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pianogen_hf.commands.options import OneLineParser
from pianogen_hf.errors import UsageError, reports_errors
from pianogen_hf.folders import check_writable

_HANDED_ON = (
    "model",
    "revision",
    "trust_remote_code",
    "engine",
    "prompt",
    "programs",
    "fill",
    "accompany",
    "end",
    "bpm",
    "png",
    "wav",
    "seed",
    "density",
    "register",
    "loudness",
    "key",
    "kind",
)


def make_parser() -> argparse.ArgumentParser:
    """The options of `generate.py`."""
    parser = OneLineParser(
        prog="generate.py",
        description="Continue a piece of piano music, or begin one from nothing.",
        epilog="Examples: generate.py --seconds 30 --png --wav ; generate.py --prompt my.mid --bars 8 --output out.mid "
        "; generate.py --model runs/my-model --prompt my.mid --notes 200 --num_samples 4 --temperature 0.9 --seed 7 ; "
        "generate.py --prompt my.mid --fill 20 28 ; generate.py --prompt melody.mid --accompany below --density 4",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", help="model folder or Hub id; by default the small Bach model that comes with the package")
    add("--revision", help="branch, tag or commit of a model on the Hub")
    add("--trust_remote_code", action="store_true", help="run code that a model of unknown architecture carries")
    add(
        "--engine",
        choices=("torch", "onnx", "int8"),
        default="torch",
        help="onnx and int8 are several times as fast on a CPU, for a model that `pianogen export` has exported",
    )
    add("--prompt", metavar="FILE.mid", help="music to continue; without it a piece begins from nothing")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--seconds", type=float, help="seconds of new music (default: 30)")
    length.add_argument("--notes", type=int, help="number of new notes")
    length.add_argument("--bars", type=float, help="bars of new music, by the prompt's last time signature and tempo")
    length.add_argument(
        "--fill",
        type=float,
        nargs=2,
        metavar=("START", "END"),
        help="write anew what begins between these seconds of the prompt, and keep the rest (V8 and masked models)",
    )
    length.add_argument(
        "--accompany",
        choices=("below", "above"),
        help="write a second part to the prompt: a left hand below a melody, a melody above a left hand (V8)",
    )
    asked = parser.add_argument_group("what to ask of the new notes (V8)")
    asked.add_argument("--density", type=float, metavar="N", help="notes per second, such as 4")
    asked.add_argument("--register", type=float, metavar="PITCH", help="mean pitch; 60 is middle C")
    asked.add_argument("--loudness", type=float, metavar="VELOCITY", help="mean velocity, 1 to 127; 40 is soft")
    asked.add_argument("--key", help="such as 'C minor' or 'Bb major'")
    asked.add_argument("--kind", choices=("classical", "jazz", "score"), help="score: played as it stands")
    asked.add_argument("--end", action="store_true", help="come to an end at the wanted length, give or take 15 %%")
    add("--output", default="out.mid", metavar="OUT.mid", help="where to write; several samples become OUT-1.mid ...")
    add("--num_samples", type=int, default=1, help="how many different pieces (default: 1)")
    add("--seed", type=int, default=0, help="the same seed gives the same music (default: 0)")
    add("--temperature", type=float, default=1.0, help="below 1 safer, above 1 wilder (default: 1.0)")
    add("--top_p", type=float, default=0.95, help="choose among the likeliest ids of this total probability (0.95)")
    add("--top_k", type=int, default=0, help="choose among this many likeliest ids; 0 for all (default)")
    add("--num_beams", type=int, default=1, help="beam search with this many beams instead of sampling")
    add("--bpm", type=float, default=90.0, help="quarters a minute of music without a prompt (default: 90)")
    add("--programs", choices=("piano", "all"), default="piano", help="instruments of the prompt to read")
    add(
        "--png",
        nargs="?",
        const="part",
        choices=("part", "whole"),
        help="also draw a piano roll beside the MIDI file: what is new and 5 seconds of the prompt around it, or whole",
    )
    add("--wav", action="store_true", help="also render the sound beside the MIDI file")
    return parser


@reports_errors("nothing was written")
def main(argv: list[str] | None = None) -> int:
    """Generate as the command line says; returns the exit code."""
    args = _checked(make_parser().parse_args(argv))
    # Brings in torch: seconds that --help and a mistake should not cost.
    from pianogen_hf.generation.new_notes import Length
    from pianogen_hf.workflows.generate import generate

    amounts = (args.seconds, args.notes, args.bars)
    length = None if amounts == (None, None, None) else Length(*amounts)
    options = {name: getattr(args, name) for name in _HANDED_ON}
    generate(output_paths(args), length=length, **options, **_decoding_options(args))
    return 0


def _decoding_options(args: argparse.Namespace) -> dict[str, Any]:
    if args.num_beams > 1:
        return {"num_beams": args.num_beams, "do_sample": False}
    return {"do_sample": True, "temperature": args.temperature, "top_p": args.top_p, "top_k": args.top_k}


def _checked(args: argparse.Namespace) -> argparse.Namespace:
    for name in ("seconds", "notes", "bars"):
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf:
            raise UsageError(f"--{name} must be more than 0, got {value:g}")
    for name, low in (("num_samples", 1), ("num_beams", 1), ("top_k", 0), ("seed", 0)):
        if not low <= getattr(args, name) < 2**63:
            raise UsageError(f"--{name} must be at least {low}, and no more than 18 digits long")
    if not 0 < args.temperature <= 100:
        raise UsageError("--temperature must be more than 0, at most 100; for the likeliest music use --num_beams 4")
    if not 0 < args.top_p <= 1:
        raise UsageError("--top_p must be more than 0 and at most 1")
    if not 4 <= args.bpm <= 1000:
        raise UsageError("--bpm must lie in 4..1000")
    if args.num_beams > 1 and args.num_samples > args.num_beams:
        raise UsageError("--num_beams gives at most as many samples as beams")
    if args.wav and any(find_spec(name) is None for name in ("midirenderer", "pretty_midi")):
        raise UsageError('--wav needs packages that are not installed: pip install "pianogen_hf[audio]"')
    if args.engine != "torch" and find_spec("onnxruntime") is None:
        raise UsageError('--engine needs a package that is not installed: pip install "pianogen_hf[onnx]"')
    for name, what in (("fill", "has the gap"), ("accompany", "is accompanied")):
        if getattr(args, name) is not None and args.prompt is None:
            raise UsageError(f"--{name} needs the music that {what}: give a --prompt")
    if args.end and (args.fill is not None or args.accompany is not None):
        raise UsageError("--end is for music that goes on: leave it out with --fill and --accompany")
    if args.engine != "torch" and args.num_beams > 1:
        raise UsageError("--num_beams needs --engine torch: the fast engines sample")
    for path in output_paths(args):
        _check_writable(path, args.prompt)
    return args


def _check_writable(path: Path, prompt: str | None) -> None:
    """Say before the work what would otherwise be said after it."""
    if path.is_dir():
        raise UsageError(f"{path} can't be written (Is a directory): give another --output")
    check_writable(path.parent, "--output")
    if prompt is not None and path.exists() and Path(prompt).exists() and path.samefile(prompt):
        raise UsageError(f"--output {path} would overwrite the prompt: give another name")


def output_paths(args: argparse.Namespace) -> list[Path]:
    """Where each sample goes."""
    path = Path(args.output)
    if not path.name:
        raise UsageError(f"--output {args.output!r} is no file name")
    path = path if path.suffix.lower() in (".mid", ".midi") else path.with_name(path.name + ".mid")
    if args.num_samples == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{number}{path.suffix}") for number in range(1, args.num_samples + 1)]
