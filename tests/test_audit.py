import json

import pytest
from models_and_tokenizers import CAUSAL_MODELS, some_notes, tiny_model

import pianogen_hf as pg
from pianogen_hf.commands.audit import main
from pianogen_hf.data.families import join_families
from pianogen_hf.data.manifest import split_manifest, write_manifest
from pianogen_hf.data.pieces import load_pieces
from pianogen_hf.data.sources.listing import list_pieces

NAMES = [f"{number}.mid" for number in range(8)]


@pytest.fixture
def trained(tmp_path):
    """A model folder that names six train and two validation pieces, and the folder where they lie."""
    music, model = tmp_path / "music", tmp_path / "model"
    for seed, name in enumerate(NAMES):
        pg.write_midi(some_notes(seed, num_notes=120), music / name)
    tokenizer = pg.PerformanceTokenizer()
    tiny_model(CAUSAL_MODELS[0], vocab_size=len(tokenizer)).save_pretrained(model)
    tokenizer.save_pretrained(model)
    pieces = join_families(load_pieces(list_pieces("folder", music), tmp_path / "cache"), tmp_path / "cache")
    parameters = {"source": ["folder"], "programs": "piano", "normalize_key": False}
    write_manifest(model / "split.json", split_manifest(pieces, ["train"] * 6 + ["validation"] * 2, parameters))
    return model, music, tmp_path


def run(trained, *options):
    model, music, folder = trained
    return main(["--model", str(model), "--data_path", str(music), "--cache_dir", str(folder / "cache"), *options])


def test_a_model_that_writes_at_random_rings_no_alarm(trained, capsys):
    assert run(trained, "--num_samples", "2", "--notes", "20", "--output", str(trained[2] / "audit.json")) == 0
    assert "no alarm" in capsys.readouterr().out
    report = json.loads((trained[2] / "audit.json").read_text())
    assert report["train_pieces"] == 6 and report["generated"]["frames"] == 40


def test_a_train_piece_given_as_a_file_rings_the_alarm_and_is_named(trained, capsys):
    copied = pg.read_midi(trained[1] / NAMES[3]).transposed(2)
    pg.write_midi(copied, trained[2] / "copy.mid")
    assert run(trained, "--midi", str(trained[2] / "copy.mid")) == 1
    assert "ALARM" in (text := capsys.readouterr().out) and f"music/{NAMES[3]}" in text


def test_a_held_out_piece_given_as_a_file_rings_none(trained):
    assert run(trained, "--midi", str(trained[1] / NAMES[7])) == 0


def test_a_file_is_audited_against_any_data_set(trained, capsys):
    _, music, folder = trained
    options = ["--source", f"folder={music}", "--cache_dir", str(folder / "cache")]
    pg.write_midi(pg.read_midi(music / NAMES[7]).transposed(-3), folder / "copy.mid")
    assert main(["--midi", str(folder / "copy.mid"), *options]) == 1
    assert f"music/{NAMES[7]}" in capsys.readouterr().out
    pg.write_midi(some_notes(99, num_notes=120), folder / "new.mid")
    assert main(["--midi", str(folder / "new.mid"), *options]) == 0


@pytest.mark.parametrize("broken", ["split", "pieces", "midi"])
def test_what_is_missing_is_said_in_one_line(trained, capsys, broken):
    if broken == "split":
        (trained[0] / "split.json").unlink()
    elif broken == "pieces":
        (trained[1] / NAMES[0]).unlink()
    options = ["--midi", str(trained[2] / "none.mid")] if broken == "midi" else []
    assert run(trained, *options) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")


def test_a_wrong_option_is_one_line_too(capsys):
    assert main(["--num_samples", "many"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "pianogen audit --help" in error


def test_a_model_of_continuous_notes_is_audited_like_any_other(trained, capsys):
    model = trained[0]
    for name in ("tokenizer_config.json", "model.safetensors", "config.json"):
        (model / name).unlink()
    tiny_model(pg.ContinuousNotesForCausalLM, 130).save_pretrained(model)
    pg.ContinuousNotesFeatureExtractor().save_pretrained(model)
    assert run(trained, "--num_samples", "2", "--notes", "20", "--record") == 0
    assert "no alarm" in capsys.readouterr().out
    assert json.loads((model / "metrics.json").read_text())["copy_audit"]["generated"]["frames"] == 40
