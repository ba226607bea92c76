"""Continuing a prompt, or beginning from nothing, for a wanted number of seconds, notes or bars."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from transformers import GenerationMixin, LogitsProcessorList, PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from pianogen_hf.generation.constraints import GrammarLogitsProcessor
from pianogen_hf.generation.new_notes import Continuation, GenerationError, Length, NewNotes
from pianogen_hf.tokenizers.notes import DEFAULT_US_PER_QUARTER, NOTE_DTYPE, PEDAL_DOWN, PEDAL_DTYPE, TEMPO_DTYPE, Notes
from pianogen_hf.tokenizers.tokenization_notes import NoteTokenizer

_CHECK_EVERY = 16  # ids between two looks at how long the music has become: decoding costs more than a step
_MAX_REST = 48  # ids: generation that has been silent for so long must write a note
_MIN_PIECE = 64  # ids that follow a prompt, or the beginning of a piece, before the piece may end
# Ids that are surely enough; a model that needs more stands still, as TSD may by writing chords without a time shift.
_MAX_IDS, _MAX_IDS_PER_SEC, _MAX_IDS_PER_NOTE = 2000, 500, 50


def continue_notes(
    model: PreTrainedModel | GenerationMixin,
    tokenizer: NoteTokenizer,
    length: Length,
    prompt: Notes | None = None,
    *,
    num_samples: int = 1,
    seed: int | None = None,
    us_per_quarter: int = DEFAULT_US_PER_QUARTER,
    on_progress: Callable[[float], None] | None = None,
    on_message: Callable[[str], None] | None = None,
    **generate_kwargs: Any,
) -> list[Continuation]:
    """Generate music after a prompt, or from nothing.

    Where prompt and new music outgrow the model's context, generation goes on from a window of the latest half of it;
    the grammar still knows all that was written. Where the model ends its piece before there is enough, another one
    begins: held to a piece that is over, a model would hold its last chord for ever.

    Args:
        model: a causal model over the tokenizer's ids.
        tokenizer: its tokenizer.
        length: how much.
        prompt: music to continue; its own notes stay as they are in the result. Its pedal comes up at its end.
        num_samples: how many continuations.
        seed: makes sampling repeatable.
        us_per_quarter: tempo of music from nothing.
        on_progress: called with the share that is done of the slowest sample, 0..1, never falling.
        on_message: called with remarks for the user, for example that the prompt was cut.
        **generate_kwargs: as for `model.generate`: temperature, top_p, top_k, num_beams, do_sample ...

    Returns:
        One `Continuation` per sample, none of them without a new note.

    Raises:
        GenerationError: if the prompt holds nothing that the tokenizer can write, if more is asked for than a MIDI
            file can hold, or if the model stands still.
    """
    base, start_tick = _prompt_axis(tokenizer, prompt, us_per_quarter)
    prompt_ids = _prompt_ids(tokenizer, base) if prompt is not None else [tokenizer.bos_token_id]
    if seed is not None:
        torch.manual_seed(seed)
    music = NewNotes(tokenizer, base, start_tick, prompt_ids, length)
    return [
        music.result(ids) for ids in _Writer(model, music, on_progress, on_message, generate_kwargs).write(num_samples)
    ]


def _prompt_axis(tokenizer: NoteTokenizer, prompt: Notes | None, us_per_quarter: int) -> tuple[Notes, int]:
    """The notes that new music is appended to, and the tick at which it begins.

    A prompt ends where its last note does, held by the pedal if the scheme hears the pedal. There the pedal comes up,
    and no later event of it stays: it would blur what is generated.
    """
    if prompt is None:
        return Notes(np.zeros(0, NOTE_DTYPE), tempos=np.array([(0, us_per_quarter)], TEMPO_DTYPE)), 0
    start_tick = (prompt if "pedal" in tokenizer.lost_fields else prompt.with_sustain()).end_tick
    pedals = prompt.pedals[prompt.pedals["tick"] < start_tick]
    last = {track: value for _, value, track in pedals.tolist()}
    lifted = [(start_tick, 0, track) for track, value in last.items() if value >= PEDAL_DOWN]
    return replace(prompt, pedals=np.concatenate([pedals, np.array(lifted, dtype=PEDAL_DTYPE)])), start_tick


def _prompt_ids(tokenizer: NoteTokenizer, prompt: Notes) -> list[int]:
    try:
        ids = tokenizer.encode_prompt(prompt)
    except ValueError as error:
        raise GenerationError(f"the prompt can't be tokenized: {error}") from error
    if len(tokenizer.decode_notes(ids)) == 0:
        low, high = tokenizer.pitch_range
        raise GenerationError(
            f"the prompt has no notes that {type(tokenizer).__name__} can write (pitches {low}..{high})"
        )
    return ids


class _LongEnough(StoppingCriteria):
    """Stops each row once its music is long enough; looks only every `_CHECK_EVERY` ids."""

    def __init__(self, are_done: Callable[[np.ndarray], list[bool]]) -> None:
        self.are_done, self.calls = are_done, 0

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> Any:
        self.calls += 1
        done = np.zeros(len(input_ids), dtype=bool)
        if self.calls % _CHECK_EVERY == 0:
            done[:] = self.are_done(input_ids.cpu().numpy())
        return torch.from_numpy(done).to(input_ids.device)


class _Writer:
    """The loop behind `continue_notes`: windows of ids in, longer ids out, until every sample is long enough."""

    def __init__(
        self,
        model: Any,  # a PreTrainedModel that can generate
        music: NewNotes,
        on_progress: Callable[[float], None] | None,
        on_message: Callable[[str], None] | None,
        generate_kwargs: dict[str, Any],
    ) -> None:
        self.music, self.tokenizer = music, music.tokenizer
        self.model = model
        self.on_progress, self.generate_kwargs = on_progress, generate_kwargs
        self.context = int(self.model.config.max_position_embeddings)
        heard, given = len(self._window(np.array(music.prompt_ids))), len(music.prompt_ids)
        if heard < given and on_message is not None:
            on_message(f"the prompt has {given} ids: the model hears the last {heard} of them")

    def write(self, num_samples: int) -> list[np.ndarray]:
        """All ids, prompt included, of every sample.

        Raises:
            GenerationError: if the model stands still.
        """
        self._shares = np.zeros(num_samples)
        # The first round gives all samples at once: beam search then returns its best, which differ.
        samples = self._generate([np.array(self.music.prompt_ids)], list(range(num_samples)))
        while unfinished := [index for index, ids in enumerate(samples) if not self._is_done(index, ids)]:
            if max(len(samples[index]) for index in unfinished) > self._max_ids():
                raise GenerationError("the model stands still: try another seed or a higher temperature")
            # Samples whose windows are equally long, as they are unless a piece has ended, are written together.
            sizes = [len(self._window(samples[index])) for index in unfinished]
            together = [index for index, size in zip(unfinished, sizes, strict=True) if size == sizes[0]]
            for index, ids in zip(together, self._generate([samples[i] for i in together], together), strict=True):
                samples[index] = ids
        return samples

    def _max_ids(self) -> int:
        """The number of ids, prompt included, after which it is no use to go on."""
        notes, seconds = self.music.length.notes, self.music.seconds
        enough = notes * _MAX_IDS_PER_NOTE if notes is not None else seconds * _MAX_IDS_PER_SEC
        return len(self.music.prompt_ids) + _MAX_IDS + round(enough)

    def _window(self, ids: np.ndarray) -> np.ndarray:
        """The latest ids of the latest piece, at most half the context, cut where `build_chunks` might have cut."""
        step = self.tokenizer.tokens_per_step
        ids = ids[self._piece_start(ids) :]
        surplus = max(len(ids) - max(self.context // 2, step), 0)
        return ids[-(-surplus // step) * step :]

    def _piece_start(self, ids: np.ndarray) -> int:
        """Index of the latest `<bos>`; 0 in ids that have none."""
        return int(np.flatnonzero(ids == self.tokenizer.bos_token_id).max(initial=0))

    def _generate(self, rows: Sequence[np.ndarray], samples: list[int]) -> list[np.ndarray]:
        """Write until every row is done, or at the end of its piece, or the context is full.

        Args:
            rows: ids so far of each sample, equally many; or of one row that all samples begin with.
            samples: the index of each sample.

        Returns:
            All ids of each sample; after the end of a piece comes the beginning of another.
        """
        windows = np.stack([self._window(ids) for ids in rows])
        histories = [ids[: len(ids) - windows.shape[1]] for ids in rows]
        open_until = [max(len(self.music.prompt_ids), self._piece_start(ids)) + _MIN_PIECE for ids in rows]

        def are_done(batch: np.ndarray) -> list[bool]:
            # Beams and samples of one row stand together, so the place in the batch tells the row and the sample.
            places = np.arange(len(batch)) / len(batch)
            owners = zip((places * len(samples)).astype(int), (places * len(rows)).astype(int), batch, strict=True)
            return [self._is_done(samples[sample], np.append(histories[row], ids)) for sample, row, ids in owners]

        device = self.model.device
        output = self.model.generate(
            torch.from_numpy(windows).to(device),
            attention_mask=torch.ones(windows.shape, dtype=torch.long, device=device),
            max_new_tokens=max(self.context - windows.shape[1], self.tokenizer.tokens_per_step),
            num_return_sequences=len(samples) // len(rows),
            pad_token_id=self.tokenizer.pad_token_id,
            eos_token_id=self.tokenizer.eos_token_id,
            logits_processor=LogitsProcessorList(
                [GrammarLogitsProcessor(self.tokenizer, histories, open_until=open_until, max_rest=_MAX_REST)]
            ),
            stopping_criteria=StoppingCriteriaList([_LongEnough(are_done)]),
            **self.generate_kwargs,
        )
        written = [ids[ids != self.tokenizer.pad_token_id] for ids in output.cpu().numpy()]
        written = [np.append(ids, self.tokenizer.bos_token_id) if self._has_ended(ids) else ids for ids in written]
        return [np.append(histories[index * len(rows) // len(written)], ids) for index, ids in enumerate(written)]

    def _has_ended(self, ids: np.ndarray) -> bool:
        return bool(ids[-1] == self.tokenizer.eos_token_id)

    def _is_done(self, sample: int, ids: np.ndarray) -> bool:
        share = self.music.share(self.music.of(ids))
        self._shares[sample] = max(self._shares[sample], min(share, 1.0))
        if self.on_progress is not None:
            self.on_progress(float(self._shares.min()))
        return share >= 1
