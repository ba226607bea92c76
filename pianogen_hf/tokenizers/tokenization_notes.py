"""NoteTokenizer: notes <-> event ids <-> text, as a `PreTrainedTokenizer`. One scheme is one subclass in one file."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from transformers import PreTrainedTokenizer
from transformers.tokenization_utils_base import BatchEncoding

from .midi import MIDI_SUFFIXES, notes_to_midi_bytes, read_midi
from .notes import Notes
from .notes_encoder import NotesEncoder

# `generate(stop_strings=...)` puts this word before every token, to see how a tokenizer writes it; it is no event.
STOP_PREFIX, STOP_PREFIX_ID = "abcdef", -1
SPECIAL_TOKENS = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}


class NoteTokenizer(NotesEncoder, PreTrainedTokenizer):
    """Base of all tokenizers of this package.

    A subclass sets its hyper-parameters as attributes, hands them to `super().__init__` (only what arrives there is
    saved) and defines `_event_names`, `_encode`, `_decode_events` and `_allowed_events`. Ids 0, 1 and 2 are `<pad>`,
    `<bos>` and `<eos>`, in another order in vocabularies made elsewhere; events follow. There is no `<unk>`: what is
    not in the vocabulary is an error, never a token.

    `tokenizer(x)` takes event text, a `pathlib.Path`, bytes of a MIDI file, `Notes`, or a list of these, and puts
    `<bos>` in front (a prompt wants no `<eos>`; training pieces get one through `encode_piece`).

    Attributes:
        time_unit: "second" where the scheme counts real time, "beat" where it counts score time and the tempo is lost.
        lost_fields: what the scheme throws away by design, for reports.
        tokens_per_step: ids that make one inseparable row; chunks and windows are cut at its multiples.
        tokens_per_bar: ids of a bar, where ids count time; see `NotesEncoder`.
        rest_prefixes: beginnings of the names of events that only let time pass; generation that must not stay silent
            forbids them for a while.
        pitch_range: lowest and highest pitch the scheme can write.
    """

    model_input_names = ["input_ids", "attention_mask"]
    _auto_class = "AutoTokenizer"  # so `save_pretrained` writes code files, too, for who has not this package
    time_unit: ClassVar[str] = "second"
    lost_fields: ClassVar[tuple[str, ...]] = ()
    tokens_per_step: ClassVar[int] = 1
    rest_prefixes: ClassVar[tuple[str, ...]] = ()
    pitch_range: tuple[int, int] = (0, 127)

    def __init__(self, **kwargs: Any) -> None:
        # How it was loaded, which transformers would save and take for settings of the tokenizer.
        for name in ("auto_map", "is_local", "local_files_only"):
            kwargs.pop(name, None)
        self._names = [*self._special_names(), *self._event_names()]
        self._ids = {name: index for index, name in enumerate(self._names)}
        super().__init__(**{**SPECIAL_TOKENS, "special_tokens_pattern": "bos", **kwargs})

    # What a scheme defines -------------------------------------------------------------------------------------------

    def _special_names(self) -> list[str]:
        """Names of the special tokens in the order of their ids, which begin at 0; others may join the three."""
        return list(SPECIAL_TOKENS.values())

    def _event_names(self) -> list[str]:
        """Names of all events in the order of their ids, which begin at `num_special`."""
        raise TypeError(f"{type(self).__name__} defines no events")

    def _encode(self, notes: Notes) -> np.ndarray:
        """Event ids of the notes, shape (num_events,)."""
        raise TypeError(f"{type(self).__name__} can't encode")

    def _decode_events(self, ids: np.ndarray) -> Notes:
        """Notes of event ids, shape (num_events,), which may be cut anywhere or be no well-formed piece."""
        raise TypeError(f"{type(self).__name__} can't decode")

    def _allowed_events(self, ids: np.ndarray) -> np.ndarray:
        """The grammar: bool (vocab_size,), which ids (events or `<eos>`) may follow these events."""
        raise TypeError(f"{type(self).__name__} has no grammar")

    # Notes <-> ids <-> text ------------------------------------------------------------------------------------------

    @property
    def num_special(self) -> int:
        """How many ids stand before the first event."""
        return len(self._special_names())

    @property
    def beginning(self) -> np.ndarray:
        """`<bos>`, int64 of shape (1,)."""
        return np.array([self.bos_token_id], dtype=np.int64)

    @property
    def writes_durations(self) -> bool:
        """Whether there are events that tell a note's length."""
        return any("Duration_" in name or "Pattern_" in name for name in self.get_vocab())

    def encode_notes(self, notes: Notes) -> list[int]:
        """Event ids of a piece, without `<bos>` and `<eos>`."""
        return self._encode(notes).tolist()

    def encode_prompt(self, notes: Notes) -> list[int]:
        """Token ids of music to continue: `<bos>` and the piece's events, without what only marks an end."""
        return [self.bos_token_id, *self.encode_notes(notes)]

    def encode_piece(self, notes: Notes) -> list[int]:
        """A whole piece as models are trained on it: `<bos>`, its events, `<eos>`."""
        return self.piece_ids(notes).tolist()

    def piece_ids(self, notes: Notes) -> np.ndarray:
        """What `encode_piece` gives, as an int64 array: no list of ten thousand numbers is made of it on the way."""
        return np.concatenate([[self.bos_token_id], self._encode(notes), [self.eos_token_id]], dtype=np.int64)

    def piece_steps(self, notes: Notes) -> np.ndarray:
        """What chunks are cut from: `piece_ids` as int32."""
        return self.piece_ids(notes).astype(np.int32)

    def decode_notes(self, ids: Sequence[int] | np.ndarray) -> Notes:
        """Notes of ids (list, array or 1-D tensor); special and added tokens are skipped, anything decodes.

        Raises:
            ValueError: if an id is outside the vocabulary.
        """
        ids = _as_array(ids)
        if len(ids) and not (ids.min() >= 0 and ids.max() < len(self)):
            raise ValueError(f"ids must lie in 0..{len(self) - 1}, got {ids.min()}..{ids.max()}")
        return self._decode_events(self._events_among(ids))

    def allowed_next(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Which ids may come next, so that what is generated always decodes.

        Args:
            ids: what was written so far (list, array or 1-D tensor), padding and `<bos>` included or not.

        Returns:
            bool array of shape (len(tokenizer),); at least one entry is True. After `<eos>` only `<pad>` may follow.
            Added tokens are for prompts: the grammar passes over them, and never allows them.
        """
        ids = _as_array(ids)
        allowed = np.zeros(len(self), dtype=bool)
        if len(ids) and ids[-1] == self.eos_token_id:
            allowed[self.pad_token_id] = True
            return allowed
        starts = np.flatnonzero((ids == self.bos_token_id) | (ids == self.eos_token_id))
        ids = ids[starts[-1] + 1 :] if len(starts) else ids
        allowed[: self.vocab_size] = self._allowed_events(self._events_among(ids))
        return allowed

    def _events_among(self, ids: np.ndarray) -> np.ndarray:
        """The ids of events; special tokens stand before them, and tokens that were added stand after them."""
        return ids[(ids >= self.num_special) & (ids < self.vocab_size)]

    def notes_to_text(self, notes: Notes) -> str:
        """The piece as event text."""
        return self.convert_tokens_to_string(self.convert_ids_to_tokens(self.encode_notes(notes)))

    def text_to_notes(self, text: str) -> Notes:
        """Notes of event text."""
        return self.decode_notes([self._convert_token_to_id_with_added_voc(token) for token in self.tokenize(text)])

    def to_midi(self, music: Any) -> bytes:
        """A MIDI file, as `pathlib.Path("out.mid").write_bytes` wants it.

        Args:
            music: ids (list, array or 1-D tensor), event text or `Notes`.

        Raises:
            ValueError: for ids outside the vocabulary, or text with unknown events.
        """
        if isinstance(music, str):
            music = self.text_to_notes(music)
        return notes_to_midi_bytes(music if isinstance(music, Notes) else self.decode_notes(music))

    # A tokenizer and its model ---------------------------------------------------------------------------------------

    def identity(self) -> tuple[str, dict[str, Any], list[Any]]:
        """Class, settings, and the vocabulary, which byte pair encoding learns."""
        settings = {name: value for name, value in self.init_kwargs.items() if not name.startswith("added_tokens")}
        return type(self).__name__, settings, sorted(self.get_vocab().items())

    def config_settings(self) -> dict[str, Any]:
        """The size of the vocabulary and the special ids."""
        specials = {name: getattr(self, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
        return {"vocab_size": len(self), **specials}

    def model_fault(self, model: Any) -> str | None:
        """What of a model does not fit: it may have more outputs than there are ids, but not fewer."""
        fault = super().model_fault(model)
        if fault is None and model.config.vocab_size < len(self):
            return f"{model.config.vocab_size} outputs for {len(self)} ids of its tokenizer"
        return fault

    # PreTrainedTokenizer ---------------------------------------------------------------------------------------------

    def __call__(self, music: Any = None, *args: Any, text: Any = None, **kwargs: Any) -> BatchEncoding:
        """Encode music for a model, with the usual `padding`, `truncation`, `max_length` and `return_tensors`.

        Args:
            music: event text, `pathlib.Path`, MIDI bytes, `Notes`, or a list of these.
            *args: as for every tokenizer.
            text: another name of `music`, by which other programs call tokenizers.
            **kwargs: as for every tokenizer; with `is_split_into_words`, a list of texts is one piece.

        Raises:
            MidiError: if a MIDI file can't be read. ValueError: for text with unknown events, or a path given as text.
        """
        music = text if music is None else music
        if kwargs.pop("is_split_into_words", False) and isinstance(music, (list, tuple)):
            is_one = all(isinstance(word, str) for word in music)
            pieces = [
                [each for word in words for each in self._to_ids(word)] or ""
                for words in ([music] if is_one else music)
            ]
            music = pieces[0] if is_one else pieces
        elif isinstance(music, (list, tuple)) and any(not isinstance(item, int) for item in music):
            music = [self._to_ids(item) for item in music]
        elif music is not None:
            music = self._to_ids(music)
        return super().__call__(music, *args, **kwargs)

    def _to_ids(self, music: Any) -> Any:
        """Ids of one input, in a form that `PreTrainedTokenizer` takes (which wants empty music as empty text)."""
        if isinstance(music, str):
            if music == STOP_PREFIX and music not in self._ids:
                return [STOP_PREFIX_ID]
            self._refuse_path(music)
            return music and self.convert_tokens_to_ids(self.tokenize(music))
        if isinstance(music, (bytes, Path)):
            music = read_midi(music)
        if isinstance(music, Notes):
            return self.encode_notes(music) or ""
        return music

    def _refuse_path(self, text: str) -> None:
        """Text that looks like the name of a MIDI file was meant as one."""
        if text.lower().endswith(MIDI_SUFFIXES) and "\n" not in text:
            raise ValueError(f"{text!r} is text: to read a MIDI file pass pathlib.Path({text!r})")

    @property
    def vocab_size(self) -> int:
        """Special tokens and events together."""
        return len(self._names)

    def get_vocab(self) -> dict[str, int]:
        """Every token's id."""
        return {**self._ids, **self._added_tokens_encoder}

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return [event for word in text.split() for event in self._events_of(word)]

    def _events_of(self, word: str) -> list[str]:
        """The event, or several without a space between, as a "text-generation" pipeline joins prompt and answer."""
        if word in self._ids:
            return [word]
        longest_first = sorted(self._names, key=len, reverse=True)
        events = re.findall("|".join(map(re.escape, longest_first)), word)
        return events if "".join(events) == word else [word]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Event text of tokens."""
        return " ".join(tokens)

    def _convert_token_to_id(self, token: str) -> int:
        try:
            return self._ids[token]
        except KeyError:
            raise ValueError(f"{token!r} is no event of {type(self).__name__}") from None

    def _convert_id_to_token(self, index: int) -> str:
        return STOP_PREFIX if index == STOP_PREFIX_ID else self._names[index]

    def save_vocabulary(self, save_directory: str | os.PathLike, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Nothing to save: the vocabulary follows from the hyper-parameters in `tokenizer_config.json`."""
        return ()


def _as_array(ids: Any) -> np.ndarray:
    """1-D int64 array of a list, an array or a tensor on any device."""
    if hasattr(ids, "detach"):
        ids = ids.detach().cpu().numpy()
    ids = np.asarray(ids, dtype=np.int64)
    if ids.ndim != 1:
        raise ValueError(f"one sequence of ids is wanted, got an array of shape {ids.shape}")
    return ids
