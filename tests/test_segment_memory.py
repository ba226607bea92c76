"""Sinusoidal positions, memory of segments, search in what left it: against definitions and against one pass."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models_and_tokenizers import loosened
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from pianogen_hf.models.configuration_music_transformer import MusicTransformerConfig
from pianogen_hf.models.modeling_music_transformer import MusicTransformerForCausalLM
from pianogen_hf.models.segment_memory import SegmentMemory

pytestmark = pytest.mark.usefixtures("blocks_for_short_sequences")

# Made by kimiyoung/transformer-xl 44781ed, pytorch/mem_transformer.py with pre_lnorm, all parameters drawn: its weights
# under its names, and the logits of three segments of 12 tokens with a memory of 16.
GOLDEN = Path(__file__).parent / "golden" / "upstream_transformer_xl.safetensors"
VOCAB = 23
KINDS = pytest.mark.parametrize("kind", ["learned", "sinusoidal"])
EVERY = pytest.mark.parametrize("implementation", ["eager", "sdpa", "relative"])


def make_model(seed=0, implementation=None, **overrides):
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 3}
    values = {"vocab_size": VOCAB, **sizes, "max_position_embeddings": 64, "max_relative_distance": 30}
    values |= {"hidden_dropout": 0.0, "attention_dropout": 0.0, "eos_token_id": None, **overrides}
    torch.manual_seed(seed)
    config = MusicTransformerConfig(**values, attn_implementation=implementation)
    model = MusicTransformerForCausalLM(config).eval()
    return loosened(model, 0.2)


def make_ids(batch, length, seed=1):
    return torch.randint(3, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def in_segments(model, ids, mask, lengths):
    """Logits of a piece that is read with one memory, segment by segment, as `generate` does it; and the memory."""
    memory, logits, start = SegmentMemory(model.config), [], 0
    for length in lengths:
        stop = start + length
        logits.append(model(ids[:, start:stop], attention_mask=mask[:, :stop], past_key_values=memory).logits)
        start = stop
    return torch.cat(logits, dim=1), memory


def divisions(total):
    """Lengths of segments that add up to a total."""
    return st.sets(st.integers(1, total - 1), max_size=6).map(
        lambda cuts: [b - a for a, b in zip([0, *sorted(cuts)], [*sorted(cuts), total], strict=True)]
    )


# Positions ------------------------------------------------------------------------------------------------------------


@EVERY
@torch.no_grad()
def test_it_computes_what_transformer_xl_computed(implementation):
    golden = load_file(GOLDEN)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "vocab_size": 50}
    kind = {"position_embedding_type": "sinusoidal", "memory_length": 16}
    model = make_model(implementation=implementation, **sizes, **kind)
    for index, layer in enumerate(model.model.layers):
        ours = {"self_attn.o_proj.weight": "dec_attn.o_net.weight"}
        ours["self_attn.relative_embedding.r_proj.weight"] = "dec_attn.r_net.weight"
        for part in ("weight", "bias"):
            ours[f"input_layernorm.{part}"] = f"dec_attn.layer_norm.{part}"
            ours[f"post_attention_layernorm.{part}"] = f"pos_ff.layer_norm.{part}"
            ours |= {f"mlp.fc1.{part}": f"pos_ff.CoreNet.0.{part}", f"mlp.fc2.{part}": f"pos_ff.CoreNet.3.{part}"}
        weights = {name: golden[f"layers.{index}.{theirs}"] for name, theirs in ours.items()}
        projections = golden[f"layers.{index}.dec_attn.qkv_net.weight"].chunk(3)
        weights |= {f"self_attn.{name}_proj.weight": each for name, each in zip("qkv", projections, strict=True)}
        weights["self_attn.relative_embedding.content_bias"] = golden["r_w_bias"]
        weights["self_attn.relative_embedding.position_bias"] = golden["r_r_bias"]
        layer.load_state_dict(weights)
    model.model.norm = torch.nn.Identity()  # which theirs lacks, as ours does a factor of the embeddings and a bias
    table, memory = golden["word_emb.emb_layers.0.weight"], SegmentMemory(model.config)
    for number, ids in enumerate(golden["input_ids"].t()[:, :36].split(12, dim=1)):
        hidden = model.model(inputs_embeds=table[ids] * math.sqrt(32), past_key_values=memory).last_hidden_state
        logits = hidden @ table.t() + golden["crit.out_layers.0.bias"]
        torch.testing.assert_close(logits.transpose(0, 1), golden[f"logits_{number}"], atol=1e-4, rtol=1e-4)
    assert memory.kept == 16


@pytest.mark.parametrize("max_relative_distance, window", [(4, None), (30, None), (9, 5)])
def test_all_implementations_have_the_same_outputs_and_gradients(max_relative_distance, window):
    ids, mask, results = make_ids(2, 14), torch.ones(2, 14, dtype=torch.long), []
    mask[1, 10:] = 0
    for implementation in ("eager", "sdpa", "relative"):
        kind = {"position_embedding_type": "sinusoidal", "attention_window": window}
        model = make_model(implementation=implementation, max_relative_distance=max_relative_distance, **kind)
        logits = model(ids, attention_mask=mask, use_cache=False).logits[mask.bool()]
        logits.square().sum().backward()
        results.append((logits, {name: each.grad for name, each in model.named_parameters()}))
    for logits, gradients in results[1:]:
        assert_close(logits, results[0][0])
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, results[0][1][name], atol=1e-3, rtol=1e-3, msg=name)


@torch.no_grad()
def test_sinusoidal_positions_decode_as_they_read():
    model, ids = make_model(position_embedding_type="sinusoidal", max_relative_distance=6), make_ids(1, 5)
    generated = model.generate(ids, max_new_tokens=12, do_sample=False)
    for _ in range(12):
        ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(generated, ids)
    assert all(layer.self_attn.relative_embedding.packed_table is None for layer in model.model.layers)


# Memory ---------------------------------------------------------------------------------------------------------------


@KINDS
@settings(deadline=None, max_examples=25)
@given(lengths=divisions(16), padding=st.integers(0, 9))
@torch.no_grad()
def test_how_a_piece_is_divided_changes_nothing_within_the_memory(kind, lengths, padding):
    model = make_model(position_embedding_type=kind, memory_length=16)
    ids, mask = make_ids(2, 16), torch.ones(2, 16, dtype=torch.long)
    mask[1, :padding] = 0
    expected = model(ids, attention_mask=mask, use_cache=False).logits
    assert_close(in_segments(model, ids, mask, lengths)[0][mask.bool()], expected[mask.bool()])


@EVERY
@settings(deadline=None, max_examples=15)
@given(lengths=divisions(24), memory_length=st.integers(1, 9))
@torch.no_grad()
def test_with_a_window_how_a_piece_is_divided_never_changes_anything(implementation, lengths, memory_length):
    model = make_model(implementation=implementation, memory_length=memory_length, attention_window=memory_length + 1)
    ids, mask = make_ids(1, 24), torch.ones(1, 24, dtype=torch.long)
    logits, memory = in_segments(model, ids, mask, lengths)
    assert_close(logits, model(ids, use_cache=False).logits)
    assert memory.kept <= memory_length


@torch.no_grad()
def test_generation_sees_the_memory_and_no_more_however_long_it_goes_on():
    model, ids = make_model(memory_length=6), make_ids(2, 5)
    windowed = make_model(attention_window=7)  # the same weights
    memory = SegmentMemory(model.config)
    options = {"max_new_tokens": 30, "do_sample": False}
    generated = model.generate(ids, past_key_values=memory, **options)
    assert memory.kept == 6
    assert torch.equal(generated, model.generate(ids, **options))
    assert torch.equal(generated, windowed.generate(ids, **options))


@torch.no_grad()
def test_generate_keeps_a_memory_of_its_own_and_so_does_a_first_forward_pass():
    model = make_model(memory_length=4)
    output = model.generate(make_ids(1, 9), max_new_tokens=5, do_sample=False, return_dict_in_generate=True)
    assert isinstance(output.past_key_values, SegmentMemory) and output.past_key_values.kept == 4
    assert isinstance(model(make_ids(1, 3), use_cache=True).past_key_values, SegmentMemory)
    assert torch.equal(model.generate(make_ids(1, 9), max_new_tokens=5, do_sample=False), output.sequences)


def test_no_gradient_reaches_the_memory():
    model, memory = make_model(memory_length=8), None
    embeds = model.get_input_embeddings()(make_ids(1, 12)).detach().requires_grad_()
    memory = SegmentMemory(model.config)
    model(inputs_embeds=embeds[:, :6], past_key_values=memory)
    logits = model(inputs_embeds=embeds[:, 6:], past_key_values=memory).logits
    (gradient,) = torch.autograd.grad(logits.sum(), embeds)
    assert gradient[:, :6].abs().sum() == 0 and gradient[:, 6:].abs().sum() > 0


@pytest.mark.parametrize("knn_layer", [None, 1])
@torch.no_grad()
def test_sequences_that_begin_a_piece_forget_and_the_others_do_not(knn_layer):
    model = make_model(memory_length=4, knn_layer=knn_layer, knn_memory_size=40, knn_neighbours=3)
    ids, full = make_ids(2, 20), torch.ones(2, 5, dtype=torch.long)
    short = full.clone()
    short[1, 3:] = 0  # the second sequence ends its piece within the third segment
    memory, logits = SegmentMemory(model.config), []
    for number, mask in enumerate((full, full, short, full)):
        begins = torch.tensor([number == 0, number in (0, 3)])
        inputs = {"attention_mask": memory.begin_segment(mask, begins), "past_key_values": memory}
        logits.append(model(ids[:, 5 * number : 5 * number + 5], **inputs).logits)
    ones = torch.ones(1, 20, dtype=torch.long)
    assert_close(torch.cat(logits, 1)[:1], in_segments(model, ids[:1], ones, [5] * 4)[0])
    assert_close(torch.cat(logits[:3], 1)[1:, :13], in_segments(model, ids[1:, :13], ones, [5, 5, 3])[0])
    assert_close(logits[3][1:], model(ids[1:, 15:], use_cache=False).logits)


@torch.no_grad()
def test_a_memory_can_be_saved_selected_and_repeated():
    model = make_model(memory_length=4, knn_layer=2, knn_memory_size=8, knn_neighbours=3)
    ids, mask = make_ids(3, 25), torch.ones(3, 25, dtype=torch.long)
    mask[2, :7] = 0
    expected, _ = in_segments(model, ids, mask, [5] * 5)
    _, memory = in_segments(model, ids, mask, [5] * 4)
    restored = SegmentMemory(model.config)
    restored.load_state_dict({name: each.clone() for name, each in memory.state_dict().items()})
    segment = torch.ones(3, 5, dtype=torch.long)
    for each in (memory, restored):
        inputs = {"attention_mask": each.begin_segment(segment), "past_key_values": each}
        assert_close(model(ids[:, 20:], **inputs).logits, expected[:, 20:])
    chosen = torch.tensor([2, 0])
    _, memory = in_segments(model, ids, mask, [5] * 4)
    memory.batch_select_indices(chosen)
    inputs = {"attention_mask": memory.begin_segment(segment[chosen]), "past_key_values": memory}
    assert_close(model(ids[chosen, 20:], **inputs).logits, expected[chosen, 20:])


# Search ---------------------------------------------------------------------------------------------------------------


def naive_retrieval(attention, query, local, stored):
    """The definition, for one sequence: query and local (length, heads, head_dim), stored a list of (key, value)."""
    result = local.clone()
    for head in range(query.shape[1]):
        keys = torch.stack([key[head] for key, _ in stored])
        values = torch.stack([value[head] for _, value in stored])
        for row in range(query.shape[0]):
            logits = keys @ query[row, head]
            nearest = logits.argsort(descending=True)[: attention.retrieval.num_neighbours]
            found = logits[nearest].softmax(0) @ values[nearest]
            gate = attention.retrieval.gate_bias[head].sigmoid()
            result[row, head] = gate * found + (1 - gate) * local[row, head]
    return result


@torch.no_grad()
def test_the_search_equals_its_definition_and_never_finds_padding_or_what_the_store_has_lost():
    model = make_model(memory_length=3, knn_layer=0, knn_memory_size=7, knn_neighbours=4)
    attention, queries, seen = model.model.layers[0].self_attn, [], []
    search = attention.retrieval.search
    attention.retrieval.search = lambda query, *store: (queries.append(query), search(query, *store))[1]
    attention.retrieval.register_forward_hook(lambda module, given, mixed: seen.append((given[0], mixed)))
    ids, mask = make_ids(2, 20), torch.ones(2, 20, dtype=torch.long)
    mask[1, :6] = 0
    in_segments(model, ids, mask, [4, 4, 6, 1, 5])
    hidden = model.model.layers[0].input_layernorm(model.model.embed_tokens(ids))
    # (batch, length, heads, head_dim)
    keys, values = (each(hidden).unflatten(-1, (3, -1)) for each in (attention.k_proj, attention.v_proj))
    keys = torch.nn.functional.normalize(keys, dim=-1)
    for query, (local, mixed), start in zip(queries, seen, (4, 8, 14, 15), strict=True):
        for row in range(2):
            stored = [(keys[row, i], values[row, i]) for i in range(max(0, start - 10), start - 3) if mask[row, i]]
            expected = local[row]
            if stored:
                expected = naive_retrieval(attention, query[row].transpose(0, 1), local[row], stored)
            assert_close(mixed[row], expected)


def test_the_search_learns():
    model, memory = make_model(memory_length=3, knn_layer=1, knn_memory_size=7, knn_neighbours=4), None
    memory = SegmentMemory(model.config)
    for start in range(0, 24, 6):  # more than the store holds: what was searched must outlive what is written
        mask = memory.begin_segment(torch.ones(2, 6, dtype=torch.long))
        ids = make_ids(2, 24)[:, start : start + 6]
        loss = model(ids, labels=ids, attention_mask=mask, past_key_values=memory).loss
        model.zero_grad()
        loss.backward()
    retrieval = model.model.layers[1].self_attn.retrieval
    assert retrieval.gate_bias.grad.abs().min() > 0 and retrieval.qk_norm.grad.abs().min() > 0


@torch.no_grad()
def test_a_searching_model_is_saved_loaded_and_generates_in_padded_batches_and_beams(tmp_path):
    settings = {"position_embedding_type": "sinusoidal", "memory_length": 3}
    make_model(**settings, knn_layer=1, knn_memory_size=9, knn_neighbours=2).save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    prompts, options = [make_ids(1, 3, seed=5), make_ids(1, 9, seed=6)], {"max_new_tokens": 20, "do_sample": False}
    ids, mask = torch.zeros(2, 9, dtype=torch.long), torch.zeros(2, 9, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, 9 - prompt.shape[1] :], mask[row, 9 - prompt.shape[1] :] = prompt, 1
    batch = model.generate(ids, attention_mask=mask, return_dict_in_generate=True, **options)
    for row, prompt in enumerate(prompts):
        memory = SegmentMemory(model.config)
        alone = model.generate(prompt, past_key_values=memory, **options)[0, prompt.shape[1] :]
        if row:  # the shorter one goes through its prompt in one segment of another length: a store of other tokens
            assert torch.equal(batch.sequences[row, 9:], alone)
    store = batch.past_key_values.layers[1]
    assert store.store_keys.shape[2] == 9 and store.kept == 3
    beams = model.generate(ids, attention_mask=mask, num_beams=3, **options)
    assert beams.shape == (2, 29)


# Configuration --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"position_embedding_type": "rotary"}, "must be 'learned' or 'sinusoidal'"),
        ({"memory_length": 0}, "memory_length must be at least 1"),
        ({"memory_length": 4, "knn_layer": 3}, r"knn_layer must be in 0\.\.2"),
        ({"knn_layer": 1}, "it needs a memory_length"),
        ({"knn_memory_size": 0}, "knn_memory_size must be at least 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        make_model(**wrong)
