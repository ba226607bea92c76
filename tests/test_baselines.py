import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pianogen_hf.evaluation.baselines import (
    BackoffNgram,
    HoldBaseline,
    bits_per_note,
    count_notes,
    grid_baselines,
    nats_per_cell,
    piece_nats,
)

SYMBOLS = [-1, *range(36, 82)]
MODELS = [HoldBaseline, BackoffNgram]

any_piece = st.integers(1, 12).flatmap(lambda steps: arrays(np.int64, (steps, 4), elements=st.sampled_from(SYMBOLS)))


def scale_pieces(num_pieces: int, seed: int, steps: int = 64) -> list[np.ndarray]:
    """Each beat the soprano steps up or down its scale and the lower voices follow in parallel; some cells rest."""
    rng = np.random.default_rng(seed)
    scale = np.array([0, 2, 4, 5, 7, 9, 11, 12, 14])
    pieces = []
    for _ in range(num_pieces):
        degree = np.abs(np.cumsum(rng.choice([-1, 1], steps // 4)) % 16 - 8)
        soprano = 62 + np.repeat(scale[degree], 4)
        piece = np.stack([soprano, soprano - 5, soprano - 12, soprano - 24], axis=1)
        piece[rng.integers(steps), rng.integers(4)] = -1
        pieces.append(piece)
    return pieces


@pytest.fixture(scope="module")
def fitted() -> dict[type, HoldBaseline | BackoffNgram]:
    pieces = scale_pieces(12, seed=0)
    return {model: model().fit(pieces) for model in MODELS}


def cost_of_every_symbol(model, piece: np.ndarray, step: int, voice: int) -> np.ndarray:
    costs = []
    for symbol in SYMBOLS:
        other = piece.copy()
        other[step, voice] = symbol
        costs.append(model.nats(other)[step, voice])
    return np.array(costs)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("step", "voice"), [(0, 0), (0, 3), (1, 0), (4, 0), (5, 3), (8, 1), (12, 2), (15, 3)])
def test_probabilities_sum_to_one_in_familiar_contexts(fitted, model, step, voice):
    piece = scale_pieces(1, seed=1, steps=16)[0]
    assert np.exp(-cost_of_every_symbol(fitted[model], piece, step, voice)).sum() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("model", MODELS)
@settings(deadline=None, max_examples=25)
@given(piece=any_piece, data=st.data())
def test_probabilities_sum_to_one_in_any_context(fitted, model, piece, data):
    step = data.draw(st.integers(0, len(piece) - 1))
    voice = data.draw(st.integers(0, 3))
    costs = cost_of_every_symbol(fitted[model], piece, step, voice)
    assert np.all(np.isfinite(costs))
    assert np.exp(-costs).sum() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("model", MODELS)
@settings(deadline=None, max_examples=50)
@given(piece=any_piece, data=st.data())
def test_changing_a_cell_never_changes_the_cost_of_earlier_cells(fitted, model, piece, data):
    cell = data.draw(st.integers(0, piece.size - 1))
    other = piece.copy()
    later = other.reshape(-1)[cell:]
    later[:] = data.draw(arrays(np.int64, later.shape, elements=st.sampled_from(SYMBOLS)))
    before, after = (fitted[model].nats(p).ravel()[:cell] for p in (piece, other))
    np.testing.assert_array_equal(before, after)


def test_hold_baseline_by_hand():
    # Soprano 60 60 62 62 62; the others rest throughout. Symbols counted with one added to each of the 47.
    piece = np.full((5, 4), -1)
    piece[:, 0] = [60, 60, 62, 62, 62]
    costs = HoldBaseline().fit([piece]).nats(piece)
    unigram_60, unigram_62 = 3 / 52, 4 / 52
    soprano = [
        unigram_60,
        2 / 3,  # the only chance to hold at position 1 was taken: (1 + 1) / (1 + 2)
        (1 - 1 / 3) * unigram_62 / (1 - unigram_60),  # at position 2 it was not
        2 / 3,
        2 / 3,
    ]
    np.testing.assert_allclose(np.exp(-costs[:, 0]), soprano)
    np.testing.assert_allclose(np.exp(-costs[:, 3]), [6 / 52] + [2 / 3] * 4)


def test_ngram_without_matching_counts_is_the_hold_baseline():
    # No piece has two steps, so nothing was learnt about holding; nor about a bass that leaves a pitch.
    pieces = [np.array([[60, 57, 53, 48]]), np.array([[62, 57, 54, 47]])]
    piece = np.array([[40, 40, 40, 40], [41, 40, 40, 50]])
    ngram, baseline = (model().fit(pieces).nats(piece) for model in (BackoffNgram, HoldBaseline))
    np.testing.assert_allclose(ngram[1], baseline[1])
    assert not np.allclose(ngram[0], baseline[0])


@pytest.mark.parametrize("model", MODELS)
def test_held_chord_costs_little(model):
    piece = np.tile([72, 67, 64, 48], (256, 1))
    fitted = model().fit([piece] * 10)
    assert fitted.nats(piece)[1:].mean() < 0.01
    assert piece_nats(fitted, [piece])[0] < 0.05 * piece.size


def test_ngram_learns_structure_that_hold_baseline_cannot_see(fitted):
    unseen = scale_pieces(4, seed=2)
    assert nats_per_cell(fitted[BackoffNgram], unseen) < 0.6 * nats_per_cell(fitted[HoldBaseline], unseen)


def test_ngram_uses_voices_already_decided_at_this_step(fitted):
    # After the soprano's move the parallel bass is nearly certain, the soprano itself is not.
    moves = np.concatenate([fitted[BackoffNgram].nats(piece)[4::4] for piece in scale_pieces(4, seed=3)])
    assert moves[:, 3].mean() < 0.5 * moves[:, 0].mean()


def test_ngram_generalises_to_other_keys(fitted):
    pieces = scale_pieces(4, seed=4)
    shifted = [np.where(piece < 0, piece, piece + 1) for piece in pieces]
    ratio = nats_per_cell(fitted[BackoffNgram], shifted) / nats_per_cell(fitted[BackoffNgram], pieces)
    assert ratio < 1.1


def test_order_of_steps_matters(fitted):
    piece = scale_pieces(1, seed=5)[0]
    shuffled = np.random.default_rng(0).permutation(piece)
    assert fitted[BackoffNgram].nats(shuffled).sum() > 2 * fitted[BackoffNgram].nats(piece).sum()


@pytest.mark.parametrize("model", MODELS)
def test_fit_does_not_depend_on_order_of_pieces(fitted, model):
    reordered = model().fit(scale_pieces(12, seed=0)[::-1])
    piece = scale_pieces(1, seed=6)[0]
    np.testing.assert_array_equal(reordered.nats(piece), fitted[model].nats(piece))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("symbol", SYMBOLS)
def test_every_symbol_has_a_finite_cost_after_fitting_on_one_chord(model, symbol):
    fitted = model().fit([np.tile([72, 67, 64, 48], (8, 1))])
    piece = np.array([[72, 67, 64, 48], [symbol] * 4, [48, 64, 67, 72]])
    assert np.all(np.isfinite(fitted.nats(piece)))


def test_sums_and_means_over_cells_agree(fitted):
    pieces = [*scale_pieces(2, seed=7), *scale_pieces(1, seed=8, steps=16)]
    model = fitted[HoldBaseline]
    totals = piece_nats(model, pieces)
    assert totals.shape == (3,)
    assert totals[2] == pytest.approx(model.nats(pieces[2]).sum())
    assert nats_per_cell(model, pieces) == pytest.approx(totals.sum() / (64 + 64 + 16) / 4)


def test_notes_are_runs_of_one_pitch_in_one_voice():
    piece = np.array([[60, 60, -1, 48], [60, 62, -1, -1], [62, 60, 50, 48], [62, 60, 50, 48]])
    assert count_notes(piece) == 2 + 3 + 1 + 2
    assert count_notes(np.full((3, 4), -1)) == 0


def test_bits_per_note_converts_from_nats():
    assert bits_per_note(math.log(8), 2) == pytest.approx(1.5)
    with pytest.raises(ValueError, match="no notes"):
        bits_per_note(1.0, 0)


@pytest.mark.parametrize("piece", [np.full((4, 3), 60), np.full(4, 60), np.full((2, 4), 35), np.full((2, 4), 82)])
def test_other_shapes_and_pitches_are_refused(fitted, piece):
    for model in fitted.values():
        with pytest.raises(ValueError, match="piece is an array|pitches are"):
            model.nats(piece)


def test_mean_over_no_cells_is_refused(fitted):
    with pytest.raises(ValueError, match="no cells"):
        nats_per_cell(fitted[HoldBaseline], [])


def test_grid_baselines_fit_on_train_and_measure_the_others():
    train, evaluated = scale_pieces(3, seed=9), scale_pieces(2, seed=10)
    num_notes = sum(count_notes(piece) for piece in evaluated)
    scores = grid_baselines(train, evaluated, num_notes)
    expected = BackoffNgram().fit(train)
    assert set(scores) == {"hold and unigram", "backoff n-gram"}
    assert scores["backoff n-gram"] == pytest.approx(
        {
            "bits_per_note": bits_per_note(piece_nats(expected, evaluated).sum(), num_notes),
            "nats_per_cell": nats_per_cell(expected, evaluated),
        }
    )
