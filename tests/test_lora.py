"""LoRA by peft on SkyTNT's model: only the adapter learns; it is saved, loaded, merged, and converted as published."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("peft")

import peft
import torch
from models_and_tokenizers import loosened, some_notes, tiny_model
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainingArguments

import pianogen_hf as pg
from pianogen_hf.commands.convert import main
from pianogen_hf.training.collator import EventCollator

TOKENIZER = pg.MidiEventTokenizer()
LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CONFIG = {"r": 4, "lora_alpha": 8, "target_modules": LAYERS, "task_type": "CAUSAL_LM"}
ROWS = torch.from_numpy(TOKENIZER.encode_piece(some_notes()))[None]


def base_model():
    torch.manual_seed(0)
    return loosened(tiny_model(pg.MidiEventForCausalLM, len(TOKENIZER), event_blocks=TOKENIZER.event_blocks))


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=ROWS).logits


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """An adapter after three steps, with what it was made of."""
    model = peft.get_peft_model(base_model(), peft.LoraConfig(**CONFIG))
    before = {name: value.clone() for name, value in model.named_parameters()}
    pieces = [{"input_ids": TOKENIZER.encode_piece(some_notes(seed)), "first_label": 1} for seed in range(4)]
    folder = tmp_path_factory.mktemp("lora")
    options = {"max_steps": 3, "learning_rate": 0.05, "per_device_train_batch_size": 2, "report_to": "none"}
    arguments = TrainingArguments(
        str(folder / "run"), use_cpu=True, remove_unused_columns=False, disable_tqdm=True, save_strategy="no", **options
    )
    Trainer(model, arguments, EventCollator(0), train_dataset=pieces).train()
    model.save_pretrained(folder / "adapter")
    return model, before, folder / "adapter"


def test_only_the_adapter_learns(trained):
    model, before, _ = trained
    changed = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if "lora_" in name} and len(changed) == 2 * 7 * 3


def test_the_adapter_alone_is_saved_and_loads_onto_the_model(trained):
    model, _, folder = trained
    assert all("lora_" in name for name in load_file(folder / "adapter_model.safetensors"))
    loaded = peft.PeftModel.from_pretrained(base_model(), folder)
    torch.testing.assert_close(logits(loaded), logits(model))
    assert not torch.allclose(logits(loaded), logits(base_model()), atol=1e-3)
    options = {"max_new_tokens": 8, "seed": 1}
    assert torch.equal(loaded.generate(input_ids=ROWS, **options), model.generate(input_ids=ROWS, **options))


def test_merged_it_is_a_model_like_others(trained, tmp_path):
    model, _, folder = trained
    merged = peft.PeftModel.from_pretrained(base_model(), folder).merge_and_unload()
    merged.save_pretrained(tmp_path)
    loaded = pg.MidiEventForCausalLM.from_pretrained(tmp_path)
    assert isinstance(merged, pg.MidiEventForCausalLM)
    torch.testing.assert_close(logits(loaded), logits(model), atol=1e-4, rtol=1e-4)


def published(folder):
    """The base model as SkyTNT publishes one."""
    folder.mkdir()
    model = base_model()
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    config = {name: getattr(model.config, name)().to_dict() for name in ("net_config", "net_token_config")}
    config |= {"model_type": "midi_model", "n_embd": 32, "tokenizer": {"version": "v2", "optimise_midi": False}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("names", ["peft's", "the original's"])
def test_a_published_adapter_is_merged_by_the_converter(trained, tmp_path, names, capsys):
    model, _, adapter = trained
    weights = load_file(adapter / "adapter_model.safetensors")
    if names == "the original's":
        weights = {name.removeprefix("base_model.model."): value for name, value in weights.items()}
    (tmp_path / "adapter").mkdir()
    save_file(weights, tmp_path / "adapter" / "adapter_model.safetensors")
    (tmp_path / "adapter" / "adapter_config.json").write_text((adapter / "adapter_config.json").read_text())
    arguments = [str(published(tmp_path / "in")), str(tmp_path / "out"), "--lora", str(tmp_path / "adapter")]
    assert main(["skytnt", *arguments]) == 0
    assert "with the adapter" in capsys.readouterr().out
    loaded = pg.MidiEventForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(loaded), logits(model), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("what", ["nothing", "other sizes", "less", "another system"])
def test_what_is_no_adapter_is_refused_in_one_line(trained, tmp_path, capsys, what):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    weights = load_file(trained[2] / "adapter_model.safetensors")
    if what != "nothing":
        (adapter / "adapter_config.json").write_text((trained[2] / "adapter_config.json").read_text())
        first = min(weights)
        kept = {name: value[:, :3] if what == "other sizes" else value for name, value in weights.items()}
        if what == "less":
            del kept[first]
        save_file({name: value.contiguous() for name, value in kept.items()}, adapter / "adapter_model.safetensors")
    system = "mmt" if what == "another system" else "skytnt"
    assert main([system, str(published(tmp_path / "in")), str(tmp_path / "out"), "--lora", str(adapter)]) == 2
    error = capsys.readouterr().err.splitlines()
    assert len([line for line in error if line.startswith("error: ")]) == 1 and not (tmp_path / "out").exists()
