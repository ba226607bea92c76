"""What went wrong between here and the Hub, in words that say what to do."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from typing import Any

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils._http import default_client_factory

from pianogen_hf.errors import PianogenError, one_line


class HubError(PianogenError):
    """The Hub did not do what was asked; the message is one line that says what to do."""


def limit_waiting(seconds: float) -> None:
    """Let no request of this process wait without end, as the client library does where it is not told otherwise.

    Args:
        seconds: how long to wait for a connection, and for every further piece of an answer.
    """

    def bounded(request: Any) -> None:
        given = request.extensions.get("timeout", {})
        names = ("connect", "read", "write", "pool")
        request.extensions["timeout"] = {name: given.get(name) or seconds for name in names}

    def client() -> Any:
        made = default_client_factory()
        made.event_hooks = {**made.event_hooks, "request": [*made.event_hooks["request"], bounded]}
        return made

    huggingface_hub.set_client_factory(client)


def explain_loading(error: Exception, name: str, revision: str | None = None) -> str:
    """Why a model could not be had by its name: one line.

    Args:
        error: what the client library raised.
        name: the model.
        revision: the branch, tag or commit that was asked for.
    """
    page = f"{constants.ENDPOINT}/{name}"
    is_logged_in = huggingface_hub.get_token() is not None
    if _caused_by(error, HFValidationError):
        return f"no model {name!r}: it is no folder here, and no name that a model can have on the Hub"
    fault = _token_fault(error)
    if fault:
        return f"model {name!r}: {fault}"
    if _caused_by(error, GatedRepoError):
        log_in = "with the account of your token" if is_logged_in else "log in with `hf auth login` (or set HF_TOKEN)"
        return f"model {name!r} is gated: accept its terms at {page}, {log_in}, and repeat the command"
    if _caused_by(error, RepositoryNotFoundError):
        who = "your token does not let you see" if is_logged_in else "needs a token (`hf auth login`, or HF_TOKEN)"
        return (
            f"no model {name!r}: it is no folder here, and the Hub has none of that name, or a private one that {who}"
        )
    if _caused_by(error, RevisionNotFoundError):
        return f"model {name!r} has no revision {revision!r}: {page}/tree/main shows its branches and tags"
    if constants.is_offline_mode():
        return (
            f"no model {name!r}: it is no folder here, and HF_HUB_OFFLINE is set while the cache does not hold "
            f"{_called(revision)} whole: unset it and load the model once"
        )
    fault = _common_fault(error)
    if fault:
        cache = f"the cache does not hold {_called(revision)} whole"
        return f"no model {name!r}: it is no folder here, {cache}, and the Hub can't be asked: {fault}"
    return f"model {name!r} can't be had: {one_line(error)}"


def explain_push(error: Exception, repo_id: str, revision: str | None = None) -> str:
    """Why a push did not happen, and what to do: one line, without saying what the Hub holds now."""
    status = status_of(error)
    login = "log in with `hf auth login`, or give --token or HF_TOKEN"
    fault = _token_fault(error)
    if fault:
        return fault
    if _caused_by(error, HFValidationError):
        return f"{repo_id!r} is no name that a repository can have: say --repo USER/NAME"
    if status == 401:
        return f"the Hub wants to know who you are: {login}"
    if status == 403:
        return f"your token may not write there ({_message(error)}): take one with the right to write, or --create_pr"
    if _caused_by(error, RevisionNotFoundError):
        return f"it has no revision {revision!r}"
    if status == 404:
        return "the repository is not there any more, or your token does not let you see it"
    if status in (409, 412):
        return "somebody else has changed it meanwhile: repeat the command"
    if status in (400, 422):
        return f"the Hub refuses it: {_message(error)}"
    return _common_fault(error) or one_line(error)


def status_of(error: BaseException) -> int | None:
    """The status of the Hub's answer, if there was one."""
    for each in _chain(error):
        if getattr(each, "response", None) is not None:
            return each.response.status_code  # type: ignore[attr-defined]
    return None


def is_unanswered(error: BaseException) -> bool:
    """Whether nobody knows what became of the request: the connection broke, or the Hub failed while it worked."""
    return _is_transport(error) or (status_of(error) or 0) >= 500


def _common_fault(error: BaseException) -> str | None:
    """What may happen to any request."""
    status = status_of(error)
    if _caused_by(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set: unset it"
    if status == 429:
        return "the Hub has had too many requests from here: wait some minutes, then repeat the command"
    if status is not None and status >= 500:
        return f"the Hub has a fault of its own ({status}): try again later"
    names = {base.__name__ for each in _chain(error) for base in type(each).__mro__}
    if "TimeoutException" in names:
        return f"{constants.ENDPOINT} does not answer: try again later"
    if "ConnectError" in names or "ProxyError" in names:
        return f"no connection to {constants.ENDPOINT}: is there a network?"
    if _is_transport(error):
        return "the connection broke: repeat the command"
    return None


def reload_fault(name: str, revision: str | None, stderr: str) -> str:
    """What is wrong where a process could not load what was pushed, by its last words."""
    reason = last_line(stderr)
    if os.strerror(errno.ENOSPC) in reason:  # which says nothing of what was pushed
        place = tempfile.gettempdir()
        return f"pushed, but not checked: no space left in {place} to load it anew: make room, and repeat the command"
    return f"pushed, but not loadable from {name} at {revision}: {reason}"


def last_line(text: str) -> str:
    """The end of what a process wrote, as one line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no reason given"


def _token_fault(error: BaseException) -> str | None:
    """A token that is none any more. The client library takes that for a missing repository."""
    message = _message(error)
    if status_of(error) == 401 and ("expired" in message or "credentials" in message):
        place = f"{constants.ENDPOINT}/settings/tokens"
        return f"your token is expired or wrong: make one at {place}, then `hf auth login` or set HF_TOKEN"
    return None


def _message(error: BaseException) -> str:
    """The Hub's own words."""
    for each in _chain(error):
        response = getattr(each, "response", None)
        if response is not None:
            message = response.headers.get("X-Error-Message") or getattr(each, "server_message", None)
            return " ".join(str(message or response.status_code).split())[:200]
    return ""


def _is_transport(error: BaseException) -> bool:
    """Whether it is one of the HTTP library's; by name, since the client library has changed that one twice."""
    return any(base.__name__ == "TransportError" for each in _chain(error) for base in type(each).__mro__)


def _caused_by(error: BaseException, kind: type[BaseException]) -> bool:
    return any(isinstance(each, kind) for each in _chain(error))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what caused it."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        yield error
        error = error.__cause__ or error.__context__


def _called(revision: str | None) -> str:
    return f"its revision {revision!r}" if revision else "it"
