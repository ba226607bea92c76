"""The page without a server: what stands in its folder, and that its JavaScript does what Python does."""

from __future__ import annotations

import http.server
import json
import os
import re
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models_and_tokenizers import loosened, some_notes, tiny_model
from pages import loudest, saved_session, wait_until, watched_tab
from safetensors.torch import load

import pianogen_hf as pg
from pianogen_hf.apps.space import onnxruntime_web
from pianogen_hf.apps.space.onnxruntime_web import FILES, RuntimeMissingError, runtime_files
from pianogen_hf.commands.space import main
from pianogen_hf.generation import note_stream, search
from pianogen_hf.generation.continuation import end_notes
from pianogen_hf.generation.drawing import choose
from pianogen_hf.generation.filling import fill_notes
from pianogen_hf.generation.live_notes import PLAYER, LiveNote, as_live, heard_notes
from pianogen_hf.generation.live_stream import LiveStream
from pianogen_hf.generation.live_turns import LiveKnobs
from pianogen_hf.generation.note_stream import Controls, NoteStream
from pianogen_hf.generation.note_verbs import accompany_notes, asked, placed
from pianogen_hf.generation.processors import beside, not_sounding, warped
from pianogen_hf.models.note_controls import PITCH_NAMES, control_values
from pianogen_hf.models.time_classes import NUM_TIME_CLASSES, first_step, middle_step, time_class
from pianogen_hf.workflows.loading import load_model

onnx = pytest.importorskip("onnx", reason='pip install "pianogen_hf[onnx]"')
onnxruntime = pytest.importorskip("onnxruntime", reason='pip install "pianogen_hf[onnx]"')

from pianogen_hf.apps.space.static_page import saved_heads, write_static_page  # noqa: E402
from pianogen_hf.generation.onnx.exporters import NoteExporter  # noqa: E402
from pianogen_hf.generation.onnx.halving import halved  # noqa: E402
from pianogen_hf.generation.onnx.note_engine import OnnxNoteEngine  # noqa: E402

ENCODER = pg.ContinuousNotesFeatureExtractor()
GIVEN = os.environ.get("ONNXRUNTIME_WEB")  # the package of npm, as --onnxruntime takes it
NO_RUNTIME = dict.fromkeys(FILES, b"")
NEAR = 1e-3  # difference of two logits that rounding may turn over


def tiny() -> Any:
    torch.manual_seed(0)
    return loosened(tiny_model(pg.NoteTransformerForCausalLM, 130, num_recent_offsets=3))


def write(folder: Path, name: str = "someone/tiny", model: Any = None, runtime: Any = NO_RUNTIME) -> dict[str, int]:
    words = {"version": pg.__version__, "short_description": "Play", "title": "<Play> & more"}
    return write_static_page(folder, name, model or tiny(), runtime=runtime, **words)


# The folder -----------------------------------------------------------------------------------------------------------


def test_the_folder_has_all_that_the_page_asks_for_and_nothing_from_elsewhere(tmp_path):
    sizes = write(tmp_path / "page")
    page = (tmp_path / "page" / "index.html").read_text()
    assert "&lt;Play&gt; &amp; more" in page and "default-src 'self'" in page
    asked_for = re.findall(r'(?:src|href)="(static/[^"]+)"', page)
    scripts = [tmp_path / "page" / each for each in asked_for]
    for script in scripts:  # grows
        for name in re.findall(r'(?:from |new URL\()"(\./[^"]+\.m?js)"', script.read_text()):
            if (script.parent / name) not in scripts:
                scripts.append(script.parent / name)
    assert len(scripts) > 10 and all(each.is_file() for each in scripts)
    assert not any("http" in each.read_text().replace("location.", "") for each in scripts if each.suffix == ".js")
    assert set(sizes) == {"model", "ONNX Runtime", "page", "sounds"} and sizes["model"] > 0
    about = json.loads((tmp_path / "page" / "model" / "config.json").read_text())
    for name, size in about["files"].items():
        assert (tmp_path / "page" / "model" / name).stat().st_size == size


def test_the_card_makes_a_static_space_and_names_the_licences(tmp_path):
    write(tmp_path / "page", pg.PIANO_MODEL)
    card = (tmp_path / "page" / "README.md").read_text()
    assert "sdk: static" in card and "license: cc-by-nc-sa-4.0" in card and "MIT" in card
    assert (tmp_path / "page" / "model" / "LICENSE").is_file()
    assert "Microsoft" in (tmp_path / "page" / "static" / "onnxruntime" / "LICENSE").read_text()


def test_a_graph_in_halves_computes_the_same():
    model = tiny().bfloat16().float()
    exporter = NoteExporter(model)
    full = onnx.load_from_string(exporter.graphs()["model"])
    small = halved(full)
    assert small.ByteSize() < 0.65 * full.ByteSize()
    rows, (given, ids) = np.array([[0, 128, 0, 0], [0.5, 60, 64, 1.0]]), (np.zeros(2, bool), np.zeros((2, 7), np.int64))
    states = [OnnxNoteEngine(graph.SerializeToString(), exporter.heads, model.config) for graph in (full, small)]
    one, other = (engine.hidden_states(engine.new_cache(), rows, given, ids).copy() for engine in states)
    assert np.array_equal(one, other)


def test_weights_with_more_digits_stay_as_they_are():
    exporter = NoteExporter(tiny())
    graph = onnx.load_from_string(exporter.graphs()["model"])
    assert not any(each.op_type == "Cast" for each in halved(graph).graph.node)
    assert all(
        torch.equal(each, torch.from_numpy(exporter.heads[name]))
        for name, each in load(saved_heads(exporter.heads)).items()
    )


def test_heads_in_halves_are_read_as_they_were():
    heads = NoteExporter(tiny().bfloat16().float()).heads
    read = load(saved_heads(heads))
    assert read.keys() == heads.keys() and all(each.dtype == torch.bfloat16 for each in read.values())
    assert all(torch.equal(each.float(), torch.from_numpy(heads[name])) for name, each in read.items())


# ONNX Runtime ---------------------------------------------------------------------------------------------------------


def test_a_runtime_that_is_not_the_one_is_refused_in_a_line(tmp_path):
    other, packed = tmp_path / "onnxruntime-web", tmp_path / "other.tgz"
    (other / "dist").mkdir(parents=True)
    packed.write_bytes(b"no archive")
    for given, says in ((other, "has no dist/ort"), (packed, "no package of npm"), (tmp_path / "none", "is not there")):
        with pytest.raises(RuntimeMissingError, match=says) as caught:
            runtime_files(given)
        assert "npm pack onnxruntime-web@" in str(caught.value) and "\n" not in str(caught.value)
    for name in FILES:
        (other / "dist" / name).write_text("another version")
    with pytest.raises(RuntimeMissingError, match="another file"):
        runtime_files(other)


def test_without_npm_or_a_network_one_line_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeMissingError, match="there is no npm .*--onnxruntime"):
        runtime_files()
    (tmp_path / "npm").write_text("#!/bin/sh\necho 'no route to host' >&2\nexit 1\n")
    (tmp_path / "npm").chmod(0o755)
    with pytest.raises(RuntimeMissingError, match="no route to host.*--onnxruntime"):
        runtime_files()


@pytest.mark.skipif(GIVEN is None, reason="no onnxruntime-web: set ONNXRUNTIME_WEB to what `npm pack` gave")
def test_the_runtime_is_found_in_its_package(tmp_path):
    files = runtime_files(Path(str(GIVEN)))
    assert files.keys() == FILES.keys()
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    assert runtime_files(tmp_path) == files


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--static", "--model", "v7-bach", "--onnxruntime", "."], "has no dist/"),
        (["--onnxruntime", "."], "--static"),
        (["--static", "--onnxruntime", "nowhere"], "nowhere is not there"),
        (["--static", "--onnxruntime", "nowhere", "--model", "model"], "holds no model"),
    ],
)
def test_what_a_user_gets_wrong_is_one_line(options, message, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    assert main(["--output", "page", *options]) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and message in err, err
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


# In a browser: the parts ----------------------------------------------------------------------------------------------


class Host:
    """A host of files, which knows nothing of the page."""

    def __init__(self, folder: Path) -> None:
        class Handler(http.server.SimpleHTTPRequestHandler):
            extensions_map = {**http.server.SimpleHTTPRequestHandler.extensions_map, ".mjs": "text/javascript"}

            def log_message(self, *args: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.address = f"http://127.0.0.1:{self.server.server_port}/"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(scope="module")
def parts(browser, tmp_path_factory) -> Iterator[Any]:
    """A tab that can import the page's modules, without the page."""
    folder = tmp_path_factory.mktemp("parts") / "page"
    write(folder)
    (folder / "blank.html").write_text("<!DOCTYPE html><title>blank</title>")
    host = Host(folder)
    tab = browser.new_page()
    tab.goto(host.address + "blank.html")
    yield tab
    tab.close()
    host.close()


def ask(tab: Any, module: str, expression: str, value: Any = None) -> Any:
    """What an expression of a module's `m` and a `value` gives."""
    return tab.evaluate(
        f"async (value) => {{ const m = await import('./static/{module}'); return {expression}; }}", value
    )


@pytest.mark.slow
def test_classes_of_times_are_python_s(parts):
    steps = list(range(5000)) + [10**6]
    assert ask(parts, "classes.js", "value.map(m.timeClass)", steps) == time_class(torch.tensor(steps)).tolist()
    classes = torch.arange(NUM_TIME_CLASSES)
    assert ask(parts, "classes.js", "m.FIRST_STEPS") == first_step(classes).tolist()
    assert ask(parts, "classes.js", "m.MIDDLE_STEPS") == middle_step(classes).tolist()


@pytest.mark.slow
def test_classes_of_what_is_asked_are_python_s(parts):
    sizes = pg.NoteTransformerConfig().control_sizes
    wishes: list[dict] = [{"density": value / 4} for value in range(1, 100)]
    wishes += [{"register": value} for value in range(128)] + [{"loudness": value} for value in range(1, 128)]
    expression = "value[0].map((wish) => new m.Controls(wish, value[1]).classes)"
    found = ask(parts, "classes.js", expression, [wishes, sizes])
    assert found == [asked(**wish).classes().tolist() for wish in wishes]
    keys = [
        f"{name} {mode}" for name in (*PITCH_NAMES, "Db", "Eb", "Gb", "Ab", "Bb", "Cb") for mode in ("major", "minor")
    ]
    found = ask(parts, "classes.js", "value.map(m.keyClass)", keys)
    assert found == [asked(key=key).key for key in keys]
    ends = [value / 37 for value in range(4000)]
    found = ask(
        parts,
        "classes.js",
        "value[0].map((end) => new m.Controls({ gapEndSec: end }, value[1]).at(1)[6])",
        [ends, sizes],
    )
    assert found == [int(Controls(gap_end_sec=end).at(np.ones(1))[0, 6]) for end in ends]


@pytest.mark.slow
def test_notes_become_the_rows_that_python_makes_of_them(parts):
    random = np.random.default_rng(0)
    for unit in (0.005, 0.0005, 0.123):  # halves of steps, of milliseconds, and neither
        onset = random.integers(0, 400, 300) * unit
        end = onset + random.integers(0, 60, 300) * unit
        notes = [
            {"onset": one, "end": other, "pitch": int(pitch), "velocity": int(velocity)}
            for one, other, pitch, velocity in zip(
                onset, end, random.integers(50, 60, 300), random.integers(1, 128, 300), strict=True
            )
        ]
        expected = placed(ENCODER, heard_notes(map(live_note, notes), 0.0))
        assert ask(parts, "notes.js", "m.placed(value)", notes) == expected.tolist()


def live_note(note: dict) -> Any:
    """A note of the page as one of a session."""
    return LiveNote(PLAYER, note["onset"], note["pitch"], note["velocity"], note["end"], note["end"])


@pytest.mark.slow
def test_files_are_read_as_python_reads_them(parts):
    pieces = [
        pg.read_midi(Path(__file__).parents[1] / "docs" / "prelude.mid"),
        some_notes(),
        *(some_notes(seed, 200, (60, 64)) for seed in range(5)),
    ]
    for piece in pieces:
        data = pg.notes_to_midi_bytes(piece)
        notes, pedals = as_live(pg.read_midi(data), 0.0)
        found = ask(parts, "midi.js", "m.readMidi(Uint8Array.from(value).buffer)", list(data))
        order = [(note.onset, note.pitch, note.velocity, note.offset, note.end) for note in notes]
        assert np.allclose(
            sorted(order),
            sorted(
                [[each[name] for name in ("onset", "pitch", "velocity", "offset", "end")] for each in found["notes"]]
            ),
            atol=1e-9,
        )
        assert np.allclose([each[:2] for each in pedals], found["pedals"])
        assert ask(parts, "notes.js", "m.onGrid(value)", found["notes"]) == placed(ENCODER, pg.read_midi(data)).tolist()


@pytest.mark.slow
def test_what_the_page_writes_python_reads(parts):
    notes = [
        {"voice": 0, "onset": 0.0, "offset": 0.5, "pitch": 60, "velocity": 80},
        {"voice": 1, "onset": 0.25, "offset": 200.125, "pitch": 64, "velocity": 1},
        {"voice": 0, "onset": 0.5, "offset": 0.5, "pitch": 60, "velocity": 127},
    ]
    data = bytes(ask(parts, "midi.js", "[...m.writeMidi(value, [[0.1, 127], [0.9, 0]], ['player', 'model'])]", notes))
    piece = pg.read_midi(data)
    assert piece.onset_sec.tolist() == [0, 0.25, 0.5] and piece["channel"].tolist() == [0, 1, 0]
    assert np.allclose(piece.duration_sec, [0.5, 199.875, 0.001]) and piece["velocity"].tolist() == [80, 1, 127]
    assert piece.pedals["value"].tolist() == [127, 0] and piece.track_names == ("player", "model")


@pytest.mark.slow
def test_a_piece_is_written_in_its_own_time(parts):
    tempos = [[0, [0xFF, 0x51, 3, 7, 0xA1, 0x20]], [300, [0xFF, 0x51, 3, 3, 0xD0, 0x90]]]
    tempos.append([480, [0xFF, 0x58, 4, 3, 2, 24, 8]])
    onsets = list(range(0, 900, 41))
    notes = [{"voice": 0, "onset": tick, "offset": tick + 7, "pitch": 60, "velocity": 80} for tick in onsets]
    written = "m.writeMidi(value[0], [], ['x'], { division: 96, signs: value[1], tickOf: (tick) => tick })"
    data = ask(parts, "midi.js", f"[...{written}]", [notes, tempos])
    again = """(({ notes, timing }) =>
      [...m.writeMidi(notes.map((each) => ({ ...each, voice: 0 })), [], ["x"], timing)]
    )(m.readMidi(Uint8Array.from(value).buffer))"""
    assert ask(parts, "midi.js", again, data) == data
    piece = pg.read_midi(bytes(data))
    assert piece["onset_tick"].tolist() == onsets and piece.ticks_per_quarter == 96
    assert piece.tempos["tick"].tolist() == [0, 300] and piece.time_signatures.tolist() == [(480, 3, 4)]


@pytest.mark.slow
@pytest.mark.parametrize("data", [b"", b"MThd", b"MThd" + bytes(40), b"RIFF" + bytes(3000), bytes(range(256)) * 8])
def test_what_is_no_music_is_refused_in_a_line(parts, data):
    said = ask(
        parts,
        "midi.js",
        "(() => { try { m.readMidi(Uint8Array.from(value).buffer); } catch (error) { return error.message; } })()",
        list(data),
    )
    assert isinstance(said, str) and said and "\n" not in said


@pytest.mark.slow
def test_what_may_be_drawn_is_what_python_allows(parts):
    random = np.random.default_rng(0)
    scores = random.normal(0, 3, 128).astype(np.float32)
    given = np.array([[0.0, 60, 80, 2.0], [0.5, 72, 80, 0.25], [1.0, 40, 80, 5.0]])
    for name, options, process in (
        ("warped", {"temperature": 0, "topP": 1}, warped(0)),
        ("warped", {"temperature": 0.7, "topP": 0.8}, warped(0.7, 0.8)),
        ("warped", {"temperature": 1.3, "topP": 1}, warped(1.3)),
        ("beside", {"given": given.tolist(), "side": "below"}, beside(given, "below")),
        ("beside", {"given": given.tolist(), "side": "above"}, beside(given, "above")),
        ("notSounding", {"kept": given.tolist()}, not_sounding(given)),
    ):
        for onset in (0.0, 0.6, 0.98, 3.0, 9.0):
            expression = (
                "[...m.processor(value.slice(0, 2))(1, Float32Array.from(value[2]), value[3])].map(Number.isFinite)"
            )
            found = ask(parts, "drawing.js", expression, [name, options, scores.tolist(), onset])
            assert found == np.isfinite(process(1, scores.copy(), onset)).tolist(), (name, onset)


@pytest.mark.slow
def test_a_seed_gives_torch_s_random_numbers(parts):
    for seed in (0, 1, 7, 2**32 - 1, 2**32 + 7):
        generator = torch.Generator().manual_seed(seed)
        expected = torch.cat([torch.rand(1, dtype=torch.float64, generator=generator) for _ in range(1500)])
        found = ask(parts, "random.js", "Array.from({ length: 1500 }, m.seeded(value))", seed)
        assert found == expected.tolist()


@pytest.mark.slow
def test_the_same_number_draws_the_same_class(parts):
    scores = np.random.default_rng(0).normal(0, 3, (2000, 9)).astype(np.float32)
    scores[:, 8] = -np.inf
    generator = torch.Generator().manual_seed(3)
    expected = [choose(each, generator) for each in scores]
    expression = """(async () => {
      const random = (await import("./static/random.js")).seeded(3);
      return value.map((scores) => m.choose(Float32Array.of(...scores, -Infinity), random));
    })()"""
    assert ask(parts, "drawing.js", f"await {expression}", scores[:, :8].tolist()) == expected


@pytest.mark.slow
def test_what_notes_are_like_is_what_python_hears(parts):
    config = parts.evaluate("async () => (await fetch('./model/config.json')).json()")
    for seed in range(12):
        rows = placed(ENCODER, some_notes(seed, (3, 9, 15, 40)[seed % 4], (40 + 2 * seed, 80)))
        found = ask(parts, "classes.js", "m.classesOf(...value)", [rows.tolist(), config])
        assert found == control_values(rows, rows[:, 0]).tolist()


# In a browser: the page -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hosted(tmp_path_factory) -> Iterator[Host]:
    """The page of the package's piano model."""
    if GIVEN is None:
        pytest.skip(
            "no onnxruntime-web: npm pack onnxruntime-web@"
            + onnxruntime_web.VERSION
            + ", then ONNXRUNTIME_WEB=its file"
        )
    folder = tmp_path_factory.mktemp("static") / "page"
    write(folder, pg.PIANO_MODEL, load_model(pg.PIANO_MODEL)[0].cpu(), runtime_files(Path(GIVEN)))
    host = Host(folder)
    yield host
    host.close()


@pytest.fixture
def opened(browser, hosted) -> Iterator[Any]:
    """The page, which must complain of nothing and ask nobody else."""
    tab, faults = watched_tab(browser, 120_000)
    tab.on(
        "request",
        lambda request: (
            None if request.url.startswith((hosted.address, "data:", "blob:")) else faults.append(request.url)
        ),
    )
    tab.goto(hosted.address)
    yield tab
    tab.close()
    assert not faults


WRITE = """async ([past, given, wish, times, number]) => {
  const base = new URL("static/", location.href).href, folder = new URL("model/", location.href).href;
  const names = ["onnxruntime/ort.wasm.min.mjs", "model.js", "live_stream.js", "classes.js", "drawing.js"];
  const modules = await Promise.all(names.map((each) => import(base + each)));
  const [runtime, model, stream, classes, drawing] = modules;
  runtime.env.wasm.wasmPaths = `${base}onnxruntime/`;
  runtime.env.wasm.numThreads = 1;
  const fetched = async (name) => (await fetch(folder + name)).arrayBuffer();
  const config = await (await fetch(`${folder}config.json`)).json();
  const graph = new Uint8Array(await fetched("model.onnx"));
  const opened = await model.NoteModel.open(runtime, graph, await fetched("heads.safetensors"), config);
  const live = new stream.LiveStream(opened);
  live.controls = new classes.Controls(wish, config.control_sizes);
  live.processors = [drawing.processor(["warped", { temperature: 0, topP: 1 }])];
  [live.beginSec, live.lookaheadSec, live.helpedFromSec] = times.map((time) => time ?? Infinity);
  live.hear(past, given);
  while (live.written.length < number) if ((await live.write(false)) === null) break;
  return live.written;
}"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wish", "controls", "has_given", "number"),
    [
        ({}, Controls(), False, 500),
        (
            {"density": 6, "loudness": 90, "keyName": "C minor", "guidanceScale": 2},
            asked(6, None, 90, "C minor"),
            False,
            60,
        ),
        ({"gapEndSec": 24}, Controls(gap_end_sec=24.0), True, 60),
    ],
    ids=["500 notes", "guided", "among given notes"],
)
def test_greedy_notes_are_python_s(opened, wish, controls, has_given, number):
    model, encoder = load_model(pg.PIANO_MODEL)
    exporter = NoteExporter(model.cpu())
    rows = placed(encoder, pg.read_midi(Path(__file__).parents[1] / "docs" / "prelude.mid"))
    past, given = rows[:60], rows[60:90] + np.array([8.0, 0, 0, 0]) if has_given else rows[:0]
    times = [past[-1, 0], None, past[-1, 0]] if has_given else [0.0, 0.0, -1.0]
    stream = LiveStream(exporter.open(exporter.graphs()))
    stream.controls = controls
    stream.begin_sec, stream.lookahead_sec, stream.helped_from_sec = (
        np.inf if each is None else each for each in times
    )
    stream.hear(past, given)
    written = np.array(opened.evaluate(WRITE, [past.tolist(), given.tolist(), wish, times, number]))
    assert len(written) == number
    margins: list[float] = []  # between the likeliest class and the next one, of the note that is drawn

    def likeliest(column: int, scores: np.ndarray, onset: float) -> np.ndarray:
        margins.append(float(np.diff(np.sort(scores)[-2:])[0]))
        return warped(0)(column, scores, onset)

    stream.processors = (likeliest,)
    for place, note in enumerate(written):
        margins.clear()
        if not np.array_equal(stream.write(False), note):
            # Another order of summation may turn over a tie, after which all is different.
            assert min(margins) < NEAR, f"note {place} differs"
            assert place > number / 2
            break


# What can be done with a piece: the plan, its rows, and the piece with them.
CHANGE = """async ([bytes, [name, ...options], wish, seed, choice]) => {
  const base = new URL("static/", location.href).href, folder = new URL("model/", location.href).href;
  const names = ["onnxruntime/ort.wasm.min.mjs", "model.js", "note_stream.js", "random.js", "midi.js", "piece.js"];
  const [runtime, model, stream, random, midi, piece] = await Promise.all(names.map((each) => import(base + each)));
  runtime.env.wasm.wasmPaths = `${base}onnxruntime/`;
  runtime.env.wasm.numThreads = 1;
  const fetched = async (each) => (await fetch(folder + each)).arrayBuffer();
  const config = await (await fetch(`${folder}config.json`)).json();
  const graph = new Uint8Array(await fetched("model.onnx"));
  const opened = await model.NoteModel.open(runtime, graph, await fetched("heads.safetensors"), config);
  const before = midi.readMidi(Uint8Array.from(bytes).buffer);
  const plan = piece[name](before, ...options, config);
  const notes = new stream.NoteStream(opened, random.seeded(seed));
  const rows = await piece.written(notes, plan, wish, choice);
  return [rows, piece.withNew(before, rows, plan, 0).notes];
}"""


@pytest.fixture
def watched(monkeypatch) -> tuple[list[np.ndarray], list[float]]:
    """Notes that Python's streams write from now on, and how near each came to being another one."""
    notes: list[np.ndarray] = []
    nearest: list[float] = []
    found: list[float] = []
    write = NoteStream.write

    def watched_write(stream: NoteStream, *args: Any) -> Any:
        found.clear()
        notes.append(write(stream, *args))
        nearest.append(min(found))
        return notes[-1]

    def watched_choose(scores: np.ndarray, generator: torch.Generator) -> int:
        shares = np.exp((scores - scores.max()).astype(np.float64))
        number = torch.rand((), dtype=torch.float64, generator=generator.clone_state()).item()
        found.append(float(np.abs(shares.cumsum() / shares.sum() - number)[shares > 0].min()))
        return choose(scores, generator)

    def watched_warped(temperature: float, top_p: float) -> Any:
        process = warped(temperature, top_p)

        def watch(column: int, scores: np.ndarray, onset: float) -> np.ndarray:
            if temperature == 0:
                found.append(float(np.diff(np.sort(scores)[-2:])[0]))
            return process(column, scores, onset)

        return watch

    monkeypatch.setattr(NoteStream, "write", watched_write)
    monkeypatch.setattr(note_stream, "choose", watched_choose)
    monkeypatch.setattr(search, "warped", watched_warped)
    return notes, nearest


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plan", "change", "wish", "asked_for", "choice", "least"),
    [
        (["fillPlan", 4.0, 10.0], fill_notes, {}, {}, {}, 20),
        (
            ["fillPlan", 4.0, 10.0],
            fill_notes,
            {"density": 5, "loudness": 50, "register": 66, "keyName": "C minor", "kind": "classical"},
            {"density": 5, "loudness": 50, "register": 66, "key": "C minor", "kind": "classical"},
            {},
            10,
        ),
        (["accompanyPlan", "below"], accompany_notes, {"density": 4}, {"density": 4}, {}, 10),
        (["accompanyPlan", "above"], accompany_notes, {}, {}, {"temperature": 1.0, "top_p": 0.95}, 10),
        (["fillPlan", 4.0, 10.0], fill_notes, {"density": 8}, {"density": 8}, {"temperature": 0.9, "top_p": 0.9}, 20),
        (["endPlan", 40], end_notes, {}, {}, {"temperature": 1.0, "top_p": 0.98}, 200),
    ],
    ids=["fill", "fill as asked", "accompany below", "accompany above, seed", "fill as asked, seed", "end, seed"],
)
def test_a_piece_becomes_what_python_makes_of_it(opened, watched, plan, change, wish, asked_for, choice, least):
    model, encoder = load_model(pg.PIANO_MODEL)
    exporter = NoteExporter(model.cpu())
    whole = pg.read_midi(Path(__file__).parents[1] / "docs" / "prelude.mid")
    (name, *options), seed = plan, 7
    piece = whole.where(whole.onset_sec < (6 if name == "accompanyPlan" else 20))
    choice = choice or {"temperature": 0.0, "top_p": 1.0}
    arguments = {
        "fillPlan": lambda: {"start_sec": options[0], "end_sec": options[1]},
        "accompanyPlan": lambda: {"side": options[0]},
        "endPlan": lambda: {"seconds": options[0]},
    }[name]()
    fast = exporter.open(exporter.graphs())
    result = change(fast, encoder, piece, **arguments, **asked_for, **choice, seed=seed)[0]
    expected, nearest = watched
    expected = expected[:-1] if len(expected) > len(result.new) else expected  # the last one may be taken back
    chosen = {"temperature": choice["temperature"], "topP": choice["top_p"]}
    data = [list(pg.notes_to_midi_bytes(piece)), plan, {"guidanceScale": 2, **wish}, seed, chosen]
    rows, notes = opened.evaluate(CHANGE, data)
    assert len(rows) >= least
    for place, (row, other) in enumerate(zip(rows, expected, strict=False)):
        if not np.array_equal(row, other):
            # Another order of summation may turn over a tie, after which all is different.
            assert nearest[place] < NEAR, f"note {place} differs"
            assert place > least / 2
            return
    table = np.stack([result.notes.onset_sec, result.notes.duration_sec, result.notes["pitch"]], -1)
    found = np.array([[note["onset"], note["offset"] - note["onset"], note["pitch"]] for note in notes])
    assert len(rows) >= len(expected) - 1 and len(found) == len(table)
    order, other = (np.lexsort((each[:, 0], each[:, 2])) for each in (table, found))
    assert np.allclose(table[order], found[other], atol=0.005)  # ticks there, milliseconds here


@pytest.mark.slow
def test_a_phrase_is_answered_heard_seen_and_saved(opened, tmp_path):
    opened.wait_for_selector("#state[data-state=listening]")
    assert loudest(opened, 0.3) < 0.01
    opened.locator("#answer_sec").fill("3")
    for key in "adgk":
        opened.keyboard.down(key)
        opened.wait_for_timeout(150)
        opened.keyboard.up(key)
    opened.wait_for_selector("#state[data-state=answering]")
    opened.wait_for_selector(".row.voice-1")
    assert loudest(opened, 1.0) > 0.01
    opened.screenshot(path=tmp_path / "static.png")
    opened.wait_for_selector("#state[data-state=listening]")
    piece = saved_session(opened, tmp_path)
    assert piece["pitch"][piece["channel"] == 0].tolist() == [60, 64, 67, 72]
    answered = piece.where(piece["channel"] == 1)
    assert len(answered) and answered.onset_sec.min() > piece.onset_sec[piece["channel"] == 0].max()
    before = opened.evaluate("pianogen.roll.notes.size")
    opened.click("#undo")
    wait_until(opened, f"pianogen.roll.notes.size < {before}")


@pytest.mark.slow
def test_a_file_is_gone_on_with(opened, tmp_path):
    pg.write_midi(some_notes(), tmp_path / "mine.mid")
    opened.wait_for_selector("#state[data-state=listening]")
    opened.locator("#answer_sec").fill("2")
    opened.set_input_files("#file", tmp_path / "mine.mid")
    opened.wait_for_selector("#piece:not([hidden])")
    opened.click("#piece-continue")
    opened.wait_for_selector("#state[data-state=answering]")
    opened.wait_for_selector(".row.voice-1")
    opened.wait_for_selector("#state[data-state=listening]")
    piece = saved_session(opened, tmp_path)
    assert (piece["channel"] == 0).sum() == len(some_notes()) and (piece["channel"] == 1).any()


@pytest.mark.slow
def test_a_file_is_filled_accompanied_ended_undone_and_saved(opened, tmp_path):
    whole = pg.read_midi(Path(__file__).parents[1] / "docs" / "prelude.mid")
    piece = whole.where(whole.onset_sec < 10)
    pg.write_midi(piece, tmp_path / "mine.mid")
    opened.wait_for_selector("#state[data-state=listening]")
    opened.locator("#answer_sec").fill("4")
    opened.set_input_files("#file", tmp_path / "mine.mid")
    opened.wait_for_selector("#piece:not([hidden])")
    opened.locator("#piece-seed").fill("5")

    def changed(button: str) -> list[list[float]]:
        """The piece after a click, and only then."""
        before = opened.evaluate("window.shown = pianogen.player.notes")
        opened.click(button)
        wait_until(opened, "window.shown !== pianogen.player.notes")
        notes = opened.evaluate("pianogen.player.notes")
        assert notes != before
        return [[note["onset"], note["pitch"], note["voice"]] for note in notes]

    roll = opened.locator("#piece canvas").bounding_box()
    opened.mouse.move(roll["x"] + roll["width"] * 0.5, roll["y"] + 50)
    opened.mouse.down()
    opened.mouse.move(roll["x"] + roll["width"] * 0.7, roll["y"] + 50, steps=5)
    opened.mouse.up()
    start, end = opened.evaluate("pianogen.player.roll.selection")
    filled = changed("#piece-fill")
    new = [each for each in filled if each[2] == 1]
    assert new and all(start - 0.01 <= onset < end for onset, _, _ in new)
    assert len(filled) - len(new) == ((piece.onset_sec < start) | (piece.onset_sec >= end)).sum()
    opened.screenshot(path=tmp_path / "filled.png")
    assert all(voice == 0 for _, _, voice in changed("#piece-undo"))
    opened.evaluate("(span) => { pianogen.player.roll.selection = span; }", [start, end])
    assert changed("#piece-fill") == filled, "the same seed writes the same notes"
    accompanied = changed("#piece-below")
    with opened.expect_download() as download:
        opened.click("#piece-save")
    download.value.save_as(tmp_path / "piece.mid")
    saved = pg.read_midi(tmp_path / "piece.mid")
    assert len(saved) == len(accompanied) and (saved["channel"] == 1).sum() == len(accompanied) - len(filled)
    assert saved.ticks_per_quarter == piece.ticks_per_quarter and np.array_equal(saved.tempos, piece.tempos)
    kept = piece.where((piece.onset_sec < start) | (piece.onset_sec >= end))
    strikes = [set(zip(each["onset_tick"].tolist(), each["pitch"].tolist(), strict=True)) for each in (kept, saved)]
    assert strikes[0] <= strikes[1]
    ended = changed("#piece-end")
    assert max(each[0] for each in ended) > max(each[0] for each in accompanied)
    opened.click("#piece-close")
    assert opened.locator("#piece").is_hidden()


BACKGROUND = """
  const [interval, timeout] = [window.setInterval, window.setTimeout];
  window.setInterval = (call, ms) => interval(call, Math.max(ms, 1000));
  window.setTimeout = (call, ms) => timeout(call, Math.max(ms ?? 0, 1000));
  window.requestAnimationFrame = () => 0;
  Object.defineProperty(document, "hidden", { get: () => true });
"""


@pytest.mark.slow
def test_what_a_browser_slows_in_the_background_slows_no_session(browser, hosted):
    tab, faults = watched_tab(browser, 120_000)
    tab.add_init_script(BACKGROUND)  # as browsers do it
    tab.goto(hosted.address)
    tab.wait_for_selector("#state[data-state=listening]")
    tab.evaluate("""() => {
      const { engine } = pianogen.session, tick = engine.tick.bind(engine), add = pianogen.roll.add.bind(pianogen.roll);
      window.ticks = 0;
      window.aheads = [];
      engine.tick = () => { window.ticks++; tick(); };
      pianogen.roll.add = (id, note) => {
        if (note.voice === 1) window.aheads.push(note.onset - pianogen.sessionNow());
        add(id, note);
      };
    }""")
    tab.locator("#answer_sec").fill("3")
    for key in "adgk":
        tab.keyboard.down(key)
        tab.wait_for_timeout(150)
        tab.keyboard.up(key)
    tab.wait_for_selector("#state[data-state=answering]")
    tab.wait_for_selector("#state[data-state=listening]")
    assert tab.evaluate("window.ticks") > 60, "the timer of the page would have come to four"
    aheads = tab.evaluate("window.aheads")
    assert len(aheads) > 2 and np.median(aheads) > 0, "most notes are told before they begin"
    tab.close()
    assert not faults


@pytest.mark.slow
def test_what_is_played_is_accompanied_and_a_loop_is_filled(opened):
    opened.wait_for_selector("#state[data-state=listening]")
    opened.click("button[data-mode=accompany]")
    opened.select_option("#side", "below")
    for key in "adgkadgk":
        opened.keyboard.down(key)
        opened.wait_for_timeout(250)
        opened.keyboard.up(key)
    opened.wait_for_selector("#state[data-state=accompanying]")
    notes = "[...pianogen.roll.notes.values()]"
    wait_until(opened, f"{notes}.some((note) => note.voice === 1)")
    opened.keyboard.press("Escape")
    opened.click("button[data-mode=loop]")
    opened.locator("#answer_sec").fill("2")
    for key in "adg":
        opened.keyboard.down(key)
        opened.wait_for_timeout(200)
        opened.keyboard.up(key)
    opened.wait_for_selector("#state[data-state=looping]")
    wait_until(opened, f"{notes}.filter((note) => note.voice === 2).length >= 3")
    opened.keyboard.press("Escape")
    opened.wait_for_selector("#state[data-state=listening]")
    wait_until(opened, f"{notes}.every((note) => note.offset <= pianogen.sessionNow() + 0.2)")


@pytest.mark.slow
def test_the_knobs_of_both_sessions_begin_alike(parts):
    found = parts.evaluate("""async () => {
      const { LiveEngine } = await import("./static/live.js");
      return new LiveEngine({}, () => {}).knobs;
    }""")
    assert {name: getattr(LiveKnobs(), name) for name in found} == found
