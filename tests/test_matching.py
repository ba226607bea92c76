"""Widths that give a wanted number of parameters, for any architecture."""

import pytest
from models_and_tokenizers import CAUSAL_MODELS
from transformers import AutoConfig, AutoModelForCausalLM

import pianogen_hf  # noqa: F401  makes its models known to the Auto classes
from pianogen_hf.training.matching import SizeError, match_parameters, meta_model, parameters_of, sizes_of

LLAMA = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 6, "num_attention_heads": 8}
RECIPES = {
    "gpt2": {"n_embd": 512, "n_layer": 6, "n_head": 8},
    "gpt2 by common names": {"hidden_size": 512, "num_hidden_layers": 6, "num_attention_heads": 8},
    "llama": {**LLAMA, "num_key_value_heads": 4, "head_dim": 64},
    "continuous_notes": LLAMA,
    "multitrack_music": {**LLAMA, "num_beats": 50},
    **{model.config_class.model_type: LLAMA for model in CAUSAL_MODELS},
}


def build(name):
    model_type = name.split()[0]

    def make(settings):
        ids = {} if model_type == "continuous_notes" else {"vocab_size": 300, "bos_token_id": 1, "eos_token_id": 2}
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **{**ids, **settings}))

    return make


@pytest.mark.parametrize(
    ("name", "target"), [*((name, 1_000_000) for name in RECIPES), ("gpt2", 20_000_000), ("llama", 20_000_000)]
)
def test_a_model_has_as_many_parameters_as_wanted_and_keeps_its_depth(name, target):
    settings = match_parameters(build(name), RECIPES[name], target)
    model = meta_model(build(name), settings)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    counts, sizes = parameters_of(model), sizes_of(model.config)
    assert counts["total"] == pytest.approx(target, rel=0.03)
    assert 0 < counts["without_embeddings"] < counts["total"]
    assert (sizes["num_hidden_layers"], sizes["num_attention_heads"]) == (6, 8)
    assert sizes["hidden_size"] % 16 == 0  # rotary positions want heads of even size
    before = sizes_of(meta_model(build(name), RECIPES[name]).config)
    proportion = before["intermediate_size"] / before["hidden_size"]
    assert sizes["intermediate_size"] / sizes["hidden_size"] == pytest.approx(proportion, rel=1.0)


def test_what_was_built_on_the_meta_device_is_what_is_built_in_memory():
    settings = match_parameters(build("gpt2"), RECIPES["gpt2"], 300_000)
    counted = sum(parameter.numel() for parameter in build("gpt2")(settings).parameters())
    assert counted == parameters_of(meta_model(build("gpt2"), settings))["total"]


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_layers_and_heads_can_be_set_whatever_the_recipe_calls_them(name):
    model = meta_model(build(name), match_parameters(build(name), RECIPES[name], 500_000, layers=2, heads=4))
    sizes = sizes_of(model.config)
    assert (sizes["num_hidden_layers"], sizes["num_attention_heads"]) == (2, 4)
    assert parameters_of(model)["total"] == pytest.approx(500_000, rel=0.03)
    if name == "llama":
        assert model.config.num_key_value_heads == 2


def test_a_number_that_no_width_gives_is_refused_in_one_line():
    with pytest.raises(SizeError, match="fewer layers or heads"):
        match_parameters(build("gpt2"), RECIPES["gpt2"], 10_000)
