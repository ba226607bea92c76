"""A live session on a fake clock: what is sent, when, and that nothing which was begun is left without its end."""

from __future__ import annotations

import math
from collections import Counter

import mido
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models_and_tokenizers import loosened, some_notes, tiny_model

import pianogen_hf as pg
from pianogen_hf.generation.live import LiveEngine, LiveKnobs
from pianogen_hf.generation.live_notes import LOOP, MODEL, PLAYER, Keyboard, checked_message
from pianogen_hf.generation.live_stream import LiveStream
from pianogen_hf.generation.new_notes import GenerationError
from pianogen_hf.generation.note_stream import Controls, NoteStream
from pianogen_hf.models.modeling_note_transformer import TIME_SHIFT, NoteTransformerForCausalLM

ENCODER = pg.ContinuousNotesFeatureExtractor()
EMPTY = np.zeros((0, 4))


def make_model(context: int = 64, hurry: float = 5.0, num_recent_offsets: int = 0) -> NoteTransformerForCausalLM:
    """A model whose notes mostly follow soon."""
    torch.manual_seed(0)
    model = loosened(tiny_model(NoteTransformerForCausalLM, 130, num_recent_offsets=num_recent_offsets))
    model.config.max_position_embeddings = context
    with torch.no_grad():
        model.heads.time_shift_head.fc2.bias[:30] += hurry
    return model


MODEL_ITSELF = make_model()


class Room:
    """A session with everything in it: a clock that stands still unless told, a port that writes down, a model.

    Args:
        cost_sec: what a note costs the model; time goes by meanwhile, and notes are sent as they are in another thread.
    """

    def __init__(self, cost_sec: float = 0.004, model=MODEL_ITSELF, max_late_sec: float = 0.05, **knobs) -> None:
        self.sec, self.cost_sec, self.model, self.config = 100.0, cost_sec, model, model.config
        self.sent: list[tuple[float, tuple[int, int, int]]] = []
        self.events: list[dict] = []
        self.fault: Exception | None = None  # of the port
        self.crash: Exception | None = None  # of the model
        self.rows_read: list[int] = []
        self.engine: LiveEngine = None  # type: ignore[assignment]
        self.engine = LiveEngine(
            self,
            ENCODER,
            self,
            clock=lambda: self.sec,
            knobs=LiveKnobs(**knobs),
            seed=0,
            max_late_sec=max_late_sec,
            on_event=self.events.append,
        )

    # As a port
    def send(self, message: tuple[int, int, int]) -> None:
        if self.fault is not None:
            raise self.fault
        self.sent.append((self.sec - 100.0, message))

    # As a model
    def new_cache(self):
        return self.model.new_cache()

    def read(self, cache, rows, is_given, control_ids):
        self.rows_read.append(len(rows))
        return self.model.read(cache, rows, is_given, control_ids)

    def rewind(self, cache, rows, is_given) -> None:
        self.model.rewind(cache, rows, is_given)

    def joined(self, hidden_states):
        return self.model.joined(hidden_states)

    def draw_note(self, *hidden_state_and_so_on):
        if self.crash is not None:
            raise self.crash
        self.pass_time(self.cost_sec)
        return self.model.draw_note(*hidden_state_and_so_on)

    # As time
    def pass_time(self, sec: float) -> None:
        """Time goes by; what is due is sent every millisecond."""
        for _ in range(round(sec * 1000)):
            self.sec += 0.001
            self.engine.tick()

    def run(self, sec: float) -> None:
        """Time goes by, and the model works whenever there is something to do."""
        end = self.sec + sec
        while self.sec < end - 1e-6:
            self.engine.work()
            self.pass_time(0.001)

    # As a player
    def on(self, *pitches: int, velocity: int = 80) -> None:
        for pitch in pitches:
            self.engine.receive((0x90, pitch, velocity))

    def off(self, *pitches: int) -> None:
        for pitch in pitches:
            self.engine.receive((0x80, pitch, 0))

    def play(self, *pitches: int, sec: float = 0.2) -> None:
        """One key after the other."""
        for pitch in pitches:
            self.on(pitch)
            self.run(sec)
            self.off(pitch)

    def begun(self) -> list[tuple[float, int]]:
        """When which notes were sent."""
        return [(sec, message[1]) for sec, message in self.sent if message[0] & 0xF0 == 0x90]


def still_sounding(sent) -> Counter:
    """Keys that were begun and not ended, by what a synthesizer does with the messages."""
    sounding: Counter = Counter()
    for _, (status, number, _) in sent:
        if status & 0xF0 == 0x90:
            assert not sounding[status & 0xF, number], "a key was struck that sounds"
            sounding[status & 0xF, number] = 1
        elif status & 0xF0 == 0x80:
            del sounding[status & 0xF, number]
    return sounding


# What the model hears -------------------------------------------------------------------------------------------------


def random_notes(number: int, seed: int = 0, begin: float = 0.0) -> np.ndarray:
    random = np.random.default_rng(seed)
    onset = begin + np.cumsum(random.choice([0.0, 0.12, 0.5], number))
    rows = np.stack([onset, random.integers(40, 80, number), np.full(number, 70), np.full(number, 0.4)], axis=1)
    rows = rows[np.lexsort([rows[:, 1], rows[:, 0]])]
    return np.round(rows, 2)


@pytest.mark.parametrize("lookahead_sec", [0.0, math.inf])
def test_reading_only_what_has_changed_gives_what_reading_all_of_it_gives(lookahead_sec):
    """Notes are added, changed and taken back, and a fresh stream that reads everything draws the same ones."""
    model, random = MODEL_ITSELF, np.random.default_rng(1)
    kept = LiveStream(model, torch.Generator().manual_seed(3))
    past, given_notes = random_notes(40), random_notes(30, 1, 3.0)
    for size in (5, 9, 9, 30, 28, 40):
        fresh = LiveStream(model, torch.Generator().manual_seed(3))
        kept.generator.set_state(fresh.generator.get_state())
        past[random.integers(size), 3] += 0.1  # a note lasted longer
        begin = float(past[size - 1, 0])
        for stream in (kept, fresh):
            stream.lookahead_sec, stream.helped_from_sec, stream.begin_sec = lookahead_sec, begin, begin
            stream.hear(past[:size], given_notes[given_notes[:, 0] <= begin] if lookahead_sec == 0 else given_notes)
        fresh._oldest = kept._oldest
        for _ in range(3):
            assert np.array_equal(kept.write(False), fresh.write(False))


def from_0(notes: np.ndarray) -> np.ndarray:
    """The same notes, the first of them at 0, where a piece begins for a stream with a fixed past."""
    return np.round(notes - [notes[0, 0], 0, 0, 0], 2)


@pytest.mark.parametrize("hurry", [5.0, 7.0, 9.0])
def test_it_hears_what_a_stream_with_a_fixed_past_hears(hurry):
    model = make_model(hurry=hurry, num_recent_offsets=4)
    for seed in range(3):
        past, one, other = from_0(random_notes(20, seed)), *(torch.Generator().manual_seed(seed) for _ in range(2))
        live, plain = LiveStream(model, one), NoteStream(model, past, EMPTY, begin_sec=past[-1, 0], generator=other)
        live.begin_sec = past[-1, 0]
        for size in (3, 11, 20):
            live.hear(past[:size])
            while live.read():
                pass
        assert all(np.array_equal(live.write(False), plain.write(False)) for _ in range(10))


@pytest.mark.parametrize("hurry", [5.0, 7.0, 9.0])
def test_it_fills_a_gap_as_a_stream_with_a_fixed_past_does(hurry):
    model = make_model(hurry=hurry, num_recent_offsets=4)
    for seed in range(3):
        past, after = from_0(random_notes(20, seed)), random_notes(12, seed + 1, 20.0)
        begin, (one, other) = float(past[-1, 0]) + 0.5, (torch.Generator().manual_seed(seed) for _ in range(2))
        live, plain = LiveStream(model, one), NoteStream(model, past, after, begin_sec=begin, generator=other)
        live.begin_sec, live.lookahead_sec, live.helped_from_sec = begin, math.inf, begin
        live.hear(past, after)
        for _ in range(8):
            assert np.array_equal(live.write(False, 20.0), plain.write(False, 20.0))


@pytest.mark.parametrize("begin_sec", [0.0, 100.0])
def test_it_begins_from_nothing_as_a_stream_does_at_any_time_of_its_clock(begin_sec):
    one, other = (torch.Generator().manual_seed(2) for _ in range(2))
    live, plain = LiveStream(MODEL_ITSELF, one), NoteStream(MODEL_ITSELF, EMPTY, EMPTY, generator=other)
    live.begin_sec = begin_sec
    live.hear(EMPTY)
    for _ in range(8):
        assert np.allclose(live.write(False) - [begin_sec, 0, 0, 0], plain.write(False))


def test_a_silence_before_the_first_note_is_not_heard():
    past = from_0(random_notes(20))
    early, late = (LiveStream(MODEL_ITSELF, torch.Generator().manual_seed(1)) for _ in range(2))
    for stream, begin_sec in ((early, 0.0), (late, 64.0)):
        stream.begin_sec = past[-1, 0] + begin_sec
        stream.hear(past + [begin_sec, 0, 0, 0])
    for _ in range(8):
        assert np.allclose(late.write(False) - [64, 0, 0, 0], early.write(False))


def test_guidance_may_begin_and_end_at_any_time():
    past = random_notes(20)
    live = LiveStream(MODEL_ITSELF, torch.Generator().manual_seed(1))
    for size, guidance in ((5, 1.0), (12, 3.0), (20, 3.0)):
        live.begin_sec = past[size - 1, 0]
        live.controls = Controls(density=8.0, register=40.0, guidance_scale=guidance)
        live.hear(past[:size])
        live.write(False)
    fresh = LiveStream(MODEL_ITSELF, torch.Generator().manual_seed(5))
    fresh.begin_sec, fresh.controls = live.begin_sec, live.controls
    live.generator.manual_seed(5)
    for stream in (live, fresh):
        stream.hear(past)
    assert all(np.array_equal(live.write(False), fresh.write(False)) for _ in range(5))
    live.controls = Controls(density=8.0)
    live.hear(past[:10])
    live.write(False)
    assert live._free_cache is None and len(live._hidden_states) == 1


def test_a_window_is_never_overfull_and_hears_the_latest_notes():
    past = random_notes(400)
    stream = LiveStream(MODEL_ITSELF, torch.Generator().manual_seed(1))
    for size in range(1, 400):
        stream.hear(past[:size])
        stream._read()
        assert stream._length <= MODEL_ITSELF.config.max_position_embeddings
        assert stream._rows[-1, 1] == past[size - 1, 1]
        assert stream._length > min(size, 20)


def test_while_somebody_plays_each_note_is_read_once():
    room = Room()
    room.play(*range(50, 70))
    assert sum(room.rows_read) < 2 * 20 + 5


def test_a_long_session_costs_no_more_a_note_than_a_short_one():
    """Also where keys were struck twice at once, so that fewer notes are heard than were played."""
    room = Room(hand_over="key")
    onset = 120 * (np.arange(200) - (np.arange(200) % 10 == 9))
    room.engine.load(pg.Notes.from_columns(onset_tick=onset, duration_tick=100, pitch=50 + np.arange(200) // 10))
    room.run(1.0)
    room.rows_read.clear()
    room.play(*(50 + number % 20 for number in range(40)), sec=0.05)
    half_windows = 2 * 32  # read again where a window begins later
    assert sum(room.rows_read) < 2 * 40 + half_windows + 5


def test_with_guidance_too_what_was_heard_is_read_before_the_hand_over():
    """What is asked makes a second reading of every row; it must not wait for the hand-over."""
    room = Room(hand_over="key", density=8.0)
    assert room.engine.knobs.controls().is_guided
    room.run(1.0)
    room.play(*range(50, 70))
    room.run(0.3)
    assert sum(room.rows_read) < 2 * (2 * 20 + 5)
    room.rows_read.clear()
    room.engine.hand_over()
    room.engine.work()
    assert sum(room.rows_read) <= 4


def test_a_knob_that_is_turned_in_a_pause_is_obeyed_without_reading_all_at_the_hand_over():
    room = Room(hand_over="key")
    room.play(*range(50, 70))
    room.run(0.3)
    room.rows_read.clear()
    room.engine.turn_knobs(loudness=100)
    room.run(0.3)
    assert sum(room.rows_read) >= 20  # without what is asked
    room.rows_read.clear()
    room.engine.hand_over()
    room.engine.work()
    assert sum(room.rows_read) <= 4


# Answers --------------------------------------------------------------------------------------------------------------


def test_a_pause_hands_over_and_the_answer_comes_at_once():
    room = Room(answer_sec=3.0)
    room.play(60, 64, 67)
    released = room.engine.keyboard.last_event
    room.run(5)
    begun = room.begun()
    assert len(begun) > 3
    assert released + 0.6 <= begun[0][0] <= released + 0.6 + 0.035
    assert begun[-1][0] <= released + 0.6 + 3.0 + 0.05
    assert room.engine.output.num_dropped == 0 and max(room.engine.output.delays) < 0.0015


@pytest.mark.parametrize(
    ("sign", "knobs"),
    [((0xB0, 67, 127), {"hand_over": "pedal"}), ((0x90, 21, 50), {"hand_over": "key"}), (None, {"hand_over": "key"})],
)
def test_a_pedal_a_key_or_a_call_hands_over_within_60_ms(sign, knobs):
    room = Room(answer_sec=2.0, **knobs)
    room.play(60, 64, 67)
    room.run(2)
    assert not room.sent
    begin = room.sec - 100
    room.engine.receive(sign) if sign else room.engine.hand_over()
    assert room.engine.state == "answering"
    room.run(4)
    assert begin < room.begun()[0][0] < begin + 0.06
    assert room.engine.state == "listening" and not still_sounding(room.sent)
    pitches = room.engine.notes()["pitch"][room.engine.notes()["track"] == PLAYER]
    assert pitches.tolist() == [60, 64, 67]  # the sign is no music


def test_a_call_during_the_pause_does_not_wait_for_its_end():
    room = Room(pause_sec=3.0, answer_sec=2.0)
    room.play(60, 64, 67)
    room.run(0.5)
    begin = room.sec - 100
    room.engine.hand_over()
    room.run(5)
    assert begin <= room.begun()[0][0] < begin + 0.06 and room.begun()[-1][0] < begin + 2.1
    assert not room.engine.output.num_dropped


def test_a_pedal_that_comes_up_makes_the_pause_begin_anew():
    room = Room(answer_sec=2.0)
    room.engine.receive((0xB0, 64, 127))
    room.play(60, 64, 67)
    room.run(0.5)
    room.engine.receive((0xB0, 64, 0))
    lifted = room.sec - 100
    room.run(4)
    assert lifted + 0.6 <= room.begun()[0][0] < lifted + 0.64
    assert not room.engine.output.num_dropped


def test_a_hand_over_in_the_middle_of_a_chord_keeps_its_late_notes_and_the_answer():
    room = Room(hand_over="pedal", answer_sec=2.0)
    room.on(48, 60)
    room.run(0.2)
    room.engine.hand_over()
    room.run(0.02)
    room.on(64)
    room.run(0.5)
    assert room.engine.state == "answering" and len(room.begun()) > 2
    assert not {48, 60, 64} & {pitch for _, pitch in room.begun()}  # these are held
    room.off(48, 60, 64)
    room.run(3)
    assert not still_sounding(room.sent)
    piece = room.engine.notes()
    assert sorted(piece["pitch"][piece["track"] == PLAYER].tolist()) == [48, 60, 64]


def test_who_plays_during_an_answer_ends_it():
    room = Room(answer_sec=8.0)
    room.play(60, 64, 67)
    room.run(2)
    assert room.engine.state == "answering"
    room.on(72)
    assert room.engine.state == "listening" and not still_sounding(room.sent)
    number = len(room.begun())
    room.run(0.5)
    assert len(room.begun()) == number
    assert room.engine.notes()["track"].tolist().count(MODEL) == number


def test_a_key_that_is_held_keeps_the_answer_waiting_and_one_that_is_stuck_does_not():
    room = Room()
    room.on(60)
    room.run(9)
    assert not room.sent
    room.run(3)
    assert room.sent
    room.engine.close()
    assert not still_sounding(room.sent) and not room.engine.keyboard.held


def test_an_answer_is_as_long_as_the_phrase_unless_it_is_told():
    lengths = []
    for notes in (5, 20):
        room = Room()
        room.play(*range(60, 60 + notes), sec=0.3)
        room.run(0.6 + 20)
        begun = [sec for sec, _ in room.begun()]
        lengths.append(begun[-1] - begun[0])
    assert 1 < lengths[0] <= 2.1 and 5 < lengths[1] <= 6.1


def test_what_is_asked_reaches_the_model():
    seen = []

    class Asked(Room):
        def read(self, cache, rows, is_given, control_ids):
            seen.extend(control_ids.tolist())
            return super().read(cache, rows, is_given, control_ids)

    room = Asked(answer_sec=1.0, density=4.0, register=60, loudness=70, key_name="C minor", kind="jazz")
    room.play(60, 64, 67)
    room.run(2)
    assert [0] * 7 in seen and any(all(ids[:5]) for ids in seen)


# A model that is late, or fails ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("cost_sec", [0.05, 0.3, 1.5])
def test_with_a_late_model_notes_come_later_but_in_time(cost_sec):
    room = Room(cost_sec=cost_sec, answer_sec=10.0)
    room.play(60, 64, 67)
    room.run(14)
    assert room.begun() and max(room.engine.output.delays) <= 0.05
    assert not still_sounding(room.sent)


def test_a_note_that_is_too_late_is_left_out_counted_and_not_in_the_piece():
    room = Room(answer_sec=5.0, hand_over="key", max_late_sec=0.01)
    room.play(60, 64, 67)
    room.engine.hand_over()
    room.run(0.5)
    room.cost_sec = 0.7  # of a sudden
    room.run(6)
    output = room.engine.output
    assert output.num_dropped and output.num_sent == len(room.begun())
    assert not still_sounding(room.sent)
    assert (room.engine.notes()["track"] == MODEL).sum() == len(room.begun())


def test_when_the_model_fails_what_sounds_ends_and_the_next_turn_is_tried():
    room = Room(answer_sec=6.0)
    room.play(60, 64, 67)
    room.run(1.5)
    assert room.begun()
    room.crash = RuntimeError("out of\nmemory")
    room.run(1)
    assert not still_sounding(room.sent) and room.engine.state == "listening"
    assert any("out of memory" in event.get("message", "") for event in room.events)
    room.crash = None
    number = len(room.begun())
    room.play(60, 64)
    room.run(2)
    assert len(room.begun()) > number


def test_a_model_that_fails_again_and_again_is_left_alone_until_it_is_stopped():
    room = Room()
    room.crash = RuntimeError("broken")
    room.play(60, 64)
    room.run(5)
    assert room.engine.num_failures == 3 and not room.sent
    room.engine.hand_over()
    assert "again and again" in room.events[-1]["message"]
    room.crash = None
    room.engine.stop()
    room.engine.hand_over()
    room.run(1)
    assert room.begun()


# A port that is lost --------------------------------------------------------------------------------------------------


def test_what_a_lost_port_could_not_end_is_ended_by_the_next():
    room = Room(answer_sec=6.0)
    room.play(60, 64, 67)
    while not still_sounding(room.sent):
        room.run(0.1)
    sounding = still_sounding(room.sent)
    room.fault = OSError("No such device")
    room.run(1)
    assert still_sounding(room.sent) == sounding and room.engine.state == "listening"
    assert any("No such device" in event.get("message", "") for event in room.events)
    room.fault = None
    room.engine.output.replace_port(room, room.engine.now())
    assert not still_sounding(room.sent)
    assert [message[:2] for _, message in room.sent[-2:]] == [(0xB0, 64), (0xB0, 123)]


def test_a_lost_keyboard_ends_what_it_held_and_its_pedal():
    room = Room(thru=True)
    room.engine.receive((0xB0, 64, 127))
    room.on(60, 64)
    room.off(64)
    room.engine.input_lost()
    assert not still_sounding(room.sent)
    assert all(note.end is not None for note in room.engine.keyboard.notes)


# Accompaniment --------------------------------------------------------------------------------------------------------


def test_an_accompaniment_hears_each_note_with_its_time_and_keeps_to_its_side():
    room = Room(mode="accompany", side="below")
    room.play(*[72, 74, 76, 77, 79, 81] * 4, sec=0.25)
    begun = room.begun()
    assert len(begun) > 8 and max(pitch for _, pitch in begun) < 81
    assert room.engine.state == "accompanying"
    onsets = [note.onset for note in room.engine.keyboard.notes]
    assert begun[0][0] > onsets[0]
    room.run(12)
    assert room.engine.state == "listening" and not still_sounding(room.sent)


def test_what_it_had_in_mind_is_forgotten_when_the_player_plays():
    room = Room(mode="accompany")
    room.play(72, 74, 76, sec=0.2)
    room.run(0.2)
    before = {note.number for note in room.engine._others if not note.is_sent}
    assert before
    room.on(60)
    assert not before & {note.number for note in room.engine._others}
    room.off(60)
    number = len(room.begun())
    room.run(1.5)
    assert len(room.begun()) > number


def test_a_burst_of_notes_neither_stops_it_nor_loses_anything():
    room = Room(mode="accompany")
    for _ in range(20):
        for pitch in range(40, 90):
            room.on(pitch)
        room.run(0.03)
        for pitch in range(40, 90):
            room.off(pitch)
        room.run(0.02)
    room.run(12)
    assert len(room.engine.keyboard.notes) == 1000 and room.begun()
    assert not still_sounding(room.sent)
    assert (room.engine.notes()["track"] == PLAYER).sum() == 1000


# Loop -----------------------------------------------------------------------------------------------------------------


def test_a_phrase_comes_again_and_the_model_fills_the_gap():
    room = Room(mode="loop", answer_sec=2.0, hand_over="key")
    room.play(60, 64, 67, 72, sec=0.25)
    room.engine.hand_over()
    begin = room.sec - 100
    assert room.engine.state == "looping"
    room.run(9.5)
    phrase = [
        (sec, pitch)
        for sec, pitch in room.begun()
        if any(
            note.voice == LOOP and abs(note.onset - sec) < 0.002 and note.pitch == pitch for note in room.engine._others
        )
    ]
    rounds = [begin + 2 + 3 * number for number in range(3)]
    assert np.allclose([sec for sec, _ in phrase[::4][:3]], rounds, atol=0.02)
    fill = [note.onset for note in room.engine._others if note.voice == MODEL and note.is_sent]
    assert fill and all((sec - begin + 0.01) % 3 < 2.02 for sec in fill), (begin, fill)
    room.engine.hand_over()
    assert room.engine.state == "listening" and not still_sounding(room.sent)


def test_a_loop_needs_a_phrase():
    room = Room(mode="loop")
    room.engine.hand_over()
    assert room.engine.state == "listening"
    assert any("play a phrase first" in event.get("message", "") for event in room.events)


def test_a_gap_that_the_player_takes_is_left_to_the_player():
    room = Room(mode="loop", answer_sec=3.0, hand_over="key")
    room.play(60, 64, 67, 72, sec=0.25)
    room.engine.hand_over()
    room.run(0.5)
    room.on(80)
    at = room.sec - 100
    room.off(80)
    room.run(2.4)
    assert not [sec for sec, _ in room.begun() if sec > at]
    room.run(4.5)
    assert [note for note in room.engine._others if note.voice == MODEL and note.onset > at]


# The session ----------------------------------------------------------------------------------------------------------


def test_both_sides_are_in_one_file(tmp_path):
    room = Room(answer_sec=2.0)
    room.engine.receive((0xB0, 64, 100))
    room.play(60, 64, 67)
    room.engine.receive((0xB0, 64, 0))
    room.run(4)
    pg.write_midi(room.engine.notes(), tmp_path / "session.mid")
    file = mido.MidiFile(tmp_path / "session.mid")
    ons = Counter(
        message.channel for track in file.tracks for message in track if message.type == "note_on" and message.velocity
    )
    assert ons[0] == 3 and ons[1] == len(room.begun())
    read = pg.read_midi(tmp_path / "session.mid")
    assert set(read.track_names) >= {"player", "model"}
    assert read.pedals["value"].tolist() == [100, 0]
    gaps = np.diff(read.onset_sec[read["channel"] == 0])
    assert np.allclose(gaps, 0.2, atol=0.02)


def test_undo_takes_back_the_answer_and_then_the_phrase():
    room = Room(answer_sec=2.0)
    room.play(60, 64, 67)
    room.run(4)
    assert set(room.engine.notes()["track"].tolist()) == {PLAYER, MODEL}
    room.engine.undo()
    assert room.engine.notes()["pitch"].tolist() == [60, 64, 67]
    room.engine.hand_over()
    room.run(3)
    assert MODEL in room.engine.notes()["track"]
    room.engine.undo()
    room.engine.undo()
    assert len(room.engine.notes()) == 0


def test_a_piece_goes_on_as_if_it_had_just_been_played():
    room = Room(answer_sec=2.0)
    room.engine.load(some_notes())
    room.run(1)
    assert not room.sent  # nobody has handed over
    room.engine.hand_over()
    room.run(3)
    notes = room.engine.notes()
    assert (notes["track"] == PLAYER).sum() == len(some_notes())
    model_onsets = notes.onset_sec[notes["track"] == MODEL]
    end = some_notes().end_sec - some_notes().onset_sec.min()
    assert len(model_onsets) and end + 1 < model_onsets[0] < end + 1.1


def test_recording_begins_when_it_is_told():
    room = Room(answer_sec=1.0)
    room.play(60, 64)
    room.run(3)
    room.engine.record()
    room.play(72)
    assert room.engine.notes()["pitch"].tolist() == [72]


@pytest.mark.parametrize("mode", ["answer", "accompany", "loop"])
def test_panic_ends_everything(mode):
    room = Room(mode=mode, hand_over="pause", thru=True)
    room.play(60, 64, 67)
    room.on(50)
    room.engine.hand_over()
    room.run(1)
    room.engine.stop()
    assert not still_sounding(room.sent)
    assert [message[:2] for _, message in room.sent[-2:]] == [(0xB0, 64), (0xB0, 123)]
    number = len(room.sent)
    room.off(50)
    room.run(0.3)
    assert [message for _, message in room.sent[number:] if message[0] & 0xF0 == 0x90] == []


def test_wrong_values_of_knobs_are_refused_and_change_nothing():
    room = Room()
    for wrong in ({"mode": "dance"}, {"density": -1}, {"key_name": "H"}, {"temperature": -1}, {"swing": 3}):
        with pytest.raises(GenerationError):
            room.engine.turn_knobs(**wrong)
    assert room.engine.knobs == LiveKnobs()


@pytest.mark.parametrize(
    "wrong", [[], [0x90], [0x90, 60, 128], [0x90, -1, 3], [0xF0, 1, 1], [60, 1, 1], [0x90, 6.5, 1]]
)
def test_what_is_no_message_is_refused(wrong):
    with pytest.raises(ValueError):
        checked_message(wrong)


@pytest.mark.slow
def test_a_session_of_15_minutes_grows_neither_slower_nor_forgetful():
    """Reading costs the same in the end as in the beginning: windows are moved on, not grown."""
    room = Room(answer_sec=4.0, cost_sec=0.001)
    costs = []
    for part in range(6):
        room.rows_read.clear()
        before = room.engine.output.num_sent
        for _ in range(8):
            room.play(*np.random.default_rng(part).integers(50, 80, 12).tolist(), sec=0.1)
            room.run(5.2)
        costs.append(sum(room.rows_read) / (room.engine.output.num_sent - before + 96))
    assert max(costs[2:]) < 1.5 * max(costs[1], 1) and not room.engine.output.num_dropped


# Whatever happens -----------------------------------------------------------------------------------------------------

ACTIONS = (
    "on",
    "off",
    "pedal",
    "run",
    "hand_over",
    "stop",
    "mode",
    "undo",
    "crash",
    "heal",
    "unplug",
    "replug",
    "lost",
)


def do(room: Room, action: str, number: int) -> None:
    """One random thing."""
    engine = room.engine
    if action in ("on", "off"):
        getattr(room, action)(number % 128)
    elif action == "pedal":
        engine.receive((0xB0, 64, number % 128))
    elif action == "run":
        room.run(0.01 * (number % 40))
    elif action in ("hand_over", "stop", "undo"):
        getattr(engine, action)()
    elif action == "mode":
        engine.turn_knobs(mode=("answer", "accompany", "loop")[number % 3], thru=bool(number % 2))
    elif action in ("crash", "heal"):
        room.crash = RuntimeError("crash") if action == "crash" and number % 4 == 0 else None
    elif action == "unplug":
        room.fault = OSError("gone") if number % 4 == 0 else room.fault
    elif action == "replug":
        room.fault = None
        if engine.output.error is not None:
            engine.output.replace_port(room, engine.now())
    elif action == "lost":
        engine.input_lost()


def assert_all_ended(room: Room) -> None:
    do(room, "replug", 0)
    room.engine.close()
    assert not still_sounding(room.sent)
    assert not room.engine.output.is_sounding and room.engine.output.is_empty
    notes = room.engine.notes()
    assert (notes["duration_tick"] > 0).all() and len(pg.notes_to_midi_bytes(notes))
    assert max(room.engine.output.delays, default=0) <= room.engine.output.max_late_sec


@settings(max_examples=25)
@given(st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 500)), max_size=40))
def test_every_note_on_has_its_off_whatever_happens(actions):
    room = Room(answer_sec=1.0, cost_sec=0.002)
    for action, number in actions:
        do(room, action, number)
    assert_all_ended(room)


def test_ten_thousand_random_events_leave_nothing_sounding():
    random = np.random.default_rng(7)
    room = Room(answer_sec=1.0, cost_sec=0.002)
    likely = np.array([30, 30, 4, 2, 0.5, 0.2, 0.3, 0.3, 0.3, 1, 0.2, 0.5, 0.2])
    for action in random.choice(ACTIONS, 10_000, p=likely / likely.sum()):
        number = int(random.integers(0, 500))
        do(room, action, number % 4 if action == "run" else number)
    assert_all_ended(room)
    assert len(room.begun()) > 100


@given(
    st.lists(st.tuples(st.sampled_from([0x80, 0x90, 0xB0]), st.sampled_from([60, 61, 64, 123]), st.integers(0, 127)))
)
def test_the_keyboard_ends_every_note_at_or_after_its_onset(messages):
    keyboard = Keyboard()
    for number, message in enumerate(messages):
        keyboard.receive(message, float(number))
    keyboard.release_all(float(len(messages)))
    assert not keyboard.held
    for note in keyboard.notes:
        assert note.onset <= note.offset <= note.end
    last: dict[int, float] = {}
    for note in keyboard.notes:
        assert note.onset >= last.get(note.pitch, 0.0)
        last[note.pitch] = note.end


def test_the_time_shift_of_a_row_counts_from_the_note_before_it():
    room = Room(answer_sec=2.0, hand_over="key")
    room.play(60, 64)
    room.engine.hand_over()
    room.run(2)
    told = [event for event in room.events if event["type"] == "note" and event["voice"] == MODEL]
    shifts = np.array([event["row"][TIME_SHIFT] for event in told])
    assert np.allclose(shifts[1:], np.diff([event["onset"] for event in told]), atol=0.006)
