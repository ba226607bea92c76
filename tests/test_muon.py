"""Muon with AdamW: which parameter goes where, and that both do what torch's own do, also after a resume."""

from __future__ import annotations

import copy

import pytest
import torch
from models_and_tokenizers import ALL_CAUSAL_MODELS, MASKED_MODELS, tiny_model
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, get_scheduler

import pianogen_hf as pg
from pianogen_hf.training import muon
from pianogen_hf.training.arguments import PianoTrainingArguments
from pianogen_hf.training.muon import MuonWithAdamW, make_muon
from pianogen_hf.training.trainer import PianoTrainer

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # torch's
SIZES = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
STOCK = [GPT2Config(**SIZES), LlamaConfig(**SIZES, intermediate_size=48)]


def make_model(kind) -> nn.Module:
    torch.manual_seed(0)
    if not isinstance(kind, type):
        return AutoModelForCausalLM.from_config(kind)
    return tiny_model(kind, 130, **({"is_causal": False} if kind in MASKED_MODELS else {}))


def names_of(model, optimizer, is_muon: bool) -> set[str]:
    chosen = {id(each) for group in optimizer.param_groups if group["is_muon"] is is_muon for each in group["params"]}
    return {name for name, each in model.named_parameters() if id(each) in chosen}


@pytest.mark.parametrize("kind", [*ALL_CAUSAL_MODELS, *MASKED_MODELS, *STOCK], ids=lambda each: str(each)[:60])
def test_matrices_of_hidden_layers_are_muons_and_all_else_is_adams(kind):
    model = make_model(kind)
    optimizer = make_muon(model, lr=0.02, adam_lr=0.004)
    matrices, adam = names_of(model, optimizer, True), names_of(model, optimizer, False)
    assert matrices | adam == {name for name, _ in model.named_parameters()} and not matrices & adam
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(matrices | adam)
    parameters = dict(model.named_parameters())
    assert matrices and all(parameters[name].ndim == 2 and name.endswith("weight") for name in matrices)
    words = ("embed", "wte", "wpe", "bias", "norm", "ln_", "lm_head", "_head.fc2")
    assert not [name for name in matrices if any(word in name for word in words)]
    layers = [name for name in adam if parameters[name].ndim == 2 and ".layers." in name + ".h."]
    assert not [name for name in layers if not any(word in name for word in (*words, "relative"))]


def test_what_is_frozen_is_left_out():
    model = make_model(pg.NoteTransformerForCausalLM)
    model.model.requires_grad_(False)
    optimizer = make_muon(model, lr=0.02, adam_lr=0.004)
    assert all(name.startswith("heads.") for is_muon in (True, False) for name in names_of(model, optimizer, is_muon))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.fc, self.value_head = nn.Embedding(7, 6), nn.Linear(6, 9), nn.Module()
        self.value_head.fc2 = nn.Linear(9, 5)

    def forward(self, ids):
        return self.value_head.fc2(self.fc(self.embed(ids)).tanh())


def steps(net, optimizers, number, schedulers=(), first=0):
    for step in range(first, first + number):
        ids = torch.randint(7, (4,), generator=torch.Generator().manual_seed(step))
        net(ids).logsumexp(-1).sum().backward()
        for each in (*optimizers, *schedulers):
            each.step()
        for each in optimizers:
            each.zero_grad()
    return list(net.parameters())


def build(net, **settings):
    matrices, others = [net.fc.weight], [net.embed.weight, net.fc.bias, *net.value_head.parameters()]
    return MuonWithAdamW(matrices, others, **{"lr": 0.02, "adam_lr": 0.004, "weight_decay": 0.1, **settings})


@pytest.fixture
def torchs_precision(monkeypatch):
    """bfloat16, as torch's own Muon has it on every machine."""
    monkeypatch.setattr(muon, "has_fast_bf16", lambda device: True)


@pytest.mark.usefixtures("torchs_precision")
def test_both_do_what_torchs_own_do():
    one, two = Net(), Net()
    own = [
        torch.optim.Muon([two.fc.weight], lr=0.02, weight_decay=0.1, momentum=0.95),
        torch.optim.AdamW(
            [two.embed.weight, two.fc.bias, *two.value_head.parameters()], lr=0.004, weight_decay=0.1, betas=(0.9, 0.95)
        ),
    ]
    before = [each.clone() for each in Net().parameters()]
    for ours, theirs, first in zip(steps(one, [build(one)], 5), steps(two, own, 5), before, strict=True):
        assert torch.equal(ours, theirs) and not torch.equal(ours, first)


@pytest.mark.parametrize("shape", [(24, 60), (60, 24), (32, 32)])
def test_directions_keep_the_singular_vectors_and_have_singular_values_near_one(shape, monkeypatch):
    monkeypatch.setattr(muon, "has_fast_bf16", lambda device: False)
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    made = muon.orthogonalized(matrix, COEFFICIENTS, 5)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    inside = left.T @ made @ right.T
    assert made.dtype == torch.float32
    assert torch.allclose(inside, inside.diagonal().diag(), atol=1e-4)
    assert inside.diagonal()[values > values.max() / 20].sub(1).abs().max() < 0.35


def test_a_cpu_without_instructions_for_bf16_takes_its_steps_in_float32(monkeypatch):
    for has_avx, has_amx in ((True, False), (False, True), (False, False)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda value=has_avx: value)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda value=has_amx: value)
        assert muon.has_fast_bf16("cpu") is (has_avx or has_amx)
        made = muon.orthogonalized(torch.eye(3), COEFFICIENTS, 5)
        assert made.dtype == (torch.bfloat16 if has_avx or has_amx else torch.float32)


def test_making_it_of_a_model_chooses_as_by_hand():
    one, two = Net(), Net()
    assert all(
        torch.equal(*pair)
        for pair in zip(
            steps(one, [make_muon(one, lr=0.02, adam_lr=0.004, weight_decay=0.1)], 3),
            steps(two, [build(two)], 3),
            strict=True,
        )
    )


def test_a_state_that_was_saved_goes_on_as_if_nothing_had_happened(tmp_path):
    one, two = Net(), Net()
    first, second = build(one), build(two, lr=9.0, adam_lr=9.0)
    steps(one, [first], 3)
    torch.save(first.state_dict(), tmp_path / "optimizer.pt")
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    second.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    assert [group["lr"] for group in second.param_groups] == [0.02, 0.004]
    for ours, theirs in zip(steps(one, [first], 3, first=3), steps(two, [second], 3, first=3), strict=True):
        assert torch.equal(ours, theirs)


def test_one_schedule_serves_both():
    net = Net()
    optimizer = build(net)
    scheduler = get_scheduler("linear", optimizer, 0, 4)
    steps(net, [optimizer], 2, [scheduler])
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.01, 0.002])
    still = [each.clone() for each in steps(net, [optimizer], 2, [scheduler], first=2)]
    assert all(torch.equal(*pair) for pair in zip(steps(net, [optimizer], 1, first=4), still, strict=True))


def test_a_closure_is_called_with_gradients():
    net = Net()
    optimizer = build(net)

    def closure():
        loss = net(torch.arange(4)).sum()
        loss.backward()
        return float(loss)

    assert isinstance(optimizer.step(closure), float) and net.fc.weight.grad is not None


# As the Trainer makes it ----------------------------------------------------------------------------------------------


def make_trainer(folder, **settings) -> PianoTrainer:
    options = {"use_cpu": True, "bf16": False, "report_to": "none", "learning_rate": 0.02, "optim": "muon", **settings}
    args = PianoTrainingArguments(output_dir=str(folder), **options)
    return PianoTrainer(eval_notes=1, model=tiny_model(pg.MusicTransformerForCausalLM), args=args)


@pytest.mark.parametrize(("adam", "expected"), [(None, 0.004), (0.001, 0.001), (0.0, 0.0)])
def test_adams_learning_rate_is_a_fifth_unless_it_is_said(tmp_path, adam, expected):
    optimizer = make_trainer(tmp_path, adam_learning_rate=adam, weight_decay=0.3).create_optimizer()
    assert [group["lr"] for group in optimizer.param_groups] == [0.02, pytest.approx(expected)]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.3]


def test_other_optimizers_stay_what_they_were(tmp_path):
    assert type(make_trainer(tmp_path, optim="adamw_torch").create_optimizer()) is torch.optim.AdamW


def test_the_learning_rate_falls_over_its_share_of_the_steps(tmp_path):
    trainer = make_trainer(tmp_path, decay_share=0.4, warmup_steps=2)
    optimizer = trainer.create_optimizer()
    scheduler, rates = trainer.create_scheduler(10, optimizer), []
    for _ in range(11):
        rates.append(optimizer.param_groups[0]["lr"] / 0.02)
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([0, 0.5, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0])
