"""What a Hub keeps: users, repositories, revisions, commits, large files. Spoken to by hub_server.py."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

_LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".onnx", ".parquet", ".arrow", ".tar", ".zip", ".png", ".wav", ".mid")
_MAX_REGULAR_BYTES = 10 * 2**20


class HubError(Exception):
    """An answer that is no success: status, X-Error-Code (or None), X-Error-Message, more headers."""

    def __init__(self, status: int, code: str | None, message: str, **headers: str):
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


@dataclass(frozen=True)
class User:
    """Whoever a token belongs to."""

    name: str
    organizations: tuple[str, ...] = ()
    can_write: bool = True
    is_expired: bool = False

    def owns(self, repo_id: str) -> bool:
        return repo_id.split("/")[0] in (self.name, *self.organizations)


@dataclass(frozen=True)
class File:
    """One version of a file. Git knows a large one by its pointer, everybody else by its SHA-256."""

    content: bytes
    is_lfs: bool

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def pointer(self) -> bytes:
        text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.content)}\n"
        return text.encode()

    @cached_property
    def blob_id(self) -> str:
        blob = self.pointer if self.is_lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(blob) + blob).hexdigest()


@dataclass(frozen=True)
class Commit:
    """A state of all files."""

    id: str
    parent: str | None
    title: str
    message: str
    author: str
    date: str
    files: dict[str, File]


@dataclass
class Repository:
    """One repository; `gated` is False, "auto" or "manual", and `accepted` names who may see a gated one."""

    type: str
    id: str
    private: bool = False
    gated: bool | str = False
    accepted: set[str] = field(default_factory=set)
    settings: dict[str, Any] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pull_requests: dict[int, str] = field(default_factory=dict)

    def find(self, revision: str) -> Commit:
        """A commit by branch, tag, pull request, or (the beginning of) its id."""
        kind, _, name = revision.rpartition("/") if revision.startswith("refs/pr/") else ("", "", revision)
        if kind and name.isdigit() and int(name) in self.pull_requests:
            return self.commits[self.pull_requests[int(name)]]
        known = {**self.tags, **self.branches}
        if revision in known:
            return self.commits[known[revision]]
        matches = [id for id in self.commits if len(revision) >= 7 and id.startswith(revision)]
        if len(matches) != 1:
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return self.commits[matches[0]]

    def add_commit(
        self, parent: Commit | None, files: dict[str, File], title: str, message: str = "", author: str = ""
    ) -> Commit:
        """Store a commit; no revision points to it yet."""
        date = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
        parent_id = parent.id if parent else None
        seed = [parent_id, title, message, date, len(self.commits), sorted((p, f.blob_id) for p, f in files.items())]
        id = hashlib.sha1(json.dumps(seed).encode()).hexdigest()
        commit = Commit(id, parent_id, title, message, author, date, files)
        self.commits[id] = commit
        return commit

    def history(self, commit: Commit) -> Iterable[Commit]:
        """A commit and its ancestors, the newest first."""
        yield commit
        while commit.parent is not None:
            commit = self.commits[commit.parent]
            yield commit


class Hub:
    """All of it. Every change happens under one lock, and whole or not at all."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.large_files: dict[str, bytes] = {}
        self.users: dict[str, User] = {
            "hf_writer": User("pianogen", ("pianogen-org",)),
            "hf_reader": User("listener", can_write=False),
            "hf_other": User("somebody"),
            "hf_expired": User("pianogen", is_expired=True),
        }

    def user(self, authorization: str | None) -> User | None:
        """Whoever asks; None if nobody says so."""
        if not authorization:
            return None
        user = self.users.get(authorization.removeprefix("Bearer "))
        if user is None:
            raise HubError(401, None, "Invalid credentials in Authorization header")
        if user.is_expired:
            raise HubError(401, None, 'User Access Token "pianogen" is expired')
        return user

    def readable(self, type: str, id: str, user: User | None, files: bool = False) -> Repository:
        """A repository that this user may see; with `files`, whose files they may download."""
        repo = self.repositories.get((type, id))
        is_owner = user is not None and user.owns(id)
        if repo is None or (repo.private and not is_owner):
            raise HubError(404 if user else 401, "RepoNotFound", "Repository not found")
        if files and repo.gated and not is_owner and (user is None or user.name not in repo.accepted):
            terms = "You must have access to it and be authenticated to access it."
            if user is not None:
                terms = "Ask for access on its page."
            raise HubError(403 if user else 401, "GatedRepo", f"Access to {type} {id} is restricted. {terms}")
        return repo

    def writable(self, type: str, id: str, user: User | None) -> Repository:
        """A repository that this user may change."""
        repo = self.readable(type, id, user)
        self.check_rights(id, user, f"write to {type} {id}")
        return repo

    def check_rights(self, id: str, user: User | None, what: str) -> User:
        """Refuse users who may not change what lies in this namespace."""
        if user is None:
            raise HubError(401, None, "Invalid username or password.")
        if not user.can_write or not user.owns(id):
            raise HubError(403, None, f"You don't have the rights to {what}")
        return user

    def create(self, type: str, id: str, user: User | None, private: bool = False, **settings: Any) -> Repository:
        """A new repository with its first commit."""
        name = self.check_rights(id, user, "create a repository under this namespace").name
        with self.lock:
            if (type, id) in self.repositories:
                raise HubError(409, None, "You already created this repository")
            repo = Repository(type, id, private, settings=settings)
            attributes = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in _LFS_SUFFIXES)
            first = repo.add_commit(
                None, {".gitattributes": File(attributes.encode(), False)}, "initial commit", "", name
            )
            repo.branches["main"] = first.id
            self.repositories[type, id] = repo
            return repo

    def commit(
        self, repo: Repository, revision: str, lines: list[dict], author: User, create_pr: bool = False
    ) -> tuple[Commit, int | None]:
        """Apply the lines of a commit request, all or none; returns the commit, and its pull request's number."""
        with self.lock:
            head = repo.find(revision)
            if not create_pr and revision not in repo.branches and not revision.startswith("refs/pr/"):
                raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            header = next((line["value"] for line in lines if line["key"] == "header"), None)
            if header is None or not header.get("summary"):
                raise HubError(400, None, "Commit header with a summary is missing")
            parent = header.get("parentCommit")
            if parent and not create_pr and not head.id.startswith(parent):
                raise HubError(412, None, "A commit has happened since. Please refresh and try again.")
            base = repo.find(parent) if parent else head
            files = self._applied(dict(base.files), lines)
            commit = repo.add_commit(base, files, header["summary"], header.get("description", ""), author.name)
            if create_pr:
                number = len(repo.pull_requests) + 1
                repo.pull_requests[number] = commit.id
                return commit, number
            if revision in repo.branches:
                repo.branches[revision] = commit.id
            else:
                repo.pull_requests[int(revision.split("/")[-1])] = commit.id
            return commit, None

    def _applied(self, files: dict[str, File], lines: list[dict]) -> dict[str, File]:
        for line in lines:
            key, value = line["key"], line["value"]
            path = value.get("path", "")
            if key == "file":
                try:
                    files[path] = File(base64.b64decode(value["content"], validate=True), False)
                except (binascii.Error, KeyError) as error:
                    raise HubError(400, None, f"{path}: content is not base64") from error
            elif key == "lfsFile":
                if value["oid"] not in self.large_files:
                    raise HubError(400, None, f"LFS pointer pointed to a file that does not exist: {path}")
                files[path] = File(self.large_files[value["oid"]], True)
            elif key in ("deletedFile", "deletedFolder"):
                folder = path.rstrip("/") + "/"
                gone = [p for p in files if (p == path if key == "deletedFile" else p.startswith(folder))]
                if not gone:
                    raise HubError(404, "EntryNotFound", f"A file with this name doesn't exist: {path}")
                for each in gone:
                    del files[each]
            elif key != "header":
                raise HubError(400, None, f"Unknown operation {key}")
        return files


def is_large(path: str, size: int, sample: bytes) -> bool:
    """Whether git would not hold it: by its name, its size, or because it is no text."""
    try:
        sample.decode()
    except UnicodeDecodeError as error:
        if error.start < len(sample) - 3:  # a character that the sample's end has cut is no sign
            return True
    return path.endswith(_LFS_SUFFIXES) or size > _MAX_REGULAR_BYTES or b"\0" in sample
