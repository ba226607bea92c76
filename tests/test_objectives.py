"""One contract per kind of model: every stage's table knows every objective, and every model has one."""

from __future__ import annotations

import pytest
import transformers
from models_and_tokenizers import CAUSAL_MODELS, FIELD_MODELS, ID_ROW_MODELS, MASKED_MODELS, MODELS, tiny_model

import pianogen_hf as pg
from pianogen_hf.evaluation.scorers import SCORERS
from pianogen_hf.generation.continuation import WRITERS
from pianogen_hf.generation.note_verbs import takes_given
from pianogen_hf.generation.part_writer import PartWriter
from pianogen_hf.models.objectives import (
    ANY_ORDER,
    NEXT_EVENT,
    NEXT_NOTE,
    NEXT_TOKEN,
    NOTE_AMONG_GIVEN,
    OBJECTIVES,
    PART_FROM_PART,
    objective_of,
    objective_of_classes,
)
from pianogen_hf.publishing.usage import USAGES
from pianogen_hf.training.ways import COLLATORS, TRAINERS

TABLES = {
    "trainers": TRAINERS,
    "collators": COLLATORS,
    "scorers": SCORERS,
    "writers": {**WRITERS, NOTE_AMONG_GIVEN: takes_given, PART_FROM_PART: PartWriter},
    "usages": USAGES,
}


@pytest.mark.parametrize("stage", TABLES)
def test_every_stage_knows_every_objective(stage):
    assert set(TABLES[stage]) == set(OBJECTIVES)


@pytest.mark.parametrize(
    "model_class", [each for each in MODELS if "For" in each.__name__], ids=lambda each: each.__name__
)
def test_every_model_of_ours_is_of_a_kind_that_fits_what_it_reads(model_class):
    objective = objective_of_classes([model_class.__name__])
    reads_tokens = model_class.main_input_name == "input_ids"
    assert (objective in (NEXT_TOKEN, NEXT_EVENT, ANY_ORDER)) is reads_tokens
    assert (objective == ANY_ORDER) is (model_class in MASKED_MODELS)
    assert (objective == NEXT_TOKEN) is (model_class in (*CAUSAL_MODELS, *FIELD_MODELS))
    assert (objective == NEXT_EVENT) is (model_class in ID_ROW_MODELS)


def test_a_model_and_a_class_made_of_it_are_of_one_kind():
    model = tiny_model(pg.PianoEncoderForMaskedLM, is_causal=False)
    assert objective_of(model) == ANY_ORDER
    model.__class__ = type("FSDPModule", (type(model),), {})  # as torch wraps it
    assert objective_of(model) == ANY_ORDER


def test_models_of_transformers_predict_the_next_token():
    assert (
        objective_of(transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=1, n_embd=8, n_head=1))) == NEXT_TOKEN
    )
    assert objective_of_classes(["LlamaForCausalLM"]) == NEXT_TOKEN
    assert objective_of_classes(["BartForConditionalGeneration"]) == PART_FROM_PART
    assert objective_of_classes(["ContinuousNotesForCausalLM"]) == NEXT_NOTE


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_usage_has_what_the_card_s_template_asks_for(objective):
    assert set(USAGES[objective]) == set(USAGES[NEXT_TOKEN])
