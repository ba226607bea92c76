"""How soon and how punctually the live engine plays: `OMP_NUM_THREADS=1 python benchmarks/live.py WHAT`.

latency   plays phrases in real time against torch, ONNX and 8 bits, after 100 to 4,000 notes of history, and prints a
          table: from a hand-over to the first note (by call, and by a pause, less the pause), how late notes were sent,
          and what the model's thread computed between hand-over and first note (CPU time, which other programs do not
          lengthen). `--busy` lets another process of the same priority compute on the same core.
alone     the same on a clock that goes on by the CPU time of the model's work alone: what a core would give that has
          nothing else to do, but for the waking up of threads. For a machine that is not quiet.
long      15 minutes of play with the clock run as fast as the model allows: what a note costs and what memory is taken
          in the first and in the last quarter.
session   two minutes in real time, played by a script: answers, an accompaniment, a loop; a MIDI file and a roll.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

import pianogen_hf as pg
from pianogen_hf.generation.live import LiveEngine
from pianogen_hf.generation.live_notes import Message
from pianogen_hf.generation.live_turns import LiveKnobs
from pianogen_hf.generation.onnx.exporters import NoteExporter
from pianogen_hf.rendering.piano_roll import save_piano_roll
from pianogen_hf.workflows.loading import load_model
from pianogen_hf.workflows.play import LiveSession

PHRASE = (60, 64, 67, 72, 71, 67, 65, 62)
PAUSE_SEC = 0.3


def models(name: str) -> tuple[dict[str, Any], Any]:
    """The model in torch and in both precisions of the fast engine, and its feature extractor."""
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    model, encoder = load_model(name)
    exporter = NoteExporter(model.cpu())
    exact = exporter.open(exporter.graphs())
    return {"8 bits": exporter.open(exporter.int8_graphs(exact, [])), "ONNX": exact, "torch": model}, encoder


class Port:
    """Notes down when each message was sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[float, Message]] = []

    def send(self, message: Message) -> None:
        """See `OutPort`."""
        self.sent.append((time.monotonic(), message))

    def first_on(self, since: float) -> float | None:
        """When the first note after a moment began."""
        return next((at for at, message in self.sent if at >= since and message[0] & 0xF0 == 0x90), None)


def history(number: int) -> pg.Notes:
    """So many notes of two hands, five a second, drawn at random."""
    random = np.random.default_rng(0)
    onset = np.cumsum(random.choice([0.0, 0.2, 0.4], number))
    pitch = random.choice([48, 52, 55, 60, 62, 64, 65, 67, 69, 71, 72, 76], number)
    return pg.Notes.from_seconds(onset, np.full(number, 0.3), pitch, random.integers(50, 90, number))


class Player:
    """Plays phrases in real time and measures what comes back."""

    def __init__(self, model: Any, encoder: Any, notes: int) -> None:
        self.port = Port()
        knobs = LiveKnobs(hand_over="key", answer_sec=1.0, pause_sec=PAUSE_SEC)
        self.engine = LiveEngine(model, encoder, self.port, knobs=knobs, seed=0)
        self.engine.load(history(notes))
        self.costs: list[tuple[float, float]] = []  # when a piece of work ended, and its CPU time
        work = self.engine.work

        def measured() -> bool:
            begin = time.thread_time()
            has_worked = work()
            if has_worked:
                self.costs.append((time.monotonic(), time.thread_time() - begin))
            return has_worked

        self.engine.work = measured  # type: ignore[method-assign]
        self.session = LiveSession(self.engine)
        self.session.start()

    def phrase(self) -> float:
        """Eight notes in a second; when the last of them was released."""
        for pitch in PHRASE:
            self.engine.receive((0x90, pitch, 80))
            time.sleep(0.1)
            released = time.monotonic()
            self.engine.receive((0x80, pitch, 0))
            time.sleep(0.02)
        return released

    def turn(self, is_pause: bool) -> tuple[float, float]:
        """From hand-over to first note, and what the model's thread computed meanwhile, both in ms."""
        self.engine.turn_knobs(hand_over="pause" if is_pause else "key")
        released = self.phrase()
        begin = released + PAUSE_SEC if is_pause else time.monotonic()
        if not is_pause:
            self.engine.hand_over()
        while (first := self.port.first_on(begin)) is None:
            time.sleep(0.002)
        cost = sum(cost for at, cost in self.costs if begin <= at <= first)
        time.sleep(1.2)
        while self.engine.state != "listening":
            time.sleep(0.01)
        return 1000 * (first - begin), 1000 * cost


class Alone:
    """A session whose clock is the CPU time of the model's work; what is due is sent every millisecond of it."""

    def __init__(self, model: Any, encoder: Any, notes: int) -> None:
        self.sec, self.model, self.config, self.sent = 0.0, model, model.config, []
        self.new_cache, self.rewind, self.joined = model.new_cache, model.rewind, model.joined
        knobs = LiveKnobs(hand_over="key", answer_sec=1.0, pause_sec=PAUSE_SEC)
        self.engine = LiveEngine(self, encoder, self, clock=lambda: self.sec, knobs=knobs, seed=0)
        self.engine.load(history(notes))
        self.prefill = 0.0  # share of the player's time in which the model read

    def send(self, message: Message) -> None:
        """See `OutPort`."""
        self.sent.append((self.sec, message))

    def read(self, *args: Any) -> Any:
        """See `NoteModel`."""
        return self._timed(self.model.read, args)

    def draw_note(self, *args: Any) -> Any:
        """See there."""
        return self._timed(self.model.draw_note, args)

    def _timed(self, function: Any, args: tuple) -> Any:
        result = function(*args)
        self._pass(time.thread_time() - self.since)
        return result

    def _pass(self, seconds: float) -> None:
        end = self.sec + seconds
        while self.sec < end:
            self.sec = min(self.sec + 0.001, end)
            self.engine.tick()
        self.since = time.thread_time()

    def run(self, seconds: float) -> float:
        """Let time pass, in which the model works when it can; how much of it the model worked."""
        end, worked = self.sec + seconds, 0.0
        while self.sec < end:
            begin, self.since = self.sec, time.thread_time()
            if self.engine.work():
                self._pass(time.thread_time() - self.since)
                worked += self.sec - begin
            else:
                self._pass(0.001)
        return worked

    def turn(self, is_pause: bool) -> float:
        """From hand-over to first note, in ms."""
        self.engine.turn_knobs(hand_over="pause" if is_pause else "key")
        worked, begin = 0.0, self.sec
        for pitch in PHRASE:
            self.engine.receive((0x90, pitch, 80))
            worked += self.run(0.1)
            released = self.sec
            self.engine.receive((0x80, pitch, 0))
            worked += self.run(0.02)
        self.prefill = worked / (self.sec - begin)
        begin = released + PAUSE_SEC if is_pause else self.sec
        if not is_pause:
            self.engine.hand_over()
        self.run(2.2)
        return 1000 * (next(at for at, message in self.sent if at >= begin and message[0] & 0xF0 == 0x90) - begin)


def alone(name: str, turns: int, histories: list[int]) -> None:
    """Print the table of a core that has nothing else to do."""
    found, encoder = models(name)
    print("| model | history | hand-over by call to first note, ms: p50 | p95 | p99 | by pause: p50 | p95 | p99 "
          "| notes late by ms: p50 | p99 | max | within 10 ms | left out | busy while the player plays |")  # fmt: skip
    print("|" + "---|" * 14)
    for label, model in found.items():
        for notes in histories:
            room = Alone(model, encoder, notes)
            room.run(1.0)
            called = [room.turn(is_pause=False) for _ in range(turns)]
            paused = [room.turn(is_pause=True) for _ in range(turns)]
            late, dropped = 1000 * np.array(room.engine.output.delays), room.engine.output.num_dropped
            cells = [f"{np.percentile(late, share):.1f}" for share in (50, 99, 100)]
            cells += [f"{(late < 10).mean():.1%} of {len(late)}", str(dropped), f"{room.prefill:.0%}"]
            print(f"| {label} | {notes:,} | {percentiles(called)} | {percentiles(paused)} | {' | '.join(cells)} |")


def burn() -> None:
    """Compute for ever."""
    while True:
        np.linalg.norm(np.random.default_rng(0).random(100_000))


def percentiles(values: Any) -> str:
    """p50, p95 and p99 as cells."""
    return " | ".join(f"{np.percentile(values, share):.1f}" for share in (50, 95, 99))


def latency(name: str, turns: int, histories: list[int], is_busy: bool) -> None:
    """Print the table."""
    found, encoder = models(name)
    burner = multiprocessing.Process(target=burn, daemon=True)
    if is_busy:
        burner.start()
    print("| model | history | hand-over by call to first note, ms: p50 | p95 | p99 | by pause: p50 | p95 | p99 "
          "| CPU of the model until the first note, ms: p50 | p95 | notes late by ms: p50 | p99 | max "
          "| within 10 ms | left out |")  # fmt: skip
    print("|" + "---|" * 15)
    for label, model in found.items():
        for notes in histories:
            player = Player(model, encoder, notes)
            time.sleep(0.5)
            called = np.array([player.turn(is_pause=False) for _ in range(turns)])
            paused = np.array([player.turn(is_pause=True) for _ in range(turns)])
            player.session.close()
            output = player.engine.output
            late = 1000 * np.array(output.delays)
            cells = [f"{np.percentile(called[:, 1], share):.0f}" for share in (50, 95)]
            cells += [f"{np.percentile(late, share):.1f}" for share in (50, 99, 100)]
            cells += [f"{(late < 10).mean():.1%} of {len(late)}", str(output.num_dropped)]
            print(f"| {label} | {notes:,} | {percentiles(called[:, 0])} | {percentiles(paused[:, 0])} | "
                  f"{' | '.join(cells)} |", flush=True)  # fmt: skip
    if is_busy:
        burner.terminate()


def long(name: str, minutes: float) -> None:
    """Print what a note costs in each quarter of a long session."""
    found, encoder = models(name)
    for label in ("8 bits",):
        now, port = [0.0], Port()
        knobs = LiveKnobs(answer_sec=6.0, pause_sec=PAUSE_SEC)
        engine = LiveEngine(found[label], encoder, port, clock=lambda now=now: now[0], knobs=knobs, seed=0)
        random, costs, memory = np.random.default_rng(0), [], []

        def go_on(seconds: float, now: list[float] = now, engine: LiveEngine = engine, costs: list = costs) -> None:
            end = now[0] + seconds
            while now[0] < end:
                begin = time.thread_time()
                if engine.work() and engine.state == "answering":
                    costs.append(1000 * (time.thread_time() - begin))
                now[0] += 0.005
                engine.tick()

        quarters = [0]
        for quarter in range(4):
            while now[0] < (quarter + 1) * minutes * 15:
                for pitch in random.integers(48, 80, 16).tolist():
                    engine.receive((0x90, pitch, 70))
                    go_on(0.2)
                    engine.receive((0x80, pitch, 0))
                go_on(7.5)
            quarters.append(len(costs))
            memory.append(_megabytes())
        rows = [percentiles(costs[begin:end]) for begin, end in zip(quarters, quarters[1:], strict=False)]
        print(
            f"{label}: {len(engine.notes()):,} notes in {now[0] / 60:.0f} minutes, {engine.output.num_dropped} left out"
        )
        for quarter, (row, size) in enumerate(zip(rows, memory, strict=True)):
            print(f"| quarter {quarter + 1} | {row} | {size:.0f} MB |", flush=True)


def _megabytes() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1]) if Path("/proc/self/statm").exists() else 0
    return pages * os.sysconf("SC_PAGESIZE") / 2**20 or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def session(name: str, output: Path) -> None:
    """Two minutes, played by a script."""
    found, encoder = models(name)
    prelude = pg.read_midi(Path(__file__).parents[1] / "docs" / "prelude.mid")
    engine = LiveEngine(found["8 bits"], encoder, Port(), knobs=LiveKnobs(pause_sec=0.5, answer_sec=8.0), seed=0)
    live = LiveSession(engine)
    live.start()
    begin = time.monotonic()
    for second in (0.0, 8.0, 16.0):  # a phrase of the prelude, and an answer, three times
        _perform(engine, prelude, second, second + 7.0)
        time.sleep(11)
    print(f"{time.monotonic() - begin:.0f} s: accompany", flush=True)
    engine.turn_knobs(mode="accompany", side="below")
    melody = prelude.where(prelude["pitch"] >= 64)
    _perform(engine, melody, 0.0, 28.0)
    time.sleep(3)
    print(f"{time.monotonic() - begin:.0f} s: loop", flush=True)
    engine.turn_knobs(mode="loop", answer_sec=4.0)
    _perform(engine, prelude, 0.0, 3.6)
    time.sleep(124 - (time.monotonic() - begin))
    live.close()
    notes, out = engine.notes(), engine.output
    pg.write_midi(notes, output.with_suffix(".mid"))
    title = "Two minutes with the live engine: answers, accompaniment, loop"
    save_piano_roll(notes, output.with_suffix(".png"), title)
    print(f"{len(notes)} notes of both sides in {notes.end_sec:.0f} s; {out.num_sent} sent, {out.num_dropped} left out")
    print(f"late by ms: {percentiles(1000 * np.array(out.delays))}")


def _perform(engine: LiveEngine, notes: pg.Notes, begin_sec: float, end_sec: float) -> None:
    """Play a stretch of a piece in real time."""
    chosen = notes.where((notes.onset_sec >= begin_sec) & (notes.onset_sec < end_sec))
    events = []
    for onset, offset, row in zip(chosen.onset_sec, chosen.offset_sec, chosen.table, strict=True):
        events.append((onset, 1, (0x90, int(row["pitch"]), int(row["velocity"]))))
        events.append((max(offset, onset + 0.02) - 0.005, 0, (0x80, int(row["pitch"]), 0)))
    start = time.monotonic() - begin_sec
    for second, _, message in sorted(events, key=lambda event: event[:2]):
        time.sleep(max(start + second - time.monotonic(), 0))
        engine.receive(message)


def main() -> None:
    """Read the options and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["latency", "alone", "long", "session"])
    parser.add_argument("--model", default=pg.PIANO_MODEL, help="folder or Hub id of a note transformer")
    parser.add_argument("--turns", type=int, default=10, help="of each kind, for latency")
    parser.add_argument("--histories", type=int, nargs="+", default=[100, 500, 1000, 4000], help="notes before")
    parser.add_argument("--busy", action="store_true", help="let another process compute on the same core")
    parser.add_argument("--minutes", type=float, default=15, help="for long")
    parser.add_argument("--output", type=Path, default=Path("live_session"), help="for session")
    options = parser.parse_args()
    if options.what == "latency":
        latency(options.model, options.turns, options.histories, options.busy)
    elif options.what == "alone":
        alone(options.model, options.turns, options.histories)
    elif options.what == "long":
        long(options.model, options.minutes)
    else:
        session(options.model, options.output)


if __name__ == "__main__":
    main()
