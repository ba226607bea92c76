"""A Hub on this machine: enough of the real protocol for the real huggingface_hub client, and faults on demand.

In a test, where clients are other processes (their library must see HF_ENDPOINT before it is imported):

    with HubServer() as hub:
        hub.fault("commit", status=500, times=1)
        subprocess.run([...], env=hub.environment(tmp_path / "home", token="hf_writer"))
        hub.files("pianogen/v7")

By hand, `python tests/hub_server.py` prints what to export and serves until Ctrl-C. POST /-/fault with the arguments of
`HubServer.fault` as JSON makes faults there, and GET /-/log tells what was asked.

Tokens: hf_writer (user pianogen), hf_reader (user listener, may only read), hf_other (user somebody), hf_expired.
Requests are bounded in number, size and time, and the server listens on 127.0.0.1 only. Large files lie with a second
server, as on the real Hub, whose addresses are signed and take no token.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import secrets
import socket
import sys
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from hub_repositories import Commit, File, Hub, HubError, User, is_large
from hub_routes import ROUTES, Answer, Request, route

MAX_REQUESTS = 20_000
MAX_BODY_BYTES = 256 * 2**20
TIMEOUT_SECONDS = 60.0


@dataclass
class Fault:
    """What goes wrong at a step, and how often still."""

    step: str
    times: int
    status: int | None = None
    code: str | None = None
    message: str = "Internal Error"
    hang: float | None = None
    cut: int | None = None
    lost: bool = False
    gone: bool = False


class HubServer:
    """The server: a context manager whose `url` is the endpoint."""

    def __init__(self, port: int = 0):
        self.hub = Hub()
        self.faults: list[Fault] = []
        self.log: list[dict[str, Any]] = []
        self.closing = threading.Event()
        self.secret = secrets.token_hex(8)
        self._servers = [_Server(("127.0.0.1", each), self) for each in (port, 0)]
        self.url, self.storage_url = (f"http://127.0.0.1:{server.server_address[1]}" for server in self._servers)
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()

    def __enter__(self) -> HubServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop at once, also where an answer is being held back."""
        self.closing.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def environment(self, home: str | os.PathLike, token: str | None = "hf_writer", **more: str) -> dict[str, str]:
        """The environment of a client process: its endpoint, its cache under `home`, its token."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        ours = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_OFFLINE": "0",
            "NO_PROXY": "127.0.0.1",
            "OMP_NUM_THREADS": "1",
        }
        return {**kept, **ours, **({"HF_TOKEN": token} if token else {}), **more}

    def fault(self, step: str, *, times: int = 1, **what: Any) -> Fault:
        """Make the next `times` requests of a step go wrong.

        Args:
            step: A name in hub_routes.ROUTES ("commit", "lfs_upload", "resolve", ...), or "*" for every step.
            times: How often.
            what: `status` (with `code` and `message` for the error headers), `hang` (seconds without an answer),
                `cut` (bytes of the upload or download after which the connection breaks), `lost` (the work is done but
                its answer never comes), or `gone` (the repository vanishes first).
        """
        if step != "*" and step not in {name for name, _, _, _ in ROUTES}:
            raise ValueError(f"no step {step!r}")
        self.faults.append(Fault(step, times, **what))
        return self.faults[-1]

    def add(self, repo_id: str, files: dict[str, bytes], type: str = "model", **settings: Any) -> Commit:
        """Put files into a repository without asking anybody; it is made if it is not there."""
        with self.hub.lock:
            repo = self.hub.repositories.get((type, repo_id))
            if repo is None:
                repo = self.hub.create(type, repo_id, User(repo_id.split("/")[0]))
            for name, value in settings.items():
                setattr(repo, name, value)
            head = repo.find("main")
            added = {path: File(data, is_large(path, len(data), data[:512])) for path, data in files.items()}
            self.hub.large_files.update({file.sha256: file.content for file in added.values() if file.is_lfs})
            commit = repo.add_commit(head, {**head.files, **added}, "Upload")
            repo.branches["main"] = commit.id
            return commit

    def files(self, repo_id: str, revision: str = "main", type: str = "model") -> dict[str, bytes]:
        """What a repository holds, without the .gitattributes that every one begins with."""
        files = self.hub.repositories[type, repo_id].find(revision).files
        return {path: file.content for path, file in sorted(files.items()) if path != ".gitattributes"}

    def commits(self, repo_id: str, revision: str = "main", type: str = "model") -> list[str]:
        """Titles of its commits, the newest first, without the one that every repository begins with."""
        repo = self.hub.repositories[type, repo_id]
        return [commit.title for commit in repo.history(repo.find(revision))][:-1]

    def signed(self, oid: str) -> str:
        """Where a large file is put and got."""
        signature = hashlib.sha256((self.secret + oid).encode()).hexdigest()[:16]
        return f"{self.storage_url}/objects/{oid}?signature={signature}"

    def take_fault(self, step: str) -> Fault | None:
        """The fault that this request has to suffer, if any."""
        with self.hub.lock:
            fault = next((each for each in self.faults if each.step in (step, "*") and each.times > 0), None)
            if fault is not None:
                fault.times -= 1
            return fault


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], hub_server: HubServer):
        super().__init__(address, _Handler)
        self.hub_server = hub_server

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no news; anything else is a mistake in this file."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = TIMEOUT_SECONDS
    server: _Server

    def _serve(self) -> None:
        hub_server = self.server.hub_server
        url = urlsplit(self.path)
        step, serve, groups = route(self.command, url.path)
        entry = {"method": self.command, "path": self.path, "step": step, "status": 0}
        hub_server.log.append(entry)
        fault = hub_server.take_fault(step) if step else None
        try:
            if len(hub_server.log) > MAX_REQUESTS:
                raise HubError(503, None, "This server has answered enough")
            if fault is not None and fault.cut is not None and self.command in ("POST", "PUT"):
                self.rfile.read(min(fault.cut, int(self.headers.get("Content-Length", fault.cut))))
                return self._hang_up()
            body = self._read_body()
            if fault is not None and not self._survives(fault, hub_server, groups):
                return None
            user = hub_server.hub.user(self.headers.get("Authorization"))
            answer = serve(hub_server, Request(user, body, groups, dict(parse_qsl(url.query, True)), self.headers))
        except HubError as error:
            answer = _error_answer(error)
        entry["status"] = answer.status
        if fault is not None and fault.lost:
            return self._hang_up()
        self._send(answer, fault.cut if fault is not None else None)
        return None

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _survives(self, fault: Fault, hub_server: HubServer, groups: dict[str, str]) -> bool:
        """Whether the request is still to be served; raises where the fault is an answer."""
        if fault.hang is not None:
            hub_server.closing.wait(min(fault.hang, TIMEOUT_SECONDS))
            self._hang_up()
            return False
        if fault.gone:
            with hub_server.hub.lock:
                type = (groups["type"] or "models").removesuffix("s")
                hub_server.hub.repositories.pop((type, unquote(groups["id"])), None)
        if fault.status is not None:
            limits = {"RateLimit": '"api";r=0;t=1', "RateLimit_Policy": '"fixed window";"api";q=500;w=300'}
            raise HubError(fault.status, fault.code, fault.message, **(limits if fault.status == 429 else {}))
        return True

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts: list[bytes] = []
            while size := int(self.rfile.readline(64).split(b";")[0], 16):
                if sum(map(len, parts)) + size > MAX_BODY_BYTES:
                    raise HubError(413, None, "Payload Too Large")
                parts.append(self.rfile.read(size))
                self.rfile.readline(8)
            self.rfile.readline(8)
            return b"".join(parts)
        size = int(self.headers.get("Content-Length") or 0)
        if size > MAX_BODY_BYTES:
            self.close_connection = True
            raise HubError(413, None, "Payload Too Large")
        body = self.rfile.read(size)
        if len(body) < size:
            raise ConnectionError("the client hung up")
        return body

    def _send(self, answer: Answer, cut: int | None) -> None:
        content = answer.content
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
            answer.headers["Content-Type"] = "application/json"
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", answer.headers.get("Content-Length", str(len(content))))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content if cut is None else content[:cut])
        if cut is not None:
            self._hang_up()

    def _hang_up(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *args: Any) -> None:
        """Quiet: HubServer.log keeps what was asked."""


def _error_answer(error: HubError) -> Answer:
    headers = {"X-Error-Message": error.message, "X-Request-Id": "local", **error.headers}
    if error.code:
        headers["X-Error-Code"] = error.code
    return Answer({"error": error.message}, error.status, headers)


def main(argv: list[str] | None = None) -> int:
    """Serve until Ctrl-C, or until the time is over."""
    parser = argparse.ArgumentParser(description="A Hub on this machine for trying out pushes and loading by name.")
    parser.add_argument("--port", type=int, default=0, help="the port on 127.0.0.1 (default: a free one)")
    parser.add_argument("--home", default="hub-home", help="what to recommend as HF_HOME (default: hub-home)")
    parser.add_argument("--seconds", type=float, default=3600, help="how long to serve at most (default: an hour)")
    args = parser.parse_args(argv)
    with HubServer(args.port) as server:
        environment = server.environment(Path(args.home).absolute())
        names = ("HF_ENDPOINT", "HF_HOME", "HF_TOKEN", "HF_HUB_DISABLE_XET")
        print("export " + " ".join(f"{name}={environment[name]}" for name in names), flush=True)
        try:
            time.sleep(args.seconds)
        except KeyboardInterrupt:
            print("closed", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
