"""Continuing a prompt, or beginning from nothing, for a wanted number of seconds, notes or bars."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from transformers import GenerationMixin, LogitsProcessorList, PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from pianogen_hf.generation.chords import ChordTrack, chords_of
from pianogen_hf.generation.constraints import MAX_REST, GrammarLogitsProcessor
from pianogen_hf.generation.event_writer import EventWriter
from pianogen_hf.generation.new_notes import Continuation, GenerationError, Length, NewNotes
from pianogen_hf.generation.note_stream import Controls, num_kept
from pianogen_hf.generation.note_verbs import (
    GUIDANCE_SCALE,
    Samples,
    asked,
    check_takes_given,
    continue_piece,
    held_keys,
    takes_given,
)
from pianogen_hf.generation.passages import bar_start_sec
from pianogen_hf.generation.processors import not_sounding
from pianogen_hf.generation.refill_writer import RefillWriter
from pianogen_hf.generation.row_writer import RowWriter
from pianogen_hf.generation.rules import OF_THE_PROMPT, pitch_rules, token_rules
from pianogen_hf.generation.search import search_of, token_processors
from pianogen_hf.generation.writer import Writer
from pianogen_hf.models.objectives import ANY_ORDER, NEXT_EVENT, NEXT_NOTE, NEXT_TOKEN, PART_FROM_PART, objective_of
from pianogen_hf.tokenizers.feature_extraction_continuous_notes import ContinuousNotesFeatureExtractor
from pianogen_hf.tokenizers.notes import DEFAULT_US_PER_QUARTER, NOTE_DTYPE, PEDAL_DOWN, TEMPO_DTYPE, Notes
from pianogen_hf.tokenizers.notes_encoder import NotesEncoder
from pianogen_hf.tokenizers.tokenization_notes import NoteTokenizer

_MOST_HEARD = 0.9  # share of a prompt's notes; where fewer are heard, it is said
_LONGEST_RING_SEC = 2.0  # that a pedal may hold the last notes of a prompt before new music begins
_TEMPO_BARS = 8  # last bars of a prompt whose tempo is that of new music
_CHECK_EVERY = 16  # tokens between two looks at how long the music has become: decoding costs more than a step


def continue_notes(
    model: PreTrainedModel | GenerationMixin,
    tokenizer: NotesEncoder,
    length: Length | None = None,
    prompt: Notes | None = None,
    *,
    seconds: float | None = None,
    notes: int | None = None,
    bars: float | None = None,
    start_sec: float | None = None,
    from_bar: int | None = None,
    num_samples: int = 1,
    seed: int | None = None,
    density: float | None = None,
    register: float | None = None,
    loudness: float | None = None,
    key: str | None = None,
    kind: str | None = None,
    guidance_scale: float = GUIDANCE_SCALE,
    pitches: Sequence[int] | None = None,
    chords: str | ChordTrack | None = None,
    end: bool = False,
    us_per_quarter: int = DEFAULT_US_PER_QUARTER,
    on_progress: Callable[[float], None] | None = None,
    on_message: Callable[[str], None] | None = None,
    **generate_kwargs: Any,
) -> list[Continuation]:
    """Generate music after a prompt, or from nothing.

    Where prompt and new music outgrow the model's context, generation continues from a window of the latest half of it;
    the grammar still knows all that was written. Where the model ends its piece before there is enough, another one
    begins: held to a piece that is over, a model would hold its last chord for ever.

    Args:
        model: a causal model over the tokenizer's tokens; a `PianoEncoderForMaskedLM`, which writes a window of tokens
            at a time in no order and never the end of a piece; or a `ContinuousNotesForCausalLM`.
        tokenizer: its tokenizer or feature extractor.
        length: how much; or say it by one of `seconds`, `notes` and `bars`, see `Length`.
        prompt: music to continue; its own notes stay as they are in the result. Its pedals come up at its end, at the
            latest two seconds after its last key.
        seconds: see `length`.
        notes: see `length`.
        bars: see `length`.
        start_sec: where new music begins, in seconds, instead of after the prompt's last note: what begins there or
            later is left out, and notes that reach beyond it ring on.
        from_bar: the same by a bar, counted from 1.
        num_samples: how many continuations.
        seed: makes sampling repeatable.
        density: notes per second. It and the next four are asked of a note transformer (V8); see `asked`.
        register: mean pitch. Other models of tokens keep within an octave of it.
        loudness: mean velocity.
        key: such as "C minor". Other models of tokens keep to its scale.
        kind: "classical", "jazz" or "score".
        guidance_scale: how much is made of what is asked (V8); see `asked`.
        pitches: lowest and highest pitch of new notes.
        chords: what new notes are written over, from there on: text such as "Cm7 | Fm7 | G7 | Cm", a bar between two
            lines, repeated when it is over, or "prompt" for those of the prompt. A pitch that does not belong to
            the chord becomes unlikely (V8).
        end: come to an end at the wanted length, a little sooner or later (V8).
        us_per_quarter: tempo of music from nothing.
        on_progress: called with the share that is done of the slowest sample, 0..1, never falling.
        on_message: called with remarks for the user, for example that the prompt was cut.
        **generate_kwargs: as for `model.generate`: temperature, top_p, top_k, num_beams, do_sample ..., and what
            `Search` names besides; masked models and continuous notes take the first two only.

    Returns:
        One `Continuation` per sample, none of them without a new note.

    Raises:
        GenerationError: if the model does not take an option, if the prompt holds nothing that the tokenizer can write,
            if nothing of it stands before the place to continue from, if more is asked for than a MIDI file can
            hold, or if the model stands still.
    """
    length = length or Length(seconds, notes, bars)
    prompt, cut_tick = _cut_prompt(prompt, start_sec, from_bar)
    base, start_tick = _prompt_axis(tokenizer, prompt, us_per_quarter, cut_tick)
    controls = asked(density, register, loudness, key, kind, guidance_scale)
    if takes_given(model):
        assert isinstance(tokenizer, ContinuousNotesFeatureExtractor)
        length.end_tick(base, start_tick)  # refuses what no file can hold before anything else is said
        if prompt is not None:
            _say_what_is_heard(model, len(_prompt_steps(tokenizer, base)) - 1, on_message)
        samples = Samples(model, num_samples, seed, on_progress, search_of(model, generate_kwargs))
        rules = pitch_rules(base, float(base.tick_to_sec(np.array(start_tick))), pitches, _changes(chords, base))
        rules = (not_sounding(held_keys(base)), *rules)
        return continue_piece(samples, tokenizer, length, base, start_tick, end, controls, rules)
    if objective_of(model) == PART_FROM_PART:
        check_takes_given(model)
    is_guided = guidance_scale != GUIDANCE_SCALE
    if end or is_guided or chords is not None or replace(controls, key=None, register=None) != Controls():
        check_takes_given(model)
    if pitches is not None or controls != Controls():
        if objective_of(model) != NEXT_TOKEN:
            check_takes_given(model)
        assert isinstance(tokenizer, NoteTokenizer)
        rules_of_tokens = token_rules(tokenizer, controls.key, controls.register, pitches)
        generate_kwargs["logits_processor"] = [*rules_of_tokens, *generate_kwargs.get("logits_processor", ())]
    if cut_tick is not None:
        base = _shortened(base, cut_tick)
    prompt_steps = tokenizer.beginning if prompt is None else _prompt_steps(tokenizer, base)
    if seed is not None:
        torch.manual_seed(seed)
    music = NewNotes(tokenizer, base, start_tick, prompt_steps, length)
    if on_message is not None and prompt is not None and music.num_heard < _MOST_HEARD * len(prompt):
        on_message(
            f"this prompt is far from the model's music: {type(tokenizer).__name__} hears {music.num_heard} of its "
            f"{len(prompt)} notes"
        )
    writer = WRITERS[objective_of(model)](model, music, on_progress, on_message, generate_kwargs)
    results = [music.result(steps) for steps in writer.write(num_samples)]
    return results if cut_tick is None or prompt is None else [_ringing_on(each, prompt) for each in results]


def extend_notes(model: Any, tokenizer: NotesEncoder, notes: Notes, **options: Any) -> list[Continuation]:
    """Make a piece longer: `continue_notes` after its last note, by `seconds`, `notes` or `bars`.

    Args:
        model: see there.
        tokenizer: see there.
        notes: the piece.
        **options: see there; 8 bars where no length is given.

    Raises:
        GenerationError: see there.
    """
    return continue_notes(model, tokenizer, _length_in(options, 8), notes, **options)


def end_notes(model: Any, tokenizer: NotesEncoder, notes: Notes, **options: Any) -> list[Continuation]:
    """Bring a piece to its close within a number of `bars` or `seconds`, give or take 15 % (V8).

    Args:
        model: a `NoteTransformerForCausalLM`.
        tokenizer: its feature extractor.
        notes: the piece.
        **options: as for `continue_notes`; 4 bars where no length is given.

    Raises:
        GenerationError: see there.
    """
    return continue_notes(model, tokenizer, _length_in(options, 4), notes, end=True, **options)


def _length_in(options: dict[str, Any], bars: float) -> Length | None:
    """Take the length out of options; so many bars if they name none in any way, None if they name it otherwise."""
    length = options.pop("length", None)
    if length is None and not {"seconds", "notes", "bars"} & options.keys():
        return Length(bars=bars)
    return length


def _say_what_is_heard(model: Any, num_notes: int, on_message: Callable[[str], None] | None) -> None:
    """Tell where a note transformer hears the end of a prompt alone."""
    heard = num_kept(model)
    if on_message is not None and heard < num_notes:
        on_message(f"the prompt has {num_notes} notes: the model hears the last {heard} of them")


def _changes(chords: str | ChordTrack | None, prompt: Notes) -> str | ChordTrack | None:
    """Chords; those of the prompt, if they are meant, to be gone through again."""
    return chords_of(prompt) if chords == OF_THE_PROMPT else chords


def _cut_prompt(prompt: Notes | None, start_sec: float | None, from_bar: int | None) -> tuple[Notes | None, int | None]:
    """The prompt without what begins where new music is to begin, and that place in ticks; None at the prompt's end.

    Raises:
        GenerationError: if nothing is left of it, or there is none.
    """
    if start_sec is None and from_bar is None:
        return prompt, None
    if prompt is None or (start_sec is not None and from_bar is not None):
        raise GenerationError("say from where to continue a prompt, by seconds or by a bar")
    start = bar_start_sec(prompt, from_bar) if from_bar is not None else start_sec
    if start is None or not 0 <= start <= prompt.end_sec:
        raise GenerationError(f"{start_sec:g} s is not within the prompt's {prompt.end_sec:.1f} s")
    tick = int(prompt.sec_to_tick(np.array(start)))
    kept = prompt.where(prompt["onset_tick"] < tick)
    if not len(kept):
        raise GenerationError(f"the prompt has no notes before {start:.1f} s: continue from later, or without a prompt")
    return kept, tick


def _shortened(notes: Notes, end_tick: int) -> Notes:
    """Notes that end at a tick at the latest, which all begin before it."""
    table = notes.table.copy()
    table["duration_tick"] = np.minimum(table["duration_tick"], end_tick - table["onset_tick"])
    return replace(notes, table=table)


def _ringing_on(result: Continuation, prompt: Notes) -> Continuation:
    """A result with the prompt's notes as long as they were, without new notes on keys that they still hold."""
    new = result.new
    held = (prompt["pitch"] == new["pitch"][:, None]) & (prompt.offset_tick > new["onset_tick"][:, None])
    new = new.where(~held.any(axis=1))
    return replace(result, notes=replace(result.notes, table=np.concatenate([prompt.table, new.table])), new=new)


def _prompt_axis(
    tokenizer: NotesEncoder, prompt: Notes | None, us_per_quarter: int, cut_tick: int | None = None
) -> tuple[Notes, int]:
    """The notes that new music is appended to, and the tick at which it begins.

    A prompt ends where it is cut, or where its last note does, held by the pedal if the scheme hears the pedal, for as
    long as one listens to a last chord. There all pedals come up, and no later event of them stays: it would blur what
    is generated. New music is in the tempo of the last bars, not in that of the last event, which may be the end of a
    ritardando.
    """
    if prompt is None:
        return Notes(np.zeros(0, NOTE_DTYPE), tempos=np.array([(0, us_per_quarter)], TEMPO_DTYPE)), 0
    start_tick = _end_tick(tokenizer, prompt) if cut_tick is None else cut_tick
    return replace(
        prompt,
        tempos=_tempos_until(prompt, start_tick),
        pedals=_lifted(prompt.pedals, start_tick),
        other_pedals=_lifted(prompt.other_pedals, start_tick),
    ), start_tick


def _end_tick(tokenizer: NotesEncoder, prompt: Notes) -> int:
    if "pedal" in tokenizer.lost_fields:
        return prompt.end_tick
    latest = prompt.sec_to_tick(np.array(prompt.end_sec + _LONGEST_RING_SEC))
    return max(min(prompt.with_sustain().end_tick, int(latest)), prompt.end_tick)


def _tempos_until(prompt: Notes, start_tick: int) -> np.ndarray:
    """The tempo map of the prompt, and from its end on the mean tempo, weighted by time, of its last bars."""
    tempos = prompt.tempos[prompt.tempos["tick"] < max(start_tick, 1)]
    signatures = prompt.time_signatures
    numerator, denominator = signatures[-1].tolist()[1:] if len(signatures) else (4, 4)
    bar_ticks = numerator * 4 / denominator * prompt.ticks_per_quarter
    begin_tick = max(int(start_tick - _TEMPO_BARS * bar_ticks), 0)
    quarters = (start_tick - begin_tick) / prompt.ticks_per_quarter
    if quarters == 0:
        return tempos
    begin_sec, end_sec = prompt.tick_to_sec(np.array([begin_tick, start_tick])).tolist()
    us_per_quarter = round((end_sec - begin_sec) * 1e6 / quarters)
    if abs(us_per_quarter - int(tempos["us_per_quarter"][-1])) <= 1:
        return tempos
    return np.concatenate([tempos, np.array([(start_tick, us_per_quarter)], TEMPO_DTYPE)])


def _lifted(pedals: np.ndarray, tick: int) -> np.ndarray:
    """Pedal events before a tick, at which every pedal that is down comes up."""
    pedals = pedals[pedals["tick"] < tick]
    names = [name for name in pedals.dtype.names or () if name not in ("tick", "value")]  # whose pedal, and which
    last = {tuple(row[name].item() for name in names): row for row in pedals}
    up = np.array([row for row in last.values() if row["value"] >= PEDAL_DOWN], dtype=pedals.dtype)
    up["tick"], up["value"] = tick, 0
    return np.concatenate([pedals, up])


def _prompt_steps(tokenizer: NotesEncoder, prompt: Notes) -> Sequence[int] | np.ndarray:
    try:
        steps = tokenizer.encode_prompt(prompt)
    except ValueError as error:
        raise GenerationError(f"the prompt can't be tokenized: {error}") from error
    if len(tokenizer.decode_notes(steps)) == 0:
        low, high = tokenizer.pitch_range
        raise GenerationError(
            f"the prompt has no notes that {type(tokenizer).__name__} can write (pitches {low}..{high})"
        )
    return steps


class _LongEnough(StoppingCriteria):
    """Stops each row once its music is long enough; looks only every `_CHECK_EVERY` tokens."""

    def __init__(self, are_done: Callable[[np.ndarray], list[bool]]) -> None:
        self.are_done, self.calls = are_done, 0

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> Any:
        self.calls += 1
        done = np.zeros(len(input_ids), dtype=bool)
        if self.calls % _CHECK_EVERY == 0:
            done[:] = self.are_done(input_ids.cpu().numpy())
        return torch.from_numpy(done).to(input_ids.device)


class TokenWriter(Writer):
    """The writer for models that write one token after the other: by their `generate`, constrained by a grammar."""

    encoder: NoteTokenizer

    def _generate(self, rows: Sequence[np.ndarray], samples: list[int]) -> list[np.ndarray]:
        """Write until every row is done, or at the end of its piece, or the context is full."""
        windows = np.stack([self._window(ids) for ids in rows])
        histories = [ids[: len(ids) - windows.shape[1]] for ids in rows]
        open_until = [self._open_until(ids) for ids in rows]

        def are_done(batch: np.ndarray) -> list[bool]:
            # Beams and samples of one row stand together, so the place in the batch tells the row and the sample.
            places = np.arange(len(batch)) / len(batch)
            owners = zip((places * len(samples)).astype(int), (places * len(rows)).astype(int), batch, strict=True)
            return [self._is_done(samples[sample], np.append(histories[row], ids)) for sample, row, ids in owners]

        grammar = GrammarLogitsProcessor(self.encoder, histories, open_until=open_until, max_rest=MAX_REST)
        chosen, options = token_processors(self.encoder, self.options)
        device = self.model.device
        if self.remembers:  # the prompt is read in segments as long as those of training
            options = {"prefill_chunk_size": int(self.model.config.max_position_embeddings) - 1, **options}
        output = self.model.generate(
            torch.from_numpy(windows).to(device),
            attention_mask=torch.ones(windows.shape, dtype=torch.long, device=device),
            max_new_tokens=max(self.context - windows.shape[1], self.encoder.tokens_per_step),
            num_return_sequences=len(samples) // len(rows),
            pad_token_id=self.encoder.pad_token_id,
            eos_token_id=self.encoder.eos_token_id,
            logits_processor=LogitsProcessorList([grammar, *options.pop("logits_processor", ()), *chosen]),
            stopping_criteria=StoppingCriteriaList([_LongEnough(are_done)]),
            **options,
        )
        written = [ids[ids != self.encoder.pad_token_id] for ids in output.cpu().numpy()]
        written = [np.append(ids, self.encoder.bos_token_id) if self._has_ended(ids) else ids for ids in written]
        return [np.append(histories[index * len(rows) // len(written)], ids) for index, ids in enumerate(written)]

    def _has_ended(self, ids: np.ndarray) -> bool:
        return bool(ids[-1] == self.encoder.eos_token_id)


# How a model writes on its own; one that writes notes among given ones does so by `note_verbs.py`.
WRITERS: dict[str, type[Writer]] = {
    NEXT_TOKEN: TokenWriter,
    ANY_ORDER: RefillWriter,
    NEXT_EVENT: EventWriter,
    NEXT_NOTE: RowWriter,
}
