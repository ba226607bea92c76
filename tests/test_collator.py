import torch
from hypothesis import given
from hypothesis import strategies as st

from pianogen_hf.training.collator import IGNORED, ChunkCollator, RowCollator

PAD = 0


def rows_of(*lengths_and_first_labels):
    return [
        {"input_ids": list(range(1, length + 1)), "first_label": first, "piece_id": "p", "start": 0}
        for length, first in lengths_and_first_labels
    ]


def test_short_rows_are_padded_on_the_right_and_masked():
    batch = ChunkCollator(PAD)(rows_of((4, 1), (2, 1)))
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4], [1, 2, PAD, PAD]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]


def test_labels_are_the_ids_except_padding_and_what_stands_before_the_first_label():
    batch = ChunkCollator(PAD)(rows_of((5, 3), (2, 1)))
    assert batch["labels"].tolist() == [[IGNORED, IGNORED, IGNORED, 4, 5], [IGNORED, 2, IGNORED, IGNORED, IGNORED]]


def test_a_pad_id_inside_a_piece_is_a_label_like_any_other():
    batch = ChunkCollator(pad_token_id=2)(rows_of((3, 1), (4, 1)))
    assert batch["labels"].tolist() == [[IGNORED, 2, 3, IGNORED], [IGNORED, 2, 3, 4]]


def test_the_batch_holds_what_a_causal_model_takes_and_nothing_else():
    batch = ChunkCollator(PAD)(rows_of((3, 1)))
    assert {name: (tuple(value.shape), value.dtype) for name, value in batch.items()} == {
        name: ((1, 3), torch.int64) for name in ("input_ids", "attention_mask", "labels")
    }


chunks = st.lists(
    st.integers(2, 12).flatmap(lambda length: st.tuples(st.just(length), st.integers(1, length - 1))),
    min_size=1,
    max_size=6,
)


@given(chunks)
def test_as_many_labels_count_as_there_are_predictions(lengths_and_first_labels):
    labels = ChunkCollator(PAD)(rows_of(*lengths_and_first_labels))["labels"]
    predictions = sum(length - first for length, first in lengths_and_first_labels)
    assert int((labels != IGNORED).sum()) == predictions
    assert int((labels[:, 1:] != IGNORED).sum()) == predictions  # the shift of a causal loss drops none of them


def test_rows_of_notes_are_padded_and_labelled_by_their_pitch_from_the_first_label_on():
    rows = [
        {"input_values": [[0.0, 128.0, 0, 0], [0.5, 60.0, 64, 0.25], [0, 64.0, 70, 0.5]], "first_label": 2},
        {"input_values": [[0.25, 61.0, 64, 0.25], [0.0, 129.0, 0, 0]], "first_label": 1},
    ]
    batch = RowCollator()(rows)
    assert batch["input_values"].shape == (2, 3, 4) and batch["input_values"].dtype == torch.float32
    assert batch["input_values"][0].tolist() == rows[0]["input_values"]
    assert batch["input_values"][1, 2].tolist() == [0, 0, 0, 0]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [[IGNORED, IGNORED, 64], [IGNORED, 129, IGNORED]]
