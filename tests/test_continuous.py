"""The trainer of continuous notes against computations written out by hand."""

import math

import numpy as np
import pytest
import torch
from transformers import set_seed

from pianogen_hf.models.configuration_continuous_notes import ContinuousNotesConfig
from pianogen_hf.models.modeling_continuous_notes import ContinuousNotesForCausalLM
from pianogen_hf.training.arguments import PianoTrainingArguments
from pianogen_hf.training.collator import RowCollator
from pianogen_hf.training.continuous import ContinuousNotesTrainer, row_scores

END = 129


def make_rows(count, seed=0, max_first_label=1):
    """Chunks of 4 to 12 rows; every other one ends its piece."""
    random = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        size = int(random.integers(4, 13))
        columns = random.choice([0.0, 0.25, 1.5], size), random.integers(40, 80, size), random.integers(1, 128, size)
        values = np.stack([*columns, random.integers(1, 90, size) / 100], axis=1).astype(np.float32)
        if number % 2:
            values[-1] = [0, END, 0, 0]
        first_label = int(random.integers(1, max_first_label + 1))
        rows.append({"input_values": values.tolist(), "first_label": first_label, "piece_id": "p", "start": 0})
    return rows


def make_trainer(folder, rows, eval_rows=(), likelihood="mass", **arguments):
    set_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    off = {"embedding_dropout": 0.0, "attention_dropout": 0.0, "num_mixtures": 4}
    config = ContinuousNotesConfig(**sizes, **off, max_position_embeddings=32, likelihood=likelihood)
    settings = {"max_steps": 1, "save_strategy": "no", "logging_steps": 1, "report_to": "none", "disable_tqdm": True}
    settings |= {"bf16": False, "use_cpu": True, "optim": "sgd", "learning_rate": 0.01, "lr_scheduler_type": "constant"}
    return ContinuousNotesTrainer(
        eval_notes=10,
        model=ContinuousNotesForCausalLM(config),
        args=PianoTrainingArguments(output_dir=str(folder), **{**settings, **arguments}),
        train_dataset=rows,
        eval_dataset=list(eval_rows),
        data_collator=RowCollator(),
    )


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path):
    """Chunks of unequal lengths: a mean of the means of micro-batches would weigh rows unequally."""
    rows, weights, losses = make_rows(8, max_first_label=3), [], []
    for size, accumulation in ((8, 1), (2, 4), (1, 8)):
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation}
        trainer = make_trainer(tmp_path, rows, **options, max_grad_norm=1e9)
        trainer.train()
        weights.append(trainer.model.state_dict())
        losses.append(trainer.state.log_history[0]["loss"])
    before = make_trainer(tmp_path, rows).model.state_dict()
    assert any(not torch.equal(before[name], weights[0][name]) for name in before)
    for other in weights[1:]:
        for name, value in weights[0].items():
            torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-6, msg=name)
    assert losses[1] == pytest.approx(losses[0], rel=1e-4) and losses[2] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.parametrize("likelihood", ["mass", "density"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_scores_are_masses_of_all_labels_whatever_is_trained(tmp_path, likelihood, batch_size):
    rows = make_rows(7, seed=1, max_first_label=3)
    trainer = make_trainer(tmp_path, rows, rows, likelihood, per_device_eval_batch_size=batch_size)
    scores = trainer.evaluate()
    nats, right, num_rows, num_notes = 0.0, 0, 0, 0
    for row in rows:
        batch = RowCollator()([row])
        with torch.no_grad():
            output = trainer.model.eval()(**batch)
        labels = batch["labels"][0, 1:]
        nats += float(output.nats.double().sum())
        is_note = (labels >= 0) & (labels < 128)
        right += int((output.logits[0].argmax(-1) == labels)[is_note].sum())
        num_rows, num_notes = num_rows + int((labels >= 0).sum()), num_notes + int(is_note.sum())
    assert num_rows > num_notes  # ends of pieces are paid for
    assert scores["eval_nats_per_token"] == pytest.approx(nats / num_rows, rel=1e-5)
    assert scores["eval_bits_per_note"] == pytest.approx(nats / math.log(2) / 10, rel=1e-5)
    assert scores["eval_accuracy"] == pytest.approx(right / num_notes)


def test_label_smoothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="label_smoothing_factor"):
        make_trainer(tmp_path, make_rows(2), label_smoothing_factor=0.1)


def test_row_scores_add_the_fields_of_a_row():
    logits = torch.zeros(1, 2, 128)
    logits[0, 1, 60] = 1.0
    nats = torch.tensor([[[1.0, 2.0, 3.0, 4.0], [0.5, 0.0, 0.0, 0.0]]])
    total, is_right = row_scores((logits, nats, nats), torch.tensor([[-100, 3, 60]]))
    assert total.tolist() == [[10.0, 0.5]] and is_right.tolist() == [[0.0, 1.0]]
