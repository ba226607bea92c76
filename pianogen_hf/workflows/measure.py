"""What `pianogen evaluate` measures: likelihood, statistics, copy audit and round trip, each kept when it is done."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from pianogen_hf.data.caching import fingerprint_of
from pianogen_hf.data.chunks import chunk_overlap, chunk_size
from pianogen_hf.errors import FileError
from pianogen_hf.evaluation.copy_report import copy_report
from pianogen_hf.evaluation.distributions import compare_sets
from pianogen_hf.evaluation.likelihood import Likelihood, piece_likelihood
from pianogen_hf.evaluation.music_metrics import METRICS, piece_metrics
from pianogen_hf.evaluation.quantisation import on_common_grid, shares
from pianogen_hf.evaluation.round_trip import RoundTrip, residuals, round_trip
from pianogen_hf.generation.continuation import Length, continue_notes
from pianogen_hf.records import read_json, write_json
from pianogen_hf.tokenizers.midi import read_midi, write_midi
from pianogen_hf.tokenizers.notes import Notes
from pianogen_hf.workflows.heldout import HeldOut, contents_hash_key

TOP_P = 0.95


@dataclass(frozen=True)
class Settings:
    """How a model is measured.

    Attributes:
        window: tokens in a window.
        batch_size: windows at a time.
        precision: of the model's forward pass, "float32" or "bfloat16".
        orders: random masks per window of a masked model.
        num_samples: pieces to generate.
        notes: notes in each, and in the real pieces beside them.
        seed: of the generated pieces and of masks.
    """

    window: int
    batch_size: int = 16
    precision: str = "float32"
    orders: int = 8
    num_samples: int = 24
    notes: int = 220
    seed: int = 0


class Evaluation:
    """The measures of one model on one set of pieces.

    What was measured lies in a folder, under a name that the model, the pieces and the settings make: the same again
    is read from there, so that a second or interrupted run resumes.

    Args:
        model: as `load_model` gives it.
        encoder: its tokenizer or feature extractor.
        model_hash: tells the weights from others.
        heldout: the pieces.
        folder: where results and generated pieces lie.
        settings: see [`Settings`].
    """

    def __init__(
        self, model: Any, encoder: Any, model_hash: str, heldout: HeldOut, folder: Path, settings: Settings
    ) -> None:
        self.model, self.encoder, self.heldout, self.folder = model, encoder, heldout, folder
        self.settings = settings
        self._model_key = [model_hash, type(encoder).__name__]
        self.seconds: dict[str, float] = {}

    # Likelihood ------------------------------------------------------------------------------------------------------

    def likelihood(self) -> dict[str, Any]:
        """Bits of the pieces, with windows that slide by half and with windows that do not overlap.

        A model with a memory has it in the place of the overlap.
        """
        size = chunk_size(self.encoder, self.settings.window)
        remembers = getattr(self.model.config, "memory_length", None) is not None
        step = size if remembers else size - chunk_overlap(self.encoder, self.settings.window)
        strides = {"sliding": step, "separate": size}
        settings = [getattr(self.settings, name) for name in ("precision", "orders", "seed")]

        def measure() -> dict[str, Any]:
            with_memory = {"sliding": remembers, "separate": False}
            found = {name: self._bits(size + 1, stride, name, with_memory[name]) for name, stride in strides.items()}
            main = found["sliding"]
            report = {name: each.report() for name, each in found.items()}
            by_kind = report["sliding"]["bits_per_note_by_kind"]
            return {
                **report,
                "clean": self._clean(main),
                "common_grid": on_common_grid(self.model, self.encoder, main.bits_per_note, self._residuals()),
                "shares": shares(by_kind, is_bound=main.num_orders is not None),
                "cells": getattr(self.encoder, "tokens_per_step", 1) > 1,
                "precision": self.settings.precision,
                "per_piece": {name: each.per_piece() for name, each in found.items()},
            }

        return self._kept("likelihood", [size, strides, *settings], measure)

    def _bits(self, window: int, stride: int, name: str, with_memory: bool) -> Likelihood:
        with tqdm(desc=f"Likelihood, {name} windows", unit="window") as bar:

            def on_progress(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            return piece_likelihood(
                self.model,
                self.encoder,
                self.heldout.pieces.items(),
                window,
                stride,
                batch_size=self.settings.batch_size,
                precision=self.settings.precision,
                num_orders=self.settings.orders,
                seed=self.settings.seed,
                with_memory=with_memory,
                on_progress=on_progress,
            )

    def _clean(self, found: Likelihood) -> dict[str, Any] | None:
        """The figures without pieces that share music with train; None where it is unknown which do."""
        related = self.heldout.related
        if related is None:
            return None
        rows = [row for row, name in enumerate(found.names) if name not in related]
        report = found.select(rows).report() if rows else {"pieces": 0}
        return {**report, "left_out": sorted(related)}

    # Generated music -------------------------------------------------------------------------------------------------

    def generated(self) -> list[Notes]:
        """The samples, from nothing: each is made once, and lies as a MIDI file beside the figures."""
        key = [*self._model_key, self.settings.notes, TOP_P]
        folder = self.folder / "generated" / fingerprint_of(key)[:16]
        seeds = range(self.settings.seed, self.settings.seed + self.settings.num_samples)
        pieces = []
        for seed in tqdm(seeds, desc="Generating", unit="piece"):
            path = folder / f"seed-{seed:05d}.mid"
            if not path.exists():
                length = Length(notes=self.settings.notes)
                made = continue_notes(self.model, self.encoder, length, seed=seed, do_sample=True, top_p=TOP_P)
                write_midi(made[0].new, path)
            pieces.append(read_midi(path, programs=None))
        return pieces

    def _sample_settings(self) -> dict[str, int]:
        return {name: getattr(self.settings, name) for name in ("num_samples", "notes", "seed")}

    def statistics(self) -> dict[str, Any]:
        """Music statistics of generated pieces against held-out ones, and of real pieces against the same."""

        def measure() -> dict[str, Any]:
            heldout = [self._metrics(notes) for notes in tqdm(self.heldout.pieces.values(), desc="Statistics")]
            made = [piece_metrics(self._beginning(notes)) for notes in self.generated()]
            train = self.heldout.train_notes(self.settings.num_samples, self.settings.seed)
            if train:
                real, against, floor = [self._metrics(each) for each in train.values()], heldout, "train pieces"
            else:
                order = np.random.default_rng(self.settings.seed).permutation(len(heldout))
                halves = [[heldout[row] for row in half] for half in np.array_split(order, 2)]
                real, against, floor = halves[0], halves[1], "one half of the held-out pieces, against the other"
            settings = {
                **self._sample_settings(),
                "top_p": TOP_P,
                "heldout_pieces": len(heldout),
                "floor": floor,
                "floor_pieces": len(real),
            }
            return {
                "settings": settings,
                "titles": [list(each) for each in METRICS.items()],
                "generated": compare_sets(made, heldout),
                "floor": compare_sets(real, against),
                "per_piece": {"generated": made, "heldout": heldout},
            }

        return self._kept("statistics", [*self._sample_settings().values(), TOP_P], measure)

    def _metrics(self, notes: Notes) -> dict[str, float]:
        """Of a real piece, as the encoding keeps it: what it loses is no fault of what the model writes."""
        kept = self.encoder.decode_notes(self.encoder.encode_piece(notes))
        return piece_metrics(self._beginning(kept))

    def _beginning(self, notes: Notes) -> Notes:
        """As many notes as generated pieces have, which are beginnings, too."""
        return notes.where(np.arange(len(notes)) < self.settings.notes)

    def audit(self) -> dict[str, Any] | None:
        """The copy audit of `pianogen audit`, of the same generated pieces; None without train pieces."""
        if not len(self.heldout.train):
            return None

        def measure() -> dict[str, Any]:
            report = copy_report(
                self.encoder, self.heldout.train_notes(), self.heldout.pieces.values(), self.generated()
            )
            return {**report, "settings": self._sample_settings()}

        return self._kept("audit", [*self._sample_settings().values(), TOP_P], measure)

    # The encoding ----------------------------------------------------------------------------------------------------

    def roundtrip(self) -> dict[str, Any]:
        """What the encoding loses of the held-out pieces."""

        def measure() -> dict[str, Any]:
            pieces = tqdm(self.heldout.pieces.values(), desc="Round trips", unit="piece")
            total = sum((round_trip(self.encoder, notes) for notes in pieces), RoundTrip())
            return {**total.report(), "lost_by_design": list(getattr(self.encoder, "lost_fields", ()))}

        return self._kept("roundtrip", [], measure)

    def _residuals(self) -> dict[str, Counter[int | None]]:
        """How far off the notes of the held-out pieces come back."""
        total: dict[str, Counter[int | None]] = {}
        for notes in tqdm(self.heldout.pieces.values(), desc="Rounding", unit="piece"):
            for field, counts in residuals(self.encoder, notes).items():
                total.setdefault(field, Counter()).update(counts)
        return total

    # Keeping ---------------------------------------------------------------------------------------------------------

    def _kept(self, section: str, settings: list[Any], measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """A result that was measured before, or is now."""
        path = self.folder / f"{section}.json"
        key = fingerprint_of([_VERSION, *self._model_key, *contents_hash_key(self.heldout), settings])
        if path.exists():
            try:
                kept = read_json(path)
            except FileError:
                kept = {}
            if kept.get("key") == key:
                self.seconds[section] = kept["seconds"]
                return kept["result"]
        began = time.monotonic()
        result = json.loads(json.dumps(_without_nan(measure()), sort_keys=True))  # as the next run will read it
        self.seconds[section] = round(time.monotonic() - began, 1)
        write_json(path, {"key": key, "seconds": self.seconds[section], "result": result})
        return result


def _without_nan(value: Any) -> Any:
    """The same with None for what is no number, which JSON does not know."""
    if isinstance(value, dict):
        return {name: _without_nan(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


_VERSION = 4  # raised when what is measured changes


def weights_hash(folder: Path) -> str:
    """Tells the weights and the configuration of a model from those of any other."""
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*config.json")]):
        if not path.name.startswith("provenance"):
            digest.update(path.name.encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
