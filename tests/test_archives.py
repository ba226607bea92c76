"""Archives: what is read of them, what never is, and that a broken one is never taken for a whole one."""

import io
import tarfile

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pianogen_hf as pg
from pianogen_hf.data.pieces import load_pieces, reading_report
from pianogen_hf.data.sources import archives
from pianogen_hf.data.sources.archives import ArchiveError, archive_rows, row_names
from pianogen_hf.data.sources.listing import list_pieces
from pianogen_hf.errors import DataError
from pianogen_hf.tokenizers.midi import notes_to_midi_bytes


def midi_bytes(program=0, seed=0, size=40):
    random = np.random.default_rng(seed)
    notes = pg.Notes.from_columns(
        onset_tick=np.cumsum(random.integers(60, 240, size)),
        duration_tick=random.integers(60, 400, size),
        pitch=random.integers(50, 80, size),
        program=np.full(size, program),
    )
    return notes_to_midi_bytes(notes)


def add(tar, name, data=b"", **fields):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for field, value in fields.items():
        setattr(member, field, value)
    tar.addfile(member, io.BytesIO(data))


def packed(path, files, mode="w"):
    with tarfile.open(path, mode) as tar:
        for name, data in files.items():
            add(tar, name, data)
    return path


def rows_of(archive, folder):
    return list(Dataset.from_file(str(archive_rows(archive, folder / "cache"))))


FILES = {"lmd_full/0/a.mid": b"MThd one", "lmd_full/f/b.MID": b"MThd two", "lmd_full/readme.txt": b"no"}


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_an_archive_of_any_compression_is_read_whole_and_once(tmp_path, monkeypatch, mode):
    archive = packed(tmp_path / "lmd.tar", FILES, mode)
    rows = archive_rows(archive, tmp_path / "cache")
    assert row_names(rows) == ["lmd_full/0/a.mid", "lmd_full/f/b.MID"]
    assert Dataset.from_file(str(rows))["midi"][:] == [b"MThd one", b"MThd two"]
    monkeypatch.setattr(archives, "_members", None)
    assert archive_rows(archive, tmp_path / "cache") == rows


def test_piano_is_taken_and_a_file_without_is_counted_and_named(tmp_path):
    files = {"x/piano.mid": midi_bytes(), "x/flute.mid": midi_bytes(73), "x/broken.mid": b"MThd"}
    listed = list_pieces("lakh", packed(tmp_path / "lmd.tar.gz", files, "w:gz"), tmp_path / "cache")
    assert [file.piece_id for file in listed] == [f"lakh/{name}" for name in files]
    pieces = load_pieces(listed, tmp_path / "cache")
    report = reading_report(pieces)
    assert (report["files"], report["usable"], report["without_chosen_programs"]) == (3, 1, 1)
    assert set(report["unusable"]) == {"lakh/x/flute.mid", "lakh/x/broken.mid"}
    (tmp_path / "folder" / "x").mkdir(parents=True)
    for name, data in files.items():
        (tmp_path / "folder" / name).write_bytes(data)
    unpacked = load_pieces(list_pieces("lakh", tmp_path / "folder"), tmp_path / "cache")
    for column in ("content", "num_notes", "error", "source"):
        assert dict(zip(unpacked["piece_id"], unpacked[column], strict=True)) == dict(
            zip(pieces["piece_id"], pieces[column], strict=True)
        )
    everything = load_pieces(listed, tmp_path / "cache", programs=None)
    assert reading_report(everything)["usable"] == 2


def test_matched_files_of_one_recording_are_versions_of_one_work(tmp_path):
    names = [
        "lmd_matched/A/A/A/TRAAAGR128F425B14B/1d.mid",
        "lmd_matched/A/A/A/TRAAAGR128F425B14B/b9.mid",
        "other/x.mid",
    ]
    listed = list_pieces("lakh", packed(tmp_path / "m.tar", dict.fromkeys(names, b"MThd")), tmp_path / "cache")
    assert [file.family_id for file in listed] == ["lakh/TRAAAGR128F425B14B", "lakh/TRAAAGR128F425B14B", ""]


def test_hostile_members_are_never_written_and_their_names_stay_inside(tmp_path):
    outside = tmp_path / "outside.mid"
    archive = tmp_path / "inner" / "evil.tar"
    archive.parent.mkdir()
    with tarfile.open(archive, "w") as tar:
        add(tar, str(outside), b"MThd absolute")
        add(tar, "../outside.mid", b"MThd upwards")
        add(tar, "a/../../outside.mid", b"MThd winding")
        add(tar, "link.mid", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add(tar, "hard.mid", type=tarfile.LNKTYPE, linkname="../outside.mid")
        add(tar, "device.mid", type=tarfile.CHRTYPE, devmajor=1, devminor=5)
        add(tar, "pipe.mid", type=tarfile.FIFOTYPE)
        add(tar, "folder.mid", type=tarfile.DIRTYPE)
    before = set(tmp_path.rglob("*"))
    rows = rows_of(archive, tmp_path)
    new = set(tmp_path.rglob("*")) - before
    assert all(path.is_relative_to(tmp_path / "cache") and path.suffix != ".mid" for path in new)
    names = [row["name"] for row in rows]
    assert len(set(names)) == len(names) == 7
    assert not any(name.startswith("/") or ".." in name.split("/") for name in names)
    errors = {row["name"]: row["error"] for row in rows if row["error"]}
    assert set(errors) == {"link.mid", "hard.mid", "device.mid", "pipe.mid"}
    assert [row["midi"] for row in rows][:3] == [b"MThd absolute", b"MThd upwards", b"MThd winding"]


def test_a_name_that_comes_twice_is_two_files_and_one_that_is_no_text_is_escaped(tmp_path):
    archive = tmp_path / "twice.tar"
    with tarfile.open(archive, "w", errors="surrogateescape") as tar:
        add(tar, "a.mid", b"1")
        add(tar, "a.mid", b"2")
        add(tar, b"\xff.mid".decode("utf-8", "surrogateescape"), b"3")
    assert [row["name"] for row in rows_of(archive, tmp_path)] == ["a.mid", "a.mid (2)", "\\xff.mid"]


def test_a_file_that_is_too_large_is_named_and_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_BYTES", 1000)
    archive = packed(tmp_path / "l.tar", {"big.mid": b"x" * 1001, "small.mid": b"x" * 900, "more.mid": b"x" * 900})
    rows = rows_of(archive, tmp_path)
    assert [(len(row["midi"]), bool(row["error"])) for row in rows] == [(0, True), (900, False), (900, False)]


def test_a_header_as_large_as_a_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "_MAX_HEADER", 1000)
    archive = packed(tmp_path / "long.tar", {"a" * 3000 + ".mid": b"x"})
    assert "header" in refused(archive, tmp_path)


def refused(archive, folder):
    with pytest.raises(ArchiveError) as caught:
        archive_rows(archive, folder / "cache")
    assert str(archive) in str(caught.value) and "\n" not in str(caught.value)
    assert not [path for path in (folder / "cache").rglob("files.*")], "nothing half read is left"
    return str(caught.value)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mode=st.sampled_from(["w", "w:gz", "w:xz"]), share=st.floats(0, 1, exclude_max=True))
def test_an_archive_that_was_cut_short_is_refused_wherever_it_was_cut(tmp_path, mode, share):
    whole = packed(
        tmp_path / "whole.tar", {f"{n}.mid": midi_bytes(seed=n, size=3) for n in range(4)}, mode
    ).read_bytes()
    # A tar ends in zeros; what is cut off of these is no loss.
    length = len(whole) if mode != "w" else len(whole.rstrip(b"\0"))
    archive = tmp_path / "cut.tar"
    archive.write_bytes(whole[: int(length * share)])
    refused(archive, tmp_path)


def test_an_archive_without_its_end_is_refused_though_all_its_files_are_there(tmp_path):
    whole = packed(tmp_path / "whole.tar", {"a.mid": b"x" * 512}).read_bytes()
    archive = tmp_path / "cut.tar"
    archive.write_bytes(whole[:1024])
    refused(archive, tmp_path)


def test_an_archive_that_was_damaged_is_refused(tmp_path):
    for mode, place in (("w", 600), ("w:gz", -6)):  # a header's checksum; that of the whole stream
        data = bytearray(packed(tmp_path / "whole.tar", {"a.mid": b"x" * 20, "b.mid": b"y" * 20}, mode).read_bytes())
        data[place if mode == "w:gz" else 1024 + 10] ^= 0xFF
        (tmp_path / "damaged.tar").write_bytes(data)
        refused(tmp_path / "damaged.tar", tmp_path)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 a zip", b"\x1f\x8b", b"\x00" * 10240, b"x" * 5000])
def test_what_is_no_archive_or_holds_no_music_is_refused(tmp_path, data):
    (tmp_path / "odd.tar").write_bytes(data)
    refused(tmp_path / "odd.tar", tmp_path)
    with pytest.raises(DataError, match=r"odd\.tar"):
        list_pieces("lakh", tmp_path / "odd.tar", tmp_path / "cache")


def test_reading_that_was_interrupted_begins_again(tmp_path, monkeypatch):
    archive, original = packed(tmp_path / "lmd.tar", FILES), archives._members

    def stopped(path):
        yield next(original(path))
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(archives, "_members", stopped)
        with pytest.raises(KeyboardInterrupt):
            archive_rows(archive, tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("files.*"))
    (next((tmp_path / "cache").iterdir()) / "files.partial").write_bytes(b"what a killed process left")
    assert [row["name"] for row in rows_of(archive, tmp_path)] == ["lmd_full/0/a.mid", "lmd_full/f/b.MID"]


def test_an_archive_that_changed_is_read_anew(tmp_path):
    archive = packed(tmp_path / "lmd.tar", FILES)
    assert len(rows_of(archive, tmp_path)) == 2
    packed(archive, {**FILES, "c.mid": b"MThd three"})
    assert len(rows_of(archive, tmp_path)) == 3
