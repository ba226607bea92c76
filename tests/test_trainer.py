"""The trainer against computations written out by hand, and resuming bit by bit."""

import logging
import math

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch.nn.modules.module import _IncompatibleKeys as IncompatibleKeys
from transformers import GPT2Config, GPT2LMHeadModel, TrainerCallback, set_seed

from pianogen_hf.models.configuration_music_transformer import MusicTransformerConfig
from pianogen_hf.models.modeling_music_transformer import MusicTransformerForCausalLM
from pianogen_hf.training.arguments import PianoTrainingArguments
from pianogen_hf.training.callbacks import SampleCallback
from pianogen_hf.training.collator import IGNORED, ChunkCollator
from pianogen_hf.training.trainer import PianoTrainer, token_scores

VOCAB, PAD = 13, 0


def make_model(kind="music_transformer", dropout=0.0):
    set_seed(0)
    ids = {"pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": 2}
    if kind == "gpt2":
        config = GPT2Config(
            vocab_size=VOCAB, n_embd=16, n_layer=1, n_head=2, n_positions=32, attn_pdrop=dropout, resid_pdrop=dropout,
            embd_pdrop=dropout, initializer_range=0.5, **ids,
        )  # fmt: skip
        return GPT2LMHeadModel(config)
    config = MusicTransformerConfig(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_relative_distance=8, max_position_embeddings=32, hidden_dropout=dropout, attention_dropout=dropout,
        initializer_range=0.5, **ids,
    )  # fmt: skip
    return MusicTransformerForCausalLM(config)


def make_rows(count, seed=0, max_first_label=1):
    """Rows of 4 to 12 ids; as in a sliding window, the ids before `first_label` are context."""
    random = np.random.default_rng(seed)
    lengths = random.integers(4, 13, count)
    return [
        {
            "input_ids": random.integers(1, VOCAB, length).tolist(),
            "first_label": int(random.integers(1, max_first_label + 1)),
        }
        for length in lengths
    ]


def make_trainer(folder, model, rows, eval_rows=None, callbacks=(), eval_notes=10, **arguments):
    defaults = {
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 2,
        "max_steps": 1,
        "bf16": False,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
    }
    return PianoTrainer(
        eval_notes=eval_notes,
        model=model,
        args=PianoTrainingArguments(output_dir=str(folder), **{**defaults, **arguments}),
        train_dataset=rows,
        eval_dataset=eval_rows,
        data_collator=ChunkCollator(PAD),
        callbacks=list(callbacks),
    )


def naive_scores(model, rows):
    """Nats and hits of every prediction, one row at a time, without padding."""
    model.eval()
    nats, hits = [], []
    for row in rows:
        ids = torch.tensor(row["input_ids"])
        with torch.no_grad():
            log_probabilities = model(input_ids=ids[None]).logits[0].log_softmax(-1)
        for position in range(row["first_label"], len(ids)):
            scores = log_probabilities[position - 1]
            nats.append(-float(scores[ids[position]]))
            hits.append(int(scores.argmax()) == int(ids[position]))
    return np.array(nats), np.array(hits)


# Metrics --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["music_transformer", "gpt2"])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_metrics_equal_a_naive_computation(tmp_path, kind, batch_size):
    rows = make_rows(31, max_first_label=3)
    model = make_model(kind)
    trainer = make_trainer(tmp_path, model, rows, rows, eval_notes=17, per_device_eval_batch_size=batch_size)
    scores = trainer.evaluate()
    nats, hits = naive_scores(model, rows)
    assert 0 < hits.mean() < 1
    assert scores["eval_nats_per_token"] == pytest.approx(nats.mean(), rel=1e-5)
    assert scores["eval_accuracy"] == pytest.approx(hits.mean())
    assert scores["eval_bits_per_note"] == pytest.approx(nats.sum() / math.log(2) / 17, rel=1e-5)


def test_the_evaluation_loss_is_the_mean_over_tokens_not_over_batches(tmp_path):
    rows = [{"input_ids": [1, 5], "first_label": 1}, {"input_ids": [1, *range(2, 13)], "first_label": 1}]
    model = make_model()
    scores = make_trainer(tmp_path, model, rows, rows, per_device_eval_batch_size=1).evaluate()
    assert scores["eval_loss"] == pytest.approx(naive_scores(model, rows)[0].mean(), rel=1e-5)


def test_evaluation_compiles_nothing(tmp_path):
    compiled = []

    def backend(graph, example_inputs):
        compiled.append(graph)
        return graph.forward

    rows = make_rows(6)
    trainer = make_trainer(tmp_path, make_model(), rows, rows)
    expected = trainer.evaluate()["eval_nats_per_token"]
    trainer.model_wrapped = trainer.model = torch.compile(trainer.model, backend=backend)
    assert trainer.evaluate()["eval_nats_per_token"] == pytest.approx(expected) and not compiled


def test_scores_of_ids_that_do_not_count_are_zero():
    logits = torch.randn(1, 4, VOCAB)
    labels = torch.tensor([[IGNORED, 3, IGNORED, 5]])
    nats, is_right = token_scores((logits, "past_key_values"), labels)
    assert nats.shape == is_right.shape == (1, 3)
    assert nats[0, 1] == 0 and is_right[0, 1] == 0 and (nats[0, [0, 2]] > 0).all()


# Loss -----------------------------------------------------------------------------------------------------------------


def training_loss(trainer, model, rows):
    batch = ChunkCollator(PAD)(rows)
    model.train()
    return float(trainer.compute_loss(model, batch).detach())


@pytest.mark.parametrize("kind", ["music_transformer", "gpt2"])
def test_label_smoothing_is_for_training_only(tmp_path, kind):
    rows, model = make_rows(3), make_model(kind)
    plain = make_trainer(tmp_path, model, rows, rows)
    smooth = make_trainer(tmp_path, model, rows, rows, label_smoothing_factor=0.2)
    nats, _ = naive_scores(model, rows)
    assert training_loss(plain, model, rows) == pytest.approx(nats.mean(), rel=1e-5)
    expected = 0.8 * nats.mean() + 0.2 * uniform_cross_entropy(model, rows)
    assert training_loss(smooth, model, rows) == pytest.approx(expected, rel=1e-5)
    names = ("eval_loss", "eval_nats_per_token", "eval_accuracy", "eval_bits_per_note")
    before, after = plain.evaluate(), smooth.evaluate()
    assert [after[name] for name in names] == [before[name] for name in names]


def uniform_cross_entropy(model, rows):
    """Mean cross-entropy of the uniform distribution over the vocabulary against the predictions."""
    model.eval()
    values = []
    for row in rows:
        with torch.no_grad():
            log_probabilities = model(input_ids=torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
        values += (-log_probabilities[row["first_label"] - 1 : -1].mean(-1)).tolist()
    return np.mean(values)


class KeepGradients(TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients = {name: weight.grad.clone() for name, weight in model.named_parameters()}


@pytest.mark.parametrize("kind", ["music_transformer", "gpt2"])
def test_two_batches_of_two_make_the_same_step_as_one_of_four(tmp_path, kind):
    rows = make_rows(4, seed=3, max_first_label=3)
    results = []
    for batch_size, accumulation in ((4, 1), (2, 2)):
        model, keep = make_model(kind), KeepGradients()
        trainer = make_trainer(
            tmp_path, model, rows, callbacks=[keep], per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation, optim="sgd", learning_rate=0.1,
        )  # fmt: skip
        trainer.train()
        results.append((keep.gradients, model.state_dict()))
    for one, two in zip(*results, strict=True):
        assert max(float(value.abs().max()) for value in one.values()) > 1e-2
        for name in one:
            torch.testing.assert_close(two[name], one[name], rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize("kind", ["music_transformer", "gpt2"])
def test_training_learns_a_sequence_by_heart(tmp_path, kind):
    rows = make_rows(2)
    model = make_model(kind)
    trainer = make_trainer(tmp_path, model, rows, rows, max_steps=60, learning_rate=3e-2, logging_steps=60)
    before = trainer.evaluate()["eval_nats_per_token"]
    trainer.train()
    assert trainer.evaluate()["eval_nats_per_token"] < 0.1 * before


# Schedules ------------------------------------------------------------------------------------------------------------


def logged_rates(tmp_path, **arguments):
    trainer = make_trainer(tmp_path, make_model(), make_rows(16), max_steps=8, learning_rate=1.0, **arguments)
    trainer.train()
    return [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]


def test_inverse_sqrt_rises_linearly_and_falls_with_the_root_of_the_step(tmp_path):
    rates = logged_rates(tmp_path, lr_scheduler_type="inverse_sqrt", warmup_steps=2)
    assert rates[:3] == [0.0, 0.5, 1.0]
    assert rates[3:] == pytest.approx([math.sqrt(2 / step) for step in range(3, 8)])


def test_cosine_falls_to_zero(tmp_path):
    rates = logged_rates(tmp_path, lr_scheduler_type="cosine", warmup_steps=0)
    assert rates == pytest.approx([(1 + math.cos(math.pi * step / 8)) / 2 for step in range(8)])


# Resuming -------------------------------------------------------------------------------------------------------------


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step


def draw(model, path):
    """What drawing a sample does to the generators of random numbers, and more."""
    torch.manual_seed(5)
    model.generate(torch.tensor([[1]]), do_sample=True, max_new_tokens=4, pad_token_id=PAD)


@pytest.mark.parametrize(
    ("kind", "num_rows", "accumulation"), [("music_transformer", 20, 1), ("gpt2", 8, 1), ("music_transformer", 8, 2)]
)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_by_bit(tmp_path, kind, num_rows, accumulation):
    """3 steps + resume = 6 steps, in the middle of an epoch and over its end, with dropout and samples in between."""

    def train(folder, callbacks, resume=None):
        trainer = make_trainer(
            folder, make_model(kind, dropout=0.3), make_rows(num_rows), make_rows(3, seed=1), callbacks, max_steps=6,
            gradient_accumulation_steps=accumulation, save_strategy="steps", save_steps=3, learning_rate=1e-2,
            eval_strategy="steps", eval_steps=2, lr_scheduler_type="cosine",
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    train(tmp_path / "straight", [])
    train(tmp_path / "halted", [SampleCallback(draw, 2), StopAt(3)])
    assert not (tmp_path / "halted" / "checkpoint-6").exists()
    set_seed(99)  # a new process begins with other random numbers
    train(tmp_path / "halted", [SampleCallback(draw, 5)], resume=str(tmp_path / "halted" / "checkpoint-3"))

    one, two = tmp_path / "straight" / "checkpoint-6", tmp_path / "halted" / "checkpoint-6"
    weights = load_file(one / "model.safetensors"), load_file(two / "model.safetensors")
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    start = make_model(kind).state_dict()
    assert any(not torch.equal(start[name], weight) for name, weight in weights[0].items())
    for file in ("optimizer.pt", "scheduler.pt"):
        states = [torch.load(folder / file, weights_only=True) for folder in (one, two)]
        assert flat(states[0]) == flat(states[1])


def flat(value):
    """A nested state as plain values that compare bit by bit."""
    if isinstance(value, dict):
        return {key: flat(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [flat(item) for item in value]
    return value.numpy().tobytes() if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize("kind", ["music_transformer", "gpt2"])
def test_a_weight_that_is_stored_once_is_not_called_missing_and_one_that_is_gone_is(kind, tmp_path):
    rows = make_rows(8)
    make_trainer(tmp_path, make_model(kind), rows, max_steps=1, save_strategy="steps", save_steps=1).train()
    trainer = make_trainer(tmp_path, make_model(kind), rows, max_steps=2)
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    transformers.logging.set_verbosity_warning()  # commands of other tests ask for silence
    log = logging.getLogger("transformers.trainer")
    log.addHandler(handler)
    try:
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
        assert not [each for each in said if "missing" in each]
        trainer._issue_warnings_after_load(IncompatibleKeys(["lm_head.weight", "gone.weight"], []))
        assert [each for each in said if "gone.weight" in each and "lm_head" not in each]
    finally:
        log.removeHandler(handler)
