"""Music metrics against answers worked out by hand, distributions against closed forms, metrics of `evaluate`."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models_and_tokenizers import some_notes

import pianogen_hf as pg
from pianogen_hf.evaluation.distributions import compare_sets, densities, distance_overlap, overlap
from pianogen_hf.evaluation.hub_metrics import BitsPerNote, MusicStatistics
from pianogen_hf.evaluation.music_metrics import (
    METRICS,
    duration_entropy,
    grooving_similarity,
    piece_metrics,
    pitch_class_entropy,
    polyphony,
    scale_consistency,
)
from pianogen_hf.tokenizers.notes import TIME_SIGNATURE_DTYPE

BEAT = 480  # ticks; half a second


def notes_of(*rows, signatures=()):
    """Rows of (onset in beats, duration in beats, pitch[, velocity])."""
    columns = [np.array([(*row, 64)[:4] for row in rows], dtype=np.float64)[:, column] for column in range(4)]
    notes = pg.Notes.from_columns(
        BEAT,
        onset_tick=columns[0] * BEAT,
        duration_tick=columns[1] * BEAT,
        pitch=columns[2],
        velocity=columns[3],
    )
    notes.time_signatures = np.array([(beat * BEAT, *rest) for beat, *rest in signatures], dtype=TIME_SIGNATURE_DTYPE)
    return notes


# By hand --------------------------------------------------------------------------------------------------------------


def test_pitch_class_entropy_over_one_and_four_bars():
    # Bar 1: C, c (one class); bar 2: C, E (two); bar 3: empty; bar 4: C, D, E, F (four)
    notes = notes_of(
        (0, 1, 60), (1, 1, 72), (4, 1, 60), (5, 1, 64), (12, 1, 60), (13, 1, 62), (14, 1, 64), (15, 1, 65)
    )  # fmt: skip
    assert pitch_class_entropy(notes, 1) == pytest.approx((0 + 1 + 2) / 3)
    shares = np.array([4, 1, 2, 1]) / 8  # C, D, E, F in all four bars
    assert pitch_class_entropy(notes, 4) == pytest.approx(-(shares * np.log2(shares)).sum())
    assert pitch_class_entropy(notes, 9) == pytest.approx(pitch_class_entropy(notes, 4))  # as long as there is music
    # Windows of two bars: CcCE, CE, CDEF
    pairs = [-(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25)), 1, 2]
    assert pitch_class_entropy(notes, 2) == pytest.approx(np.mean(pairs))


def test_grooving_similarity_is_over_all_pairs_of_bars_the_empty_one_too():
    # Onsets on beats 1, 3 | 1 | none | 1, 3: pairs differ in 1, 2, 0, 1, 1, 2 of 64 positions
    notes = notes_of((0, 1, 60), (2, 1, 62), (2, 1, 65), (4, 1, 60), (12, 1, 60), (14, 1, 60))
    assert grooving_similarity(notes) == pytest.approx(1 - 7 / 6 / 64)
    assert math.isnan(grooving_similarity(notes_of((0, 1, 60), (2, 1, 60))))


def test_bars_follow_the_time_signatures():
    in_three = notes_of((0, 1, 60), (3, 1, 60), (6, 1, 60), signatures=[(0, 3, 4)])
    assert grooving_similarity(in_three) == 1  # every bar has an onset on its first beat
    assert grooving_similarity(notes_of((0, 1, 60), (3, 1, 60), (6, 1, 60))) < 1
    changing = notes_of((0, 1, 60), (4, 1, 60), (7, 1, 60), signatures=[(0, 4, 4), (4, 3, 4)])
    assert grooving_similarity(changing) == 1


def test_polyphony_counts_pitches_while_any_sounds():
    # Beats 0..2: one pitch; 2..3: two; 3..5: silence; 5..6: one, struck twice at once
    notes = notes_of((0, 3, 60), (2, 1, 64), (5, 1, 60), (5, 1, 60))
    assert polyphony(notes) == pytest.approx((2 * 1 + 1 * 2 + 1) / 4)
    assert math.isnan(polyphony(notes_of((0, 0, 60))))


def test_scale_consistency_takes_the_best_scale():
    g_major = [67, 69, 71, 72, 74, 76, 78]
    assert scale_consistency(notes_of(*((n, 1, pitch) for n, pitch in enumerate(g_major)))) == 1
    assert scale_consistency(notes_of(*((n, 1, pitch) for n, pitch in enumerate([*g_major, 61])))) == 7 / 8
    assert scale_consistency(notes_of(*((n, 1, 60 + n) for n in range(12)))) == pytest.approx(7 / 12)


def test_all_numbers_of_a_small_piece():
    # Two chords of two notes, a bar of rest, one long note: 120 quarters a minute
    notes = notes_of((4, 1, 60, 40), (4, 1, 64, 60), (6, 1, 62, 80), (6, 1, 65, 60), (12, 4, 72, 60))
    found = piece_metrics(notes)
    assert list(found) == list(METRICS)
    assert found["pitch_range"] == 12 and found["num_pitch_classes"] == 4
    assert found["empty_bar_rate"] == pytest.approx(1 / 3)  # the bar before the first note is not counted
    assert found["note_density"] == pytest.approx(5 / 6)  # from second 2 to second 8
    assert found["inter_onset_mean"] == pytest.approx(2.0) and found["inter_onset_variance"] == pytest.approx(1.0)
    assert found["velocity_mean"] == 60 and found["velocity_variance"] == pytest.approx(160)
    assert found["duration_entropy"] == pytest.approx(-(0.8 * math.log2(0.8) + 0.2 * math.log2(0.2)))
    assert found["polyphony"] == pytest.approx((2 + 2 + 4) / 6)


def test_durations_of_one_length_have_no_entropy_and_are_counted_by_sound_not_by_tick():
    assert duration_entropy(notes_of(*((n, 1, 60) for n in range(9)))) == 0
    assert duration_entropy(notes_of((0, 0.5, 60), (1, 1, 60), (2, 2, 60), (4, 4, 60))) == pytest.approx(2)


def test_a_piece_of_one_note_or_none_has_what_can_be_said_of_it():
    one = piece_metrics(notes_of((3, 1, 60)))
    assert one["pitch_range"] == 0 and one["empty_bar_rate"] == 0 and math.isnan(one["inter_onset_mean"])
    none = piece_metrics(pg.Notes.from_columns(480, onset_tick=[], duration_tick=[], pitch=[]))
    assert set(none) == set(METRICS) and all(math.isnan(value) for value in none.values())


def test_drums_do_not_count_and_a_note_at_the_end_of_time_does_no_harm():
    notes = some_notes()
    with_drums = notes.table.copy()
    with_drums["is_drum"][:5] = True
    assert piece_metrics(pg.Notes(with_drums)) == piece_metrics(pg.Notes(notes.table[5:]))
    far = piece_metrics(notes_of((0, 1, 60), (1_000_000, 1, 60)))
    assert math.isnan(far["pitch_class_entropy_1"]) and far["empty_bar_rate"] > 0.99


@given(st.integers(0, 1000), st.integers(2, 60))
def test_metrics_stay_in_their_ranges_and_do_not_mind_transposition(seed, num_notes):
    notes = some_notes(seed, num_notes)
    found = piece_metrics(notes)
    assert min(found["pitch_class_entropy_1"], found["pitch_class_entropy_4"]) >= 0
    assert max(found["pitch_class_entropy_1"], found["pitch_class_entropy_4"]) <= math.log2(12) + 1e-9
    assert 7 / 12 <= found["scale_consistency"] <= 1 and 0 <= found["empty_bar_rate"] < 1 and found["polyphony"] >= 1
    moved = piece_metrics(notes.transposed(5))
    for name in METRICS:
        assert moved[name] == pytest.approx(found[name], nan_ok=True), name


# Distributions --------------------------------------------------------------------------------------------------------


def test_equal_sets_overlap_wholly_and_distant_ones_not_at_all():
    values = np.array([1.0, 2.0, 4.0, 7.0])
    same = overlap(values, values)
    assert same["overlap"] == pytest.approx(1) and same["kl"] == pytest.approx(0, abs=1e-9)
    apart = overlap(values, values + 1000)
    assert apart["overlap"] < 1e-6 and 5 < apart["kl"] < 30 and math.isfinite(apart["kl"])


def test_overlap_and_divergence_of_normal_samples_are_near_the_closed_forms():
    random = np.random.default_rng(0)
    first, second = random.normal(0, 1, 20_000), random.normal(1, 1, 20_000)
    found = overlap(first, second)
    assert found["overlap"] == pytest.approx(math.erfc(0.5 / math.sqrt(2)), abs=0.02)  # 0.617
    assert found["kl"] == pytest.approx(0.5, abs=0.04)
    grid, density, _ = densities(first, second)
    assert np.trapezoid(density, grid) == pytest.approx(1, abs=1e-3)


def test_sets_of_one_value_are_compared_all_the_same():
    assert overlap(np.full(4, 64.0), np.full(9, 64.0)) == {"overlap": pytest.approx(1), "kl": pytest.approx(0)}
    assert overlap(np.full(4, 64.0), np.full(9, 80.0))["overlap"] < 1e-6
    with pytest.raises(ValueError, match="empty"):
        overlap(np.zeros(0), np.ones(3))


def test_distances_between_the_sets_stand_against_those_within_the_reference():
    random = np.random.default_rng(0)
    reference = random.normal(0, 1, 60)
    like, unlike = (distance_overlap(random.normal(mean, 1, 60), reference)["overlap"] for mean in (0, 4))
    assert like > 0.9 > 0.5 > unlike
    assert distance_overlap(reference, reference[:1]) is None
    many = np.tile(reference, 500)
    assert distance_overlap(many, many)["overlap"] > 0.9


def test_sets_of_pieces_are_compared_feature_by_feature():
    first, second = ([piece_metrics(some_notes(seed, num)) for seed in range(8)] for num in (24, 60))
    rows = compare_sets(first, second)
    assert (
        rows["note_density"]["mean"] < rows["note_density"]["reference_mean"] and rows["note_density"]["overlap"] < 0.3
    )
    assert compare_sets(first, first)["polyphony"]["overlap"] == pytest.approx(1)
    short = [piece_metrics(notes_of((0, 1, 60)))] * 2
    assert "grooving_similarity" not in compare_sets(short, second)


# As metrics of `evaluate` ---------------------------------------------------------------------------------------------


def test_bits_per_note_as_a_metric(tmp_path):
    metric = BitsPerNote(cache_dir=str(tmp_path))
    metric.add_batch(predictions=[100.0, 50.0], references=[10, 10])
    metric.add_batch(predictions=[60.0], references=[10])
    found = metric.compute()
    assert found["bits_per_note"] == pytest.approx(7.0)
    assert found["standard_error"] == pytest.approx(np.std([10, 5, 6], ddof=1) / 3**0.5)


def test_music_statistics_as_a_metric_of_midi_bytes(tmp_path):
    metric = MusicStatistics(cache_dir=str(tmp_path))
    pieces = [some_notes(seed) for seed in range(4)]
    for notes in pieces:
        midi = pg.notes_to_midi_bytes(notes)
        metric.add(prediction=midi, reference=midi)
    found = metric.compute()
    assert found["polyphony"]["overlap"] == pytest.approx(1)
    assert found["pitch_range"]["mean"] == np.mean([piece_metrics(notes)["pitch_range"] for notes in pieces])
