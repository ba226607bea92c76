"""The Multitrack Music Transformer's model: parity with its own code, and what is mended here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models_and_tokenizers import loosened
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

import pianogen_hf as pg
from pianogen_hf.commands import main
from pianogen_hf.models.modeling_multitrack_music import rotate

GOLDEN = Path(__file__).parent / "golden" / "upstream_multitrack_music_model.safetensors"
FIELDS = ("type", "beat", "position", "pitch", "duration", "instrument")
TOKENIZER = pg.MultitrackMusicTokenizer(num_beats=8)
START, END = [0] * 6, [4, 0, 0, 0, 0, 0]


def upstream():
    """Weights under their own names, and the outputs."""
    tensors = load_file(GOLDEN)
    outputs = {name.removeprefix("golden."): each for name, each in tensors.items() if name.startswith("golden.")}
    return {name: each for name, each in tensors.items() if name not in {f"golden.{out}" for out in outputs}}, outputs


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mmt")
    (folder / "checkpoints").mkdir()
    torch.save(upstream()[0], folder / "checkpoints" / "best_model.pt")
    assert main(["convert", "mmt", str(folder), str(folder / "ours")]) == 0
    return folder / "ours"


def make_model(**settings):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = pg.MultitrackMusicConfig(
        num_beats=8, vocab_size=len(TOKENIZER), **{**sizes, "max_position_embeddings": 600, **settings}
    )
    return loosened(pg.MultitrackMusicForCausalLM(config).eval(), 0.3)


def piece(seed=0, length=24, instruments=(1, 30)):
    """Rows of a piece, int64 (num_rows, 6)."""
    random = torch.Generator().manual_seed(seed)
    notes = torch.stack([torch.randint(1, size, (length,), generator=random) for size in (9, 13, 129, 33)], dim=1)
    plays = torch.tensor(instruments)[torch.randint(0, len(instruments), (length, 1), generator=random)]
    rows = torch.cat([torch.full((length, 1), 3), notes, plays], dim=1)
    header = [START, *([1, 0, 0, 0, 0, each] for each in instruments), [2, 0, 0, 0, 0, 0]]
    return torch.cat([torch.tensor(header), torch.tensor(sorted(rows.tolist()))])


def ids_of(rows):
    return torch.tensor([TOKENIZER.rows_to_ids(rows.tolist())])


# Parity --------------------------------------------------------------------------------------------------------------


def test_a_converted_checkpoint_gives_the_logits_of_the_original(converted):
    model = pg.MultitrackMusicForCausalLM.from_pretrained(converted).eval()
    outputs = upstream()[1]
    rows, mask = outputs["input_ids"].long(), outputs["mask"]
    with torch.no_grad():
        logits = model(input_ids=rows[:, :-1], attention_mask=mask[:, :-1]).logits
    for field, name in enumerate(FIELDS):  # where there is padding, too
        torch.testing.assert_close(logits[field], outputs[f"logits_{name}"], atol=1e-4, rtol=0)
    losses = [F.cross_entropy(each.flatten(0, 1), rows[:, 1:, field].flatten()) for field, each in enumerate(logits)]
    torch.testing.assert_close(torch.stack(losses), outputs["losses"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_converted_checkpoint_writes_the_likeliest_rows_of_the_original(converted, use_cache):
    model = AutoModelForCausalLM.from_pretrained(converted).eval()
    outputs = upstream()[1]
    prompt = outputs["input_ids"][0, :8].long()
    written = model.generate_rows(prompt, max_new_rows=20, legacy=True, do_sample=False, use_cache=use_cache)[0]
    assert written[8:].tolist() == outputs["greedy_prompt8_new"][0].tolist()
    tokenizer = AutoTokenizer.from_pretrained(converted)
    assert tokenizer.legacy and tokenizer.num_beats == 32
    assert len(tokenizer.decode_rows(written)) > 20


def test_a_rotary_checkpoint_rotates_values_and_one_without_positions_has_none(tmp_path):
    weights = upstream()[0]
    del weights["decoder.net.pos_emb.emb.weight"]
    for name, extra in (("npe", {}), ("rpe", {"decoder.net.attn_layers.rotary_pos_emb.inv_freq": torch.ones(16)})):
        save_file({**weights, **extra}, tmp_path / f"{name}.safetensors")
        assert main(["convert", "mmt", str(tmp_path / f"{name}.safetensors"), str(tmp_path / name)]) == 0
    none, rotary = (pg.MultitrackMusicForCausalLM.from_pretrained(tmp_path / name).config for name in ("npe", "rpe"))
    assert none.position_embedding_type == "none"
    assert (rotary.position_embedding_type, rotary.rotate_values) == ("rotary", True)


def test_the_first_half_of_heads_is_rotated_pair_by_pair():
    states = torch.zeros(1, 1, 2, 64)
    states[..., 0], states[..., 40] = 1.0, 1.0
    model = make_model(position_embedding_type="rotary")
    cos, sin = model.model.rotary_emb(torch.tensor([[0, 1]]))
    turned = rotate(states, cos, sin)[0, 0]
    assert turned[0].tolist() == states[0, 0, 0].tolist()
    assert turned[1, 0] == pytest.approx(torch.cos(torch.tensor(1.0)).item())
    assert turned[1, 16] == pytest.approx(torch.sin(torch.tensor(1.0)).item())
    assert turned[1, 40] == 1 and cos.shape[-1] == 32


@torch.no_grad()
def test_rotary_positions_are_relative_unless_values_are_rotated():
    rows = piece()[None]
    shifted = torch.arange(rows.shape[1])[None] + 7
    for rotate_values in (False, True):
        model = make_model(position_embedding_type="rotary", rotate_values=rotate_values).model
        here, there = (model(rows, position_ids=each).last_hidden_state for each in (None, shifted))
        assert torch.allclose(here, there, atol=1e-4) is not rotate_values


@pytest.mark.parametrize(
    ("name", "content"),
    [("best_model.pt", b"no weights"), ("best_model.safetensors", b"{}"), (None, b"")],
)
def test_what_is_no_checkpoint_is_refused_in_one_line(tmp_path, capsys, name, content):
    if name is not None:
        (tmp_path / name).write_bytes(content)
    assert main(["convert", "mmt", str(tmp_path), str(tmp_path / "ours")]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1 and not (tmp_path / "ours" / "config.json").exists()


def test_weights_of_another_model_are_refused_in_one_line(tmp_path, capsys):
    torch.save({"transformer.wte.weight": torch.zeros(3, 3)}, tmp_path / "best_model.pt")
    assert main(["convert", "mmt", str(tmp_path), str(tmp_path / "ours")]) == 2
    assert "no checkpoint of the Multitrack Music Transformer" in capsys.readouterr().err
    assert main(["convert", "mmt", str(tmp_path / "nowhere"), str(tmp_path / "ours")]) == 2


# What is mended ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_padding_is_no_part_of_the_loss():
    model, rows = make_model(), piece()[None]
    alone = model(rows, labels=rows).loss
    padded = torch.cat([rows, torch.zeros(1, 5, 6, dtype=torch.long)], dim=1)
    mask = torch.ones(padded.shape[:2], dtype=torch.long)
    mask[:, -5:] = 0
    torch.testing.assert_close(model(padded, attention_mask=mask, labels=padded).loss, alone)
    assert (model(padded, labels=padded).loss - alone).abs() > 1e-3
    ids = ids_of(rows[0])
    labels = F.pad(ids, (0, 4), value=-100)
    mask = F.pad(torch.ones_like(ids), (0, 4))
    torch.testing.assert_close(
        model(F.pad(ids, (0, 4)), attention_mask=mask, labels=labels).loss, model(ids, labels=ids).loss
    )


def test_no_item_of_a_batch_begins_a_song_again():
    model = make_model()
    torch.manual_seed(1)
    songs = model.generate_rows([[START]] * 4, max_new_rows=12, do_sample=True, temperature=3.0)
    for rows in songs:
        assert rows[0].tolist() == START and (rows[1:, 0] > 0).all()
        assert (rows[1:, 0].diff() >= 0).all()
        notes = rows[rows[:, 0] == 3]
        assert (notes > 0).all() and (notes[:, 1].diff() >= 0).all()


def test_only_announced_instruments_play():
    model, prompt = make_model(), piece(length=3)
    torch.manual_seed(0)
    options = {"do_sample": True, "temperature": 5.0, "top_k": 0, "min_new_tokens": 60}
    plays = {
        legacy: {
            row[5]
            for rows in model.generate_rows([prompt] * 3, 12, legacy=legacy, **options)
            for row in rows.tolist()
            if row[0] == 3
        }
        for legacy in (False, True)
    }
    assert plays[False] <= {1, 30} and not plays[True] <= {1, 30}


def test_top_k_is_a_number_of_values_and_top_p_a_share_of_the_mass():
    model, prompt = make_model(), piece()
    greedy = model.generate_rows(prompt, 8, do_sample=False)[0]
    for options in ({"top_k": 1}, {"top_k": 0, "top_p": 1e-6}):
        assert model.generate_rows(prompt, 8, do_sample=True, **options)[0].tolist() == greedy.tolist()
    torch.manual_seed(0)
    options = {"top_k": 0, "top_p": 0.999, "temperature": 3.0, "min_new_tokens": 40}
    anything = [model.generate_rows(prompt, 8, do_sample=True, **options)[0].tolist() for _ in range(2)]
    assert anything[0] != anything[1]


def test_all_three_prompts_go_on():
    model, rows = make_model(), piece()
    for prompt in ([START], TOKENIZER.prompt_rows(rows), TOKENIZER.prompt_rows(rows, beats=4)):
        prompt = torch.as_tensor(prompt)
        written = model.generate_rows(prompt, max_new_rows=5, do_sample=False)[0]
        assert written[: len(prompt)].tolist() == prompt.tolist() and len(prompt) < len(written) <= len(prompt) + 5
    assert len(model.generate_rows(max_new_rows=2, do_sample=False)[0]) > 1


def test_more_rows_than_there_are_positions_are_refused():
    model = make_model(max_position_embeddings=60)
    with pytest.raises(ValueError, match="positions for 10"):
        model.generate_rows([START], max_new_rows=10)
    assert len(model.generate_rows([START], max_new_rows=9, do_sample=False)[0]) <= 10


# Ids and rows --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_an_id_has_the_probability_that_its_field_has_among_what_a_row_may_hold():
    model, rows = make_model(), piece()
    ids = ids_of(rows)
    by_id = model(ids).logits.log_softmax(-1)[0, :-1].gather(-1, ids[0, 1:, None])[:, 0]
    logits = model(rows[None]).logits
    expected = []
    for index, row in enumerate(rows[1:].tolist()):
        for field, code in enumerate(row):
            if code:  # the code 0 begins a song, or says that a row has no such field: there is no id for it
                legal = logits[field][0, index, 1:].log_softmax(-1)
                expected.append(legal[code - 1])
    torch.testing.assert_close(by_id, torch.stack(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("position_embedding_type", ["learned", "rotary", "none"])
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padding_changes_nothing(position_embedding_type, side):
    model, ids = make_model(position_embedding_type=position_embedding_type), ids_of(piece())
    widths = (7, 0) if side == "left" else (0, 7)
    mask = F.pad(torch.ones_like(ids), widths)
    kept = slice(7, None) if side == "left" else slice(0, -7)
    padded = model(F.pad(ids, widths), attention_mask=mask).logits[:, kept]
    torch.testing.assert_close(padded, model(ids).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sizes", [[1] * 60, [5, 20, 1, 1, 9, 1, 1, 1], [3, 60]])
@torch.no_grad()
def test_cached_equals_uncached_wherever_rows_are_cut(sizes):
    model, ids = make_model(), ids_of(piece(1))
    cache, start, logits = None, 0, []
    for size in sizes:
        outputs = model(ids[:, start : start + size], past_key_values=cache, use_cache=True)
        cache, start = outputs.past_key_values, start + size
        logits.append(outputs.logits)
    torch.testing.assert_close(torch.cat(logits, 1), model(ids[:, :start]).logits, atol=1e-5, rtol=1e-5)


def test_prompts_of_unequal_length_go_on_as_each_alone():
    model = make_model()
    prompts = [piece(0, 9), piece(1, 3), torch.tensor([START])]
    together = model.generate_rows(prompts, max_new_rows=4, do_sample=False)
    alone = [model.generate_rows(each, max_new_rows=4, do_sample=False)[0] for each in prompts]
    assert [each.tolist() for each in together] == [each.tolist() for each in alone]


def test_beam_search_with_cache_equals_beam_search_without():
    model, ids = make_model(), ids_of(piece(0, 4))
    options = {"num_beams": 3, "max_new_tokens": 14, "do_sample": False}
    with_cache, without = (model.generate(ids, use_cache=each, **options) for each in (True, False))
    assert torch.equal(with_cache, without)


@torch.no_grad()
def test_a_window_that_begins_within_a_row_is_read():
    model, ids = make_model(), ids_of(piece())
    for start in range(5, 12):
        assert model(ids[:, start:]).logits.isfinite().all()


def test_every_weight_learns_and_all_of_it_is_saved(tmp_path):
    model, ids = make_model().train(), ids_of(torch.cat([piece(), torch.tensor([END])]))
    loss = model(ids, labels=ids).loss
    loss.backward()
    assert loss.isfinite() and all(each.grad.abs().sum() > 0 for each in model.parameters())
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(loaded, pg.MultitrackMusicForCausalLM)
    assert torch.equal(model.eval()(ids).logits, loaded.eval()(ids).logits)
    assert (tmp_path / "modeling_multitrack_music.py").is_file()


def test_sizes_that_make_no_model_are_refused_in_words():
    for settings, words in (
        ({"vocab_size": 100}, "no room for 256 beats"),
        ({"position_embedding_type": "sinusoidal"}, "learned, rotary, none"),
        ({"head_dim": 7}, "even"),
        ({"num_beats": 0}, "num_beats must be at least 1"),
    ):
        with pytest.raises(ValueError, match=words):
            pg.MultitrackMusicConfig(**settings)
    with pytest.raises(ValueError, match="ids or rows"):
        make_model()()
    with pytest.raises(ValueError, match="rows of 6 codes"):
        make_model()(torch.zeros(1, 2, 5, dtype=torch.long))


@torch.no_grad()
def test_logits_to_keep_are_the_last_logits():
    model, ids = make_model(), ids_of(piece())
    everything = model(ids).logits
    torch.testing.assert_close(model(ids, logits_to_keep=2).logits, everything[:, -2:])
    torch.testing.assert_close(model(ids, logits_to_keep=torch.tensor([0, 3])).logits, everything[:, [0, 3]])
