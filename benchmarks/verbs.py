"""What the verbs are worth: `python benchmarks/verbs.py TASK [--model MODEL] [--midi FOLDER]`.

TASK is one of
    gaps       gaps of 4 to 8 seconds filled by V8, by a masked model (--masked), and continued without sight of the
               future, beside the true notes
    parts      left hands written below the true right hands, beside the true left hands
    search     greedy, beams and sampling: likelihood under the model itself, repetition, faults
    chorales   voices below the sopranos of the built-in test chorales, with one attempt and with several
    figures    a roll of each verb, for docs/verbs.md (--output docs)
FOLDER holds MIDI files that the model was not trained on. Figures are printed as JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import pianogen_hf as pg
from pianogen_hf.data.sources.bach import list_bach, read_bach
from pianogen_hf.evaluation.distributions import overlap
from pianogen_hf.evaluation.gaps import draw_gaps, gap_bits
from pianogen_hf.evaluation.samples import sample_faults
from pianogen_hf.generation.chords import FOUND, Chord
from pianogen_hf.generation.new_notes import Continuation
from pianogen_hf.generation.rejection import alone
from pianogen_hf.generation.rules import scale_of
from pianogen_hf.models.key_finding import key_of
from pianogen_hf.models.note_controls import key_class
from pianogen_hf.rendering.piano_roll import save_piano_roll
from pianogen_hf.tokenizers.notes import Notes
from pianogen_hf.tokenizers.tokenization_jsb import JSBTokenizer
from pianogen_hf.workflows.loading import load_model

_GAP_SEC, _AROUND_SEC = (4.0, 8.0), 15.0
_SEAM_SEC = 1.0  # of silence at a border that the piece has not
_CROWD, _CROWD_SEC = 12, 0.25  # notes that begin within so many seconds of a border
_SAMPLING = {"top_p": 0.95}
_MIDDLE_C = 60


# Gaps ----------------------------------------------------------------------------------------------------------------


def gaps(args: argparse.Namespace) -> dict[str, Any]:
    """By who wrote them: what gaps are like beside the true ones and beside their surroundings."""
    model, encoder = load_model(args.model)
    pieces, random = _pieces(args), np.random.default_rng(0)
    places = [(notes, *_gap(notes, random)) for notes in pieces for _ in range(args.number)]
    writers: dict[str, Callable[[Notes, float, float], Notes]] = {
        "true": lambda piece, start, end: _within(piece, start, end),
        "V8": lambda piece, start, end: pg.fill_notes(model, encoder, piece, start, end, seed=0, **_SAMPLING)[0].new,
        "V8, past alone": lambda piece, start, end: _blind(model, encoder, piece, start, end),
    }
    if args.masked is not None:
        masked, tokenizer = load_model(args.masked)
        writers["masked"] = lambda piece, start, end: pg.fill_notes(masked, tokenizer, piece, start, end, seed=0)[0].new
    written = {name: [write(*place) for place in places] for name, write in writers.items()}
    results = {name: _gap_figures(places, news, written["true"]) for name, news in written.items()}
    return {"gaps": len(places), "by": results, "bits": gap_bits(model, draw_gaps(model, encoder, pieces, args.number))}


def _gap(notes: Notes, random: np.random.Generator) -> tuple[float, float]:
    length = float(random.uniform(*_GAP_SEC))
    start = float(random.uniform(0.2, 0.8)) * notes.end_sec
    return start, start + length


def _blind(model: Any, encoder: Any, piece: Notes, start: float, end: float) -> Notes:
    """The same seconds, continued from what stands before them."""
    return pg.continue_notes(model, encoder, prompt=piece, start_sec=start, seconds=end - start, seed=0, **_SAMPLING)[
        0
    ].new


def _gap_figures(places: list[Any], news: list[Notes], trues: list[Notes]) -> dict[str, float]:
    figures: dict[str, list[float]] = {"in_key": [], "seams": [], "crowds": []}
    for (piece, start, end), new in zip(places, news, strict=True):
        around = piece.where(
            (np.abs(piece.onset_sec - (start + end) / 2) < _AROUND_SEC + (end - start) / 2)
            & ((piece.onset_sec < start) | (piece.onset_sec >= end))
        )
        figures["in_key"].append(_in_key(new, around))
        figures["seams"].append(float(_silence_at_borders(piece, new, start, end) > _SEAM_SEC))
        figures["crowds"].append(float(_most_at_borders(piece, new, start, end) > _CROWD))
    means = {name: round(float(np.mean(values)), 3) for name, values in figures.items()}
    pairs = zip(map(_features, news), map(_features, trues), strict=True)
    ours, true = (np.array(each) for each in zip(*pairs, strict=True))
    alike = [overlap(ours[:, column], true[:, column])["overlap"] for column in range(ours.shape[1])]
    return {**means, "overlap_with_true": round(float(np.mean(alike)), 3)}


def _features(new: Notes) -> list[float]:
    """Notes, mean pitch, mean velocity, mean logarithm of lengths, and of waits."""
    if len(new) < 2:
        return [len(new), 60.0, 64.0, 0.0, 0.0]
    waits = np.diff(np.unique(new.onset_sec))
    lengths = np.log2(np.maximum(new.duration_sec, 0.01))
    wait = float(np.log2(np.maximum(waits, 0.01)).mean()) if len(waits) else 0.0
    return [len(new), float(new["pitch"].mean()), float(new["velocity"].mean()), float(lengths.mean()), wait]


def _in_key(new: Notes, around: Notes) -> float:
    if not len(new) or not len(around):
        return math.nan
    tonic, is_minor = key_of(around["pitch"], around.duration_sec)
    return float(scale_of(key_class(tonic, is_minor))[new["pitch"]].mean())


def _silence_at_borders(piece: Notes, new: Notes, start: float, end: float) -> float:
    """The longest silence that a border stands in or at, in seconds."""
    kept = piece.where((piece.onset_sec < start) | (piece.onset_sec >= end))
    onset = np.concatenate([kept.onset_sec, new.onset_sec])
    offset = np.concatenate([kept.with_sustain().offset_sec, new.offset_sec])
    longest = 0.0
    for border in (start, end):
        before, after = offset[onset < border], onset[onset >= border]
        if len(before) and len(after):
            longest = max(longest, float(after.min() - before.max()))
    return longest


def _most_at_borders(piece: Notes, new: Notes, start: float, end: float) -> int:
    kept = piece.where((piece.onset_sec < start) | (piece.onset_sec >= end))
    onset = np.concatenate([kept.onset_sec, new.onset_sec])
    return max(int((np.abs(onset - border) < _CROWD_SEC / 2).sum()) for border in (start, end))


# Parts ---------------------------------------------------------------------------------------------------------------


def parts(args: argparse.Namespace) -> dict[str, Any]:
    """Left hands beside the true ones: their key, how many notes, how alike."""
    model, encoder = load_model(args.model)
    pairs = []
    for notes in _pieces(args):
        piece = _within(notes, 0.0, 40.0)
        right, left = piece.where(piece["pitch"] >= _MIDDLE_C), piece.where(piece["pitch"] < _MIDDLE_C)
        if len(right) > 16 and len(left) > 16:
            pairs.append((right, left, pg.accompany_notes(model, encoder, right, "below", seed=0, **_SAMPLING)[0].new))
    ours, true = (np.array([_features(pair[place]) for pair in pairs]) for place in (2, 1))
    alike = [overlap(ours[:, column], true[:, column])["overlap"] for column in range(ours.shape[1])]
    return {
        "parts": len(pairs),
        "in_key": {
            "V8": _mean(_in_key(new, right) for right, _, new in pairs),
            "true": _mean(_in_key(left, right) for right, left, _ in pairs),
        },
        "notes_of_true": _mean(len(new) / len(left) for _, left, new in pairs),
        "overlap_with_true": round(float(np.mean(alike)), 3),
    }


# Search --------------------------------------------------------------------------------------------------------------

_SEARCHES: dict[str, dict[str, Any]] = {
    "sampling": {},
    "top_p 0.95": {"top_p": 0.95},
    "min_p 0.05": {"min_p": 0.05},
    "typical_p 0.9": {"typical_p": 0.9},
    "top_k_notes 8": {"top_k_notes": 8},
    "top_k_offset 2": {"top_k_offset": 2, "top_p": 0.95},
    "creativity 0.3": {"creativity": 0.3, "top_p": 0.95},
    "greedy": {"temperature": 0},
    "beams 4": {"num_beams": 4},
}


def search(args: argparse.Namespace) -> dict[str, Any]:
    """By search: bits per note under the model itself, share of new fours of pitches, share of pieces with faults."""
    model, encoder = load_model(args.model)
    prompts = [_within(notes, 0.0, 15.0) for notes in _pieces(args)][: args.number]
    results = {}
    for name, options in _SEARCHES.items():
        made = [pg.continue_notes(model, encoder, prompt=each, notes=60, seed=0, **options)[0] for each in prompts]
        results[name] = {
            "bits_per_note": _mean(_bits_per_new_note(model, encoder, each) for each in made),
            "new_fours": _mean(_new_fours(each.new) for each in made),
            "faulty": _mean(float(bool(sample_faults(alone(each)))) for each in made),
            "rests": _mean(float((np.diff(each.new.onset_sec) > 0.03).mean()) for each in made),
        }
    return {"prompts": len(prompts), "by": results}


@torch.inference_mode()
def _bits_per_new_note(model: Any, encoder: Any, result: Continuation) -> float:
    rows = torch.from_numpy(encoder.encode_prompt(result.notes))[-int(model.config.max_position_embeddings) :]
    number = min(len(result.new), len(rows) - 1)
    nats = model(input_values=rows[None], labels=rows[None, :, 1].long(), use_cache=False).nats[0, -number:]
    return float(nats.double().sum()) / math.log(2) / number


def _new_fours(new: Notes) -> float:
    """Of all fours of pitches in a row, the share that are different: 1 where nothing is said twice."""
    pitch = new["pitch"].tolist()
    fours = list(zip(pitch, pitch[1:], pitch[2:], pitch[3:], strict=False))
    return len(set(fours)) / max(len(fours), 1)


# Chorales ------------------------------------------------------------------------------------------------------------


def chorales(args: argparse.Namespace) -> dict[str, Any]:
    """Of the steps on a beat, the share whose pitches are a chord, by number of attempts, beside Bach's own."""
    model, tokenizer = load_model(args.chorale_model)
    assert isinstance(tokenizer, JSBTokenizer)
    pieces = [read_bach(piece.path) for piece in list_bach(sides=["test"])[: args.number]]
    shares: dict[str, list[float]] = {"Bach": [_share_of_chords(tokenizer, piece) for piece in pieces]}
    for particles in (1, 8):
        made = []
        for piece in pieces:
            soprano = piece.where(piece["track"] == 0)
            made.append(pg.harmonise_notes(model, tokenizer, soprano, seed=0, num_particles=particles)[0].notes)
        shares[f"{particles} attempts"] = [_share_of_chords(tokenizer, each) for each in made]
    return {"chorales": len(pieces), "chords": {name: _mean(values) for name, values in shares.items()}}


def _share_of_chords(tokenizer: JSBTokenizer, notes: Notes) -> float:
    chords = [set(np.flatnonzero(Chord(root, quality).pitch_classes)) for root in range(12) for quality in FOUND]
    grid = tokenizer.notes_to_grid(notes)[::4]
    steps = [{int(pitch) % 12 for pitch in row if pitch >= 0} for row in grid]
    return float(np.mean([any(step <= chord for chord in chords) for step in steps if len(step) > 1]))


# Figures -------------------------------------------------------------------------------------------------------------


def figures(args: argparse.Namespace) -> dict[str, Any]:
    """A roll of each verb, on a prelude of Bach's and on a chorale's soprano."""
    model, encoder = load_model(args.model)
    folder = Path(args.output)
    prelude = pg.read_midi("docs/prelude.mid")
    soprano = _soprano()
    right = prelude.where(prelude["pitch"] >= _MIDDLE_C + 4)
    chords = "Cm7 | Fm7 | G7 | Cm"
    options: dict[str, Any] = {"seed": 7, **_SAMPLING}
    made: dict[str, tuple[Continuation, bool]] = {
        "continue": (pg.continue_notes(model, encoder, prompt=prelude, bars=4, **options)[0], False),
        "chords": (pg.continue_notes(model, encoder, prompt=prelude, bars=4, chords=chords, **options)[0], False),
        "end": (pg.end_notes(model, encoder, prelude, bars=3, **options)[0], False),
        "fill": (pg.fill_notes(model, encoder, prelude, bars=(3, 4), **options)[0], True),
        "vary": (pg.vary_notes(model, encoder, prelude, bars=(3, 6), strength=0.5, **{**options, "seed": 1})[0], True),
        "accompany": (pg.accompany_notes(model, encoder, right, "below", **options)[0], True),
        "harmonise": (pg.harmonise_notes(*load_model(args.chorale_model), soprano, seed=7)[0], True),
        "harmonise_v8": (pg.harmonise_notes(model, encoder, soprano, **options)[0], True),
    }
    for name, (result, is_marked) in made.items():
        drawn = result.marked if is_marked else result.notes
        save_piano_roll(drawn, folder / f"verbs_{name}.png", name, None if is_marked else result.prompt_end_sec)
    return {name: {"new_notes": len(result.new)} for name, (result, _) in made.items()}


def _soprano() -> Notes:
    """The first four bars of the soprano of a chorale of the test side."""
    piece = read_bach(list_bach(sides=["test"])[3].path)
    soprano = piece.where((piece["track"] == 0) & (piece["onset_tick"] < 16 * piece.ticks_per_quarter))
    return replace(soprano, track_names=("Soprano",))


# -------------------------------------------------------------------------------------------------------------------


def _within(notes: Notes, start: float, end: float) -> Notes:
    return notes.where((notes.onset_sec >= start) & (notes.onset_sec < end))


def _mean(values: Any) -> float:
    return round(float(np.nanmean(list(values))), 3)


def _pieces(args: argparse.Namespace) -> list[Notes]:
    if args.midi is None:
        sys.exit("this takes music: --midi FOLDER, of pieces that the model was not trained on")
    paths = sorted(path for path in Path(args.midi).rglob("*") if path.suffix.lower() in (".mid", ".midi"))
    pieces = [pg.read_midi(path) for path in paths[: args.pieces]]
    return [notes for notes in pieces if notes.end_sec > 40]


_TASKS = {"gaps": gaps, "parts": parts, "search": search, "chorales": chorales, "figures": figures}


def main() -> None:
    """Print the figures of a task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=_TASKS)
    parser.add_argument("--model", default=pg.PIANO_MODEL, help="a note transformer (V8)")
    parser.add_argument("--chorale_model", default=pg.BACH_MODEL, help="over the ids of a JSBTokenizer")
    parser.add_argument("--masked", help="a masked model, to fill gaps, too")
    parser.add_argument("--midi", metavar="FOLDER", help="held-out pieces")
    parser.add_argument("--pieces", type=int, default=20, help="how many of them (default: 20)")
    parser.add_argument("--number", type=int, default=4, help="gaps a piece, prompts, or chorales (default: 4)")
    parser.add_argument("--output", default="docs", help="where figures go (default: docs)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(_TASKS[args.task](args), indent=1))


if __name__ == "__main__":
    main()
