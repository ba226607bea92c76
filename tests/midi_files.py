"""MIDI files and note tables for tests, made here."""

import io

import mido
import numpy as np
from hypothesis import strategies as st

from pianogen_hf.tokenizers.notes import (
    NOTE_DTYPE,
    OTHER_PEDAL_DTYPE,
    PEDAL_DTYPE,
    TEMPO_DTYPE,
    TIME_SIGNATURE_DTYPE,
    Notes,
)

CHANNELS = st.sampled_from([0, 1, 15, 17])  # 17 is channel 1 of the second port


@st.composite
def note_tables(draw):
    """Any notes: overlapping, zero-length, struck together, on several tracks, channels and programs, and drums."""
    rows = st.tuples(
        st.integers(0, 2000), st.integers(0, 500), st.integers(60, 63), st.integers(1, 127),
        st.sampled_from([0, 4, 40]), st.booleans(), st.integers(0, 2), CHANNELS,
    )  # fmt: skip
    table = np.array(draw(st.lists(rows, max_size=25)), dtype=NOTE_DTYPE)
    tempos = draw(st.lists(st.tuples(st.integers(0, 3000), st.integers(1, 2**24 - 1)), max_size=4))
    pedal = st.integers(0, 3000), st.integers(0, 127), CHANNELS
    other_pedals = draw(st.lists(st.tuples(*pedal, st.sampled_from([66, 67])), max_size=4))
    signatures = draw(
        st.lists(st.tuples(st.integers(0, 3000), st.integers(1, 16), st.sampled_from([1, 2, 4, 8, 16])), max_size=3)
    )
    return Notes(
        table,
        draw(st.integers(1, 32767)),
        np.array(tempos, dtype=TEMPO_DTYPE),
        np.array(signatures, dtype=TIME_SIGNATURE_DTYPE),
        np.array(draw(st.lists(st.tuples(*pedal), max_size=8)), dtype=PEDAL_DTYPE),
        ("left", "右手", "Violín"),
        other_pedals=np.array(other_pedals, dtype=OTHER_PEDAL_DTYPE),
    )


def bytes_of(*tracks, kind=1, ticks_per_beat=480):
    file = mido.MidiFile(type=kind, ticks_per_beat=ticks_per_beat)
    for messages in tracks:
        file.tracks.append(mido.MidiTrack(messages))
    buffer = io.BytesIO()
    file.save(file=buffer)
    return buffer.getvalue()


def strike(pitch, ticks=100, channel=0, velocity=64):
    return [
        mido.Message("note_on", note=pitch, velocity=velocity, channel=channel),
        mido.Message("note_off", note=pitch, channel=channel, time=ticks),
    ]
