"""Holds the music metrics against those of muspy 0.5.0, which wants an environment of its own.

python benchmarks/muspy_check.py ours.json FILE.mid ...      # here
python benchmarks/muspy_check.py ours.json --muspy           # where muspy is installed; prints a table
"""

import json
import math
import sys
from pathlib import Path

NAMES = ("pitch_range", "num_pitch_classes", "polyphony", "scale_consistency", "pitch_class_entropy", "empty_bar_rate")


def ours(paths):
    """Our metrics of each file, without its pedal, as muspy reads it."""
    from pianogen_hf.evaluation.music_metrics import piece_metrics, pitch_class_entropy
    from pianogen_hf.tokenizers.midi import read_midi

    rows = {}
    for path in paths:
        notes = read_midi(path, programs=None)
        found = {name: value for name, value in piece_metrics(notes).items() if name in NAMES}
        found["pitch_class_entropy"] = pitch_class_entropy(notes, 10**6)  # of the whole piece
        signatures = notes.time_signatures
        if len(signatures) > 1 or notes["onset_tick"].min() > 0:
            found.pop("empty_bar_rate")  # muspy knows one metre, and counts bars from 0
        quarters = 4 * signatures["numerator"][0] / signatures["denominator"][0] if len(signatures) else 4.0
        rows[str(path)] = {"notes": len(notes), "bar": int(quarters * notes.ticks_per_quarter), **found}
    return rows


def theirs(path, bar):
    """The same by muspy."""
    import muspy

    music = muspy.read_midi(path)
    return {
        "notes": sum(len(track) for track in music.tracks),
        "pitch_range": muspy.pitch_range(music),
        "num_pitch_classes": muspy.n_pitch_classes_used(music),
        "polyphony": muspy.polyphony(music),
        "scale_consistency": muspy.scale_consistency(music),
        "pitch_class_entropy": muspy.pitch_class_entropy(music),
        "empty_bar_rate": muspy.empty_measure_rate(music, bar),
    }


def main(argv):
    """Write ours, or compare with muspy's."""
    if argv[1:] != ["--muspy"]:
        Path(argv[0]).write_text(json.dumps(ours(argv[1:]), indent=1))
        return
    differences = {name: [] for name in ("notes", *NAMES)}
    for path, row in json.loads(Path(argv[0]).read_text()).items():
        other = theirs(path, row["bar"])
        for name in differences:
            if name in row and math.isfinite(row[name]):
                differences[name].append(abs(row[name] - other[name]))
    print("| metric | files | equal (to 1e-9) | largest difference |\n|---|---|---|---|")
    for name, values in differences.items():
        print(f"| {name} | {len(values)} | {sum(each < 1e-9 for each in values)} | {max(values, default=0):.3g} |")


main(sys.argv[1:])
