"""Tests of the masked way of training: how ids are hidden, and what its Trainer measures."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pianogen_hf.models.configuration_piano_encoder import PianoEncoderConfig
from pianogen_hf.models.modeling_piano_encoder import PianoEncoderForMaskedLM
from pianogen_hf.training.arguments import PianoTrainingArguments
from pianogen_hf.training.collator import IGNORED
from pianogen_hf.training.masking import MaskedPianoTrainer, MaskingCollator, length_bits, masked_token_scores

PAD, VOCAB = 0, 12
MASK = VOCAB


def row_of(length, first_label=1, piece_id="p", start=0, ids=None):
    ids = list(range(1, length + 1)) if ids is None else ids
    return {"input_ids": ids, "first_label": first_label, "piece_id": piece_id, "start": start}


def hidden_of(batch):
    return batch["input_ids"] == MASK


# --- the collator -----------------------------------------------------------------------------------------------------


chunks = st.lists(
    st.integers(2, 11).flatmap(lambda length: st.tuples(st.just(length), st.integers(1, length - 1))),
    min_size=1,
    max_size=6,
)


@given(chunks, st.integers(0, 5))
def test_only_labels_are_hidden_at_least_one_and_nothing_else_changes(lengths_and_first_labels, epoch):
    collator = MaskingCollator(PAD, MASK)
    collator.set_epoch(epoch)
    rows = [row_of(length, first, start=n) for n, (length, first) in enumerate(lengths_and_first_labels)]
    batch = collator(rows)
    hidden = hidden_of(batch)
    for index, row in enumerate(rows):
        size, first = len(row["input_ids"]), row["first_label"]
        ids = torch.tensor(row["input_ids"])
        assert torch.equal(batch["labels"][index, first:size], ids[first:])  # all of them, hidden or not
        assert (batch["labels"][index, :first] == IGNORED).all() and (batch["labels"][index, size:] == IGNORED).all()
        assert not hidden[index, :first].any() and not hidden[index, size:].any() and hidden[index].any()
        assert torch.equal(batch["input_ids"][index, :size][~hidden[index, :size]], ids[~hidden[index, :size]])
        assert batch["attention_mask"][index].tolist() == [1] * size + [0] * (len(hidden[index]) - size)


def test_all_of_one_kind_are_hidden_in_nine_of_ten_examples_where_that_is_asked_for():
    ids = torch.arange(VOCAB)
    kinds = [(ids >= 2) & (ids < 5), ids >= 8]
    rows = [row_of(9, first_label=2, start=start, ids=[1, 2, 3, 4, 6, 7, 8, 9, 10]) for start in range(4000)]
    hidden = hidden_of(MaskingCollator(PAD, MASK, kinds=kinds)(rows)).tolist()
    wanted = [[False] * 2 + [True] * 2 + [False] * 5, [False] * 6 + [True] * 3]  # context is not hidden
    shares = [hidden.count(each) / len(rows) for each in wanted]
    assert all(abs(share - 0.45) < 0.03 for share in shares) and sum(shares) < 0.95
    again = hidden_of(MaskingCollator(PAD, MASK, kinds=kinds)(rows[::-1])).tolist()
    assert again[::-1] == hidden  # whatever else is in a batch


def test_without_a_token_of_the_kind_any_are_hidden():
    kinds = [torch.arange(VOCAB) == 11]
    batch = MaskingCollator(PAD, MASK, kinds=kinds)([row_of(9, start=start) for start in range(50)])
    assert hidden_of(batch).any(-1).all()


def test_the_number_of_hidden_ids_is_uniform_and_so_is_their_place():
    collator = MaskingCollator(PAD, MASK)
    hidden = hidden_of(collator([row_of(6, start=start) for start in range(6000)]))[:, 1:]
    sizes = torch.bincount(hidden.sum(-1), minlength=6) / 6000
    assert sizes[0] == 0 and (sizes[1:] - 0.2).abs().max() < 4 * (0.2 * 0.8 / 6000) ** 0.5
    alone = hidden[hidden.sum(-1) == 1].float().mean(0)
    assert (alone - 0.2).abs().max() < 4 * (0.2 * 0.8 / 1100) ** 0.5


def test_the_mask_follows_from_seed_epoch_and_name_of_the_chunk_alone():
    def mask_of(row, seed=0, epoch=0, others=()):
        collator = MaskingCollator(PAD, MASK, seed)
        collator.set_epoch(epoch)
        return hidden_of(collator([row, *others]))[0, :11].tolist()

    row = row_of(11, piece_id="a", start=64)
    same = mask_of(row)
    assert mask_of(row) == same
    assert mask_of(row, others=[row_of(11), row_of(200, start=3)]) == same  # neither the batch nor its padding
    assert mask_of(row_of(11, piece_id="a", start=64, ids=[9] * 11)) == same  # and not what is hidden
    others = [mask_of(row, seed=1), mask_of(row, epoch=1), mask_of(row_of(11, piece_id="b", start=64))]
    others.append(mask_of(row_of(11, piece_id="a", start=65)))
    assert all(other != same for other in others)


def test_a_batch_does_not_tell_what_is_hidden():
    collator = MaskingCollator(PAD, MASK)
    first = collator([row_of(9)])
    changed = [7 if hidden else each for each, hidden in zip(range(1, 10), hidden_of(first)[0].tolist(), strict=True)]
    second = collator([row_of(9, ids=changed)])
    assert torch.equal(first["input_ids"], second["input_ids"])
    assert not torch.equal(first["labels"], second["labels"])


def test_drawing_masks_takes_nothing_from_the_random_numbers_of_training():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    MaskingCollator(PAD, MASK)([row_of(9)])
    assert torch.equal(torch.rand(3), expected)


def test_workers_of_a_data_loader_see_the_epoch():
    collator = MaskingCollator(PAD, MASK)
    loader = torch.utils.data.DataLoader(
        [row_of(40)], collate_fn=collator, num_workers=1, persistent_workers=True, multiprocessing_context="fork"
    )
    masks = []
    for epoch in (0, 1):
        collator.set_epoch(epoch)
        masks.append(hidden_of(next(iter(loader))))
        assert torch.equal(masks[-1], hidden_of(collator([row_of(40)])))
    assert not torch.equal(*masks)


# --- the trainer ------------------------------------------------------------------------------------------------------


def make_rows(count, seed):
    ids = torch.randint(3, VOCAB, (count, 9), generator=torch.Generator().manual_seed(seed))
    ids[:, 0] = 1
    return [row_of(9, 1, f"piece-{n // 2}", n % 2 * 8, ids=row.tolist()) for n, row in enumerate(ids)]


def make_trainer(tmp_path, rows=None, **arguments):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = PianoEncoderConfig(vocab_size=VOCAB, **sizes, max_position_embeddings=16, is_causal=False)
    settings = {"max_steps": 6, "save_strategy": "no", "logging_steps": 1, "report_to": "none", "disable_tqdm": True}
    settings |= {"per_device_train_batch_size": 4, "bf16": False, "use_cpu": True, "learning_rate": 1e-3}
    return MaskedPianoTrainer(
        eval_notes=10,
        model=PianoEncoderForMaskedLM(config),
        args=PianoTrainingArguments(output_dir=str(tmp_path), **{**settings, **arguments}),
        train_dataset=rows or make_rows(12, seed=0),
        eval_dataset=make_rows(6, seed=1),
        data_collator=MaskingCollator(PAD, MASK),
    )


def test_it_trains_and_its_bits_per_note_are_those_of_the_model_s_loss_and_the_lengths(tmp_path):
    trainer = make_trainer(tmp_path)
    before = trainer.model.lm_head.weight.detach().clone()
    trainer.train()
    assert not torch.equal(before, trainer.model.lm_head.weight)
    assert not trainer._loss_shifts_labels
    rows = trainer.eval_dataset
    scores = trainer.evaluate()
    with torch.no_grad():
        outputs = trainer.model.eval()(**MaskingCollator(PAD, MASK, seed=0)(rows))
    num_labels = 6 * 8
    bits = float(outputs.loss) * num_labels / math.log(2) + 3 * math.log2(16 * 17)
    assert scores["eval_nats_per_token"] == pytest.approx(float(outputs.loss), rel=1e-5)
    assert scores["eval_bits_per_note"] == pytest.approx(bits / 10, rel=1e-5)


def test_evaluation_is_the_same_each_time_whatever_the_batch_size(tmp_path):
    trainer = make_trainer(tmp_path)
    scores = trainer.evaluate()
    trainer.data_collator.set_epoch(3)
    assert trainer.evaluate()["eval_bits_per_note"] == scores["eval_bits_per_note"]
    trainer.args.per_device_eval_batch_size = 1
    assert trainer.evaluate()["eval_bits_per_note"] == pytest.approx(scores["eval_bits_per_note"], rel=1e-5)


def test_noise_costs_what_noise_must_cost(tmp_path):
    """Nine equally likely ids cost ln 9 nats each; a leak of the answer would cost less."""
    trainer = make_trainer(tmp_path, make_rows(2000, seed=2), max_steps=120, per_device_train_batch_size=32)
    trainer.train()
    trainer.eval_dataset = make_rows(600, seed=3)
    assert math.log(9) - 0.03 < trainer.evaluate()["eval_nats_per_token"] < math.log(9) + 0.1


def test_every_epoch_hides_other_ids_and_a_resumed_run_hides_what_the_whole_run_hid(tmp_path):
    def masks_of(trainer, **options):
        masks, step = [], trainer.training_step
        trainer.training_step = lambda model, inputs, *rest: (
            masks.append(hidden_of(inputs)),
            step(model, inputs, *rest),
        )[1]
        trainer.train(**options)
        return masks

    whole = make_trainer(tmp_path, rows=make_rows(4, 0), max_steps=6, save_strategy="steps", save_steps=3)
    masks = masks_of(whole)
    assert len(masks) == 6 and len({str(mask.sort(0).values.tolist()) for mask in masks}) == 6
    resumed = make_trainer(tmp_path, rows=make_rows(4, 0), max_steps=6)
    assert all(map(torch.equal, masks_of(resumed, resume_from_checkpoint=str(tmp_path / "checkpoint-3")), masks[3:]))
    for name, parameter in whole.model.state_dict().items():
        assert torch.equal(parameter, resumed.model.state_dict()[name]), name


def test_label_smoothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="label_smoothing_factor"):
        make_trainer(tmp_path, label_smoothing_factor=0.1)


def test_scores_are_weighted_and_visible_labels_count_nothing():
    logits = torch.zeros(1, 3, 2)
    logits[0, 1, 1] = 40.0
    weights = torch.tensor([[0.0, 1.5, 1.5]])
    nats, is_right = masked_token_scores((logits, weights), torch.tensor([[0, 1, 1]]))
    torch.testing.assert_close(nats, torch.tensor([[0.0, 0.0, 1.5 * math.log(2)]]))
    assert is_right.tolist() == [[0.0, 1.5, 0.0]]


def test_lengths_cost_the_bits_of_a_proper_code():
    rows = [row_of(5, 1, "a", 0), row_of(4, 2, "a", 4), row_of(2, 1, "b", 0)]
    assert length_bits(rows) == pytest.approx(math.log2(6 * 7) + math.log2(1 * 2))
    assert sum(2 ** -length_bits([row_of(n + 1)]) for n in range(1, 3000)) == pytest.approx(1, abs=1e-3)
