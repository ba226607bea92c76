"""What an earlier version saved loads, writes the same tokens, and resumes (`saved_run/`: 0.1.0 before its floors)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from models_and_tokenizers import some_notes

import pianogen_hf as pg
from pianogen_hf.commands import main
from pianogen_hf.training.muon import has_fast_bf16
from pianogen_hf.workflows.loading import load_model

SAVED = Path(__file__).parent / "saved_run"
# Greedy, from nothing; taken down when that version had just saved them.
BUNDLED_TOKENS = [1, *[36, 31, 28, 24] * 6]
# Of the steps that that version went on with, by whether it computed in bfloat16, as it does where that is fast.
LOSSES = {
    True: {3: 3.471576690673828, 4: 3.4245400428771973},
    False: {3: 3.47098445892334, 4: 3.4247348308563232},
}


@pytest.mark.parametrize(("folder", "tokens"), [(pg.BACH_MODEL, BUNDLED_TOKENS), (SAVED / "checkpoint-2", [1] * 25)])
def test_it_writes_the_same_tokens(folder, tokens):
    model, tokenizer = load_model(folder)
    start = torch.tensor([[tokenizer.bos_token_id]], device=model.device)
    assert model.generate(start, max_new_tokens=24, do_sample=False)[0].tolist() == tokens


def test_it_goes_on_where_that_version_would_have_gone_on(tmp_path, monkeypatch, capsys):
    for seed in range(12):
        pg.write_midi(some_notes(seed), tmp_path / "music" / f"{seed:02d}.mid")
    shutil.copytree(SAVED, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    options = ["--source", "folder=music", "--cache_dir", "cache", "--output_dir", "run"]
    assert main(["train", "run/recipe.yaml", *options, "--resume_from_checkpoint", "true"]) == 0
    assert "the data are not those" not in capsys.readouterr().out
    state = json.loads((tmp_path / "run/checkpoint-4/trainer_state.json").read_text())
    expected = LOSSES[has_fast_bf16("cuda" if torch.cuda.is_available() else "cpu")]
    losses = {row["step"]: row["loss"] for row in state["log_history"] if row["step"] in expected and "loss" in row}
    assert losses == pytest.approx(expected, abs=1e-4)
    provenance = json.loads((tmp_path / "run/provenance.json").read_text())
    assert len(provenance["runs"]) == 1, "the same run goes on"
