"""Steps of one token: the cache that grows in place and the packed weights change the speed, and nothing else."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from pianogen_hf.models import fast_decoding
from pianogen_hf.models.configuration_music_transformer import MusicTransformerConfig
from pianogen_hf.models.fast_decoding import GrowingLayer, let_grow, packed_weight
from pianogen_hf.models.modeling_music_transformer import MusicTransformerForCausalLM


def model_of(**overrides) -> MusicTransformerForCausalLM:
    sizes = {"vocab_size": 40, "hidden_size": 24, "intermediate_size": 48, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = MusicTransformerConfig(**sizes, num_hidden_layers=2, max_relative_distance=8, **overrides)
    model = MusicTransformerForCausalLM(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def states(length: int, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(batch, 3, length, 4), torch.randn(batch, 3, length, 4)


PROMPT = torch.tensor([[1, 5, 9, 13, 7, 22]])


@pytest.fixture(autouse=True)
def no_gradients():
    """As in `generate`."""
    with torch.no_grad():
        yield


# --- the cache --------------------------------------------------------------------------------------------------------

CHANGES = {
    "crop": lambda layer: layer.crop(-1),
    "beams": lambda layer: layer.reorder_cache(torch.arange(len(layer.keys)).flip(0)),
    "repeat": lambda layer: layer.batch_repeat_interleave(2),
    "first row": lambda layer: layer.batch_select_indices(slice(0, 1)),
    "reset": lambda layer: layer.reset(),
}


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(st.one_of(st.integers(1, 9), st.sampled_from(sorted(CHANGES))), max_size=14))
def test_a_growing_layer_holds_what_a_concatenating_one_holds(steps):
    """Appending, cropping, beams and all else in any order; with little room, so that buffers are renewed, too."""
    torch.manual_seed(0)
    layers, room, batch = (GrowingLayer(), DynamicLayer()), fast_decoding.LEAST_ROOM, 2
    fast_decoding.LEAST_ROOM = 4
    try:
        for step in steps:
            if isinstance(step, int):
                new = states(step, batch)
                results = [layer.update(*new) for layer in layers]
                assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
            elif layers[0].get_seq_length():
                for layer in layers:
                    CHANGES[step](layer)
                batch = {"repeat": 2 * batch, "first row": 1, "reset": 2}.get(step, batch)
            assert layers[0].get_seq_length() == layers[1].get_seq_length()
    finally:
        fast_decoding.LEAST_ROOM = room


def test_steps_write_where_the_layer_lies():
    layer = GrowingLayer()
    layer.update(*states(5))
    places = {layer.update(*states(1))[0].data_ptr() for _ in range(200)}
    assert len(places) == 1 and layer.get_seq_length() == 205
    layer.crop(-3)
    assert layer.update(*states(1))[0].shape[2] == 203


def test_a_copy_of_the_cache_goes_its_own_way():
    layer = GrowingLayer()
    kept = layer.update(*states(5))[0].clone()
    other = copy.deepcopy(layer)
    first, second = (each.update(*states(1))[0] for each in (layer, other))
    assert torch.equal(first[:, :, :5], kept) and torch.equal(second[:, :, :5], kept)
    assert not torch.equal(first[:, :, 5], second[:, :, 5])


def test_gradients_flow_through_and_tokens_of_inference_mode_stay():
    layer = GrowingLayer()
    with torch.inference_mode():
        layer.update(*states(3))
    layer.update(*states(1))
    keys, values = (each.requires_grad_() for each in states(2))
    with torch.enable_grad():
        result = layer.update(keys, values)[0]
        result.sum().backward()
    assert result.shape[2] == 6 and torch.equal(keys.grad, torch.ones_like(keys))
    assert layer.update(*states(1))[0].shape[2] == 7


def test_only_the_default_cache_of_generate_grows():
    options = {"max_new_tokens": 3, "return_dict_in_generate": True, "eos_token_id": None}
    for overrides, kind in (({}, GrowingLayer), ({"attention_window": 4}, DynamicSlidingWindowLayer)):
        cache = model_of(**overrides).generate(PROMPT, **options).past_key_values
        assert type(cache) is DynamicCache and {type(layer) for layer in cache.layers} == {kind}
    given_cache = DynamicCache(config=model_of().config)
    model_of().generate(PROMPT, past_key_values=given_cache, **options)
    assert {type(layer) for layer in given_cache.layers} == {DynamicLayer} and given_cache.get_seq_length() == 8
    let_grow(given_cache)  # no more
    assert {type(layer) for layer in given_cache.layers} == {DynamicLayer}


# --- the weights ------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_weights_are_packed(monkeypatch):
    monkeypatch.setattr(fast_decoding, "LEAST_PACKED", 1)


def test_packed_weights_stand_side_by_side_with_long_rows_in_memory(small_weights_are_packed):
    one, other = nn.Linear(100, 70), nn.Linear(100, 200)
    weight = packed_weight(one, other)
    assert torch.equal(weight, torch.cat([one.weight, other.weight])) and weight.stride() == (1, 270)
    assert not weight.requires_grad


def test_layers_that_do_more_than_multiply_are_not_packed(small_weights_are_packed):
    class Adapted(nn.Linear):
        pass

    hooked, wrapped, plain = (nn.Linear(8, 16) for _ in range(3))
    hooked.register_forward_hook(lambda *_: None)
    wrapped.forward = plain.forward
    for other in (Adapted(8, 16), hooked, wrapped, nn.Linear(8, 16).half(), nn.Linear(8, 16, device="meta")):
        assert packed_weight(plain, other) is None
    assert packed_weight(plain) is not None


def test_small_layers_are_not_packed():
    assert packed_weight(nn.Linear(128, 512)) is None


def spied_steps(model: MusicTransformerForCausalLM) -> list[tuple[int, bool, bool]]:
    """A list that fills up with (queries, packed projections, packed feed-forward) as the first layer is called."""
    layer, calls = model.model.layers[0], []

    def note(module, args, kwargs):
        calls.append((args[0].shape[1], layer.self_attn.packed_qkv is not None, layer.mlp.packed_fc1 is not None))

    layer.register_forward_pre_hook(note, with_kwargs=True)
    return calls


@pytest.mark.parametrize("options", [{"do_sample": False}, {"do_sample": True, "top_k": 5}, {"num_beams": 2}])
def test_packing_changes_no_token(options, monkeypatch):
    model = model_of()

    def written(least: int) -> torch.Tensor:
        monkeypatch.setattr(fast_decoding, "LEAST_PACKED", least)
        torch.manual_seed(1)
        return model.generate(PROMPT.repeat(2, 1), max_new_tokens=30, eos_token_id=None, **options)

    assert torch.equal(written(1), written(10**9))


def test_steps_are_packed_and_nothing_else_is(small_weights_are_packed):
    model = model_of()
    calls = spied_steps(model)
    model.generate(PROMPT, max_new_tokens=3, eos_token_id=None)
    assert calls == [(6, False, False), (1, True, True), (1, True, True)]
    model(PROMPT)
    assert calls[-1] == (6, False, False)


@pytest.mark.parametrize("assistant", ["another model", "its own first layer"])
def test_assistants_are_not_packed_and_change_no_token(small_weights_are_packed, assistant):
    """They are asked for a few tokens at a time: packing would take longer than it saves."""
    model, other = model_of(), model_of()
    expected = model.generate(PROMPT, max_new_tokens=12, eos_token_id=None, do_sample=False)
    is_other = assistant == "another model"
    options = {"assistant_model": other} if is_other else {"assistant_early_exit": 1}
    calls = spied_steps(other if is_other else model)
    actual = model.generate(PROMPT, max_new_tokens=12, eos_token_id=None, do_sample=False, **options)
    assert torch.equal(actual, expected) and len(calls) > 3
    assert not any(is_packed for _, *packed in calls for is_packed in packed)


def test_an_error_while_generating_leaves_nothing_packed(small_weights_are_packed):
    model = model_of()

    def stop(ids, scores):
        if ids.shape[1] > 8:
            raise KeyboardInterrupt
        return scores

    with pytest.raises(KeyboardInterrupt):
        model.generate(PROMPT, max_new_tokens=9, eos_token_id=None, logits_processor=[stop])
    assert all(layer.self_attn.packed_qkv is None and layer.mlp.packed_fc1 is None for layer in model.model.layers)


def test_packed_weights_are_not_saved(small_weights_are_packed):
    model = model_of()
    names = set(model.state_dict())
    with model._optimize_model_for_decode():
        assert model.model.layers[0].self_attn.packed_qkv is not None and set(model.state_dict()) == names
