"""The exported note transformer (V8) does what the torch model does: notes, gaps, parts, in float32 and in 8 bits."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import torch

from pianogen_hf.commands.export import main
from pianogen_hf.generation.continuation import continue_notes
from pianogen_hf.generation.filling import fill_notes
from pianogen_hf.generation.note_stream import Controls, NoteStream
from pianogen_hf.generation.note_verbs import accompany_notes
from pianogen_hf.generation.onnx.builder import ExportError
from pianogen_hf.generation.onnx.exporters import NoteExporter
from pianogen_hf.generation.onnx.note_checks import check_greedy_notes, likely_notes
from pianogen_hf.generation.onnx.note_engine import OnnxNoteEngine
from pianogen_hf.generation.onnx.session import EngineError
from pianogen_hf.generation.processors import warped
from pianogen_hf.models.configuration_note_transformer import NoteTransformerConfig
from pianogen_hf.models.modeling_note_transformer import NoteTransformerForCausalLM
from pianogen_hf.models.note_controls import CONTROL_SIZES
from pianogen_hf.models.time_classes import EXACT
from pianogen_hf.tokenizers.feature_extraction_continuous_notes import ContinuousNotesFeatureExtractor
from pianogen_hf.tokenizers.notes import Notes
from pianogen_hf.workflows.loading import load_engine

ENCODER = ContinuousNotesFeatureExtractor()
KINDS = {
    "plain": {"num_recent_offsets": 4},
    "parallel heads": {"is_cascade": False},
    "no shared offsets": {},
    "index alone": {"rotary_shares": (1, 0, 0)},
    "another grid": {"sampling_rate": 50},
}


@cache
def model_of(kind: str = "plain") -> NoteTransformerForCausalLM:
    """A tiny model whose logits are far apart, so that rounding decides nothing."""
    torch.manual_seed(1)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = NoteTransformerForCausalLM(NoteTransformerConfig(**sizes, max_position_embeddings=48, **KINDS[kind])).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.heads.time_shift_head.fc2.bias.data[:EXACT] += 25  # most notes follow soon
    return model


@cache
def exporter_of(kind: str = "plain") -> NoteExporter:
    return NoteExporter(model_of(kind))


@cache
def engine_of(kind: str = "plain", is_int8: bool = False) -> OnnxNoteEngine:
    exporter = exporter_of(kind)
    return exporter.open(exporter.int8_graphs(None, []) if is_int8 else exporter.graphs())


def random_rows(length: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of both roles, with events, long times and controls among them."""
    rng = np.random.default_rng(seed)
    is_given = rng.random(length) < 0.3
    shift = rng.choice([0, 1, 7, 80, 900, 9000], length) / 100 * np.where(is_given, rng.choice([-1, 1], length), 1)
    rows = np.stack(
        [shift, rng.integers(0, 130, length), rng.integers(0, 128, length), rng.choice([1, 90, 7000], length) / 100], -1
    )
    return rows, is_given, rng.integers(0, CONTROL_SIZES, (length, len(CONTROL_SIZES)))


def read_in_parts(
    model, parts: list[int], rows: np.ndarray, is_given: np.ndarray, control_ids: np.ndarray
) -> np.ndarray:
    """The last hidden state after each part."""
    cache, states = model.new_cache(), []
    for end, size in zip(np.cumsum(parts), parts, strict=True):
        part = slice(end - size, end)
        with torch.inference_mode():
            states.append(np.array(model.read(cache, rows[part], is_given[part], control_ids[part])).ravel())
    return np.stack(states)


def piece_of_music(number: int = 12) -> Notes:
    onset = np.arange(number) / 2
    return Notes.from_seconds(onset, np.full(number, 0.4), 60 + np.arange(number) % 5, np.full(number, 70))


@pytest.mark.parametrize("kind", KINDS)
def test_windows_and_single_rows_give_what_torch_gives(kind):
    rows = random_rows(40)
    expected = read_in_parts(model_of(kind), [20, 1, 1, 15, 1, 2], *rows)
    np.testing.assert_allclose(read_in_parts(engine_of(kind), [20, 1, 1, 15, 1, 2], *rows), expected, atol=1e-3)
    np.testing.assert_allclose(read_in_parts(engine_of(kind), [40], *rows)[0], expected[-1], atol=1e-3)


def test_a_long_window_is_read_in_parts():
    rows, is_given, control_ids = random_rows(300)
    engine = engine_of()
    states = engine.hidden_states(engine.new_cache(300), rows, is_given, control_ids)
    cache = model_of().new_cache()
    with torch.inference_mode():
        expected = model_of().read(cache, rows, is_given, control_ids)[0]
    np.testing.assert_allclose(states[-1], expected, atol=1e-3)


@pytest.mark.parametrize("model", [model_of, engine_of], ids=["torch", "onnx"])
def test_a_cache_that_was_rewound_goes_on_as_if_it_had_read_no_more(model):
    (rows, is_given, control_ids), other = random_rows(30), random_rows(12, seed=1)
    cache = model().new_cache()
    with torch.inference_mode():
        model().read(cache, rows, is_given, control_ids)
        model().rewind(cache, rows[:18], is_given[:18])
        found = np.array(model().read(cache, *other)).ravel()
    whole = (np.concatenate(pair) for pair in zip((rows[:18], is_given[:18], control_ids[:18]), other, strict=True))
    np.testing.assert_allclose(found, read_in_parts(model(), [30], *whole)[0], atol=1e-3)


def test_a_cache_takes_no_more_than_it_has_room_for():
    engine = engine_of()
    cache = engine.new_cache(4)
    engine.read(cache, *random_rows(4))
    with pytest.raises(ValueError, match="a cache for 4 rows can't take 5"):
        engine.read(cache, *random_rows(1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lookahead", [0.3, np.inf])
def test_a_stream_writes_the_notes_that_it_writes_with_torch(kind, lookahead):
    """Beyond a window, among given notes, with controls, temperature and nucleus."""
    given = np.array([[second, 50 + second % 7, 60, 0.5] for second in range(1, 60, 2)], float)
    controls = Controls(density=4, loudness=50, key=3, end_sec=40)

    def written(model) -> np.ndarray:
        stream = NoteStream(
            model,
            past=given[:3],
            given=given[3:],
            begin_sec=5.5,
            lookahead_sec=lookahead,
            controls=controls,
            processors=(warped(0.9, 0.95),),
            generator=torch.Generator().manual_seed(3),
        )
        for _ in range(70):
            stream.write(may_end=False)
        return np.stack(stream.written)

    np.testing.assert_array_equal(written(engine_of(kind)), written(model_of(kind)))


def test_the_engine_is_guided_as_the_model_is():
    def written(model) -> np.ndarray:
        controls = Controls(density=6.0, loudness=90.0, guidance_scale=2.5)
        none = np.zeros((0, 4))
        stream = NoteStream(model, none, none, controls=controls, generator=torch.Generator().manual_seed(3))
        for _ in range(60):
            stream.write(may_end=False)
        return np.stack(stream.written)

    np.testing.assert_array_equal(written(engine_of()), written(model_of()))


def test_the_engine_can_end_a_piece_as_the_model_does():
    def ends(model) -> bool:
        cache = model.new_cache()
        with torch.inference_mode():
            hidden_state = model.read(cache, *random_rows(3))
            row = model.draw_note(hidden_state, 60, np.zeros(4), lambda column, logits: logits.shape[1] - 1)
        return row.tolist() == [0, 129, 0, 0]

    assert ends(engine_of()) and ends(model_of())


@pytest.mark.parametrize(
    "write",
    [
        lambda model: continue_notes(model, ENCODER, notes=15, prompt=piece_of_music(), seed=1, density=3.0, top_p=0.9),
        lambda model: fill_notes(model, ENCODER, piece_of_music(), 2.0, 4.0, seed=1, num_samples=2),
        lambda model: accompany_notes(model, ENCODER, piece_of_music(), "below", seed=1, key="C minor"),
    ],
    ids=["continue", "fill", "accompany"],
)
def test_the_verbs_write_with_the_engine_what_they_write_with_the_model(write):
    for one, other in zip(write(engine_of()), write(model_of()), strict=True):
        assert one.notes == other.notes and len(one.new)
    assert len(write(engine_of(is_int8=True))[0].new)


def test_greedy_notes_are_those_of_torch():
    engine = engine_of()
    torch.manual_seed(0)
    assert check_greedy_notes(engine, model_of(), likely_notes(engine)[0]).startswith(("600 of 600", "599 of 600"))


def test_a_graph_that_differs_from_the_model_is_found():
    with pytest.raises(ExportError, match="greedy notes differ"):
        check_greedy_notes(engine_of("index alone"), model_of(), random_rows(8)[0])


def test_eight_bits_change_little_and_leave_no_product_of_floats():
    exporter = exporter_of()
    torch.manual_seed(0)
    samples = likely_notes(engine_of())
    before, after = (exporter.nats(engine_of(is_int8=is_int8), samples) for is_int8 in (False, True))
    assert abs(after / before - 1) < 0.05 and after != before
    assert b"MatMulNBits" in exporter.int8_graphs(None, [])["model"]
    assert b"MatMulNBits" not in exporter.graphs()["model"]


def test_the_command_writes_a_folder_that_the_engine_opens(tmp_path, capsys):
    model, output = tmp_path / "model", tmp_path / "out"
    ENCODER.save_pretrained(model)
    model_of().save_pretrained(model)
    assert main(["--model", str(model), "--int8", "--output", str(output)]) == 0
    said = capsys.readouterr().out
    assert "greedy notes equal torch's" in said and "nats per note of the model's own samples" in said
    names = {"model.onnx", "model.safetensors", "model_int8.onnx", "model_int8.safetensors"}
    assert {path.name for path in (output / "onnx").iterdir()} == names
    expected = read_in_parts(model_of(), [30], *random_rows(30))
    for engine, tolerance in (("onnx", 1e-3), ("int8", 1.0)):
        opened, encoder = load_engine(str(output), engine)
        assert isinstance(encoder, ContinuousNotesFeatureExtractor)
        np.testing.assert_allclose(read_in_parts(opened, [30], *random_rows(30)), expected, atol=tolerance)


def test_a_missing_or_broken_graph_is_named(tmp_path):
    model_of().save_pretrained(tmp_path)
    with pytest.raises(EngineError, match="pianogen export --model .* --int8"):
        OnnxNoteEngine.from_pretrained(tmp_path, "int8")
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").write_bytes(exporter_of().graphs()["model"])
    with pytest.raises(EngineError, match=r"can't be opened: .*model\.safetensors"):
        OnnxNoteEngine.from_pretrained(tmp_path)
