"""The command line of generation: its options, checked before anything heavy is loaded."""

from __future__ import annotations

import argparse
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pianogen_hf.commands.generate_options import parse
from pianogen_hf.errors import UsageError, reports_errors
from pianogen_hf.folders import check_writable
from pianogen_hf.workflows.prompt import check_passage, read_prompt

_HANDED_ON = (
    "model",
    "revision",
    "trust_remote_code",
    "engine",
    "prompt",
    "programs",
    "verb",
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
    "pitches",
    "chords",
    "no_copies_of",
    "max_run",
)
_USUAL_BARS = {"extend": 8.0, "end": 4.0}  # of new music, where nobody says how much


@reports_errors("nothing was written")
def main(argv: list[str] | None = None) -> int:
    """Generate as the command line says; returns the exit code."""
    args = _checked(parse(argv))
    # Brings in torch: seconds that --help and a mistake should not cost.
    from pianogen_hf.generation.new_notes import Length
    from pianogen_hf.workflows.generate import generate

    if args.verb == "explain":
        from pianogen_hf.workflows.explain import explain

        picture = output_paths(args)[0].with_suffix(".png") if args.png else None
        names = ("model", "revision", "trust_remote_code", "programs")
        explain(args.prompt, getattr(args, "passage", None), picture, **{name: getattr(args, name) for name in names})
        return 0
    amounts = (args.seconds, args.notes, args.bars)
    length = None if amounts == (None, None, None) else Length(*amounts)
    options = {name: getattr(args, name) for name in _HANDED_ON}
    if length is None and args.verb in _USUAL_BARS and args.until is None:
        length = Length(bars=_USUAL_BARS[args.verb])
    options |= {"where": _where(args), "max_tries": args.tries, "is_in_c": args.in_c}
    generate(output_paths(args), length=length, **options, **_decoding_options(args))
    return 0


def _where(args: argparse.Namespace) -> dict[str, Any]:
    """Which part of the prompt is meant, as the verb's function takes it."""
    if args.verb == "fill":
        return {"gaps": args.fill, "bars": args.fill_bars}
    place = {"from_seconds": args.from_seconds, "from_bar": args.from_bar, "until": args.until}
    if args.verb == "vary":
        return {"strength": args.vary, "bars": getattr(args, "passage", None), **place}
    if args.verb == "accompany":
        return {"side": args.accompany, "bars": getattr(args, "passage", None), **place}
    return place


_SEARCH = (
    "min_p",
    "typical_p",
    "top_k_notes",
    "top_k_durations",
    "top_k_offset",
    "mask_k",
    "mask_p",
    "creativity",
    "length_penalty",
    "no_repeat_notes",
    "guidance_scale",
)


def _decoding_options(args: argparse.Namespace) -> dict[str, Any]:
    options = {name: getattr(args, name) for name in _SEARCH if getattr(args, name) is not None}
    for name, kind in (("top_k_of", int), ("temperature_of", float)):
        if getattr(args, name) is not None:
            options[name] = _by_kind(name, getattr(args, name), kind)
    if args.num_beams > 1:
        return {"num_beams": args.num_beams, "do_sample": False, **options}
    if args.greedy:
        return {"do_sample": False, **options}
    return {"do_sample": True, "temperature": args.temperature, "top_p": args.top_p, "top_k": args.top_k, **options}


def _by_kind(option: str, words: list[str], kind: type) -> dict[str, Any]:
    """Numbers by name, from words such as pitch=3."""
    try:
        return {name: kind(number) for name, number in (word.split("=") for word in words)}
    except ValueError:
        raise UsageError(f"--{option} takes words such as pitch=3, not {' '.join(words)}") from None


def _checked(args: argparse.Namespace) -> argparse.Namespace:
    for name in ("seconds", "notes", "bars"):
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf:
            raise UsageError(f"--{name} must be more than 0, got {value:g}")
    for name, low in (("num_samples", 1), ("num_beams", 1), ("top_k", 0), ("seed", 0), ("tries", 1), ("max_run", 2)):
        if not low <= getattr(args, name) < 2**63:
            raise UsageError(f"--{name} must be at least {low}, and no more than 18 digits long")
    if not 0 < args.temperature <= 100:
        raise UsageError("--temperature must be more than 0, at most 100; for the likeliest music use --greedy")
    if not 0 < args.top_p <= 1:
        raise UsageError("--top_p must be more than 0 and at most 1")
    if not 4 <= args.bpm <= 1000:
        raise UsageError("--bpm must lie in 4..1000")
    if args.greedy and (args.num_samples > 1 or args.num_beams > 1):
        raise UsageError("--greedy gives one piece: leave out --num_samples and --num_beams")
    if args.num_beams > 1 and args.num_samples > args.num_beams:
        raise UsageError("--num_beams gives at most as many samples as beams")
    if args.no_copies_of is not None and not Path(args.no_copies_of).is_dir():
        raise UsageError(f"--no_copies_of {args.no_copies_of} is no folder")
    if args.wav and any(find_spec(name) is None for name in ("midirenderer", "pretty_midi")):
        raise UsageError('--wav needs packages that are not installed: pip install "pianogen_hf[audio]"')
    if args.engine != "torch" and find_spec("onnxruntime") is None:
        raise UsageError('--engine needs a package that is not installed: pip install "pianogen_hf[onnx]"')
    if args.vary is not None and not 0 <= args.vary <= 1:
        raise UsageError(f"strength lies between 0 (nothing is new) and 1 (everything is), not {args.vary:g}")
    _check_verb(args)
    if args.engine != "torch" and args.num_beams > 1:
        raise UsageError("--num_beams needs --engine torch: the fast engines sample")
    for path in output_paths(args):
        _check_writable(path, args.prompt)
    if args.prompt is not None:
        where = {"gaps": args.fill, "bars": args.fill_bars or getattr(args, "passage", None)}
        place = {"from_seconds": args.from_seconds, "from_bar": args.from_bar}
        check_passage(read_prompt(args.prompt, args.programs), **where, **place)
    return args


_NEEDED = {  # what each verb works on
    "fill": "has the gap",
    "vary": "is varied",
    "accompany": "is accompanied",
    "harmonise": "is harmonised",
    "explain": "is explained",
}


def _check_verb(args: argparse.Namespace) -> None:
    """Refuse options that don't go with what is to be done."""
    places = [name for name in ("from_seconds", "from_bar", "until") if getattr(args, name) is not None]
    if args.verb in _NEEDED and args.prompt is None:
        option = "fill_bars" if args.fill_bars else args.verb
        raise UsageError(f"--{option} needs the music that {_NEEDED[args.verb]}: give a --prompt")
    if args.verb in _NEEDED and args.end:
        raise UsageError("--end is for a continuation: leave it out with --fill, --vary, --accompany, --harmonise")
    if args.pitches is not None and args.verb == "harmonise":
        raise UsageError("--pitches is not for harmonise: voices have ranges of their own")
    if args.in_c and (args.key is not None or args.chords not in (None, "prompt")):
        raise UsageError("--in_c moves the prompt, and would move --key and --chords against it: leave one out")
    wishes = (args.density, args.register, args.loudness, args.key, args.kind)
    if args.guidance_scale is not None and args.verb != "vary" and set(wishes) == {None}:
        raise UsageError("--guidance_scale makes more of what is asked, and nothing is: give --density, --key ...")
    if args.chords == "prompt" and args.prompt is None:
        raise UsageError("--chords prompt needs music to find them in: give a --prompt")
    if places and args.verb in ("fill", "harmonise", "explain"):
        raise UsageError(f"--{places[0]} is not for {args.verb}: leave it out")
    if places and args.prompt is None and places != ["until"]:
        raise UsageError(f"--{places[0]} needs music to begin in: give a --prompt")
    if places and getattr(args, "passage", None) is not None:
        raise UsageError(f"--{places[0]} says what --bars says: leave one out")
    if args.until is not None and (args.seconds, args.notes, args.bars) != (None, None, None):
        raise UsageError("--until says how much, as --seconds, --notes and --bars do: leave one out")


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
