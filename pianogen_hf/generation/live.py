"""The model in the room: a session in which somebody plays and a note transformer (V8) answers, accompanies or fills.

The engine does nothing by itself: it is told what was played (`receive`), asked often to send what is due (`tick`,
about every millisecond), and asked to let the model do one piece of work (`work`, from another thread, because that
takes milliseconds). Clock and port are handed in, so a test can be both.

answer      phrase by phrase. The player hands over by a pause, a pedal or a key; before a pause is over the answer has
            been begun in silence, so that it comes at once. Who plays during an answer ends it.
accompany   the model plays a second part. Each note that is played is given to it with its true time, what it had in
            mind and has not sent is forgotten, and it is asked anew: a "reflexive looper" (Pachet et al. 2013).
loop        a phrase comes again and again, with a gap after it that the model fills in sight of both sides; anew every
            time, and only for as long as the player leaves the gap to it.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch

from pianogen_hf.errors import one_line
from pianogen_hf.generation.live_notes import (
    CONTROL,
    LOOP,
    MODEL,
    NOTE_OFF,
    NOTE_ON,
    PLAYER,
    Keyboard,
    LiveNote,
    Message,
    as_live,
    as_piece,
    checked_message,
    heard_notes,
)
from pianogen_hf.generation.live_output import OutPort, Output
from pianogen_hf.generation.live_stream import LiveStream, row_of
from pianogen_hf.generation.live_turns import Job, LiveKnobs, Loop, Turn
from pianogen_hf.generation.new_notes import GenerationError
from pianogen_hf.generation.note_stream import ONSET, NoteModel, Processor
from pianogen_hf.generation.note_verbs import placed
from pianogen_hf.generation.processors import beside, not_sounding, warped
from pianogen_hf.tokenizers.feature_extraction_continuous_notes import (
    DURATION,
    PITCH,
    VELOCITY,
    ContinuousNotesFeatureExtractor,
)
from pianogen_hf.tokenizers.notes import PEDAL_DOWN, Notes

_AHEAD_SEC = {"answer": 1.5, "accompany": 0.4, "loop": 2.0}  # how far the model writes ahead
_FIRST_WITHIN_SEC = 0.03  # of its turn the model begins an answer
_GRACE_SEC = 0.08  # after a hand-over the rest of a chord may still come
_LONGEST_NOTE_SEC = 8.0  # of the model's
_RING_SEC = 1.0  # for which an answer may ring on after its time
_REST_SEC = 2.5  # after which an accompaniment waits for the player
_STUCK_SEC = 10.0  # a key that is held for longer does not keep a pause from being one
_SHORTEST_SEC, _LONGEST_SEC = 2.0, 20.0  # of an answer that is as long as the phrase
_WITHOUT_PHRASE_SEC = 10.0  # of an answer to nothing, or to a piece that was loaded
_OPEN_SEC = 0.4  # what a note that is still held is taken to last, until the player has shown otherwise
_MARGIN_SEC = 0.003  # between the time a note is ready and its onset
_MOST_FAILURES = 3  # of the model, one after the other


class LiveEngine:
    """A session; its methods may be called from any thread.

    Args:
        model: a note transformer, or its fast engine.
        encoder: its feature extractor.
        port: where the model's notes go; None where only `on_event` is told of them.
        clock: seconds, never falling.
        knobs: what the session begins with.
        seed: makes the model's choices repeatable, as far as the player's are.
        channel: of the model's notes, 0..15.
        max_late_sec: a note that would begin later than this after its time is left out, and counted.
        on_event: called with what happens, as a dict with a `type`: "note", "off", "cancel", "silence",
            "knobs", "state", "hello", "error".

    Attributes:
        output: what was sent, was late, and sounds.
        keyboard: what the player holds and has played.
        num_failures: how often the model has failed since it wrote a note last.
        listeners: called as `on_event` is; they must be quick.
    """

    def __init__(
        self,
        model: NoteModel,
        encoder: ContinuousNotesFeatureExtractor,
        port: OutPort | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        knobs: LiveKnobs | None = None,
        seed: int | None = None,
        channel: int = 0,
        max_late_sec: float = 0.05,
        on_event: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self.model, self.encoder, self.knobs = model, encoder, knobs or LiveKnobs()
        # What the model may hear: more than a window, which then begins at the same note for a while.
        self._num_recent = 2 * model.config.max_position_embeddings
        self.output, self.keyboard = Output(port, channel, max_late_sec), Keyboard()
        self.num_failures = 0
        self.listeners = [] if on_event is None else [on_event]
        self._clock, self._lock = clock, threading.RLock()
        self._origin = clock()
        self._generator = torch.Generator()
        self._generator.manual_seed(torch.seed() if seed is None else seed)
        self._new_stream()
        self._others: list[LiveNote] = []  # of the model and of the loop, in the order in which they begin
        self._recorded_from = -math.inf
        self._turn: Turn | None = None
        self._loop: Loop | None = None
        self._turn_number, self._epoch, self._version, self._read_version = 0, 0, 0, -1
        self._phrase_from, self._handed_over = 0.0, -math.inf
        self._state = ""
        self._draw_secs: deque[float] = deque([0.005], maxlen=16)

    # What goes on -----------------------------------------------------------------------------------------------------

    def now(self) -> float:
        """Seconds since the session began."""
        return self._clock() - self._origin

    @property
    def state(self) -> str:
        """Whose turn it is: "listening", "answering", "accompanying" or "looping"."""
        if self._loop is not None:
            return "looping"
        if self._turn is None or not self._turn.is_begun:
            return "listening"
        return "accompanying" if self.knobs.mode == "accompany" else "answering"

    def notes(self) -> Notes:
        """Both sides as one piece, since recording began: a track for each voice."""
        with self._lock:
            begin = self._recorded_from
            notes = [note for note in (*self.keyboard.notes, *self._others) if note.onset >= begin]
            return as_piece(notes, [each for each in self.keyboard.pedals if each[0] >= begin], self.now())

    def summary(self, most: int) -> dict[str, Any]:
        """What a listener that comes later wants to know: an event "hello" with state, knobs and the latest notes."""
        with self._lock:
            notes = sorted((*self.keyboard.notes[-most:], *self._others[-most:]), key=lambda note: note.onset)[-most:]
            names = ("voice", "onset", "pitch", "velocity", "offset")
            rows = [{"id": note.number, **{name: getattr(note, name) for name in names}} for note in notes]
            return {"type": "hello", "now": self.now(), "state": self.state, "knobs": asdict(self.knobs), "notes": rows}

    # What the player does ---------------------------------------------------------------------------------------------

    def receive(self, values: Sequence[int], clock_sec: float | None = None) -> None:
        """Take a MIDI message of the player's.

        Args:
            values: its two or three bytes.
            clock_sec: when it came, by the clock; now, if None.

        Raises:
            ValueError: if it is no message of a channel.
        """
        message = checked_message(values)
        with self._lock:
            sec = self.now() if clock_sec is None else clock_sec - self._origin
            if self._is_hand_over(message):
                return
            if self.knobs.thru:
                self.output.forward(message, sec)
            held = set(self.keyboard.held.values())
            note = self.keyboard.receive(message, sec)
            self._version += 1
            if self.keyboard.last_event == sec:
                self._end_draft()  # it was to begin after a pause
            if note is not None:
                self._epoch += 1
                note.turn = self._turn_number
                self._struck(note)
            for each in held - set(self.keyboard.held.values()):
                self._tell("off", id=each.number, offset=each.offset)

    def hand_over(self) -> None:
        """It is the model's turn; in a loop, the loop begins or ends."""
        with self._lock:
            now = self.now()
            if self.knobs.mode == "accompany" or (self._turn is not None and self._turn.is_begun and not self._loop):
                return
            if self.num_failures >= _MOST_FAILURES:
                self._tell("error", message="the model has failed again and again: stop, and hand over once more")
            elif self._loop is not None:
                self._end_turn(now)
            elif self.knobs.mode == "loop":
                self._begin_loop(now)
            else:
                self._begin_answer(now)
            self._tell_state()

    def input_lost(self) -> None:
        """The player's keyboard is gone: what it held has ended."""
        with self._lock:
            now = self.now()
            for (channel, pitch), note in list(self.keyboard.held.items()):
                self.output.forward((NOTE_OFF | channel, pitch, 0), now)
                self._tell("off", id=note.number, offset=now)
            self.keyboard.release_all(now)
            self._version += 1

    def use_port(self, port: OutPort) -> None:
        """Go on with another port; what the old one could not end is ended there."""
        with self._lock:
            self.output.replace_port(port, self.now())

    def report(self, error: Exception, what: str = "something went wrong") -> None:
        """Tell of an error that others have met."""
        with self._lock:
            self._tell("error", message=f"{what}: {one_line(error) or type(error).__name__}")

    def turn_knobs(self, **values: Any) -> None:
        """Turn some of the knobs.

        Raises:
            GenerationError: for an unknown knob, or a value that means nothing; all stay as they were.
        """
        unknown = sorted(set(values) - set(LiveKnobs.__dataclass_fields__))
        if unknown:
            raise GenerationError(f"there is no knob {unknown[0]!r}")
        knobs = replace(self.knobs, **values)
        with self._lock:
            if knobs.mode != self.knobs.mode:
                self._end_turn(self.now())
                self._phrase_from = self.now()
            self.knobs = knobs
            self._version += 1  # other controls may ask for another reading
            self._tell("knobs", knobs=asdict(knobs))
            self._tell_state()

    def stop(self) -> None:
        """End the model's turn, and the loop; all that sounds ends at once."""
        with self._lock:
            self._end_turn(self.now())
            self.output.panic(self.now())
            self.num_failures = 0
            self._tell_state()

    def close(self) -> None:
        """End everything, the player's notes included."""
        with self._lock:
            self.stop()
            self.input_lost()

    def record(self) -> None:
        """What is played from now on is what `notes` gives."""
        with self._lock:
            self._recorded_from = self.now()

    def undo(self) -> None:
        """Take back the latest answer or phrase, whichever came last."""
        with self._lock:
            self._end_turn(self.now())
            notes = [*self.keyboard.notes, *self._others]
            last = max((note.turn for note in notes), default=0)
            held = {note.number for note in self.keyboard.held.values()}
            gone = {note.number for note in notes if note.turn == last} - held
            self._tell("cancel", ids=sorted(gone))
            self.keyboard.notes = [note for note in self.keyboard.notes if note.number not in gone]
            self._drop(gone)
            self._epoch += 1

    def load(self, piece: Notes) -> None:
        """Begin a new session with a piece, as if it had just been played; `hand_over` lets the model continue it."""
        with self._lock:
            self._end_turn(self.now())
            self.input_lost()
            self._origin = self._clock() - piece.end_sec - 0.01
            self.keyboard.notes, self.keyboard.pedals = as_live(piece, 0.0)
            self._others, self._recorded_from, self._turn_number = [], -math.inf, 0
            self._phrase_from, self._handed_over, self.keyboard.last_event = self.now(), -math.inf, self.now()
            self._epoch += 1
            self._version += 1
            for listener in tuple(self.listeners):
                listener(self.summary(len(piece)))

    # What is to be called again and again -----------------------------------------------------------------------------

    def tick(self) -> None:
        """Send what is due and see whose turn it is. To be called about every millisecond."""
        with self._lock:
            now = self.now()
            unheard = {note.number for note in self.output.send_due(now) if not note.is_sent}
            if unheard:
                self._epoch += 1
                self._drop(unheard)
                self._tell("cancel", ids=sorted(unheard))
            if self.output.error is not None and self._turn is not None:
                self._end_turn(now)
                self._tell("error", message=f"the MIDI output is gone: {self.output.error}")
            self._see_whose_turn(now)

    def work(self) -> bool:
        """Let the model read or write a little. To be called from one thread; False if there is nothing to do."""
        with self._lock:
            job = self._next_job(self.now())
        if job is None:
            return False
        begin = self._clock()
        try:
            drawn, is_more = self._done(job)
        except Exception as error:  # whatever it is, the music must end
            self._fail(error)
            return True
        with self._lock:
            if job.turn is not None:
                self.num_failures = 0
                self._draw_secs.append(self._clock() - begin)
                self._take(job, drawn)
            elif not is_more:
                self._read_version = job.version
        return True

    # Turns ------------------------------------------------------------------------------------------------------------

    def _is_hand_over(self, message: Message) -> bool:
        """Whether a message is the sign that hands over; it is then no music."""
        kind, number, value = message[0] & 0xF0, message[1], message[2]
        if self.knobs.hand_over == "pedal" and kind == CONTROL and number == self.knobs.pedal:
            if value >= PEDAL_DOWN:
                self.hand_over()
            return True
        if self.knobs.hand_over == "key" and kind in (NOTE_ON, NOTE_OFF) and number == self.knobs.key:
            if kind == NOTE_ON and value > 0:
                self.hand_over()
            return True
        return False

    def _struck(self, note: LiveNote) -> None:
        """What a note of the player's does to the model's turn."""
        self._tell("note", id=note.number, voice=PLAYER, onset=note.onset, pitch=note.pitch, velocity=note.velocity)
        turn = self._turn
        if self.knobs.mode == "accompany":
            if turn is None:
                self._turn_number += 1
                self._turn = turn = Turn(self._turn_number, note.onset, math.inf, is_begun=True)
                self._tell_state()
            self._forget(turn)
            turn.is_written = False
        elif turn is None:
            return
        elif note.onset - self._handed_over <= _GRACE_SEC:
            self._forget(turn)
            note.turn = turn.number - 1
        elif self._loop is not None:
            self._forget(turn)
            turn.is_written = True  # the player takes the gap
        else:
            self._end_turn(note.onset)
            self._phrase_from = note.onset
            note.turn = self._turn_number
            self._tell_state()

    def _forget(self, turn: Turn) -> None:
        """Take back what of a turn has not been sent."""
        gone = {note.number for note in turn.notes if not turn.is_begun}
        gone |= {note.number for note in self.output.cancel(turn.notes)}
        self._drop(gone)
        turn.is_written = turn.is_written and not gone
        if gone and turn.is_begun:
            self._tell("cancel", ids=sorted(gone))

    def _drop(self, numbers: set[int]) -> None:
        """Forget notes of the model's."""
        self._others = [note for note in self._others if note.number not in numbers]
        if self._turn is not None:
            self._turn.notes = [note for note in self._turn.notes if note.number not in numbers]

    def _begin_answer(self, now: float) -> None:
        turn = self._turn
        if turn is None or turn.is_begun:
            turn = self._turn = self._answer(now)
        if abs(now - turn.begin) > _GRACE_SEC / 4:  # drafts for a pause that was not waited for
            turn.move(now - turn.begin)
        turn.is_begun = True
        self._turn_number, self._handed_over = turn.number, now
        for note in turn.notes:
            self._schedule(note)

    def _answer(self, begin: float) -> Turn:
        """An answer to the phrase that was just played."""
        length = self.knobs.answer_sec
        if length is None:
            phrase = [note for note in self.keyboard.notes[-1000:] if note.onset >= self._phrase_from]
            sec = self.keyboard.last_event - phrase[0].onset if phrase else _WITHOUT_PHRASE_SEC
            length = min(max(sec, _SHORTEST_SEC), _LONGEST_SEC)
        return Turn(self._turn_number + 1, begin, begin + length, is_begun=False)

    def _begin_loop(self, now: float) -> None:
        """The phrase since the last turn becomes a loop, of which the first gap begins now."""
        phrase = [note for note in self.keyboard.notes if note.onset >= self._phrase_from]
        if not phrase:
            self._tell("error", message="play a phrase first: it becomes the loop")
            return
        begin = phrase[0].onset
        end = max(self.keyboard.last_event, max(note.onset for note in phrase) + 0.05)
        end = now if self.knobs.hand_over != "pause" else min(end, now)
        rows = placed(self.encoder, heard_notes(phrase, now))
        rows[:, ONSET] -= begin
        gap_sec = self.knobs.answer_sec or min(max(end - begin, _SHORTEST_SEC), _LONGEST_SEC)
        self._loop = Loop(rows, end - begin, gap_sec, now)
        self._end_draft()
        self._next_round(now)

    def _next_round(self, now: float) -> None:
        """The next gap, and the phrase after it."""
        loop = self._loop
        assert loop is not None
        begin, end = loop.next_sec, loop.next_sec + loop.gap_sec
        self._turn_number += 1
        rows = loop.phrase + np.array([end, 0, 0, 0])
        self._turn = Turn(self._turn_number, begin, end, is_begun=True, given=rows)
        self._handed_over = begin
        for onset, pitch, velocity, duration in rows.tolist():
            offset = min(onset + duration, end + loop.phrase_sec + _RING_SEC)
            note = LiveNote(LOOP, onset, int(pitch), int(velocity), offset, offset, self._turn_number)
            self._others.append(note)
            self._schedule(note)
        loop.next_sec = end + loop.phrase_sec

    def _end_draft(self) -> None:
        if self._turn is not None and not self._turn.is_begun:
            self._forget(self._turn)
            self._turn = None
            self._epoch += 1

    def _end_turn(self, now: float) -> None:
        """The model's turn is over, with what it was about to play."""
        if self._turn is None and self._loop is None:
            return
        begun = self._turn is not None and self._turn.is_begun
        self.output.silence(now)
        gone = {note.number for note in self._others if not note.is_sent}
        self._drop(gone)
        self._tell("silence", ids=sorted(gone), sec=now)
        self._turn = self._loop = None
        self._epoch += 1
        if begun:
            self._turn_number += 1
            self._phrase_from = self._phrase_from if self.knobs.mode == "accompany" else now

    def _see_whose_turn(self, now: float) -> None:
        turn = self._turn
        if self._loop is not None:
            if now >= self._loop.next_sec - _AHEAD_SEC["loop"] and (turn is None or now >= turn.end):
                self._next_round(now)
        elif turn is not None and turn.is_begun and turn.is_written and self.output.is_empty:
            if now >= max((note.offset or 0.0 for note in turn.notes), default=turn.begin):
                self._turn = None  # played to its end
                self._turn_number += 1
                self._phrase_from = self._phrase_from if self.knobs.mode == "accompany" else now
        elif self.knobs.mode == "accompany":
            is_resting = now - self.keyboard.last_event > _REST_SEC and not self._holds(now)
            if turn is not None and not turn.is_written and is_resting:
                self._forget(turn)
                turn.is_written = True
        elif (
            self.knobs.hand_over == "pause"
            and now >= self.keyboard.last_event + self.knobs.pause_sec
            and self._is_waiting(now)
        ):
            self.hand_over()
        self._tell_state()

    def _is_waiting(self, now: float) -> bool:
        """Whether the player has played a phrase and holds nothing any more."""
        notes = self.keyboard.notes
        has_phrase = bool(notes) and notes[-1].onset >= self._phrase_from
        return has_phrase and (self._turn is None or not self._turn.is_begun) and not self._holds(now)

    def _holds(self, now: float) -> bool:
        """Whether the player holds a key; one that seems stuck does not count."""
        return any(now - note.onset < _STUCK_SEC for note in self.keyboard.held.values())

    # The model's work -------------------------------------------------------------------------------------------------

    def _next_job(self, now: float) -> Job | None:
        if self.num_failures >= _MOST_FAILURES:
            return None
        turn, mode = self._turn, self.knobs.mode
        if turn is None and mode == "answer" and self.knobs.hand_over == "pause" and self._is_waiting(now):
            begin = self.keyboard.last_event + self.knobs.pause_sec
            turn = self._turn = self._answer(max(begin, now))
        if turn is not None and not turn.is_written:
            if turn.last_onset() < max(now, turn.begin) + _AHEAD_SEC[mode]:
                return self._writing(turn, now)
            return None
        if self._read_version != self._version:
            # As it will be read when it is the model's turn: with what is asked, and nothing before the first note.
            heard, controls = self._heard(None, now), self.knobs.controls()
            return Job(self._epoch, self._version, None, *heard, now, lookahead_sec=0.0, controls=controls)
        return None

    def _writing(self, turn: Turn, now: float) -> Job | None:
        """The next note of a turn."""
        past, given = self._heard(turn, now)
        if self.knobs.mode == "accompany" and not len(given):
            return None
        is_first = not turn.notes
        # A note is to be ready when its time comes; the first one leaves room for a chord.
        ready = now + (3 if is_first else 1) * float(np.quantile(self._draw_secs, 0.75)) + _MARGIN_SEC
        begin = max(turn.begin, ready) if turn.is_begun else turn.begin
        keys = self._held_rows()
        processors: tuple[Processor, ...] = (not_sounding(keys),) if len(keys) else ()
        if self.knobs.mode == "accompany" and self.knobs.side is not None:
            processors = (beside(given, self.knobs.side), *processors)
        controls = self.knobs.controls()
        return Job(
            self._epoch,
            self._version,
            turn,
            past,
            given,
            begin,
            self._latest(turn, begin),
            math.inf if len(turn.given) else 0.0,
            turn.begin if len(turn.given) else -math.inf,
            replace(controls, gap_end_sec=turn.end) if len(turn.given) else controls,
            (*processors, warped(self.knobs.temperature, self.knobs.top_p)),
        )

    def _latest(self, turn: Turn, begin: float) -> float:
        """Before when the next note of a turn must begin; where that is after the turn, the turn may be over."""
        if self.knobs.mode == "answer":
            return turn.end + 1 if turn.notes else begin + _FIRST_WITHIN_SEC
        if not len(turn.given):
            return turn.end + 1
        if not turn.notes:  # a gap may end in a rest, but not be one
            return max(turn.begin + (turn.end - turn.begin) / 4, begin + _FIRST_WITHIN_SEC)
        return turn.end if turn.last_onset() < (turn.begin + turn.end) / 2 else turn.end + 1

    def _heard(self, turn: Turn | None, now: float) -> tuple[np.ndarray, np.ndarray]:
        """What the model hears as written and as given, each of shape (num, 4)."""
        now = now if turn is None else min(turn.begin, now)  # what is still held then has lasted until then
        played, others = self.keyboard.notes[-self._num_recent :], self._others[-self._num_recent :]
        if self.knobs.mode == "accompany":
            written = [note for note in played if note.onset < self._phrase_from] + others
            given = [note for note in played if note.onset >= self._phrase_from]
            return self._rows(written, now), self._rows(given, now, self._usual_sec(given))
        if turn is None or not len(turn.given):
            # As long as nobody knows how long a note lasts, reading what follows it would be for nothing.
            heard = [*played, *others]
            if turn is None:
                still = min((note.onset for note in played if note.end is None), default=math.inf)
                heard = [note for note in heard if note.onset < still]
            return self._rows(heard, now), np.zeros((0, 4))
        return self._rows([note for note in (*played, *others) if note.onset < turn.end], now), turn.given

    def _rows(self, notes: list[LiveNote], now: float, open_sec: float | None = None) -> np.ndarray:
        notes = sorted(notes, key=lambda note: note.onset)[-self._num_recent :]
        return placed(self.encoder, heard_notes(notes, now, open_sec))

    def _usual_sec(self, notes: list[LiveNote]) -> float:
        """How long the player's notes usually are."""
        known = [note.end - note.onset for note in notes[-24:] if note.end is not None]
        return float(np.median(known)) if known else _OPEN_SEC

    def _held_rows(self) -> np.ndarray:
        rows = [(note.onset, note.pitch, note.velocity, math.inf) for note in self.keyboard.held.values()]
        return np.array(rows, dtype=np.float64).reshape(-1, 4)

    def _done(self, job: Job) -> tuple[np.ndarray | None, bool]:
        """Do a job: the note that was drawn, if one was wanted, and whether there is more to read."""
        stream = self._stream
        stream.begin_sec, stream.lookahead_sec, stream.helped_from_sec = (
            job.begin_sec,
            job.lookahead_sec,
            job.helped_from_sec,
        )
        stream.controls, stream.processors = job.controls, job.processors
        stream.hear(job.past, job.given)
        if job.turn is None:
            return None, stream.read()
        return stream.write(may_end=False, before_sec=job.before_sec), False

    def _take(self, job: Job, drawn: np.ndarray | None) -> None:
        """A note that was drawn becomes part of its turn, unless the session has gone another way meanwhile."""
        turn = job.turn
        if turn is None or turn is not self._turn or job.epoch != self._epoch:
            return
        if drawn is None or drawn[ONSET] >= turn.end:
            turn.is_written = True
            return
        offset = min(float(drawn[ONSET] + min(drawn[DURATION], _LONGEST_NOTE_SEC)), turn.end + _RING_SEC)
        onset, pitch, velocity = float(drawn[ONSET]), int(drawn[PITCH]), int(drawn[VELOCITY])
        note = LiveNote(MODEL, onset, pitch, velocity, offset, offset, turn.number)
        note.row = row_of(drawn, float(job.past[-1, ONSET]) if len(job.past) else onset)
        turn.notes.append(note)
        self._others.append(note)
        if turn.is_begun:
            self._schedule(note)

    def _schedule(self, note: LiveNote) -> None:
        self.output.schedule(note)
        fields = {name: getattr(note, name) for name in ("voice", "onset", "pitch", "velocity", "offset", "row")}
        self._tell("note", id=note.number, **fields)

    def _fail(self, error: Exception) -> None:
        """The model has failed: its notes end, and it begins anew with the next turn."""
        with self._lock:
            self.num_failures += 1
            self._end_turn(self.now())
            self._new_stream()
            self._read_version = -1
            self._tell("error", message=f"the model failed: {one_line(error) or type(error).__name__}")
            self._tell_state()

    def _new_stream(self) -> None:
        self._stream = LiveStream(self.model, self._generator)

    # Events -----------------------------------------------------------------------------------------------------------

    def _tell(self, kind: str, **values: Any) -> None:
        for listener in tuple(self.listeners):
            listener({"type": kind, "now": self.now(), **values})

    def _tell_state(self) -> None:
        if self.state != self._state:
            self._state = self.state
            self._tell("state", state=self._state)
