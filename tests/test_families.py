"""Families: what is the same music whatever was done to it, and what is not."""

from dataclasses import replace

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pianogen_hf.data.families import (
    _LINE_PLACE,
    MIN_SHARE,
    WINDOW,
    _sorted_columns,
    families,
    fingerprint,
    join_families,
    related,
    related_pairs,
)
from pianogen_hf.tokenizers.notes import Notes

seeds = st.integers(0, 2**32 - 1)


def music(seed, num_chords=300, tracks=1):
    """A melody that wanders over a diatonic scale, with broken or struck chords below it."""
    rng = np.random.default_rng(seed)
    scale = np.array([0, 2, 4, 5, 7, 9, 11])
    rows, tick = [], 0
    degree = 35
    for _ in range(num_chords):
        degree = int(np.clip(degree + rng.choice([-4, -2, -1, -1, 0, 1, 1, 2, 5]), 28, 48))
        root = int(rng.integers(14, 24))
        chord = [root + step for step in ([0, 2, 4] if rng.random() < 0.7 else [0, 3, 5])]
        length = int(rng.choice([120, 240, 240, 480]))
        rows.append((tick, length, degree, 0))
        broken = rng.random() < 0.4
        for number, each in enumerate(chord[: rng.integers(1, 4)]):
            rows.append((tick + 60 * number * broken, length, each, tracks - 1))
        tick += length
    onset, duration, degrees, track = np.array(rows).T
    pitch = 12 * (degrees // 7) + scale[degrees % 7]
    velocity = rng.integers(30, 100, len(rows))
    columns = {"onset_tick": onset, "duration_tick": duration, "pitch": pitch, "velocity": velocity, "track": track}
    return Notes.from_columns(480, **columns)


def same_family(*pieces, known=None):
    return len(set(families([fingerprint(each) for each in pieces], known or [""] * len(pieces)))) == 1


def at_tempo(notes, factor):
    tempos = notes.tempos.copy()
    tempos["us_per_quarter"] = np.rint(tempos["us_per_quarter"] / factor)
    return replace(notes, tempos=tempos)


def resampled(notes, ticks_per_quarter):
    table = notes.table.copy()
    for name in ("onset_tick", "duration_tick"):
        table[name] = np.rint(table[name] * ticks_per_quarter / notes.ticks_per_quarter)
    return replace(notes, table=table, ticks_per_quarter=ticks_per_quarter)


def with_column(notes, name, values):
    table = notes.table.copy()
    table[name] = values
    return replace(notes, table=table)


def performed(notes, seed, spread_ms=35, wrong=0.02):
    """Uneven onsets, rolled chords, rubato, some notes wrong and some left out."""
    rng = np.random.default_rng(seed)
    rubato = 0.5 * np.sin(notes.onset_sec / 4)
    onset = notes.onset_sec * 1.1 + rubato + rng.normal(0, spread_ms / 1000, len(notes))
    pitch = notes["pitch"] + (rng.random(len(notes)) < wrong) * rng.integers(-2, 3, len(notes))
    keep = rng.random(len(notes)) >= wrong
    return Notes.from_seconds((onset - onset.min())[keep], notes.duration_sec[keep], pitch[keep])


@settings(max_examples=8, deadline=None)
@given(seeds, st.integers(-12, 12), st.floats(0.3, 3))
def test_key_tempo_velocity_and_tracks_change_nothing(seed, semitones, factor):
    notes = music(seed, 150, tracks=2)
    changed = at_tempo(notes.transposed(semitones), factor)
    changed = with_column(with_column(changed, "velocity", 64), "track", 0)
    assert related(fingerprint(notes), fingerprint(changed)) == 1.0
    assert same_family(notes, changed)


@settings(max_examples=6, deadline=None)
@given(seeds, st.sampled_from([48, 96, 120, 384, 960]))
def test_resolution_changes_nothing(seed, ticks_per_quarter):
    notes = music(seed, 150)
    assert related(fingerprint(notes), fingerprint(resampled(notes, ticks_per_quarter))) == 1.0


def test_drums_and_doubled_notes_do_not_count():
    notes = music(1)
    doubled = replace(notes, table=np.concatenate([notes.table, notes.table]))
    drums = with_column(notes, "is_drum", True).transposed(-3)
    with_drums = replace(notes, table=np.concatenate([notes.table, drums.table]))
    for each in (doubled, with_drums):
        np.testing.assert_array_equal(fingerprint(each), fingerprint(notes))


@settings(max_examples=8, deadline=None)
@given(seeds, st.integers(0, 500), st.integers(120, 400), st.integers(-6, 6))
def test_parts_of_a_long_piece_are_found(seed, start, length, semitones):
    notes = music(seed, 600)
    part = notes.where(np.arange(len(notes))[start : start + length]).transposed(semitones)
    assert len(notes) > 1000 > len(part)
    assert related(fingerprint(notes), fingerprint(part)) > 0.8


@settings(max_examples=6, deadline=None)
@given(seeds, seeds)
def test_performances_are_found_from_their_score_and_from_one_another(seed, other):
    notes = music(seed, 400)
    first, second = fingerprint(performed(notes, other)), fingerprint(performed(notes, other + 1))
    assert related(first, fingerprint(notes)) >= MIN_SHARE
    assert related(first, second) >= MIN_SHARE


def two_hands(seed, num_bars=60):
    """Chords of four in the left hand (track 1), a wandering melody with thirds in the right (track 0)."""
    rng = np.random.default_rng(seed)
    scale, degree, rows = np.array([0, 2, 4, 5, 7, 9, 11]), 37, []
    for bar in range(num_bars):
        root = int(rng.integers(14, 25))
        for step in range(8):
            left = root + int(rng.choice([0, 2, 4, 7]))
            rows.append((bar * 1920 + step * 240, 230, left, 1))
            if rng.random() < 0.7:
                degree = int(np.clip(degree + rng.choice([-3, -2, -1, 1, 2, 4]), 30, 47))
                rows.append((bar * 1920 + step * 240, 230, degree, 0))
                if rng.random() < 0.4:
                    rows.append((bar * 1920 + step * 240, 230, degree - 2, 0))
    onset, duration, degrees, track = np.array(rows).T
    pitch = 12 * (degrees // 7) + scale[degrees % 7]
    return Notes.from_columns(480, onset_tick=onset, duration_tick=duration, pitch=pitch, track=track)


HANDS = {
    "right": lambda notes: notes.where(notes["track"] == 0),
    "left": lambda notes: notes.where(notes["track"] == 1),
    "above middle C": lambda notes: notes.where(notes["pitch"] >= 60),
    "below middle C": lambda notes: notes.where(notes["pitch"] < 60),
    "melody": lambda notes: notes.where(np.append(notes["onset_tick"][1:] != notes["onset_tick"][:-1], True)),
}


@settings(max_examples=10)
@given(st.integers(0, 40))
def test_one_hand_and_the_melody_are_found_in_the_whole_and_in_no_other_piece(seed):
    whole, other = fingerprint(two_hands(seed)), fingerprint(two_hands(seed + 1))
    for name, part in HANDS.items():
        alone = fingerprint(part(two_hands(seed)))
        assert related(alone, whole) >= MIN_SHARE, name
        assert related(alone, other) < MIN_SHARE, name


def test_a_retrograde_is_no_relative():
    """Its windows hold the same notes; but they come in the other order."""
    notes = music(3, 400)
    table = notes.table.copy()
    table["onset_tick"] = notes.end_tick - notes.offset_tick
    first, last = fingerprint(notes), fingerprint(Notes(table))
    shared = np.intersect1d(first[1:] >> np.uint64(28), last[1:] >> np.uint64(28))
    assert len(shared) > 0.2 * len(first) and related(first, last) == 0.0


def test_fingerprints_of_earlier_versions_which_have_no_lines_are_compared_by_their_notes():
    whole, part = fingerprint(music(1)), fingerprint(music(1).transposed(2).where(np.arange(150)))
    is_note = (whole[1:] >> np.uint64(7) & np.uint64(2**21 - 1)) < 2**20
    earlier = np.append(whole[:1], whole[1:][is_note])
    assert len(earlier) < len(whole)
    assert related(earlier, part) == related(part, earlier) >= MIN_SHARE
    assert [pair[:2] for pair in related_pairs([earlier, part])] == [(0, 1)]


def test_order_within_a_rolled_chord_does_not_matter():
    onset = np.repeat(np.arange(200) * 480, 3)
    pitch = np.random.default_rng(0).integers(40, 90, 600)
    upward = Notes.from_columns(onset_tick=onset + np.tile([0, 20, 40], 200), duration_tick=100, pitch=pitch)
    downward = Notes.from_columns(onset_tick=onset + np.tile([40, 20, 0], 200), duration_tick=100, pitch=pitch)
    assert related(fingerprint(upward), fingerprint(downward)) > 0.2


@settings(max_examples=8, deadline=None)
@given(seeds, seeds.filter(bool))
def test_pieces_of_one_style_are_not_joined(seed, distance):
    assert related(fingerprint(music(seed)), fingerprint(music(seed + distance))) < MIN_SHARE


def pattern_then(pattern, times, seed):
    """A pattern that any piece may use, followed by music of its own."""
    notes = music(seed)
    pitch = np.concatenate([np.tile(pattern, times), notes["pitch"]])
    onset = np.concatenate([np.arange(len(pattern) * times) * 120, len(pattern) * times * 120 + notes["onset_tick"]])
    return Notes.from_columns(onset_tick=onset, duration_tick=100, pitch=pitch)


@pytest.mark.parametrize(
    "pattern",
    [
        [60, 67, 64, 67] * 4 + [60, 69, 65, 69] * 2 + [59, 67, 65, 67] * 2,  # Alberti bass on I, IV and V
        [*range(48, 84), *range(84, 48, -1)],  # a chromatic scale, up and down
        [12 * octave + step for octave in (4, 5, 6) for step in (0, 2, 4, 5, 7, 9, 11)],  # C major over three octaves
        [60, 62] * 30,  # a trill
    ],
    ids=["alberti", "chromatic", "major scale", "trill"],
)
def test_common_patterns_do_not_join(pattern):
    assert related(fingerprint(pattern_then(pattern, 3, 1)), fingerprint(pattern_then(pattern, 3, 2))) < MIN_SHARE


def test_pieces_that_overlap_in_part_are_one_family():
    a, b, shared = music(1), music(2), music(3)
    end = a.end_tick
    medley = [
        replace(
            a, table=np.concatenate([a.table, with_column(shared, "onset_tick", shared["onset_tick"] + end).table])
        ),
        replace(b, table=np.concatenate([shared.table, with_column(b, "onset_tick", b["onset_tick"] + 10**6).table])),
    ]
    assert same_family(*medley)
    assert not same_family(medley[0], b)


@settings(max_examples=6, deadline=None)
@given(st.permutations(range(9)))
def test_order_of_pieces_does_not_matter(order):
    base = [music(seed, 120) for seed in range(4)]
    pieces = [
        *base,
        base[0].transposed(2),
        performed(base[1], 1),
        base[2].where(slice(50, 250)),
        Notes(base[0].table[:0]),
    ]
    pieces.append(base[0].where(slice(0, 1)))
    prints, known = [fingerprint(each) for each in pieces], ["", "", "", "x", "", "x", "", "", ""]
    expected = families(prints, known)
    assert len(set(expected)) == 5  # 0 with 4, 1 with 3 and 5, 2 with 6, and the two tiny ones
    shuffled = families([prints[index] for index in order], [known[index] for index in order])
    assert shuffled == [expected[index] for index in order]


@settings(max_examples=40, deadline=None)
@given(st.permutations(range(40)))
def test_related_is_symmetric(places):
    """Even where several chains are equally long, of which only some have places enough."""
    hashes = np.arange(40, dtype=np.uint64) << np.uint64(30)
    a = np.append(np.uint64(1), hashes | np.arange(40, dtype=np.uint64) * np.uint64(4 << 7))
    b = np.append(np.uint64(2), hashes | np.array(places, dtype=np.uint64) * np.uint64(4 << 7))
    assert related(a, b) == related(b, a)


@pytest.mark.parametrize(
    ("shared", "total", "is_found"), [(4, 60, True), (4, 64, False), (3, 40, False), (5, 100, True), (5, 110, False)]
)
def test_fewer_places_of_lines_are_enough_where_they_are_a_larger_share(shared, total, is_found):
    """Beside notes of which nothing is alike, as of a piece that another one sounds with."""
    places = np.uint64(_LINE_PLACE) + np.arange(total, dtype=np.uint64) * np.uint64(WINDOW)
    own = np.arange(total, dtype=np.uint64) * np.uint64(4)  # hashes that long pieces keep, too
    other = np.where(np.arange(total) < shared, own, own + np.uint64(4 * total))
    one, two = (hashes << np.uint64(28) | places << np.uint64(7) for hashes in (own, other))
    a, b = np.append(np.uint64(1), one), np.append(np.uint64(2), two)
    assert (related(a, b) >= MIN_SHARE) is is_found and related(a, b) == related(b, a)
    assert [pair[:2] for pair in related_pairs([a, b])] == ([(0, 1)] if is_found else [])


PHRASES = np.random.default_rng(5).integers(50, 75, (10, 25))


def of_phrases(phrases):
    return fingerprint(Notes.from_columns(onset_tick=np.arange(250) * 100, duration_tick=90, pitch=phrases.ravel()))


@pytest.mark.parametrize(
    "other",
    [PHRASES + np.arange(10)[:, None], PHRASES[::-1], np.concatenate([PHRASES[:1], PHRASES[1:] ** 2 % 29 + 50])],
    ids=["each in another key", "in another order", "one phrase"],
)
def test_shared_grams_count_only_in_order_in_one_key_and_at_several_places(other):
    assert related(of_phrases(PHRASES), of_phrases(other)) == 0.0
    assert related(of_phrases(PHRASES), of_phrases(PHRASES + 1)) == 1.0


def test_known_families_are_joined_with_content():
    a, b, c = music(1), music(2), music(3)
    prints = [fingerprint(each) for each in (a, b, b.transposed(1), c, music(4))]
    assert families(prints, ["work/1", "work/1", "", "", ""])[:3] == ["work/1"] * 3
    assert families(prints, ["", "work/2", "work/1", "", "work/1"]) == [
        families(prints, [""] * 5)[0],
        "work/1",
        "work/1",
        families(prints, [""] * 5)[3],
        "work/1",
    ]


def test_new_pieces_change_no_family_they_do_not_join():
    prints = [fingerprint(music(seed, 150)) for seed in range(6)]
    before = families(prints, [""] * 6)
    assert len(set(before)) == 6
    joined = fingerprint(performed(music(5, 150), 0))
    after = families([*prints, fingerprint(music(99)), joined], [""] * 8)
    assert after[:5] == before[:5]
    assert after[5] == after[7]
    assert after[5] in (before[5], families([joined], [""])[0])


def test_tiny_pieces_stand_alone_unless_they_are_copies():
    empty, low, high = Notes(music(1).table[:0]), music(1).where(slice(0, 1)), music(1).where(slice(0, 1)).transposed(5)
    short, other = music(1).where(slice(0, WINDOW - 1)), music(2).where(slice(0, WINDOW - 1))
    names = families([fingerprint(each) for each in (empty, low, high, short, other, low, short)], [""] * 7)
    assert len(set(names)) == 5
    assert names[1] == names[5] and names[3] == names[6]
    assert families([], []) == []


def test_pieces_without_any_unusual_gram_are_found_as_copies():
    trill = Notes.from_columns(onset_tick=np.arange(60) * 60, duration_tick=50, pitch=np.tile([60, 62], 30))
    assert len(fingerprint(trill)) == 1
    assert same_family(trill, trill.transposed(3))


def test_pairs_are_the_same_as_from_comparing_all():
    base = [music(seed, 350) for seed in range(5)]
    pieces = [*base, *(performed(each, 1) for each in base), *(each.where(slice(100, 300)) for each in base)]
    prints = [fingerprint(each) for each in pieces]
    everything = {(a, b): related(prints[a], prints[b]) for a in range(15) for b in range(a + 1, 15)}
    found = {(a, b): share for a, b, share in related_pairs(prints)}
    assert found == {pair: share for pair, share in everything.items() if share >= MIN_SHARE}
    assert len(found) >= 15


def test_blocks_change_nothing(monkeypatch):
    prints = [fingerprint(performed(music(seed % 3), seed)) for seed in range(12)]
    expected = sorted(related_pairs(prints))
    monkeypatch.setattr("pianogen_hf.data.families._BLOCK", 10)
    assert sorted(related_pairs(prints)) == expected


def test_fingerprints_are_small_and_the_same_in_every_run():
    notes = music(7, 1000)
    assert fingerprint(notes).nbytes < 8 * len(notes)
    fixed = Notes.from_columns(onset_tick=np.arange(14), duration_tick=1, pitch=np.arange(14) ** 2 % 29 + 50)
    # Checkpoints keep the fingerprints of what they were trained on.
    expected = {0x2D7BCA5D04240DD2, 0x0E3F2AC550000136, 0x3570C763B0000032, 0x0971DD3F48000136}
    assert expected <= set(fingerprint(fixed).tolist())


def test_lists_of_different_length_are_refused():
    with pytest.raises(ValueError, match="1 fingerprints"):
        families([fingerprint(music(1, 5))], [])


def dataset(played, known, official=None):
    return Dataset.from_dict(
        {
            "fingerprint": [fingerprint(notes) for notes in played],
            "family_id": known,
            "official_split": official or [""] * len(played),
        }
    )


def test_pieces_of_a_data_set_join_by_work_and_by_content_with_and_without_official_sides(tmp_path):
    played = [music(seed, 150) for seed in range(5)]
    played += [played[1].transposed(3), played[3].where(slice(50, 250)), played[4].where(slice(0, 3))]
    official = ["", "", "train", "test", "", "train", "", ""]
    pieces = dataset(played, ["work", "", "work", "", "", "", "", ""], official)
    names = join_families(pieces, tmp_path)["family_id"][:]
    assert names[0] == names[2] == "work" and names[1] == names[5] and names[3] == names[6]
    assert len(set(names)) == 5
    assert join_families(pieces, tmp_path)["official_split"][:] == official
    rows = [7, 5, 1, 6]
    assert join_families(pieces.select(rows), tmp_path)["family_id"][1] == names[5]


def test_joining_again_only_reads_the_answer_and_other_pieces_get_their_own(tmp_path, monkeypatch):
    pieces = dataset([music(1, 150), music(1, 150).transposed(1), music(2, 150)], ["", "", ""])
    joined = join_families(pieces, tmp_path)
    assert join_families(dataset([music(1, 150), music(2, 150)], ["", "x"]), tmp_path)["family_id"][1] == "x"
    monkeypatch.setattr("pianogen_hf.data.families.related_pairs", None)
    again = join_families(pieces, tmp_path)
    assert again["family_id"][:] == joined["family_id"][:]
    assert again._fingerprint == joined._fingerprint  # or no cache would be found again
    for other in (pieces.select([1, 0, 2]), dataset([music(1, 150)] * 2 + [music(2, 150)], ["", "", "y"])):
        with pytest.raises(TypeError):  # it would have to be found anew
            join_families(other, tmp_path)


@given(arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(0, 5))))
def test_exchanging_whole_rows_sorts_every_column(numbers):
    assert np.array_equal(_sorted_columns(numbers), np.sort(numbers, axis=0))


def test_pairs_that_are_settled_are_not_compared(monkeypatch):
    piece = np.random.default_rng(0).integers(40, 80, 300)
    prints = [fingerprint(Notes.from_seconds(np.arange(300 - cut) / 4, 0.2, piece[cut:])) for cut in (0, 40, 80)]
    compared = []
    monkeypatch.setattr("pianogen_hf.data.families.related", lambda a, b: compared.append((a, b)) or 1.0)
    assert len(set(families(prints, ["one", "one", "one"]))) == 1 and not compared
    assert len(set(families(prints, ["", "", ""]))) == 1 and len(compared) == 2
