"""What a live session consists of: its knobs, the model's turns, a loop, and the pieces of work for the model."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from pianogen_hf.generation.live_notes import LiveNote
from pianogen_hf.generation.new_notes import GenerationError
from pianogen_hf.generation.note_stream import Controls, Processor
from pianogen_hf.generation.note_verbs import GUIDANCE_SCALE, asked
from pianogen_hf.generation.processors import warped

MODES = ("answer", "accompany", "loop")
HAND_OVERS = ("pause", "pedal", "key")


@dataclass(frozen=True)
class LiveKnobs:
    """What can be turned while it plays.

    Attributes:
        mode: one of `MODES`.
        hand_over: "pause", "pedal" or "key"; `LiveEngine.hand_over` always works.
        pause_sec: how long a pause is that hands over.
        pedal: controller that hands over when it goes down; 67 is the soft pedal.
        key: pitch of the key that hands over.
        answer_sec: how long an answer, or a gap of the loop, is; None for as long as the phrase.
        side: where an accompaniment lies: "below" or "above" the player's notes; None for anywhere.
        temperature: see `warped`.
        top_p: see there.
        density: notes per second; see `asked`, also for the next four.
        register: mean pitch.
        loudness: mean velocity.
        key_name: such as "C minor".
        kind: "classical", "jazz" or "score".
        guidance_scale: how much is made of what is asked; see `Controls`. While something is asked, other values than 1
            take twice the time.
        thru: whether what is played is sent on to the port.

    Raises:
        GenerationError: for a value that means nothing.
    """

    mode: str = "answer"
    hand_over: str = "pause"
    pause_sec: float = 0.6
    pedal: int = 67
    key: int = 21
    answer_sec: float | None = None
    side: str | None = None
    temperature: float = 1.0
    top_p: float = 0.95
    density: float | None = None
    register: float | None = None
    loudness: float | None = None
    key_name: str | None = None
    kind: str | None = None
    guidance_scale: float = GUIDANCE_SCALE
    thru: bool = False

    def __post_init__(self) -> None:
        for name, known in (("mode", MODES), ("hand_over", HAND_OVERS), ("side", (None, "below", "above"))):
            if getattr(self, name) not in known:
                raise GenerationError(f"{name} is one of {', '.join(map(str, known))}, not {getattr(self, name)!r}")
        for name, low, high in (
            ("pause_sec", 0.1, 10),
            ("pedal", 0, 119),
            ("key", 0, 127),
            ("answer_sec", 0.5, 120),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise GenerationError(f"{name} must lie between {low} and {high}, got {value:g}")
        self.controls()
        warped(self.temperature, self.top_p)

    def controls(self) -> Controls:
        """What is asked of the model."""
        return asked(self.density, self.register, self.loudness, self.key_name, self.kind, self.guidance_scale)


@dataclass(eq=False)
class Turn:
    """The model's turn.

    Attributes:
        number: of the answer, in the session.
        begin: before this it does not play.
        end: nor begin a note later.
        is_begun: whether its notes may be sent; before that they are drafts.
        is_written: whether there is no more to write.
        given: notes that are known to come after it, shape (num, 4).
        notes: what was written, in order.
    """

    number: int
    begin: float
    end: float
    is_begun: bool
    is_written: bool = False
    given: np.ndarray = field(default_factory=lambda: np.zeros((0, 4)))
    notes: list[LiveNote] = field(default_factory=list)

    def move(self, sec: float) -> None:
        """Play all of it earlier or later."""
        self.begin, self.end = self.begin + sec, self.end + sec
        for note in self.notes:
            note.onset += sec
            note.offset = note.end = (note.offset or note.onset) + sec

    def last_onset(self) -> float:
        """Until when it is written."""
        return self.notes[-1].onset if self.notes else self.begin


@dataclass
class Loop:
    """A phrase that comes again.

    Attributes:
        phrase: its notes, as from its beginning: onset, pitch, velocity, duration, shape (num, 4).
        phrase_sec: how long it is.
        gap_sec: how long the gap after it is.
        next_sec: when the next gap begins.
    """

    phrase: np.ndarray
    phrase_sec: float
    gap_sec: float
    next_sec: float


@dataclass
class Job:
    """A piece of work for the model, which needs nothing of the engine while it is done.

    Attributes:
        epoch: number of the state of the session to which a note belongs.
        version: number of the state of what is heard.
        turn: for which a note is wanted; None where only reading is.
        past: what was heard, shape (num, 4).
        given: notes that are given, likewise.
    """

    epoch: int
    version: int
    turn: Turn | None
    past: np.ndarray
    given: np.ndarray
    begin_sec: float = 0.0
    before_sec: float = math.inf
    lookahead_sec: float = 0.0
    helped_from_sec: float = -math.inf
    controls: Controls = Controls()
    processors: tuple[Processor, ...] = ()
