"""Writing a part of music to another one that is given, by an encoder-decoder: an accompaniment, or a melody.

The model reads the given part of a window and writes the other one. Windows overlap: each knows what was written in its
first half, and of what is given more than it is asked to write to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from pianogen_hf.generation.constraints import GrammarLogitsProcessor
from pianogen_hf.generation.new_notes import GenerationError
from pianogen_hf.generation.search import token_processors
from pianogen_hf.tokenizers.notes import Notes
from pianogen_hf.tokenizers.tokenization_note_duration import NoteDurationTokenizer

MELODY, ACCOMPANIMENT = "<mseq>", "<cseq>"  # tokens that begin a part
_ROOM = {ACCOMPANIMENT: 0.3, MELODY: 0.6}  # share of a chunk of training that the other, given part takes up
_WRITTEN = 0.75  # share of a window that is written to; the rest of it is looked ahead


class PartWriter:
    """Writes one part to another.

    Args:
        model: an encoder-decoder that was trained on `NoteDurationTokenizer.translations`.
        tokenizer: its tokenizer.
        kind: what is written, `MELODY` or `ACCOMPANIMENT`.
        rules: of what may be drawn besides, as processors of logits.
        options: temperature, top_p and all else that `Search` names.

    Raises:
        GenerationError: for an option that means nothing.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: NoteDurationTokenizer,
        kind: str,
        rules: Sequence[LogitsProcessor] = (),
        options: dict[str, Any] | None = None,
    ) -> None:
        self.model, self.tokenizer, self.kind, self.rules = model, tokenizer, kind, rules
        self.chosen, self.options = token_processors(tokenizer, {"do_sample": True, **(options or {})})
        self.context = int(model.config.max_position_embeddings)
        self.room = int(self.context * _ROOM[kind])

    @torch.inference_mode()
    def write(self, part: Notes, seed: int, on_progress: Callable[[float], None] | None = None) -> np.ndarray:
        """The other part.

        Args:
            part: what is given.
            seed: of all that is drawn.
            on_progress: called with the share that is done.

        Returns:
            Onset, pitch and duration of notes in steps of the tokenizer's grid, int64 of shape (num_notes, 3).

        Raises:
            GenerationError: if the given part has no notes that can be encoded, or the model stands still.
        """
        given = self.tokenizer.note_steps(self.tokenizer.encode_notes(part))
        if not len(given):
            raise GenerationError("the given part has no notes that the tokenizer can write")
        torch.manual_seed(seed)
        end = int((given[:, 0] + given[:, 2]).max())
        written, begin = np.zeros((0, 3), dtype=np.int64), 0
        while True:
            window = self._window(given, begin)
            is_last = len(window) == int(np.count_nonzero(given[:, 0] >= begin))
            stop = end if is_last else begin + max(int((window[-1, 0] - begin) * _WRITTEN), 1)
            before = written[written[:, 0] < begin]
            heard = written[len(before) :]
            beside = _BesideLogitsProcessor(self.tokenizer, _moved(given, -begin), self.kind == ACCOMPANIMENT, is_last)
            found, is_done = self._written(_moved(window, -begin), _moved(heard, -begin), stop - begin, beside)
            written = np.concatenate([before, _moved(found, begin)])
            if on_progress is not None:
                on_progress(min(stop / end, 1.0))
            if is_done and is_last:
                return written
            begin = self._next(begin, window, written, is_done)

    def _window(self, given: np.ndarray, begin: int) -> np.ndarray:
        """Given notes from a step on, whole steps of them, as many as there is room for."""
        later = given[given[:, 0] >= begin]
        begins_step = np.diff(later[:, 0], prepend=-1) > 0
        num_ids = 2 * np.cumsum(1 + begins_step)
        fits = int(np.count_nonzero(num_ids <= self.room))
        if fits == len(later):
            return later
        whole = np.flatnonzero(begins_step[: fits + 1])[-1]
        return later[: max(int(whole), 1)]

    def _next(self, begin: int, window: np.ndarray, written: np.ndarray, is_done: bool) -> int:
        """Where the next window begins: in the middle of what was given, or of what was written if that is earlier."""
        middle = int(window[len(window) // 2, 0]) if len(window) else begin
        latest = written[written[:, 0] >= begin]
        if not is_done:
            if not len(latest):
                raise GenerationError("the model stands still: try another seed or a higher temperature")
            middle = min(middle, int(latest[len(latest) // 2, 0]))
        return max(middle, begin + 1)

    def _written(
        self, given: np.ndarray, heard: np.ndarray, stop: int, beside: _BesideLogitsProcessor
    ) -> tuple[np.ndarray, bool]:
        """What was heard and what follows it, up to a step; and whether the model got so far."""
        other = MELODY if self.kind == ACCOMPANIMENT else ACCOMPANIMENT
        end = [self.tokenizer.eos_token_id] * beside.may_end
        ids = np.concatenate([self.tokenizer.part_ids(other, given), end]).astype(np.int64)
        prompt = self.tokenizer.part_ids(self.kind, heard)
        device = self.model.device
        output = (
            self.model.generate(
                torch.from_numpy(ids)[None].to(device),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long, device=device),
                decoder_input_ids=torch.from_numpy(prompt)[None].to(device),
                max_length=max(self.context, len(prompt) + 1),
                pad_token_id=self.tokenizer.pad_token_id,
                eos_token_id=self.tokenizer.eos_token_id,
                logits_processor=LogitsProcessorList(
                    [GrammarLogitsProcessor(self.tokenizer), beside, *self.rules, *self.chosen]
                ),
                stopping_criteria=StoppingCriteriaList([_HasReached(self.tokenizer, stop)]),
                **self.options,
            )[0]
            .cpu()
            .numpy()
        )
        notes = self.tokenizer.note_steps(output)
        is_done = output[-1] == self.tokenizer.eos_token_id or _step(self.tokenizer, output) >= stop
        return notes[notes[:, 0] < stop], bool(is_done)


class _BesideLogitsProcessor(LogitsProcessor):
    """Keeps a part on its side of the given one, as parts were told apart for training, and open until that one ends.

    Args:
        tokenizer: of the ids.
        given: all notes of the given part, those that a window no longer hears included: some may still sound.
        is_below: whether what is written lies below; else it is a melody, which has one note at a time.
        may_end: whether the piece may end, once the last given note has begun.
    """

    def __init__(self, tokenizer: NoteDurationTokenizer, given: np.ndarray, is_below: bool, may_end: bool) -> None:
        self.tokenizer, self.is_below, self.may_end = tokenizer, is_below, may_end
        self.onset, self.pitch, steps = given.T
        self.end = self.onset + steps

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> Any:
        """Scores, shape (rows, vocab_size), minus infinity for what lies on the other side, unless nothing is left."""
        allowed = np.stack([self._allowed(ids) for ids in input_ids.cpu().numpy()])
        kept = torch.nn.functional.pad(torch.from_numpy(allowed), (0, scores.shape[-1] - allowed.shape[-1]))
        left = scores.masked_fill(~kept.to(scores.device), -torch.inf)
        return torch.where(torch.isfinite(left).any(-1, keepdim=True), left, scores)

    def _allowed(self, ids: np.ndarray) -> np.ndarray:
        first, allowed = self.tokenizer.first_pitch_id, np.ones(len(self.tokenizer), dtype=bool)
        step = _step(self.tokenizer, ids)
        allowed[self.tokenizer.eos_token_id] = self.may_end and step >= self.onset.max(initial=0)
        sounding = self.pitch[(self.onset <= step) & (self.end > step)]
        if self.is_below:
            allowed[first + sounding.min(initial=128) : first + 128] = False
        else:
            allowed[first : first + sounding.max(initial=-1) + 1] = False
            if len(ids) > 2 and self.tokenizer.separator_id < ids[-2] < self.tokenizer.first_duration_id:
                allowed[first : first + 128] = False
        return allowed


class _HasReached(StoppingCriteria):
    """Stops rows that have come to a step."""

    def __init__(self, tokenizer: NoteDurationTokenizer, stop: int) -> None:
        self.tokenizer, self.stop = tokenizer, stop

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> Any:
        done = [_step(self.tokenizer, ids) >= self.stop for ids in input_ids.cpu().numpy()]
        return torch.tensor(done, device=input_ids.device)


def _step(tokenizer: NoteDurationTokenizer, ids: np.ndarray) -> int:
    """Where an id after these would stand."""
    return int(tokenizer.positions(np.append(ids, tokenizer.pad_token_id))[-1])


def _moved(notes: np.ndarray, steps: int) -> np.ndarray:
    return notes + [steps, 0, 0]
