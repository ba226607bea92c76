"""Tables of a comparison: what was measured of several models on the same held-out pieces, side by side.

What was not measured is a dash.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pianogen_hf.evaluation.likelihood import LikelihoodError, paired_bootstrap
from pianogen_hf.evaluation.music_metrics import METRICS
from pianogen_hf.evaluation.tables import NONE, Table, number

Models = Sequence[Mapping[str, Any]]


def comparison_tables(models: Models, seed: int = 0) -> list[Table]:
    """All tables, in the order of a report.

    Args:
        models: of each its `name`, `job` (sizes, batch, encoder ...), `training` and `evaluation` as they were written
            down, None where they failed, and `failed`, the reason or None.
        seed: of the bootstrap.
    """
    measured = ranked(models)
    trained = [model for model in models if model["training"]]
    tables = [
        likelihood_table(measured, seed),
        pairs_table(measured, seed),
        size_table(models),
        training_table(trained),
    ]
    tables += [round_trip_table(measured), samples_table(measured), audit_table(measured), statistics_table(measured)]
    return [table for table in tables if table["rows"]]


def ranked(models: Models) -> list[Mapping[str, Any]]:
    """Those that were evaluated, the best on the common grid first, those without such a figure last."""
    measured = [model for model in models if model["evaluation"]]
    return sorted(measured, key=lambda model: (_grid(model) is None, _grid(model) or _sliding(model)["bits_per_note"]))


def _likelihood(model: Mapping[str, Any]) -> Mapping[str, Any]:
    return model["evaluation"]["likelihood"]


def _sliding(model: Mapping[str, Any]) -> Mapping[str, Any]:
    return _likelihood(model)["sliding"]


def _grid(model: Mapping[str, Any]) -> float | None:
    return _likelihood(model)["common_grid"]["bits_per_note"]


# Likelihood -----------------------------------------------------------------------------------------------------------


def likelihood_table(measured: Models, seed: int) -> Table:
    """Bits per note and per second, on the encoding's own grid and on a common one, and the distance to the best."""
    rows = []
    for model in measured:
        main = _sliding(model)
        mark = "≤ " if main["bound"] else ""
        rows.append(
            [
                model["name"],
                mark + number(_grid(model), 3),
                _difference_words(_difference(model, measured[0], seed)) if model is not measured[0] else "best",
                mark + number(main["bits_per_note"], 3),
                number(main["standard_error"], 3),
                number(main["bits_per_second"], 2),
                number(_likelihood(model)["shares"]["pitch_and_onset"], 3),
                number(main["nats_per_token"], 3),
                number(main["accuracy"], 3),
                ", ".join(_likelihood(model)["common_grid"]["lost"]) or "nothing",
            ]
        )
    return {
        "title": "What held-out music costs",
        "text": [
            "Lower is better. Bits of all tokens of a piece, the end included, over the notes as read, with "
            "windows that slide by half. A coarse encoding would win by what it rounds away; on the common grid (10 "
            "ms, one velocity) it pays for telling how far off each note comes back, velocities that it throws away "
            "included, and this column ranks. What else an encoding loses it does not pay for: compare rows with equal "
            "losses.",
            "The difference to the best is on the common grid, with a 95 % interval from resampling pieces, the same "
            "ones for both models. ± is the standard error over pieces. The share of pitches and onsets is what those "
            "ids cost given all before them. ≤: a masked model's bits are an upper bound.",
        ],
        "columns": [
            "model",
            "bits per note, common grid",
            "difference to the best",
            "bits per note, own grid",
            "±",
            "bits per second",
            "of it pitch and onset",
            "nats per token",
            "accuracy",
            "lost by the encoding",
        ],
        "rows": rows,
    }


def pairs_table(measured: Models, seed: int) -> Table:
    """Every two models: how much more the first costs, on the common grid."""
    with_grid = [model for model in measured if _grid(model) is not None]
    rows = [
        [
            first["name"],
            *(NONE if first is second else _difference_words(_difference(first, second, seed)) for second in with_grid),
        ]
        for first in with_grid
    ]
    return {
        "title": "Every two models",
        "text": ["Bits per note of the row less those of the column, on the common grid, with 95 % intervals."],
        "columns": ["", *(model["name"] for model in with_grid)],
        "rows": rows if len(rows) > 2 else [],
    }


def _difference(model: Mapping[str, Any], other: Mapping[str, Any], seed: int) -> Any:
    """`PairedDifference` of two models on the pieces that both were measured on; None if it can't be."""
    columns = []
    names = [_likelihood(each)["per_piece"]["sliding"]["names"] for each in (model, other)]
    for each in (model, other):
        vectors, grid = _likelihood(each)["per_piece"]["sliding"], _grid(each)
        if grid is None:
            return None
        added = grid - _sliding(each)["bits_per_note"]
        bits = [bits + added * notes for bits, notes in zip(vectors["bits"], vectors["notes"], strict=True)]
        rows = dict(zip(vectors["names"], zip(bits, vectors["notes"], strict=True), strict=True))
        common = [rows[name] for name in names[0] if name in set(names[1])]
        columns += [[row[0] for row in common], [row[1] for row in common]]
    try:
        bits, notes, other_bits, other_notes = columns
        return paired_bootstrap(bits, notes, other_bits, other_notes, seed)
    except LikelihoodError:
        return None


def _difference_words(found: Any) -> str:
    return NONE if found is None else f"{found.difference:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


# Size and training ----------------------------------------------------------------------------------------------------


def size_table(models: Models) -> Table:
    """What each model is."""
    rows = []
    for model in models:
        job = model["job"]
        if job is None:
            rows.append([model["name"], *[NONE] * 8, model["failed"] or ""])
            continue
        sizes = job["sizes"]
        rows.append(
            [
                model["name"],
                f"{job['parameters']['total']:,}",
                f"{job['parameters']['without_embeddings']:,}",
                f"{sizes['hidden_size']} / {sizes['intermediate_size']}",
                f"{sizes['num_hidden_layers']} / {sizes['num_attention_heads']}",
                str(job["settings"].get("model_type", "music_transformer")),
                job["encoder"],
                f"{job['vocab_size']:,}",
                number(job["tokens_per_note"], 2),
                model["failed"] or "trained",
            ]
        )
    return {
        "title": "Sizes",
        "text": ["Every width was chosen so that all parameters, embeddings included, are as many as wanted."],
        "columns": [
            "model",
            "parameters",
            "without embeddings",
            "width / feed-forward",
            "layers / heads",
            "architecture",
            "encoding",
            "vocabulary",
            "tokens per note",
            "state",
        ],
        "rows": rows,
    }


def training_table(trained: Models) -> Table:
    """What each model got, and how fast it used it."""
    rows = []
    for model in trained:
        got = model["training"]
        speed = ((model["evaluation"] or {}).get("speed") or {}).get("notes_per_second")
        rows.append(
            [
                model["name"],
                f"{got['steps']:,}" + (f" of {got['max_steps']:,}" if got["was_stopped"] else ""),
                f"{got['notes_seen']:,}",
                f"{got['tokens_seen']:,}",
                number(got["passes"], 2),
                number(got["seconds"], 0),
                number(got["cpu_seconds"], 0),
                f"{got['tokens_per_second']:,.0f}",
                f"{got['notes_per_second']:,.0f}",
                NONE if speed is None else f"{speed:,.0f}",
                NONE if got["peak_memory_bytes"] is None else f"{got['peak_memory_bytes'] / 2**20:,.0f}",
            ]
        )
    return {
        "title": "Training and speed",
        "text": [
            "Every step has about as many notes for every model. Seconds are those of training alone, without "
            "evaluations and checkpoints. Where the CPU seconds are far fewer than seconds times threads, other work "
            "was on the machine, and times and speeds are worth little. Memory is the peak of the process."
        ],
        "columns": [
            "model",
            "steps",
            "notes seen",
            "tokens seen",
            "passes over train",
            "seconds",
            "CPU seconds",
            "tokens/s in training",
            "notes/s in training",
            "notes/s generated",
            "memory, MiB",
        ],
        "rows": rows,
    }


# Encoding and generated music -----------------------------------------------------------------------------------------


def round_trip_table(measured: Models) -> Table:
    """What the encodings lose of the held-out pieces."""
    names = {
        "onset_f1": "onset F1",
        "onset_offset_f1": "and end",
        "onset_offset_velocity_f1": "and velocity",
        "dropped_or_merged_percent": "dropped or merged, %",
        "added_percent": "added, %",
        "tokens_per_note": "tokens per note",
    }
    rows: dict[tuple[str, ...], list[str]] = {}
    for model in measured:
        found = model["evaluation"]["round_trip"]
        cells = [number(found[name], 3) for name in names]
        rows.setdefault((model["job"]["encoder"], *cells), []).append(model["name"])
    return {
        "title": "What the encodings lose",
        "text": ["Held-out pieces, encoded and decoded, and compared note by note: onsets within 50 ms, and so on."],
        "columns": ["encoding", *names.values(), "of the models"],
        "rows": [[*key, ", ".join(models)] for key, models in rows.items()],
    }


def samples_table(measured: Models) -> Table:
    """Whether generated pieces are music at all."""
    rows = []
    for model in measured:
        samples = model["evaluation"]["samples"]
        good = [each for each in samples["pieces"] if not each["faults"]]
        faults = [f"{each['seed']}: {', '.join(each['faults'])}" for each in samples["pieces"] if each["faults"]]
        why = samples["why_none"] or "; ".join(faults) or "none"
        rows.append([model["name"], f"{len(good)} of {len(samples['pieces'])}", why])
    return {
        "title": "Generated pieces, checked",
        "text": [
            "Every generated piece is checked for too few notes or pitches, one pitch in most of the notes, long "
            "silence, chords that no hands can play, crowds, notes without length and times that run backwards."
        ],
        "columns": ["model", "without fault", "faults, by seed"],
        "rows": rows,
    }


def audit_table(measured: Models) -> Table:
    """How much of the generated music stands in the train pieces."""
    rows = []
    for model in measured:
        audit = model["evaluation"]["audit"]
        if audit is None:
            rows.append([model["name"], *[NONE] * 5])
            continue
        found = audit["comparison"]
        shares = _sorted_by_length(found["coverage"])[:3]
        cover = [f"{each['generated']:.1%} / {each['heldout']:.1%}" for each in shares]
        run = found["longest_run"]
        rows.append(
            [
                model["name"],
                *cover,
                *[NONE] * (3 - len(cover)),
                f"{run['generated']} / {run['heldout']} {audit['generated']['unit']}",
                "ALARM: " + "; ".join(found["reasons"]) if found["alarm"] else "no alarm",
            ]
        )
    audits = [model["evaluation"]["audit"] for model in measured if model["evaluation"]["audit"]]
    lengths = sorted(map(int, audits[0]["comparison"]["coverage"]))[:3] if audits else []
    return {
        "title": "Does it copy?",
        "text": [
            "Share of generated music that stands in a train piece, run for run and in any key, beside the share that "
            "held-out pieces have (generated / held out): music has phrases in common without copying. Of an encoding "
            "with four voices runs are counted in its steps, of the others in notes."
        ],
        "columns": [
            "model",
            *(f"in runs of {length} or more" for length in lengths),
            *[""] * (3 - len(lengths)),
            "longest run",
            "verdict",
        ],
        "rows": rows if audits else [],
    }


def ranking(models: Models) -> list[dict[str, Any]]:
    """The best first: name, bits per note (on the common grid, if that is known), standard error, and both in words."""
    rows = []
    for model in ranked(models):
        bits, error = _grid(model), _sliding(model)["standard_error"]
        bits = _sliding(model)["bits_per_note"] if bits is None else bits
        words = f"{number(bits, 3)} ± {number(error, 3)}" + (", an upper bound" if _sliding(model)["bound"] else "")
        rows.append({"name": model["name"], "bits": bits, "error": error, "words": words})
    return rows


def _sorted_by_length(coverage: Mapping[str, Any]) -> list[Any]:
    """Rows of a copy audit, the shortest runs first."""
    return [coverage[length] for length in sorted(coverage, key=int)]


def statistics_table(measured: Models) -> Table:
    """Overlap of generated and held-out music in every feature, under the overlap that real music has."""
    found = [model for model in measured if model["evaluation"]["statistics"]]
    names = [name for name in METRICS if any(name in _statistics(model)["generated"] for model in found)]
    rows = []
    for name in names:
        floors = [_statistics(model)["floor"].get(name, {}).get("overlap") for model in found]
        cells = [
            f"{number(_statistics(model)['generated'].get(name, {}).get('overlap'), 2)} ({number(floor, 2)})"
            for model, floor in zip(found, floors, strict=True)
        ]
        rows.append([METRICS[name], *cells])
    if rows:
        rows.append(["mean", *(_mean_overlap(model, names) for model in found)])
    return {
        "title": "Is it like the real music?",
        "text": [
            "How much the distribution of each feature over generated pieces overlaps with that over held-out pieces "
            "(1 is the same), and in brackets how much real pieces do, encoded alike, which is all that can be hoped "
            "for. With few generated pieces these figures are rough."
        ],
        "columns": ["feature", *(model["name"] for model in found)],
        "rows": rows,
    }


def _statistics(model: Mapping[str, Any]) -> Mapping[str, Any]:
    return model["evaluation"]["statistics"]


def _mean_overlap(model: Mapping[str, Any], names: Sequence[str]) -> str:
    means = []
    for part in ("generated", "floor"):
        found = [_statistics(model)[part].get(name, {}).get("overlap") for name in names]
        known = [value for value in found if value is not None]
        means.append(number(sum(known) / len(known) if known else None, 2))
    return f"{means[0]} ({means[1]})"
