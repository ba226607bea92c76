"""The options of `generate.py`: flat, or as a verb and a file: `generate.py fill my.mid --bars 9 12`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from pianogen_hf.commands.options import OneLineParser

_EXAMPLES = """\
examples:
  generate.py --seconds 30 --png --wav                          from nothing
  generate.py --prompt my.mid --bars 8 --output out.mid         on from where my.mid ends
  generate.py fill my.mid --bars 9 12 --key "C minor"           bars 9 to 12 anew, in sight of both sides
  generate.py vary my.mid --strength 0.3 --bars 1 8             a third of the notes of bars 1 to 8 anew
  generate.py accompany melody.mid --density 4                  a left hand to a melody
  generate.py harmonise melody.mid --model MODEL                chords, or three voices, to a melody
  generate.py end my.mid --bars 4                               a close within four bars

`generate.py VERB --help` says what each verb takes; verbs and flat options do the same."""


def parse(argv: Sequence[str] | None, prog: str = "generate.py") -> argparse.Namespace:
    """Options of a command line, in which `verb` says what is to be done.

    Raises:
        UsageError: for options that there are not.
    """
    import sys

    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] not in VERBS:
        args = make_parser(prog).parse_args(words)
        args.verb = _verb_of(args)
        return args
    args = make_parser(prog).parse_args([])
    chosen = _verb_parser(f"{prog} {words[0]}", words[0]).parse_args(words[1:])
    for name, value in vars(chosen).items():
        setattr(args, name, value)
    args.verb = words[0]
    return args


def _verb_of(args: argparse.Namespace) -> str:
    for verb, given in (
        ("fill", args.fill or args.fill_bars),
        ("vary", args.vary is not None),
        ("accompany", args.accompany),
        ("harmonise", args.harmonise),
        ("explain", args.explain),
    ):
        if given:
            return verb
    return "continue"


def make_parser(prog: str = "generate.py") -> argparse.ArgumentParser:
    """The flat options."""
    parser = OneLineParser(
        prog=prog,
        usage=f"{prog} [--prompt FILE.mid] [options]   or   {prog} {{{','.join(VERBS)}}} FILE.mid [options]",
        description="Continue a piece of piano music, write a part of it anew, add a part, or begin one from nothing.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    music = parser.add_argument_group("what is to be written")
    music.add_argument("--prompt", metavar="FILE.mid", help="music to work on; without it a piece begins from nothing")
    length = music.add_mutually_exclusive_group()
    _add_length(length)
    gap = {"nargs": 2, "action": "append"}
    length.add_argument(
        "--fill",
        type=float,
        metavar=("START", "END"),
        help="write anew what begins between these seconds, and keep the rest; several times for several gaps (V8 and "
        "masked models)",
        **gap,  # type: ignore[arg-type]
    )
    length.add_argument(
        "--fill_bars",
        type=int,
        metavar=("FIRST", "LAST"),
        help="the same in bars, counted from 1: --fill_bars 9 12",
        **gap,  # type: ignore[arg-type]
    )
    length.add_argument("--vary", type=float, metavar="STRENGTH", help=_STRENGTH)
    length.add_argument("--accompany", choices=("below", "above"), help=_SIDE)
    length.add_argument("--harmonise", action="store_true", help=_HARMONISE)
    _add_place(music)
    music.add_argument("--end", action="store_true", help=_END)
    length.add_argument("--explain", action="store_true", help=_EXPLAIN)
    _add_common(parser)
    return parser


_STRENGTH = "write this share of the notes anew, 0 to 1, and keep the others (V8)"
_SIDE = "write a second part to the prompt: a left hand below a melody, a melody above a left hand (V8)"
_HARMONISE = "write what sounds below a melody: three voices (chorale models) or chords (V8)"
_EXPLAIN = "write no music: show what the model sees of the prompt, in the terminal and with --png as a picture"
_END = "come to an end at the wanted length, give or take 15 %% (V8)"


def _add_length(parser: argparse._ActionsContainer, notes: bool = True) -> None:
    parser.add_argument("--seconds", type=float, help="seconds of new music (default: 30)")
    if notes:
        parser.add_argument("--notes", type=int, help="number of new notes")
    parser.add_argument("--bars", type=float, help="bars of new music, by the prompt's last time signature and tempo")


def _add_place(parser: argparse._ActionsContainer) -> None:
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--from_seconds", type=float, metavar="A", help="begin here rather than where the prompt ends")
    place.add_argument("--from_bar", type=int, metavar="BAR", help="the same by a bar, counted from 1")
    parser.add_argument("--until", type=float, metavar="B", help="no new note begins later than this second")


def _add_passage(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--bars", type=int, nargs=2, metavar=("FIRST", "LAST"), dest="passage", help="these bars alone, counted from 1"
    )
    _add_place(parser)


def _add_common(parser: argparse.ArgumentParser) -> None:
    """What all verbs take."""
    asked = parser.add_argument_group("what to ask of the new notes (V8; of other models key, register, pitches)")
    asked.add_argument("--density", type=float, metavar="N", help="notes per second, such as 4")
    asked.add_argument("--register", type=float, metavar="PITCH", help="mean pitch; 60 is middle C")
    asked.add_argument("--loudness", type=float, metavar="VELOCITY", help="mean velocity, 1 to 127; 40 is soft")
    asked.add_argument("--key", help="such as 'C minor' or 'Bb major'")
    asked.add_argument("--kind", choices=("classical", "jazz", "score"), help="score: played as it stands")
    asked.add_argument(
        "--guidance_scale",
        type=float,
        metavar="S",
        help="how much is made of the above, 0 to 10: 1 is what the model makes of it by itself (V8; default: 2)",
    )
    asked.add_argument(
        "--pitches",
        type=int,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="from 60 to 108 for a right hand; of a gap these pitches alone are written anew, and others stay",
    )
    asked.add_argument(
        "--in_c",
        action="store_true",
        help="move the prompt to C major or A minor for the model, and all back afterwards",
    )
    asked.add_argument(
        "--chords",
        help='such as "Cm7 | Fm7 G7 | Cm": a bar between two lines, gone through again and again; "prompt" for its own',
    )
    _add_model(parser)
    search = parser.add_argument_group("how it is chosen")
    add = search.add_argument
    add("--seed", type=int, default=0, help="the same seed gives the same music (default: 0)")
    add("--num_samples", type=int, default=1, help="how many different pieces (default: 1)")
    add("--temperature", type=float, default=1.0, help="below 1 safer, above 1 wilder (default: 1.0)")
    add("--top_p", type=float, default=0.95, help="choose among the likeliest of this total probability (0.95)")
    add("--top_k", type=int, default=0, help="choose among this many likeliest; 0 for all (default)")
    add("--min_p", type=float, metavar="P", help="drop what is less than P times as likely as the likeliest, e.g. 0.05")
    add(
        "--typical_p", type=float, metavar="P", help="choose among the most typical of this total probability, e.g. 0.9"
    )
    add("--top_k_notes", type=int, metavar="K", help="top-k of pitches alone: fewer wrong notes")
    add("--top_k_durations", type=int, metavar="K", help="top-k of durations alone: plainer rhythm")
    add("--top_k_of", nargs="+", metavar="KIND=K", help="top-k by kind: time, pitch, velocity, duration")
    add("--temperature_of", nargs="+", metavar="KIND=T", help="temperature by kind, such as pitch=0.8 velocity=1.2")
    add("--top_k_offset", type=int, metavar="N", help="leave out the N likeliest, for what is less expected, e.g. 2")
    add("--mask_k", type=int, metavar="N", help="the same after all other choices")
    add("--mask_p", type=float, metavar="P", help="leave out the likeliest of this total probability, after the others")
    add(
        "--creativity",
        type=float,
        metavar="C",
        help="0 to 1: time passes that much more seldom (fewer rests), e.g. 0.3",
    )
    add("--greedy", action="store_true", help="always the likeliest; it tends to repeat itself")
    add("--num_beams", type=int, default=1, help="beam search with this many beams instead of sampling")
    add("--length_penalty", type=float, metavar="X", help="exponent by which scores of beams are divided (default: 1)")
    add("--no_repeat_notes", type=int, metavar="N", help="no N pitches in a row are said twice, e.g. 8 (V8)")
    add(
        "--tries",
        type=int,
        default=1,
        help="draw a piece again that is no music (silence, crowds, one pitch), so often",
    )
    add("--no_copies_of", metavar="FOLDER", help="... or copies these MIDI files; V8 avoids it while it writes")
    add("--max_run", type=int, default=16, help="how many notes in a row, in any key, are no copy yet (default: 16)")
    _add_files(parser)


def _add_model(parser: argparse.ArgumentParser) -> None:
    model = parser.add_argument_group("what writes it")
    model.add_argument("--model", help="model folder or Hub id; by default the piano model that comes with the package")
    model.add_argument("--revision", help="branch, tag or commit of a model on the Hub")
    model.add_argument(
        "--trust_remote_code", action="store_true", help="run code that a model of unknown architecture carries"
    )
    model.add_argument(
        "--engine",
        choices=("torch", "onnx", "int8"),
        default="torch",
        help="onnx and int8 are several times as fast on a CPU, for a model that `pianogen export` has exported",
    )


def _add_files(parser: argparse.ArgumentParser, writes_music: bool = True) -> None:
    files = parser.add_argument_group("files")
    add = files.add_argument
    add("--output", default="out.mid", metavar="OUT.mid", help="where to write; several samples become OUT-1.mid ...")
    shown = "what is new and 5 seconds of the prompt around it, or whole" if writes_music else "of these bars"
    add("--png", nargs="?", const="part", choices=("part", "whole"), help=f"also draw a picture beside it: {shown}")
    add("--programs", choices=("piano", "all"), default="piano", help="instruments of the prompt to read")
    if writes_music:
        add("--wav", action="store_true", help="also render the sound beside the MIDI file")
        add("--bpm", type=float, default=90.0, help="quarters a minute of music without a prompt (default: 90)")


# Verbs ---------------------------------------------------------------------------------------------------------------


def _continue(parser: argparse.ArgumentParser) -> None:
    _add_length(parser.add_mutually_exclusive_group())
    _add_place(parser)
    parser.add_argument("--end", action="store_true", help=_END)


def _extend(parser: argparse.ArgumentParser) -> None:
    _add_length(parser.add_mutually_exclusive_group())


def _end(parser: argparse.ArgumentParser) -> None:
    _add_length(parser.add_mutually_exclusive_group(), notes=False)
    _add_place(parser)
    parser.set_defaults(end=True)


def _fill(parser: argparse.ArgumentParser) -> None:
    gap = parser.add_mutually_exclusive_group(required=True)
    add = gap.add_argument
    add(
        "--bars", type=int, nargs=2, action="append", dest="fill_bars", metavar=("FIRST", "LAST"), help="counted from 1"
    )
    add("--seconds", type=float, nargs=2, action="append", dest="fill", metavar=("START", "END"), help="or in seconds")


def _vary(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--strength", type=float, default=0.5, dest="vary", help=f"{_STRENGTH} (default: 0.5)")
    _add_passage(parser)


def _accompany(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--side", choices=("below", "above"), default="below", dest="accompany", help=_SIDE)
    _add_passage(parser)


def _harmonise(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(harmonise=True)


_Adder = Callable[[argparse.ArgumentParser], None]


def _explain(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--bars", type=int, nargs=2, metavar=("FIRST", "LAST"), dest="passage", help="counted from 1 (default: 1 4)"
    )
    parser.set_defaults(explain=True)


VERBS: dict[str, tuple[str, _Adder]] = {
    "continue": ("Go on from where a piece ends, or from a place within it.", _continue),
    "extend": ("Make a piece longer: eight bars where nothing is said.", _extend),
    "end": ("Bring a piece to its close: within four bars where nothing is said (V8).", _end),
    "fill": ("Write gaps of a piece anew, in sight of both sides (V8 and masked models).", _fill),
    "vary": ("Write a passage anew, with some of its notes as they are (V8).", _vary),
    "accompany": ("Write a second part to a melody, or to a left hand (V8).", _accompany),
    "harmonise": ("Write what sounds below a melody: voices (chorale models) or chords (V8).", _harmonise),
    "explain": ("Show what a model sees of a piece: bars, notes, and its tokens or rows.", _explain),
}


def _verb_parser(prog: str, verb: str) -> argparse.ArgumentParser:
    description, add = VERBS[verb]
    usage = f"{prog} FILE.mid [options]"
    parser = OneLineParser(prog=prog, usage=usage, description=description, allow_abbrev=False)
    parser.add_argument("prompt", metavar="FILE.mid", help="the music; its own notes stay as they are")
    add(parser)
    if verb == "explain":
        _add_model(parser)
        _add_files(parser, writes_music=False)
    else:
        _add_common(parser)
    return parser
