"""The small server of the page: this machine alone unless asked, a token in the address, nothing but what it serves.

Nothing that a request says names a file: pieces come and go as bytes.
"""

from __future__ import annotations

import contextlib
import ipaddress
import secrets
import socket
import webbrowser
from collections.abc import Awaitable, Callable, Sequence
from functools import cached_property
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from pianogen_hf.apps.player.files import STATIC, TONE_PITCHES, TONE_SEC
from pianogen_hf.errors import PianogenError, one_line
from pianogen_hf.rendering.audio import AudioError, render_tones

MAX_MESSAGE = 2**16  # bytes of a message through the socket
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "::1")
_HEADERS = {
    "Content-Security-Policy": "default-src 'self' data:; connect-src 'self' ws: wss:; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",  # the token stands in the address
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}

Endpoint = Callable[[Request], Awaitable[Response]]


class ServerError(PianogenError):
    """A page that can't be served; the message is one line that says what to do."""


class Gate:
    """Who may come in: who has the token, and is no page from elsewhere.

    Attributes:
        token: what the address ends in.
    """

    def __init__(self) -> None:
        self.token = secrets.token_urlsafe(18)

    def fault(self, connection: HTTPConnection, needs_origin: bool = False) -> str | None:
        """What is wrong with a request; None if nothing is.

        Args:
            connection: the request.
            needs_origin: whether it must come from a page of this server: what changes something does.
        """
        if not secrets.compare_digest(connection.query_params.get("token", "").encode(), self.token.encode()):
            return "open the address that the command has printed: its end, the token, is what lets you in"
        origin = connection.headers.get("origin")
        if origin is None and not needs_origin:
            return None
        if origin is None or urlsplit(origin).netloc != connection.headers.get("host"):
            return "another page asks for this"
        return None

    def guarded(self, endpoint: Endpoint) -> Endpoint:
        """An endpoint that lets in only who may."""

        async def guard(request: Request) -> Response:
            fault = self.fault(request, needs_origin=request.method != "GET")
            if fault is not None:
                return PlainTextResponse(fault, 403, headers=_HEADERS)
            response = await endpoint(request)
            response.headers.update(_HEADERS)
            return response

        return guard


class Sounds:
    """The tones of a piano for the page, rendered when they are first asked for."""

    @cached_property
    def wav(self) -> bytes:
        """A tone after the other, every `TONE_SEC`."""
        return render_tones(TONE_PITCHES, TONE_SEC)

    def routes(self, gate: Gate) -> list[BaseRoute]:
        """What they are and the file itself."""
        return [
            Route("/sounds.json", gate.guarded(self._about)),
            Route("/sounds.wav", gate.guarded(self._file)),
        ]

    async def _about(self, request: Request) -> Response:
        has_sound = all(find_spec(name) for name in ("midirenderer", "pretty_midi"))
        return JSONResponse({"pitches": TONE_PITCHES, "seconds": TONE_SEC} if has_sound else {})

    async def _file(self, request: Request) -> Response:
        return Response(await run_in_threadpool(lambda: self.wav), media_type="audio/wav")


def make_app(gate: Gate, page: str, routes: Sequence[BaseRoute], host: str = "127.0.0.1") -> Starlette:
    """An application that serves a page.

    Args:
        gate: who may come in.
        page: name of its HTML file.
        routes: what it asks for besides, guarded by themselves.
        host: where it is served; names of other machines are refused for this one alone.
    """

    async def index(request: Request) -> Response:
        return FileResponse(STATIC / page)

    hosts = list(_LOOPBACK) if is_loopback(host) else ["*"]
    sounds = Sounds()
    app = Starlette(
        routes=[
            Route("/", gate.guarded(index)),
            Mount("/static", StaticFiles(directory=STATIC, packages=[("pianogen_hf.rendering", "static")])),
            *sounds.routes(gate),
            *routes,
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts)],
    )
    app.state.sounds = sounds
    return app


def is_loopback(host: str) -> bool:
    """Whether an address is of this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    """A socket of the page, on a free port for 0.

    Raises:
        ServerError: if there is none.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
    except (OSError, OverflowError) as error:
        raise ServerError(
            f"the page can't be served at {host}:{port} ({error}): give another --host or --port"
        ) from error
    return listening


def run(app: Starlette, gate: Gate, listening: socket.socket, open_browser: bool) -> None:
    """Serve until Ctrl-C.

    Args:
        app: what `make_app` gave.
        gate: of the app.
        listening: what `listen` gave.
        open_browser: whether to open the page.
    """
    with contextlib.suppress(AudioError):  # now, because rendering lets no other thread run
        _ = app.state.sounds.wav
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else "127.0.0.1" if host == "0.0.0.0" else host
    address = f"http://{shown}:{port}/?token={gate.token}"
    if not is_loopback(host):
        print(f"warning: whoever reaches {host}:{port} and has the token can play, too", flush=True)
    print(f"open {address} (Ctrl-C ends)", flush=True)
    if open_browser:
        with contextlib.suppress(webbrowser.Error):
            webbrowser.open(address)
    config = uvicorn.Config(
        app, log_level="warning", ws_max_size=MAX_MESSAGE, timeout_graceful_shutdown=1, lifespan="off"
    )
    uvicorn.Server(config).run(sockets=[listening])


async def body_of(request: Request, most: int) -> bytes:
    """The body of a request.

    Raises:
        PianogenError: if it is too long.
    """
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > most:
            raise PianogenError(f"this is more than {most // 2**20} MB")
    return bytes(body)


def refusal(error: Exception) -> JSONResponse:
    """What a page is told that asked for something impossible."""
    return JSONResponse({"message": one_line(error) or "this means nothing"}, 422)


def note_rows(notes: Any, is_new: Callable[[int, int], bool] = lambda tick, pitch: False) -> list[list[int]]:
    """Notes for the page: onset and duration in milliseconds, pitch, velocity, voice (1 where `is_new`)."""
    columns = (notes.onset_sec, notes.duration_sec, notes["pitch"], notes["velocity"], notes["onset_tick"])
    return [
        [round(1000 * onset), round(1000 * duration), pitch, velocity, int(is_new(tick, pitch))]
        for onset, duration, pitch, velocity, tick in zip(*(column.tolist() for column in columns), strict=True)
    ]
