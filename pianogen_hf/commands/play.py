"""`pianogen play`: play with the model, on a page or with MIDI ports."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pianogen_hf.commands.options import OneLineParser, not_negative, positive_float
from pianogen_hf.commands.show import check_page
from pianogen_hf.errors import UsageError, reports_errors
from pianogen_hf.folders import check_writable

_KNOBS = (
    "mode",
    "hand_over",
    "answer_sec",
    "side",
    "temperature",
    "top_p",
    "density",
    "register",
    "loudness",
    "kind",
    "thru",
)


def make_parser() -> argparse.ArgumentParser:
    """The options of `pianogen play`."""
    parser = OneLineParser(
        prog="pianogen play",
        description="Play with the model. Without MIDI options a page opens in the browser, with a keyboard (mouse, "
        "computer keys, or a MIDI piano through the browser), a piano roll and sound. With --midi_in and --midi_out "
        "it plays on MIDI ports. Three ways: it answers phrase by phrase, accompanies what you play, or fills the gap "
        "of a loop.",
        epilog="Examples: pianogen play ; pianogen play --list_ports ; pianogen play --midi_in Roland --midi_out "
        "Roland --hand_over pedal ; pianogen play --virtual --mode accompany --side below --output evening.mid",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", help="model folder or Hub id of a note transformer (V8); by default the package's piano model")
    add("--revision", help="branch, tag or commit of a model on the Hub")
    add(
        "--engine",
        choices=("auto", "torch", "onnx", "int8"),
        default="auto",
        help="auto: the fastest there is, exported to memory if need be (default); onnx and int8 ask for an export",
    )
    add("--prompt", metavar="FILE.mid", help="a piece that the session begins with, as if you had just played it")
    add("--output", default="session.mid", metavar="OUT.mid", help="where both sides go (default: session.mid)")
    add("--seed", type=not_negative, help="makes the model's choices repeatable, as far as yours are")
    ports = parser.add_argument_group("MIDI ports (extra `live`)")
    ports.add_argument("--list_ports", action="store_true", help="name the MIDI ports of this machine, and end")
    ports.add_argument("--midi_in", metavar="NAME", help="the port that you play on, or a part of its name")
    ports.add_argument("--midi_out", metavar="NAME", help="the port that the model plays on")
    ports.add_argument(
        "--virtual", action="store_true", help="make two ports named pianogen, to which other programs connect"
    )
    ports.add_argument("--channel", type=int, default=1, help="MIDI channel of the model, 1 to 16 (default: 1)")
    ports.add_argument("--thru", action="store_true", help="send what you play to the output, too")
    way = parser.add_argument_group("how to play")
    way.add_argument("--mode", choices=("answer", "accompany", "loop"), default="answer", help="(default: answer)")
    way.add_argument(
        "--hand_over",
        choices=("pause", "pedal", "key"),
        default="pause",
        help="what ends your phrase: a pause (default), the soft pedal, or a key",
    )
    way.add_argument("--pause", type=positive_float, default=0.6, metavar="SECONDS", help="that hands over (0.6)")
    way.add_argument("--pedal", type=int, default=67, metavar="CONTROLLER", help="that hands over (default: 67)")
    way.add_argument("--hand_over_key", type=int, default=21, metavar="PITCH", help="that hands over (21, the lowest)")
    way.add_argument("--answer_sec", type=positive_float, help="length of an answer (default: that of your phrase)")
    way.add_argument("--side", choices=("below", "above"), help="of your notes on which an accompaniment lies")
    way.add_argument("--temperature", type=float, default=1.0, help="below 1 safer, above 1 wilder (default: 1.0)")
    way.add_argument("--top_p", type=float, default=0.95, help="choose among the likeliest of this probability (0.95)")
    way.add_argument("--density", type=float, metavar="N", help="notes per second")
    way.add_argument("--register", type=float, metavar="PITCH", help="mean pitch; 60 is middle C")
    way.add_argument("--loudness", type=float, metavar="VELOCITY", help="mean velocity, 1 to 127")
    way.add_argument("--key", help="such as 'C minor'")
    way.add_argument("--kind", choices=("classical", "jazz", "score"), help="of music")
    way.add_argument(
        "--guidance_scale",
        type=float,
        help="how much is made of density, register, loudness, key and kind (default: 2); 1: little, in half the time",
    )
    page = parser.add_argument_group("the page (extra `play`)")
    page.add_argument("--page", action="store_true", help="open the page although MIDI ports are given")
    page.add_argument("--port", type=not_negative, default=0, help="of the page (default: any that is free)")
    page.add_argument("--host", default="127.0.0.1", help="address to listen at; others than 127.0.0.1 let others in")
    page.add_argument("--no_browser", action="store_true", help="print the page's address, and open no browser")
    return parser


@reports_errors("nothing was written")
def main(argv: list[str] | None = None) -> int:
    """Play as the command line says; returns the exit code."""
    args = make_parser().parse_args(argv)
    if args.list_ports:
        return _list_ports()
    _check(args)
    if _has_page(args):
        check_page()
    # Brings in torch: seconds that --help and a mistake should not cost.
    from pianogen_hf.generation.live_turns import LiveKnobs
    from pianogen_hf.workflows.play import play

    values = {name: getattr(args, name) for name in _KNOBS}
    if args.guidance_scale is not None:
        values["guidance_scale"] = args.guidance_scale
    knobs = LiveKnobs(**values, pause_sec=args.pause, pedal=args.pedal, key=args.hand_over_key, key_name=args.key)
    play(
        model=args.model,
        revision=args.revision,
        engine=args.engine,
        midi_in=args.midi_in,
        midi_out=args.midi_out,
        virtual=args.virtual,
        prompt=args.prompt,
        output=Path(args.output),
        knobs=knobs,
        seed=args.seed,
        channel=args.channel - 1,
        serve=_page(args) if _has_page(args) else None,
    )
    return 0


def _has_page(args: argparse.Namespace) -> bool:
    return args.page or not (args.midi_in or args.midi_out or args.virtual)


def _page(args: argparse.Namespace) -> Callable[[Any], None]:
    from pianogen_hf.apps.player.play import serve

    return lambda session: serve(session, args.host, args.port, open_browser=not args.no_browser)


def _list_ports() -> int:
    from pianogen_hf.workflows.midi_ports import port_names

    for kind, names in zip(("inputs", "outputs"), port_names(), strict=True):
        print(f"{kind}:", *(names or ["none"]), sep="\n  ")
    return 0


def _check(args: argparse.Namespace) -> None:
    if not 1 <= args.channel <= 16:
        raise UsageError("--channel must lie in 1..16")
    if args.virtual and (args.midi_in or args.midi_out):
        raise UsageError("--virtual makes ports of its own: leave out --midi_in and --midi_out")
    if args.engine in ("onnx", "int8") and find_spec("onnxruntime") is None:
        raise UsageError('--engine needs a package that is not installed: pip install "pianogen_hf[onnx]"')
    if Path(args.output).is_dir():
        raise UsageError(f"--output {args.output} is a folder: give the name of a MIDI file")
    check_writable(Path(args.output).parent, "--output")
