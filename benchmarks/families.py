"""How well families are found: `python benchmarks/families.py PAIRS.csv ROOT` prints Markdown tables.

PAIRS.csv has the columns a, b, kind, detail, work; its files lie in the folder `files` beside it. ROOT holds data
sets, one folder each; those whose folders or tables say which files are one work (ASAP, Vienna 4x22, PiJAMA, the
evaluation set of GiantMIDI-Piano, MAESTRO, JSB chorales) are measured too, where present under the names below.
"""

from __future__ import annotations

import csv
import json
import os
import re
import resource
import sys
import time
from collections import Counter, defaultdict
from itertools import combinations
from pathlib import Path

import numpy as np

from pianogen_hf.data.families import MIN_SHARE, families, fingerprint, related, related_pairs
from pianogen_hf.tokenizers.midi import MIDI_SUFFIXES, MidiError, read_midi
from pianogen_hf.tokenizers.notes import Notes

VERSION_OF_WORK = re.compile(r"(_no)?(_2|_first)?_(repeat|trio)$")  # ASAP keeps a work with and without repeats apart


def midi_files(root: Path) -> list[Path]:
    """Every MIDI file below a folder, but for the set of broken ones."""
    return sorted(
        path
        for path in root.rglob("*")
        if path.suffix.lower() in MIDI_SUFFIXES and path.is_file() and "malformed" not in path.parts
    )


def chorales(root: Path) -> dict[str, Notes]:
    """The JSB chorales (four voices on a grid of sixteenths, -1 a rest) by split and number, as `jsb:train[0]`."""
    path = root / "jsb" / "Jsb16thSeparated.json"
    splits = json.loads(path.read_text()) if path.exists() else {}
    return {
        f"jsb:{split}[{number}]": _chorale(np.array(steps))
        for split, pieces in splits.items()
        for number, steps in enumerate(pieces)
    }


def _chorale(steps: np.ndarray) -> Notes:
    begins = np.ones(steps.shape, dtype=bool)
    begins[1:] = steps[1:] != steps[:-1]
    onsets, voices = np.nonzero(begins & (steps >= 0))
    return Notes.from_columns(4, onset_tick=onsets, duration_tick=1, pitch=steps[onsets, voices])


def works(names: list[str], root: Path) -> dict[str, dict[str, list[int]]]:
    """Per data set its works, each with the indices of its files."""
    found: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    giantmidi = _giantmidi_works(root)
    for index, name in enumerate(names):
        folder, _, rest = name.partition("/")
        if folder == "asap":
            found["ASAP"][VERSION_OF_WORK.sub("", os.path.dirname(rest))].append(index)
        elif folder == "vienna4x22":
            found["Vienna 4x22"][rest.rsplit("_p", 1)[0]].append(index)
        elif folder == "pijama":
            found["PiJAMA"][Path(rest).name].append(index)
        elif Path(name).name in giantmidi and folder == "giantmidi_eval":
            found["GiantMIDI-Piano evaluation set"][giantmidi[Path(name).name]].append(index)
    return found


def _giantmidi_works(root: Path) -> dict[str, str]:
    path = root / "giantmidi_eval" / "groundtruth_maestro_giantmidi-piano.csv"
    if not path.exists():
        return {}
    rows = list(csv.reader(path.open(encoding="utf-8"), delimiter="\t"))[1:]
    return {name: row[0] for row in rows if row for name in row[1:]}


def measure_pairs(pairs: Path, index_of: dict[str, int], prints: list[np.ndarray], family: list[str]) -> None:
    """Print recall for each kind of labelled pair, and false alarms among the labelled files."""
    kinds, missing = defaultdict(list), Counter()
    for row in csv.DictReader(pairs.open(encoding="utf-8")):
        ends = [_labelled(row[side], pairs, index_of) for side in "ab"]
        if None in ends:
            missing[row["kind"]] += 1
        else:
            kinds[row["kind"]].append(tuple(sorted(ends)))
    print(
        "| kind | pairs | found | recall | joined | weakest share | not in this copy |\n|---|---|---|---|---|---|---|"
    )
    for kind, labelled in kinds.items():
        _print_row(kind, labelled, prints, family, missing[kind])


def _labelled(name: str, pairs: Path, index_of: dict[str, int]) -> int | None:
    return index_of.get(name if name.startswith("jsb:") else os.path.normpath(pairs.parent / "files" / name))


def _print_row(kind: str, labelled: list, prints: list[np.ndarray], family: list[str], missing: int) -> None:
    shares = sorted(related(prints[a], prints[b]) for a, b in labelled)
    found, joined = sum(share >= MIN_SHARE for share in shares), sum(family[a] == family[b] for a, b in labelled)
    recall = f"{found / len(labelled):.1%}"
    print(f"| {kind} | {len(labelled)} | {found} | {recall} | {joined} | {shares[0]:.3f} | {missing} |")


def measure_works(found: dict, names: list[str], links: dict, family: list[str]) -> None:
    """Print recall over all pairs of one work, and false alarms among pairs of different ones, per data set."""
    print(
        "\n| data set | works | pairs of one work | found | recall | joined | pairs of different works | false alarms |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for data_set, groups in found.items():
        work_of = {index: work for work, members in groups.items() for index in members}
        same = [pair for members in groups.values() for pair in combinations(sorted(members), 2)]
        others = len(work_of) * (len(work_of) - 1) // 2 - len(same)
        hits = sum(pair in links for pair in same)
        joined = sum(family[a] == family[b] for a, b in same)
        alarms = [p for p in links if p[0] in work_of and p[1] in work_of and work_of[p[0]] != work_of[p[1]]]
        recall = f"{hits / max(1, len(same)):.1%}"
        print(f"| {data_set} | {len(groups)} | {len(same)} | {hits} | {recall} | {joined} | {others} | {len(alarms)} |")
        for a, b in alarms[:20]:
            print(f"  {names[a]} - {names[b]}: {links[a, b]:.3f}", file=sys.stderr)
        for a, b in [pair for pair in same if pair not in links][:20]:
            print(f"  not found: {names[a]} - {names[b]}", file=sys.stderr)


def measure_maestro(root: Path, names: list[str], links: dict, family: list[str]) -> None:
    """Print what content says about MAESTRO's official split and its titles."""
    tables = sorted(root.glob("maestro*/maestro-v*.csv"))
    if not tables:
        return
    rows = {
        f"{tables[0].parent.name}/{r['midi_filename']}": r for r in csv.DictReader(tables[0].open(encoding="utf-8"))
    }
    here = {index: rows[name] for index, name in enumerate(names) if name in rows}
    crossing = [(a, b) for a, b in links if a in here and b in here and here[a]["split"] != here[b]["split"]]
    titles = defaultdict(lambda: defaultdict(list))
    for index, row in here.items():
        titles[row["canonical_composer"], row["canonical_title"]][row["split"]].append(index)
    shared = {title: sides for title, sides in titles.items() if len(sides) > 1}
    print(f"\nMAESTRO: {len(here)} files; pairs found across its official sides: {len(crossing)}")
    for a, b in crossing:
        print(
            f"* {here[a]['canonical_title']} ({here[a]['split']}) - {here[b]['canonical_title']} ({here[b]['split']}): "
            f"{links[a, b]:.3f}"
        )
    print(f"\nTitles on two sides: {len(shared)}")
    for (composer, title), sides in shared.items():
        pairs = [tuple(sorted(p)) for s, t in combinations(sides.values(), 2) for p in ((a, b) for a in s for b in t)]
        print(
            f"* {composer}, {title}: {sum(p in links for p in pairs)} of {len(pairs)} pairs found, "
            f"{sum(family[a] == family[b] for a, b in pairs)} joined"
        )


def main(pairs: Path, root: Path) -> None:
    """Measure and print."""
    start = time.perf_counter()
    paths = midi_files(root)
    extra = [] if pairs.is_relative_to(root) else midi_files(pairs.parent)
    pieces: dict[str, np.ndarray] = {}
    seconds = Counter()
    num_notes = 0
    for key, music in [*((str(path), path) for path in [*paths, *extra]), *chorales(root).items()]:
        begin = time.perf_counter()
        try:
            notes = music if isinstance(music, Notes) else read_midi(music, None)
        except MidiError as error:
            print(error, file=sys.stderr)
            continue
        middle = time.perf_counter()
        pieces[key] = fingerprint(notes)
        seconds["reading"] += middle - begin
        seconds["fingerprints"] += time.perf_counter() - middle
        num_notes += len(notes)
    keys, prints = list(pieces), list(pieces.values())
    names = [os.path.relpath(key, root) if not key.startswith("jsb:") else key for key in keys]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.perf_counter()
    links = {(a, b): share for a, b, share in related_pairs(prints)}
    seconds["pairs"] = time.perf_counter() - begin
    family = families(prints, [""] * len(prints))
    sizes = Counter(family)

    measure_pairs(pairs, {os.path.normpath(key): index for index, key in enumerate(keys)}, prints, family)
    measure_works(works(names, root), names, links, family)
    measure_maestro(root, names, links, family)
    jsb = [(names[a], names[b]) for a, b in links if names[a].startswith("jsb:") and names[b].startswith("jsb:")]
    cross = [pair for pair in jsb if len({name.split("[")[0] for name in pair}) > 1]
    print(f"\nJSB chorales: {len(jsb)} pairs found, {len(cross)} of them across the canonical split")
    print(
        f"\nPieces {len(prints)}, notes {num_notes}, grams {sum(map(len, prints)) - len(prints)}, "
        f"fingerprints {sum(each.nbytes for each in prints) / 1e6:.0f} MB, pairs found {len(links)}, "
        f"families {len(sizes)}, largest {sizes.most_common(3)[0][1]}"
    )
    print("Seconds: " + ", ".join(f"{name} {value:.1f}" for name, value in seconds.items()), end="; ")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"all {time.perf_counter() - start:.1f}. Peak memory {peak / 1e6:.2f} GB, {before / 1e6:.2f} GB of it before "
        "the pairs"
    )


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python benchmarks/families.py PAIRS.csv ROOT")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
