"""Every exported model and tokenizer, found by looking: a new part is tested by being exported."""

import numpy as np
from transformers import PreTrainedModel

import pianogen_hf as pg
from pianogen_hf.registration import exported

TOKENIZERS = exported(pg.NoteTokenizer)
MODELS = exported(PreTrainedModel)
# Those of ids; a model of real-valued notes has its own tests.
CAUSAL_MODELS = [
    each for each in MODELS if each.__name__.endswith("ForCausalLM") and each.main_input_name == "input_ids"
]
MASKED_MODELS = [each for each in MODELS if each.__name__.endswith("ForMaskedLM")]


def tiny_model(model_class, vocab_size=64, **settings):
    """A model of the class that runs in milliseconds."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = model_class.config_class(vocab_size=vocab_size, **sizes, max_position_embeddings=128, **settings)
    return model_class(config).eval()


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
