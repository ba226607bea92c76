"""Tests of the Music Transformer: against naive definitions, against itself without a cache, and as a Hub model."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models_and_tokenizers import loosened
from transformers import DynamicCache, StaticCache

from pianogen_hf.models.configuration_music_transformer import MusicTransformerConfig
from pianogen_hf.models.modeling_music_transformer import MusicTransformerForCausalLM, additive_mask
from pianogen_hf.models.relative_positions import MusicTransformerRelativeEmbedding, clipped_distances, skew

pytestmark = pytest.mark.usefixtures("blocks_for_short_sequences")


VOCAB = 23
EVERY = pytest.mark.parametrize("implementation", ["eager", "sdpa", "relative"])
# Distances clipped (3 < length), exact, more than needed, and with a window.
SHAPES = pytest.mark.parametrize(
    ("max_relative_distance", "attention_window"), [(3, None), (12, None), (40, None), (3, 5), (20, 4), (2, 2)]
)


def make_config(**overrides) -> MusicTransformerConfig:
    values = {
        "vocab_size": VOCAB,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "max_position_embeddings": 32,
        "max_relative_distance": 5,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
    }
    return MusicTransformerConfig(**{**values, **overrides})


def make_model(implementation: str | None = None, seed: int = 0, **overrides) -> MusicTransformerForCausalLM:
    torch.manual_seed(seed)
    model = MusicTransformerForCausalLM(make_config(**overrides, attn_implementation=implementation)).eval()
    return loosened(model, 0.2)


def make_ids(batch: int, length: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(3, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


def naive_attention(layer, hidden: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """The definition, one logit at a time, for one sequence: `hidden` (length, width), `visible` (length,)."""
    length, config = len(hidden), layer.config
    embedding = layer.relative_embedding.weight
    queries, keys, values = (
        projection(hidden).view(length, config.num_attention_heads, -1)
        for projection in (layer.q_proj, layer.k_proj, layer.v_proj)
    )
    output = torch.zeros_like(queries)
    for head in range(config.num_attention_heads):
        for i in range(length):
            first = 0 if config.attention_window is None else max(0, i - config.attention_window + 1)
            seen = [j for j in range(first, i + 1) if visible[j]]
            if not seen:
                continue
            logits = []
            for j in seen:
                distance = min(i - j, config.max_relative_distance - 1)
                logits.append(queries[i, head] @ (keys[j, head] + embedding[head, distance]) / layer.head_dim**0.5)
            weights = torch.stack(logits).softmax(0)
            output[i, head] = sum(w * values[j, head] for w, j in zip(weights, seen, strict=True))
    return layer.o_proj(output.flatten(1))


def naive_logits(model: MusicTransformerForCausalLM, ids: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    hidden = model.model.embed_tokens(ids)
    for layer in model.model.layers:
        hidden = hidden + naive_attention(layer.self_attn, layer.input_layernorm(hidden), visible)
        mlp = layer.mlp
        hidden = hidden + mlp.fc2(mlp.fc1(layer.post_attention_layernorm(hidden)).relu())
    return model.model.norm(hidden) @ model.model.embed_tokens.weight.T


# --- relative positions -----------------------------------------------------------------------------------------------


@given(length=st.integers(1, 12), past=st.integers(0, 9), max_distance=st.integers(1, 20), seed=st.integers(0, 99))
def test_skew_equals_the_lookup_of_each_distance(length, past, max_distance, seed):
    num_distances = min(max_distance, past + length)
    logits = torch.randn(2, 3, length, num_distances, generator=torch.Generator().manual_seed(seed))
    skewed = skew(logits.flip(-1), past + length)
    assert skewed.shape == (2, 3, length, past + length) and skewed.isfinite().all()
    for i in range(length):
        for j in range(past + i + 1):
            assert torch.equal(skewed[..., i, j], logits[..., i, min(past + i - j, num_distances - 1)])


@settings(deadline=None)
@given(length=st.integers(1, 14), past=st.integers(0, 9), max_distance=st.integers(1, 20))
def test_skewed_bias_equals_looked_up_bias_and_has_the_same_gradient(length, past, max_distance):
    embedding = MusicTransformerRelativeEmbedding(make_config(max_relative_distance=max_distance))
    torch.nn.init.normal_(embedding.weight)
    queries = torch.randn(2, 3, length, 8)
    distance = torch.arange(past, past + length)[:, None] - torch.arange(past + length)
    gradients = []
    for relative_distance in (None, distance.clamp(0, max_distance - 1)):
        bias = embedding(queries, relative_distance, past + length) * (distance >= 0)
        gradients.append((bias, torch.autograd.grad((bias**2).sum(), embedding.weight)[0]))
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-4, rtol=1e-4)


def test_no_index_is_built_where_keys_end_with_the_queries():
    config = make_config()
    cache = DynamicCache(config=config)
    assert clipped_distances(7, None, 5, torch.device("cpu")) is None
    assert clipped_distances(7, cache, 5, torch.device("cpu")) is None
    cache.update(torch.zeros(1, 3, 7, 8), torch.zeros(1, 3, 7, 8), 0)
    assert clipped_distances(1, cache, 5, torch.device("cpu")) is None
    static = clipped_distances(2, StaticCache(config=config, max_cache_len=6), 3, torch.device("cpu"))
    assert static.tolist() == [[0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]]


@EVERY
@SHAPES
def test_forward_equals_the_naive_definition(implementation, max_relative_distance, attention_window):
    model = make_model(implementation, max_relative_distance=max_relative_distance, attention_window=attention_window)
    ids = make_ids(2, 12)
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    with torch.no_grad():
        logits = model(ids, attention_mask=mask).logits
        for row in range(2):
            expected = naive_logits(model, ids[row], mask[row].bool())
            seen = mask[row].bool()
            torch.testing.assert_close(logits[row, seen], expected[seen], atol=1e-5, rtol=1e-5)


@EVERY
def test_distances_matter_and_absolute_positions_do_not(implementation):
    model = make_model(implementation, attention_window=4, num_hidden_layers=1)
    ids = make_ids(1, 20)
    swapped = ids.clone()
    swapped[0, -3], swapped[0, -2] = ids[0, -2], ids[0, -3]
    with torch.no_grad():
        last = model(ids).logits[0, -1]
        assert not torch.allclose(last, model(swapped).logits[0, -1], atol=1e-3)  # the order is seen
        torch.testing.assert_close(last, model(ids[:, 9:]).logits[0, -1])  # the beginning of the count is not


@EVERY
@pytest.mark.parametrize("attention_window", [None, 4])
def test_left_padding_changes_nothing(implementation, attention_window):
    model = make_model(implementation, attention_window=attention_window)
    ids = make_ids(3, 11)
    mask = torch.ones_like(ids)
    for row, padding in enumerate((0, 3, 8)):
        mask[row, :padding] = 0
    with torch.no_grad():
        batch = model(ids, attention_mask=mask).logits
        for row, padding in enumerate((0, 3, 8)):
            alone = model(ids[row : row + 1, padding:]).logits[0]
            torch.testing.assert_close(batch[row, padding:], alone, atol=1e-5, rtol=1e-5)


# --- causality --------------------------------------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize("attention_window", [None, 3])
def test_outputs_have_no_gradient_outside_their_receptive_field(implementation, attention_window):
    model = make_model(implementation, attention_window=attention_window, num_hidden_layers=1)
    embeds = model.get_input_embeddings()(make_ids(1, 9)).detach().requires_grad_()
    logits = model(inputs_embeds=embeds).logits
    for t in range(9):
        (gradient,) = torch.autograd.grad(logits[0, t].square().sum(), embeds, retain_graph=True)
        reached = gradient[0].abs().sum(-1) > 0
        first = 0 if attention_window is None else max(0, t - attention_window + 1)
        assert reached.tolist() == [first <= position <= t for position in range(9)]


# --- caches -----------------------------------------------------------------------------------------------------------


def cached_logits(model, ids, mask, cache, chunks):
    logits, start = [], 0
    for size in chunks:
        stop = start + size
        output = model(ids[:, start:stop], attention_mask=mask[:, :stop], past_key_values=cache, use_cache=True)
        logits.append(output.logits)
        start = stop
    return torch.cat(logits, dim=1)


@EVERY
@SHAPES
@pytest.mark.parametrize(
    ("cache_class", "chunks"),
    [(DynamicCache, [1] * 12), (DynamicCache, [1, 4, 2, 5]), (StaticCache, [5] + [1] * 7), (StaticCache, [3, 9])],
)
def test_cached_equals_uncached(implementation, max_relative_distance, attention_window, cache_class, chunks):
    model = make_model(implementation, max_relative_distance=max_relative_distance, attention_window=attention_window)
    ids = make_ids(2, 12)
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    room = {} if cache_class is DynamicCache else {"max_cache_len": 17}
    with torch.no_grad():
        expected = model(ids, attention_mask=mask).logits
        actual = cached_logits(model, ids, mask, cache_class(config=model.config, **room), chunks)
    for row in range(2):
        seen = mask[row].bool()
        torch.testing.assert_close(actual[row, seen], expected[row, seen], atol=1e-5, rtol=1e-5)


def test_windowed_cache_stays_as_short_as_the_window():
    model = make_model(attention_window=4)
    with torch.no_grad():
        cache = model(make_ids(1, 12), use_cache=True).past_key_values
    assert cache.layers[0].keys.shape[2] == 3


def test_decoding_step_compiles_to_one_graph():
    model = make_model(num_hidden_layers=1)
    ids = make_ids(2, 8)
    cache = StaticCache(config=model.config, max_cache_len=16)
    step = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        expected = model(ids).logits[:, -1:]
        model(ids[:, :7], past_key_values=cache, use_cache=True)
        actual = step(ids[:, 7:], past_key_values=cache, use_cache=True).logits
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


# --- generation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("implementation, length", [("relative", 5), ("relative", 20), ("sdpa", 5), ("eager", 20)])
def test_it_exports_with_a_free_length_on_both_sides_of_the_farthest_distance(implementation, length):
    model = make_model(implementation, max_relative_distance=8)
    free = {"input_ids": {1: torch.export.Dim("length", min=2, max=300)}, "use_cache": None}
    inputs = {"input_ids": make_ids(2, length), "use_cache": False}
    exported = torch.export.export(model, (), inputs, dynamic_shapes=free, strict=False).module()
    for other in (2, 7, 8, 9, 64, 250):
        ids = make_ids(2, other)
        expected = model(ids, use_cache=False).logits
        torch.testing.assert_close(exported(input_ids=ids, use_cache=False).logits, expected, atol=1e-5, rtol=1e-5)


def greedy_by_hand(model, ids, steps):
    for _ in range(steps):
        ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    return ids


@EVERY
@pytest.mark.parametrize("attention_window", [None, 4])
@pytest.mark.parametrize("cache_implementation", [None, "static"])
def test_greedy_generation_equals_argmax_without_cache(implementation, attention_window, cache_implementation):
    model = make_model(implementation, attention_window=attention_window, eos_token_id=None)
    ids = make_ids(1, 6)
    arguments = {} if cache_implementation is None else {"cache_implementation": cache_implementation}
    # 40 tokens: beyond max_position_embeddings (32), which bounds nothing
    generated = model.generate(ids, max_new_tokens=34, do_sample=False, **arguments)
    with torch.no_grad():
        assert torch.equal(generated, greedy_by_hand(model, ids, 34))


@EVERY
@pytest.mark.parametrize(
    "arguments",
    [
        {"do_sample": True, "top_k": 5, "temperature": 0.8},
        {"do_sample": True, "top_p": 0.9, "num_return_sequences": 2},
        {"num_beams": 3, "num_return_sequences": 2},
        {"num_beams": 3, "cache_implementation": "static"},
        {"prompt_lookup_num_tokens": 2},
    ],
)
@pytest.mark.parametrize("attention_window", [None, 4])
def test_every_way_of_generating_runs(implementation, arguments, attention_window):
    model = make_model(implementation, attention_window=attention_window, eos_token_id=None)
    torch.manual_seed(0)
    generated = model.generate(make_ids(1, 6), max_new_tokens=8, **arguments)
    assert generated.shape == (arguments.get("num_return_sequences", 1), 14)
    assert ((generated >= 0) & (generated < VOCAB)).all()


# --- outputs and loss -------------------------------------------------------------------------------------------------


def test_hidden_states_and_attentions_are_returned():
    model = make_model("eager", attention_window=3)
    output = model(make_ids(2, 6), output_hidden_states=True, output_attentions=True)
    assert [h.shape for h in output.hidden_states] == [(2, 6, 24)] * 3
    assert [a.shape for a in output.attentions] == [(2, 3, 6, 6)] * 2
    weights = output.attentions[0]
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 6))
    band = torch.ones(6, 6).tril().triu(-2).bool()
    assert (weights[..., ~band] == 0).all() and (weights[..., band] > 0).all()


# --- numerics and training --------------------------------------------------------------------------------------------


def gradients_of(model, ids):
    model.zero_grad()
    model(ids, labels=ids, use_cache=False).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def test_eager_and_sdpa_have_equal_gradients():
    ids = make_ids(2, 9)
    eager, sdpa = (gradients_of(make_model(name, attention_window=5), ids) for name in ("eager", "sdpa"))
    assert all(gradient.abs().sum() > 0 for gradient in eager.values())
    torch.testing.assert_close(eager, sdpa, atol=1e-5, rtol=1e-4)


@EVERY
def test_bfloat16_is_close_to_float32(implementation):
    model = make_model(implementation)
    ids = make_ids(2, 9)
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    with torch.no_grad():
        expected = model(ids, attention_mask=mask).logits.log_softmax(-1)
        with torch.autocast("cpu", torch.bfloat16):
            autocast = model(ids, attention_mask=mask).logits.float().log_softmax(-1)
        actual = model.to(torch.bfloat16)(ids, attention_mask=mask).logits
    assert actual.dtype == torch.bfloat16
    seen = mask.bool()
    for logits in (autocast, actual.float().log_softmax(-1)):
        assert logits.isfinite().all()
        assert (logits - expected)[seen].abs().mean() < 0.1


@EVERY
@pytest.mark.parametrize("autocast", [False, True])
def test_rows_of_padding_give_no_nan_in_training(implementation, autocast):
    model = make_model(implementation).train()
    ids = make_ids(2, 9)
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = model(ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss
    loss.backward()
    assert loss.isfinite() and all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_additive_mask_hides_exactly_the_false_entries():
    mask = torch.tensor([[True, False]])
    added = additive_mask(mask, torch.float16)
    assert added.dtype == torch.float16 and added[0, 0] == 0 and added[0, 1] < -3e4
    assert (added - 100).isfinite().all()  # room for a bias: rows of nothing but padding must not become NaN
    assert additive_mask(added, torch.float16) is added and additive_mask(None, torch.float16) is None


def test_dropout_acts_in_training_only():
    model = make_model(hidden_dropout=0.3, attention_dropout=0.3)
    ids = make_ids(1, 8)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, model(ids).logits)
        model.train()
        assert not torch.equal(model(ids).logits, model(ids).logits)


def test_it_learns_a_sequence_that_needs_distances():
    torch.manual_seed(0)
    model = MusicTransformerForCausalLM(make_config(hidden_size=48, max_relative_distance=8)).train()
    # A 3 is followed by a 4, 5 or 6 depending on what stands three places before: content alone does not tell.
    ids = torch.tensor([[3, 4, 7, 3, 5, 7, 3, 6, 8] * 3])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        model(ids, labels=ids).loss.backward()
        optimizer.step()
    with torch.no_grad():
        assert model.eval()(ids, labels=ids).loss < 0.05
    continued = model.generate(ids[:, :9], max_new_tokens=18, do_sample=False)
    assert torch.equal(continued, ids)


# --- configuration, saving and loading --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"hidden_size": 25}, "multiple of num_attention_heads"),
        ({"num_attention_heads": 0}, "num_attention_heads must be at least 1"),
        ({"max_relative_distance": 0}, "max_relative_distance must be at least 1"),
        ({"max_position_embeddings": -1}, "max_position_embeddings must be at least 1"),
        ({"attention_window": 0}, "attention_window must be at least 2"),
        ({"attention_window": 1}, "attention_window must be at least 2"),
        ({"attention_dropout": 1.0}, r"attention_dropout must be in \[0, 1\)"),
        ({"hidden_dropout": -0.1}, r"hidden_dropout must be in \[0, 1\)"),
    ],
)
def test_bad_configurations_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        make_config(**overrides)


def test_config_round_trip_keeps_the_window_under_one_name(tmp_path):
    config = make_config(attention_window=7, eos_token_id=[2, 5])
    config.save_pretrained(tmp_path)
    loaded = MusicTransformerConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert loaded.attention_window == loaded.sliding_window == 7
    assert "sliding_window" not in config.to_dict()
    assert MusicTransformerConfig(sliding_window=9).attention_window == 9


def test_default_configuration_has_the_size_of_the_paper():
    with torch.device("meta"):
        model = MusicTransformerForCausalLM(MusicTransformerConfig())
    relative = 6 * 8 * 1024 * 64
    assert sum(p.numel() for p in model.parameters() if p.dim() == 3) == relative
    assert len(model.model.layers) == 6 and model.config.hidden_act == "relu"


@pytest.mark.parametrize("flash", ["flash_attention_2", "flex_attention"])
def test_unsupported_attention_is_refused(flash):
    with pytest.raises((ValueError, ImportError)):
        MusicTransformerForCausalLM(make_config(attn_implementation=flash))


def test_loading_initialises_what_the_checkpoint_lacks_and_nothing_else(tmp_path):
    model = make_model()
    state = {name: value for name, value in model.state_dict().items() if "relative_embedding" not in name}
    model.save_pretrained(tmp_path, state_dict=state)
    loaded, info = MusicTransformerForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert sorted(info["missing_keys"]) == [f"model.layers.{i}.self_attn.relative_embedding.weight" for i in range(2)]
    assert not list(loaded.buffers())  # nothing that loading on the meta device could leave as garbage
    for i, layer in enumerate(loaded.model.layers):
        weight = layer.self_attn.relative_embedding.weight
        assert 0.5 * 8**-0.5 < weight.std() < 2 * 8**-0.5
        assert torch.equal(layer.self_attn.q_proj.weight, model.model.layers[i].self_attn.q_proj.weight)
