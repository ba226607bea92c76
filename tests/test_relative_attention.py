"""Tests of the relative attention: against the definition, numerically, and as an attention of transformers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers.masking_utils import causal_mask_function, sliding_window_causal_mask_function

from pianogen_hf.models import relative_attention, relative_attention_dispatch
from pianogen_hf.models.configuration_music_transformer import MusicTransformerConfig
from pianogen_hf.models.modeling_music_transformer import MusicTransformerForCausalLM
from pianogen_hf.models.relative_attention import (
    BlockBuffer,
    Dropout,
    Settings,
    Workspace,
    blocks,
    blockwise_relative_attention,
    farthest_first,
    product_dtype,
)
from pianogen_hf.models.relative_attention_dispatch import flex_mask, flex_relative_attention, relative_attention_mask

pytestmark = pytest.mark.usefixtures("blocks_for_short_sequences")


SCALING = 0.4
# Global, clipped, windowed, both, a window wider than the sequence, and a single embedding.
FORMS = pytest.mark.parametrize(
    ("num_distances", "window"), [(30, None), (4, None), (30, 5), (3, 6), (2, 40), (1, None), (1, 3)]
)


def make_inputs(num_queries=11, num_keys=11, num_distances=4, dtype=torch.float64, batch=2, num_heads=3, seed=0):
    torch.manual_seed(seed)
    shapes = [(batch, num_heads, n, 4) for n in (num_queries, num_keys, num_keys)] + [(num_heads, num_distances, 4)]
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def naive(query, key, value, embedding, mask=None, window=None, scaling=SCALING, kept=None):
    """The definition with a lookup of each distance; rows that see nothing at all give 0."""
    num_queries, num_keys = query.shape[2], key.shape[2]
    distance = torch.arange(num_keys - num_queries, num_keys)[:, None] - torch.arange(num_keys)
    visible = distance >= 0
    if window is not None:
        visible &= distance < window
    relative = embedding[:, distance.clamp(0, embedding.shape[1] - 1)]  # (heads, queries, keys, head_dim)
    logits = query @ key.transpose(2, 3) + torch.einsum("bhqd,hqkd->bhqk", query, relative)
    logits = logits * scaling
    if mask is not None:
        visible = visible & mask
    weights = logits.masked_fill(~visible, -torch.inf).softmax(-1).nan_to_num(0.0)
    return (weights if kept is None else weights * kept) @ value


def padding_mask(num_keys, *padding):
    return torch.stack([torch.arange(num_keys) >= n for n in padding])[:, None, None]


def small(window=None, dropout=0.0, rows=4, dtype=None):
    return Settings(SCALING, window, dropout, rows, dtype)  # several blocks in a few tokens


# --- geometry ---------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    num_queries=st.integers(1, 40),
    past=st.integers(0, 20),
    window=st.none() | st.integers(1, 30),
    rows=st.integers(1, 9),
)
def test_blocks_cover_each_query_once_and_just_the_keys_in_reach(num_queries, past, window, rows):
    result = blocks(num_queries, past + num_queries, Settings(1.0, window, 0.0, rows))
    assert [i for block in result for i in range(num_queries)[block.rows]] == list(range(num_queries))
    for block in result:
        last = past + block.rows.stop - 1
        first = 0 if window is None else max(0, past + block.rows.start - window + 1)
        assert (block.keys.start, block.keys.stop) == (first, last + 1)
        assert block.num_rows == block.rows.stop - block.rows.start <= 2 * rows
        assert block.num_keys == last + 1 - first


@given(num_queries=st.integers(1, 20), past=st.integers(0, 8), rows=st.integers(1, 6), num_distances=st.integers(1, 30))
def test_rows_by_distance_are_the_same_memory_as_rows_by_key(num_queries, past, rows, num_distances):
    block_list = blocks(num_queries, past + num_queries, Settings(1.0, None, 0.0, rows))
    buffer = BlockBuffer(block_list, num_distances, torch.float32, torch.device("cpu"))
    for block, by_key, by_distance in zip(block_list, buffer.by_key, buffer.by_distance, strict=True):
        by_key.copy_(torch.arange(by_key.numel()).view_as(by_key))
        width = by_distance.shape[1]
        assert width == min(num_distances, block.num_keys)
        for row in range(block.num_rows):
            own = block.num_keys - block.num_rows + row
            for distance in range(min(width, own + 1)):
                assert by_distance[row, width - 1 - distance] == by_key[row, own - distance]


def buffer_size(length, window):
    block_list = blocks(length, length, Settings(1.0, window))
    return BlockBuffer(block_list, length, torch.float32, torch.device("cpu")).by_key[0].untyped_storage().nbytes() // 4


def test_no_buffer_grows_with_the_square_of_the_length():
    assert buffer_size(512, 64) == buffer_size(1024, 64) < 512 * 512 / 8
    assert buffer_size(2048, None) <= 2 * buffer_size(1024, None) < 2 * 1024 * 1024 / 7


# --- against the definition -------------------------------------------------------------------------------------------


def assert_same_with_gradients(actual, expected, inputs, rows=slice(None), **tolerance):
    """Equal outputs, and equal gradients of a loss on those `rows` (an index of outputs)."""
    torch.testing.assert_close(actual[rows], expected[rows], **tolerance)
    weight = torch.randn_like(expected[rows])
    ours, theirs = (torch.autograd.grad(x[rows], inputs, weight) for x in (actual, expected))
    torch.testing.assert_close(ours, theirs, **tolerance)


@FORMS
@pytest.mark.parametrize("num_queries", [1, 3, 11])
@pytest.mark.parametrize("padded", [False, True])
def test_output_and_gradients_equal_the_definition(num_distances, window, num_queries, padded):
    inputs = make_inputs(num_queries, 11, num_distances)
    mask = padding_mask(11, 0, 6) if padded else None
    actual = blockwise_relative_attention(*inputs, mask, small(window))
    expected = naive(*inputs, mask, window)
    # Queries that see nothing but padding are undefined.
    seen = torch.ones(2, num_queries, dtype=torch.bool) if mask is None else mask[:, 0, 0, 11 - num_queries :]
    seen = seen[:, None].expand(2, 3, num_queries)
    assert_same_with_gradients(actual, expected, inputs, seen)


@settings(deadline=None, max_examples=60)
@given(
    num_queries=st.integers(1, 14),
    past=st.integers(0, 6),
    num_distances=st.integers(1, 22),
    window=st.none() | st.integers(1, 16),
    rows=st.integers(1, 8),
    seed=st.integers(0, 99),
)
def test_any_shape_equals_the_definition(num_queries, past, num_distances, window, rows, seed):
    inputs = make_inputs(num_queries, past + num_queries, num_distances, seed=seed)
    actual = blockwise_relative_attention(*inputs, None, small(window, rows=rows))
    assert_same_with_gradients(actual, naive(*inputs, None, window), inputs)


@pytest.mark.parametrize("additive", [False, True])
def test_a_mask_per_query_keeps_packed_sequences_apart(additive):
    inputs = make_inputs(num_distances=30)
    part = torch.tensor([0] * 4 + [1] * 7)
    mask = (part[:, None] == part)[None, None]
    given = torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, -math.inf) if additive else mask
    actual = blockwise_relative_attention(*inputs, given, small())
    assert_same_with_gradients(actual, naive(*inputs, mask), inputs)
    alone = blockwise_relative_attention(*(x[:, :, 4:] for x in inputs[:3]), inputs[3], None, small())
    torch.testing.assert_close(actual[:, :, 4:], alone)


@pytest.mark.parametrize(("num_distances", "window"), [(30, None), (3, None), (30, 4), (3, 6)])
@pytest.mark.parametrize("padded", [False, True])
def test_gradcheck(num_distances, window, padded):
    inputs = make_inputs(6, 6, num_distances, batch=1, num_heads=2)
    mask = padding_mask(6, 2) if padded else None
    assert torch.autograd.gradcheck(
        lambda *x: blockwise_relative_attention(*x, mask, small(window, rows=3)), inputs, fast_mode=False
    )


@FORMS
def test_float32_equals_the_definition_at_the_usual_block_size(num_distances, window):
    inputs = make_inputs(300, 300, num_distances, torch.float32, batch=1)
    actual = blockwise_relative_attention(*inputs, None, Settings(SCALING, window))
    assert_same_with_gradients(actual, naive(*inputs, None, window), inputs, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(actual, naive(*inputs, None, window), atol=1e-5, rtol=1e-5)


def test_large_logits_neither_overflow_nor_lose_the_gradient():
    inputs = make_inputs(9, 9, 4)
    large = [(x * 40).detach().requires_grad_() for x in inputs]
    actual = blockwise_relative_attention(*large, None, small())
    assert naive(*large).abs().max() > 20 and actual.isfinite().all()
    assert_same_with_gradients(actual, naive(*large), large)


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize(("scale", "no_shift"), [(1, True), (8, False)])
def test_logits_are_shifted_only_where_they_could_overflow(monkeypatch, window, scale, no_shift):
    decisions, decide = [], Workspace.needs_no_shift
    monkeypatch.setattr(Workspace, "needs_no_shift", lambda *args: decisions.append(decide(*args)) or decisions[-1])
    inputs = [(x * scale).detach().requires_grad_() for x in make_inputs(24, 24, 30, torch.float32)]
    with torch.no_grad():  # the future holds what overflows, and must not decide about what is seen
        inputs[1][:, :, -1] *= scale**2
    actual = blockwise_relative_attention(*inputs, None, small(window))
    assert set(decisions) == {no_shift}
    assert_same_with_gradients(actual, naive(*inputs, None, window), inputs, atol=1e-3 * scale**4, rtol=1e-3)
    torch.testing.assert_close(actual, naive(*inputs, None, window), atol=1e-4 * scale, rtol=1e-4)


def test_the_table_without_the_clipped_distance_has_the_same_differences():
    embedding = torch.arange(4.0).view(1, 4, 1) ** 2
    assert farthest_first(embedding, 4, None).flatten().tolist() == [9, 4, 1, 0]
    assert farthest_first(embedding, 9, 3).flatten().tolist() == [4, 1, 0]
    assert farthest_first(embedding, 9, None).flatten().tolist() == [4 - 9, 1 - 9, 0 - 9]


def test_keys_out_of_the_window_are_never_read():
    query, key, value, embedding = make_inputs(4, 12, 3)
    with torch.no_grad():
        key[:, :, :7], value[:, :, :7] = math.nan, math.nan  # the first query, number 8, sees 7 and 8
    assert not blockwise_relative_attention(query, key, value, embedding, None, small(2)).isnan().any()


# --- precision --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_bfloat16_inputs_work_in_both_types_of_products(dtype, dropout):
    inputs = make_inputs(40, 40, 8, torch.float32)
    rounded = [x.detach().to(torch.bfloat16).requires_grad_() for x in inputs[:3]] + [inputs[3]]
    mask = padding_mask(40, 0, 5)
    seen = mask[:, 0, 0]  # what sees nothing but padding is undefined
    outputs = []
    for tensors, own in ((rounded, dtype), (inputs, None)):
        torch.manual_seed(3)  # the same blocks, too, and with them the same dropout
        how = small(9, dropout, 8 if own == torch.bfloat16 else 16, own)
        outputs.append(blockwise_relative_attention(*tensors, mask, how).transpose(1, 2)[seen])
    assert outputs[0].dtype == torch.bfloat16
    torch.testing.assert_close(outputs[0].float(), outputs[1], atol=0.1, rtol=0.1)
    ours, theirs = torch.autograd.grad(outputs[0].sum(), rounded), torch.autograd.grad(outputs[1].sum(), inputs)
    assert [x.dtype for x in ours] == [torch.bfloat16] * 3 + [torch.float32]
    for a, b in zip(ours, theirs, strict=True):
        assert (a.float() - b).norm() < 0.05 * b.norm()


def test_both_passes_round_large_logits_alike():
    torch.manual_seed(0)
    exact = [torch.randn(1, 2, 300, 64) * scale for scale in (3, 3, 1)] + [torch.randn(2, 64, 64) * 0.4]
    exact = [x.to(torch.bfloat16).double().requires_grad_() for x in exact]
    rounded = [x.detach().to(torch.bfloat16).requires_grad_() for x in exact]
    grad = torch.randn(1, 2, 300, 64).to(torch.bfloat16)
    gradients = []
    for inputs, dtype in ((exact, torch.float64), (rounded, torch.bfloat16)):
        output = blockwise_relative_attention(*inputs, None, Settings(0.125, dtype=dtype))
        gradients.append(torch.autograd.grad(output, inputs, grad.to(dtype)))
    for expected, actual in zip(*gradients, strict=True):
        assert (actual - expected).norm() < 0.05 * expected.norm()


def test_products_use_16_bits_only_where_the_processor_has_them(monkeypatch):
    half = torch.zeros(1, dtype=torch.bfloat16)
    for fast, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda fast=fast: fast)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        assert product_dtype(half) == expected
        assert product_dtype(half.half()) == torch.float32
        assert product_dtype(half.double()) == torch.float64


# --- dropout ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5, 0.9, 0.999999])
def test_dropout_keeps_what_it_says(probability):
    dropout = Dropout(probability, 5, torch.device("cpu"))
    mask = dropout.mask(torch.empty(301, 701))
    assert set(mask.unique().tolist()) <= {0.0, 1.0}
    assert abs(dropout.kept - (1 - probability)) <= 1 / 65536
    n = mask.numel()
    assert abs(mask.sum().item() - n * dropout.kept) <= 5 * math.sqrt(n * dropout.kept * (1 - dropout.kept))
    again = Dropout(probability, 5, torch.device("cpu"))
    assert torch.equal(again.mask(torch.empty(301, 701)), mask)
    if 0.05 < probability < 0.95:
        assert not torch.equal(again.mask(torch.empty(301, 701)), mask)


def masks_of(monkeypatch, seed):
    """The masks that a forward pass draws, by the order of heads and blocks."""
    drawn, draw = [], Dropout.mask
    monkeypatch.setattr(Dropout, "mask", lambda self, like: drawn.append(draw(self, like)) or drawn[-1].clone())
    inputs = make_inputs(8, 8, 3, batch=1, num_heads=1)
    torch.manual_seed(seed)
    output = blockwise_relative_attention(*inputs, None, small(dropout=0.4))
    count = len(drawn)
    gradients = torch.autograd.grad(output, inputs, torch.ones_like(output))
    for forward, backward in zip(drawn[:count], drawn[count:], strict=True):
        assert torch.equal(forward, backward)
    monkeypatch.undo()
    return inputs, output, gradients, drawn[:count]


def test_dropout_acts_on_weights_and_comes_back_in_the_backward_pass(monkeypatch):
    inputs, output, gradients, (first, second) = masks_of(monkeypatch, 1)
    kept = torch.zeros(8, 8, dtype=torch.float64)
    kept[:4, :4], kept[4:] = first, second
    expected = naive(*inputs, kept=kept / (1 - round(0.4 * 65536) / 65536))
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, inputs, torch.ones_like(expected)))


def test_dropout_is_set_by_the_seed(monkeypatch):
    one, same, other = (masks_of(monkeypatch, seed)[1] for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_dropout_leaves_the_mean_as_it_is():
    inputs = [x.detach() for x in make_inputs(6, 6, 3)]
    torch.manual_seed(0)
    many = [blockwise_relative_attention(*inputs, None, small(dropout=0.5)) for _ in range(300)]
    expected = blockwise_relative_attention(*inputs, None, small())
    error = torch.stack(many).std(0) / math.sqrt(300)
    assert ((torch.stack(many).mean(0) - expected).abs() <= 5 * error + 1e-12).all()


# --- threads ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def three_threads(monkeypatch):
    """Three threads, even for a few tokens; the number of before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    monkeypatch.setattr(relative_attention, "WORTH_A_THREAD", 0)
    yield
    torch.set_num_threads(before)


def seeded_run(num_heads, dropout):
    inputs = make_inputs(num_heads=num_heads)
    torch.manual_seed(4)
    output = blockwise_relative_attention(*inputs, padding_mask(11, 0, 6), small(5, dropout))
    return output, torch.autograd.grad(output, inputs, torch.ones_like(output))


@pytest.mark.parametrize("num_heads", [1, 2, 3, 4])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_threads_change_nothing(request, num_heads, dropout):
    alone = seeded_run(num_heads, dropout)
    request.getfixturevalue("three_threads")
    torch.testing.assert_close(seeded_run(num_heads, dropout), alone, atol=0, rtol=0)
    assert torch.get_num_threads() == 3


def test_threads_follow_the_modes_of_the_caller(three_threads):
    query, key, value, embedding = make_inputs()
    with torch.inference_mode():
        quiet = blockwise_relative_attention(query * 1, key * 1, value * 1, embedding, None, small())
    assert quiet.is_inference()
    torch.testing.assert_close(quiet.clone(), blockwise_relative_attention(query, key, value, embedding, None, small()))
    with torch.autocast("cpu", torch.bfloat16):
        exact = blockwise_relative_attention(query, key, value, embedding, None, small())
    torch.testing.assert_close(exact, quiet.clone(), atol=0, rtol=0)


def test_an_error_in_a_thread_reaches_the_caller(three_threads):
    query, key, value, embedding = make_inputs()
    with pytest.raises(RuntimeError):
        blockwise_relative_attention(query, key, value[:, :, :5], embedding, None, small())
    assert torch.get_num_threads() == 3


# --- as an attention of transformers ----------------------------------------------------------------------------------


def make_model(**overrides):
    torch.manual_seed(0)
    values = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return MusicTransformerForCausalLM(MusicTransformerConfig(vocab_size=20, **{**values, **overrides}))


def calls_of(monkeypatch, run):
    """How often blocks and the dense bias were used."""
    counts = {"blocks": 0, "dense": 0}

    def counting(name, function):
        def count(*args, **kwargs):
            counts[name] += 1
            return function(*args, **kwargs)

        return count

    for name, path in (("blocks", "blockwise_relative_attention"), ("dense", "sdpa_attention_forward")):
        function = getattr(relative_attention_dispatch, path)
        monkeypatch.setattr(relative_attention_dispatch, path, counting(name, function))
    run()
    monkeypatch.undo()
    return counts


def test_training_and_prompts_run_in_blocks_and_decoding_looks_up(monkeypatch):
    model = make_model(attention_dropout=0.2)
    ids = torch.randint(3, 20, (2, 12))
    assert model.config._attn_implementation == "relative"
    loss = lambda: model.train()(ids, labels=ids, use_cache=False).loss.backward()  # noqa: E731
    assert calls_of(monkeypatch, loss) == {"blocks": 2, "dense": 0}
    generate = lambda: model.eval().generate(ids, max_new_tokens=4, eos_token_id=None)  # noqa: E731
    assert calls_of(monkeypatch, generate) == {"blocks": 2, "dense": 6}


def test_short_sequences_are_dense_and_give_the_same(monkeypatch):
    model, ids = make_model().eval(), torch.randint(3, 20, (2, 12))
    in_blocks = model(ids, use_cache=False).logits
    monkeypatch.setattr(relative_attention_dispatch, "MAX_DENSE_KEYS", 12)
    assert calls_of(monkeypatch, lambda: model(ids, use_cache=False)) == {"blocks": 0, "dense": 2}
    torch.testing.assert_close(model(ids, use_cache=False).logits, in_blocks, atol=1e-5, rtol=1e-5)


def test_checkpointing_draws_the_same_dropout_again():
    model = make_model(attention_dropout=0.3, hidden_dropout=0.2).train()
    ids = torch.randint(3, 20, (2, 12))
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.activation_checkpointing_enable()
        model.zero_grad()
        torch.manual_seed(5)
        model(ids, labels=ids, use_cache=False).loss.backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("window", [None, 5])
def test_masks_are_no_larger_than_the_padding(window):
    function = causal_mask_function if window is None else sliding_window_causal_mask_function(window)
    config = MusicTransformerConfig(attention_window=window)
    arguments = {"mask_function": function, "config": config}
    assert relative_attention_mask(2, 9, 9, **arguments) is None
    assert relative_attention_mask(2, 9, 9, attention_mask=torch.ones(2, 9, dtype=torch.bool), **arguments) is None
    padded = torch.arange(9) >= torch.tensor([[0], [4]])
    mask = relative_attention_mask(2, 9, 9, attention_mask=padded, **arguments)
    assert torch.equal(mask, padded[:, None, None])
    # three new tokens after nine of which a cache kept the last four
    late = relative_attention_mask(2, 3, 7, 9, 5, attention_mask=torch.arange(12).expand(2, 12) >= 6, **arguments)
    assert late.shape == (2, 1, 1, 7) and late[0].flatten().tolist() == [False] + [True] * 6


@pytest.mark.parametrize(("num_distances", "window"), [(30, None), (4, None), (4, 5)])
def test_flex_attention_follows_the_same_definition(monkeypatch, num_distances, window):
    monkeypatch.setattr(
        relative_attention_dispatch,
        "compile_friendly_flex_attention",
        lambda *args, **kwargs: flex_attention(*args, **kwargs),
    )
    inputs = [x.detach() for x in make_inputs(7, 11, num_distances, torch.float32)]
    function = causal_mask_function if window is None else sliding_window_causal_mask_function(window)
    padding = padding_mask(11, 0, 3)
    mask = flex_mask(2, 7, 11, 4, 0, function, padding[:, 0, 0], "cpu")
    assert isinstance(mask, BlockMask)
    actual = flex_relative_attention(*inputs, mask, SCALING, inputs[0])
    torch.testing.assert_close(actual, naive(*inputs, padding, window), atol=1e-5, rtol=1e-5)


def test_training_memory_is_linear_in_the_length_for_a_window():
    """What a layer keeps for the backward pass: nothing with two dimensions of the length."""
    kept = []
    for length in (256, 512):
        inputs = make_inputs(length, length, 16, torch.float32, batch=1)
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, s=sizes: s.append(x.numel()) or x, lambda x: x):
            blockwise_relative_attention(*inputs, None, Settings(SCALING, 32))
        kept.append(sum(sizes))
    assert kept[1] < 2 * kept[0]
