"""NotesEncoder: what a tokenizer of music and a feature extractor of music have in common.

An encoded piece is an array of steps: ids, rows of ids, or rows of real numbers. Data, training and generation cut,
batch and decode steps and need not know which of them they are.
"""

from __future__ import annotations

import ast
import functools
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from .notes import Notes


class NotesEncoder:
    """Notes <-> steps: base of `NoteTokenizer` (a step is an id) and of feature extractors (a step is a row).

    A subclass defines every method here. Decoding what was encoded, of a whole piece or of a beginning of it, gives its
    notes in the same order, but for what the scheme loses.

    Attributes:
        time_unit: "second" where the scheme counts real time, "beat" where it counts score time and the tempo is lost.
        lost_fields: what the scheme throws away by design, for reports.
        tokens_per_step: ids that make one inseparable row; chunks and windows are cut at its multiples.
        ids_per_row: ids that make a step, where a step is a row of ids (see `RowTokenizer`); else 1.
        tokens_per_bar: ids of a bar, for encoders whose ids count time; windows are cut at its multiples where they are
            long enough, so that a model can tell the beat from the place in a window.
        pitch_range: lowest and highest pitch the scheme can write.
        model_input_names: names of a model's inputs; the first one is that of the steps.
    """

    time_unit: ClassVar[str] = "second"
    lost_fields: ClassVar[tuple[str, ...]] = ()
    tokens_per_step: ClassVar[int] = 1
    tokens_per_bar: ClassVar[int] = 1
    ids_per_row: ClassVar[int] = 1
    pitch_range: tuple[int, int] = (0, 127)
    model_input_names: list[str]
    _auto_class: Any  # of the class of transformers that a subclass inherits from as well

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        """Save settings and code; arguments as for the class of transformers.

        A subclass whose code can't stand alone is saved without it, with a warning: it loads by its own
        `from_pretrained`.
        """
        save = super().save_pretrained  # type: ignore[misc]
        if self._auto_class is None or code_stands_alone(type(self)):
            return save(save_directory, *args, **kwargs)
        name = type(self).__name__
        warnings.warn(
            f"{name} is saved without its code, which imports from its package: load it by {name}.from_pretrained",
            stacklevel=2,
        )
        self._auto_class = None
        try:
            return save(save_directory, *args, **kwargs)
        finally:
            del self._auto_class  # what the class says holds again

    @property
    def input_name(self) -> str:
        """What a model calls the steps: `input_ids` or `input_values`."""
        return self.model_input_names[0]

    @property
    def beginning(self) -> np.ndarray:
        """The one step before a piece, shape (1, ...)."""
        raise TypeError(f"{type(self).__name__} has no beginning")

    @property
    def writes_durations(self) -> bool:
        """Whether a note's step tells its length; if not, a note lasts as long as time is let pass."""
        raise TypeError(f"{type(self).__name__} does not say whether it writes durations")

    @property
    def keeps_instruments(self) -> bool:
        """Whether notes come back with their programs, channels and tracks, drums included."""
        return not {"program", "track"} & set(self.lost_fields)

    def cut_unit(self, size: int) -> int:
        """The number of steps at whose multiples a window of `size` steps is cut: a bar if it holds one, else a row."""
        return self.tokens_per_bar if size >= self.tokens_per_bar else self.tokens_per_step

    def piece_steps(self, notes: Notes) -> np.ndarray:
        """A whole piece with its beginning and its end: int32 of shape (num_ids,), or float32 of (num_rows, 4)."""
        raise TypeError(f"{type(self).__name__} can't encode")

    def encode_notes(self, notes: Notes) -> Sequence[int] | np.ndarray:
        """Steps of the notes alone, without beginning and end."""
        raise TypeError(f"{type(self).__name__} can't encode")

    def encode_prompt(self, notes: Notes) -> Sequence[int] | np.ndarray:
        """Steps of music to continue: the beginning and the notes, without what only marks an end."""
        raise TypeError(f"{type(self).__name__} can't encode")

    def decode_notes(self, steps: Any) -> Notes:
        """Notes of steps, as list, array or tensor."""
        raise TypeError(f"{type(self).__name__} can't decode")

    def seconds_left(self, steps: np.ndarray, stop: int) -> float | None:
        """From the last onset before step `stop` until the piece has died away; None where the scheme can't tell."""
        return None

    def identity(self) -> tuple[str, dict[str, Any], list[Any]]:
        """What the output depends on: the name of the class, its settings, and what was learnt from data."""
        raise TypeError(f"{type(self).__name__} does not say what its output depends on")

    def config_settings(self) -> dict[str, Any]:
        """What the config of a model that reads these steps must hold."""
        raise TypeError(f"{type(self).__name__} does not say what a model needs")

    def model_fault(self, model: Any) -> str | None:
        """What of a `PreTrainedModel` does not fit these steps, to follow "the model has"; None if all does."""
        if model.main_input_name != self.input_name:
            return f"{model.main_input_name} as its input, and {type(self).__name__} writes {self.input_name}"
        ids_per_row = getattr(model.config, "ids_per_row", 1)
        if ids_per_row != self.ids_per_row:
            return f"rows of {ids_per_row} ids as its steps, and those of {type(self).__name__} have {self.ids_per_row}"
        return None


def code_stands_alone(part: type) -> bool:
    """Whether the file of a class, copied beside its siblings, could be imported: what transformers does with it."""
    path = getattr(sys.modules.get(part.__module__), "__file__", None)
    return path is None or _imports_siblings_alone(Path(path))


@functools.cache  # reading the files takes longer than all else that is saved with a checkpoint
def _imports_siblings_alone(path: Path) -> bool:
    """Whether a file, and all that it imports from its package, import from nowhere but their own folder."""
    waiting, seen = [path], set()
    while waiting:
        file = waiting.pop()
        if file in seen:
            continue
        seen.add(file)
        try:
            tree = ast.parse(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, SyntaxError):
            return False
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level:
                if node.level > 1 or not node.module or "." in node.module:
                    return False
                waiting.append(file.parent / f"{node.module}.py")
    return True


__all__ = ["NotesEncoder"]
