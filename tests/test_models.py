"""What every exported causal model promises, whatever its architecture."""

import pytest
import torch
from models_and_tokenizers import CAUSAL_MODELS, loosened, tiny_model
from transformers import AutoModel, AutoModelForCausalLM

VOCAB = 23
pytestmark = pytest.mark.parametrize("model_class", CAUSAL_MODELS, ids=lambda each: each.__name__)


def make_model(model_class, **settings):
    torch.manual_seed(0)
    model = tiny_model(model_class, VOCAB, **settings)
    return loosened(model, 0.2)


def make_ids(batch, length, seed=1):
    return torch.randint(3, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


# What a token sees ----------------------------------------------------------------------------------------------------


def test_a_token_sees_itself_and_those_before_it_and_no_other(model_class):
    model = make_model(model_class)
    embeds = model.get_input_embeddings()(make_ids(1, 9)).detach().requires_grad_()
    logits = model(inputs_embeds=embeds).logits
    for t in range(9):
        (gradient,) = torch.autograd.grad(logits[0, t].square().sum(), embeds, retain_graph=True)
        assert (gradient[0].abs().sum(-1) > 0).tolist() == [position <= t for position in range(9)]


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padding_changes_nothing(model_class, side):
    model, ids = make_model(model_class), make_ids(3, 11)
    mask = torch.ones_like(ids)
    kept = [slice(padding, None) if side == "left" else slice(0, 11 - padding) for padding in (0, 3, 8)]
    for row in range(3):
        mask[row] = 0
        mask[row, kept[row]] = 1
    batch = model(ids.masked_fill(mask == 0, 0), attention_mask=mask).logits
    for row in range(3):
        assert_close(batch[row, kept[row]], model(ids[row : row + 1, kept[row]]).logits[0])


@torch.no_grad()
def test_packed_pieces_do_not_see_one_another(model_class):
    model, ids = make_model(model_class), make_ids(1, 10)
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4, 5]])
    packed = model(ids, position_ids=positions, use_cache=False).logits
    assert_close(packed[:, 4:], model(ids[:, 4:]).logits)


def test_ids_and_embeddings_are_exclusive(model_class):
    model, ids = make_model(model_class), make_ids(1, 4)
    with pytest.raises(ValueError, match="exactly one"):
        model(ids, inputs_embeds=model.get_input_embeddings()(ids))
    with pytest.raises(ValueError, match="exactly one"):
        model()


# Decoding -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunks", [[1] * 12, [5] + [1] * 7, [1, 4, 2, 5]])
@torch.no_grad()
def test_cached_equals_uncached(model_class, chunks):
    model, ids = make_model(model_class), make_ids(2, 12)
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    logits, cache, start = [], None, 0
    for size in chunks:
        stop = start + size
        output = model(ids[:, start:stop], attention_mask=mask[:, :stop], past_key_values=cache, use_cache=True)
        logits.append(output.logits)
        cache, start = output.past_key_values, stop
    expected = model(ids, attention_mask=mask).logits
    assert_close(torch.cat(logits, 1)[mask.bool()], expected[mask.bool()])


def test_greedy_generation_equals_argmax_without_cache(model_class):
    model, ids = make_model(model_class, eos_token_id=None), make_ids(1, 6)
    generated = model.generate(ids, max_new_tokens=20, do_sample=False)
    for _ in range(20):
        with torch.no_grad():
            ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(generated, ids)


@pytest.mark.parametrize("cache_implementation", ["dynamic", "static"])
def test_left_padded_batch_generates_what_each_prompt_does_alone(model_class, cache_implementation):
    model = make_model(model_class, eos_token_id=None)
    prompts = [make_ids(1, 3, seed=5), make_ids(1, 9, seed=6)]
    ids, mask = torch.zeros(2, 9, dtype=torch.long), torch.zeros(2, 9, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, 9 - prompt.shape[1] :], mask[row, 9 - prompt.shape[1] :] = prompt, 1
    options = {"max_new_tokens": 12, "do_sample": False, "cache_implementation": cache_implementation}
    batch = model.generate(ids, attention_mask=mask, **options)
    for row, prompt in enumerate(prompts):
        assert torch.equal(batch[row, 9:], model.generate(prompt, **options)[0, prompt.shape[1] :])


def test_beam_search_with_cache_equals_beam_search_without(model_class):
    model = make_model(model_class, eos_token_id=None)
    options = {"num_beams": 4, "max_new_tokens": 10, "do_sample": False}
    with_cache, without = (model.generate(make_ids(2, 6), use_cache=each, **options) for each in (True, False))
    assert torch.equal(with_cache, without)


def test_generation_from_embeddings_equals_generation_from_ids(model_class):
    model, ids = make_model(model_class, eos_token_id=None), make_ids(1, 6)
    embeds = model.get_input_embeddings()(ids)
    from_embeds = model.generate(inputs_embeds=embeds, max_new_tokens=7, do_sample=False)
    assert torch.equal(from_embeds, model.generate(ids, max_new_tokens=7, do_sample=False)[:, 6:])


# Outputs, loss, training ----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_logits_to_keep_are_the_last_logits(model_class):
    model, ids = make_model(model_class), make_ids(2, 7)
    everything = model(ids).logits
    assert_close(model(ids, logits_to_keep=2).logits, everything[:, -2:])
    assert_close(model(ids, logits_to_keep=torch.tensor([0, 3])).logits, everything[:, [0, 3]])


@torch.no_grad()
def test_hidden_states_and_attentions_are_returned(model_class):
    model = make_model(model_class, attn_implementation="eager")
    output = model(make_ids(2, 6), output_hidden_states=True, output_attentions=True)
    assert [each.shape for each in output.hidden_states] == [(2, 6, 32)] * 3
    assert [each.shape for each in output.attentions] == [(2, 2, 6, 6)] * 2
    torch.testing.assert_close(output.attentions[0].sum(-1), torch.ones(2, 2, 6))


def test_loss_is_shifted_and_ignores_minus_100(model_class):
    model, ids = make_model(model_class), make_ids(2, 7)
    labels = ids.clone()
    labels[0, 3:5] = -100
    output = model(ids, labels=labels)
    log_probabilities = output.logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    torch.testing.assert_close(output.loss, -log_probabilities[labels[:, 1:] != -100].mean())


def test_loss_over_two_micro_batches_equals_loss_over_the_batch(model_class):
    model, ids = make_model(model_class), make_ids(4, 7)
    labels = ids.clone()
    labels[0, 2:] = -100  # unequal numbers of labels: a mean of means would differ
    whole = model(ids, labels=labels).loss
    count = (labels[:, 1:] != -100).sum()
    parts = [model(ids[s], labels=labels[s], num_items_in_batch=count).loss for s in (slice(0, 2), slice(2, 4))]
    torch.testing.assert_close(parts[0] + parts[1], whole)
    means = [model(ids[s], labels=labels[s]).loss for s in (slice(0, 2), slice(2, 4))]
    assert abs((means[0] + means[1]) / 2 - whole) > 1e-4


def test_every_parameter_gets_a_gradient_and_checkpointing_changes_none(model_class):
    model, ids = make_model(model_class).train(), make_ids(2, 9)
    gradients = []
    for _ in range(2):
        torch.manual_seed(0)  # of the dropout
        model.zero_grad()
        model(ids, labels=ids, use_cache=False).loss.backward()
        gradients.append({name: each.grad.clone() for name, each in model.named_parameters()})
        model.activation_checkpointing_enable()
    assert all(each.isfinite().all() and each.abs().sum() > 0 for each in gradients[0].values())
    torch.testing.assert_close(gradients[1], gradients[0])


@torch.no_grad()
def test_bfloat16_is_close_to_float32(model_class):
    model, ids = make_model(model_class), make_ids(2, 9)
    expected = model(ids).logits.log_softmax(-1)
    with torch.autocast("cpu", torch.bfloat16):
        autocast = model(ids).logits.float()
    for logits in (autocast, model.to(torch.bfloat16)(ids).logits.float()):
        assert (logits.log_softmax(-1) - expected).abs().mean() < 0.1


# Saving and loading ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tie_word_embeddings", [True, False])
@torch.no_grad()
def test_saving_and_loading_is_bit_equal_through_the_auto_classes(model_class, tie_word_embeddings, tmp_path):
    model, ids = make_model(model_class, tie_word_embeddings=tie_word_embeddings), make_ids(2, 9)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(loaded, model_class)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    tied = loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    assert tied == tie_word_embeddings
    for name, parameter in model.state_dict().items():
        assert torch.equal(parameter, loaded.state_dict()[name]), name
    assert torch.equal(model(ids).logits, loaded.eval()(ids).logits)


@torch.no_grad()
def test_the_base_model_loads_from_the_causal_checkpoint(model_class, tmp_path):
    model, ids = make_model(model_class), make_ids(1, 6)
    model.save_pretrained(tmp_path)
    base = AutoModel.from_pretrained(tmp_path).eval()
    assert_close(base(ids).last_hidden_state, model.base_model(ids).last_hidden_state)


@torch.no_grad()
def test_resized_embeddings_keep_old_logits_and_stay_tied(model_class):
    model, ids = make_model(model_class, tie_word_embeddings=True), make_ids(1, 6)
    before = model(ids).logits
    model.resize_token_embeddings(VOCAB + 4)
    after = model(ids, labels=ids)
    assert after.logits.shape[-1] == model.config.vocab_size == VOCAB + 4 and after.loss.isfinite()
    torch.testing.assert_close(after.logits[..., :VOCAB], before)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
