"""What every exported model of notes with all fields promises, whatever its architecture (V5, V8)."""

import pytest
import torch
from models_and_tokenizers import ROW_MODELS, labels_of, loosened, some_rows, tiny_model
from transformers import AutoModel, AutoModelForCausalLM

from pianogen_hf.models.row_generation import CachedWindow

TIME_SHIFT, PITCH, VELOCITY, DURATION = range(4)
END = 129
pytestmark = pytest.mark.parametrize("model_class", ROW_MODELS, ids=lambda each: each.__name__)


def make_model(model_class, **settings):
    torch.manual_seed(0)
    return loosened(tiny_model(model_class, 130, **settings))


def nats_of(model, rows, **inputs):
    return model(rows, labels=labels_of(rows), **inputs).nats


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


# Likelihood -----------------------------------------------------------------------------------------------------------


def test_rows_without_a_label_cost_nothing(model_class):
    model, rows = make_model(model_class), some_rows(2, 9)
    labels, full = labels_of(rows), nats_of(model, rows)
    labels[:, :5] = -100
    partial = model(rows, labels=labels)
    assert (partial.nats[:, :4] == 0).all()
    assert torch.equal(partial.nats[:, 4:], full[:, 4:])
    assert torch.allclose(partial.loss, full[:, 4:].sum() / 8)


def test_the_end_costs_an_event_and_no_other_field(model_class):
    nats = nats_of(make_model(model_class), some_rows(2, 9))
    assert (nats[:, -1, TIME_SHIFT] > 0).all() and (nats[:, -1, PITCH:] == 0).all()
    assert (nats[:, :-1, VELOCITY] > 0).all()


def test_the_likelihood_of_a_note_sees_only_what_is_drawn_before_it(model_class):
    model, rows = make_model(model_class), some_rows(1, 9)
    rows[0, 5], rows[0, 6, TIME_SHIFT] = torch.tensor([0.3, 50.0, 64.0, 0.5]), 0.25
    nats = nats_of(model, rows)[0]
    changed = rows.clone()
    changed[0, 5] = torch.tensor([0.77, 71.0, 20.0, 0.08])
    other = nats_of(model, changed)[0]
    assert torch.allclose(other[:4], nats[:4])  # row 5 is prediction 4
    assert not torch.isclose(other[5:], nats[5:]).all(-1).any()
    for column in range(3):  # each field of a note moves the fields after it, not those before
        changed = rows.clone()
        changed[0, 5, column] = [0.77, 71.0, 20.0][column]
        moved = ~torch.isclose(nats_of(model, changed)[0, 4], nats[4])
        assert not moved[:column].any() and moved[column:].all()


def test_loss_over_two_micro_batches_equals_loss_over_the_batch(model_class):
    model, rows = make_model(model_class), some_rows(4, 9)
    labels = labels_of(rows)
    labels[0, 2:] = -100  # unequal numbers of labels: a mean of means would differ
    whole, count = model(rows, labels=labels).loss, (labels[:, 1:] != -100).sum()
    halves = slice(0, 2), slice(2, 4)
    parts = [model(rows[half], labels=labels[half], num_items_in_batch=count).loss for half in halves]
    torch.testing.assert_close(parts[0] + parts[1], whole)
    means = [model(rows[half], labels=labels[half]).loss for half in halves]
    assert abs((means[0] + means[1]) / 2 - whole) > 1e-4


def test_every_parameter_gets_a_gradient_and_checkpointing_changes_none(model_class):
    model, rows = make_model(model_class).train(), some_rows(2, 24)
    gradients = []
    for _ in range(2):
        torch.manual_seed(0)  # of the dropout
        model.zero_grad()
        model(rows, labels=labels_of(rows)).loss.backward()
        gradients.append({name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None})
        model.activation_checkpointing_enable()
    assert gradients[0].keys() == dict(model.named_parameters()).keys()
    assert all(each.isfinite().all() and each.abs().sum() > 0 for each in gradients[0].values())
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-6, rtol=1e-4)


def test_bfloat16_leaves_the_likelihood_precise(model_class):
    model, rows = make_model(model_class), some_rows(2, 20)
    exact = nats_of(model, rows)
    with torch.autocast("cpu", torch.bfloat16):
        rough = nats_of(model, rows)
    for nats in (rough, nats_of(model.to(torch.bfloat16), rows)):
        assert nats.dtype == torch.float32
        assert (nats - exact).abs().mean() < 0.05


@torch.no_grad()
def test_attention_functions_agree(model_class):
    model, rows = make_model(model_class, attn_implementation="eager"), some_rows(2, 20)
    mask = torch.ones(2, 20, dtype=torch.long)
    mask[1, 12:] = 0
    eager = model(rows, attention_mask=mask).last_hidden_state
    model.set_attn_implementation("sdpa")
    assert_close(model(rows, attention_mask=mask).last_hidden_state[mask.bool()], eager[mask.bool()])


@torch.no_grad()
def test_hidden_states_and_attentions_are_returned(model_class):
    model = make_model(model_class, attn_implementation="eager")
    output = model(some_rows(2, 6), output_hidden_states=True, output_attentions=True)
    assert [each.shape for each in output.hidden_states] == [(2, 6, 32)] * 3
    assert [each.shape for each in output.attentions] == [(2, 2, 6, 6)] * 2
    torch.testing.assert_close(output.attentions[0].sum(-1), torch.ones(2, 2, 6))


# As a model of transformers -------------------------------------------------------------------------------------------


@torch.no_grad()
def test_save_and_load_keep_every_number(model_class, tmp_path):
    model, rows = make_model(model_class), some_rows(2, 9)
    model.save_pretrained(tmp_path)
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is model_class
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    incidental = {"dtype": None, "_name_or_path": None}
    assert loaded.config.to_dict() | incidental == model.config.to_dict() | incidental
    assert torch.equal(nats_of(loaded, rows), nats_of(model, rows))
    body = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(body(rows).last_hidden_state, model(rows).last_hidden_state)


@torch.no_grad()
def test_a_model_loads_in_bfloat16(model_class, tmp_path):
    model, rows = make_model(model_class), some_rows(2, 9)
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert {each.dtype for each in loaded.parameters()} == {torch.bfloat16}
    assert (nats_of(loaded, rows) - nats_of(model, rows)).abs().max() < 0.05  # buffers are not saved
    assert loaded.generate(rows[:, :-1], max_new_tokens=3, min_new_tokens=3, seed=0).isfinite().all()


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padding_changes_nothing(model_class, side):
    model, rows = make_model(model_class), some_rows(1, 9)
    padding, at = torch.zeros(1, 4, 4), slice(4, None) if side == "left" else slice(0, 9)
    padded = torch.cat([padding, rows] if side == "left" else [rows, padding], dim=1)
    mask = torch.zeros(1, 13, dtype=torch.long)
    mask[:, at] = 1
    labels = labels_of(padded).masked_fill(mask == 0, -100)
    labels[:, at.start] = -100  # the first row is context
    expected, output = model(rows, labels=labels_of(rows)), model(padded, attention_mask=mask, labels=labels)
    assert_close(output.last_hidden_state[:, at], expected.last_hidden_state)
    assert_close(output.loss, expected.loss)
    counted = labels[:, 1:] != -100
    assert_close(output.nats[counted], expected.nats[0])
    assert (output.nats[~counted] == 0).all()


@pytest.mark.parametrize("sizes", [[1] * 12, [5] + [1] * 7, [1, 4, 2, 5]])
@torch.no_grad()
def test_cached_equals_uncached(model_class, sizes):
    model, rows = make_model(model_class), some_rows(2, 12)
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[1, :3] = 0
    rows[1, :3], rows[1, 3] = 0, rows[0, 0]
    states, past, start = [], None, 0
    for size in sizes:
        stop = start + size
        output = model(rows[:, start:stop], attention_mask=mask[:, :stop], past_key_values=past, use_cache=True)
        past, start = output.past_key_values, stop
        states.append(output.last_hidden_state)
    expected = model(rows, attention_mask=mask).last_hidden_state
    assert_close(torch.cat(states, dim=1)[mask.bool()], expected[mask.bool()])


# Generation -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_beyond_the_context_generation_hears_the_latest_half_of_it(model_class):
    model, rows = make_model(model_class), some_rows(2, 20)
    model.config.max_position_embeddings = 8
    window, mask = CachedWindow(model.model, model.model.config), torch.ones(2, 20, dtype=torch.long)
    for length in range(1, 21):
        hidden = window.last_hidden_state(rows[:, :length], mask[:, :length])
        assert length - window.start <= 8
        assert_close(hidden, model(rows[:, window.start : length]).last_hidden_state[:, -1])
    assert model.generate(max_new_tokens=30, min_new_tokens=30, seed=0).shape == (1, 31, 4)


def test_a_seed_makes_generation_repeatable_and_leaves_other_randomness_alone(model_class):
    model = make_model(model_class)
    torch.manual_seed(1)
    first, after = model.generate(max_new_tokens=12, seed=5), torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), after)
    assert torch.equal(model.generate(max_new_tokens=12, seed=5), first)
    assert not torch.equal(model.generate(max_new_tokens=12, min_new_tokens=12, seed=6)[:, :2], first[:, :2])


def test_generation_keeps_its_prompts_and_does_not_mind_their_padding(model_class):
    model, prompts = make_model(model_class), some_rows(2, 9)[:, :-1]
    rows = model.generate(prompts, max_new_tokens=6, temperature=0, num_return_sequences=2)
    assert torch.equal(rows[:, :8], prompts.repeat_interleave(2, dim=0))
    assert rows.shape[1] > 10
    padded = torch.cat([torch.zeros(2, 3, 4), prompts], dim=1)
    mask = torch.cat([torch.zeros(2, 3), torch.ones(2, 8)], dim=1)
    other = model.generate(padded, mask, max_new_tokens=6, temperature=0, num_return_sequences=2)
    assert_close(other[:, 11:], rows[:, 8:])


def test_generated_rows_are_notes_until_the_piece_ends(model_class):
    rows = make_model(model_class).generate(max_new_tokens=250, num_return_sequences=20, seed=0)[:, 1:]
    is_end = rows[..., PITCH] == END
    assert is_end.any() and (is_end.long().diff(dim=1) >= 0).all()  # nothing after an end
    assert (rows[is_end] == torch.tensor([0.0, END, 0.0, 0.0])).all()
    notes = rows[~is_end]
    assert (notes[:, TIME_SHIFT] >= 0).all() and (notes[:, DURATION] > 0).all()
    assert (notes[:, DURATION] <= 41).all()
    assert notes[:, PITCH].min() >= 0 and notes[:, PITCH].max() <= 127
    assert notes[:, VELOCITY].min() >= 1 and notes[:, VELOCITY].max() <= 127
    assert torch.equal(notes[:, 1:3], notes[:, 1:3].round())


def test_what_is_generated_can_be_scored(model_class):
    model = make_model(model_class)
    rows = model.generate(max_new_tokens=60, num_return_sequences=8, seed=0)
    labels = labels_of(rows).masked_fill((rows[..., PITCH] == END).cumsum(1) > 1, -100)  # one end each
    assert model(rows, labels=labels).nats.isfinite().all()


def test_generation_can_be_held_open_and_cut_by_seconds(model_class):
    model = make_model(model_class)
    held = model.generate(max_new_tokens=20, min_new_tokens=20, num_return_sequences=8, seed=0)
    assert not (held[:, 1:, PITCH] == END).any()
    cut = model.generate(max_new_tokens=80, min_new_tokens=80, max_new_seconds=5.0, num_return_sequences=8, seed=0)
    assert (cut[..., TIME_SHIFT].sum(-1) < 5).all() and (cut[:, -1, PITCH] == END).any()


@pytest.mark.parametrize(
    "wrong", [{"max_new_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"attention_mask": torch.tensor([[1, 0]])}]
)
def test_generation_refuses_what_it_can_not_do(model_class, wrong):
    with pytest.raises(ValueError, match="must"):
        make_model(model_class).generate(some_rows(1, 3)[:, :2], **wrong)


def test_training_goes_on_in_the_mode_in_which_it_was(model_class):
    model = make_model(model_class).train()
    model.generate(max_new_tokens=2, seed=0)
    assert model.training and all(each.training for each in model.modules())
