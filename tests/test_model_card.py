"""Cards say what the files of a model folder say, and that what is missing is missing."""

import json
import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, metadata_load
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models_and_tokenizers import some_notes, tiny_model

import pianogen_hf as pg
from pianogen_hf.errors import PianogenError
from pianogen_hf.publishing.model_card import TEXT_FILE, CardError, render_card, write_card

CARD_TEXTS = Path(pg.__file__).parent.parent / "model_cards"
# The models that come with the package, by the recipes that made them.
BUNDLED = {"v7-bach": pg.BACH_MODEL, "v8-piano": pg.PIANO_MODEL}
WRITTEN = sorted(path for path in CARD_TEXTS.glob("*.md") if path.stem != "template")
SPLIT = {
    "format": 1,
    "parameters": {"source": ["midi", "maestro"]},
    "counts": {"train": 6, "validation": 3, "test": 2, "left_out": 1},
    "notes": {"train": 6100, "validation": 3100, "test": 2100, "left_out": 100},
    "columns": ["side", "family", "content"],
    "sources": {"midi": {"pieces": 12, "notes": 11400}},
    "pieces": {"midi/a.mid": ["train", "f1", "aa"], "midi/b.mid": ["validation", "f2", "bb"]},
    "hash": "12345e67" + "ab" * 28,
}
PROVENANCE = {
    "status": "known",
    "unknown": [],
    "runs": [{"split": SPLIT["hash"], "sources": ["midi"], "pieces": 6, "command": "train.py", "started_from": None}],
    "contaminated": [],
}
OVERLAP = {"run": 2, "piece": "midi/b.mid", "side": "validation", "trained_piece": "other/x.mid", "share": 0.93}


def metrics(bits=2.71828, nats=0.31416, accuracy=0.57722, copied=0.11963, heldout=0.13018, longest=25, seconds=4052.2):
    """As train.py and the audit write them."""
    coverage = {"16": {"generated": copied, "heldout": heldout, "p": 0.5}}
    runs = {"generated": longest, "heldout": 34, "limit": 62.35}
    return {
        "command": "train.py configs/quickstart.yaml",
        "seed": 3,
        "steps": 1234,
        "batch_size": 16,
        "device": "cpu",
        "precision": "float32",
        "threads": 1,
        "world_size": 2,
        "train_seconds": seconds,
        "num_parameters": 1159296,
        "torch": "2.13.0",
        "transformers": "5.23.0",
        "pianogen_hf": "0.1.0",
        "context": {"window": 257, "stride": 128},
        "validation": {"bits_per_note": bits, "nats_per_token": nats, "accuracy": accuracy},
        "baselines": {"backoff n-gram": {"bits_per_note": 3.5, "nats_per_cell": 0.45678}},
        "copy_audit": {
            "generated": {"unit": "steps", "train_piece": "midi/a.mid"},
            "comparison": {"alarm": False, "reasons": [], "coverage": coverage, "longest_run": runs},
            "settings": {"num_samples": 24, "notes": 220, "seed": 0},
        },
    }


@pytest.fixture
def folder(tmp_path):
    """A finished run on a user's folder; its model is not needed."""
    path = tmp_path / "mine"
    path.mkdir()
    config = {"model_type": "gpt2", "n_layer": 4, "n_embd": 192, "n_positions": 512, "vocab_size": 308}
    put(path, config=config, tokenizer_config={"tokenizer_class": "PerformanceTokenizer"})
    put(path, metrics=metrics(), split=SPLIT, provenance=PROVENANCE)
    return path


def put(folder, **files):
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value))


def section(card, heading):
    return re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", card, flags=re.DOTALL | re.MULTILINE)[1]


def top(card):
    return card.split("## Intended use")[0]


def test_front_matter_is_what_the_hub_reads(folder):
    write_card(folder)
    data = ModelCard.load(folder / "README.md").data
    assert (data.get("library_name"), data.pipeline_tag, data.model_name) == ("transformers", "text-generation", "mine")
    assert {"music", "midi", "pianogen_hf", "gpt2"} <= set(data.tags)
    assert not {"contaminated", "unknown-training-data", "non-commercial"} & set(data.tags)
    assert data.license is None, "nobody stated one"


def test_results_go_to_the_model_index_and_back(folder):
    write_card(folder)
    index = metadata_load(folder / "README.md")["model-index"]
    name, results = model_index_to_eval_results(index)
    assert eval_results_to_model_index(name, results) == index
    values = {each.metric_type: each.metric_value for each in results}
    assert values == {"bits_per_note": 2.718, "nats_per_token": 0.3142, "accuracy": 0.5772, "copied_16": 0.1196}
    for each in results:
        assert each.dataset_name == "midi" and each.dataset_revision == SPLIT["hash"]
    scores = [each for each in results if each.dataset_split == "validation"]
    assert len(scores) == 3 and all(each.metric_args == {"window": 257, "stride": 128} for each in scores)
    assert results[-1].metric_args["heldout"] == 0.1302


@pytest.mark.parametrize("value", [None, float("nan")])
def test_what_was_not_measured_is_said_and_has_no_digit(folder, value):
    (folder / "metrics.json").unlink()
    if value is not None:
        put(folder, metrics={"validation": {"bits_per_note": value}, "train_seconds": value, "num_parameters": None})
    card = render_card(folder)
    for heading in ("Scores", "Copying from the training pieces", "Training"):
        assert "not measured" in section(card, heading) and not re.search(r"\d", section(card, heading))
    assert "not measured parameters" in card and "model-index" not in card


def numbers_in(value):
    """Every number of a JSON value, also those that stand in its strings and keys."""
    if isinstance(value, dict):
        return {number for item in value.items() for part in item for number in numbers_in(part)}
    if isinstance(value, str):
        return {float(number) for number in re.findall(r"\d+(?:\.\d+)?", value)}
    return {float(value)} if isinstance(value, int | float) else set()


SHARES = st.floats(0, 1)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.floats(0, 50), st.floats(0, 9), SHARES, SHARES, SHARES, st.integers(0, 9999), st.floats(0, 1e6))
def test_every_figure_in_the_card_was_measured(folder, bits, nats, accuracy, copied, heldout, longest, seconds):
    put(folder, metrics=metrics(bits, nats, accuracy, copied, heldout, longest, seconds))
    measured = numbers_in(json.loads((folder / "metrics.json").read_text()))
    card = render_card(folder)
    for heading in ("Scores", "Copying from the training pieces", "Training"):
        for word in re.findall(r"\d[\d,]*(?:\.\d+)?%?", section(card, heading).replace(", ", " ")):
            number = float(word.rstrip("%").replace(",", "")) / (100 if "%" in word else 1)
            digits = len(word.rstrip("%").partition(".")[2]) + 2 * ("%" in word)
            assert min(abs(number - each) for each in measured) <= 0.51 * 10**-digits, word


def test_a_contaminated_model_says_so_first_and_in_its_tags(folder):
    overlaps = [{**OVERLAP, "piece": f"midi/{number}.mid"} for number in range(23)]
    put(
        folder, provenance={**PROVENANCE, "contaminated": [*overlaps, {**OVERLAP, "share": 0.0, "piece": "midi/0.mid"}]}
    )
    write_card(folder)
    card = (folder / "README.md").read_text()
    assert "> **Contaminated.**" in top(card) and "evaluation pieces (23)" in top(card)
    assert "`midi/19.mid` (validation) shares 93% with `other/x.mid`" in top(card)
    assert "midi/20.mid" not in card and "and 4 more" in top(card)
    assert "Neither this model" not in card
    assert "contaminated" in metadata_load(folder / "README.md")["tags"]
    for result in ModelCard.load(folder / "README.md").data.eval_results[:3]:
        assert result.metric_name.endswith("(contaminated)"), "a figure that travels alone must say it too"


@pytest.mark.parametrize("names", [None, ["org/gone"]])
def test_unknown_training_data_is_said_first_and_in_the_tags(folder, names):
    (folder / "provenance.json").unlink()
    if names:
        put(folder, provenance={**PROVENANCE, "status": "unknown", "unknown": names})
    write_card(folder)
    card = (folder / "README.md").read_text()
    assert "> **Training data unknown.**" in top(card) and "may be among it" in top(card)
    assert ("`org/gone`" in top(card)) == bool(names)
    assert "Neither this model" not in card
    assert "unknown-training-data" in metadata_load(folder / "README.md")["tags"]


def test_a_model_of_known_and_clean_origin_says_so(folder):
    card = render_card(folder)
    assert ">" not in top(card) and "Neither this model nor any that it was initialised from" in card
    assert "No validation or test piece shares a family with a train piece." in card


def test_leaks_of_official_sides_are_named(folder):
    pieces = {"midi/a.mid": ["train", "f1", "aa"], "midi/b.mid": ["validation", "f1", "bb"], "c": ["", "f1", "cc"]}
    put(folder, split={**SPLIT, "pieces": pieces})
    text = section(render_card(folder), "Split and contamination")
    assert "1 validation and test pieces" in text and "`midi/b.mid`" in text and "`c`" not in text
    assert "No piece in another split" not in text


def test_split_and_sources_are_told_with_their_sizes(folder):
    card = render_card(folder)
    assert "* `midi`: MIDI files; 12 pieces, 11,400 notes; terms: not recorded" in card
    assert "| validation | 3 | 3,100 |" in card and "| left out | 1 | 100 |" in card
    assert SPLIT["hash"] in section(card, "Split and contamination")


def test_terms_of_an_earlier_run_stay_with_the_model(folder):
    run = {**PROVENANCE["runs"][0], "sources": ["maestro"], "split": "ef" * 32}
    put(folder, provenance={**PROVENANCE, "runs": [run, {**PROVENANCE["runs"][0], "started_from": "me/first"}]})
    write_card(folder)
    card = (folder / "README.md").read_text()
    assert "`maestro`: MAESTRO; in an earlier run; terms: CC BY-NC-SA" in card and "not be used commercially" in card
    assert "non-commercial" in metadata_load(folder / "README.md")["tags"]
    assert "2 runs" in card and "1. from `me/first`" in card


def test_an_alarm_of_the_audit_is_told(folder):
    values = metrics()
    values["copy_audit"]["comparison"] |= {"alarm": True, "reasons": ["99 steps in a row"]}
    put(folder, metrics=values)
    assert "**Alarm**: 99 steps in a row." in render_card(folder)


def test_sizes_are_read_under_the_names_of_any_architecture(folder):
    assert "4 layers of width 192, made for 512 tokens" in render_card(folder)
    put(folder, config={"model_type": "music_transformer", "hidden_size": 64, "num_hidden_layers": 2})
    assert "2 layers of width 64, made for not recorded tokens" in render_card(folder)


def test_hand_written_words_come_into_their_places_and_stay(folder):
    front = "---\nlicense: cc-by-4.0\ntags: [jazz]\ndatasets: [me/songs]\n---\n"
    write_card(folder, front + "# My model\nHello.\n## Limits\nOnly {{ C }}.\n")
    put(folder, metrics=metrics(bits=9.87654))
    write_card(folder)
    card, data = (folder / "README.md").read_text(), metadata_load(folder / "README.md")
    assert (data["license"], data["datasets"]) == ("cc-by-4.0", ["me/songs"])
    assert {"jazz", "midi"} <= set(data["tags"])
    assert "# My model" in card and "Hello." in top(card) and "9.877" in card
    assert section(card, "Limits").strip() == "Only {{ C }}."


def test_tags_that_warn_can_t_be_written_away(folder):
    put(folder, provenance={**PROVENANCE, "contaminated": [OVERLAP]})
    write_card(folder, "---\ntags: []\n---\n")
    assert "contaminated" in metadata_load(folder / "README.md")["tags"]


BROKEN = {
    "section": ("## Poetry\nOh!", "no section 'Poetry'"),
    "yaml": ("---\na: [\n---\n", "no YAML"),
    "tags": ("---\ntags: jazz\n---\n", "a list"),
    "results": ("---\nmodel-index: []\n---\n", "metrics.json"),
}


@pytest.mark.parametrize("text, reason", BROKEN.values(), ids=BROKEN)
def test_a_text_that_can_t_be_used_changes_nothing(folder, text, reason):
    write_card(folder)
    before = (folder / "README.md").read_text()
    with pytest.raises(CardError, match=reason) as error:
        write_card(folder, text)
    assert "\n" not in str(error.value)
    assert (folder / "README.md").read_text() == before and not (folder / TEXT_FILE).exists()


@pytest.mark.parametrize("content", ["{", "[1]", b"\xff"])
def test_broken_files_are_named(folder, content):
    (folder / "metrics.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(PianogenError, match=r"metrics\.json"):
        render_card(folder)


def test_a_split_of_another_version_is_refused(folder):
    put(folder, split={"counts": {}, "pieces": {"a": {"side": "train", "family": "a"}}})
    with pytest.raises(CardError, match=r"split\.json"):
        render_card(folder)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(CardError, match=r"no config\.json"):
        render_card(tmp_path)


def test_names_of_files_can_t_break_the_card(folder):
    piece = "midi/`a`\n## <b>|.mid"
    put(folder, provenance={**PROVENANCE, "contaminated": [{**OVERLAP, "piece": piece}]})
    assert "> * `midi/'a' ## <b>|.mid` (validation)" in render_card(folder)


def test_a_picture_in_the_folder_is_shown_and_else_the_last_sample(folder):
    assert "![" not in render_card(folder)
    (folder / "samples").mkdir()
    for name in ("samples/step-000100.png", "samples/step-000200.png"):
        (folder / name).touch()
    assert "](samples/step-000200.png)" in render_card(folder)
    (folder / "a roll.png").touch()
    assert "](a%20roll.png)" in render_card(folder)


def test_code_in_the_folder_is_offered_as_the_second_way(folder):
    assert "trust_remote_code" not in render_card(folder)
    put(folder, config={"model_type": "gpt2", "auto_map": {"AutoConfig": "x.Y"}})
    assert "trust_remote_code=True" in render_card(folder)


@pytest.mark.parametrize("model", BUNDLED.values(), ids=BUNDLED)
def test_the_way_to_use_it_works_as_it_stands(tmp_path, monkeypatch, model):
    (code,) = re.findall(r"```python\n(.*?)```", render_card(model), flags=re.DOTALL)
    (tmp_path / Path(model).name).symlink_to(model)
    monkeypatch.chdir(tmp_path)
    pg.write_midi(some_notes(), "my.mid")
    exec(compile(code.replace("max_new_tokens=200", "max_new_tokens=40"), "card", "exec"), {})
    assert len(pg.read_midi("out.mid")) > 0


def test_the_template_lies_beside_the_texts_and_is_the_package_s_own():
    packaged = Path(pg.__file__).parent / "publishing" / "card_template.md"
    assert (CARD_TEXTS / "template.md").read_text(encoding="utf-8") == packaged.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.stem)
def test_a_text_belongs_to_a_recipe(path):
    assert (CARD_TEXTS.parent / "configs" / f"{path.stem}.yaml").exists()


def folder_of(kind, path):
    """A checkpoint of a kind of model that is not causal over ids."""
    if kind == "notes":
        tiny_model(pg.ContinuousNotesForCausalLM, 130).save_pretrained(path)
        pg.ContinuousNotesFeatureExtractor().save_pretrained(path)
    else:
        tokenizer = pg.RemiTokenizer()
        tiny_model(pg.PianoEncoderForMaskedLM, len(tokenizer), is_causal=False).save_pretrained(path)
        tokenizer.save_pretrained(path)
    return path


OTHER_KINDS = {
    "notes": ("AutoFeatureExtractor, AutoModelForCausalLM", "Feature extractor: `ContinuousNotesFeatureExtractor`."),
    "masked": ("AutoModelForMaskedLM, AutoTokenizer", "Tokenizer: `RemiTokenizer`, "),
}


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_other_kinds_of_models_are_used_as_their_cards_say(tmp_path, monkeypatch, kind):
    imported, encoder = OTHER_KINDS[kind]
    monkeypatch.chdir(tmp_path)
    folder_of(kind, tmp_path / "mine")
    write_card(tmp_path / "mine")
    card = (tmp_path / "mine" / "README.md").read_text()
    assert f"from transformers import {imported}\n" in card and encoder in card
    assert metadata_load(tmp_path / "mine" / "README.md").get("pipeline_tag") is None
    codes = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    assert ["pianogen_hf" in code for code in codes] == [True, False]  # with the package, and without
    pg.write_midi(some_notes(), "my.mid")
    for code in codes:
        exec(compile(code.replace("max_new_tokens=200", "max_new_tokens=40"), "card", "exec"), {})
        assert len(pg.read_midi("out.mid")) > 0
        Path("out.mid").unlink()


@pytest.mark.parametrize("model", BUNDLED.values(), ids=BUNDLED)
def test_a_bundled_card_is_what_the_code_makes_of_its_folder(model):
    card = Path(model, "README.md").read_text(encoding="utf-8")
    assert card == render_card(model), f"make it anew: write_card({model!r})"
    facts = card.replace("terms: not recorded", "")  # of folders, of which the text says more
    assert "not recorded" not in facts and "**Training data unknown.**" not in card


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.stem)
def test_every_hand_written_text_makes_a_card(folder, path):
    write_card(folder, path.read_text(encoding="utf-8"))
    card = ModelCard.load(folder / "README.md")
    data = card.data
    assert data.license and data.eval_results
    # The Hub asks for a name where it does not know the licence, and for plain lower-case words in tags.
    assert (data.license == "other") == bool(data.to_dict().get("license_name"))
    assert all(re.fullmatch(r"[\w.-]+", tag) for tag in data.tags) and len(set(data.tags)) == len(data.tags)
    assert model_index_to_eval_results(metadata_load(folder / "README.md")["model-index"])[1] == data.eval_results
    for heading in ("Intended use", "Training data", "Limits", "Licence", "Citation"):
        assert section(path.read_text(encoding="utf-8"), heading).strip(), f"{heading} is for people to write"
    if path.stem in BUNDLED:
        text = Path(BUNDLED[path.stem], TEXT_FILE).read_text(encoding="utf-8")
        assert text == path.read_text(encoding="utf-8")
