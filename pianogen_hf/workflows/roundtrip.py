"""Round trips of a folder's files through every encoding."""

from __future__ import annotations

from tqdm import tqdm

import pianogen_hf
from pianogen_hf.data.sources.listing import list_pieces
from pianogen_hf.errors import DataError
from pianogen_hf.evaluation.round_trip import RoundTrip, round_trip
from pianogen_hf.evaluation.tables import table_lines
from pianogen_hf.registration import exported


def print_round_trips(folder: str, max_files: int) -> None:
    """Encode and decode every file with every tokenizer, and print what was lost.

    Args:
        folder: of MIDI files.
        max_files: look at so many at most.

    Raises:
        DataError: if no file can be used.
    """
    tokenizers = {each.__name__: each() for each in exported(pianogen_hf.NoteTokenizer)}
    totals = {name: RoundTrip() for name in tokenizers}
    left_out: list[str] = []
    files = list_pieces("folder", folder)[:max_files]
    for file in tqdm(files, desc="Round trips", unit="file"):
        try:
            notes = pianogen_hf.read_midi(file.path)
            if len(notes) == 0:
                raise DataError(f"{file.path}: no piano notes")
            results = {name: round_trip(tokenizer, notes) for name, tokenizer in tokenizers.items()}
        except ValueError as error:  # can't be read, holds nothing, or is beyond what a tokenizer can write
            left_out.append(str(error) if file.path in str(error) else f"{file.path}: {error}")
            continue
        totals = {name: totals[name] + result for name, result in results.items()}
    if len(left_out) == len(files):
        raise DataError(f"no file in {folder} could be used, for example {left_out[0]}")
    rows = []
    for name, tokenizer in tokenizers.items():
        cells = [f"{value:.0f}" if value > 1000 else f"{value:.4g}" for value in totals[name].report().values()]
        rows.append([name, *cells, ", ".join(tokenizer.lost_fields)])
    print("\n".join(table_lines(["tokenizer", *RoundTrip().report(), "lost by design"], rows)))
    for reason in left_out:
        print(f"left out: {reason}")
