"""What windows over pieces cost a model, id by id: one scorer per training objective.

* causal models of tokens: each token given those before it, within a window;
* masked models: an upper bound. A code that writes the tokens of a window in random order costs at most so much
  (Hoogeboom et al. 2021, https://arxiv.org/abs/2110.02037, section 3); the mean over a few random masks estimates it;
* encoder-decoders: each token of a part given those before it and all of the other part, within a window;
* models of events (rows of tokens): each token given the events before it and the tokens before it in its event;
* models of continuous notes (V5, V8): the probability mass of each row on the grid of `config.sampling_rate`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pianogen_hf.models.objectives import ANY_ORDER, NEXT_EVENT, NEXT_NOTE, NEXT_TOKEN, NOTE_AMONG_GIVEN, PART_FROM_PART
from pianogen_hf.models.order_agnostic import IGNORED, draw_named_mask, label_nats, label_weights
from pianogen_hf.models.part_batches import parts_batch
from pianogen_hf.models.segment_memory import SegmentMemory

END, SEVERAL, EVENT = "end", "several", "event"  # kinds of tokens beside those that an encoding names
_FIELDS = ("time shift", "pitch", "velocity", "duration")  # of a row of continuous notes


@dataclass(frozen=True)
class Window:
    """A stretch of a piece: whose it is, its rows (tokens, or rows of fields), and the first one to predict."""

    piece: int
    name: str
    rows: np.ndarray  # (length,) or (length, fields)
    start: int
    first_label: int


def cut(num_rows: int, window: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Windows over a piece: first row, row after the last, and index in the window of the first row to predict."""
    predicted = 0  # the last row that a window has predicted; the first one needs no prediction
    while predicted < num_rows - 1:
        start = max(predicted - (window - 1 - stride), 0)
        yield start, min(start + window, num_rows), predicted + 1 - start
        predicted = start + window - 1


def batches(windows: list[Window], batch_size: int) -> Iterator[list[Window]]:
    """All windows, the longest first: those of a batch are about equally long, and memory fails early."""
    windows = sorted(windows, key=lambda each: -len(each.rows))
    for first in range(0, len(windows), batch_size):
        yield windows[first : first + batch_size]


def walks(windows: list[Window], batch_size: int) -> Iterator[list[Window]]:
    """All windows, those of a piece in their order: the first of some pieces, then the next of those that have one.

    Within a batch the pieces with most windows come first, so that those that go on are always the first rows.
    """
    pieces: dict[int, list[Window]] = {}
    for window in windows:
        pieces.setdefault(window.piece, []).append(window)
    ordered = sorted(pieces.values(), key=lambda each: -len(each))
    for first in range(0, len(ordered), batch_size):
        chosen = ordered[first : first + batch_size]
        for step in range(len(chosen[0])):
            yield [piece[step] for piece in chosen if step < len(piece)]


class Totals:
    """Bits per piece and kind, and right predictions per piece."""

    def __init__(self, num_pieces: int, kinds: list[str]) -> None:
        self._kinds = kinds
        self._nats = np.zeros((num_pieces, len(kinds)))
        self.right = np.zeros(num_pieces)

    def add(self, windows: list[Window], nats: torch.Tensor, kinds: torch.Tensor, right: torch.Tensor) -> None:
        """Add nats and their kinds, both (batch, length, fields), and right predictions, (batch, length)."""
        pieces = np.array([window.piece for window in windows])
        where = np.broadcast_to(pieces[:, None, None], nats.shape)
        np.add.at(self._nats, (where, kinds.cpu().numpy()), nats.double().cpu().numpy())
        np.add.at(self.right, pieces, right.double().sum(-1).cpu().numpy())

    def by_kind(self) -> dict[str, np.ndarray]:
        """Bits per piece of every kind that cost anything."""
        bits = self._nats / math.log(2)
        return {kind: bits[:, column] for column, kind in enumerate(self._kinds) if bits[:, column].any()}


class CausalScorer:
    """Models that predict the next token."""

    is_bound = False
    num_unguessed = 0  # predictions of a piece that are no guess

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model = model
        names = id_kinds(tokenizer)
        self.kinds = sorted(set(names))
        self._kind_of_id = torch.tensor([self.kinds.index(name) for name in names], device=model.device)

    def score(self, windows: list[Window]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Nats and kinds, shape (batch, length, 1), and right predictions, (batch, length), 0 where none is made."""
        ids, mask, labels = _pad(windows, self.model.device)
        nats, right = self._nats(windows, ids, mask, labels)
        return nats[..., None], self._kind_of_id[ids][..., None], right

    def _nats(
        self, windows: list[Window], ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return _scores(self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1], labels)


class MemoryScorer(CausalScorer):
    """Models that predict the next id and remember the windows before, given them in the order of `walks`."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__(model, tokenizer)
        self._memory = SegmentMemory(model.config)

    def _nats(
        self, windows: list[Window], ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if windows[0].start == 0:
            self._memory = SegmentMemory(self.model.config)
        self._memory.batch_select_indices(torch.arange(len(windows), device=ids.device))  # those that go on
        # The last id of a window is the first of the next.
        mask = self._memory.begin_segment(mask[:, :-1])
        logits = self.model(input_ids=ids[:, :-1], attention_mask=mask, past_key_values=self._memory).logits
        return _scores(logits, labels)


class MaskedScorer(CausalScorer):
    """Models that fill masked places. Differs from its parent in that the nats are the mean over random masks."""

    is_bound = True

    def __init__(self, model: Any, tokenizer: Any, num_orders: int, seed: int) -> None:
        super().__init__(model, tokenizer)
        self.num_orders, self.seed = num_orders, seed

    def _nats(
        self, windows: list[Window], ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        nats = torch.zeros(labels.shape, device=labels.device)
        right = torch.zeros_like(nats)
        for order in range(self.num_orders):
            hidden = self._hidden(windows, labels, order)
            shown = ids.masked_fill(hidden, self.model.config.mask_token_id)
            logits = self.model(input_ids=shown, attention_mask=mask).logits
            weights = label_weights(hidden, labels) / self.num_orders
            nats += label_nats(logits, labels) * weights
            right += (logits.argmax(-1) == labels) * weights
        return nats, right

    def _hidden(self, windows: list[Window], labels: torch.Tensor, order: int) -> torch.Tensor:
        """A mask per window, which depends on nothing but its name, as in `MaskingCollator`."""
        hidden = torch.zeros(labels.shape, dtype=torch.bool)
        for row, window in enumerate(windows):
            size = len(window.rows)  # without the padding, on which the draw must not depend
            targets = labels[row : row + 1, :size].cpu() != IGNORED
            hidden[row, :size] = draw_named_mask(targets, f"{self.seed}/{order}/{window.start}/{window.name}")[0]
        return hidden.to(labels.device)


class ContinuousScorer:
    """Models of continuous notes, which say themselves what each field of a row cost."""

    is_bound = False
    num_unguessed = 1  # the end has no pitch
    kinds = [*_FIELDS, END]

    def __init__(self, model: Any) -> None:
        self.model = model

    def score(self, windows: list[Window]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Nats and kinds, shape (batch, length - 1, 4), and right pitches, (batch, length - 1)."""
        rows, mask, labels = _pad(windows, self.model.device)
        outputs = self.model(input_values=rows, attention_mask=mask, labels=labels, use_cache=False)
        kinds = torch.arange(len(_FIELDS), device=rows.device).expand(outputs.nats.shape)
        targets = labels[:, 1:]
        is_end = targets[..., None] == self.model.config.eos_token_id
        return outputs.nats, torch.where(is_end, len(_FIELDS), kinds), outputs.logits.argmax(-1) == targets


class EventScorer:
    """Models of events as rows of tokens, which say themselves what each token cost."""

    is_bound = False
    num_unguessed = 0

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.pad = model, tokenizer.pad_token_id
        types = {block[0] for block in tokenizer.event_blocks}
        names = [EVENT if index in types else name for index, name in enumerate(id_kinds(tokenizer))]
        self.kinds = sorted(set(names))
        self._kind_of_id = torch.tensor([self.kinds.index(name) for name in names], device=model.device)

    def score(self, windows: list[Window]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Nats and kinds, shape (batch, length - 1, ids_per_row), and events all of whose tokens are the likeliest."""
        rows, mask, labels = _pad(windows, self.model.device)
        labels = torch.where(labels[..., None] == IGNORED, IGNORED, rows)
        outputs = self.model(input_ids=rows, attention_mask=mask, labels=labels, use_cache=False)
        targets = labels[:, 1:]
        is_known = outputs.right.bool() | (targets == IGNORED) | (targets == self.pad)
        return outputs.nats, self._kind_of_id[rows[:, 1:]], is_known.all(-1) & (targets[..., 0] != IGNORED)


class PartsScorer:
    """Encoder-decoders: what each part of a window costs, given the other one. Each note is written once, in its part.

    Attributes:
        num_predicted: tokens that were predicted of each piece; encoded whole it has others.
    """

    is_bound = False
    num_unguessed = 0
    _PARTS = ("accompaniment", "melody")  # in the order in which they are written

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        names = [
            [name if name == END else f"{name} of the {part}" for name in id_kinds(tokenizer)] for part in self._PARTS
        ]
        self.kinds = sorted({name for each in names for name in each})
        self._kind_of_id = torch.tensor(
            [[self.kinds.index(name) for name in each] for each in names], device=model.device
        )
        self.num_predicted: Counter[int] = Counter()

    def score(self, windows: list[Window]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Nats and kinds, shape (batch, length, 1), of both parts one after the other; right ones, (batch, length)."""
        nats, kinds, right = zip(*(self._part(windows, part) for part in range(len(self._PARTS))), strict=True)
        return torch.cat(nats, 1)[..., None], torch.cat(kinds, 1)[..., None], torch.cat(right, 1)

    def _part(self, windows: list[Window], part: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        tasks = [self.tokenizer.translations(window.rows, window.first_label)[part] for window in windows]
        batch = {
            name: each.to(self.model.device) for name, each in parts_batch(tasks, self.tokenizer.pad_token_id).items()
        }
        labels = batch.pop("labels")
        logits = self.model(**batch, use_cache=False).logits
        counted = labels != IGNORED
        for window, count in zip(windows, counted.sum(1).tolist(), strict=True):
            self.num_predicted[window.piece] += count
        return (
            label_nats(logits, labels),
            self._kind_of_id[part][labels.clamp(min=0)],
            (logits.argmax(-1) == labels).float(),
        )


# Made of a model, its encoder, and the number of random masks and their seed.
SCORERS: dict[str, Callable[[Any, Any, int, int], Any]] = {
    NEXT_TOKEN: lambda model, encoder, num_orders, seed: CausalScorer(model, encoder),
    ANY_ORDER: MaskedScorer,
    NEXT_EVENT: lambda model, encoder, num_orders, seed: EventScorer(model, encoder),
    NEXT_NOTE: lambda model, encoder, num_orders, seed: ContinuousScorer(model),
    PART_FROM_PART: lambda model, encoder, num_orders, seed: PartsScorer(model, encoder),
    NOTE_AMONG_GIVEN: lambda model, encoder, num_orders, seed: ContinuousScorer(model),
}


def _scores(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Nats and right predictions, shape (batch, length), of logits of all but the last id."""
    targets = labels[:, 1:]
    nats = torch.zeros(labels.shape, device=labels.device)
    right = torch.zeros_like(nats)
    nats[:, 1:], right[:, 1:] = label_nats(logits, targets), (logits.argmax(-1) == targets).float()
    return nats, right


def id_kinds(tokenizer: Any) -> list[str]:
    """The kind of every token, by its name: "Pitch_60" is a "Pitch", a pair of joined events is "several"."""
    names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    kinds = [SEVERAL if "+" in name[1:-1] else name.rpartition("_")[0] or EVENT for name in names]
    kinds[tokenizer.eos_token_id] = END
    return kinds


def _pad(windows: list[Window], device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows padded on the right, their mask, and labels: tokens (the second field of rows) from `first_label` on."""
    first = torch.from_numpy(windows[0].rows)
    rows = first.new_zeros(len(windows), max(len(window.rows) for window in windows), *first.shape[1:])
    mask = torch.zeros(rows.shape[:2], dtype=torch.long)
    labels = torch.full_like(mask, IGNORED)
    for index, window in enumerate(windows):
        size, values = len(window.rows), torch.from_numpy(window.rows)
        rows[index, :size], mask[index, :size] = values, 1
        ids = values if values.ndim == 1 else values[:, 1].long()
        labels[index, window.first_label : size] = ids[window.first_label :]
    return rows.to(device), mask.to(device), labels.to(device)
