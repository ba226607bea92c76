"""The page of `pianogen play`: a live session through a web socket, and what can be done with a piece."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from pianogen_hf.apps.player.server import Gate, body_of, listen, make_app, note_rows, refusal, run
from pianogen_hf.errors import PianogenError, one_line
from pianogen_hf.generation.continuation import end_notes
from pianogen_hf.generation.filling import fill_notes
from pianogen_hf.generation.note_verbs import accompany_notes
from pianogen_hf.tokenizers.midi import notes_to_midi_bytes, read_midi
from pianogen_hf.tokenizers.notes import Notes
from pianogen_hf.workflows.play import LiveSession

_MAX_FILE = 2**21  # bytes
_MAX_SEC, _MAX_NOTES = 1800, 30_000  # of a piece
_MAX_WAITING = 2000  # events for a page that does not take them
_NONSENSE = (ValueError, TypeError, AttributeError, LookupError, RecursionError)  # what wrong JSON leads to
_SHOWN_NOTES = 400  # of a session, to a page that is opened later
_ENDING_SEC = 15.0  # of a piece that is to come to its end, where nobody says how long
_ASKED = ("density", "register", "loudness", "kind", "guidance_scale")  # knobs that the verbs have, too


class PlayPage:
    """What the page asks for.

    Args:
        session: what it plays in.
        gate: who may come in.
    """

    def __init__(self, session: LiveSession, gate: Gate) -> None:
        self.session, self.engine, self.gate = session, session.engine, gate
        self._pieces: list[tuple[Notes, frozenset[tuple[int, int]]]] = []  # as changed; with what is new in them
        self._is_busy = asyncio.Lock()

    def app(self, host: str = "127.0.0.1") -> Starlette:
        """The application."""
        guarded = self.gate.guarded
        return make_app(
            self.gate,
            "play.html",
            [
                WebSocketRoute("/session", self.play),
                Route("/session.mid", guarded(self.save)),
                Route("/piece", guarded(self.open_piece), methods=["POST"]),
                Route("/piece.mid", guarded(self.save_piece)),
                Route("/verb", guarded(self.change_piece), methods=["POST"]),
            ],
            host,
        )

    # The session -----------------------------------------------------------------------------------------------------

    async def play(self, websocket: WebSocket) -> None:
        """Messages of one page until it goes."""
        fault = self.gate.fault(websocket, needs_origin=True)
        if fault is not None:
            await websocket.close(1008, fault)  # before it was accepted: the page gets a 403
            return
        await websocket.accept()
        waiting: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def listener(event: dict[str, Any]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(waiting.put_nowait, event)

        self.engine.listeners.append(listener)
        sending = asyncio.create_task(_send_all(websocket, waiting))
        try:
            waiting.put_nowait(self.engine.summary(_SHOWN_NOTES))
            while True:
                answer = self._answer(await websocket.receive_text())
                if answer is not None:
                    waiting.put_nowait(answer)
        except (WebSocketDisconnect, KeyError):  # a KeyError: bytes, not text
            pass
        finally:
            self.engine.listeners.remove(listener)
            sending.cancel()
            self.engine.input_lost()  # what its keys held

    def _answer(self, text: str) -> dict[str, Any] | None:
        try:
            return self._obeyed(json.loads(text))
        except _NONSENSE as error:
            return {"type": "error", "message": one_line(error)[:200] or "this means nothing"}

    def _obeyed(self, message: dict[str, Any]) -> dict[str, Any] | None:
        """Do what a message says; what to answer.

        Raises:
            _NONSENSE: if it says nothing that can be done.
        """
        kind = message.get("type")
        if kind == "midi":
            self.engine.receive(message["bytes"])
        elif kind == "knobs":
            self.engine.turn_knobs(**message["values"])
        elif kind == "ping":
            return {"type": "pong", "now": self.engine.now()}
        elif kind in ("hand_over", "stop", "undo", "record"):
            getattr(self.engine, kind)()
        else:
            raise ValueError(f"there is no message {str(kind)[:40]!r}")
        return None

    async def save(self, request: Request) -> Response:
        """Both sides as a MIDI file."""
        return _midi_file(self.engine.notes(), "session.mid")

    # A piece ---------------------------------------------------------------------------------------------------------

    async def open_piece(self, request: Request) -> Response:
        """Take a MIDI file."""
        try:
            piece = read_midi(await body_of(request, _MAX_FILE))
            if not len(piece):
                raise PianogenError("this file has no notes of a piano")
            if piece.end_sec > _MAX_SEC or len(piece) > _MAX_NOTES:
                raise PianogenError(f"pieces of up to {_MAX_SEC // 60} minutes and {_MAX_NOTES:,} notes are taken here")
        except PianogenError as error:
            return refusal(error)
        self._pieces = [(piece, frozenset())]
        return self._shown()

    async def change_piece(self, request: Request) -> Response:
        """Fill, accompany, end, undo, or continue live from the end of the piece."""
        async with self._is_busy:
            try:
                if not self._pieces:
                    raise PianogenError("there is no piece: open one")
                await run_in_threadpool(self._change, json.loads(await body_of(request, 2**16)))
            except _NONSENSE as error:
                return refusal(error)
        return self._shown()

    def _change(self, wish: dict[str, Any]) -> None:
        piece, new = self._pieces[-1]
        verb, engine = wish.get("verb"), self.engine
        knobs = engine.knobs
        options: dict[str, Any] = {name: getattr(knobs, name) for name in _ASKED}
        options |= {"temperature": knobs.temperature, "top_p": knobs.top_p, "key": knobs.key_name}
        options["seed"] = _seed_of(wish)
        if verb == "undo":
            self._pieces = self._pieces[:-1] or self._pieces
        elif verb == "continue":
            engine.load(piece)
            engine.hand_over()
        elif verb == "end":
            seconds = knobs.answer_sec or _ENDING_SEC
            result = end_notes(engine.model, engine.encoder, piece, seconds=seconds, **options)[0]
            self._pieces.append((result.notes, new | _places(result.new)))
        elif verb == "fill":
            start, end = float(wish["start"]), float(wish["end"])
            result = fill_notes(engine.model, engine.encoder, piece, start, end, **options)[0]
            self._pieces.append((result.notes, new | _places(result.new)))
        elif verb == "accompany":
            result = accompany_notes(engine.model, engine.encoder, piece, str(wish.get("side")), **options)[0]
            self._pieces.append((result.notes, new | _places(result.new)))
        else:
            raise ValueError(f"there is no verb {str(verb)[:40]!r}")

    async def save_piece(self, request: Request) -> Response:
        """The piece as it is now."""
        if not self._pieces:
            return refusal(PianogenError("there is no piece: open one"))
        return _midi_file(self._pieces[-1][0], "piece.mid")

    def _shown(self) -> Response:
        piece, new = self._pieces[-1]
        return JSONResponse({"notes": note_rows(piece, lambda tick, pitch: (tick, pitch) in new)})


def _seed_of(wish: dict[str, Any]) -> int | None:
    """The seed of a wish; None where it names none.

    Raises:
        ValueError: if it is none that counts in full, see `choose`.
    """
    seed = wish.get("seed")
    if seed is not None and not 0 <= seed < 2**32:
        raise ValueError("a seed is a whole number from 0 to 4294967295")
    return None if seed is None else int(seed)


def _places(notes: Notes) -> frozenset[tuple[int, int]]:
    return frozenset(zip(notes["onset_tick"].tolist(), notes["pitch"].tolist(), strict=True))


def _midi_file(notes: Notes, name: str) -> Response:
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(notes_to_midi_bytes(notes), media_type="audio/midi", headers=headers)


async def _send_all(websocket: WebSocket, waiting: asyncio.Queue[dict[str, Any]]) -> None:
    """Send events as they come; a page that takes none for long is let go."""
    while waiting.qsize() < _MAX_WAITING:
        await websocket.send_text(json.dumps(await waiting.get()))
    await websocket.close(1013, "events were not taken")


def serve(session: LiveSession, host: str, port: int, open_browser: bool) -> None:
    """Serve the page of a session until Ctrl-C.

    Raises:
        ServerError: if it can't be served there.
    """
    gate = Gate()
    listening = listen(host, port)
    run(PlayPage(session, gate).app(host), gate, listening, open_browser)
