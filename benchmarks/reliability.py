"""What becomes of a run that is killed, of a full disk, and of two processes at one cache.

`python benchmarks/reliability.py` prints the tables of reliability.md. Every process is forked from this one, which
has brought in all libraries, so that a run takes seconds. The full disk is a small tmpfs, which needs root on Linux.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

import pianogen_hf as pg
from pianogen_hf.commands import main
from pianogen_hf.training.stages import is_complete

SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "max_relative_distance": 32,
}
STEPS, SAVE_EVERY = 24, 3
_FORK = multiprocessing.get_context("fork")


# What is run ---------------------------------------------------------------------------------------------------------


def write_pieces(folder: Path, count: int = 24) -> Path:
    """Pieces of 200 notes."""
    for number in range(count):
        rng = np.random.default_rng(number)
        notes = pg.Notes.from_columns(
            onset_tick=np.cumsum(rng.integers(30, 240, 200)),
            duration_tick=rng.integers(60, 400, 200),
            pitch=rng.integers(40, 90, 200),
            velocity=rng.integers(30, 100, 200),
        )
        pg.write_midi(notes, folder / f"{number}.mid")
    return folder


def training(music: Path, folder: Path, cache: Path, *more: str) -> list[str]:
    """The command line of a training."""
    options = {
        "source": f"folder={music}",
        "output_dir": folder,
        "cache_dir": cache,
        "model_config": json.dumps(SIZES),
        "chunk_length": 129,
        "max_steps": STEPS,
        "save_steps": SAVE_EVERY,
        "per_device_train_batch_size": 4,
        "transpose": "-2 2",
        "report_to": "none",
        "bf16": "false",
        "disable_tqdm": "true",
    }
    words = [word for name, value in options.items() for word in (f"--{name}", *str(value).split(" "))]
    words[words.index("--model_config") + 1 : words.index("--chunk_length")] = [json.dumps(SIZES)]
    return ["train", *words, *more]


class Run:
    """A command in a process of its own."""

    def __init__(self, argv: list[str]) -> None:
        self.said = tempfile.NamedTemporaryFile(mode="w+", suffix=".log")  # noqa: SIM115
        self.process = _FORK.Process(target=_child, args=(argv, self.said.name))
        self.process.start()

    def end(self) -> tuple[int, str]:
        """Wait for it; its exit code and what it said on stderr."""
        self.process.join()
        return int(self.process.exitcode or 0), Path(self.said.name).read_text(errors="replace")

    def kill(self) -> None:
        """As when memory runs out or the power fails: nothing more is done."""
        with contextlib.suppress(ProcessLookupError):  # it has ended by itself
            os.kill(int(self.process.pid or 0), signal.SIGKILL)
        self.process.join()


def _child(argv: list[str], said: str) -> None:
    with open(said, "w") as file, contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(file):
        code = main(argv)
    os._exit(code)  # without what this process has left to do


def weights(folder: Path) -> bytes:
    """The bytes of the trained model."""
    return (folder / "model.safetensors").read_bytes()


# Killed --------------------------------------------------------------------------------------------------------------


def killed_at_random(place: Path, times: int, seed: int) -> Iterator[str]:
    """Rows of the table: where it was when it was killed, what it went on from, and whether the end is the same."""
    music, rng = write_pieces(place / "music"), random.Random(seed)
    began = time.monotonic()
    assert Run(training(music, place / "straight", place / "cache")).end()[0] == 0
    seconds, straight = time.monotonic() - began, weights(place / "straight")
    for number in range(times):
        folder, cache = place / f"run{number}", place / f"cache{number}"  # the data are prepared anew each time
        argv = training(music, folder, cache)
        run = Run(argv)
        moment = _wait_for_half_a_checkpoint(run, folder, rng) if number % 2 else rng.uniform(0, seconds)
        if not number % 2:
            time.sleep(moment)
        was_running = run.process.is_alive()
        run.kill()
        found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
        whole = [each for each in found if is_complete(each)]
        resumed = ["--resume_from_checkpoint", "true"] if whole else []
        code, said = Run([*argv, *resumed]).end()
        same = code == 0 and weights(folder) == straight
        state = "at its end" if not was_running else _where(folder, found, whole)
        origin = whole[-1].name if whole else "the beginning"
        yield f"| {number + 1} | {moment:.2f} s | {state} | {origin} | {'yes' if same else f'NO: {said[-200:]}'} |"
        for each in (folder, cache):
            shutil.rmtree(each, ignore_errors=True)


def _wait_for_half_a_checkpoint(run: Run, folder: Path, rng: random.Random) -> float:
    """Until a checkpoint that is drawn is being written; returns the seconds that took."""
    began, wanted = time.monotonic(), folder / f"checkpoint-{SAVE_EVERY * rng.randint(1, STEPS // SAVE_EVERY)}"
    while run.process.is_alive() and not wanted.exists():
        time.sleep(0.0005)
    time.sleep(rng.uniform(0, 0.02))
    return time.monotonic() - began


def _where(folder: Path, found: list[Path], whole: list[Path]) -> str:
    if len(whole) < len(found):
        files = len([path for path in found[-1].iterdir() if path.is_file()])
        return f"writing {found[-1].name} ({files} files)"
    return f"after {found[-1].name}" if found else "preparing" if not folder.exists() else "before a checkpoint"


# Full disk -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(megabytes: float) -> Iterator[Path]:
    """A file system of its own, in memory."""
    place = Path(tempfile.mkdtemp())
    size = f"size={int(megabytes * 2**20)}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)
        place.rmdir()


def filled(disk: Path, left: int) -> Path:
    """A file that leaves so many bytes of a disk."""
    ballast = disk / "ballast"
    ballast.write_bytes(b"\0" * max(shutil.disk_usage(disk).free - left, 0))
    return ballast


def full_disk(place: Path) -> Iterator[str]:
    """Rows: what was to be written, what was said, what was left, and whether it went on when there was room."""
    music = place / "music"
    straight = weights(place / "straight")
    with small_disk(40) as disk:
        argv = training(music, disk / "run", place / "cache")
        yield _row("a checkpoint", disk, 1_500_000, argv, lambda: weights(disk / "run") == straight, disk / "run")
    with small_disk(40) as disk:
        argv = training(music, place / "run-chunks", disk / "cache")
        yield _row("pieces and chunks", disk, 200_000, argv, lambda: weights(place / "run-chunks") == straight)
    with small_disk(40) as disk:
        argv = ["data", "build", "--source", f"folder={music}", "--output", str(disk / "built")]
        argv += ["--cache_dir", str(place / "cache"), "--tokenizer", "PerformanceTokenizer", "--chunk_length", "129"]
        yield _row("a data set", disk, 100_000, argv, lambda: main(["data", "check", str(disk / "built")]) == 0)
    with small_disk(40) as disk:
        argv = ["export", "--model", str(place / "straight"), "--output", str(disk / "exported")]
        yield _row("an export", disk, 100_000, argv, lambda: (disk / "exported" / "onnx").is_dir())


def _row(
    what: str, disk: Path, left: int, argv: list[str], is_right: Callable[[], bool], resume: Path | None = None
) -> str:
    ballast = filled(disk, left)
    code, said = Run(argv).end()
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    is_clean = code == 2 and len(lines) == 1 and "Traceback" not in said
    half = [str(path.relative_to(disk)) for path in disk.rglob("*") if path.is_file() and path != ballast]
    half = [name for name in half if not _is_whole(disk / name)]
    ballast.unlink()
    more = ["--resume_from_checkpoint", "true"] if resume is not None and any(resume.glob("checkpoint-*")) else []
    again, problem = Run([*argv, *more]).end()
    with contextlib.redirect_stdout(io.StringIO()):
        goes_on = again == 0 and is_right()
    words = lines[0] if is_clean else f"NO ({code}): {said[-300:]}"
    words = words.replace(str(disk), "DISK").replace("|", "/").replace("\n", " ")
    return f"| {what} | {words} | {', '.join(half) or 'nothing'} | {'yes' if goes_on else f'NO: {problem[-200:]}'} |"


def _is_whole(path: Path) -> bool:
    """Whether it is no part of something that was not finished."""
    checkpoint = next((each for each in path.parents if each.name.startswith("checkpoint-")), None)
    return is_complete(checkpoint) if checkpoint is not None else ".partial" not in str(path) and path.name[0] != "."


# Two at one cache ----------------------------------------------------------------------------------------------------


def two_at_one_cache(place: Path, times: int) -> Iterator[str]:
    """Rows: both trainings end, with the weights of one that was alone."""
    straight = weights(place / "straight")
    for number in range(times):
        cache = place / f"shared{number}"
        folders = [place / f"one{number}", place / f"two{number}"]
        runs = [Run(training(place / "music", folder, cache)) for folder in folders]
        codes = [run.end()[0] for run in runs]
        same = [code == 0 and weights(folder) == straight for code, folder in zip(codes, folders, strict=True)]
        yield f"| {number + 1} | {codes[0]}, {codes[1]} | {'yes' if all(same) else 'NO'} |"


def report(argv: list[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    from pianogen_hf.workflows import export, train  # noqa: F401  what every process would else bring in itself

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        print("| kill | after | it was | goes on from | ends bit for bit as if nothing had happened |")
        print("| --- | --- | --- | --- | --- |")
        for row in killed_at_random(place, args.kills, args.seed):
            print(row, flush=True)
        print("\n| two at one cache | exit codes | both as one alone |\n| --- | --- | --- |")
        for row in two_at_one_cache(place, args.pairs):
            print(row, flush=True)
        if sys.platform == "linux" and os.geteuid() == 0:
            print("\n| disk full while writing | said | left half-written | goes on when there is room |")
            print("| --- | --- | --- | --- |")
            for row in full_disk(place):
                print(row, flush=True)


if __name__ == "__main__":
    report()
