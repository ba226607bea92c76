"""How fast the page without a server is: `python benchmarks/static_page.py PAGE`, PAGE by `pianogen space --static`.

In headless Chromium (playwright): the time until the model can play, from a hand-over to the first note, and notes a
second when it writes without a break.
"""

from __future__ import annotations

import argparse
import http.server
import shutil
import threading
import time
from functools import partial
from typing import Any

import numpy as np
from playwright.sync_api import sync_playwright

TURNS, NOTES = 8, 200
# Continues a melody of 60 notes; gives the milliseconds that each new note took.
WRITE = """async (number) => {
  const base = new URL("static/", location.href).href, folder = new URL("model/", location.href).href;
  const names = ["onnxruntime/ort.wasm.min.mjs", "model.js", "live_stream.js", "drawing.js"];
  const [runtime, model, stream, drawing] = await Promise.all(names.map((each) => import(base + each)));
  runtime.env.wasm.wasmPaths = `${base}onnxruntime/`;
  runtime.env.wasm.numThreads = 1;
  const fetched = async (name) => (await fetch(folder + name)).arrayBuffer();
  const config = await (await fetch(`${folder}config.json`)).json();
  const graph = new Uint8Array(await fetched("model.onnx"));
  const heads = await fetched("heads.safetensors");
  const live = new stream.LiveStream(await model.NoteModel.open(runtime, graph, heads, config));
  live.processors = [drawing.processor(["warped", { temperature: 1, topP: 0.95 }])];
  live.hear(Array.from({ length: 60 }, (_, index) => [index / 4, 60 + (index * 7) % 13, 70, 0.25]));
  const times = [];
  while (live.written.length < number) {
    const begin = performance.now();
    if ((await live.write(false)) === null) break;
    times.push(performance.now() - begin);
  }
  return times;
}"""
# Plays a phrase of 8 notes in a second and hands over; gives the milliseconds from there to the first note's onset.
ANSWER = """async () => {
  const { session } = pianogen, wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
  for (const pitch of [60, 62, 64, 65, 67, 65, 64, 62]) {
    session.send({ type: "midi", bytes: [0x90, pitch, 80] });
    await wait(100);
    session.send({ type: "midi", bytes: [0x80, pitch, 0] });
    await wait(25);
  }
  const before = new Set(pianogen.roll.notes.keys()), begin = session.engine.now();
  session.send({ type: "hand_over" });
  for (;;) {
    const found = [...pianogen.roll.notes].find(([id, note]) => !before.has(id) && note.voice === 1);
    if (found) return 1000 * (found[1].onset - begin);
    await wait(1);
  }
}"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", help="the folder")
    args = parser.parse_args()
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=args.page)
    http.server.SimpleHTTPRequestHandler.extensions_map[".mjs"] = "text/javascript"
    http.server.SimpleHTTPRequestHandler.log_message = lambda *_: None  # type: ignore[method-assign]
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        measure(browser.new_page(), f"http://127.0.0.1:{server.server_port}/")
        browser.close()


def measure(tab: Any, address: str) -> None:
    """Open the page and let it play."""
    begin = time.monotonic()
    tab.goto(address)
    tab.wait_for_selector("#state[data-state=listening]", timeout=300_000)
    print(f"open to ready to play: {time.monotonic() - begin:.1f} s, from this machine's own disk")
    tab.select_option("#hand_over", "key")
    tab.locator("#answer_sec").fill("1")
    tells("hand-over to first note, ms", [tab.evaluate(ANSWER) for _ in range(TURNS) if not tab.wait_for_timeout(2500)])
    times = tab.evaluate(WRITE, NOTES)
    tells("a note, ms", times)
    print(f"notes a second: {1000 * len(times) / sum(times):.0f}")


def tells(what: str, values: list[float]) -> None:
    """Print quantiles."""
    half, most = np.quantile(values, [0.5, 0.95])
    print(f"{what}: p50 {half:.1f}, p95 {most:.1f}, of {len(values)}")


if __name__ == "__main__":
    main()
