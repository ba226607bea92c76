"""The grammar as a logits processor: only what it allows is ever chosen, and what is chosen decodes."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel, LogitsProcessorList

from pianogen_hf.generation.constraints import GrammarLogitsProcessor
from pianogen_hf.models.configuration_music_transformer import MusicTransformerConfig
from pianogen_hf.models.modeling_music_transformer import MusicTransformerForCausalLM
from pianogen_hf.tokenizers.notes import Notes
from pianogen_hf.tokenizers.tokenization_craykh import CrayKHTokenizer
from pianogen_hf.tokenizers.tokenization_jsb import JSBTokenizer
from pianogen_hf.tokenizers.tokenization_notes import NoteTokenizer
from pianogen_hf.tokenizers.tokenization_performance import PerformanceTokenizer
from pianogen_hf.tokenizers.tokenization_remi import RemiTokenizer

SCHEMES = ("performance 88", "performance 128", "craykh", "jsb", "remi", "remi bpe", "TSD", "MIDILike")
NOTES = Notes.from_columns(480, onset_tick=[0, 0, 480, 960], duration_tick=[480, 960, 240, 480], pitch=[60, 48, 64, 67])


@cache
def tokenizer_of(scheme: str) -> NoteTokenizer:
    if scheme.startswith("performance"):
        return PerformanceTokenizer() if scheme.endswith("88") else PerformanceTokenizer(0, 127)
    if scheme == "remi bpe":
        tokenizer = RemiTokenizer()
        tokenizer.train_bpe([NOTES, NOTES.transposed(1), NOTES.transposed(5)], len(tokenizer) + 20)
        return tokenizer
    ours = {"craykh": CrayKHTokenizer, "jsb": JSBTokenizer, "remi": RemiTokenizer}
    return ours[scheme]() if scheme in ours else RemiTokenizer(scheme=scheme)


@cache
def model_of(kind: str, vocab_size: int) -> torch.nn.Module:
    torch.manual_seed(0)
    sizes = {"vocab_size": vocab_size, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    if kind == "gpt2":
        return GPT2LMHeadModel(GPT2Config(**sizes)).eval()
    config = MusicTransformerConfig(**sizes, intermediate_size=16, max_relative_distance=16)
    return MusicTransformerForCausalLM(config).eval()


def write(
    scheme: str, kind: str = "music_transformer", extra_ids: int = 0, num_ids: int = 200, **options
) -> np.ndarray:
    """So many ids after `<bos>` from a model with random weights, shape (rows, length)."""
    tokenizer = tokenizer_of(scheme)
    grammar = GrammarLogitsProcessor(tokenizer, open_until=[10**9], max_rest=20)
    torch.manual_seed(options.pop("seed", 0))
    options = {"do_sample": True, "top_k": 0, "num_return_sequences": 2, "max_new_tokens": num_ids, **options}
    return (
        model_of(kind, len(tokenizer) + extra_ids)
        .generate(
            torch.tensor([[tokenizer.bos_token_id]]),
            attention_mask=torch.ones(1, 1, dtype=torch.long),
            logits_processor=LogitsProcessorList([grammar]),
            **options,
        )
        .numpy()
    )


def assert_obeys(tokenizer: NoteTokenizer, ids: np.ndarray) -> None:
    for index in range(1, len(ids)):
        assert tokenizer.allowed_next(ids[:index])[ids[index]], index


@pytest.mark.parametrize(
    ("scheme", "kind"),
    [*((scheme, "music_transformer") for scheme in SCHEMES), ("performance 88", "gpt2"), ("jsb", "gpt2")],
)
def test_what_is_sampled_obeys_the_grammar_decodes_and_is_never_silent(scheme, kind):
    tokenizer = tokenizer_of(scheme)
    for ids in write(scheme, kind):
        assert len(ids) == 201 and tokenizer.eos_token_id not in ids
        assert_obeys(tokenizer, ids)
        assert len(tokenizer.decode_notes(ids)) > 3


@pytest.mark.parametrize("scheme", SCHEMES)
def test_beams_obey_the_grammar_and_are_never_silent(scheme):
    tokenizer = tokenizer_of(scheme)
    for ids in write(scheme, do_sample=False, top_k=None, num_beams=3, num_return_sequences=2, num_ids=40):
        assert_obeys(tokenizer, ids)
        # In MIDILike a note whose end is not yet written is none.
        assert scheme == "MIDILike" or len(tokenizer.decode_notes(ids)) > 0


@pytest.mark.parametrize("scheme", ["performance 88", "remi"])
def test_decoded_music_encodes_to_what_was_written(scheme):
    """The grammar allows nothing that no piece has: decoding and encoding gives the ids back, but for the end."""
    tokenizer = tokenizer_of(scheme)
    for ids in write(scheme, seed=5):
        events = ids[1:].tolist()
        again = tokenizer.encode_notes(tokenizer.decode_notes(events))
        same = next((index for index, (a, b) in enumerate(zip(again, events, strict=False)) if a != b), len(events))
        assert same > 190 if scheme == "remi" else same > 20  # notes that sound at the cut shift note-offs


def test_ids_beyond_the_tokenizer_are_forbidden():
    """A model may have more outputs than there are ids, say for a size that is a multiple of 64."""
    assert write("jsb", extra_ids=30, num_ids=20).max() < len(tokenizer_of("jsb"))


@pytest.mark.parametrize("scheme", SCHEMES)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), cut=st.integers(0, 60))
def test_the_processor_leaves_exactly_what_the_grammar_allows(scheme, seed, cut):
    tokenizer = tokenizer_of(scheme)
    rng, ids = np.random.default_rng(seed), [tokenizer.bos_token_id]
    for _ in range(cut):
        ids.append(int(rng.choice(np.flatnonzero(tokenizer.allowed_next(ids)))))
        if ids[-1] == tokenizer.eos_token_id:
            break
    scores = torch.randn(1, len(tokenizer))
    left = GrammarLogitsProcessor(tokenizer)(torch.tensor([ids]), scores)
    allowed = torch.from_numpy(tokenizer.allowed_next(ids))
    assert torch.equal(left[0, allowed], scores[0, allowed])
    assert bool((left[0, ~allowed] == -torch.inf).all()) and bool(allowed.any())


def test_each_row_has_its_own_history():
    """A window begins in the middle: the processor must know which keys are down, here 60 in the first row only."""
    tokenizer = tokenizer_of("performance 88")
    on, shift, velocity = (
        tokenizer.convert_tokens_to_ids(name) for name in ("NOTE_ON_60", "TIME_SHIFT_9", "VELOCITY_20")
    )
    off = tokenizer.convert_tokens_to_ids("NOTE_OFF_60")
    grammar = GrammarLogitsProcessor(tokenizer, [[1, velocity, on], [1, velocity, on, shift, off]])
    for rows in (2, 6):  # six: three beams a row
        left = grammar(torch.full((rows, 1), shift), torch.zeros(rows, len(tokenizer)))
        half = rows // 2
        assert bool((left[:half, off] == 0).all()) and bool((left[half:, off] == -torch.inf).all())
        assert bool((left[:half, on] == -torch.inf).all()) and bool((left[half:, on] == 0).all())


def test_the_end_is_forbidden_only_where_something_else_may_come():
    tokenizer = tokenizer_of("jsb")
    row = torch.tensor([[1, 5, 5, 5, 5]])
    scores = torch.zeros(1, len(tokenizer))
    assert GrammarLogitsProcessor(tokenizer)(row, scores)[0, 2] == 0
    assert GrammarLogitsProcessor(tokenizer, open_until=[10**9])(row, scores)[0, 2] == -torch.inf
    ended = GrammarLogitsProcessor(tokenizer, open_until=[10**9])(torch.tensor([[1, 5, 5, 5, 5, 2]]), scores)
    assert torch.isfinite(ended).nonzero()[:, 1].tolist() == [tokenizer.pad_token_id]


@pytest.mark.parametrize(
    ("scheme", "rest"),
    [
        ("performance 88", "TIME_SHIFT_100"),
        ("craykh", " "),
        ("jsb", "REST"),
        ("remi", "Bar_None"),
        ("TSD", "TimeShift_1.0.8"),
    ],
)
def test_after_a_long_rest_a_note_must_come(scheme, rest):
    tokenizer = tokenizer_of(scheme)
    rest_id, before = tokenizer.convert_tokens_to_ids(rest), tokenizer.encode_prompt(NOTES)
    names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    grammar = GrammarLogitsProcessor(tokenizer, [before], open_until=[10**9], max_rest=8)
    ending = next(count for count, index in enumerate(before[::-1]) if not grammar._is_rest[index])  # with rests
    for count, may_rest in ((7, True), (8, False)):
        left = grammar(torch.full((1, count - ending), rest_id), torch.zeros(1, len(tokenizer)))[0]
        left_names = {names[index] for index in torch.isfinite(left).nonzero().flatten().tolist()}
        assert any(name.startswith(tokenizer.rest_prefixes) for name in left_names) == may_rest, count
        assert any(not name.startswith(tokenizer.rest_prefixes) for name in left_names)


def test_learnt_ids_that_hold_a_note_are_no_rests():
    tokenizer = tokenizer_of("remi bpe")
    grammar = GrammarLogitsProcessor(tokenizer, max_rest=2)
    names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    with_notes = [index for index, name in enumerate(names) if name.startswith("Bar") and "Pitch" in name]
    assert with_notes and not grammar._is_rest[with_notes].any()
    assert grammar._is_rest[names.index("Bar_None")]
