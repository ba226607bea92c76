"""What the chorale transformer is told of the grid, and that it counts bars. The rest every causal model promises."""

import pytest
import torch
from models_and_tokenizers import loosened

import pianogen_hf as pg
from pianogen_hf.models.modeling_chorale_transformer import (
    ChoralePlaces,
    ChoraleTransformerIntervalHead,
    interval_index,
)

CONFIG = pg.ChoraleTransformerConfig(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, max_hold=3
)
BOS, REST, NONE = 1, 49, 2 * CONFIG.num_pitches - 1
TOKENIZER = pg.JSBTokenizer()
# Soprano, alto, tenor, bass; the alto moves at the second step and rests at the fourth.
GRID = [[72, 67, 60, 48], [72, 65, 60, 48], [72, 65, 60, 48], [72, -1, 60, 48], [71, 67, 62, 43]]


def places_of(ids, position=None):
    ids = torch.tensor([ids])
    end = torch.arange(ids.shape[1])
    return ChoralePlaces.of(ids, end[None] if position is None else position, end, CONFIG)


def make_model(seed=0):
    torch.manual_seed(seed)
    model = pg.ChoraleTransformerForCausalLM(CONFIG).eval()
    return loosened(model, 0.2)


def test_the_latest_cell_of_each_voice_the_next_voice_last():
    places = places_of([BOS, *TOKENIZER.grid_to_ids(GRID)])
    soprano, alto, tenor, bass = TOKENIZER.grid_to_ids(GRID[:1])
    assert places.recent[0, 4].tolist() == [bass, tenor, alto, soprano]  # the soprano is next
    assert places.recent[0, 2].tolist() == [alto, soprano, BOS, 0]  # nothing before the beginning


def test_how_long_voices_have_held_up_to_a_limit():
    places = places_of([BOS, *TOKENIZER.grid_to_ids(GRID)])
    # After the bass of each step: bass, tenor, alto, soprano.
    assert places.held[0, 4::4].tolist() == [[0, 0, 0, 0], [1, 1, 0, 1], [2, 2, 1, 2], [3, 3, 0, 3], [0, 0, 0, 0]]
    long = places_of([BOS, *TOKENIZER.grid_to_ids([[72, 67, 60, 48]] * 9)])
    assert long.held[0, -1].tolist() == [3, 3, 3, 3]


def test_what_stands_before_a_piece_is_not_seen():
    ids = TOKENIZER.grid_to_ids(GRID)
    packed = places_of([*ids[:7], BOS, *ids], torch.tensor([[*range(7), *range(21)]]))
    alone = places_of([BOS, *ids])
    for name in ("recent", "held"):
        torch.testing.assert_close(getattr(packed, name)[:, 7:], getattr(alone, name))


def test_intervals_are_of_pitches_only():
    ids = torch.tensor([3, 48, 4, REST, BOS])
    others = torch.tensor([48, 3, 4, 4, 4])
    assert interval_index(ids, others, CONFIG).tolist() == [0, 90, 45, NONE, NONE]


@torch.no_grad()
def test_logits_by_interval_move_with_the_known_pitches():
    head = ChoraleTransformerIntervalHead(CONFIG)
    torch.nn.init.normal_(head.weight)
    hidden_states = torch.randn(1, 1, CONFIG.hidden_size)
    recent = torch.tensor([[[10, 20, 30, 40]]])
    logits, higher = head(hidden_states, recent, 50), head(hidden_states, recent + 2, 50)
    torch.testing.assert_close(higher[..., 5:49], logits[..., 3:47])


@torch.no_grad()
def test_only_whole_bars_may_be_cut():
    model = make_model()
    ids = torch.randint(3, 49, (1, 65), generator=torch.Generator().manual_seed(0))
    logits = model(ids).logits
    for skipped, is_same in ((64, True), (4, False)):
        moved = model(ids, position_ids=torch.arange(65)[None] + skipped).logits
        assert torch.allclose(moved, logits, atol=1e-4) == is_same


@torch.no_grad()
def test_the_cache_keeps_the_ids_in_a_layer_of_their_own():
    model, ids = make_model(), torch.randint(3, 49, (2, 9), generator=torch.Generator().manual_seed(0))
    cache = model(ids, use_cache=True).past_key_values
    assert len(cache.layers) == CONFIG.num_hidden_layers + 1
    assert cache.layers[-1].keys[:, 0, :, 0].long().tolist() == ids.tolist()
    cache.reorder_cache(torch.tensor([1, 1]))
    new = torch.tensor([[5], [6]])
    expected = model(torch.cat([ids[[1, 1]], new], 1)).logits[:, -1:]
    torch.testing.assert_close(model(new, past_key_values=cache).logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_voices": 0}, "num_voices"),
        ({"hidden_size": 66, "num_attention_heads": 3}, None),
        ({"hidden_size": 30, "num_attention_heads": 2}, "even size"),
        ({"hidden_dropout": 1.0}, "hidden_dropout"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    if message is None:
        pg.ChoraleTransformerConfig(**settings)
        return
    with pytest.raises(ValueError, match=message):
        pg.ChoraleTransformerConfig(**settings)
