"""The page of `pianogen play` and `pianogen show`: who may come in, what it takes, and the page itself in a browser."""

from __future__ import annotations

import importlib.util
import json
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from models_and_tokenizers import TOKENIZERS, some_notes
from pages import loudest, saved_session, wait_until, watched_tab
from test_live import ENCODER, make_model, still_sounding

import pianogen_hf as pg

pytest.importorskip("starlette", reason='pip install "pianogen_hf[play]"')
pytest.importorskip("uvicorn", reason='pip install "pianogen_hf[play]"')
pytest.importorskip("websockets", reason='pip install "pianogen_hf[play]"')

import uvicorn
import websockets
from websockets.sync.client import connect

from pianogen_hf.apps.player.files import TONE_PITCHES
from pianogen_hf.apps.player.play import PlayPage
from pianogen_hf.apps.player.server import MAX_MESSAGE, Gate, ServerError, is_loopback, listen
from pianogen_hf.apps.player.show import show_app, timed_tokens
from pianogen_hf.commands import show as show_command
from pianogen_hf.generation.live import LiveEngine
from pianogen_hf.generation.live_turns import LiveKnobs
from pianogen_hf.workflows.play import LiveSession, load_player

HAS_SOUND = all(importlib.util.find_spec(name) for name in ("midirenderer", "pretty_midi"))


class Served:
    """An app on a free port of this machine."""

    def __init__(self, app: Any, gate: Gate) -> None:
        listening = listen("127.0.0.1", 0)
        self.host = f"127.0.0.1:{listening.getsockname()[1]}"
        self.token, self.app = gate.token, app
        config = uvicorn.Config(app, log_level="error", ws_max_size=MAX_MESSAGE, lifespan="off")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listening]}, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)

    def close(self) -> None:
        self.server.should_exit = True
        self.thread.join(5)

    @property
    def address(self) -> str:
        return f"http://{self.host}/?token={self.token}"

    def ask(self, path: str, body: bytes | None = None, token: str | None = None, **headers: str) -> tuple[int, bytes]:
        """Status and body of an answer."""
        address = f"http://{self.host}/{path}?token={self.token if token is None else token}"
        request = urllib.request.Request(address, body, headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def post(self, path: str, body: bytes | dict) -> tuple[int, Any]:
        """An answer to the page's own request, as JSON."""
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        status, answer = self.ask(path, body, Origin=f"http://{self.host}")
        return status, json.loads(answer)

    def socket(self, token: str | None = None, origin: str | None = "") -> Any:
        token = self.token if token is None else token
        origin = f"http://{self.host}" if origin == "" else origin
        return connect(f"ws://{self.host}/session?token={token}", origin=origin)


@pytest.fixture(scope="module")
def played() -> Iterator[tuple[Served, LiveSession]]:
    engine = LiveEngine(make_model(hurry=9.0), ENCODER, knobs=LiveKnobs(answer_sec=1.5, pause_sec=0.3), seed=0)
    session, gate = LiveSession(engine), Gate()
    session.start()
    served = Served(PlayPage(session, gate).app(), gate)
    yield served, session
    served.close()
    session.close()


@pytest.fixture
def page(played) -> Served:
    served, session = played
    session.engine.stop()
    return served


def events_of(websocket: Any, until: str, most_sec: float = 30, **fields: Any) -> list[dict]:
    """What is told up to the first event of a type, with these fields."""
    events: list[dict] = []
    while True:
        events.append(json.loads(websocket.recv(timeout=most_sec)))
        if events[-1]["type"] == until and all(events[-1].get(name) == value for name, value in fields.items()):
            return events


# Who may come in ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["", "session.mid", "sounds.wav", "sounds.json", "piece.mid"])
@pytest.mark.parametrize("token", ["", "wrong", "\u00e9"])
def test_without_the_token_nothing_is_given(page, path, token):
    status, body = page.ask(path, token=urllib.parse.quote(token))
    assert status == 403 and b"token" in body


def test_a_page_from_elsewhere_can_ask_for_nothing(page):
    for headers in ({"Origin": "http://evil.example"}, {"Origin": "null"}, {}):
        status, _ = page.ask("piece", pg.notes_to_midi_bytes(some_notes()), **headers)
        assert status == 403
    assert page.ask("session.mid", Origin="http://evil.example")[0] == 403
    assert page.ask("", Host="evil.example")[0] == 400  # a name that was made to mean this machine


@pytest.mark.parametrize("origin", ["http://evil.example", "null", None, "http://127.0.0.1:1"])
def test_a_socket_from_elsewhere_is_refused(page, origin):
    with pytest.raises(websockets.InvalidStatus, match="403"):
        page.socket(origin=origin)


def test_a_socket_without_the_token_is_refused(page):
    with pytest.raises(websockets.InvalidStatus, match="403"):
        page.socket(token="wrong")


@pytest.mark.parametrize(
    "path", ["static/../server.py", "static/..%2fserver.py", "static//etc/passwd", "%2e%2e/%2e%2e/etc/passwd"]
)
def test_no_file_but_those_of_the_page_is_given(page, path):
    with socket.create_connection(page.host.split(":")) as raw:  # urllib would tidy the path
        raw.sendall(f"GET /{path} HTTP/1.1\r\nHost: {page.host}\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: raw.recv(65536), b""))
    assert answer.split()[1] in (b"404", b"400") and b"root:" not in answer and b"import" not in answer


def test_it_listens_to_this_machine_alone_unless_it_is_told():
    listening = listen("127.0.0.1", 0)
    assert listening.getsockname()[0] == "127.0.0.1"
    listening.listen()
    with pytest.raises(ServerError, match="--port"):
        listen("127.0.0.1", listening.getsockname()[1])
    with pytest.raises(ServerError):
        listen("256.1.1.1", 0)
    assert is_loopback("localhost") and is_loopback("::1") and not is_loopback("0.0.0.0")


# What it takes --------------------------------------------------------------------------------------------------------


def test_a_phrase_through_the_socket_is_answered(page):
    with page.socket() as websocket:
        assert events_of(websocket, "hello")[-1]["state"] == "listening"
        for pitch in (60, 64, 67):
            websocket.send(json.dumps({"type": "midi", "bytes": [0x90, pitch, 80]}))
            time.sleep(0.05)
            websocket.send(json.dumps({"type": "midi", "bytes": [0x80, pitch, 0]}))
        events = events_of(websocket, "state", state="answering")  # begun in silence, notes may come before it
        events += events_of(websocket, "state", state="listening")
        notes = [event for event in events if event["type"] == "note"]
        assert [event["pitch"] for event in notes if event["voice"] == 0] == [60, 64, 67]
        assert any(event["voice"] == 1 and len(event["row"]) == 4 for event in notes)
    status, midi = page.ask("session.mid")
    assert status == 200 and {0, 1} <= set(pg.read_midi(midi)["channel"].tolist())


@pytest.mark.parametrize(
    "message",
    [
        "",
        "nonsense",
        "[]",
        "3",
        "null",
        "{}",
        '{"type": "midi"}',
        '{"type": "midi", "bytes": "abc"}',
        '{"type": "midi", "bytes": [144, 60, 1e99]}',
        '{"type": "knobs"}',
        '{"type": "knobs", "values": {"mode": []}}',
        '{"type": "knobs", "values": {"density": "x"}}',
        '{"type": "knobs", "values": {"pause_sec": NaN}}',
        '{"type": "knobs", "values": {"temperature": null}}',
        '{"type": "knobs", "values": {"self": 1}}',
        '{"type": "close"}',
        '{"type": "__class__"}',
        "[" * 20_000,
    ],
)
def test_what_means_nothing_is_refused_in_a_line_and_changes_nothing(page, played, message):
    before = played[1].engine.knobs
    with page.socket() as websocket:
        websocket.send(message)
        error = events_of(websocket, "error")[-1]["message"]
        assert error and "\n" not in error and len(error) <= 200
        websocket.send('{"type": "ping"}')
        events_of(websocket, "pong")
    assert played[1].engine.knobs == before


def test_a_message_that_is_too_long_ends_that_socket_alone(page):
    with page.socket() as websocket, page.socket() as other:
        with pytest.raises(websockets.ConnectionClosed):
            websocket.send("x" * (MAX_MESSAGE + 1))
            for _ in range(100):
                websocket.recv(timeout=5)
        other.send('{"type": "ping"}')
        events_of(other, "pong")


def test_a_page_that_goes_leaves_no_key_down(page, played):
    with page.socket() as websocket:
        websocket.send(json.dumps({"type": "midi", "bytes": [0x90, 60, 80]}))
        events_of(websocket, "note")
    end = time.monotonic() + 10
    while played[1].engine.keyboard.held and time.monotonic() < end:
        time.sleep(0.01)
    assert not played[1].engine.keyboard.held


def test_a_piece_is_opened_filled_accompanied_undone_and_saved(page):
    status, answer = page.post("piece", pg.notes_to_midi_bytes(some_notes()))
    assert status == 200 and len(answer["notes"]) == len(some_notes())
    status, filled = page.post("verb", {"verb": "fill", "start": 2.0, "end": 4.0})
    assert status == 200
    new = [row for row in filled["notes"] if row[4] == 1]
    assert new and all(2000 <= row[0] < 4000 for row in new)
    status, accompanied = page.post("verb", {"verb": "accompany", "side": "below"})
    assert status == 200 and sum(row[4] for row in accompanied["notes"]) > len(new)
    assert page.post("verb", {"verb": "undo"})[1] == filled
    saved = pg.read_midi(page.ask("piece.mid")[1])
    assert len(saved) == len(filled["notes"])


def test_going_on_from_a_piece_puts_it_into_the_session(page, played):
    page.post("piece", pg.notes_to_midi_bytes(some_notes()))
    with page.socket() as websocket:
        assert page.post("verb", {"verb": "continue"})[0] == 200
        events = events_of(websocket, "state", state="answering")
        hello = [event for event in events if event["type"] == "hello"][-1]
        assert len(hello["notes"]) == len(some_notes())


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("piece", b""),
        ("piece", b"MThd and so on"),
        ("piece", pg.notes_to_midi_bytes(some_notes().where([]))),
        ("piece", b"x" * (2**21 + 1)),
        ("verb", b"nonsense"),
        ("verb", b"[]"),
        ("verb", {"verb": "dance"}),
        ("verb", {"verb": "fill"}),
        ("verb", {"verb": "fill", "start": 1, "end": 2, "seed": -1}),
        ("verb", {"verb": "fill", "start": 1, "end": 2, "seed": "seven"}),
        ("verb", {"verb": "fill", "start": "a", "end": 3}),
        ("verb", {"verb": "fill", "start": 1e9, "end": 2e9}),
        ("verb", {"verb": "accompany", "side": "../../etc"}),
    ],
)
def test_what_can_not_be_done_with_a_piece_is_said_in_a_line(page, path, body):
    page.post("piece", pg.notes_to_midi_bytes(some_notes()))
    status, answer = page.post(path, body)
    assert status == 422 and answer["message"] and "\n" not in answer["message"]


@pytest.mark.skipif(not HAS_SOUND, reason='no sound: pip install "pianogen_hf[audio]"')
def test_the_tones_of_the_page_are_those_that_it_names(page):
    import io
    import wave

    import numpy as np

    about = json.loads(page.ask("sounds.json")[1])
    with wave.open(io.BytesIO(page.ask("sounds.wav")[1])) as wav:
        rate, samples = wav.getframerate(), np.frombuffer(wav.readframes(wav.getnframes()), "<i2")
    assert about["pitches"] == list(TONE_PITCHES)
    for index in (3, 9, 15):
        begin = round((index * about["seconds"] + 0.2) * rate)
        spectrum = np.abs(np.fft.rfft(samples[begin : begin + rate] * np.hanning(rate), 8 * rate))
        expected = 440 * 2 ** ((TONE_PITCHES[index] - 69) / 12)
        near = spectrum[round(8 * expected * 0.97) : round(8 * expected * 1.03)]
        assert near.max() > 0.2 * spectrum.max()


# Tokens beside a piece ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=lambda each: each.__name__)
def test_every_token_of_every_scheme_stands_at_a_time_of_the_piece(tokenizer):
    notes, encoder = some_notes(), tokenizer()
    tokens = timed_tokens(encoder, notes)
    seconds = [second for _, second in tokens]
    assert len(tokens) == len(encoder.encode_notes(notes))
    assert seconds == sorted(seconds) and seconds[-1] <= notes.end_sec + 0.6
    assert seconds[-1] >= notes.onset_sec.max() - 0.6


def test_a_row_stands_at_the_onset_of_its_note():
    notes = some_notes()
    assert {second for _, second in timed_tokens(ENCODER, notes)} == {round(float(sec), 2) for sec in notes.onset_sec}


def test_a_pitch_stands_at_the_onset_of_its_note():
    notes = pg.Notes.from_columns(480, onset_tick=[0, 480, 960], duration_tick=[240] * 3, pitch=[60, 64, 67])
    times = {text: second for text, second in timed_tokens(pg.RemiTokenizer(), notes) if text.startswith("Pitch")}
    assert times == {"Pitch_60": 0.0, "Pitch_64": 0.5, "Pitch_67": 1.0}


def test_wrong_options_of_show_are_one_line(tmp_path, capsys):
    pg.write_midi(some_notes(), tmp_path / "piece.mid")
    for options, says in (
        ([str(tmp_path / "none.mid")], "none.mid"),
        ([str(tmp_path / "piece.mid"), "--tokenizer", "rmi"], "did you mean 'remi'"),
        ([str(tmp_path / "piece.mid"), "--host", "256.0.0.1"], "--host"),
    ):
        assert show_command.main(options) == 2
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1


# In a browser ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def opened(browser, page) -> Iterator[Any]:
    """The page of a session, which must complain of nothing."""
    tab, faults = watched_tab(browser, 60_000)
    tab.route("**/*", lambda route: route.continue_() if page.host in route.request.url else route.abort())
    tab.goto(page.address)
    tab.wait_for_selector("#state[data-state=listening]")
    yield tab
    tab.close()
    assert not faults


@pytest.mark.slow
def test_keys_are_heard_answered_seen_and_saved(opened, tmp_path):
    voices_of = "[...pianogen.roll.notes.values()].map((note) => note.voice)"
    wait_until(opened, "pianogen.piano.samples !== null" if HAS_SOUND else "true")
    before = opened.evaluate(voices_of).count(0)  # of the tests before this one
    assert loudest(opened, 0.3) < 0.01
    for key in "adgk":
        opened.keyboard.down(key)
        opened.wait_for_timeout(150)
        opened.keyboard.up(key)
    assert loudest(opened, 0.2) > 0.01
    opened.wait_for_selector("#state[data-state=answering]")
    opened.wait_for_selector(".row.voice-1")
    assert loudest(opened, 1.0) > 0.01
    voices = opened.evaluate(voices_of)
    assert voices.count(0) == before + 4 and 1 in voices
    opened.wait_for_selector("#state[data-state=listening]")
    piece = saved_session(opened, tmp_path)
    assert piece["pitch"][piece["channel"] == 0].tolist()[-4:] == [60, 64, 67, 72]
    assert (piece["channel"] == 1).any()
    picture = opened.screenshot(path=tmp_path / "play.png")
    assert len(picture) > 10_000


@pytest.mark.slow
def test_the_mouse_plays_and_leaves_no_key_down(opened, played):
    box = opened.locator('.key[data-pitch="60"]').bounding_box()
    opened.mouse.move(box["x"] + 5, box["y"] + box["height"] - 8)
    opened.mouse.down()
    opened.mouse.move(box["x"] + 3 * box["width"], box["y"] + box["height"] - 8, steps=12)
    wait_until(opened, "[...pianogen.roll.notes.values()].some((note) => note.pitch > 62 && note.voice === 0)")
    opened.mouse.up()
    wait_until(opened, "[...pianogen.roll.notes.values()].every((note) => note.voice > 0 || note.offset !== null)")
    assert not played[1].engine.keyboard.held


@pytest.mark.slow
def test_knobs_and_modes_reach_the_session_and_stop_ends_it(opened, played):
    engine = played[1].engine
    opened.click("button[data-mode=accompany]")
    opened.wait_for_selector("button[data-mode=accompany][aria-pressed=true]")
    opened.locator("#density").fill("6")
    opened.select_option("#key_name", "C minor")
    opened.wait_for_timeout(300)
    assert (engine.knobs.mode, engine.knobs.density, engine.knobs.key_name) == ("accompany", 6, "C minor")
    opened.keyboard.press("Escape")
    opened.click("button[data-mode=answer]")
    opened.locator("#density").fill("0")
    opened.select_option("#key_name", "")
    wait_until(opened, "document.querySelector('button[data-mode=answer]').ariaPressed === 'true'")
    opened.wait_for_timeout(300)
    assert engine.knobs.density is None and engine.knobs.key_name is None


@pytest.mark.slow
def test_a_file_is_opened_heard_filled_and_closed(opened, tmp_path):
    pg.write_midi(some_notes(), tmp_path / "mine.mid")
    opened.set_input_files("#file", tmp_path / "mine.mid")
    opened.wait_for_selector("#piece:not([hidden])")
    opened.click("#piece-play")
    assert loudest(opened, 1.0) > 0.01
    opened.click("#piece-play")
    roll = opened.locator("#piece canvas").bounding_box()
    opened.mouse.move(roll["x"] + roll["width"] * 0.4, roll["y"] + 50)
    opened.mouse.down()
    opened.mouse.move(roll["x"] + roll["width"] * 0.5, roll["y"] + 50, steps=5)
    opened.mouse.up()
    opened.click("#piece-fill")
    wait_until(opened, "pianogen.player.notes.some((note) => note.voice === 1)")
    opened.screenshot(path=tmp_path / "piece.png")
    opened.click("#piece-close")
    assert opened.locator("#piece").is_hidden()


@pytest.mark.slow
def test_show_plays_a_piece_and_follows_its_tokens(browser, tmp_path):
    gate = Gate()
    served = Served(show_app(gate, "piece.mid", some_notes(), pg.RemiTokenizer()), gate)
    tab = browser.new_page(viewport={"width": 1280, "height": 800})
    tab.goto(served.address)
    tab.wait_for_selector("#tokens span")
    wait_until(tab, "pianogen.piano.samples !== null" if HAS_SOUND else "true")
    tab.click("#play")
    assert loudest(tab, 1.5) > 0.01
    assert tab.locator("#tokens span.past").count() > 0 and tab.locator("#tokens span.now").count() > 0
    tab.screenshot(path=tmp_path / "show.png")
    tab.locator("#tokens span").last.click()
    wait_until(tab, f"pianogen.player.position > {some_notes().onset_sec.max() - 1}")
    tab.close()
    served.close()


@pytest.mark.slow
def test_the_package_s_model_answers_a_phrase_in_real_time(tmp_path: Path):
    model, encoder = load_player(None)
    sent: list = []

    class Port:
        def send(self, message) -> None:
            sent.append((time.monotonic(), message))

    engine = LiveEngine(model, encoder, Port(), knobs=LiveKnobs(answer_sec=3.0, pause_sec=0.4), seed=0)
    session = LiveSession(engine)
    session.start()
    for pitch in (60, 62, 64, 65, 67, 69, 71, 72):
        engine.receive((0x90, pitch, 80))
        time.sleep(0.12)
        engine.receive((0x80, pitch, 0))
    time.sleep(5)
    session.close()
    assert len([message for _, message in sent if message[0] == 0x90]) > 3
    assert not still_sounding(sent)
