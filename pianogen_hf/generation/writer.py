"""The loop behind all generation: a window of steps in, more steps out, until every sample is long enough."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pianogen_hf.generation.new_notes import GenerationError, NewNotes

_MAX_STEPS = 2000
_ENDLESS = 10**9  # the context of a model with a memory, in which nothing has to be left out to go on
# Options of `model.generate` that change nothing with these values.
_NEUTRAL: dict[str, tuple[Any, ...]] = {"do_sample": (True,), "top_k": (0, None), "num_beams": (1, None)}


class Writer:
    """Base of the writers; each kind of model has one that defines `_generate`.

    Steps are what the encoder makes of notes: tokens, shape (length,), or rows, shape (length, fields).

    Args:
        model: what writes.
        music: the prompt, and what the steps after it mean.
        on_progress: see `continue_notes`.
        on_message: see `continue_notes`.
        options: of the decoding, for `_generate`.

    Attributes:
        unit: what a step is called.
        max_steps_per_sec: steps for a second of music that are surely enough; a model that needs more stands still.
        max_steps_per_note: the same for a note.
        heard_share: how much of the model's context is for what was written before.
        min_piece: steps after a prompt, or the beginning of a piece, before the piece may end.
    """

    unit = "ids"
    max_steps_per_sec, max_steps_per_note = 500, 50
    min_piece = 64
    heard_share = 0.5

    def __init__(
        self,
        model: Any,
        music: NewNotes,
        on_progress: Callable[[float], None] | None,
        on_message: Callable[[str], None] | None,
        options: dict[str, Any],
    ) -> None:
        self.model, self.music, self.encoder = model, music, music.encoder
        self.on_progress, self.options = on_progress, self._taken(options)
        self.remembers = getattr(model.config, "memory_length", None) is not None
        self.context = _ENDLESS if self.remembers else int(model.config.max_position_embeddings)
        self.max_heard = int(self.context * self.heard_share)
        self._shares = np.zeros(0)
        heard, given = len(self._window(music.prompt_steps)), len(music.prompt_steps)
        if heard < given and on_message is not None:
            on_message(f"the prompt has {given} {self.unit}: the model hears the last {heard} of them")

    def _taken(self, options: dict[str, Any]) -> dict[str, Any]:
        """The options that `_generate` hands on; a writer whose model does not take all of them refuses the others."""
        return options

    def write(self, num_samples: int) -> list[np.ndarray]:
        """All steps, prompt included, of every sample.

        Raises:
            GenerationError: if the model stands still.
        """
        self._shares = np.zeros(num_samples)
        # The first round gives all samples at once: beam search then returns its best, which differ.
        samples = self._generate([self.music.prompt_steps], list(range(num_samples)))
        while unfinished := [index for index, steps in enumerate(samples) if not self._is_done(index, steps)]:
            if max(len(samples[index]) for index in unfinished) > self._max_steps():
                raise GenerationError("the model stands still: try another seed or a higher temperature")
            # Samples whose windows are equally long, as they are unless a piece has ended, are written together.
            sizes = [len(self._window(samples[index])) for index in unfinished]
            together = [index for index, size in zip(unfinished, sizes, strict=True) if size == sizes[0]]
            for index, steps in zip(
                together, self._generate([samples[row] for row in together], together), strict=True
            ):
                samples[index] = steps
        return samples

    def _generate(self, rows: Sequence[np.ndarray], samples: list[int]) -> list[np.ndarray]:
        """Write on, for as long as it is not useful to look.

        Args:
            rows: steps so far of each sample, with windows equally long; or of one row that all samples begin with.
            samples: the index of each sample.

        Returns:
            All steps of each sample; after the end of a piece comes the beginning of another.
        """
        raise TypeError(f"{type(self).__name__} can't write")

    def _max_steps(self) -> int:
        """The number of steps, prompt included, after which it is no use to continue."""
        notes, seconds = self.music.length.notes, self.music.seconds
        enough = notes * self.max_steps_per_note if notes is not None else seconds * self.max_steps_per_sec
        return len(self.music.prompt_steps) + _MAX_STEPS + round(enough)

    def _window(self, steps: np.ndarray) -> np.ndarray:
        """The latest steps of the latest piece, at most `max_heard`, cut where `build_chunks` might have cut."""
        size = self.encoder.cut_unit(self.max_heard)
        steps = steps[self._piece_start(steps) :]
        surplus = max(len(steps) - max(self.max_heard, size), 0)
        return steps[-(-surplus // size) * size :]

    def _piece_start(self, steps: np.ndarray) -> int:
        """Index of the latest beginning of a piece; 0 where there is none."""
        begins = (steps == self.encoder.beginning).reshape(len(steps), -1).all(-1)
        return int(np.flatnonzero(begins).max(initial=0))

    def _open_until(self, steps: np.ndarray) -> int:
        """How many steps there must be before the piece may end."""
        return max(len(self.music.prompt_steps), self._piece_start(steps)) + self.min_piece

    def _is_done(self, sample: int, steps: np.ndarray) -> bool:
        share = self.music.share(self.music.of(steps))
        self._shares[sample] = max(self._shares[sample], min(share, 1.0))
        if self.on_progress is not None:
            self.on_progress(float(self._shares.min()))
        return share >= 1


def sampling_options(
    model: Any, options: dict[str, Any], taken: tuple[str, ...] = ("temperature", "top_p")
) -> dict[str, Any]:
    """Temperature and top_p, for models that take nothing else.

    Args:
        model: to be named.
        options: as for `model.generate` of transformers.
        taken: names of what the model takes.

    Raises:
        GenerationError: if the others ask for something.
    """
    refused = [name for name, value in options.items() if name not in taken and value not in _NEUTRAL.get(name, ())]
    if len(refused) > 1 and "do_sample" in refused:  # it goes with the others, and leaving them out will do
        refused.remove("do_sample")
    if refused:
        raise GenerationError(
            f"{type(model).__name__} writes by chance, with {' and '.join(taken[:2])}: leave out {', '.join(refused)}"
        )
    return {name: options[name] for name in taken if name in options}
