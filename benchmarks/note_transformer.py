"""What a note transformer (V8) can do beyond continuing: `python benchmarks/note_transformer.py TASK MODEL FOLDER`.

TASK is one of
    gaps       what real gaps of 4 to 8 seconds cost in sight of both sides, and given the past alone
    controls   whether asking for density, loudness, register, a key, or an end gets it
FOLDER holds MIDI files that the model was not trained on; they are prompts, and gaps are cut out of them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

import pianogen_hf as pg
from pianogen_hf.evaluation.gaps import draw_gaps, gap_bits
from pianogen_hf.generation.note_verbs import key_named
from pianogen_hf.models.key_finding import key_of
from pianogen_hf.models.note_controls import key_class
from pianogen_hf.workflows.loading import load_model

_SECONDS = 20.0
_DENSITIES, _LOUDNESSES, _REGISTERS = (2, 4, 6, 9, 13), (35, 50, 65, 80, 95), (50, 57, 64, 71)
_KEYS = ("C major", "C minor", "Eb major", "F# minor", "A major", "G minor", "B minor", "Ab major")
_LENGTHS = (15.0, 25.0, 40.0)


def gaps(model: Any, encoder: Any, pieces: list[pg.Notes], args: argparse.Namespace) -> dict[str, Any]:
    """Bits per note of gaps."""
    return gap_bits(model, draw_gaps(model, encoder, pieces, args.number))


def controls(model: Any, encoder: Any, pieces: list[pg.Notes], args: argparse.Namespace) -> dict[str, Any]:
    """Rank correlations of asked and got, share of right keys, share of ends within 10 % of the wished length."""
    results: dict[str, Any] = {}
    for name, values, measure in (
        ("density", _DENSITIES, _density),
        ("loudness", _LOUDNESSES, lambda new: float(new["velocity"].mean())),
        ("register", _REGISTERS, lambda new: float(new["pitch"].mean())),
    ):
        pairs = [(value, measure(new)) for value, new in _written(model, encoder, pieces, args, name, values)]
        got = {value: round(float(np.mean([each for asked, each in pairs if asked == value])), 2) for value in values}
        results[name] = {"rank_correlation": _rank_correlation(pairs), "mean_got": got, "pieces": len(pairs)}
    right = [_key(new) == key_named(value) for value, new in _written(model, encoder, pieces, args, "key", _KEYS)]
    results["key"] = {"right": float(np.mean(right)), "pieces": len(right)}
    lengths = [
        pg.continue_notes(model, encoder, seconds=length, seed=seed, end=True, top_p=0.95)[0].new.end_sec / length
        for length in _LENGTHS
        for seed in range(args.number)
    ]
    near = np.abs(np.array(lengths) - 1) <= 0.1
    results["end"] = {"within_10_percent": float(near.mean()), "pieces": len(lengths)}
    return results


def _written(model: Any, encoder: Any, pieces: list[pg.Notes], args: argparse.Namespace, name: str, values: Any) -> Any:
    """New notes for each value, from nothing and after prompts in turn."""
    for seed in range(args.number):
        for value in values:
            prompt = None if seed % 2 else _beginning(pieces[seed % len(pieces)])
            options = {"seed": seed, "top_p": 0.95, name: value}
            yield value, pg.continue_notes(model, encoder, seconds=_SECONDS, prompt=prompt, **options)[0].new


def _beginning(piece: pg.Notes, seconds: float = 10.0) -> pg.Notes:
    return piece.where(piece.onset_sec < seconds)


def _density(new: pg.Notes) -> float:
    return len(new) / _SECONDS


def _key(new: pg.Notes) -> int:
    return key_class(*key_of(new["pitch"], new["duration_tick"]))


def _rank_correlation(pairs: list[tuple[float, float]]) -> float:
    """Spearman's."""
    asked, got = zip(*pairs, strict=True)
    return float(spearmanr(asked, got).statistic)


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("gaps", "controls"))
    parser.add_argument("model")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--number", type=int, default=8, help="gaps per piece, or pieces per value (default: 8)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, encoder = load_model(args.model)
    pieces = [pg.read_midi(path) for path in sorted(args.folder.rglob("*.mid*"))]
    print(json.dumps({"gaps": gaps, "controls": controls}[args.task](model, encoder, pieces, args), indent=1))


if __name__ == "__main__":
    main()
