"""How fast MIDI files become ids, against MidiTok's REMI, and whether the ids are MidiTok's own.

    taskset -c 0 python benchmarks/encoding_speed.py FOLDER                      # speed, on files of about 3,000 notes
    python benchmarks/encoding_speed.py FOLDER [FOLDER ...] --parity             # identity, on every file

Speed counts processor time (other work on the machine then matters little) from the file's path to a list of ids; all
encoders take turns in every round, and the table gives medians over the rounds. One thread: pin it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import miditok
import numpy as np
from symusic import Note, Score, Track

from pianogen_hf.tokenizers.midi import MIDI_SUFFIXES, MidiError, read_midi
from pianogen_hf.tokenizers.tokenization_craykh import CrayKHTokenizer
from pianogen_hf.tokenizers.tokenization_jsb import JSBTokenizer
from pianogen_hf.tokenizers.tokenization_performance import PerformanceTokenizer
from pianogen_hf.tokenizers.tokenization_remi import RemiTokenizer

REMI_CONFIG = {
    "pitch_range": (21, 108),
    "beat_res": {(0, 4): 8, (4, 12): 4},
    "num_velocities": 32,
    "use_pitchdrum_tokens": False,
    "remove_duplicated_notes": True,
    "special_tokens": ["PAD"],
}
CONFIGS = {
    "REMI": {},
    "REMI with tempos and time signatures": {"use_tempos": True, "use_time_signatures": True},
}


def midi_files(folders: list[Path]) -> list[Path]:
    """Every MIDI file below the folders, sorted."""
    return sorted(path for folder in folders for path in folder.rglob("*") if path.suffix.lower() in MIDI_SUFFIXES)


def of_size(paths: list[Path], num_notes: int, num_files: int) -> list[Path]:
    """The files whose numbers of notes come nearest to the one wanted."""
    return sorted(paths, key=lambda path: abs(Score(path).note_num() - num_notes))[:num_files]


def encoders(train_pieces: list[Path]) -> dict[str, Callable[[Path], object]]:
    """Path to ids, by name; MidiTok, which the others are compared to, stands first."""
    library = miditok.REMI(miditok.TokenizerConfig(**REMI_CONFIG))
    paired = RemiTokenizer()
    paired.train_bpe([read_midi(path) for path in train_pieces], 1000)
    ours = {
        "RemiTokenizer": RemiTokenizer(),
        "RemiTokenizer, tempos and time signatures": RemiTokenizer(config=CONFIGS[list(CONFIGS)[1]]),
        "RemiTokenizer, 1,000 byte pairs": paired,
        "PerformanceTokenizer": PerformanceTokenizer(),
        "CrayKHTokenizer": CrayKHTokenizer(),
        "JSBTokenizer": JSBTokenizer(),
    }
    found: dict[str, Callable[[Path], object]] = {"MidiTok REMI": library}
    for name, tokenizer in ours.items():
        found[name] = lambda path, tokenizer=tokenizer: tokenizer.encode_piece(read_midi(path))
    found["the same as an array (RemiTokenizer)"] = lambda path: ours["RemiTokenizer"].piece_ids(read_midi(path))
    found["read_midi alone"] = read_midi
    found["symusic's parse alone"] = Score
    return found


def speeds(paths: list[Path], rounds: int) -> Iterator[tuple[str, float, float]]:
    """Name, files per second and ratio to MidiTok of each encoder: medians over the rounds."""
    functions = encoders(paths[:3])
    rates: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            function(paths[0])  # nobody pays for a first call, nor for the caches that who went before has filled
            began = time.process_time()
            for path in paths:
                function(path)
            rates[name].append(len(paths) / (time.process_time() - began))
    for name, found in rates.items():
        ratios = [rate / base for rate, base in zip(found, rates["MidiTok REMI"], strict=True)]
        yield name, statistics.median(found), statistics.median(ratios)


def merged(path: Path) -> Score:
    """The file as MidiTok would see it if all its piano notes stood in one track."""
    score = Score(path)
    notes = [note for track in score.tracks if not track.is_drum and track.program < 8 for note in track.notes]
    track = Track(program=0)
    track.notes = [Note(note.time, note.duration, note.pitch, note.velocity) for note in notes]
    track.notes.sort(key=lambda note: (note.time, note.duration, note.pitch, note.velocity))
    last = max((note.time for note in notes), default=0)
    score.tracks = [track]
    score.tempos = [tempo for tempo in score.tempos if tempo.time <= last]
    score.time_signatures = [each for each in score.time_signatures if each.time <= last and each.numerator > 0]
    return score


def parity(paths: list[Path], config: dict[str, bool]) -> Counter[str]:
    """How many files gave MidiTok's own ids, how many others, and how many MidiTok itself had to encode."""
    tokenizer = RemiTokenizer(config=config)
    library = miditok.REMI(miditok.TokenizerConfig(**{**REMI_CONFIG, "use_time_signatures": False, **config}))
    counts: Counter[str] = Counter()
    for path in paths:
        try:
            notes = read_midi(path)
        except MidiError:
            counts["unreadable"] += 1
            continue
        sequences = library.encode(merged(path))
        same = np.array_equal(np.array(sequences[0].ids) + 2, tokenizer.encode_notes(notes))
        counts["identical" if same else "different"] += 1
        counts["encoded by MidiTok"] += tokenizer._fast_events(notes) is None
        if not same:
            print(f"  different: {path}")
    return counts


def main() -> None:
    """Print the table of speeds, or the counts of identical files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--parity", action="store_true", help="compare ids instead of timing")
    parser.add_argument("--notes", type=int, default=3000, help="size of the files to time")
    parser.add_argument("--files", type=int, default=20, help="how many files to time, or to compare in each folder")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.parity:
        for folder in arguments.folders:
            for name, config in CONFIGS.items():
                print(f"{folder.name}, {name}: {dict(parity(midi_files([folder]), config))}", flush=True)
        return
    paths = of_size(midi_files(arguments.folders), arguments.notes, arguments.files)
    print("| encoder | files/s | ratio to MidiTok |\n|---|---|---|")
    for name, rate, ratio in speeds(paths, arguments.rounds):
        print(f"| {name} | {rate:,.0f} | {ratio:.1f} |")


if __name__ == "__main__":
    main()
