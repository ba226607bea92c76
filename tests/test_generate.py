"""The generate command: files it writes, and one line of error for whatever a user can get wrong."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from models_and_tokenizers import tiny_model
from tqdm import tqdm
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.utils import logging

import pianogen_hf as pg
from pianogen_hf.commands.generate import main
from pianogen_hf.workflows.generate import _say_what_was_left_out
from pianogen_hf.workflows.prompt import read_prompt

HAS_AUDIO = all(importlib.util.find_spec(name) for name in ("midirenderer", "pretty_midi"))


@pytest.fixture(autouse=True)
def offline_and_as_before(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    verbosity = logging.get_verbosity()
    yield
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    tokenizer = pg.PerformanceTokenizer()
    config = pg.MusicTransformerConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=128,
        max_relative_distance=16,
    )
    folder = tmp_path_factory.mktemp("model")
    pg.MusicTransformerForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def prompt(tmp_path: Path) -> Path:
    onset = 240 * np.arange(12)
    notes = pg.Notes.from_columns(480, onset_tick=onset, duration_tick=[240] * 12, pitch=60 + np.arange(12))
    path = tmp_path / "prompts" / "mein Prompt ü.mid"
    pg.write_midi(notes, path)
    return path


def run(*argv: object) -> int:
    return main([str(each) for each in argv])


def written(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_continuation_is_the_prompt_and_the_wanted_notes(model_dir, prompt, tmp_path, capfd):
    assert run("--model", model_dir, "--prompt", prompt, "--notes", 9, "--output", tmp_path / "new/out.mid") == 0
    result, given = pg.read_midi(tmp_path / "new/out.mid"), pg.read_midi(prompt)
    assert len(result) == len(given) + 9
    assert result.where(result["onset_tick"] < given.end_tick).table.tolist() == given.table.tolist()
    out, err = capfd.readouterr()
    assert out.count("\n") == 1 and "new/out.mid: 9 new notes in " in out
    assert "Loading" not in err


def test_the_bar_rises_to_all_of_it(model_dir, monkeypatch):
    shares: list[float] = []

    class Bar(tqdm):
        def update(self, n=1):
            super().update(n)
            shares.append(self.n)

    monkeypatch.setattr("pianogen_hf.workflows.generate.tqdm", Bar)
    assert run("--model", model_dir, "--seconds", 8, "--num_samples", 3) == 0
    assert shares == sorted(shares) and shares[-1] == pytest.approx(100) and len(set(shares)) > 2


def test_files_beside_the_midi_file(model_dir, tmp_path, prompt):
    options = ["--png", *(["--wav"] if HAS_AUDIO else [])]
    assert (
        run("--model", model_dir, "--prompt", prompt, "--seconds", 2, "--output", tmp_path / "a.b.mid", *options) == 0
    )
    names = {"a.b.mid", "a.b.png", "prompts/mein Prompt ü.mid"} | ({"a.b.wav"} if HAS_AUDIO else set())
    assert written(tmp_path) == names
    assert (tmp_path / "a.b.png").read_bytes().startswith(b"\x89PNG")
    if HAS_AUDIO:
        assert (tmp_path / "a.b.wav").read_bytes()[:4] == b"RIFF"
    assert pg.read_midi(tmp_path / "a.b.mid").end_sec <= pg.read_midi(prompt).end_sec + 2 + 1e-3


def test_several_samples_have_numbers_and_differ(model_dir, tmp_path):
    assert run("--model", model_dir, "--notes", 6, "--num_samples", 3, "--output", "out.midi") == 0
    assert written(tmp_path) == {"out-1.midi", "out-2.midi", "out-3.midi"}
    music = [pg.read_midi(tmp_path / f"out-{number}.midi") for number in (1, 2, 3)]
    assert [len(notes) for notes in music] == [6, 6, 6]
    assert len({str(notes.table.tolist()) for notes in music}) == 3


def test_the_seed_decides(model_dir, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert run("--model", model_dir, "--notes", 12, "--seed", seed, "--output", name) == 0
    a, b, c = ((tmp_path / f"{name}.mid").read_bytes() for name in "abc")
    assert a == b != c


def test_beams_and_sampling_options_are_taken(model_dir, tmp_path):
    assert run("--model", model_dir, "--notes", 5, "--num_beams", 3, "--num_samples", 2) == 0
    own = [
        "--creativity",
        0.3,
        "--top_k_offset",
        2,
        "--min_p",
        0.05,
        "--top_k_notes",
        9,
        "--temperature_of",
        "pitch=0.9",
    ]
    assert run("--model", model_dir, "--notes", 5, *own) == 0
    assert run("--model", model_dir, "--notes", 5, "--mask_k", 1, "--typical_p", 0.9) == 0
    assert run("--model", model_dir, "--notes", 5, "--greedy") == 0
    assert run("--model", model_dir, "--notes", 9, "--key", "C", "--register", 60, "--pitches", 50, 70) == 0
    pitches = set(pg.read_midi(tmp_path / "out.mid")["pitch"].tolist())
    assert {each % 12 for each in pitches} <= {0, 2, 4, 5, 7, 9, 11} and min(pitches) >= 50 and max(pitches) <= 70
    assert run("--model", model_dir, "--bars", 1, "--temperature", 0.7, "--top_p", 0.9, "--top_k", 20, "--bpm", 60) == 0
    assert written(tmp_path) == {"out-1.mid", "out-2.mid", "out.mid"}
    assert pg.read_midi(tmp_path / "out.mid").end_sec <= 4.0 + 1e-3
    assert pg.read_midi(tmp_path / "out.mid").tempos["us_per_quarter"].tolist() == [1_000_000]


def test_other_instruments_of_the_prompt_are_read_when_asked(model_dir, tmp_path, prompt, capfd):
    notes = pg.read_midi(prompt)
    notes.table["program"] = 40
    pg.write_midi(notes, tmp_path / "violin.mid")
    assert run("--model", model_dir, "--prompt", "violin.mid", "--notes", 3) == 2
    assert "only other instruments (12 notes)" in capfd.readouterr().err
    assert run("--model", model_dir, "--prompt", "violin.mid", "--notes", 3, "--programs", "all") == 0
    assert len(pg.read_midi(tmp_path / "out.mid", programs=None)) == 15


def test_a_long_prompt_is_said_to_be_windowed(model_dir, tmp_path, capfd):
    onset = 120 * np.arange(100)
    notes = pg.Notes.from_columns(480, onset_tick=onset, duration_tick=[100] * 100, pitch=40 + np.arange(100) % 40)
    pg.write_midi(notes, tmp_path / "long.mid")
    assert run("--model", model_dir, "--prompt", "long.mid", "--notes", 3) == 0
    assert "the model hears the last 64 of them" in "".join(capfd.readouterr())


def test_help_says_what_there_is(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for option in (
        "--model",
        "--prompt",
        "--seconds",
        "--notes",
        "--bars",
        "--num_samples",
        "--seed",
        "--num_beams",
        "--fill_bars",
    ):
        assert option in text


@pytest.fixture(scope="module")
def other_models(tmp_path_factory):
    """A model of continuous notes and a masked one."""
    folder, tokenizer = tmp_path_factory.mktemp("others"), pg.RemiTokenizer()
    tiny_model(pg.ContinuousNotesForCausalLM, 130).save_pretrained(folder / "notes")
    pg.ContinuousNotesFeatureExtractor().save_pretrained(folder / "notes")
    tiny_model(pg.PianoEncoderForMaskedLM, len(tokenizer), is_causal=False).save_pretrained(folder / "masked")
    tokenizer.save_pretrained(folder / "masked")
    return folder


@pytest.mark.parametrize("kind", ["notes", "masked"])
def test_other_kinds_of_models_generate_like_any_other(other_models, prompt, tmp_path, kind):
    options = ["--model", other_models / kind, "--prompt", prompt, "--notes", 5, "--output", tmp_path / "out", "--png"]
    assert run(*options) == 0
    result, given = pg.read_midi(tmp_path / "out.mid"), pg.read_midi(prompt)
    assert len(result) == len(given) + 5
    assert result.where(result["onset_tick"] < given.end_tick).table.tolist() == given.table.tolist()


def test_a_gap_of_the_prompt_is_filled_and_the_rest_kept(other_models, prompt, tmp_path, capfd):
    options = ["--fill", 1, 2, "--output", tmp_path / "out"]
    assert run("--model", other_models / "masked", "--prompt", prompt, *options) == 0
    result, given = pg.read_midi(tmp_path / "out.mid"), pg.read_midi(prompt)
    kept = (given.onset_sec < 1) | (given.onset_sec >= 2)
    rows = result.table.tolist()
    assert all(row in rows for row in given.table[kept].tolist()) and len(rows) > kept.sum()
    assert "new notes in" in capfd.readouterr().out


# Errors --------------------------------------------------------------------------------------------------------------


def assert_refused(capfd: pytest.CaptureFixture, folder: Path, argv: list[object], message: str) -> None:
    """Exit code 2, one line on stderr, nothing on stdout, no file touched."""
    before = written(folder)
    assert run(*argv) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and message in err, err
    assert written(folder) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--notes", 0], "more than 0"),
        (["--seconds", -3], "--seconds must be more than 0, got -3"),
        (["--notes", 0], "--notes must be more than 0, got 0"),
        (["--bars", "inf"], "--bars must be more than 0, got inf"),
        (["--seconds", "nan"], "more than 0"),
        (["--bars", "inf"], "more than 0"),
        (["--seconds", "1e12"], "longer than a MIDI file"),
        (["--seconds", 3, "--notes", 3], "not allowed with"),
        (["--seconds", "long"], "invalid float value"),
        (["--notes", "3.5"], "invalid int value"),
        (["--fill", 1, 2], "--fill needs the music that has the gap"),
        (["--fill_bars", 1, 2], "--fill_bars needs the music that has the gap"),
        (["--vary", 0.5], "--vary needs the music that is varied"),
        (["--harmonise"], "--harmonise needs the music that is harmonised"),
        (["--chords", "prompt"], "--chords prompt needs music"),
        (["--no_repeat_notes", 4], "no_repeat_ngram_size"),
        (["--chords", "C | G"], "note transformer"),
        (["--density", 3], "note transformer"),
        (["--key", "C", "--guidance_scale", 3], "note transformer"),
        (["--register", 5], "no pitch"),
        (["--from_bar", 2], "--from_bar needs music to begin in"),
        (["--harmonise", "--prompt", "prompt.mid"], "chorale model"),
        (["--fill", 1, 2, "--prompt", "prompt.mid"], "is_causal false"),
        (["--fill", 1, 2, "--seconds", 3], "not allowed with"),
        (["--num_samples", 0], "--num_samples must be at least 1"),
        (["--num_beams", 0], "--num_beams must be at least 1"),
        (["--num_beams", 2, "--num_samples", 3], "at most as many samples as beams"),
        (["--temperature", 0], "--temperature must be more than 0"),
        (["--temperature", "nan"], "--temperature must be"),
        (["--temperature", "inf"], "--temperature must be"),
        (["--top_p", 0], "--top_p must be"),
        (["--top_p", 1.1], "--top_p must be"),
        (["--top_k", -1], "--top_k must be"),
        (["--seed", -1], "--seed must be"),
        (["--seed", 10**30], "--seed must be"),
        (["--bpm", 0], "--bpm must lie"),
        (["--prgoram", "all"], "unrecognized arguments: --prgoram"),
        (["--programs", "drums"], "invalid choice"),
        (["--output", ""], "is no file name"),
        (["--output", "text.txt/out.mid"], "can't be written"),
        (["--output", "folder.mid"], "can't be written"),
        (["--output", "prompt.mid", "--prompt", "prompt.mid"], "would overwrite the prompt"),
        (["--prompt", "missing.mid"], "No such file"),
        (["--prompt", "text.txt"], "not a MIDI file"),
        (["--prompt", "folder.mid"], "folder.mid"),
        (["--prompt", "silent.mid"], "silent.mid has no notes: give a prompt with notes"),
        (["--prompt", "drums.mid"], "drums.mid has only drums (1 notes): give a prompt with notes of a piano"),
        (["--prompt", "drums.mid", "--programs", "all"], "drums.mid has only drums (1 notes): give a prompt"),
        (
            ["--prompt", "flute.mid"],
            "flute.mid has only other instruments (1 notes): give a prompt with piano notes, or",
        ),
        (["--prompt", "low.mid"], "no notes that PerformanceTokenizer can write (pitches 21..108)"),
    ],
)
def test_what_a_user_gets_wrong_is_one_line(model_dir, prompt, tmp_path, capfd, options, message):
    (tmp_path / "text.txt").write_text("some text")
    (tmp_path / "folder.mid").mkdir()
    shutil.copy(prompt, tmp_path / "prompt.mid")
    pg.write_midi(pg.Notes.from_columns(480, onset_tick=[], duration_tick=[], pitch=[]), tmp_path / "silent.mid")
    pg.write_midi(pg.Notes.from_columns(480, onset_tick=[0], duration_tick=[9], pitch=[3]), tmp_path / "low.mid")
    for name, settings in (("drums", {"is_drum": True}), ("flute", {"program": 73})):
        pg.write_midi(
            pg.Notes.from_columns(480, onset_tick=[0], duration_tick=[9], pitch=[60], **settings),
            tmp_path / f"{name}.mid",
        )
    assert_refused(capfd, tmp_path, ["--model", model_dir, *options], message)


def test_one_line_says_what_of_a_prompt_was_left_out(tmp_path, capsys):
    parts = pg.Notes.from_columns(
        480, onset_tick=[0, 0, 0], duration_tick=[9] * 3, pitch=[60, 62, 64], program=[0, 40, 0], is_drum=[0, 0, 1]
    )
    parts.table["track"] = parts.table["channel"] = [0, 1, 2]
    pg.write_midi(parts, tmp_path / "rich.mid")
    prompt = str(tmp_path / "rich.mid")
    notes = read_prompt(prompt, "piano")
    assert len(notes) == 1
    _say_what_was_left_out(prompt, notes)
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "1 notes taken" in said
    assert "1 notes of other instruments" in said and "1 drum notes" in said


def without(name: str):
    return lambda folder: (folder / name).unlink()


def only_a_pickle(folder: Path) -> None:
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(folder / "unpickled"),)

    (folder / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Trap()}, folder / "pytorch_model.bin")


def replaced(name: str, old: str, new: str):
    return lambda folder: (folder / name).write_text((folder / name).read_text().replace(old, new))


BROKEN_MODELS = {
    "no weights": (without("model.safetensors"), "model.safetensors"),
    "no config": (without("config.json"), "holds no model (no config.json)"),
    "only a pickle": (only_a_pickle, "model.safetensors"),
    "no JSON": (lambda folder: (folder / "config.json").write_text("{"), "can't be opened as a model"),
    "cut weights": (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 40), "can't be opened as a model"),
    "other sizes": (replaced("config.json", '"hidden_size": 16', '"hidden_size": 32'), "do not fit its config.json"),
    "more layers": (replaced("config.json", '"num_hidden_layers": 1', '"num_hidden_layers": 2'), "lacks weights"),
    "unknown type": (replaced("config.json", "music_transformer", "music_transducer"), "is not run here"),
}


@pytest.mark.parametrize("what", BROKEN_MODELS)
def test_a_model_folder_that_is_none_is_one_line_and_never_unpickled(model_dir, tmp_path, capfd, what):
    breaks, message = BROKEN_MODELS[what]
    folder = tmp_path / "broken"
    shutil.copytree(model_dir, folder)
    breaks(folder)
    assert_refused(capfd, tmp_path, ["--model", folder, "--notes", 3], message)
    assert not (folder / "unpickled").exists()


def test_a_model_that_is_nowhere_is_one_line(tmp_path, capfd):
    for name in ("no-such-user/no-such-model", "no/such/path", "../nowhere"):
        assert_refused(capfd, tmp_path, ["--model", name, "--notes", 3], f"no model {name!r}")


def test_a_model_of_fewer_ids_than_its_tokenizer_is_refused(tmp_path, capfd):
    GPT2LMHeadModel(GPT2Config(vocab_size=99, n_embd=16, n_layer=1, n_head=2, n_positions=64)).save_pretrained("gpt2")
    pg.PerformanceTokenizer().save_pretrained("gpt2")
    capfd.readouterr()
    assert_refused(capfd, tmp_path, ["--model", "gpt2", "--notes", 3], "99 outputs for 311 ids")


def test_stock_models_with_a_tokenizer_of_music_generate(tmp_path):
    sizes = {"vocab_size": 311, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64}
    GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=1, eos_token_id=2)).save_pretrained("gpt2")
    pg.PerformanceTokenizer().save_pretrained("gpt2")
    assert run("--model", "gpt2", "--notes", 3) == 0 and len(pg.read_midi(tmp_path / "out.mid")) == 3


def test_sound_without_its_packages_is_refused_before_any_work(model_dir, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("pianogen_hf.commands.generate.find_spec", lambda name: None)
    assert_refused(capfd, tmp_path, ["--model", model_dir, "--notes", 3, "--wav"], 'pip install "pianogen_hf[audio]"')


def test_an_interrupt_writes_nothing(model_dir, tmp_path, capfd, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("pianogen_hf.workflows.generate.continue_notes", interrupted)
    assert run("--model", model_dir, "--notes", 3) == 130
    assert "nothing was written" in capfd.readouterr().err and written(tmp_path) == set()
