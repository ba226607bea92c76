"""How the next token, or the next field of a note, is chosen: logits processors beside those of transformers.

Each works on what is allowed (what has not a score of minus infinity), and on probabilities, so that it means the same
for every model. Sources, and what they do otherwise:

    creativity, typed top-k, offset   ai-music: there creativity scales a raw logit, which makes rests likelier where
                                      the logit is negative; and the kind of the next token is that of the arg-max
                                      where here every kind keeps its likeliest
    mask_k, mask_p                    MIDI-GPT
    min-p, typical, top-k, top-p      transformers, taken as they are
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from pianogen_hf.generation.guards import CopyIndex, no_copies, no_repeats
from pianogen_hf.generation.new_notes import GenerationError
from pianogen_hf.generation.note_stream import NoteStream, Processor
from pianogen_hf.generation.processors import warped
from pianogen_hf.models.modeling_note_transformer import DURATION, END_CLASS, PITCH, TIME_SHIFT, VELOCITY
from pianogen_hf.tokenizers.tokenization_notes import NoteTokenizer

KINDS = ("time", "pitch", "velocity", "duration")  # of tokens, and the fields of a row in their order
_COLUMNS = (TIME_SHIFT, PITCH, VELOCITY, DURATION)
_KIND_OF_NAME = {  # what names of tokens begin with; what fits none is of no kind
    "time": r"TIME_SHIFT|TimeShift|Rest|REST|Separator|Bar|Beat|Position|time\d|\s",
    "pitch": r"NOTE_ON|NoteOn|Pitch_|pitch_|P\d",
    "velocity": r"VELOCITY|Velocity|velocity_",
    "duration": r"NOTE_OFF|NoteOff|Duration|duration_",
}


def token_kinds(tokenizer: NoteTokenizer) -> np.ndarray:
    """The kind of each token, as an index of `KINDS`, or -1, int64, shape (num_tokens,).

    A token that byte pair encoding learnt is of the kind of its first event.
    """
    kinds = np.full(len(tokenizer), -1)
    names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    for index in range(tokenizer.num_special, len(tokenizer)):
        matching = (kind for kind, pattern in _KIND_OF_NAME.items() if re.match(pattern, names[index]))
        kinds[index] = next((KINDS.index(kind) for kind in matching), -1)
    return kinds


# Processors ----------------------------------------------------------------------------------------------------------


class CreativityLogitsProcessor(LogitsProcessor):
    """Rests become rarer: their probability is multiplied by `1 - creativity`, and the others share what they lose.

    So more creativity never gives more rests, whatever the logits: 0 changes nothing, and 1 leaves no rest unless
    nothing else is allowed.

    Args:
        is_rest: which tokens let time pass, bool, shape (num_ids,).
        creativity: 0..1.
    """

    def __init__(self, is_rest: np.ndarray, creativity: float) -> None:
        self.is_rest, self.creativity = torch.from_numpy(np.asarray(is_rest, dtype=bool)), creativity

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> Any:
        """Log-probabilities, shape (rows, num_ids)."""
        is_rest = widened(self.is_rest, scores)
        log_probs = scores.log_softmax(-1)
        rests = log_probs.masked_fill(~is_rest, -torch.inf).logsumexp(-1, keepdim=True).exp().double()
        others = log_probs.masked_fill(is_rest, -torch.inf).logsumexp(-1, keepdim=True).exp().double()
        grown = ((1 - (1 - self.creativity) * rests) / others).log().to(scores.dtype)
        shrunk = math.log(1 - self.creativity) if self.creativity < 1 else -math.inf
        changed = log_probs + torch.where(is_rest, torch.full_like(grown, shrunk), grown)
        return torch.where(others > 0, changed, scores)


class KindTopKLogitsProcessor(LogitsProcessor):
    """Of each kind of token only the likeliest are left.

    Where the grammar allows but one kind, as in schemes where a duration follows every pitch, this is top-k with a k
    of its own for each.

    Args:
        kinds: what `token_kinds` gives.
        top_k: how many are left, by name of the kind.
    """

    def __init__(self, kinds: np.ndarray, top_k: Mapping[str, int]) -> None:
        self.masks = [(torch.from_numpy(kinds == KINDS.index(name)), number) for name, number in top_k.items()]

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> Any:
        """Scores, shape (rows, num_ids)."""
        for mask, number in self.masks:
            own = widened(mask, scores)
            inside = scores.masked_fill(~own, -torch.inf)
            least = inside.topk(min(number, scores.shape[-1]), dim=-1).values[:, -1:]
            scores = scores.masked_fill(own & (scores < least), -torch.inf)  # type: ignore[assignment]
        return scores


class KindTemperatureLogitsProcessor(LogitsProcessor):
    """A temperature for each kind of token: how tokens of a kind share its probability, which stays what it is.

    Args:
        kinds: what `token_kinds` gives.
        temperatures: by name of the kind, above 0.
    """

    def __init__(self, kinds: np.ndarray, temperatures: Mapping[str, float]) -> None:
        self.masks = [(torch.from_numpy(kinds == KINDS.index(name)), each) for name, each in temperatures.items()]

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> Any:
        """Log-probabilities, shape (rows, num_ids)."""
        log_probs = scores.log_softmax(-1)
        for mask, temperature in self.masks:
            own = widened(mask, scores)
            inside = log_probs.masked_fill(~own, -torch.inf)
            total = inside.logsumexp(-1, keepdim=True)
            shared = (inside / temperature).log_softmax(-1) + total
            log_probs = torch.where(own & total.isfinite() & inside.isfinite(), shared, log_probs)
        return log_probs


class OffsetLogitsProcessor(LogitsProcessor):
    """The likeliest of what is allowed are left out; one stays, if it be the last.

    Args:
        offset: how many are left out.
        eos_token_id: is not left out twice in a row, or music could not end.
    """

    def __init__(self, offset: int, eos_token_id: int | None = None) -> None:
        self.offset, self.eos_token_id = offset, eos_token_id
        self._lost_eos = torch.zeros(0, dtype=torch.bool)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> Any:
        """Scores, shape (rows, num_ids)."""
        allowed = scores.isfinite()
        ranks = scores.argsort(dim=-1, descending=True, stable=True).argsort(-1)
        least = torch.minimum(torch.tensor(self.offset, device=scores.device), allowed.sum(-1, keepdim=True) - 1)
        lost = ranks < least
        if self.eos_token_id is not None:
            before = (
                self._lost_eos if len(self._lost_eos) == len(scores) else torch.zeros(len(scores), dtype=torch.bool)
            )
            eos = lost[:, self.eos_token_id].cpu() & ~before
            lost[:, self.eos_token_id] = eos.to(lost.device)
            self._lost_eos = eos
        return scores.masked_fill(lost, -torch.inf)


class MaskPLogitsProcessor(LogitsProcessor):
    """The likeliest are left out that together have at most the probability `mask_p`; one stays.

    Args:
        mask_p: 0 (none) to 1.
    """

    def __init__(self, mask_p: float) -> None:
        self.mask_p = mask_p

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> Any:
        """Scores, shape (rows, num_ids)."""
        ordered, places = scores.softmax(-1).sort(dim=-1, descending=True, stable=True)
        lost = ordered.cumsum(-1) <= self.mask_p + 1e-7
        last = scores.isfinite().sum(-1, keepdim=True) - 1
        lost &= torch.arange(scores.shape[-1], device=scores.device) < last
        return scores.masked_fill(lost.gather(-1, places.argsort(-1)), -torch.inf)


def widened(mask: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """A mask of tokens for scores of as many or more, on their device; those beyond it are not in it."""
    missing = scores.shape[-1] - len(mask)
    return torch.nn.functional.pad(mask, (0, missing)).to(scores.device)


# Options -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Search:
    """How to choose, as the verbs take it; what is left at its default changes nothing.

    Attributes:
        temperature: of everything; 0 for the likeliest (greedy).
        top_k: choose among so many of the likeliest; 0 for all.
        top_p: choose among the likeliest that together have this probability.
        min_p: choose among those that are at least so many times as likely as the likeliest.
        typical_p: choose among the most typical that together have this probability (Meister et al. 2022).
        top_k_notes: top-k of pitches alone.
        top_k_durations: top-k of durations alone.
        top_k_of: top-k by kind: "time", "pitch", "velocity", "duration".
        temperature_of: temperature by kind.
        top_k_offset: leave out so many of the likeliest; with `top_k`, ranks from offset to top_k are left.
        mask_k: leave out so many of the likeliest of what all others have left.
        mask_p: leave out the likeliest of these that together have this probability.
        creativity: 0..1: how much rarer time passes (rests).
        num_beams: beam search rather than sampling.
        length_penalty: exponent of the number of steps by which the score of beams is divided.
        do_sample: False for the likeliest.
        no_repeat_notes: so many pitches in a row are not said twice (V8); 0 for no such rule.
        copy_index: an index of pieces, such as a fitted `RunIndex`, that are not to be copied (V8).
        max_run: notes in a row from such a piece, in any key, that are no copy yet.
    """

    temperature: float = 1.0
    top_k: int | None = 0
    top_p: float = 1.0
    min_p: float | None = None
    typical_p: float = 1.0
    top_k_notes: int = 0
    top_k_durations: int = 0
    top_k_of: Mapping[str, int] = field(default_factory=dict)
    temperature_of: Mapping[str, float] = field(default_factory=dict)
    top_k_offset: int = 0
    mask_k: int = 0
    mask_p: float = 0.0
    creativity: float = 0.0
    num_beams: int | None = 1
    length_penalty: float = 1.0
    do_sample: bool = True
    no_repeat_notes: int = 0
    copy_index: CopyIndex | None = None
    max_run: int = 16

    def __post_init__(self) -> None:
        for name, low, high in (
            ("temperature", 0, 1e6),
            ("typical_p", 1e-9, 1),
            ("top_p", 1e-9, 1),
            ("min_p", 0, 1),
            ("mask_p", 0, 1),
            ("creativity", 0, 1),
            ("top_k", 0, 1e9),
            ("top_k_notes", 0, 1e9),
            ("top_k_durations", 0, 1e9),
            ("top_k_offset", 0, 1e9),
            ("mask_k", 0, 1e9),
            ("num_beams", 1, 1000),
            ("no_repeat_notes", 0, 1000),
            ("max_run", 2, 100_000),
            ("length_penalty", -100, 100),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                shown = "above 0" if low == 1e-9 else f"at least {low}"
                raise GenerationError(f"{name} must be {shown} and at most {high:g}, got {value:g}")
        for name, mapping, least in (("top_k_of", self.top_k_of, 1), ("temperature_of", self.temperature_of, 1e-6)):
            for kind, value in mapping.items():
                if kind not in KINDS or not least <= value < 1e9:
                    raise GenerationError(f"{name} has a number above 0 for {', '.join(KINDS)}, not {kind}={value:g}")
        if self.no_repeat_notes == 1:
            raise GenerationError("no_repeat_notes must be at least 2, or no pitch could be written twice")
        if (self.no_repeat_notes or self.copy_index is not None) and (self.num_beams or 1) > 1:
            raise GenerationError("no_repeat_notes and copy_index are for sampling: leave out num_beams")
        if self.top_k and self.top_k_offset >= self.top_k:
            raise GenerationError(f"top_k_offset {self.top_k_offset} leaves nothing of a top_k of {self.top_k}")

    @property
    def top_k_by_kind(self) -> dict[str, int]:
        """Top-k of each kind that has one."""
        own = {"pitch": self.top_k_notes, "duration": self.top_k_durations}
        return {name: number for name, number in own.items() if number} | dict(self.top_k_of)

    def warpers(self) -> LogitsProcessorList:
        """Those of transformers, in its order."""
        chosen = LogitsProcessorList()
        if self.temperature not in (0, 1):
            chosen.append(TemperatureLogitsWarper(float(self.temperature)))
        if self.top_k:
            chosen.append(TopKLogitsWarper(self.top_k - self.top_k_offset))
        if self.top_p < 1:
            chosen.append(TopPLogitsWarper(self.top_p))
        if self.min_p:
            chosen.append(MinPLogitsWarper(self.min_p))
        if self.typical_p < 1:
            chosen.append(TypicalLogitsWarper(self.typical_p))
        return chosen

    def masks(self) -> LogitsProcessorList:
        """What leaves out the likeliest after all else."""
        chosen = LogitsProcessorList()
        if self.mask_k:
            chosen.append(OffsetLogitsProcessor(self.mask_k))
        if self.mask_p:
            chosen.append(MaskPLogitsProcessor(self.mask_p))
        return chosen

    @property
    def is_greedy(self) -> bool:
        """Whether nothing is left to chance."""
        return self.temperature == 0 or not self.do_sample


_NAMES = {each.name for each in fields(Search)}
# What transformers' own `generate` does not know.
_OWN = {
    "top_k_notes",
    "top_k_durations",
    "top_k_of",
    "temperature_of",
    "top_k_offset",
    "mask_k",
    "mask_p",
    "creativity",
}


def search_of(model: Any, options: dict[str, Any]) -> Search:
    """The search that options ask of a model which takes no others.

    Raises:
        GenerationError: for other options, or a value that means nothing.
    """
    others = sorted(set(options) - _NAMES)
    if others:
        raise GenerationError(f"{type(model).__name__} has no option {', '.join(others)}")
    return Search(**options)


def field_processors(search: Search) -> tuple[Processor, ...]:
    """The search as processors of a note's fields, for a `NoteStream`.

    What leaves out the likeliest does so for pitches and durations. Time passes where a note does not begin together
    with the one before it.
    """
    chosen: list[Processor] = []
    if search.creativity:
        passes = np.arange(END_CLASS + 1) > 0
        passes[END_CLASS] = False
        chosen.append(of_field(CreativityLogitsProcessor(passes, search.creativity), TIME_SHIFT))
    for name, temperature in search.temperature_of.items():
        chosen.append(of_field(TemperatureLogitsWarper(float(temperature)), KINDS.index(name)))
    for name, number in search.top_k_by_kind.items():
        chosen.append(of_field(TopKLogitsWarper(number), KINDS.index(name)))
    if search.top_k_offset:
        chosen.append(of_field(OffsetLogitsProcessor(search.top_k_offset), PITCH, DURATION))
    if search.is_greedy or not (search.top_k or search.min_p or search.typical_p < 1):
        temperature = 0.0 if search.is_greedy and not search.masks() else search.temperature or 1.0
        chosen.append(warped(temperature, search.top_p))  # the fast way of what is asked for most
    elif warpers := search.warpers():
        chosen.append(of_field(warpers, *_COLUMNS))
    if masks := search.masks():
        chosen.append(of_field(masks, PITCH, DURATION))
        if search.is_greedy:
            chosen.append(warped(0.0))
    return tuple(chosen)


def guards(search: Search, stream: NoteStream) -> tuple[Processor, ...]:
    """What a search forbids a stream because of the notes that it has written."""
    chosen: list[Processor] = []
    if search.no_repeat_notes:
        chosen.append(no_repeats(stream, search.no_repeat_notes))
    if search.copy_index is not None:
        chosen.append(no_copies(stream, search.copy_index, search.max_run))
    return tuple(chosen)


def of_field(processor: LogitsProcessor | LogitsProcessorList, *columns: int) -> Processor:
    """A logits processor of transformers for some fields of a note."""
    no_ids = torch.zeros(1, 0, dtype=torch.long)

    def process(column: int, scores: np.ndarray, onset: float) -> np.ndarray:
        if column not in columns or not np.isfinite(scores).any():
            return scores
        return processor(no_ids, torch.from_numpy(scores)[None])[0].numpy()  # type: ignore[arg-type]

    return process


def token_processors(tokenizer: NoteTokenizer, options: dict[str, Any]) -> tuple[LogitsProcessorList, dict[str, Any]]:
    """Options for a model of tokens: processors to come after the grammar, and what `generate` takes itself.

    Raises:
        GenerationError: for a value that means nothing.
    """
    of_notes = sorted({"no_repeat_notes", "copy_index", "max_run"} & options.keys())
    if of_notes:
        raise GenerationError(
            f"{', '.join(of_notes)} are for a note transformer (V8): of tokens ask for no_repeat_ngram_size, and draw "
            "copies again (`redrawn`)"
        )
    known = {name: value for name, value in options.items() if name in _NAMES}
    search, chosen = Search(**known), LogitsProcessorList()
    rest = {name: value for name, value in options.items() if name not in _OWN}
    if search.temperature == 0:
        rest = {**rest, "do_sample": False}
        rest.pop("temperature")
    if (search.num_beams or 1) > 1:
        rest.setdefault("renormalize_logits", True)  # a beam is scored by what the grammar leaves
    if not _OWN & options.keys():
        return chosen, rest
    kinds = token_kinds(tokenizer)
    if search.creativity:
        is_rest = kinds == KINDS.index("time")
        chosen.append(CreativityLogitsProcessor(is_rest, search.creativity))
    if search.temperature_of:
        chosen.append(KindTemperatureLogitsProcessor(kinds, search.temperature_of))
    if search.top_k_by_kind:
        chosen.append(KindTopKLogitsProcessor(kinds, search.top_k_by_kind))
    if search.top_k_offset:
        chosen.append(OffsetLogitsProcessor(search.top_k_offset, tokenizer.eos_token_id))
        if search.top_k:
            rest["top_k"] = search.top_k - search.top_k_offset
    if masks := search.masks():  # after all others, which transformers would put behind these
        chosen.extend([*search.warpers(), *masks])
        rest |= {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
        rest = {name: value for name, value in rest.items() if name not in ("min_p", "typical_p")}
    return chosen, rest
