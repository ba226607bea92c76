"""Continuations of prompts by tiny models, of random weights or scripted: it must hold whatever they write."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models_and_tokenizers import TOKENIZERS, some_notes, tiny_model
from transformers import GenerationMixin, GPT2Config, GPT2LMHeadModel, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from pianogen_hf.generation.continuation import Continuation, GenerationError, Length, continue_notes
from pianogen_hf.models.configuration_continuous_notes import ContinuousNotesConfig
from pianogen_hf.models.configuration_music_transformer import MusicTransformerConfig
from pianogen_hf.models.configuration_piano_encoder import PianoEncoderConfig
from pianogen_hf.models.modeling_continuous_notes import ContinuousNotesForCausalLM
from pianogen_hf.models.modeling_music_transformer import MusicTransformerForCausalLM
from pianogen_hf.models.modeling_piano_encoder import PianoEncoderForMaskedLM
from pianogen_hf.tokenizers.feature_extraction_continuous_notes import ContinuousNotesFeatureExtractor
from pianogen_hf.tokenizers.notes import OTHER_PEDAL_DTYPE, PEDAL_DTYPE, TEMPO_DTYPE, TIME_SIGNATURE_DTYPE, Notes
from pianogen_hf.tokenizers.tokenization_craykh import CrayKHTokenizer
from pianogen_hf.tokenizers.tokenization_jsb import VOICES, JSBTokenizer
from pianogen_hf.tokenizers.tokenization_notes import NoteTokenizer
from pianogen_hf.tokenizers.tokenization_performance import PerformanceTokenizer
from pianogen_hf.tokenizers.tokenization_remi import RemiTokenizer

SCHEMES = ("performance", "craykh", "jsb", "remi", "bpe", "TSD", "Structured", "MIDILike")
SECOND_SCHEMES = ("performance", "craykh")


@cache
def tokenizer_of(scheme: str) -> NoteTokenizer:
    ours = {"performance": PerformanceTokenizer, "craykh": CrayKHTokenizer, "jsb": JSBTokenizer, "remi": RemiTokenizer}
    if scheme == "bpe":
        tokenizer = RemiTokenizer()
        tokenizer.train_bpe([melody(pitches=range(40 + i, 80, 3)) for i in range(6)], len(tokenizer) + 40)
        return tokenizer
    return ours[scheme]() if scheme in ours else RemiTokenizer(scheme=scheme)


class UniformModel(PreTrainedModel, GenerationMixin):
    """Finds every id equally likely, so that its samples try all that the grammar allows; or writes a script.

    Attributes:
        script: the ids to write, one per call; None for none.
    """

    config_class = MusicTransformerConfig

    def __init__(self, config: MusicTransformerConfig, script: list[int] | None = None) -> None:
        super().__init__(config)
        self.script, self.parameter = script, torch.nn.Parameter(torch.zeros(1))

    def forward(self, input_ids, **kwargs) -> CausalLMOutputWithPast:
        logits = torch.zeros(*input_ids.shape, self.config.vocab_size)
        if self.script is not None:
            logits[:, -1, self.script.pop(0)] = 1e4
        return CausalLMOutputWithPast(logits=logits)


def config_of(scheme: str, context: int = 256) -> MusicTransformerConfig:
    return MusicTransformerConfig(
        vocab_size=len(tokenizer_of(scheme)),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=context,
        max_relative_distance=16,
    )


def melody(start: int = 0, pitches=range(55, 79, 3), step: int = 240, tpq: int = 480, **kwargs) -> Notes:
    """Eighths in two voices, the lower one in quarters; ticks at 480 per quarter."""
    high, low = list(pitches), [pitch - 12 for pitch in list(pitches)[::2]]
    onset = np.r_[start + step * np.arange(len(high)), start + 2 * step * np.arange(len(low))] * tpq // 480
    duration = np.r_[np.full(len(high), step), np.full(len(low), 2 * step)] * tpq // 480
    notes = Notes.from_columns(
        tpq, onset_tick=onset, duration_tick=duration, pitch=high + low, velocity=70 + np.arange(len(onset)) % 50
    )
    return replace(notes, **kwargs)


def with_pedal(notes: Notes, *events: tuple[int, int, int]) -> Notes:
    return replace(notes, pedals=np.array(list(events), dtype=PEDAL_DTYPE))


def go_on(scheme: str, length: Length, prompt: Notes | None = None, *, context: int = 256, seed=0, **kwargs) -> list:
    options = {"do_sample": True, "top_k": 0, **kwargs}
    return continue_notes(
        UniformModel(config_of(scheme, context)), tokenizer_of(scheme), length, prompt, seed=seed, **options
    )


def play(scheme: str, prompt: Notes, following: Notes, length: Length, context: int = 1024) -> Continuation:
    """The continuation by a model that writes exactly the notes `following`, and then one note 8 quarters later."""
    tokenizer = tokenizer_of(scheme)
    last = Notes.from_columns(
        prompt.ticks_per_quarter, onset_tick=[following.end_tick + 8 * prompt.ticks_per_quarter], duration_tick=[240],
        pitch=[60],
    )  # fmt: skip
    whole = replace(prompt, table=np.concatenate([prompt.table, following.table, last.table]))
    given, ids = tokenizer.encode_prompt(prompt), tokenizer.encode_prompt(whole)
    assert ids[: len(given)] == given
    script = ids[len(given) :] + [ids[-1]] * 16  # the writer looks at its music only every 16 ids
    model = UniformModel(config_of(scheme, context), script)
    return continue_notes(model, tokenizer, length, prompt, do_sample=False)[0]


def check(result: Continuation, prompt: Notes) -> None:
    """What holds for every continuation of every prompt."""
    rows = result.notes.table.tolist()
    for row in prompt.table.tolist():
        rows.remove(row)  # fails if a prompt's note was touched
    assert sorted(rows) == sorted(result.new.table.tolist())
    assert len(result.new) > 0 and result.new["duration_tick"].min() > 0
    assert result.new.onset_sec.min() >= result.prompt_end_sec - 1e-6
    tick = result.notes.sec_to_tick(np.array(result.prompt_end_sec))  # from there on the tempo may be another
    until, before = (tempos[tempos["tick"] < tick] for tempos in (result.notes.tempos, prompt.tempos))
    assert np.array_equal(until, before)
    assert np.array_equal(result.notes.time_signatures, prompt.time_signatures)
    assert result.notes.ticks_per_quarter == prompt.ticks_per_quarter


def same(one: list[Continuation], other: list[Continuation]) -> bool:
    return all(a.notes == b.notes for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_new_notes_follow_an_untouched_prompt_for_exactly_the_wanted_seconds(scheme):
    prompt = melody()
    for result in go_on(scheme, Length(seconds=1.5), prompt, num_samples=2):
        check(result, prompt)
        assert result.prompt_end_sec == pytest.approx(prompt.end_sec)
        assert result.notes.end_sec <= prompt.end_sec + 1.5 + 1e-3


@pytest.mark.parametrize("scheme", SCHEMES)
def test_wanted_notes_are_counted_exactly(scheme):
    prompt = melody()
    for result in go_on(scheme, Length(notes=11), prompt, num_samples=2):
        check(result, prompt)
        assert len(result.new) == 11
    assert len(go_on(scheme, Length(notes=7))[0].notes) == 7


def assert_alike(new: Notes, wanted: Notes, tolerance_sec: float) -> None:
    assert new["pitch"].tolist() == wanted["pitch"].tolist()
    assert np.abs(new.onset_sec - wanted.onset_sec).max() <= tolerance_sec
    assert np.abs(new.offset_sec - wanted.offset_sec).max() <= 2 * tolerance_sec


TEMPOS = np.array([(0, 600_000), (480 * 5, 400_000), (480 * 6, 750_000)], dtype=TEMPO_DTYPE)
# Half a grid step where it does not hit the eighths exactly.
TOLERANCE_SEC = {"performance": 0.006, "craykh": 0.101}


@pytest.mark.parametrize("scheme", [scheme for scheme in SCHEMES if scheme != "bpe"])  # a bar's pairs depend on its end
@pytest.mark.parametrize(
    ("start", "tempos"), [(0, None), (480 * 8, None), (230, None), (480 * 4, TEMPOS)], ids=["", "rest", "off", "tempos"]
)
def test_what_the_model_writes_lands_where_it_belongs_on_the_prompts_axis(scheme, start, tempos):
    if start == 230 and scheme not in SECOND_SCHEMES:
        pytest.skip("only schemes of real time keep a place between the grid's lines")
    axis = {} if tempos is None else {"tempos": tempos}
    prompt = melody(start, **axis)
    following = melody(prompt.end_tick + 240, pitches=range(78, 54, -4), **axis)
    result = play(scheme, prompt, following, Length(seconds=following.end_sec - prompt.end_sec + 1.0))
    check(result, prompt)
    if tempos is not None and scheme not in SECOND_SCHEMES:  # beats go on in the mean tempo of the last bars
        following = replace(following, tempos=result.new.tempos)
    assert_alike(result.new, following, TOLERANCE_SEC.get(scheme, 1e-6))


@pytest.mark.parametrize("scheme", SECOND_SCHEMES)
def test_windows_of_a_small_context_lose_nothing(scheme):
    prompt = melody()
    following = melody(prompt.end_tick, pitches=[*range(50, 70), *range(69, 49, -1)])
    result = play(scheme, prompt, following, Length(notes=len(following)), context=64)
    assert_alike(result.new, following, TOLERANCE_SEC[scheme])


@pytest.mark.parametrize(("context", "unit"), [(64, 4), (257, 64)], ids=["rows", "bars"])
def test_jsb_windows_begin_with_the_last_voice_of_a_row_or_bar_as_training_chunks_do(context, unit):
    seen = []

    class Spy(UniformModel):
        def generate(self, input_ids, **kwargs):
            written = len(ids) + 1600 - len(self.script)
            seen.append(written - input_ids.shape[1])
            return super().generate(input_ids, **kwargs)

    tokenizer, prompt = tokenizer_of("jsb"), melody(pitches=[60, 64, 67, 72, 60, 64, 67, 72, 60])
    ids = tokenizer.encode_prompt(prompt)
    model = Spy(config_of("jsb", context), script=[3 + index % 40 for index in range(1600)])
    continue_notes(model, tokenizer, Length(seconds=context / 16), prompt, do_sample=False)
    assert len(seen) > 2 and seen[0] >= len(ids) - context // 2 and all(start % unit == 0 for start in seen)


@pytest.mark.parametrize("scheme", ["performance", "remi", "jsb"])
def test_bars_follow_the_prompts_signature_and_tempo(scheme):
    signature = np.array([(0, 4, 4), (480, 3, 4)], dtype=TIME_SIGNATURE_DTYPE)
    tempos = np.array([(0, 500_000), (960, round(60e6 / 90))], dtype=TEMPO_DTYPE)
    prompt = melody(time_signatures=signature, tempos=tempos)
    result = go_on(scheme, Length(bars=2), prompt)[0]
    check(result, prompt)
    assert prompt.end_tick < result.notes.end_tick <= prompt.end_tick + 2 * 3 * 480
    assert Length(bars=2).end_tick(prompt, prompt.end_tick) == prompt.end_tick + 2 * 3 * 480
    mean = prompt.end_sec * 480 / prompt.end_tick  # seconds a quarter
    assert result.notes.end_sec <= prompt.end_sec + 2 * 3 * mean + 1e-4


@pytest.mark.parametrize("scheme", ["performance", "remi"])
def test_bars_are_in_the_tempo_of_the_last_bars_and_not_in_that_of_the_last_event(scheme):
    """Ten bars, of which the first two are slow and the last quarter is held: two bars more are fast ones."""
    tempos = np.array([(0, 2_000_000), (2 * 1920, 500_000), (10 * 1920 - 480, 4_000_000)], dtype=TEMPO_DTYPE)
    prompt = Notes.from_columns(onset_tick=480 * np.arange(40), duration_tick=480, pitch=60 + np.arange(40) % 12)
    prompt = replace(prompt, tempos=tempos)
    result = go_on(scheme, Length(bars=2), prompt, context=2048)[0]
    check(result, prompt)
    per_quarter = (31 * 0.5 + 4.0) / 32  # seconds, of the last eight bars
    assert result.notes.tempos[-1].tolist() == (10 * 1920, round(1e6 * per_quarter))
    assert result.new.end_sec - result.prompt_end_sec <= 8 * per_quarter + 1e-3


@pytest.mark.parametrize("scheme", ["performance", "craykh"])
def test_a_pedal_held_long_after_the_last_note_puts_no_silence_before_new_music(scheme):
    prompt = with_pedal(melody(), (960, 127, 0), (960 * 100, 0, 0))
    result = go_on(scheme, Length(seconds=2.0), prompt)[0]
    check(result, prompt)
    assert result.prompt_end_sec <= prompt.end_sec + 2.0 + 1e-3
    assert result.notes.pedals[-1]["value"] == 0 and result.notes.end_sec <= result.prompt_end_sec + 2.0 + 1e-3


def test_soft_and_sostenuto_pedals_come_up_where_new_music_begins():
    end = melody().end_tick
    rows = [(0, 127, 0, 67), (480, 0, 0, 67), (960, 100, 1, 66), (end + 9, 127, 0, 67)]
    prompt = replace(melody(), other_pedals=np.array(rows, dtype=OTHER_PEDAL_DTYPE))
    result = go_on("remi", Length(notes=5), prompt)[0]
    assert result.notes.other_pedals.tolist() == [*rows[:3], (end, 0, 1, 66)]


@pytest.mark.parametrize("scheme", ["performance", "jsb"])
def test_a_note_that_rings_on_is_cut_at_the_wanted_end(scheme):
    prompt = melody()
    long_note = Notes.from_columns(480, onset_tick=[prompt.end_tick], duration_tick=[480 * 9], pitch=[64])
    result = play(scheme, prompt, long_note, Length(seconds=2.0))
    assert result.new.end_sec == pytest.approx(prompt.end_sec + 2.0, abs=2e-3)
    assert Length(seconds=2.0).end_tick(prompt, prompt.end_tick) == prompt.end_tick + 4 * 480


@pytest.mark.parametrize("scheme", ["performance", "remi", "jsb"])
def test_the_same_seed_gives_the_same_music_and_another_seed_other_music(scheme):
    prompt, length = melody(), Length(notes=12)
    first = go_on(scheme, length, prompt, seed=1, num_samples=3)
    assert same(first, go_on(scheme, length, prompt, seed=1, num_samples=3))
    assert not same(first, go_on(scheme, length, prompt, seed=2, num_samples=3))
    assert len({str(result.new.table.tolist()) for result in first}) == 3


def test_beams_give_several_different_results_and_finish_in_small_contexts():
    torch.manual_seed(0)
    prompt, model = melody(), MusicTransformerForCausalLM(config_of("performance", 96)).eval()
    options = {"num_samples": 2, "num_beams": 3, "do_sample": False}
    results = continue_notes(model, tokenizer_of("performance"), Length(notes=25), prompt, **options)
    for result in results:
        check(result, prompt)
        assert len(result.new) == 25
    assert not same(results[:1], results[1:])


@pytest.mark.parametrize("scheme", ["performance", "remi", "jsb"])
@pytest.mark.parametrize("num_beams", [1, 2])
def test_real_models_write_as_well(scheme, num_beams):
    torch.manual_seed(0)
    sizes = {"vocab_size": len(tokenizer_of(scheme)), "n_positions": 128, "n_embd": 16, "n_layer": 1, "n_head": 2}
    gpt2 = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=1, eos_token_id=2)).eval()
    for model in (gpt2, MusicTransformerForCausalLM(config_of(scheme, 128)).eval()):
        options = {"num_samples": 2, "num_beams": num_beams, "do_sample": num_beams == 1}
        for result in continue_notes(model, tokenizer_of(scheme), Length(seconds=2.5), melody(), seed=0, **options):
            check(result, melody())


def test_a_long_prompt_is_windowed_and_said_to_be():
    messages: list[str] = []
    prompt = melody(pitches=list(range(50, 80)) * 4)
    results = go_on("performance", Length(notes=5), prompt, context=64, on_message=messages.append)
    check(results[0], prompt)
    ids = len(tokenizer_of("performance").encode_prompt(prompt))
    assert messages == [f"the prompt has {ids} ids: the model hears the last 32 of them"]
    assert (
        go_on("performance", Length(notes=5), melody(), context=512, on_message=messages.append) and len(messages) == 1
    )


def test_a_prompt_far_from_the_model_s_music_is_told_so():
    messages: list[str] = []
    crowd = Notes.from_columns(
        480, onset_tick=np.arange(64) * 10, duration_tick=[10] * 64, pitch=[48 + i % 30 for i in range(64)]
    )
    go_on("jsb", Length(notes=5), crowd, context=512, on_message=messages.append)
    (message,) = [each for each in messages if "far from the model's music" in each]
    assert "JSBTokenizer hears" in message and "of its 64 notes" in message
    assert go_on("performance", Length(notes=5), crowd, context=1024, on_message=messages.append) and len(messages) == 1


@pytest.mark.parametrize("scheme", ["performance", "craykh", "remi"])
def test_a_pedal_left_down_is_lifted_where_new_music_begins(scheme):
    prompt = with_pedal(melody(), (0, 127, 0), (480, 0, 0), (960, 100, 0))
    result = go_on(scheme, Length(notes=5), prompt)[0]
    check(result, prompt)
    assert result.notes.pedals.tolist() == [*prompt.pedals.tolist(), (prompt.end_tick, 0, 0)]


@pytest.mark.parametrize("scheme", ["performance", "craykh", "remi"])
def test_a_pedal_that_comes_up_after_the_last_note_does_not_blur_new_music(scheme):
    late = melody().end_tick + 4 * 480
    prompt = with_pedal(melody(), (960, 127, 0), (late, 0, 0))
    result = go_on(scheme, Length(seconds=2.0), prompt)[0]
    check(result, prompt)
    begin = late if scheme == "performance" else prompt.end_tick  # only that scheme hears what the pedal holds
    assert result.notes.pedals.tolist() == [(960, 127, 0), (begin, 0, 0)]
    assert result.prompt_end_sec == pytest.approx(float(prompt.tick_to_sec(np.array(begin))))
    assert result.notes.end_sec <= result.prompt_end_sec + 2.0 + 1e-3


def test_notes_beside_the_prompts_last_ones_are_left_out():
    """REMI goes on from the last onset, here three beats before the last note ends."""
    prompt = Notes.from_columns(480, onset_tick=[0, 480], duration_tick=[480, 480 * 4], pitch=[60, 64])
    ids = tokenizer_of("remi").encode_prompt(prompt)
    early = Notes.from_columns(480, onset_tick=[960, 480 * 5], duration_tick=[480 * 6, 240], pitch=[67, 69])
    result = play("remi", prompt, early, Length(notes=1))
    assert ids and result.new["pitch"].tolist() == [69] and result.new["onset_tick"].tolist() == [480 * 5]


@pytest.mark.parametrize("scheme", ["jsb", "craykh"])
def test_a_prompt_note_that_the_model_prolongs_goes_on_as_a_new_note(scheme):
    prompt, tokenizer = melody(), tokenizer_of(scheme)
    longer = replace(prompt, table=prompt.table.copy())
    longer.table["duration_tick"][-1] += 960
    ids, given = tokenizer.encode_prompt(longer), tokenizer.encode_prompt(prompt)
    assert ids[: len(given)] == given
    model = UniformModel(config_of(scheme, 1024), script=ids[len(given) :] + [ids[-1]] * 400)
    result = continue_notes(model, tokenizer, Length(seconds=1.5), prompt, do_sample=False)[0]
    check(result, prompt)
    assert prompt["pitch"][-1] in result.new["pitch"]
    assert result.new["onset_tick"].min() == prompt.end_tick


def test_a_prompt_with_low_notes_that_the_scheme_cannot_write_is_followed_from_its_real_end():
    """The bass below JSB's range is not heard by the model; new music still waits for its end."""
    prompt = replace(melody(), table=np.concatenate([melody().table, melody(480 * 6, pitches=[40]).table]))
    prompt.table["duration_tick"][-2:] = 480 * 5
    result = go_on("jsb", Length(seconds=2.0), prompt)[0]
    check(result, prompt)
    assert result.new["onset_tick"].min() >= prompt.end_tick


def test_long_rests_that_structured_midi_forgets_do_not_move_new_music():
    """Its time shifts end at 12 beats, so the decoded prompt is shorter than the real one."""
    prompt = replace(melody(), table=np.concatenate([melody().table, melody(480 * 40).table]))
    result = go_on("Structured", Length(seconds=3.0), prompt)[0]
    check(result, prompt)
    assert result.new.onset_sec.min() < prompt.end_sec + 3.0


@pytest.mark.parametrize("scheme", ["performance", "jsb"])
def test_new_notes_play_on_the_track_of_their_name_or_the_first(scheme):
    left, right = melody(), melody(pitches=range(58, 82, 3))
    left.table["track"], right.table["track"] = 1, 2
    left.table["program"], right.table["program"] = 4, 1
    tables = np.concatenate([left.table, right.table])
    plain = Notes(tables, track_names=("", "Links", "Rechts"))
    assert set(go_on(scheme, Length(notes=9), plain)[0].new[["track", "program"]].tolist()) == {(1, 4)}
    voices = Notes(tables, track_names=("", "Bass", "Soprano"))
    placed = set(go_on(scheme, Length(notes=30), voices)[0].new[["track", "program"]].tolist())
    assert placed == ({(1, 4)} if scheme == "performance" else {(1, 4), (2, 1)})


@pytest.mark.parametrize("scheme", SCHEMES)
def test_music_begins_from_nothing(scheme):
    result = go_on(scheme, Length(seconds=2.0), us_per_quarter=600_000)[0]
    assert result.prompt_end_sec == 0 and result.notes.table.tolist() == result.new.table.tolist() != []
    assert result.notes.end_sec <= 2.0 + 1e-3 and result.notes.tempos.tolist() == [(0, 600_000)]
    if scheme == "craykh":  # its text tells nothing of the silence before the first note
        assert result.notes["onset_tick"].min() == 0
    if scheme == "jsb":
        assert result.notes.track_names == VOICES


@pytest.mark.parametrize("scheme", ["performance", "remi", "craykh"])
def test_even_a_moment_holds_a_note(scheme):
    """Where the model would wait longer than music is wanted, the wait is taken out."""
    for seconds in (1e-9, 0.02, 0.05):
        result = go_on(scheme, Length(seconds=seconds), melody())[0]
        check(result, melody())
    far = Notes.from_columns(480, onset_tick=[melody().end_tick + 480 * 20], duration_tick=[480], pitch=[65])
    result = play(scheme, melody(), far, Length(seconds=0.5))
    assert result.new["onset_tick"].tolist() == [melody().end_tick]


@pytest.mark.parametrize("scheme", ["jsb", "craykh", "performance"])
def test_a_chord_held_for_ever_ends_with_the_wanted_time(scheme):
    tokenizer = tokenizer_of(scheme)
    chord = Notes.from_columns(480, onset_tick=[0] * 4, duration_tick=[480 * 99] * 4, pitch=[50, 57, 62, 66])
    ids = tokenizer.encode_prompt(chord)[1:]
    model = UniformModel(config_of(scheme, 1024), script=ids)
    result = continue_notes(model, tokenizer, Length(seconds=4.0), do_sample=False)[0]
    assert result.new["pitch"].tolist() == [50, 57, 62, 66]
    assert result.new["duration_tick"].tolist() == [480 * 8] * 4
    assert ids  # so it is not the script's end that ended it


def test_a_model_that_only_rests_is_made_to_write_notes():
    tokenizer = tokenizer_of("performance")
    model = UniformModel(config_of("performance", 64), tokenizer.convert_tokens_to_ids(["TIME_SHIFT_100"]) * 4000)
    result = continue_notes(model, tokenizer, Length(notes=2), melody(), do_sample=False)[0]
    assert len(result.new) == 2 and result.new.onset_sec.max() < melody().end_sec + 2 * 60


def test_a_model_that_stands_still_is_stopped(monkeypatch):
    """TSD's grammar lets a model add notes to one instant for ever."""
    monkeypatch.setattr("pianogen_hf.generation.writer._MAX_STEPS", 100)
    tokenizer = tokenizer_of("TSD")
    chord = tokenizer.convert_tokens_to_ids(["Pitch_60", "Velocity_63", "Duration_1.0.8"])
    model = UniformModel(config_of("TSD", 64), script=chord * 4000)
    with pytest.raises(GenerationError, match="stands still"):
        continue_notes(model, tokenizer, Length(seconds=0.1), do_sample=False)


def test_progress_is_that_of_the_slowest_sample_and_never_falls():
    shares: list[float] = []
    go_on("performance", Length(seconds=4.0), melody(), context=96, num_samples=4, on_progress=shares.append)
    assert shares == sorted(shares) and shares[-1] == 1.0 and len(shares) > 8
    assert all(0 <= share <= 1 for share in shares)


@pytest.mark.parametrize("scheme", ["performance", "craykh", "jsb", "remi", "TSD"])
def test_prompts_that_the_scheme_cannot_write_are_refused(scheme):
    low = Notes.from_columns(480, onset_tick=[0, 480], duration_tick=[240, 240], pitch=[2, 5])
    for prompt in (low, melody().where(np.zeros(0, dtype=int))):
        with pytest.raises(GenerationError, match="no notes that .* can write") as caught:
            go_on(scheme, Length(notes=3), prompt)
        assert "\n" not in str(caught.value)


TICKS = st.integers(0, 6000)
ROWS = st.tuples(TICKS, st.integers(0, 3000), st.integers(0, 127), st.integers(1, 127), st.integers(0, 1))


@pytest.mark.parametrize("scheme", SCHEMES)
@settings(max_examples=4, deadline=None)
@given(
    rows=st.lists(ROWS, min_size=1, max_size=12),
    tpq=st.sampled_from([24, 220, 480, 1000]),
    tempos=st.lists(st.tuples(TICKS, st.integers(250_000, 2_000_000)), max_size=3),
    pedals=st.lists(st.tuples(TICKS, st.integers(0, 127), st.integers(0, 2)), max_size=4),
    seconds=st.floats(0.1, 1.0),
)
def test_whatever_the_prompt_new_notes_follow_it(scheme, rows, tpq, tempos, pedals, seconds):
    """Overlapping strikes, notes without length, any tempo, pedals on tracks of their own, pitches of no piano."""
    onset, duration, pitch, velocity, track = zip(*rows, strict=True)
    prompt = replace(
        Notes.from_columns(tpq, onset_tick=onset, duration_tick=duration, pitch=pitch, velocity=velocity, track=track),
        tempos=np.array(tempos, dtype=TEMPO_DTYPE),
        pedals=np.array(pedals, dtype=PEDAL_DTYPE),
        track_names=("a", "b", "pedal"),
    )
    try:
        result = go_on(scheme, Length(seconds=seconds), prompt, context=2048)[0]
    except GenerationError as error:
        assert "no notes that" in str(error)
        return
    check(result, prompt)
    tick_sec = prompt.tempos["us_per_quarter"].max() * 1e-6 / tpq
    assert result.new.end_sec <= result.prompt_end_sec + seconds + tick_sec
    down = result.notes.pedals[result.notes.pedals["tick"] <= result.new["onset_tick"].min()]
    last = {track: value for _, value, track in down.tolist()}
    assert all(value < 64 for value in last.values())


def test_a_prompt_beyond_the_schemes_limits_is_refused():
    prompt = Notes.from_columns(1, onset_tick=[200_000], duration_tick=[1], pitch=[60])
    with pytest.raises(GenerationError, match="can't be tokenized"):
        go_on("remi", Length(notes=3), prompt)


@pytest.mark.parametrize(
    "wrong",
    [{}, {"seconds": 0}, {"notes": -1}, {"bars": float("nan")}, {"seconds": float("inf")}, {"seconds": 1, "bars": 1}],
)
def test_lengths_that_are_none_are_refused(wrong):
    with pytest.raises(GenerationError, match="exactly one"):
        Length(**wrong)


@pytest.mark.parametrize("length", [Length(seconds=1e12), Length(bars=1e9), Length(bars=1e308)])
def test_lengths_that_no_file_holds_are_refused(length):
    with pytest.raises(GenerationError, match="longer than a MIDI file"):
        go_on("performance", length, melody())


# Models of other kinds ------------------------------------------------------------------------------------------------


def notes_model(context: int = 32, seed: int = 0) -> ContinuousNotesForCausalLM:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return ContinuousNotesForCausalLM(ContinuousNotesConfig(**sizes, max_position_embeddings=context)).eval()


def masked_model(scheme: str, context: int = 64, seed: int = 0) -> PianoEncoderForMaskedLM:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = PianoEncoderConfig(
        vocab_size=len(tokenizer_of(scheme)), **sizes, max_position_embeddings=context, is_causal=False
    )
    return PianoEncoderForMaskedLM(config).eval()


EXTRACTOR = ContinuousNotesFeatureExtractor()
# Masked schemes whose ids are many for a second of music by chance are left to tests of their own.
OTHERS = {"notes": lambda seed=0: (notes_model(seed=seed), EXTRACTOR)} | {
    scheme: lambda seed=0, scheme=scheme: (masked_model(scheme, seed=seed), tokenizer_of(scheme))
    for scheme in ("performance", "jsb", "remi", "bpe", "MIDILike")
}
EVERY_OTHER = pytest.mark.parametrize("kind", OTHERS)


@EVERY_OTHER
@pytest.mark.parametrize("length", [Length(seconds=1.5), Length(notes=11), Length(bars=1)], ids=str)
def test_any_kind_of_model_continues_an_untouched_prompt_for_the_wanted_length(kind, length):
    prompt, (model, encoder) = melody(), OTHERS[kind]()
    for result in continue_notes(model, encoder, length, prompt, num_samples=2, seed=0, do_sample=True, top_k=0):
        check(result, prompt)
        if length.notes is not None:
            assert len(result.new) == 11
        else:
            assert result.notes.end_tick <= length.end_tick(prompt, prompt.end_tick) + 1


@EVERY_OTHER
def test_any_kind_of_model_begins_from_nothing_and_keeps_to_the_seed(kind):
    model, encoder = OTHERS[kind]()

    def write(seed):
        return continue_notes(model, encoder, Length(notes=9), num_samples=2, seed=seed, temperature=0.9, top_p=0.95)

    first = write(3)
    assert [len(result.notes) for result in first] == [9, 9]
    assert same(first, write(3)) and not same(first, write(4))
    assert not same(first[:1], first[1:])


@EVERY_OTHER
@pytest.mark.parametrize("wrong", [{"num_beams": 3, "do_sample": False}, {"top_k": 4}, {"penalty_alpha": 0.5}])
def test_an_option_that_a_kind_of_model_does_not_know_is_one_clear_error(kind, wrong):
    model, encoder = OTHERS[kind]()
    with pytest.raises(GenerationError, match=f"temperature and top_p: leave out {next(iter(wrong))}$"):
        continue_notes(model, encoder, Length(notes=3), melody(), **wrong)


def test_rows_go_on_after_the_end_of_a_piece_and_their_times_land_on_the_prompts_axis():
    prompt, offset = melody(tempos=TEMPOS), 0.25
    written = [[0.5, 60, 64, 0.2], [0.0, 64, 64, 0.2], [0, 129, 0, 0]]

    class Scripted(torch.nn.Module):
        config = ContinuousNotesConfig(max_position_embeddings=64)
        given: list = []

        def generate(self, rows, max_new_tokens, min_new_tokens, **options):
            self.given.append(rows.numpy())
            first = [[prompt.end_sec - prompt.onset_sec.max() + offset, 67, 64, 0.3]]
            return torch.cat([rows, torch.tensor([(first if len(self.given) == 1 else []) + written])], dim=1)

    Scripted.__name__ = ContinuousNotesForCausalLM.__name__  # by which its objective is known
    model = Scripted()
    result = continue_notes(model, EXTRACTOR, Length(notes=5), prompt)[0]
    check(result, prompt)
    assert result.new["pitch"].tolist() == [67, 60, 64, 60, 64]
    expected = prompt.end_sec + offset + np.array([0, 0.5, 0.5, 1.0, 1.0])
    assert np.abs(result.new.onset_sec - expected).max() < 0.01
    assert np.array_equal(model.given[1], EXTRACTOR.beginning[None])  # another piece, which does not hear the first


def test_a_long_prompt_of_rows_is_windowed_and_said_to_be():
    messages: list[str] = []
    prompt = melody(pitches=list(range(50, 80)))
    continue_notes(notes_model(), EXTRACTOR, Length(notes=3), prompt, seed=0, on_message=messages.append)
    assert messages == ["the prompt has 46 notes: the model hears the last 16 of them"]


@pytest.mark.parametrize("scheme", ["jsb", "remi"])
def test_a_masked_model_keeps_to_the_grammar_from_window_to_window(scheme):
    tokenizer, seen = tokenizer_of(scheme), []
    model = masked_model(scheme)
    refill = model.refill

    def spy(ids, mask, **options):
        filled = refill(ids, mask, **options)
        seen.append(filled[0][mask[0]].tolist())
        return filled

    model.refill = spy
    continue_notes(model, tokenizer, Length(notes=120), seed=0)
    ids = [tokenizer.bos_token_id, *(each for block in seen for each in block)]
    assert len(seen) > 2
    for place in range(1, len(ids)):
        assert tokenizer.allowed_next(ids[:place])[ids[place]]


@pytest.mark.parametrize("tokenizer_class", TOKENIZERS)
def test_a_piece_goes_on_from_a_place_within_it(tokenizer_class):
    tokenizer = tokenizer_class()
    torch.manual_seed(0)
    model = tiny_model(MusicTransformerForCausalLM, len(tokenizer))
    prompt = some_notes(num_notes=40, pitches=(60, 72))
    prompt.table["duration_tick"][0] = 9000  # rings on
    result = continue_notes(model, tokenizer, prompt=prompt, notes=6, start_sec=4.0, seed=0, do_sample=True)[0]
    assert result.kept.table.tolist() == prompt.table[prompt.onset_sec < 4].tolist()
    assert len(result.new) > 0 and result.new.onset_sec.min() >= 4 - 1e-3
