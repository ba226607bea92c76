"""A model folder or a data set to the Hub: one commit, whole or not at all, that can be repeated."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils.sha import git_hash, sha_fileobj

from pianogen_hf.hub.errors import HubError, explain_push, is_unanswered


@dataclass(frozen=True)
class Upload:
    """One file that goes up.

    Attributes:
        path: where in the repository.
        source: the local file, or its content.
        size: in bytes.
    """

    path: str
    source: Path | bytes
    size: int


@dataclass(frozen=True)
class Pushed:
    """What the Hub holds after a push.

    Attributes:
        repo_id: with the namespace.
        revision: where the files are to be had: the commit, or the pull request.
        commit: its hash.
        url: the page to look at.
        changed: paths that this push wrote, none if all were there already.
        removed: paths that it took away.
    """

    repo_id: str
    revision: str
    commit: str
    url: str
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """What happened, in one line."""
        if not self.changed and not self.removed:
            return f"nothing changed: {self.repo_id} holds these files already ({self.url}, commit {self.commit[:12]})"
        removed = f", {len(self.removed)} removed" if self.removed else ""
        return f"pushed: {len(self.changed)} files{removed} in one commit, {self.commit[:12]}: {self.url}"


class Destination:
    """A repository on the Hub, made if need be, and the revision of it that is pushed to.

    Args:
        repo_id: `USER/NAME`, or `NAME` for one of your own.
        private: make it private; refused if it exists and is public.
        revision: a branch, made if need be.
        create_pr: open a pull request instead of changing the branch.
        token: instead of the one that `hf auth login` or HF_TOKEN has given.
        repo_type: "model", "dataset" or "space".

    Raises:
        HubError: if the Hub can't be reached or refuses it.
    """

    def __init__(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        token: str | None = None,
        repo_type: str = "model",
    ):
        self.api = HfApi(token=token, library_name="pianogen_hf")
        self.repo_id, self.revision, self.create_pr = repo_id, revision, create_pr
        self.repo_type = repo_type
        try:
            self.repo_id = self.api.create_repo(
                repo_id,
                private=private or None,
                exist_ok=True,
                repo_type=repo_type,
                space_sdk="gradio" if repo_type == "space" else None,
            ).repo_id
            info = self.api.repo_info(self.repo_id, repo_type=repo_type)
        except Exception as error:
            raise self._error(error) from error
        if private and not info.private:
            raise HubError(
                f"{self.repo_id} exists and is public: everybody would see what you push. Make it private on its page, "
                "leave out --private, or choose another name"
            )

    def push(self, uploads: Sequence[Upload], message: str, is_part: Callable[[str], bool]) -> Pushed:
        """Make the revision hold these files, in one commit; what it holds already is not sent.

        Args:
            uploads: the files.
            message: what the commit is called.
            is_part: whether a file that is there belongs to an earlier model or data set, and is removed unless it is
                among the uploads; all others stay.

        Raises:
            HubError: if that did not happen; nothing has changed on the Hub then.
        """
        try:
            head, there = self._remote()
            changed = [each for each in uploads if not _is_same(each, there.get(each.path))]
            gone = sorted({path for path in there if is_part(path)} - {each.path for each in uploads})
            if not changed and not gone:
                return Pushed(self.repo_id, head, head, self.url)
            commit = self._commit(uploads, changed, gone, message, head)
        except Exception as error:
            raise self._error(error) from error
        return commit

    def _commit(
        self, uploads: Sequence[Upload], changed: Sequence[Upload], gone: Sequence[str], message: str, head: str
    ) -> Pushed:
        paths = tuple(each.path for each in changed)
        operations: list[Any] = [
            CommitOperationAdd(each.path, each.source if isinstance(each.source, bytes) else str(each.source))
            for each in changed
        ]
        operations += [CommitOperationDelete(path) for path in gone]
        try:
            made = self.api.create_commit(
                self.repo_id,
                operations,
                repo_type=self.repo_type,
                commit_message=message,
                revision=self.revision,
                create_pr=self.create_pr,
                parent_commit=head,  # what was compared with: a push in between must not be half overwritten
            )
        except Exception as error:
            if not is_unanswered(error) or self.create_pr:
                raise
            # The commit may have been made, and only its answer lost: look, and do not make the user guess.
            commit, there = self._remote()
            if commit == head or not all(_is_same(each, there.get(each.path)) for each in uploads):
                raise
            return Pushed(self.repo_id, commit, commit, self.url, paths, tuple(gone))
        url = made.pr_url or self.url
        return Pushed(self.repo_id, made.pr_revision or made.oid, made.oid, url, paths, tuple(gone))

    def _remote(self) -> tuple[str, dict[str, RepoFile]]:
        """The commit that the revision is at, and its files; a branch that is not there is made."""
        try:
            info = self.api.repo_info(self.repo_id, revision=self.revision, repo_type=self.repo_type)
        except RevisionNotFoundError:
            if self.create_pr or str(self.revision).startswith("refs/"):
                raise
            self.api.create_branch(self.repo_id, branch=str(self.revision), exist_ok=True, repo_type=self.repo_type)
            info = self.api.repo_info(self.repo_id, revision=self.revision, repo_type=self.repo_type)
        listed = self.api.list_repo_tree(self.repo_id, recursive=True, revision=info.sha, repo_type=self.repo_type)
        return str(info.sha), {each.path: each for each in listed if isinstance(each, RepoFile)}

    @property
    def url(self) -> str:
        """The page to look at."""
        kind = "" if self.repo_type == "model" else f"{self.repo_type}s/"
        page = f"{self.api.endpoint}/{kind}{self.repo_id}"
        return page if self.revision in (None, "main") else f"{page}/tree/{self.revision}"

    def _error(self, error: Exception) -> HubError:
        if isinstance(error, HubError):
            return error
        if not isinstance(error, HfHubHTTPError | OSError | ValueError | RuntimeError) and not is_unanswered(error):
            raise error  # a mistake of ours
        return HubError(f"not pushed to {self.repo_id}: {explain_push(error, self.repo_id, self.revision)}")


def _is_same(upload: Upload, there: RepoFile | None) -> bool:
    """Whether the Hub has this very content under this path."""
    if there is None or there.size != upload.size:
        return False
    if there.lfs is None:
        content = upload.source if isinstance(upload.source, bytes) else Path(upload.source).read_bytes()
        return git_hash(content) == there.blob_id
    if isinstance(upload.source, bytes):
        return hashlib.sha256(upload.source).hexdigest() == there.lfs.sha256
    with open(upload.source, "rb") as file:
        return sha_fileobj(file).hex() == there.lfs.sha256
