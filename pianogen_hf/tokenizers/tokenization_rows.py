"""RowTokenizer: notes <-> rows of ids, for models that take one step per event. One scheme is one subclass."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from transformers.tokenization_utils_base import BatchEncoding

from .notes import Notes
from .tokenization_notes import NoteTokenizer


class RowTokenizer(NoteTokenizer):
    """Base of tokenizers whose step is a row of ids, by which an event is told whole.

    Differs from its parent: what is a list of ids there is an array of rows here, shape (num_rows, `ids_per_row`); rows
    that need fewer ids are filled up with `<pad>`, and a piece stands between a row of `<bos>` and one of `<eos>`.
    `tokenizer(x)` gives `input_ids` of shape (batch, num_rows, `ids_per_row`) and an `attention_mask` of shape (batch,
    num_rows). In event text the filling is left out.

    A subclass defines `_event_names`, `_encode`, `_decode_rows`, `_begins_row`, `encode_midi` and `allowed_next`.

    Attributes:
        ids_per_row: how many ids an event takes.
    """

    ids_per_row: ClassVar[int]

    # What a scheme defines -------------------------------------------------------------------------------------------

    def _encode(self, notes: Notes) -> np.ndarray:
        """Rows of the notes, shape (num_rows, ids_per_row)."""
        raise TypeError(f"{type(self).__name__} can't encode")

    def _decode_rows(self, rows: np.ndarray) -> Notes:
        """Notes of rows, shape (num_rows, ids_per_row); rows that are no event are skipped."""
        raise TypeError(f"{type(self).__name__} can't decode")

    def _begins_row(self, ids: np.ndarray) -> np.ndarray:
        """Which ids begin a row, for reading text; bool of the shape of `ids`."""
        raise TypeError(f"{type(self).__name__} does not say where rows begin")

    def encode_midi(self, source: str | os.PathLike | bytes) -> list[list[int]]:
        """Rows of a MIDI file with those of beginning and end, shape (num_rows, `ids_per_row`).

        Args:
            source: a path, or the file's bytes.

        Raises:
            MidiError: if it can't be read.
        """
        raise TypeError(f"{type(self).__name__} can't read files")

    # Notes <-> rows <-> text -----------------------------------------------------------------------------------------

    @property
    def beginning(self) -> np.ndarray:
        """The row of `<bos>`, int64 of shape (1, ids_per_row)."""
        return self._single(self.bos_token_id)

    @property
    def ending(self) -> np.ndarray:
        """The row of `<eos>`, int64 of shape (1, ids_per_row)."""
        return self._single(self.eos_token_id)

    def _single(self, index: int) -> np.ndarray:
        row = np.full((1, self.ids_per_row), self.pad_token_id, dtype=np.int64)
        row[0, 0] = index
        return row

    def encode_notes(self, notes: Notes) -> np.ndarray:  # type: ignore[override]
        """Rows of a piece, without beginning and end, int64 of shape (num_rows, ids_per_row)."""
        return self._encode(notes)

    def encode_prompt(self, notes: Notes) -> np.ndarray:  # type: ignore[override]
        """Rows of music to continue: the beginning and the piece's events."""
        return np.concatenate([self.beginning, self._encode(notes)])

    def encode_piece(self, notes: Notes) -> np.ndarray:  # type: ignore[override]
        """A whole piece as models are trained on it, with beginning and end."""
        return self.piece_ids(notes)

    def piece_ids(self, notes: Notes) -> np.ndarray:
        """As `encode_piece`."""
        return np.concatenate([self.encode_prompt(notes), self.ending])

    def decode_notes(self, ids: Any) -> Notes:
        """Notes of rows (list, array or tensor); rows of special tokens and what is no event are skipped.

        Raises:
            ValueError: if they are not rows of `ids_per_row` ids, or an id is outside the vocabulary.
        """
        return self._decode_rows(self.as_rows(ids))

    def as_rows(self, ids: Any) -> np.ndarray:
        """Rows of ids as an int64 array of shape (num_rows, ids_per_row).

        Raises:
            ValueError: as for `decode_notes`.
        """
        if hasattr(ids, "detach"):
            ids = ids.detach().cpu().numpy()
        rows = np.asarray(ids, dtype=np.int64)
        if rows.size == 0:
            return rows.reshape(0, self.ids_per_row)
        if rows.ndim != 2 or rows.shape[1] != self.ids_per_row:
            raise ValueError(f"rows of {self.ids_per_row} ids are wanted, got an array of shape {rows.shape}")
        if rows.min() < 0 or rows.max() >= len(self):
            raise ValueError(f"ids must lie in 0..{len(self) - 1}, got {rows.min()}..{rows.max()}")
        return rows

    def notes_to_text(self, notes: Notes) -> str:
        """The piece as event text."""
        return self.rows_to_text(self._encode(notes))

    def rows_to_text(self, rows: Any) -> str:
        """Rows as event text, without what fills them up."""
        ids = self.as_rows(rows).ravel()
        return self.convert_tokens_to_string(self.convert_ids_to_tokens(ids[ids != self.pad_token_id].tolist()))

    def text_to_rows(self, text: str) -> np.ndarray:
        """Rows of event text, shape (num_rows, ids_per_row).

        Raises:
            ValueError: for unknown events, and for more of them than a row holds.
        """
        ids = np.array([self._convert_token_to_id(token) for token in text.split()], dtype=np.int64)
        starts = np.flatnonzero(self._begins_row(ids))
        if len(ids) and (not len(starts) or starts[0]):
            raise ValueError(f"{text.split()[0]!r} begins no event")
        rows = np.full((len(starts), self.ids_per_row), self.pad_token_id, dtype=np.int64)
        for row, own in zip(rows, np.split(ids, starts[1:]), strict=False):
            if len(own) > self.ids_per_row:
                raise ValueError(f"an event has {self.ids_per_row} tokens at most, not {len(own)}")
            row[: len(own)] = own
        return rows

    def text_to_notes(self, text: str) -> Notes:
        """Notes of event text."""
        return self.decode_notes(self.text_to_rows(text))

    # A tokenizer and its model ---------------------------------------------------------------------------------------

    def config_settings(self) -> dict[str, Any]:
        """The parent's, and how many ids make a row."""
        return {**super().config_settings(), "ids_per_row": self.ids_per_row}

    # PreTrainedTokenizer ---------------------------------------------------------------------------------------------

    def __call__(  # type: ignore[override]
        self,
        music: Any = None,
        *,
        text: Any = None,
        padding: Any = False,
        truncation: Any = None,
        max_length: int | None = None,
        padding_side: str | None = None,
        return_tensors: Any = None,
        **kwargs: Any,
    ) -> BatchEncoding:
        """Encode music for a model: rows that begin with that of `<bos>` and leave the end open.

        Args:
            music: event text, `pathlib.Path`, MIDI bytes, `Notes`, or a list of these.
            text: another name of `music`.
            padding: True or "longest", "max_length", or False.
            truncation: whether to cut after `max_length` rows.
            max_length: in rows.
            padding_side: "right" or "left", which prompts want; the tokenizer's own by default.
            return_tensors: "pt" or "np".
            **kwargs: other options of tokenizers, which mean nothing here.

        Raises:
            MidiError: if a MIDI file can't be read. ValueError: for text with unknown events, or a path given as text.
        """
        music = text if music is None else music
        is_batch = isinstance(music, (list, tuple))
        pieces = [np.concatenate([self.beginning, self._to_rows(each)]) for each in (music if is_batch else [music])]
        if truncation and max_length is not None:
            pieces = [rows[:max_length] for rows in pieces]
        length = 0
        if padding == "max_length" and max_length is not None:
            length = max_length
        elif padding and padding != "do_not_pad":
            length = max(map(len, pieces))
        side = padding_side or self.padding_side
        batch: dict[str, list[Any]] = {"input_ids": [], "attention_mask": []}
        for rows in pieces:
            missing = max(length - len(rows), 0)
            widths = (missing, 0) if side == "left" else (0, missing)
            padded = np.pad(rows, (widths, (0, 0)), constant_values=self.pad_token_id)
            batch["input_ids"].append(padded.tolist())
            batch["attention_mask"].append(np.pad(np.ones(len(rows), dtype=np.int64), widths).tolist())
        if not is_batch and return_tensors is None:
            return BatchEncoding({name: values[0] for name, values in batch.items()})
        return BatchEncoding(batch, tensor_type=return_tensors)

    def _to_rows(self, music: Any) -> np.ndarray:
        """Rows of one input, without beginning and end."""
        if isinstance(music, Notes):
            return self._encode(music)
        if isinstance(music, (bytes, Path)):
            return np.array(self.encode_midi(music), dtype=np.int64)[1:-1]
        if isinstance(music, str):
            self._refuse_path(music)
            return self.text_to_rows(music)
        return self.as_rows(music)


__all__ = ["RowTokenizer"]
