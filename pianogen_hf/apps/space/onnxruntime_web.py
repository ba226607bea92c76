"""ONNX Runtime for browsers (onnxruntime-web by Microsoft, MIT licence), as npm has it: one version, by its hashes."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from pianogen_hf.errors import PianogenError

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"  # the one that the page is tested with
# SHA-256 of what a page needs of it: the library, what loads its WebAssembly, and the WebAssembly itself.
FILES = {
    "ort.wasm.min.mjs": "219e6a1fc8a9938268d18efca3c91d310bd2f4a59bbd13744df5b2b7fc6cee3b",
    "ort-wasm-simd-threaded.mjs": "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
_FOLDER = "dist"  # in the package
_NPM_SEC = 600


class RuntimeMissingError(PianogenError):
    """The runtime can't be had; the message is one line that says what to do."""


def runtime_files(given: Path | None = None) -> dict[str, bytes]:
    """The files of the runtime, by name.

    Args:
        given: the package's folder, or its file (.tgz); None to let npm fetch it.

    Raises:
        RuntimeMissingError: if it is not there, or not the version that is wanted.
    """
    if given is None:
        with tempfile.TemporaryDirectory() as folder:
            return _checked(_packed_files(_fetched(Path(folder))), "what npm gave")
    if given.is_dir():
        return _checked(_files_in(given), str(given))
    if given.is_file():
        return _checked(_packed_files(given), str(given))
    raise RuntimeMissingError(f"--onnxruntime {given} is not there: {_advice()}")


def _advice() -> str:
    return f"`npm pack {PACKAGE}@{VERSION}` on a machine with a network gives the file for --onnxruntime"


def _fetched(folder: Path) -> Path:
    """The package's file, fetched by npm from whatever registry it is set to."""
    npm = shutil.which("npm")
    if npm is None:
        raise RuntimeMissingError(f"the page needs {PACKAGE} {VERSION}, and there is no npm to fetch it: {_advice()}")
    command = [npm, "pack", f"{PACKAGE}@{VERSION}", "--silent", "--ignore-scripts"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_NPM_SEC)
        said = done.stderr.strip().splitlines()
    except (OSError, subprocess.TimeoutExpired) as error:
        said = [str(error)]
    found = next(folder.glob("*.tgz"), None)
    if found is None:
        reason = said[0][:150] if said else "npm gave nothing"
        raise RuntimeMissingError(f"npm can't fetch {PACKAGE} {VERSION} ({reason}): {_advice()}")
    return found


def _packed_files(path: Path) -> dict[str, bytes]:
    try:
        with tarfile.open(path) as archive:
            members = {Path(each.name).name: each for each in archive if Path(each.name).parent.name == _FOLDER}
            opened = {name: archive.extractfile(members[name]) for name in FILES if name in members}
            return {name: file.read() for name, file in opened.items() if file is not None}
    except (tarfile.TarError, EOFError) as error:
        raise RuntimeMissingError(f"{path} is no package of npm: {_advice()}") from error


def _files_in(folder: Path) -> dict[str, bytes]:
    at = folder / _FOLDER if (folder / _FOLDER).is_dir() else folder
    return {name: (at / name).read_bytes() for name in FILES if (at / name).is_file()}


def _checked(files: dict[str, bytes], where: str) -> dict[str, bytes]:
    for name, digest in FILES.items():
        if name not in files:
            raise RuntimeMissingError(f"{where} has no {_FOLDER}/{name}: {_advice()}")
        if hashlib.sha256(files[name]).hexdigest() != digest:
            raise RuntimeMissingError(f"{where} is not {PACKAGE} {VERSION}, whose {name} is another file: {_advice()}")
    return files
