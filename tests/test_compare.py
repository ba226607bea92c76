"""Tables of a comparison, from figures that can be checked by hand."""

import math

import pytest
from datasets import Dataset

import pianogen_hf as pg
from pianogen_hf.evaluation.compare import comparison_tables, ranked, ranking
from pianogen_hf.evaluation.learning_curves import loss_curve
from pianogen_hf.evaluation.tables import markdown, number
from pianogen_hf.workflows.compare.report import write_report
from pianogen_hf.workflows.split import Split

NOTES = [10, 20, 30, 40]


def model(name, bits_per_note, added=0.0, bound=None, failed=None):
    """Four pieces, each costing `bits_per_note`; the common grid adds `added`."""
    sliding = {
        "bits_per_note": bits_per_note,
        "standard_error": 0.05,
        "bits_per_second": 40.0,
        "nats_per_token": 1.5,
        "accuracy": None if bound else 0.4,
        "bound": bound,
    }
    per_piece = {"names": ["a", "b", "c", "d"], "bits": [bits_per_note * notes for notes in NOTES], "notes": NOTES}
    likelihood = {
        "sliding": sliding,
        "common_grid": {"bits_per_note": bits_per_note + added, "lost": ["pedal"]},
        "shares": {"pitch_and_onset": None},
        "per_piece": {"sliding": per_piece},
    }
    overlap = {"overlap": 0.5}
    evaluation = {
        "likelihood": likelihood,
        "round_trip": {
            "onset_f1": 1.0,
            "onset_offset_f1": 0.9,
            "onset_offset_velocity_f1": 0.8,
            "dropped_or_merged_percent": 1.0,
            "added_percent": 0.0,
            "tokens_per_note": 3.0,
        },
        "samples": {"pieces": [{"seed": 0, "faults": []}, {"seed": 1, "faults": ["3 notes"]}], "why_none": None},
        "audit": None,
        "statistics": {
            "generated": {"polyphony": overlap, "pitch_range": {"overlap": 0.7}},
            "floor": {"polyphony": {"overlap": 0.9}, "pitch_range": {"overlap": 0.8}},
        },
        "speed": {"notes_per_second": 120.0},
    }
    training = {
        "steps": 90,
        "max_steps": 100,
        "was_stopped": True,
        "notes_seen": 1000,
        "tokens_seen": 3000,
        "passes": 0.5,
        "seconds": 60.0,
        "cpu_seconds": 30.0,
        "tokens_per_second": 50.0,
        "notes_per_second": 16.7,
        "peak_memory_bytes": 2**30,
    }
    job = {
        "parameters": {"total": 1000, "without_embeddings": 900},
        "sizes": {"hidden_size": 8, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
        "settings": {"model_type": "gpt2"},
        "encoder": "RemiTokenizer",
        "vocab_size": 50,
        "tokens_per_note": 3.0,
    }
    if failed:
        training = evaluation = None
    return {"name": name, "job": job, "training": training, "evaluation": evaluation, "failed": failed}


MODELS = [
    model("coarse", 4.0, added=5.0),
    model("fine", 8.0),
    model("masked", 8.5, bound={"orders": 4, "seed": 0}),
    model("broken", 0.0, failed="train: its process was ended by SIGKILL"),
]


def table(title):
    return next(each for each in comparison_tables(MODELS) if each["title"] == title)


def test_models_are_ranked_on_the_common_grid():
    assert [each["name"] for each in ranked(MODELS)] == ["fine", "masked", "coarse"]
    assert [each["words"] for each in ranking(MODELS)][:2] == ["8.000 ± 0.050", "8.500 ± 0.050, an upper bound"]


def test_differences_are_paired_and_on_the_common_grid():
    rows = {row[0]: row for row in table("What held-out music costs")["rows"]}
    assert rows["fine"][1:4] == ["8.000", "best", "8.000"]
    # Every piece differs by the same, so the interval has no width.
    assert rows["coarse"][1:4] == ["9.000", "+1.000 [+1.000, +1.000]", "4.000"]
    assert rows["masked"][1].startswith("≤ ") and rows["masked"][8] == "–"
    pairs = {row[0]: row for row in table("Every two models")["rows"]}
    assert pairs["fine"][1] == "–" and pairs["fine"][3] == "-1.000 [-1.000, -1.000]"


def test_a_model_that_failed_is_named_with_the_reason():
    rows = {row[0]: row for row in table("Sizes")["rows"]}
    assert rows["broken"][-1] == "train: its process was ended by SIGKILL" and rows["fine"][-1] == "trained"
    assert "broken" not in {row[0] for row in table("Training and speed")["rows"]}
    unplanned = {"name": "odd", "job": None, "training": None, "evaluation": None, "failed": "no such file"}
    (sizes,) = comparison_tables([unplanned])
    assert sizes["rows"] == [["odd", *["–"] * 8, "no such file"]]


def test_faults_of_samples_and_the_floor_of_statistics_are_shown():
    assert table("Generated pieces, checked")["rows"][0] == ["fine", "1 of 2", "1: 3 notes"]
    rows = {row[0]: row[1] for row in table("Is it like the real music?")["rows"]}
    assert rows["polyphony (pitches at a time)"] == "0.50 (0.90)" and rows["mean"] == "0.60 (0.85)"


def test_a_run_that_the_clock_stopped_shows_it():
    assert table("Training and speed")["rows"][0][1] == "90 of 100"


def test_every_row_has_a_cell_for_every_column():
    for each in comparison_tables(MODELS):
        assert {len(row) for row in each["rows"]} == {len(each["columns"])}


def test_curves_are_bits_per_note_over_all_stages():
    job = {"tokens_per_note": 4.0, "phases": [{"batch": 2, "tokens_per_example": 100.0}] * 2}
    log = [
        {"stage": "stage-1", "step": 10, "seconds": 1.0, "loss": math.log(2)},
        {"stage": "model", "step": 5, "seconds": 2.0, "loss": 0.5 * math.log(2)},
        {"stage": "model", "step": 5, "seconds": 2.0, "eval_bits_per_note": 3.0},
    ]
    curve = loss_curve(job, log)
    assert curve["train"]["notes"] == [500.0, 750.0] and curve["train"]["bits"] == pytest.approx([4.0, 2.0])
    assert curve["validation"] == {"notes": [750.0], "seconds": [2.0], "bits": [3.0]}


def test_a_curve_ends_with_the_last_step_and_not_with_the_weights_that_were_kept():
    job = {"tokens_per_note": 4.0, "phases": [{"batch": 2, "tokens_per_example": 100.0}]}
    found = {5: 3.0, 10: 4.0, 12: 3.0}  # stopped at 12, where the weights of step 5 were loaded again
    log = [{"stage": "model", "step": step, "seconds": 1.0, "eval_bits_per_note": bits} for step, bits in found.items()]
    assert loss_curve(job, log)["validation"]["bits"] == [3.0, 4.0]


def test_markdown_keeps_cells_apart():
    odd = {"title": "t", "text": ["words"], "columns": ["a", "b"], "rows": [["x|y", "line\nbreak"]]}
    assert "| x\\|y | line break |" in markdown("title", {"command": "c"}, [odd], {})


def test_what_was_not_measured_is_a_dash():
    assert number(None, 2) == number(math.nan, 2) == "–" and number(1234.5, 1) == "1,234.5"


@pytest.mark.parametrize("with_real_music", [True, False])
def test_held_out_pieces_are_heard_unless_that_is_not_wanted(tmp_path, with_real_music):
    notes = pg.Notes.from_columns(480, onset_tick=[0, 480], duration_tick=[480, 480], pitch=[60, 64])
    pieces = Dataset.from_dict({"piece_id": ["sonata"], "midi": [pg.notes_to_midi_bytes(notes)]})
    split = Split(pieces, ["test"], {"counts": {"test": 1}})
    settings = {"side": "test", "sample_notes": 10}
    write_report(tmp_path, [], {"v9": "no such recipe"}, split, settings, {}, with_real_music)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "v9" in page and ("sonata" in page) == with_real_music
