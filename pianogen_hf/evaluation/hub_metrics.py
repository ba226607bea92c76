"""The measures as metrics of the library `evaluate`, which need no network.

metric = BitsPerNote()
metric.add_batch(predictions=bits_of_each_piece, references=notes_of_each_piece)
metric.compute()
"""

from __future__ import annotations

from typing import Any

import datasets
import evaluate
import numpy as np

from pianogen_hf.evaluation.distributions import compare_sets
from pianogen_hf.evaluation.likelihood import standard_error
from pianogen_hf.evaluation.music_metrics import METRICS, piece_metrics
from pianogen_hf.tokenizers.midi import read_midi

_CITATION = """@software{pianogen_hf,
  title = {pianogen_hf: Hugging Face-native models for symbolic piano music}
}"""


class BitsPerNote(evaluate.Metric):
    """What held-out pieces cost, in bits per note of the pieces, with the standard error over pieces.

    `predictions` are bits, one number for each piece (all its tokens, the end included: `piece_likelihood(...).bits`);
    `references` are the notes of each piece.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=str(BitsPerNote.__doc__),
            citation=_CITATION,
            inputs_description="predictions: bits of each piece; references: notes of each piece",
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, *, predictions: list[float], references: list[int], **kwargs: Any) -> dict[str, float | None]:
        """`bits_per_note` and its `standard_error`, None for a single piece."""
        bits, notes = np.asarray(predictions), np.asarray(references)
        if not notes.sum():
            raise ValueError("the references have no notes")
        return {"bits_per_note": float(bits.sum() / notes.sum()), "standard_error": standard_error(bits, notes)}


class MusicStatistics(evaluate.Metric):
    """How alike generated and real music are in the features of `music_metrics.py`.

    `predictions` are generated pieces and `references` real ones, both as the bytes of MIDI files, equally many. A
    feature has the mean and deviation of both sets, `overlap` and `kl` (see `distributions.py`). All pieces should be
    of about equal length, and the same figures between two sets of real pieces say how good they can be.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=str(MusicStatistics.__doc__),
            citation=_CITATION,
            inputs_description="predictions, references: bytes of MIDI files",
            features=datasets.Features(
                {"predictions": datasets.Value("binary"), "references": datasets.Value("binary")}
            ),
        )

    def _compute(self, *, predictions: list[bytes], references: list[bytes], **kwargs: Any) -> dict[str, Any]:
        """By feature (a key of `METRICS`), what `compare_sets` gives."""
        generated, real = ([piece_metrics(read_midi(each)) for each in side] for side in (predictions, references))
        rows = compare_sets(generated, real)
        return {name: rows[name] for name in METRICS if name in rows}
