"""`pianogen evaluate` from end to end on a small model: what is written, kept, refused, and shown on the card."""

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from models_and_tokenizers import some_notes, tiny_model
from transformers import set_seed

import pianogen_hf as pg
from pianogen_hf.commands.evaluate import main
from pianogen_hf.data.families import join_families
from pianogen_hf.data.manifest import split_manifest, write_manifest
from pianogen_hf.data.pieces import load_pieces
from pianogen_hf.data.sources.listing import list_pieces
from pianogen_hf.evaluation.distributions import densities
from pianogen_hf.evaluation.likelihood import piece_likelihood
from pianogen_hf.evaluation.quantisation import on_common_grid, shares
from pianogen_hf.rendering.evaluation_plot import FeaturePlot, save_bits_plot, save_features_plot
from pianogen_hf.workflows import measure

SPLITS = ["train"] * 5 + ["validation"] * 3 + ["test"]
SMALL = ("--num_samples", "2", "--notes", "12", "--window", "64")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model folder, the music it names (the last validation piece is a train piece transposed), and a cache."""
    folder = tmp_path_factory.mktemp("evaluate")
    music, model = folder / "music", folder / "model"
    pieces = [some_notes(seed, num_notes=60) for seed in range(9)]
    pieces[7] = pieces[0].transposed(3)
    for number, notes in enumerate(pieces):
        pg.write_midi(notes, music / f"{number}.mid")
    tokenizer = pg.PerformanceTokenizer()
    set_seed(0)
    tiny_model(pg.MusicTransformerForCausalLM, vocab_size=len(tokenizer)).save_pretrained(model)
    tokenizer.save_pretrained(model)
    read = join_families(load_pieces(list_pieces("folder", music), folder / "cache"), folder / "cache")
    parameters = {"source": ["folder"], "programs": "piano", "normalize_key": False}
    write_manifest(model / "split.json", split_manifest(read, SPLITS, parameters))
    return model, music, folder


def run(trained, *options, output=None):
    model, music, folder = trained
    place = ["--output", str(output)] if output else []
    where = [] if "--data" in options else ["--data_path", str(music)]
    return main(["--model", str(model), *where, "--cache_dir", str(folder / "cache"), *place, *SMALL, *options])


@pytest.fixture(scope="module")
def whole(trained):
    """One evaluation of everything, into a folder of its own."""
    output = trained[2] / "whole"
    assert run(trained, output=output) == 0
    return output


def test_figures_tables_pictures_and_music_are_written(whole):
    place = whole / "evaluation" / "validation"
    metrics = json.loads((whole / "metrics.json").read_text())
    record = metrics["evaluation"]["validation"]
    assert {"likelihood", "statistics", "copy_audit", "round_trip", "measured"} <= set(record) and record["is_whole"]
    assert metrics["validation"]["bits_per_note"] == record["likelihood"]["sliding"]["bits_per_note"]
    assert metrics["copy_audit"]["settings"] == {"num_samples": 2, "notes": 12, "seed": 0}
    report = (place / "report.md").read_text()
    assert f"{record['likelihood']['sliding']['bits_per_note']:.3f}" in report and "polyphony" in report
    assert all((place / name).read_bytes().startswith(b"\x89PNG") for name in ("bits.png", "statistics.png"))
    made = [pg.read_midi(path) for path in sorted(place.glob("generated/*/*.mid"))]
    assert [len(notes) for notes in made] == [12, 12] and made[0] != made[1]


def test_the_piece_that_shares_music_with_train_is_left_out_of_the_clean_figure(trained, whole):
    likelihood = json.loads((whole / "metrics.json").read_text())["evaluation"]["validation"]["likelihood"]
    assert likelihood["clean"]["left_out"] == ["music/7.mid"]
    assert likelihood["sliding"]["pieces"] == 3 and likelihood["clean"]["pieces"] == 2
    model = pg.MusicTransformerForCausalLM.from_pretrained(trained[0])
    pieces = [(name, pg.read_midi(trained[1] / name)) for name in ("5.mid", "6.mid")]
    found = piece_likelihood(model, pg.PerformanceTokenizer(), pieces, 64, 32)
    assert likelihood["clean"]["bits_per_note"] == pytest.approx(found.bits_per_note, rel=1e-5)


def test_a_second_run_measures_and_generates_nothing(trained, whole, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("measured again")

    before = json.loads((whole / "metrics.json").read_text())
    for name in ("piece_likelihood", "continue_notes", "piece_metrics", "round_trip", "copy_report"):
        monkeypatch.setattr(measure, name, never)
    assert run(trained, output=whole) == 0
    after = json.loads((whole / "metrics.json").read_text())
    assert after["evaluation"]["validation"]["likelihood"] == before["evaluation"]["validation"]["likelihood"]
    with pytest.raises(AssertionError, match="measured again"):  # other settings are another measurement
        run(trained, "--window", "40", output=whole)


def test_an_interrupted_run_goes_on_with_the_pieces_it_had(trained, tmp_path, monkeypatch, capsys):
    real, seeds = measure.continue_notes, []

    def interrupted(*args, seed, **kwargs):
        seeds.append(seed)
        if len(seeds) == 2:
            raise KeyboardInterrupt
        return real(*args, seed=seed, **kwargs)

    monkeypatch.setattr(measure, "continue_notes", interrupted)
    assert run(trained, "--only", "statistics", output=tmp_path) == 130
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("interrupted")
    assert not (tmp_path / "metrics.json").exists()
    assert run(trained, "--only", "statistics", output=tmp_path) == 0
    assert seeds == [0, 1, 1]


def test_test_is_looked_at_on_request_only_and_every_look_is_recorded(trained, tmp_path, capsys):
    assert run(trained, "--only", "likelihood", output=tmp_path) == 0
    assert "test" not in json.loads((tmp_path / "metrics.json").read_text())["evaluation"]
    assert run(trained, "--only", "likelihood", "--side", "test", output=tmp_path) == 0
    assert "looked at before" not in capsys.readouterr().out
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    (day,) = metrics["evaluation"]["test"]["looked_at"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", day) and metrics["test"]["bits_per_note"] > 0
    assert run(trained, "--only", "likelihood", "--side", "test", output=tmp_path) == 0
    assert f"test was looked at before, on {day}" in capsys.readouterr().out


def test_a_folder_of_other_music_is_measured_and_what_is_known_of_it_told(trained, tmp_path, capsys):
    pg.write_midi(some_notes(77, 30), tmp_path / "other" / "a.mid")
    pg.write_midi(some_notes(78, 30), tmp_path / "other" / "b.mid")
    (tmp_path / "other" / "c.mid").write_text("no music")
    assert run(trained, "--data", str(tmp_path / "other"), output=tmp_path) == 0
    out = capsys.readouterr().out
    unusable = json.loads((tmp_path / "evaluation" / "data-other" / "unusable.json").read_text())
    assert list(unusable) == ["other/c.mid"] and f"1 files left out, all named in {tmp_path}" in out
    assert "copying was not measured" in out and "unknown how many" in out  # this model has no provenance
    record = json.loads((tmp_path / "metrics.json").read_text())["evaluation"]["data-other"]
    assert record["likelihood"]["clean"] is None and record["statistics"]["settings"]["floor_pieces"] == 1
    assert "without pieces related to train | not measured" in out


def test_the_card_shows_what_was_measured(trained):
    assert run(trained, "--only", "likelihood", "roundtrip") == 0  # into the model's own folder
    card = (trained[0] / "README.md").read_text()
    record = json.loads((trained[0] / "metrics.json").read_text())["evaluation"]["validation"]
    row = record["likelihood"]["clean"]
    assert f"related to train | 2 | {row['bits_per_note']:.3f} | {row['standard_error']:.3f}" in card
    assert f"{record['round_trip']['onset_f1']:.4g} |" in card and "Not measured: music statistics." in card
    report = (trained[0] / "evaluation" / "validation" / "report.md").read_text()
    assert all(line in card for line in report.splitlines() if not line.startswith("#")), "one renderer for both"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "x", "--side", "test"], "has no splits"),
        (["--data", "x.json"], "x.json can't be read"),
        (["--data", "nowhere"], "nowhere"),
        (["--window", "4000"], "more than the 128"),
        (["--window", "0"], "at least 1"),
        (["--device", "cuda:9"], "--device cuda:9"),
        (["--model", "no/such-model"], "no model"),
        (["--source", "folder=nowhere"], "nowhere"),
        (["--only", "beauty"], "beauty"),
    ],
)
def test_what_cant_be_done_is_one_line(trained, tmp_path, capsys, options, message):
    assert run(trained, *options, output=tmp_path) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error
    assert not (tmp_path / "metrics.json").exists()


def test_the_benchmark_s_own_file_is_measured_canonically_and_without_its_leaks(trained, tmp_path):
    grids = [[[70 - n % 5, 65, 60, 50 + step // 4] for step in range(16)] for n in range(75)]
    (tmp_path / "jsb.json").write_text(json.dumps({"train": grids, "valid": grids, "test": grids[:2]}))
    options = ("--data", str(tmp_path / "jsb.json"), "--only", "likelihood", "--side", "validation")
    assert run(trained, *options, output=tmp_path) == 0
    found = json.loads((tmp_path / "metrics.json").read_text())["evaluation"]["jsb-validation"]["likelihood"]
    assert found["sliding"]["pieces"] == 75 and found["clean"]["pieces"] == 73
    assert found["clean"]["left_out"] == ["jsb/validation-058", "jsb/validation-074"]


@pytest.mark.parametrize("content", ["{", "[]", '{"valid": [[[1, 2, 3, 4]]]}', '{"valid": []}', '{"valid": [[[1]]]}'])
def test_a_file_that_is_no_benchmark_is_one_line(trained, tmp_path, capsys, content):
    (tmp_path / "jsb.json").write_text(content)
    assert run(trained, "--data", str(tmp_path / "jsb.json"), output=tmp_path) == 2
    assert "jsb.json" in capsys.readouterr().err.strip().splitlines()[-1]


# The common grid ------------------------------------------------------------------------------------------------------


class NoConfig:
    config = None


def off_by(residuals):
    return {field: Counter(residuals) for field in ("onset", "end", "velocity")}


NOT_FOUND = off_by({None: 10})  # which costs the most


def test_coarse_steps_are_paid_for_and_lost_fields_named():
    performance = on_common_grid(NoConfig, pg.PerformanceTokenizer(), 10.0, NOT_FOUND)
    assert performance["added"] == {"onset": 0, "end": 0, "velocity": 2} and performance["bits_per_note"] == 12
    grid = on_common_grid(NoConfig, pg.JSBTokenizer(), 2.0, NOT_FOUND)
    assert grid["added"]["onset"] == pytest.approx(3.64, abs=0.005) and "velocity" in grid["lost"]
    assert grid["bits_per_note"] == pytest.approx(2 + 2 * np.log2(12.5) + np.log2(127))
    assert grid["uniform"] == {name: grid[name] for name in ("bits_per_note", "added")}
    craykh = on_common_grid(NoConfig, pg.CrayKHTokenizer(), 2.0, NOT_FOUND)
    assert craykh["added"]["end"] == pytest.approx(np.log2(5))
    finer = on_common_grid(NoConfig, pg.RemiTokenizer("PerTok"), 2.0, NOT_FOUND)
    assert finer["added"]["onset"] == 0  # is not credited


def test_music_on_the_coarse_grid_pays_next_to_nothing_and_all_other_music_no_more_than_for_finer_values():
    random = np.random.default_rng(0)
    added = {}
    for name, residuals in {
        "on it": {0: 100_000},
        "always off by the same": {2: 100_000},
        "half of it on it": Counter({0: 50_000}) + Counter(random.integers(-2, 3, 50_000).tolist()),
        "anywhere": Counter(random.integers(-2, 3, 100_000).tolist()),
        "lost, half of it": {0: 50_000, None: 50_000},
    }.items():
        added[name] = on_common_grid(NoConfig, pg.CrayKHTokenizer(), 2.0, off_by(residuals))["added"]["onset"]
    assert 0 < added["on it"] < 0.001 and added["always off by the same"] == added["on it"]
    assert added["on it"] < added["half of it on it"] < added["anywhere"] <= np.log2(5)
    assert added["anywhere"] == pytest.approx(np.log2(5), abs=0.001)
    assert added["lost, half of it"] == pytest.approx(1 + np.log2(5) / 2, abs=0.001)  # a bit to tell which


def test_an_encoding_without_velocities_pays_for_them_as_far_as_they_vary():
    pieces = {"all alike": [(64, 2000)], "two": [(64, 1000), (65, 1000)], "any": [(each, 20) for each in range(1, 128)]}
    added = {}
    for name, velocities in pieces.items():
        residuals = {**NOT_FOUND, "velocity": Counter(dict(velocities))}
        added[name] = on_common_grid(NoConfig, pg.CrayKHTokenizer(), 2.0, residuals)["added"]["velocity"]
    assert 0 < added["all alike"] < 0.5 < 1 < added["two"] < 1.5 and added["any"] == np.log2(127)


def test_an_adaptive_code_of_two_differences_is_that_of_krichevsky_and_trofimov():
    """Ids one after another, each with the share that it has had so far and half a count more."""
    counts, total, bits = Counter(), 0, 0.0
    for difference in [0, 0, 1, 0, 0, 0, 1, 0] * 4:
        bits -= np.log2((counts[difference] + 0.5) / (total + 12 / 2))  # -5..5, and one value for all beyond
        counts[difference] += 1
        total += 1
    found = on_common_grid(NoConfig, pg.CrayKHTokenizer(), 2.0, off_by(counts))
    assert found["added"]["onset"] == pytest.approx(bits / total)


def test_continuous_notes_state_their_cells_in_the_config():
    class Model:
        config = pg.ContinuousNotesConfig(sampling_rate=50, velocity_step=4)

    found = on_common_grid(Model, pg.ContinuousNotesFeatureExtractor(), 8.0, NOT_FOUND)
    assert found["added"] == {"onset": 1, "end": 1, "velocity": 2} and found["bits_per_note"] == 12


def test_shares_are_told_only_where_ids_tell_fields_apart():
    remi = {"Pitch": 3.0, "Position": 1.0, "Bar": 0.5, "Velocity": 2.0, "Duration": 1.5, "end": 0.25}
    assert shares(remi, is_bound=False) == {"without_velocity": 6.25, "pitch_and_onset": 4.75, "why_not": None}
    events = shares({"NOTE_ON": 3.0, "NOTE_OFF": 1.0, "TIME_SHIFT": 2.0, "VELOCITY": 2.0}, is_bound=False)
    assert events["without_velocity"] == 6 and events["pitch_and_onset"] is None and events["why_not"]
    assert shares({**remi, "several": 1.0}, is_bound=False)["without_velocity"] is None
    assert shares(remi, is_bound=True)["pitch_and_onset"] is None


# Pictures -------------------------------------------------------------------------------------------------------------


def test_pictures_are_the_same_for_the_same_input_and_refuse_nothing_to_draw(tmp_path):
    random = np.random.default_rng(0)
    made, real = random.normal(0, 1, 20), random.normal(1, 1, 30)
    feature = FeaturePlot("polyphony", made, real, *densities(made, real), note="overlap 0.62")
    bytes_of = [save_features_plot([feature] * 5, "title", tmp_path / name).read_bytes() for name in ("1.png", "2.png")]
    assert bytes_of[0] == bytes_of[1]
    bytes_of = [save_bits_plot({"a": made, "b": real[:0]}, "t", tmp_path / name).read_bytes() for name in ("3", "4")]
    assert bytes_of[0] == bytes_of[1]
    for save, nothing in ((save_features_plot, []), (save_bits_plot, {"a": np.zeros(0)})):
        with pytest.raises(ValueError, match="no"):
            save(nothing, "title", tmp_path / "5.png")


def test_the_bundled_model_is_not_written_into(trained, tmp_path, monkeypatch):
    """Nor is a model on the Hub: figures go to a folder where the command was given."""
    monkeypatch.chdir(tmp_path)
    pg.write_midi(some_notes(5, 20), tmp_path / "other" / "a.mid")
    options = ["--data", str(tmp_path / "other"), "--only", "roundtrip", "--cache_dir", str(tmp_path / "cache")]
    before = {path.name: path.stat().st_mtime_ns for path in Path(pg.BACH_MODEL).iterdir()}
    assert main(options) == 0
    assert {path.name: path.stat().st_mtime_ns for path in Path(pg.BACH_MODEL).iterdir()} == before
    assert (tmp_path / "evaluated" / "metrics.json").exists()
    assert (tmp_path / "evaluated" / "evaluation" / "data-other" / "report.md").exists()
