"""Models of events from one end to the other: trained, measured, made to write, converted."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from models_and_tokenizers import loosened, some_notes, tiny_model
from safetensors.torch import load_file, save_file

import pianogen_hf as pg
from pianogen_hf.commands.generate import main as generate
from pianogen_hf.commands.train import main as train
from pianogen_hf.data.augment import Augmentation
from pianogen_hf.errors import ArgumentError
from pianogen_hf.evaluation.likelihood import piece_likelihood
from pianogen_hf.training.collator import EventCollator
from pianogen_hf.workflows.convert_skytnt import convert_skytnt
from pianogen_hf.workflows.loading import load_model
from pianogen_hf.workflows.split import Places, split_of_model

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def two_instruments(seed):
    """A violin over a piano."""
    notes = some_notes(seed, 40)
    notes.table["program"] = np.where(notes["pitch"] > 62, 40, 0)
    notes.table["channel"] = notes.table["track"] = notes["pitch"] > 62
    return pg.Notes(notes.table, notes.ticks_per_quarter, track_names=("piano", "violin"))


def with_drums(seed):
    """The same, and a bass drum on every beat."""
    table = two_instruments(seed).table
    beats = np.zeros(8, dtype=table.dtype)
    beats["onset_tick"], beats["duration_tick"], beats["pitch"] = np.arange(8) * 480, 120, 36
    beats["velocity"], beats["is_drum"], beats["channel"], beats["track"] = 90, True, 9, 2
    table = np.sort(np.concatenate([table, beats]), order=["onset_tick", "pitch"])
    return pg.Notes(table, 480, track_names=("piano", "violin", "drums"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model folder after four steps."""
    root = tmp_path_factory.mktemp("run")
    folder, output = root / "midi", root / "model"
    for number in range(6):
        pg.write_midi(with_drums(number), folder / f"{number}.mid")
    values = {
        "source": f"folder={folder}",
        "programs": "all+drums",
        "cache_dir": tmp_path_factory.mktemp("cache"),
        "output_dir": output,
        "model_type": "midi_event",
        "model_config": json.dumps(SIZES),
        "tokenizer": "MidiEventTokenizer",
        "tokenizer_config": json.dumps({"optimise_midi": True}),
        "chunk_length": 33,
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "report_to": "none",
        "bf16": "false",
        "disable_tqdm": "true",
    }
    assert train([f"--{name}={value}" for name, value in values.items()]) == 0
    return output


def test_a_trained_model_is_measured_field_by_field(trained):
    metrics = json.loads((trained / "metrics.json").read_text())
    model, tokenizer = load_model(trained)
    assert isinstance(model, pg.MidiEventForCausalLM) and tokenizer.optimise_midi
    assert metrics["validation"]["bits_per_note"] > 0
    split = json.loads((trained / "split.json").read_text())
    assert split["parameters"]["programs"] == "all+drums" and sum(split["notes"].values()) == 6 * (40 + 8)
    pieces = [(str(number), two_instruments(number)) for number in range(2)]
    found = piece_likelihood(model, tokenizer, pieces, window=33, stride=16)
    assert found.bits.shape == (2,) and (found.bits > 0).all()
    assert set(found.by_kind) <= {*tokenizer.layout.sizes, "event", "end"}


def test_pieces_are_read_again_with_their_drums_and_drums_are_not_transposed(trained, tmp_path):
    split = split_of_model(trained, Places([f"folder={trained.parent / 'midi'}"], cache_dir=str(tmp_path)))
    for side in ("train", "validation"):
        for notes in split.notes(side):
            assert sorted(set(notes["program"].tolist())) == [0, 40]
            versions = list(Augmentation(transpose=(-2, 3)).all(notes))
            assert len(versions) == 6
            for version in versions:
                assert version["pitch"][version["is_drum"]].tolist() == [36] * 8
    _, tokenizer = load_model(trained)
    rows = tokenizer.encode_piece(with_drums(1))
    again = tokenizer.decode_notes(rows)
    assert again["is_drum"].sum() == 8 and set(again["program"][~again["is_drum"]].tolist()) == {0, 40}


def test_an_encoding_without_drums_says_so(tmp_path, capsys):
    for number in range(4):
        pg.write_midi(with_drums(number), tmp_path / "midi" / f"{number}.mid")
    options = [f"--source=folder={tmp_path / 'midi'}", f"--output_dir={tmp_path / 'run'}", "--report_to=none"]
    options += [f"--cache_dir={tmp_path / 'cache'}", "--tokenizer=MultitrackMusicTokenizer", "--bf16=false"]
    assert train([*options, "--programs=all+drums", "--model_type=multitrack_music"]) == 2
    captured = capsys.readouterr()
    assert "MultitrackMusicTokenizer has no place for drums: say --programs all" in captured.err
    assert captured.err.count("error") == 1 and not (tmp_path / "run").exists()
    assert train([*options, "--programs=drums"]) == 2
    assert "programs must be piano, all or all+drums" in capsys.readouterr().err


@torch.no_grad()
def test_the_likelihood_of_a_piece_is_that_of_all_its_ids():
    torch.manual_seed(0)
    tokenizer = pg.MidiEventTokenizer()
    model = loosened(tiny_model(pg.MidiEventForCausalLM, len(tokenizer)))
    notes = some_notes(0, 20)
    rows = torch.from_numpy(tokenizer.encode_piece(notes))[None]
    found = piece_likelihood(model, tokenizer, [("one", notes)], window=100, stride=50)
    assert found.bits[0] == pytest.approx(float(model(rows, labels=rows).nats.sum()) / math.log(2), rel=1e-5)
    assert found.predictions.tolist() == [rows.shape[1] - 1]


def test_a_prompt_is_continued_by_its_instruments_or_others(trained):
    model, tokenizer = load_model(trained)
    prompt = two_instruments(7)
    result = pg.continue_notes(model, tokenizer, notes=12, prompt=prompt, seed=1, temperature=1.5)[0]
    assert len(result.new) == 12
    columns = ["onset_tick", "pitch", "program"]
    kept = result.notes.where(result.notes["onset_tick"] < prompt.end_tick)
    assert sorted(kept.table[columns].tolist())[: len(prompt)] == sorted(prompt.table[columns].tolist())[: len(kept)]
    again = pg.read_midi(pg.notes_to_midi_bytes(result.notes), programs=None, drums=True)
    assert len(again) == len(result.notes)
    assert pg.continue_notes(model, tokenizer, seconds=2, seed=1, top_k=5)[0].new.end_sec <= 2.01
    with pytest.raises(ValueError, match="num_beams"):
        pg.continue_notes(model, tokenizer, notes=2, num_beams=3)


def test_a_prompt_comes_back_with_its_drums_of_which_nothing_is_said(trained, tmp_path, capsys):
    pg.write_midi(with_drums(7), tmp_path / "band.mid")
    options = ["--model", str(trained), "--prompt", str(tmp_path / "band.mid"), "--programs", "all", "--notes", "2"]
    assert generate([*options, "--seed", "1", "--output", str(tmp_path / "out.mid")]) == 0
    assert "drum" not in capsys.readouterr().out
    written = pg.read_midi(tmp_path / "out.mid", programs=None, drums=True)
    assert written["is_drum"].sum() >= 8 and {0, 40} <= set(written["program"][~written["is_drum"]].tolist())


def test_labels_leave_out_padding_and_what_is_context():
    rows = [{"input_ids": np.arange(1, 25).reshape(3, 8), "first_label": 1}]
    rows.append({"input_ids": np.array([[5, 6, 7, 0, 0, 0, 0, 0]] * 2), "first_label": 0})
    batch = EventCollator(0)(rows)
    assert batch["input_ids"].shape == (2, 3, 8) and batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert (batch["labels"] != -100).sum((1, 2)).tolist() == [16, 6]


# Published checkpoints ------------------------------------------------------------------------------------------------


@pytest.fixture
def published(tmp_path):
    """A folder as midi-model is published, with random weights in bfloat16 and a buffer of old times."""
    torch.manual_seed(0)
    tokenizer = pg.MidiEventTokenizer("v1", legacy=True)
    model = loosened(tiny_model(pg.MidiEventForCausalLM, len(tokenizer), event_blocks=tokenizer.event_blocks))
    model = model.to(torch.bfloat16)
    weights = {**model.state_dict(), "net.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    folder = tmp_path / "published"
    folder.mkdir()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = {name: getattr(model.config, name)().to_dict() for name in ("net_config", "net_token_config")}
    config |= {"model_type": "midi_model", "n_embd": 32, "tokenizer": {"version": "v1", "optimise_midi": True}}
    (folder / "config.json").write_text(json.dumps(config))
    exact = pg.MidiEventForCausalLM(model.config).eval()
    exact.load_state_dict({name: value.float() for name, value in model.state_dict().items()})
    return folder, exact


@torch.no_grad()
def test_a_published_checkpoint_becomes_a_model_folder(published, tmp_path, capsys):
    folder, model = published
    convert_skytnt(folder, tmp_path / "ours")
    assert "midi-model v1 with optimise_midi" in capsys.readouterr().out
    loaded, tokenizer = load_model(tmp_path / "ours")
    assert (tokenizer.version, tokenizer.optimise_midi, tokenizer.legacy) == ("v1", True, True)
    rows = torch.from_numpy(tokenizer.encode_piece(some_notes()))[None]
    assert torch.equal(loaded(rows).logits, model(rows).logits)
    options = {"max_new_tokens": 5, "do_sample": False}
    assert torch.equal(loaded.generate(rows[:, :4], **options), model.generate(rows[:, :4], **options))
    assert loaded.config.model_type == "midi_event"
    assert (tmp_path / "ours" / "modeling_midi_event.py").is_file()


@torch.no_grad()
def test_a_checkpoint_of_lightning_is_read_without_running_it(published, tmp_path):
    folder, model = published
    torch.save({"epoch": 1, "state_dict": load_file(folder / "model.safetensors")}, folder / "last.ckpt")
    convert_skytnt(folder / "last.ckpt", tmp_path / "ours")
    loaded = pg.MidiEventForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())


def broken(folder, what):
    config = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")
    if what == "no config":
        (folder / "config.json").unlink()
    elif what == "two":
        for number in range(2):
            save_file(weights, folder / f"{number}.safetensors")
        (folder / "model.safetensors").unlink()
    elif what in ("lack", "hold", "do not fit"):
        changed = {"lack": {}, "hold": {"net.extra": torch.ones(1)}, "do not fit": {"net.norm.weight": torch.ones(3)}}
        weights |= changed[what]
        if what == "lack":
            del weights["lm_head.weight"]
        save_file(weights, folder / "model.safetensors")
    else:
        config |= {"tokenizer": {"version": "v9"}} if what == "version" else {"net_config": {"vocab_size": 3239}}
        (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("what", ["no config", "two", "lack", "hold", "do not fit", "version", "sizes"])
def test_what_is_no_published_checkpoint_is_refused_in_one_line(published, tmp_path, what):
    broken(published[0], what)
    with pytest.raises(ArgumentError) as error:
        convert_skytnt(published[0], tmp_path / "ours")
    assert "\n" not in str(error.value) and str(published[0]) in str(error.value)
    assert not (tmp_path / "ours").exists()
