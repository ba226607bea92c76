"""The benchmark's own file of chorales, Jsb16thSeparated.json: the pieces that published figures are of.

Boulanger-Lewandowski et al. 2012 (arXiv 1206.6392) made the split; the file with separate voices on sixteenths is that
of Huang et al. 2017, "Counterpoint by Convolution" (https://github.com/czhuang/JSB-Chorales-dataset).
"""

from __future__ import annotations

import json
import os

from pianogen_hf.errors import DataError
from pianogen_hf.tokenizers.notes import Notes
from pianogen_hf.tokenizers.tokenization_jsb import JSBTokenizer

_KEYS = {"train": "train", "validation": "valid", "test": "test"}
# Pieces that the canonical split itself shares with train: validation 74 is train 224 two semitones higher, validation
# 58 has 65 of its 229 windows in train 142, test 69 has one in train 124.
LEAKS = {"validation": (58, 74), "test": (69,)}


def read_jsb_file(path: str | os.PathLike, split_name: str) -> dict[str, Notes]:
    """Pieces of one split by name, "jsb/validation-058".

    A run of one pitch in a voice is one note, as the grid cannot tell a repeat from a hold.

    Raises:
        DataError: if the file can't be read or holds something else.
    """
    try:
        with open(path, encoding="utf-8") as file:
            grids = json.load(file)[_KEYS[split_name]]
        tokenizer = JSBTokenizer()
        ids = [tokenizer.grid_to_ids(grid) for grid in grids]
        pieces = {f"jsb/{split_name}-{index:03d}": tokenizer.decode_notes(each) for index, each in enumerate(ids)}
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}") from error
    except (ValueError, TypeError, LookupError, OverflowError) as error:
        raise DataError(f"{path} is no JSB file: it must map train, valid and test to grids of four voices") from error
    if not pieces or not all(len(notes) for notes in pieces.values()):
        raise DataError(f"{path} has an empty {split_name} split, or an empty piece in it")
    return pieces
