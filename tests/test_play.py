"""`pianogen play` in real time: sessions over MIDI sockets, ports by name, and the file of what was played."""

from __future__ import annotations

import importlib.util
import socket
import time
from collections.abc import Iterator
from types import SimpleNamespace

import mido
import mido.sockets
import pytest
from models_and_tokenizers import some_notes
from test_live import ENCODER, MODEL_ITSELF, make_model, still_sounding

import pianogen_hf as pg
from pianogen_hf.commands.play import main
from pianogen_hf.generation.live import LiveEngine
from pianogen_hf.generation.live_turns import LiveKnobs
from pianogen_hf.generation.new_notes import GenerationError
from pianogen_hf.workflows import play as play_module
from pianogen_hf.workflows.midi_ports import MidoOut, PortError, channel_messages, chosen
from pianogen_hf.workflows.play import LiveSession, load_player, play


class Room:
    """A session, and somebody who plays with it over a socket on this machine."""

    def __init__(self, model=MODEL_ITSELF, **knobs) -> None:
        self.events: list[dict] = []
        server = mido.sockets.PortServer("127.0.0.1", 0)
        self.player = mido.sockets.connect("127.0.0.1", server._socket.getsockname()[1])
        self.port = server.accept()
        self.engine = LiveEngine(
            model, ENCODER, MidoOut(self.port), knobs=LiveKnobs(**knobs), seed=0, on_event=self.events.append
        )
        source = SimpleNamespace(pending=lambda: channel_messages(self.port))
        self.session = LiveSession(self.engine, source)
        self.session.start()
        self.heard: list[tuple[float, tuple[int, ...]]] = []

    def play(self, *pitches: int, sec: float = 0.1) -> None:
        for pitch in pitches:
            self.player.send(mido.Message("note_on", note=pitch, velocity=80))
            self.listen(sec)
            self.player.send(mido.Message("note_off", note=pitch))

    def listen(self, sec: float) -> None:
        end = time.monotonic() + sec
        while time.monotonic() < end:
            self.heard += [(time.monotonic(), tuple(message.bytes())) for message in self.player.iter_pending()]
            time.sleep(0.001)

    def listen_until(self, is_so, most_sec: float = 30) -> None:
        end = time.monotonic() + most_sec
        while not is_so():
            assert time.monotonic() < end, (self.engine.state, self.events[-3:])
            self.listen(0.02)


@pytest.fixture
def room() -> Iterator[Room]:
    room = Room(answer_sec=1.5, pause_sec=0.3)
    yield room
    room.session.close()


def test_a_phrase_over_a_socket_is_answered_and_every_note_ends(room):
    room.play(60, 64, 67)
    room.listen_until(lambda: len(room.heard) > 3)
    room.listen_until(lambda: room.engine.state == "listening")
    room.listen(0.2)
    assert not still_sounding(room.heard)
    piece = room.engine.notes()
    assert piece["pitch"][piece["track"] == 0].tolist() == [60, 64, 67]
    ons = [message[1] for _, message in room.heard if message[0] == 0x90]
    assert sorted(piece["pitch"][piece["track"] == 1].tolist()) == sorted(ons)


def test_closing_in_the_middle_ends_what_sounds(room):
    room.play(60, 64, 67)
    room.listen_until(lambda: still_sounding(room.heard))
    room.session.close()
    room.listen(0.2)
    assert not still_sounding(room.heard)
    assert [message[:2] for _, message in room.heard[-2:]] == [(0xB0, 64), (0xB0, 123)]


def test_a_player_who_is_gone_leaves_no_key_down_and_the_session_says_so(room):
    room.player.send(mido.Message("note_on", note=60))
    room.listen_until(lambda: room.engine.keyboard.held)
    room.player._socket.shutdown(socket.SHUT_RDWR)
    end = time.monotonic() + 20
    while room.engine.keyboard.held and time.monotonic() < end:
        time.sleep(0.01)
    assert not room.engine.keyboard.held
    assert any(event["type"] == "error" for event in room.events)


def test_a_port_is_found_by_a_part_of_its_name_that_no_other_has():
    names = ["Roland FP-30 MIDI 1", "Midi Through", "Roland A-49"]
    assert chosen("fp-30", names, "--midi_in") == names[0]
    assert chosen("Midi Through", [*names, "Midi Through 2"], "--midi_in") == "Midi Through"
    for name, says in (("roland", "may be"), ("Yamaha", "there are 'Roland"), ("Rolnd A-49", "did you mean")):
        with pytest.raises(PortError, match=says):
            chosen(name, names, "--midi_in")
    with pytest.raises(PortError, match="--virtual"):
        chosen("x", [], "--midi_in")


def test_without_the_extra_one_line_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "rtmidi", None)
    assert main(["--list_ports"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and 'pip install "pianogen_hf[live]"' in error


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--channel", "17"], "--channel"),
        (["--virtual", "--midi_in", "x"], "--virtual"),
        (["--density", "-1"], "density"),
        (["--output", "/"], "--output"),
        (["--midi_out", "no such port"], "MIDI"),
        (["--mode", "dance"], "dance"),
    ],
)
def test_wrong_options_are_one_line(options, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(options) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("ALSA")]
    assert len(error) == 1 and says in error[0]
    assert not list(tmp_path.iterdir())


def test_a_model_that_takes_no_given_notes_is_refused():
    with pytest.raises(GenerationError, match="V8"):
        load_player(pg.BACH_MODEL)


@pytest.mark.skipif(importlib.util.find_spec("onnx") is None, reason="onnx is not installed")
def test_the_package_s_model_is_played_with_the_fast_engine_without_an_export():
    model, _ = load_player(None)
    assert type(model).__name__ == "OnnxNoteEngine"


def test_the_session_goes_to_the_file_at_the_end(monkeypatch, tmp_path, capsys):
    """`play` without ports but with a piece to begin with; Ctrl-C comes while it waits."""
    pg.write_midi(some_notes(), tmp_path / "prompt.mid")
    model = make_model(hurry=9.0)
    monkeypatch.setattr(play_module, "load_player", lambda *args: (model, ENCODER))

    def until_it_has_answered(session: LiveSession) -> None:
        for _ in range(20):  # on a busy machine notes that are late are left out
            session.engine.hand_over()
            until = time.monotonic() + 3
            while session.engine.output.num_sent < 3 and time.monotonic() < until:
                time.sleep(0.01)
            if session.engine.output.num_sent >= 3:
                break
        raise KeyboardInterrupt

    play(
        prompt=str(tmp_path / "prompt.mid"),
        output=tmp_path / "out.mid",
        knobs=LiveKnobs(answer_sec=5.0),
        seed=0,
        serve=until_it_has_answered,
    )
    piece = pg.read_midi(tmp_path / "out.mid")
    assert (piece["channel"] == 0).sum() == len(some_notes()) and (piece["channel"] == 1).sum() >= 3
    assert "notes of both sides" in capsys.readouterr().out


def test_a_port_that_comes_back_is_used_again(monkeypatch):
    sent: list = []

    class Port(MidoOut):
        def __init__(self, name: str) -> None:
            self.name = name

        def send(self, message) -> None:
            sent.append(message)

    engine = LiveEngine(make_model(), ENCODER, Port("Piano"), seed=0)
    session = LiveSession(engine)
    names: list[list[str]] = [[], []]
    monkeypatch.setattr(play_module, "port_names", lambda: names)
    monkeypatch.setattr(play_module, "open_output", Port)
    play_module._watch_ports(session, None, "Piano")
    assert engine.output.error == "Piano is gone"
    names[1] = ["Piano"]
    play_module._watch_ports(session, None, "Piano")
    assert engine.output.error is None and [message[:2] for message in sent] == [(0xB0, 64), (0xB0, 123)]
