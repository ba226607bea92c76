"""Every YAML that is shipped: does the code still know all that it says?"""

import dataclasses
from pathlib import Path

import pytest
import yaml
from accelerate import FullyShardedDataParallelPlugin
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import launch_command_parser
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

import pianogen_hf
from pianogen_hf.tokenizers.notes_encoder import NotesEncoder
from pianogen_hf.training.arguments import parse_stages
from pianogen_hf.workflows.examples import new_tokenizer
from pianogen_hf.workflows.model_to_train import make_model

CONFIGS = Path(__file__).parents[1] / "configs"
RECIPES = sorted(CONFIGS.glob("*.yaml"))
LAUNCHES = sorted((CONFIGS / "accelerate").glob("*.yaml"))
SMALL = {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "head_dim": 8}
SMALL["knn_layer"] = 0  # one of them


def by_name(path):
    return path.stem


# Recipes of training --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", RECIPES, ids=by_name)
def test_a_recipe_parses_and_names_parts_that_exist(path):
    for model, data, training in parse_stages([str(path)]):
        assert issubclass(getattr(pianogen_hf, model.tokenizer), NotesEncoder)
        assert {each.partition("=")[0] for each in data.source} <= {"bach", "folder", "maestro", "lakh", "dataset"}
        assert training.learning_rate > 0
        assert Path(training.output_dir).parts[0] in ("runs", "demo")  # what git ignores


def test_every_version_has_a_recipe_and_a_text_for_its_card():
    recipes = {path.stem for path in RECIPES} - {"quickstart"}  # which is there to be trained, not to be published
    assert {"v1", "v2", "v3", "v4", "v5", "v6", "v7"} <= recipes
    assert recipes == {path.stem for path in (CONFIGS.parent / "model_cards").glob("*.md")} - {"template"}


@pytest.mark.parametrize("path", RECIPES, ids=by_name)
def test_the_sizes_of_a_recipe_make_a_model_that_holds_its_chunks(path):
    """Built as training builds it, but small: the sizes that decide about time and memory are replaced."""
    model, data, _ = parse_stages([str(path)])[0]
    if model.model_name_or_path is not None:
        pytest.skip("a recipe of fine-tuning builds no model")
    model.model_config.update({name: size for name, size in SMALL.items() if name in model.model_config})
    built = make_model(model, new_tokenizer(model), data.chunk_length)
    assert built.num_parameters() > 0
    assert built.config.max_position_embeddings >= data.chunk_length


# Ways to launch it ----------------------------------------------------------------------------------------------------


@pytest.fixture(params=LAUNCHES, ids=by_name)
def launch(request):
    return request.param


def test_there_is_a_launch_file_for_every_kind_of_machine():
    names = {path.stem for path in LAUNCHES}
    assert names == {"cpu", "cpu_2", "one_gpu", "multi_gpu", "fsdp", "multi_node"}


def test_accelerate_reads_a_launch_file_and_knows_its_keys(launch):
    config = load_config_from_file(str(launch))
    assert isinstance(config, ClusterConfig)
    written = yaml.safe_load(launch.read_text(encoding="utf-8"))
    assert set(written) <= {field.name for field in dataclasses.fields(ClusterConfig)}
    options = vars(launch_command_parser().parse_args(["train.py"]))
    assert set(written.get("fsdp_config", {})) <= set(options)


def test_a_launch_file_says_how_to_launch_it(launch):
    comments = [line for line in launch.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    assert f"accelerate launch --config_file configs/accelerate/{launch.name}" in " ".join(comments)


def test_two_processes_on_the_cpu_are_not_launched_as_one():
    """accelerate starts several processes only for the distributed types of accelerators; MULTI_CPU runs one."""
    config = load_config_from_file(str(CONFIGS / "accelerate" / "cpu_2.yaml"))
    assert (config.distributed_type, config.use_cpu, config.num_processes) == ("MULTI_GPU", True, 2)


def music_transformer() -> PreTrainedModel:
    config = pianogen_hf.MusicTransformerConfig(hidden_size=16, num_hidden_layers=3, num_attention_heads=2)
    return pianogen_hf.MusicTransformerForCausalLM(config)


def gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=3, n_head=2))


@pytest.mark.parametrize("make_model", [music_transformer, gpt2])
def test_fsdp_shards_layer_by_layer(make_model):
    settings = load_config_from_file(str(CONFIGS / "accelerate" / "fsdp.yaml")).fsdp_config
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=settings["fsdp_version"],
        auto_wrap_policy=settings["fsdp_auto_wrap_policy"].lower(),
        reshard_after_forward=settings["fsdp_reshard_after_forward"],
        state_dict_type=settings["fsdp_state_dict_type"],
    )
    model = make_model()
    plugin.set_auto_wrap_policy(model)
    wrapped = [
        name
        for name, module in model.named_modules()
        if plugin.auto_wrap_policy(module=module, recurse=False, nonwrapped_numel=0)
    ]
    assert len(wrapped) == 3 and all(name.rsplit(".", 1)[0] in ("model.layers", "transformer.h") for name in wrapped)
