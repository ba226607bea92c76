"""Weights of sources: shares, epochs, and that neither resuming nor a second process changes what is drawn."""

import json
import shutil
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from test_train import SIZES, cache_dir, midi_folder, one_line_error, options, read_json, run_two, weights_equal
from test_train import write_pieces as write_pieces
from torch import testing

from pianogen_hf.commands.train import main
from pianogen_hf.training.mixing import MixtureSampler

__all__ = ["cache_dir", "midi_folder", "options", "run_two"]  # fixtures

SIZES_OF_SOURCES = st.lists(st.integers(0, 40), min_size=1, max_size=4).filter(sum)


def mixture(sizes, weights, seed=0):
    owners = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    return owners, MixtureSampler(owners, {str(number): weight for number, weight in enumerate(weights)}, seed)


def epochs(sampler, count):
    drawn = []
    for epoch in range(count):
        sampler.set_epoch(epoch)
        drawn.append(list(sampler))
    return drawn


@given(SIZES_OF_SOURCES, st.data(), st.integers(0, 5))
def test_every_source_gets_its_share_of_every_epoch(sizes, data, seed):
    weights = data.draw(st.lists(st.floats(0.01, 100), min_size=len(sizes), max_size=len(sizes)))
    owners, sampler = mixture(sizes, weights, seed)
    there = np.array(sizes) > 0
    shares = np.where(there, weights, 0) / np.sum(np.array(weights)[there])
    for drawn in epochs(sampler, 3):
        assert len(drawn) == len(sampler) == len(owners)
        counts = np.bincount(owners[drawn], minlength=len(sizes))
        assert np.all(np.abs(counts - shares * len(owners)) < 1)


@given(SIZES_OF_SOURCES, st.data())
def test_no_example_comes_more_than_once_more_than_another_of_its_source(sizes, data):
    weights = data.draw(st.lists(st.floats(0.1, 10), min_size=len(sizes), max_size=len(sizes)))
    owners, sampler = mixture(sizes, weights)
    uses = np.zeros(len(owners), dtype=int)
    for drawn in epochs(sampler, 7):
        np.add.at(uses, drawn, 1)
        for source in range(len(sizes)):
            own = uses[owners == source]
            assert not len(own) or own.max() - own.min() <= 1


def test_epochs_and_seeds_differ_and_the_same_ones_do_not():
    _, sampler = mixture([20, 30], [1, 3])
    first, second = epochs(sampler, 2)
    assert first != second and epochs(mixture([20, 30], [1, 3])[1], 2) == [first, second]
    assert epochs(mixture([20, 30], [1, 3], seed=1)[1], 1) != [first]
    assert first != sorted(first)


def test_a_source_without_examples_is_named_and_has_no_share():
    sampler = MixtureSampler(np.array([0, 2, 2]), {"a": 1, "none": 5, "b": 2})
    assert sampler.missing == ["none"] and sampler.weights == {"a": 1, "b": 2}
    assert sorted(sampler) == [0, 1, 2]


# In training ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weighted(options, midi_folder, tmp_path_factory):
    """Builds the command line of a run on two folders, the second of which gives three of four examples."""
    other = write_pieces(tmp_path_factory.mktemp("other"), 5, seed=3)

    def build(output_dir, *further, **changes):
        argv = options(output_dir, **{"source": None, "data_path": None, **changes})
        sources = ["--source", f"folder={midi_folder}", f"folder={other}"]
        return [*argv, *sources, "--source_weights", "1", "3", *further]

    return build


@pytest.fixture
def drawn(monkeypatch):
    """What the collator of a run in this process is given, batch by batch: source, piece and place of each example."""
    from pianogen_hf.training import collator

    batches, original = [], collator.ChunkCollator.__call__

    def watched(self, rows):
        batches.append([(row["piece_id"].split("/")[0], row["piece_id"], row["start"]) for row in rows])
        return original(self, rows)

    monkeypatch.setattr(collator.ChunkCollator, "__call__", watched)
    return batches


@pytest.mark.parametrize("augmentation", ["prebuilt", "lazy"])
def test_a_run_draws_and_records_the_shares(weighted, tmp_path, drawn, augmentation):
    folder = tmp_path / "model"
    assert main(weighted(folder, max_steps=None, num_train_epochs=2, augmentation=augmentation)) == 0
    metrics = read_json(folder / "metrics.json")
    epoch = metrics["steps"] // 2
    assert drawn[:epoch] != drawn[epoch : 2 * epoch]
    counts = Counter(source for batch in drawn[:epoch] for source, *_ in batch)
    (first, _), (second, _) = metrics["source_weights"].items()
    assert list(metrics["source_weights"].values()) == [1, 3]
    total = counts.total()
    assert abs(counts[first] - total / 4) < 1 and abs(counts[second] - total * 3 / 4) < 1
    assert read_json(folder / "split.json")["parameters"]["source_weights"] == [1, 3]
    assert f"* Shares of the sources: `{first}` 1, `{second}` 3" in (folder / "README.md").read_text()


def test_validation_is_as_without_weights(weighted, options, midi_folder, tmp_path):
    assert main(weighted(tmp_path / "with", learning_rate=0)) == 0
    argv = weighted(tmp_path / "without", learning_rate=0)
    assert main(argv[: argv.index("--source_weights")]) == 0
    one, two = (read_json(tmp_path / name / "metrics.json") for name in ("with", "without"))
    assert one["validation"] == two["validation"] and "source_weights" not in two


def test_a_resumed_mixture_equals_an_unbroken_one(weighted, tmp_path):
    """Interrupted in the middle of its second epoch, with several batches to a step."""
    shared = {"max_steps": 12, "save_steps": 5, "gradient_accumulation_steps": 2}
    assert main(weighted(tmp_path / "straight", **shared)) == 0
    halted = shutil.copytree(tmp_path / "straight", tmp_path / "halted")
    shutil.rmtree(halted / "checkpoint-12")
    assert 1 < read_json(halted / "checkpoint-10" / "trainer_state.json")["epoch"] < 2
    (halted / "model.safetensors").unlink()
    assert main(weighted(halted, **shared, resume_from_checkpoint="true")) == 0
    assert weights_equal(tmp_path / "straight", halted)


@pytest.mark.slow
def test_two_processes_draw_what_one_draws_and_resume_bit_by_bit(weighted, run_two, tmp_path):
    sizes = json.dumps({**SIZES, "hidden_dropout": 0, "attention_dropout": 0})
    shared = {"save_steps": 1, "optim": "sgd", "learning_rate": 0.3, "lr_scheduler_type": "constant"}
    shared |= {"model_config": sizes}
    assert main(weighted(tmp_path / "one", **shared, max_steps=7, gradient_accumulation_steps=2)) == 0
    assert run_two(weighted(tmp_path / "two", **shared, max_steps=11))[0] == [0, 0]
    one = load_file(tmp_path / "one" / "model.safetensors")
    two = load_file(tmp_path / "two" / "checkpoint-7" / "model.safetensors")
    for name in one:
        testing.assert_close(two[name], one[name], rtol=0, atol=1e-5, msg=name)
    halted = shutil.copytree(tmp_path / "two", tmp_path / "halted")
    for step in (10, 11):
        shutil.rmtree(halted / f"checkpoint-{step}")
    (halted / "model.safetensors").unlink()
    assert 1 < read_json(halted / "checkpoint-9" / "trainer_state.json")["epoch"] < 2
    assert run_two(weighted(halted, **shared, max_steps=11, resume_from_checkpoint="true"))[0] == [0, 0]
    assert weights_equal(tmp_path / "two", halted)


@pytest.mark.parametrize(
    ("weights", "said"),
    [(["1"], "one number per source: 2, got 1"), (["1", "0"], "positive"), (["1", "nan"], "positive"), (["a"], "a")],
)
def test_weights_that_are_none_are_refused(weighted, tmp_path, capsys, weights, said):
    argv = weighted(tmp_path / "model", "--source_weights", *weights)
    assert said in one_line_error(argv, capsys)
    assert not (tmp_path / "model").exists()


def test_weights_and_packing_exclude_each_other(weighted, tmp_path, capsys):
    assert "packing" in one_line_error(weighted(tmp_path / "model", packing="true"), capsys)
