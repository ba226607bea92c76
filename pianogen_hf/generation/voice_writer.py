"""Writing the voices of a chorale that are missing, by a causal model of grids.

A causal model writes step by step, and what is given of later steps it does not hear. So it is asked several times side
by side (particles): whenever a given cell comes, each attempt is weighted with the probability that the model gave to
that very cell, and attempts that made it unlikely are replaced by copies of others. That is a particle filter, or
sequential Monte Carlo: Doucet, de Freitas and Gordon 2001, "Sequential Monte Carlo Methods in Practice"; for language
models under conditions Lew et al. 2023, arXiv 2306.03081. With ever more attempts it draws from the model's own
distribution of the missing voices, given all that is given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from pianogen_hf.generation.drawing import draw
from pianogen_hf.generation.new_notes import GenerationError
from pianogen_hf.tokenizers.tokenization_jsb import REST, VOICES, JSBTokenizer

FREE = -2  # in grids: a cell that is to be written
_CELLS_PER_LOOK = 64  # between two reports of progress


class VoiceWriter:
    """Writes what is missing of a grid of four voices.

    Args:
        model: a causal model over the tokenizer's tokens.
        tokenizer: its tokenizer.
        num_particles: how many attempts are made side by side.
        temperature: divides the logits of cells that are written; 0 for the likeliest.
        top_p: these are drawn among the likeliest that together have this probability.

    Raises:
        GenerationError: if one of the last two is out of range.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: JSBTokenizer,
        num_particles: int = 8,
        temperature: float = 1.0,
        top_p: float = 1.0,
    ) -> None:
        if not 0 <= temperature < float("inf") or not 0 < top_p <= 1:
            raise GenerationError("temperature must be at least 0, and top_p above 0 and at most 1")
        self.model, self.tokenizer, self.num_particles = model, tokenizer, num_particles
        self.temperature, self.top_p = temperature, top_p
        self._pitch = np.full(len(tokenizer), -1)  # of each token; -1 where it has none
        for name, index in tokenizer.get_vocab().items():
            if name.startswith("P") and name[1:].isdigit():
                self._pitch[index] = int(name[1:])
        room = int(model.config.max_position_embeddings) - 1
        self._unit = tokenizer.cut_unit(room // 2)
        self._num_kept = max(room // self._unit - 1, 1) * self._unit  # cells of a window that is read from scratch
        self._room = room

    @torch.inference_mode()
    def write(
        self,
        grid: np.ndarray,
        generator: torch.Generator,
        on_progress: Callable[[float], None] | None = None,
        costs: np.ndarray | None = None,
    ) -> np.ndarray:
        """The grid with all its cells.

        Args:
            grid: int64, shape (num_steps, 4): pitches, -1 for rests, `FREE` where nothing is given.
            generator: where chance comes from.
            on_progress: called with the share that is done.
            costs: nats by which pitches of each step become less likely, shape (num_steps, 128).
        """
        cells = grid.ravel()
        ids = np.full((self.num_particles, len(cells) + 1), self.tokenizer.bos_token_id, dtype=np.int64)
        weights = np.zeros(self.num_particles)  # logarithms
        cache: Any = None
        begin = length = 0  # of the window that the cache holds: its first id, and how many
        for cell, given in enumerate(cells.tolist()):
            if cache is None or length == self._room:
                begin = max((cell - self._num_kept + self._unit - 1) // self._unit, 0) * self._unit
                cache, length = None, 0
            fed = ids[:, begin + length : cell + 1]
            scores, cache = self._scores(fed, cache)
            length += fed.shape[1]
            allowed = self._allowed(grid, ids, cell)
            if given == FREE:
                scores = np.where(allowed, scores, np.float32(-np.inf))
                if costs is not None:
                    scores -= np.where(self._pitch >= 0, costs[cell // len(VOICES)][self._pitch], 0)
                ids[:, cell + 1] = self._drawn(scores, generator)
                continue
            ids[:, cell + 1] = chosen = self._id_of(given)
            weights += scores[:, chosen]
            weights -= weights.max()
            share = np.exp(weights) / np.exp(weights).sum()
            if 1 / (share**2).sum() < self.num_particles / 2:
                alive = _resampled(share, generator)
                ids, weights = ids[alive], np.zeros(self.num_particles)
                cache.reorder_cache(torch.from_numpy(alive).to(self.model.device))
            if on_progress is not None and cell % _CELLS_PER_LOOK == 0:
                on_progress(cell / len(cells))
        best = int(draw(weights[None].astype(np.float32), generator=generator)[0])
        return self.tokenizer.ids_to_grid(ids[best, 1:])

    def _scores(self, ids: np.ndarray, cache: Any) -> tuple[np.ndarray, Any]:
        """Log-probabilities of the next cell, float32, shape (num_particles, num_ids), specials left out."""
        fed = torch.from_numpy(ids).to(self.model.device)
        output = self.model(input_ids=fed, past_key_values=cache, use_cache=True)
        logits = output.logits[:, -1, : len(self._pitch)].float()
        logits[:, : self.tokenizer.num_special] = -torch.inf
        return logits.log_softmax(-1).cpu().numpy(), output.past_key_values

    def _id_of(self, pitch: int) -> int:
        if pitch == REST:
            return self.tokenizer.rest_id
        return int(np.flatnonzero(self._pitch == pitch)[0])

    def _allowed(self, grid: np.ndarray, ids: np.ndarray, cell: int) -> np.ndarray:
        """Ids that a free cell may have, bool, shape (num_particles, num_ids).

        No voice crosses another of its step, and none is silent while a given one sounds.
        """
        step, voice = divmod(cell, len(VOICES))
        row = grid[step]
        allowed = np.tile(self._pitch >= 0, (len(ids), 1))
        if not (row >= 0).any():
            allowed[:, self.tokenizer.rest_id] = True
        above = self._pitch[ids[:, cell - voice + 1 : cell + 1]]  # of voices that are written, or -1
        highest = np.where(above >= 0, above, 128).min(axis=1, initial=128)
        lowest = max((int(pitch) for pitch in row[voice + 1 :] if pitch >= 0), default=0)
        in_order = (self._pitch <= highest[:, None]) & (self._pitch >= lowest)
        in_order[:, self.tokenizer.rest_id] = True
        both = allowed & in_order
        return np.where(both.any(axis=1, keepdims=True), both, allowed)

    def _drawn(self, scores: np.ndarray, generator: torch.Generator) -> np.ndarray:
        if self.temperature == 0:
            return scores.argmax(-1)
        return draw(scores, self.temperature, top_p=self.top_p, generator=generator)


def _resampled(share: np.ndarray, generator: torch.Generator) -> np.ndarray:
    """Indices of particles that live on, as often as their share says (systematic resampling), shape as `share`."""
    points = (np.arange(len(share)) + torch.rand(1, generator=generator).item()) / len(share)
    return np.minimum(np.searchsorted(share.cumsum(), points), len(share) - 1)
