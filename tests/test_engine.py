"""The exported model does what the torch model does: tokens, samples, continuations, in float32 and in 8 bits."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from pianogen_hf.commands.export import main
from pianogen_hf.generation.constraints import GrammarLogitsProcessor
from pianogen_hf.generation.continuation import Length, continue_notes
from pianogen_hf.generation.drawing import draw
from pianogen_hf.generation.onnx.builder import ExportError, quantized
from pianogen_hf.generation.onnx.checks import check_greedy, total_nats
from pianogen_hf.generation.onnx.engine import Decoder, OnnxEngine, cache_scales
from pianogen_hf.generation.onnx.graph import build_graph
from pianogen_hf.generation.onnx.session import EngineError
from pianogen_hf.models.configuration_music_transformer import MusicTransformerConfig
from pianogen_hf.models.modeling_music_transformer import MusicTransformerForCausalLM
from pianogen_hf.tokenizers.tokenization_jsb import JSBTokenizer

TOKENIZER = JSBTokenizer()
KINDS = {
    "plain": {},
    "clipped": {"max_relative_distance": 12},
    "windowed": {"attention_window": 20},
    "windowed and clipped": {"attention_window": 20, "max_relative_distance": 12},
    "gelu, untied": {"hidden_act": "gelu", "tie_word_embeddings": False},
}


@cache
def model_of(kind: str = "plain") -> MusicTransformerForCausalLM:
    """A tiny model whose logits are far apart, so that rounding decides nothing."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"vocab_size": len(TOKENIZER), "max_position_embeddings": 64, "max_relative_distance": 512}
    config = MusicTransformerConfig(**{**sizes, **KINDS[kind]})
    model = MusicTransformerForCausalLM(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model


@cache
def engine_of(kind: str = "plain", precision: str = "float32") -> OnnxEngine:
    model = model_of(kind)
    return OnnxEngine(graph_of(kind, precision), model.config, model.generation_config, num_threads=1)


def graph_of(kind: str = "plain", precision: str = "float32") -> bytes:
    model = model_of(kind)
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    scales = cache_scales(engine_of(kind), [random_ids(100)]) if precision == "int8" else None
    return build_graph(weights, model.config, scales).SerializeToString()


def random_ids(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, len(TOKENIZER), shape)


def torch_logits(kind: str, ids: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return model_of(kind)(torch.from_numpy(ids)[None]).logits[0].numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_torch_beyond_chunks_windows_and_distances(kind):
    ids = random_ids(300)
    np.testing.assert_allclose(engine_of(kind).logits(ids), torch_logits(kind, ids), atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=8, deadline=None)
@given(length=st.integers(2, 80), prompt=st.integers(1, 79), rows=st.integers(1, 3))
def test_tokens_one_by_one_give_what_all_at_once_give(kind, length, prompt, rows):
    ids, engine = random_ids(rows, length, seed=length), engine_of(kind)
    decoder, prompt = Decoder(engine, rows, length), min(prompt, length - 1)
    logits = decoder.read_prompts(ids[:, :prompt])
    for place in range(prompt, length):
        logits = decoder.step(ids[:, place])
    expected = np.stack([engine.logits(row)[-1] for row in ids])
    np.testing.assert_allclose(logits, expected, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_thousand_greedy_tokens_are_those_of_torch(kind):
    assert check_greedy(engine_of(kind), model_of(kind), random_ids(40)).startswith(("1,000 of", "999 of"))


def test_a_graph_with_other_inputs_wants_to_be_exported_again(tmp_path):
    model_of().save_pretrained(tmp_path)
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").write_bytes(graph_of().replace(b"bias_sizes", b"bias_shape"))
    with pytest.raises(EngineError, match="model.onnx can't be opened: .* export it again"):
        OnnxEngine.from_pretrained(tmp_path)


def test_a_graph_that_differs_from_the_model_is_found():
    with pytest.raises(ExportError, match="greedy tokens differ"):
        check_greedy(engine_of("clipped"), model_of("plain"), random_ids(40))


@pytest.mark.parametrize("kind", ["plain", "windowed"])
@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": False},
        {"do_sample": True},  # with top_k 50, the default of transformers
        {"do_sample": True, "top_k": 0, "top_p": 0.8, "temperature": 1.3},
        {"do_sample": True, "top_k": 7, "num_return_sequences": 3},
        {"do_sample": True, "top_k": 0, "eos_token_id": [2, 5, 6, 7, 8, 9], "pad_token_id": 0},
    ],
)
def test_generation_is_that_of_transformers(kind, options):
    """Grammar, sampling, seeds, ends and padding: the same ids as `model.generate`."""
    prompts = torch.from_numpy(random_ids(2, 12))

    def written(model):
        grammar = GrammarLogitsProcessor(TOKENIZER, [[], []], open_until=[30, 30], max_rest=8)
        torch.manual_seed(3)
        return model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=40,
            logits_processor=LogitsProcessorList([grammar]),
            **options,
        )

    assert torch.equal(written(engine_of(kind)), written(model_of(kind)))


def drawn_by_transformers(scores: np.ndarray, temperature: float, top_k: int, top_p: float) -> np.ndarray:
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    warpers.append(TopPLogitsWarper(top_p))
    left = warpers(None, torch.from_numpy(scores))
    return torch.multinomial(left.softmax(-1), 1)[:, 0].numpy()


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 3),
    num_ids=st.integers(1, 60),
    forbidden=st.floats(0, 0.95),
    temperature=st.floats(0.1, 3),
    top_k=st.integers(0, 70),
    top_p=st.sampled_from([0.0, 0.1, 0.5, 0.9, 0.95, 1.0]),
)
def test_ids_are_drawn_as_transformers_and_torch_draw_them(seed, rows, num_ids, forbidden, temperature, top_k, top_p):
    rng = np.random.default_rng(seed)
    scores = rng.normal(0, 3, (rows, num_ids)).astype(np.float32)
    is_forbidden = rng.random(scores.shape) < forbidden
    is_forbidden[:, rng.integers(num_ids)] = False
    scores[is_forbidden] = -np.inf
    torch.manual_seed(seed)
    expected = drawn_by_transformers(scores, temperature, top_k, top_p)
    torch.manual_seed(seed)
    assert draw(scores, temperature, top_k, top_p).tolist() == expected.tolist()


@pytest.mark.parametrize("damaged", [[[0.0, np.nan]], [[0.0, np.inf]], [[0.0, 0.0], [-np.inf, -np.inf]]])
def test_nothing_is_drawn_from_logits_that_are_not_finite(damaged):
    with pytest.raises(ValueError, match="not finite"):
        draw(np.array(damaged, np.float32))


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"temperature": -1.0}, {"top_k": -1}, {"top_p": 1.5}])
def test_settings_that_mean_nothing_are_refused(wrong):
    with pytest.raises(ValueError, match="temperature must be above 0, top_k"):
        engine_of().generate(torch.tensor([[1, 5, 6]]), max_new_tokens=4, do_sample=True, **wrong)


def test_settings_not_given_come_from_the_generation_config():
    engine = engine_of()
    before = engine.generation_config.to_dict()
    engine.generation_config.update(do_sample=True, top_k=1)
    prompt = torch.from_numpy(random_ids(1, 12))
    try:
        ids = engine.generate(prompt, max_new_tokens=20)
    finally:
        engine.generation_config.update(do_sample=before["do_sample"], top_k=before["top_k"])
    assert torch.equal(ids, engine.generate(prompt, max_new_tokens=20, do_sample=False))


def test_what_the_engine_can_not_do_is_refused():
    engine, prompt = engine_of(), torch.tensor([[1, 5, 6]])
    with pytest.raises(ValueError, match="padding"):
        engine.generate(prompt, max_new_tokens=3, attention_mask=torch.tensor([[0, 1, 1]]))
    with pytest.raises(ValueError, match="at least one id"):
        engine.generate(prompt[:, :0], max_new_tokens=3)
    with pytest.raises(TypeError, match="num_beams"):
        engine.generate(prompt, max_new_tokens=3, num_beams=4)


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_music_is_continued_through_the_engine(precision):
    results = continue_notes(
        engine_of("plain", precision), TOKENIZER, Length(notes=12), num_samples=2, seed=1, do_sample=True, top_k=0
    )
    assert [len(result.new) for result in results] == [12, 12]


def test_the_engine_continues_music_as_the_model_does():
    options = {"length": Length(notes=20), "num_samples": 2, "seed": 1, "do_sample": True, "top_p": 0.95, "top_k": 0}
    for one, other in zip(
        continue_notes(engine_of(), TOKENIZER, **options), continue_notes(model_of(), TOKENIZER, **options), strict=True
    ):
        assert one.notes == other.notes


@pytest.mark.parametrize("kind", KINDS)
def test_eight_bits_change_little(kind):
    exact, small = engine_of(kind), engine_of(kind, "int8")
    ids = exact.generate(torch.tensor([[1]]), max_new_tokens=200, do_sample=True, top_k=0, eos_token_id=[])
    rows = list(ids.numpy())
    before, after = total_nats(exact, rows), total_nats(small, rows)
    assert abs(after / before - 1) < 0.05 and after != before


def test_with_eight_bits_every_product_is_one_of_integers_in_blocks():
    config = model_of().config
    weights = {name: value.numpy() for name, value in model_of().state_dict().items()}
    nodes = build_graph(weights, config, cache_scales(engine_of(), [random_ids(50)])).graph.node
    products = [node for node in nodes if "MatMul" in node.op_type or node.op_type == "Gemm"]
    # Of each layer the packed projections, the output, two feed-forward layers and the distances of each head.
    assert len(products) == config.num_hidden_layers * (4 + config.num_attention_heads) + 1
    assert {node.op_type for node in products} == {"MatMulNBits"}


@settings(max_examples=30, deadline=None)
@given(outputs=st.integers(1, 20), inputs=st.integers(1, 300), seed=st.integers(0, 2**32 - 1))
def test_weights_in_blocks_are_off_by_half_a_step_at_most(outputs, inputs, seed):
    weight = np.random.default_rng(seed).normal(size=(outputs, inputs)).astype(np.float32)
    weight[0] = 0
    integers, scales = quantized(weight)
    restored = ((integers.astype(np.float32) - 128) * scales[..., None]).reshape(outputs, -1)
    assert np.abs(restored[:, :inputs] - weight).max() <= scales.max() * 0.5001
    assert not restored[0].any() and not restored[:, inputs:].any()


def test_a_cache_of_eight_bits_is_a_quarter_as_large_and_a_windowed_one_does_not_grow():
    sizes = {
        (kind, precision, capacity): sum(
            each.nbytes for each in Decoder(engine_of(kind, precision), 1, capacity).cache.values()
        )
        for kind in ("plain", "windowed")
        for precision in ("float32", "int8")
        for capacity in (1000, 2000)
    }
    assert sizes["plain", "float32", 1000] == 4 * sizes["plain", "int8", 1000]
    assert sizes["plain", "float32", 2000] == 2 * sizes["plain", "float32", 1000]
    assert sizes["windowed", "float32", 2000] == sizes["windowed", "float32", 1000] < sizes["plain", "float32", 1000]


def save(folder, model=None) -> str:
    TOKENIZER.save_pretrained(folder)
    (model or model_of()).save_pretrained(folder)
    return str(folder)


def test_the_command_writes_a_folder_that_the_engine_opens(tmp_path, capsys):
    model, output = save(tmp_path / "model"), tmp_path / "out"
    assert main(["--model", model, "--int8", "--output", str(output)]) == 0
    assert "greedy tokens equal torch's" in (said := capsys.readouterr().out) and "own samples" in said
    assert {path.name for path in (output / "onnx").iterdir()} == {"model.onnx", "model_int8.onnx"}
    code = [{path.name for path in folder.glob("*.py")} for folder in (output, tmp_path / "model")]
    assert code[0] == code[1] != set()
    ids = random_ids(50)
    for precision, tolerance in (("float32", 1e-3), ("int8", 2.0)):
        logits = OnnxEngine.from_pretrained(output, precision).logits(ids)
        np.testing.assert_allclose(logits, torch_logits("plain", ids), atol=tolerance)


def test_a_model_s_own_folder_only_gains_the_graph(tmp_path):
    folder = save(tmp_path / "model")
    before = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    assert main(["--model", folder, "--output", folder]) == 0
    after = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir() if path.is_file()}
    assert after == before and OnnxEngine.from_pretrained(folder).config.hidden_size == 32


def test_mistakes_are_one_line(tmp_path, capsys):
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=len(TOKENIZER), n_embd=8, n_layer=1, n_head=1))
    silu = MusicTransformerForCausalLM(MusicTransformerConfig(**{**model_of().config.to_dict(), "hidden_act": "silu"}))
    remembers = MusicTransformerForCausalLM(
        MusicTransformerConfig(**{**model_of().config.to_dict(), "memory_length": 8})
    )
    cases = (
        (["--model", str(tmp_path / "none"), "--output", str(tmp_path)], "none"),
        (
            ["--model", save(tmp_path / "gpt2", gpt2), "--output", str(tmp_path)],
            "music_transformer, note_transformer can be exported",
        ),
        (["--model", save(tmp_path / "remembers", remembers), "--output", str(tmp_path)], "generate with torch"),
        (["--model", save(tmp_path / "silu", silu), "--output", str(tmp_path)], "silu"),
        (["--model", "x", "--output", __file__], "is a file"),
        (["--model", "x", "--output", "y", "--format", "gguf"], "gguf"),
    )
    capsys.readouterr()  # progress bars of saving
    for arguments, what in cases:
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert what in error and error.count("\n") == 1 and error.startswith("error: ")


def test_a_missing_or_broken_graph_is_named(tmp_path):
    folder = save(tmp_path / "model")
    with pytest.raises(EngineError, match="pianogen export --model .* --int8"):
        OnnxEngine.from_pretrained(folder, "int8")
    (tmp_path / "model" / "onnx").mkdir()
    (tmp_path / "model" / "onnx" / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(EngineError, match="can't be opened"):
        OnnxEngine.from_pretrained(folder)
