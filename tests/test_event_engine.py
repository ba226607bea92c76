"""The exported pair of SkyTNT's midi-model does what the torch model does, also called as the original's pair is."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import onnx
import torch
from models_and_tokenizers import loosened, published_midi_event, some_notes, tiny_model

import pianogen_hf as pg
from pianogen_hf.commands.export import main
from pianogen_hf.generation.onnx.builder import ExportError
from pianogen_hf.generation.onnx.event_checks import check_greedy_events
from pianogen_hf.generation.onnx.event_engine import OnnxEventEngine
from pianogen_hf.generation.onnx.exporters import EventExporter
from pianogen_hf.generation.onnx.session import EngineError
from pianogen_hf.workflows.loading import load_engine

TOKENIZER = pg.MidiEventTokenizer()


@cache
def model_of(context: int = 128) -> pg.MidiEventForCausalLM:
    torch.manual_seed(0)
    settings = {"event_blocks": TOKENIZER.event_blocks, "token_num_hidden_layers": 2, "token_num_attention_heads": 2}
    model = tiny_model(pg.MidiEventForCausalLM, len(TOKENIZER), **settings)
    model.config.max_position_embeddings = model.net.config.max_position_embeddings = context
    return loosened(model)


@cache
def exporter_of(context: int = 128) -> EventExporter:
    return EventExporter(model_of(context))


@cache
def engine_of(context: int = 128, is_int8: bool = False) -> OnnxEventEngine:
    exporter = exporter_of(context)
    return exporter.open(exporter.int8_graphs(None, []) if is_int8 else exporter.graphs())


def rows_of(length: int = 12, batch: int = 2) -> np.ndarray:
    return np.stack([TOKENIZER.encode_piece(some_notes(seed))[:length] for seed in range(batch)])


def empty_past(session, batch: int) -> dict[str, np.ndarray]:
    shapes = {each.name: each.shape for each in session.get_inputs() if each.name.startswith("past_key_values")}
    return {name: np.zeros((batch, heads, 0, size), np.float32) for name, (_, heads, _, size) in shapes.items()}


def run(session, past, **inputs):
    """The first output, and the present as the next past."""
    names = [each.name for each in session.get_outputs()]
    outputs = dict(zip(names, session.run(None, {**inputs, **past}), strict=True))
    return outputs[names[0]], {name: outputs[name.replace("past_key_values", "present")] for name in past}


@torch.no_grad()
def test_numbers_are_those_of_torch():
    rows, engine = rows_of(), engine_of()
    expected = model_of()(torch.from_numpy(rows))
    hidden_states = engine.hidden_states(rows)
    np.testing.assert_allclose(hidden_states, expected.last_hidden_state, atol=1e-5)
    logits = engine.row_logits(hidden_states[1, :-1], rows[1, 1:])
    np.testing.assert_allclose(logits, expected.logits[1], atol=1e-5)


def test_a_published_checkpoint_exports_to_the_original_s_numbers(tmp_path):
    """Event by event and id by id, with the names, shapes and calls of the original's pair."""
    folder, outputs = published_midi_event(tmp_path)
    exporter = EventExporter(pg.MidiEventForCausalLM.from_pretrained(folder))
    engine = exporter.open(exporter.graphs())
    rows, used = outputs["input_ids"].long().numpy(), outputs["used"]
    batch, length, ids_per_row = rows.shape
    past, hidden_states, logits = empty_past(engine.base, batch), [], []
    for place in range(length - 1):
        hidden, past = run(engine.base, past, x=rows[:, place : place + 1])
        hidden_states.append(hidden)
        token_past, event = empty_past(engine.token, batch), rows[:, place + 1]
        y, token_past = run(engine.token, token_past, hidden=hidden, x=event[:, :0])
        logits.append(y[..., used])
        for index in range(ids_per_row - 1):
            y, token_past = run(engine.token, token_past, hidden=hidden[:, :0], x=event[:, index : index + 1])
            logits.append(y[..., used])
    np.testing.assert_allclose(np.concatenate(hidden_states, 1), outputs["hidden"], atol=1e-5)
    by_event = np.concatenate(logits, 1).reshape(-1, ids_per_row, len(used))
    np.testing.assert_allclose(by_event[:3], outputs["logits_first3"], atol=1e-5)
    np.testing.assert_allclose(by_event[-3:], outputs["logits_last3"], atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": False},
        {"top_k": 5, "top_p": 0.9, "temperature": 0.8, "num_return_sequences": 2},
        {"top_k": None, "top_p": 1.0, "min_new_tokens": 20, "forbidden_ids": TOKENIZER.silent_ids},
    ],
    ids=["greedy", "nucleus", "held open"],
)
@pytest.mark.parametrize("context", [128, 16], ids=["within the context", "beyond it"])
def test_generation_is_that_of_torch(options, context):
    prompts = torch.from_numpy(rows_of(6))
    one, other = (
        each.generate(prompts, max_new_tokens=30, seed=5, **options) for each in (engine_of(context), model_of(context))
    )
    assert one.shape[1] > 6 and torch.equal(one, other)


def test_a_piece_from_nothing_is_that_of_torch():
    one, other = (each.generate(max_new_tokens=10, seed=2) for each in (engine_of(), model_of()))
    assert torch.equal(one, other)


def test_music_is_continued_through_the_engine():
    one, other = (
        pg.continue_notes(each, TOKENIZER, notes=5, prompt=some_notes(), seed=1)[0]
        for each in (engine_of(), model_of())
    )
    assert one.notes == other.notes and len(one.new) >= 5


def test_padded_prompts_are_refused():
    rows = torch.from_numpy(rows_of(6))
    mask = torch.ones(2, 6).long()
    mask[0, 0] = 0
    with pytest.raises(ValueError, match="no padding"):
        engine_of().generate(rows, mask, max_new_tokens=2)


def test_a_graph_that_differs_from_the_model_is_found():
    other = loosened(pg.MidiEventForCausalLM(model_of().config).eval())
    with pytest.raises(ExportError, match="greedy events differ from torch's from event 1 on"):
        check_greedy_events(engine_of(), other, rows_of(12)[0])


def test_eight_bits_change_little_and_leave_no_product_of_weights_with_floats():
    pieces = [each for each in rows_of(24)]
    before, after = (exporter_of().nats(engine_of(is_int8=is_int8), pieces) for is_int8 in (False, True))
    assert abs(after / before - 1) < 0.05 and after != before
    for graph in exporter_of().int8_graphs(None, []).values():
        nodes = onnx.load_from_string(graph).graph.node
        assert sum(node.op_type == "MatMul" for node in nodes) == 2 * 2  # of each layer's queries with keys, and values
        assert sum(node.op_type == "MatMulNBits" for node in nodes) >= 7 * 2


def test_the_command_writes_a_pair_that_the_engine_opens(tmp_path, capsys):
    model, output = tmp_path / "model", tmp_path / "out"
    TOKENIZER.save_pretrained(model)
    model_of().save_pretrained(model)
    assert main(["--model", str(model), "--int8", "--output", str(output)]) == 0
    said = capsys.readouterr().out
    assert "greedy events equal torch's" in said and "nats per event of the model's own samples" in said
    names = {"model_base.onnx", "model_token.onnx", "model_base_int8.onnx", "model_token_int8.onnx"}
    assert {path.name for path in (output / "onnx").iterdir()} == names
    rows = rows_of()
    for engine, tolerance in (("onnx", 1e-5), ("int8", 0.5)):
        opened, encoder = load_engine(str(output), engine)
        assert isinstance(encoder, pg.MidiEventTokenizer)
        np.testing.assert_allclose(opened.hidden_states(rows), engine_of().hidden_states(rows), atol=tolerance)


def test_a_missing_or_broken_graph_is_named(tmp_path):
    model_of().save_pretrained(tmp_path)
    with pytest.raises(EngineError, match=r"model_base_int8\.onnx: pianogen export --model .* --int8"):
        OnnxEventEngine.from_pretrained(tmp_path, "int8")
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model_base.onnx").write_bytes(exporter_of().graphs()["model_base"])
    with pytest.raises(EngineError, match=r"model_token\.onnx"):
        OnnxEventEngine.from_pretrained(tmp_path)
    (tmp_path / "onnx" / "model_token.onnx").write_bytes(b"no graph")
    with pytest.raises(EngineError, match="can't be opened"):
        OnnxEventEngine.from_pretrained(tmp_path)
