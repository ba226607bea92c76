"""A live session in real time: threads that keep the engine going, MIDI ports, and the file of what was played."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers.utils import logging

from pianogen_hf import PIANO_MODEL
from pianogen_hf.errors import ArgumentError, PianogenError
from pianogen_hf.generation.live import LiveEngine
from pianogen_hf.generation.live_turns import LiveKnobs
from pianogen_hf.generation.note_verbs import check_takes_given
from pianogen_hf.tokenizers.midi import read_midi, write_midi
from pianogen_hf.workflows.loading import load_engine, load_model
from pianogen_hf.workflows.midi_ports import VIRTUAL_NAME, InPort, MidoOut, open_output, port_names

ENGINES = ("auto", "torch", "onnx", "int8")
_TICK_SEC = 0.001
_IDLE_SEC = 0.002  # between two looks of the model for work
_WATCH_SEC = 1.0  # between two looks at ports
_SAVE_SEC = 30.0  # between two times that the session is saved
_SWITCH_SEC = 0.0005  # so that the thread of the model soon lets that of the clock have its turn


class Source(Protocol):
    """Where the player's messages come from."""

    def pending(self) -> Iterable[tuple[int, ...]]:
        """Messages that have come, as bytes. Any exception says that it is lost."""


class LiveSession:
    """Keeps an engine going: one thread sends and receives, another lets the model work.

    Args:
        engine: the session.
        source: where the player's messages come from; None where `engine.receive` is called by others.

    Attributes:
        source: as given; None once it is lost.
    """

    def __init__(self, engine: LiveEngine, source: Source | None = None) -> None:
        self.engine, self.source = engine, source
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=each, daemon=True) for each in (self._keep_time, self._let_work)]

    def start(self) -> None:
        """Begin."""
        sys.setswitchinterval(_SWITCH_SEC)
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End all that sounds, and both threads."""
        self._is_over.set()
        for thread in self._threads:
            thread.join(timeout=2)
        self.engine.close()

    def _keep_time(self) -> None:
        while not self._is_over.is_set():
            self._receive()
            try:
                self.engine.tick()
            except Exception as error:  # the clock must not stand still: what sounds is to end
                self.engine.report(error)
                with contextlib.suppress(Exception):
                    self.engine.stop()
            time.sleep(_TICK_SEC)

    def _receive(self) -> None:
        if self.source is None:
            return
        try:
            messages = list(self.source.pending())
        except Exception as error:
            self.source = None
            self.engine.input_lost()
            self.engine.report(error, "the MIDI input is gone")
            return
        for message in messages:
            self.engine.receive(message)

    def _let_work(self) -> None:
        while not self._is_over.is_set():
            if not self.engine.work():
                time.sleep(_IDLE_SEC)


def load_player(name: str | None, engine: str = "auto", revision: str | None = None) -> tuple[Any, Any]:
    """A note transformer that is fast enough to play with, and its feature extractor.

    Args:
        name: folder or Hub id; None for the piano model that comes with the package.
        engine: one of `ENGINES`; "auto" takes what was exported, or exports to memory, or is torch without onnxruntime.
        revision: branch, tag or commit on the Hub.

    Raises:
        ArgumentError, GenerationError: if there is none, or it is of another kind.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    name = name or PIANO_MODEL
    torch.set_num_threads(1)  # a note is too small to share, and the clock wants a core
    if engine in ("onnx", "int8"):
        model, encoder = load_engine(name, engine, revision)
        check_takes_given(model)
        return model, encoder
    model, encoder = load_model(name, revision)
    check_takes_given(model)
    if engine == "auto":
        model = _fastest(name, model, revision)
    return model, encoder


def _fastest(name: str, model: Any, revision: str | None) -> Any:
    for engine in ("int8", "onnx"):
        try:
            return load_engine(name, engine, revision)[0]
        except (PianogenError, ImportError):
            continue
    try:
        from pianogen_hf.generation.onnx.exporters import NoteExporter
    except ImportError:
        return model
    exporter = NoteExporter(model.cpu())
    return exporter.open(exporter.graphs())


def play(
    *,
    model: str | None = None,
    revision: str | None = None,
    engine: str = "auto",
    midi_in: str | None = None,
    midi_out: str | None = None,
    virtual: bool = False,
    prompt: str | None = None,
    output: Path | None = None,
    knobs: LiveKnobs | None = None,
    seed: int | None = None,
    channel: int = 0,
    serve: Callable[[LiveSession], None] | None = None,
) -> None:
    """Play with the model until Ctrl-C; what both sides played is written to a MIDI file then.

    Args:
        model: folder or Hub id; None for the piano model that comes with the package.
        revision: branch, tag or commit on the Hub.
        engine: one of `ENGINES`.
        midi_in: name of the port of the keyboard, or a part of it.
        midi_out: name of the port that the model plays on.
        virtual: whether to make ports named `VIRTUAL_NAME` instead, to which other programs connect.
        prompt: a MIDI file that the session begins with.
        output: where the session goes, now and then, and at the end; None for nowhere.
        knobs: what the session begins with.
        seed: of the model's choices.
        channel: of the model's notes, 0..15.
        serve: called with the session; runs until it is over. None to wait here.

    Raises:
        ArgumentError, PortError, MidiError, GenerationError: for what a user can mend.
    """
    source, sink = _opened(midi_in, midi_out, virtual)
    piece = None if prompt is None else read_midi(prompt)
    if piece is not None and not len(piece):
        raise ArgumentError(f"{prompt} has no notes of a piano: give another --prompt")
    note_model, encoder = load_player(model, engine, revision)
    live = LiveEngine(note_model, encoder, sink, knobs=knobs, seed=seed, channel=channel, on_event=_say_errors)
    if piece is not None:
        live.load(piece)
    session = LiveSession(live, source)
    watch = threading.Thread(target=_watch, args=(session, midi_in, midi_out, virtual, output), daemon=True)
    session.start()
    watch.start()
    try:
        if serve is None:
            live.listeners.append(_say_state)
            print("Play: Ctrl-C ends the session", flush=True)
            if piece is not None:
                live.hand_over()
            while True:
                time.sleep(1)
        serve(session)
    except KeyboardInterrupt:
        pass
    finally:
        session.close()
        _save(live, output)


def _opened(midi_in: str | None, midi_out: str | None, virtual: bool) -> tuple[InPort | None, MidoOut | None]:
    if virtual:
        return InPort(VIRTUAL_NAME, virtual=True), open_output(VIRTUAL_NAME, virtual=True)
    source = None if midi_in is None else InPort(midi_in)
    return source, None if midi_out is None else open_output(midi_out)


def _watch(session: LiveSession, midi_in: str | None, midi_out: str | None, virtual: bool, output: Path | None) -> None:
    """Notice ports that are gone, open them again when they are back, and save now and then."""
    saved = time.monotonic()
    while True:
        time.sleep(_WATCH_SEC)
        if not virtual:
            with contextlib.suppress(PianogenError):  # not back yet
                _watch_ports(session, midi_in, midi_out)
        if time.monotonic() - saved > _SAVE_SEC:
            saved = time.monotonic()
            _save(session.engine, output, is_quiet=True)


def _watch_ports(session: LiveSession, midi_in: str | None, midi_out: str | None) -> None:
    if midi_in is None and midi_out is None:
        return
    inputs, outputs = port_names()
    source, live = session.source, session.engine
    if isinstance(source, InPort) and source.name not in inputs:
        session.source = None
        live.input_lost()
        _say_errors({"type": "error", "message": f"{source.name} is gone: waiting for it"})
    elif midi_in is not None and session.source is None:
        session.source = InPort(midi_in)
    port = live.output.port
    if isinstance(port, MidoOut) and port.name not in outputs and live.output.error is None:
        live.output.error = f"{port.name} is gone"
    elif midi_out is not None and live.output.error is not None:
        live.use_port(open_output(midi_out))


def _save(live: LiveEngine, output: Path | None, is_quiet: bool = False) -> None:
    notes = live.notes()
    if output is None or not len(notes):
        return
    write_midi(notes, output)
    if not is_quiet:
        late = f", {live.output.num_dropped} left out" if live.output.num_dropped else ""
        print(f"{output}: {len(notes)} notes of both sides in {notes.end_sec:.1f} s{late}")


def _say_errors(event: dict[str, Any]) -> None:
    if event["type"] == "error":
        print(f"warning: {event['message']}", file=sys.stderr, flush=True)


def _say_state(event: dict[str, Any]) -> None:
    if event["type"] == "state":
        print(event["state"], flush=True)
