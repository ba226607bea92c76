"""What a Hub answers at each address. hub_server.py listens, and lets things go wrong."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, unquote

import yaml
from hub_repositories import Commit, File, HubError, Repository, User, is_large

if TYPE_CHECKING:
    from hub_server import HubServer

PAGE_SIZE = 1000


@dataclass
class Request:
    """One request, its address taken apart."""

    user: User | None
    body: bytes
    groups: dict[str, str]
    query: dict[str, str]
    headers: Any

    @property
    def repo(self) -> tuple[str, str]:
        return (self.groups["type"] or "models").removesuffix("s"), unquote(self.groups["id"])

    @property
    def revision(self) -> str:
        return unquote(self.groups.get("rev") or "main")

    @property
    def json(self) -> dict:
        try:
            return json.loads(self.body or b"{}")
        except ValueError as error:
            raise HubError(400, None, "The body is not JSON") from error


@dataclass
class Answer:
    """What is sent back; `content` may be JSON."""

    content: Any = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


def route(method: str, path: str) -> tuple[str | None, Callable[[HubServer, Request], Answer], dict[str, str]]:
    """The step, what answers it, and the parts of its address."""
    for step, methods, pattern, serve in ROUTES:
        if method in methods.split() and (match := re.fullmatch(pattern, path)):
            return step, serve, match.groupdict()
    return None, _nothing_here, {}


def _nothing_here(server: HubServer, request: Request) -> Answer:
    raise HubError(404, None, "Sorry, we can't find the page you are looking for.")


def _whoami(server: HubServer, request: Request) -> Answer:
    if request.user is None:
        raise HubError(401, None, "Invalid username or password.")
    role = "write" if request.user.can_write else "read"
    return Answer(
        {
            "type": "user",
            "name": request.user.name,
            "fullname": request.user.name,
            "orgs": [{"name": name, "type": "org"} for name in request.user.organizations],
            "auth": {"type": "access_token", "accessToken": {"displayName": request.user.name, "role": role}},
        }
    )


def _create(server: HubServer, request: Request) -> Answer:
    told = request.json
    type = told.get("type") or "model"
    owner = told.get("organization") or (request.user.name if request.user else "")
    id = f"{owner}/{told['name']}"
    url = f"{server.url}/{_prefix(type)}{id}"
    private = told.get("visibility") == "private" or bool(told.get("private"))
    try:
        server.hub.create(type, id, request.user, private, **({"sdk": told["sdk"]} if "sdk" in told else {}))
    except HubError as error:
        if error.status != 409:
            raise
        return Answer({"error": f"{error.message}: {id}", "url": url}, 409, {"X-Error-Message": error.message})
    return Answer({"url": url, "name": id, "id": secrets.token_hex(12)})


def _delete(server: HubServer, request: Request) -> Answer:
    told = request.json
    type, id = told.get("type") or "model", f"{told.get('organization') or ''}/{told['name']}"
    if id.startswith("/") and request.user is not None:
        id = request.user.name + id
    with server.hub.lock:
        server.hub.writable(type, id, request.user)
        del server.hub.repositories[type, id]
    return Answer({})


def _settings(server: HubServer, request: Request) -> Answer:
    repo = server.hub.writable(*request.repo, request.user)
    if "visibility" in request.json:
        repo.private = request.json["visibility"] == "private"
    repo.gated = request.json.get("gated", repo.gated)
    return Answer({})


def _info(server: HubServer, request: Request) -> Answer:
    repo = server.hub.readable(*request.repo, request.user)
    commit = repo.find(request.revision)
    blobs = request.query.get("blobs", "").lower() in ("true", "1")
    siblings = [{"rfilename": path, **(_blob(file) if blobs else {})} for path, file in sorted(commit.files.items())]
    first = repo.commits[next(iter(repo.commits))]
    return Answer(
        {
            "_id": first.id[:24],
            "id": repo.id,
            "modelId": repo.id,
            "author": repo.id.split("/")[0],
            "sha": commit.id,
            "private": repo.private,
            "gated": repo.gated,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "createdAt": first.date,
            "lastModified": commit.date,
            "cardData": _front_matter(commit.files["README.md"].content) if "README.md" in commit.files else {},
            "siblings": siblings,
            **repo.settings,
        }
    )


def _blob(file: File) -> dict[str, Any]:
    size = len(file.content)
    lfs = {"sha256": file.sha256, "oid": file.sha256, "size": size, "pointerSize": len(file.pointer)}
    return {"size": size, "blobId": file.blob_id, **({"lfs": lfs} if file.is_lfs else {})}


def _front_matter(readme: bytes) -> dict[str, Any]:
    match = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", readme.decode(errors="replace"), flags=re.DOTALL)
    try:
        data = yaml.safe_load(match[1]) if match else {}
    except yaml.YAMLError as error:
        raise HubError(400, None, f"README.md: {' '.join(str(error).split())}") from error
    return json.loads(json.dumps(data or {}, default=str))


def _validate(server: HubServer, request: Request) -> Answer:
    try:
        data = _front_matter(request.json["content"].encode())
    except HubError as error:
        return Answer({"errors": [{"message": error.message}], "warnings": []}, 400)
    warning = {"message": "empty or missing yaml metadata in repo card"}
    return Answer({"errors": [], "warnings": [] if data else [warning]})


def _tree(server: HubServer, request: Request) -> Answer:
    repo = server.hub.readable(*request.repo, request.user)
    commit = repo.find(request.revision)
    folder = unquote(request.groups.get("path") or "").strip("/")
    entries = _entries(commit, folder, request.query.get("recursive", "").lower() in ("true", "1"))
    if folder and not entries:
        raise HubError(404, "EntryNotFound", f"{folder} does not exist on {request.revision}")
    begin = int(request.query.get("cursor", 0))
    headers = {}
    if begin + PAGE_SIZE < len(entries):
        query = "&".join(f"{k}={quote(v)}" for k, v in {**request.query, "cursor": str(begin + PAGE_SIZE)}.items())
        place = f"/api/{repo.type}s/{repo.id}/tree/{quote(request.revision, safe='')}"
        headers["Link"] = f'<{server.url}{place}{"/" + quote(folder, safe="") if folder else ""}?{query}>; rel="next"'
    page = entries[begin : begin + PAGE_SIZE]
    if request.query.get("expand", "").lower() in ("true", "1"):
        page = [{**each, "lastCommit": _last_commit(commit)} for each in page]
    return Answer(page, headers=headers)


def _last_commit(commit: Commit) -> dict[str, str]:
    return {"id": commit.id, "title": commit.title, "date": commit.date}


def _entries(commit: Commit, folder: str, recursive: bool) -> list[dict[str, Any]]:
    """Files and folders under a folder, by path."""
    within = f"{folder}/" if folder else ""
    found: dict[str, dict[str, Any]] = {}
    for path, file in commit.files.items():
        if not path.startswith(within):
            continue
        parts = path[len(within) :].split("/")
        for depth in range(1, len(parts)):
            if depth == 1 or recursive:
                parent = within + "/".join(parts[:depth])
                oid = hashlib.sha1((commit.id + parent).encode()).hexdigest()
                found[parent] = {"type": "directory", "oid": oid, "size": 0, "path": parent}
        if len(parts) == 1 or recursive:
            found[path] = _entry(path, file)
    return [found[path] for path in sorted(found)]


def _entry(path: str, file: File) -> dict[str, Any]:
    blob = _blob(file)
    return {"type": "file", "oid": blob.pop("blobId"), "path": path, **blob}


def _paths_info(server: HubServer, request: Request) -> Answer:
    commit = server.hub.readable(*request.repo, request.user).find(request.revision)
    if "json" in request.headers.get("Content-Type", ""):
        told = request.json
        paths, expand = told.get("paths", []), bool(told.get("expand"))
    else:
        pairs = parse_qsl(request.body.decode(), True)
        paths = [value for name, value in pairs if name == "paths"]
        expand = ("expand", "true") in [(name, value.lower()) for name, value in pairs]
    everything = {each["path"]: each for each in _entries(commit, "", recursive=True)}
    found = [everything[path.strip("/")] for path in paths if path.strip("/") in everything]
    return Answer([{**each, "lastCommit": _last_commit(commit)} for each in found] if expand else found)


def _refs(server: HubServer, request: Request) -> Answer:
    repo = server.hub.readable(*request.repo, request.user)

    def told(folder: str, refs: dict[str, str]) -> list[dict[str, str]]:
        return [{"name": name, "ref": f"refs/{folder}/{name}", "targetCommit": id} for name, id in refs.items()]

    answer = {"branches": told("heads", repo.branches), "converts": [], "tags": told("tags", repo.tags)}
    if "include_prs" in request.query:
        answer["pullRequests"] = told("pr", {str(number): id for number, id in repo.pull_requests.items()})
    return Answer(answer)


def _commits(server: HubServer, request: Request) -> Answer:
    repo = server.hub.readable(*request.repo, request.user)
    history = repo.history(repo.find(request.revision))
    return Answer(
        [
            {"id": c.id, "title": c.title, "message": c.message, "date": c.date, "authors": [{"user": c.author}]}
            for c in history
        ]
    )


def _branch(server: HubServer, request: Request) -> Answer:
    repo = server.hub.writable(*request.repo, request.user)
    with server.hub.lock:
        if request.revision in repo.branches:
            raise HubError(409, None, f"Reference already exists: {request.revision}")
        repo.branches[request.revision] = repo.find(request.json.get("startingPoint") or "main").id
    return Answer({})


def _delete_branch(server: HubServer, request: Request) -> Answer:
    repo = server.hub.writable(*request.repo, request.user)
    if request.revision == "main":
        raise HubError(403, None, "Cannot delete the main branch")
    if repo.branches.pop(request.revision, None) is None:
        raise HubError(404, "RevisionNotFound", f"Invalid rev id: {request.revision}")
    return Answer({})


def _tag(server: HubServer, request: Request) -> Answer:
    repo = server.hub.writable(*request.repo, request.user)
    with server.hub.lock:
        commit = repo.find(request.revision)
        if request.json["tag"] in repo.tags:
            raise HubError(409, None, f"Tag reference exists already: {request.json['tag']}")
        repo.tags[request.json["tag"]] = commit.id
    return Answer({})


def _delete_tag(server: HubServer, request: Request) -> Answer:
    repo = server.hub.writable(*request.repo, request.user)
    if repo.tags.pop(request.revision, None) is None:
        raise HubError(404, "RevisionNotFound", f"Invalid rev id: {request.revision}")
    return Answer({})


def _writable_for(server: HubServer, request: Request) -> Repository:
    """The repository of a commit; a pull request asks for no more than that one may read, and has a name."""
    if request.query.get("create_pr") and request.user is not None and request.user.can_write:
        return server.hub.readable(*request.repo, request.user)
    return server.hub.writable(*request.repo, request.user)


def _preupload(server: HubServer, request: Request) -> Answer:
    commit = _writable_for(server, request).find(request.revision)
    answers = []
    for told in request.json["files"]:
        path, there = told["path"], commit.files.get(told["path"])
        large = is_large(path, told["size"], base64.b64decode(told.get("sample", "")))
        oid = None if there is None or there.is_lfs != large else there.sha256 if large else there.blob_id
        mode = "lfs" if large else "regular"
        answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
    return Answer({"files": answers})


def _commit(server: HubServer, request: Request) -> Answer:
    repo = _writable_for(server, request)
    assert request.user is not None
    try:
        lines = [json.loads(line) for line in request.body.splitlines() if line.strip()]
    except ValueError as error:
        raise HubError(400, None, "The body is not a line of JSON after another") from error
    create_pr = bool(request.query.get("create_pr"))
    commit, number = server.hub.commit(repo, request.revision, lines, request.user, create_pr)
    page = f"{server.url}/{_prefix(repo.type)}{repo.id}"
    answer = {"success": True, "commitOid": commit.id, "commitUrl": f"{page}/commit/{commit.id}", "hookOutput": ""}
    if number is not None:
        answer["pullRequestUrl"] = f"{page}/discussions/{number}"
    return Answer(answer)


def _lfs_batch(server: HubServer, request: Request) -> Answer:
    repo = server.hub.readable(*request.repo, request.user)
    if request.user is None or not request.user.can_write:
        raise HubError(403, None, f"You don't have the rights to write to {repo.type} {repo.id}")
    verify = f"{server.url}/{_prefix(repo.type)}{repo.id}.git/info/lfs/objects/verify"
    answers = []
    for told in request.json["objects"]:
        answer = {"oid": told["oid"], "size": told["size"]}
        if told["oid"] not in server.hub.large_files:
            actions = {"upload": {"href": server.signed(told["oid"])}, "verify": {"href": verify}}
            answer = {**answer, "authenticated": True, "actions": actions}
        answers.append(answer)
    return Answer({"transfer": "basic", "objects": answers})


def _lfs_verify(server: HubServer, request: Request) -> Answer:
    content = server.hub.large_files.get(request.json["oid"])
    if content is None or len(content) != request.json["size"]:
        raise HubError(422, None, "The uploaded file is not what was announced")
    return Answer({})


def _lfs_upload(server: HubServer, request: Request) -> Answer:
    oid = _signed_oid(server, request)
    if hashlib.sha256(request.body).hexdigest() != oid:
        raise HubError(400, None, "The content does not have this SHA-256")
    server.hub.large_files[oid] = request.body
    return Answer(headers={"ETag": f'"{oid}"'})


def _lfs_download(server: HubServer, request: Request) -> Answer:
    oid = _signed_oid(server, request)
    if oid not in server.hub.large_files:
        raise HubError(404, None, "No such object")
    return _ranged(server.hub.large_files[oid], request, {"ETag": f'"{oid}"'})


def _signed_oid(server: HubServer, request: Request) -> str:
    oid = request.groups["oid"]
    if request.query.get("signature") != server.signed(oid).rsplit("=", 1)[1]:
        raise HubError(403, None, "The signature is not valid")
    return oid


def _resolve(server: HubServer, request: Request) -> Answer:
    repo = server.hub.readable(*request.repo, request.user, files=True)
    commit = repo.find(request.revision)
    path = unquote(request.groups["path"])
    headers = {"X-Repo-Commit": commit.id}
    if path not in commit.files:
        raise HubError(404, "EntryNotFound", "Entry not found", **{"X_Repo_Commit": commit.id})
    file = commit.files[path]
    if not file.is_lfs:
        return _ranged(file.content, request, {**headers, "ETag": f'"{file.blob_id}"'})
    headers |= {"X-Linked-ETag": f'"{file.sha256}"', "X-Linked-Size": str(len(file.content))}
    return Answer(b"", 302, {**headers, "Location": server.signed(file.sha256), "ETag": f'"{file.blob_id}"'})


def _ranged(content: bytes, request: Request, headers: dict[str, str]) -> Answer:
    headers = {**headers, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("Range", ""))
    if match is None or match[0] == "bytes=-":
        return Answer(content, headers=headers)
    size = len(content)
    begin = int(match[1]) if match[1] else max(size - int(match[2]), 0)
    end = min(int(match[2]), size - 1) if match[1] and match[2] else size - 1
    if begin >= size or end < begin:
        raise HubError(416, None, "Range Not Satisfiable", **{"Content_Range": f"bytes */{size}"})
    return Answer(content[begin : end + 1], 206, {**headers, "Content-Range": f"bytes {begin}-{end}/{size}"})


def _new_fault(server: HubServer, request: Request) -> Answer:
    try:
        server.fault(**request.json)
    except (TypeError, ValueError) as error:
        raise HubError(400, None, str(error)) from error
    return Answer({})


def _tell_log(server: HubServer, request: Request) -> Answer:
    return Answer(server.log)


def _prefix(type: str) -> str:
    return "" if type == "model" else f"{type}s/"


_REPO = r"/api/(?P<type>models|datasets|spaces)/(?P<id>(?:[^/]+/)?[^/]+)"
_PAGE = r"/(?:(?P<type>datasets|spaces)/)?(?P<id>(?:[^/]+/)?[^/]+)"
_REV = r"/(?P<rev>[^/]+)"
# Step, methods, address, what answers; the first that fits is taken.
ROUTES: list[tuple[str, str, str, Callable[[HubServer, Request], Answer]]] = [
    ("log", "GET", "/-/log", _tell_log),
    ("fault", "POST", "/-/fault", _new_fault),
    ("whoami", "GET", "/api/whoami-v2", _whoami),
    ("create", "POST", "/api/repos/create", _create),
    ("delete", "DELETE", "/api/repos/delete", _delete),
    ("validate", "POST", "/api/validate-yaml", _validate),
    ("settings", "PUT", rf"{_REPO}/settings", _settings),
    ("refs", "GET", rf"{_REPO}/refs", _refs),
    ("tree", "GET", rf"{_REPO}/tree{_REV}(?:/(?P<path>.*))?", _tree),
    ("commits", "GET", rf"{_REPO}/commits{_REV}", _commits),
    ("paths_info", "POST", rf"{_REPO}/paths-info{_REV}", _paths_info),
    ("preupload", "POST", rf"{_REPO}/preupload{_REV}", _preupload),
    ("commit", "POST", rf"{_REPO}/commit{_REV}", _commit),
    ("branch", "POST", rf"{_REPO}/branch{_REV}", _branch),
    ("delete_branch", "DELETE", rf"{_REPO}/branch{_REV}", _delete_branch),
    ("tag", "POST", rf"{_REPO}/tag{_REV}", _tag),
    ("delete_tag", "DELETE", rf"{_REPO}/tag{_REV}", _delete_tag),
    ("info", "GET", rf"{_REPO}/revision{_REV}", _info),
    ("info", "GET", _REPO, _info),
    ("lfs_upload", "PUT", "/objects/(?P<oid>[0-9a-f]{64})", _lfs_upload),
    ("lfs_download", "GET HEAD", "/objects/(?P<oid>[0-9a-f]{64})", _lfs_download),
    ("lfs_batch", "POST", rf"{_PAGE}\.git/info/lfs/objects/batch", _lfs_batch),
    ("lfs_verify", "POST", rf"{_PAGE}\.git/info/lfs/objects/verify", _lfs_verify),
    ("head", "HEAD", rf"{_PAGE}/resolve{_REV}/(?P<path>.+)", _resolve),
    ("resolve", "GET", rf"{_PAGE}/resolve{_REV}/(?P<path>.+)", _resolve),
]
