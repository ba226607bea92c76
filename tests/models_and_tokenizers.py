"""Every exported model and tokenizer, found by looking: a new part is tested by being exported."""

from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import PreTrainedModel

import pianogen_hf as pg
from pianogen_hf.registration import exported
from pianogen_hf.tokenizers.tokenization_rows import RowTokenizer

TOKENIZERS = [each for each in exported(pg.NoteTokenizer) if not issubclass(each, RowTokenizer)]
ROW_TOKENIZERS = exported(RowTokenizer)  # whose steps are rows of ids
MODELS = exported(PreTrainedModel)
ALL_CAUSAL_MODELS = [each for each in MODELS if each.__name__.endswith("ForCausalLM")]
ID_MODELS = [each for each in ALL_CAUSAL_MODELS if each.main_input_name == "input_ids"]
CAUSAL_MODELS = [each for each in ID_MODELS if getattr(each.config_class(), "ids_per_row", 1) == 1]
ID_ROW_MODELS = [each for each in ID_MODELS if each not in CAUSAL_MODELS]  # of events as rows of ids
ROW_MODELS = [each for each in ALL_CAUSAL_MODELS if each.main_input_name == "input_values"]  # of notes with all fields
MASKED_MODELS = [each for each in MODELS if each.__name__.endswith("ForMaskedLM")]
FIELD_MODELS = [pg.MultitrackMusicForCausalLM]  # of ids that tell the fields of a row, which do not see one another
CAUSAL_MODELS = [each for each in CAUSAL_MODELS if each not in FIELD_MODELS]


def own_tokenizer(model_class):
    """The tokenizer of a model that reads rows: no other one's ids fit it."""
    return pg.MultitrackMusicTokenizer(num_beats=8) if model_class in FIELD_MODELS else ROW_TOKENIZERS[0]()


def tiny_model(model_class, vocab_size=64, **settings):
    """A model of the class that runs in milliseconds."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    if model_class in FIELD_MODELS:
        vocab_size, settings = 250, {"num_beats": 8, **settings}
    config = model_class.config_class(vocab_size=vocab_size, **sizes, max_position_embeddings=128, **settings)
    return model_class(config).eval()


def loosened(model, deviation=0.1):
    """The model with larger weights: the small standard initialisation would hide mistakes."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(deviation * torch.randn_like(parameter))
    return model


def some_rows(batch, length, seed=0):
    """Rows of whole pieces, float32, shape (batch, length, 4): chords (upwards), beats and rests between both ends."""
    random = np.random.default_rng(seed)
    rows = np.zeros((batch, length, 4), dtype=np.float32)
    for piece in rows:
        pitch = 0
        for row in piece:
            shift = random.choice([0.0, 0.25, round(random.uniform(0.3, 3), 2)], p=[0.5, 0.3, 0.2])
            shift = shift if 0 < pitch < 100 else 0.25
            pitch = pitch + random.integers(1, 8) if shift == 0 else random.integers(30, 70)
            row[:] = shift, pitch, random.integers(1, 128), random.integers(1, 200) / 100
        piece[0], piece[-1] = [0, 128, 0, 0], [0, 129, 0, 0]
    return torch.from_numpy(rows)


def labels_of(rows):
    """Labels that ask for every row."""
    return rows[..., 1].long()


def some_notes(seed=0, num_notes=24, pitches=(48, 76)):
    """Random two-hand music on a sixteenth grid at 120 quarters a minute."""
    random = np.random.default_rng(seed)
    return pg.Notes.from_columns(
        480,
        onset_tick=np.sort(random.integers(0, 64, num_notes)) * 120,
        duration_tick=random.integers(1, 9, num_notes) * 120,
        pitch=random.integers(*pitches, num_notes),
        velocity=random.integers(30, 110, num_notes),
    )


def published_midi_event(folder):
    """A folder as SkyTNT's midi-model is published, with weights for the ids of the golden input alone; its outputs."""
    with safe_open(Path(__file__).parent / "golden/midi_event_model.safetensors", "pt") as file:
        values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        (folder / "config.json").write_text(file.metadata()["config"])
    outputs = {name: values.pop(name) for name in ("used", "input_ids", "hidden", "logits_first3", "logits_last3")}
    for name, value in values.items():
        if len(value) == len(outputs["used"]):
            values[name] = torch.zeros(3406, value.shape[1]).index_copy(0, outputs["used"], value)
    save_file(values, folder / "model.safetensors", metadata={"format": "pt"})
    return folder, outputs
