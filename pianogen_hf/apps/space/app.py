"""A page that works on a visitor's piano music: continues it, fills it, varies it ...

`python app.py` runs it here; on the Hub it runs as a Space.

`pianogen space` copies this file as it is. Title, words and model come from the front matter of README.md beside it.
"""

from __future__ import annotations

import random
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
import torch
from huggingface_hub import SpaceCard

from pianogen_hf.errors import PianogenError
from pianogen_hf.generation.continuation import Continuation, GenerationError, Length, continue_notes
from pianogen_hf.generation.filling import fill_notes
from pianogen_hf.generation.harmonising import harmonise_notes
from pianogen_hf.generation.note_verbs import GUIDANCE_SCALE, accompany_notes, takes_given
from pianogen_hf.generation.varying import vary_notes
from pianogen_hf.models.note_controls import KINDS, PITCH_NAMES
from pianogen_hf.models.objectives import ANY_ORDER, objective_of
from pianogen_hf.rendering.audio import save_wav
from pianogen_hf.rendering.piano_roll import save_piano_roll
from pianogen_hf.tokenizers.midi import MidiError, read_midi, write_midi
from pianogen_hf.tokenizers.notes import Notes
from pianogen_hf.tokenizers.tokenization_jsb import JSBTokenizer
from pianogen_hf.workflows.loading import load_model

# What a Space on a free CPU can bear, and a visitor who waits in line.
MAX_LENGTH, MAX_IDEAS = 30, 4  # seconds or bars of new music at a time
MAX_PIECE_SEC, MAX_PIECE_NOTES = 240, 10_000  # prompt included; a minute of sound is 11 MB
MAX_WAIT_SEC = 180
KEPT_SEC = 3600  # of uploads, results and what a visitor has made so far

HERE = Path(__file__).parent
CARD = SpaceCard.load(HERE / "README.md").data
MODEL = HERE / "model" if (HERE / "model").is_dir() else CARD.models[0]
FILES = tempfile.TemporaryDirectory(prefix="pianogen-")

torch.set_num_threads(
    1
)  # models as small as these gain little from a second thread, and lose with it on a busy machine
model, tokenizer = load_model(MODEL)
IS_ASKED = takes_given(model)  # whether density, key ... can be asked of it

CONTINUE, END, FILL, VARY, ACCOMPANY, HARMONISE = "Continue", "End", "Fill", "Vary", "Accompany", "Harmonise"
ANY = "any"  # of keys and kinds of music


def verbs() -> list[str]:
    """What the model can do."""
    if IS_ASKED:
        return [CONTINUE, END, FILL, VARY, ACCOMPANY, HARMONISE]
    if objective_of(model) == ANY_ORDER:
        return [CONTINUE, FILL]
    return [CONTINUE, HARMONISE] if isinstance(tokenizer, JSBTokenizer) else [CONTINUE]


def example_prompts() -> list[list[str]]:
    """Two prompts made here: chords in four voices, and a tune in eighths; each as the row of a table of examples."""
    chords = [(48, 64, 67, 72), (53, 65, 69, 72), (55, 62, 67, 71), (48, 64, 67, 72)] * 2
    tune = [60, 64, 67, 72, 71, 67, 65, 62, 64, 67, 72, 76, 74, 71, 67, 65]
    four_voices = Notes.from_columns(
        480,
        onset_tick=[480 * beat for beat in range(8) for _ in range(4)],
        duration_tick=[480] * 32,
        pitch=[pitch for chord in chords for pitch in chord],
    )
    eighths = Notes.from_columns(
        480, onset_tick=[240 * i for i in range(16)], duration_tick=[240] * 16, pitch=tune, velocity=80
    )
    rows = []
    for name, notes in (("chords", four_voices), ("tune", eighths)):
        path = Path(FILES.name, f"{name}.mid")
        write_midi(notes, path)
        rows.append([str(path)])
    return rows


def read_prompt(path: str | None) -> Notes | None:
    """The uploaded prompt; None if there is none.

    Raises:
        MidiError: if it is no MIDI file. GenerationError: if it holds no piano notes.
    """
    if path is None:
        return None
    name = Path(path).name
    try:
        notes = read_midi(Path(path).read_bytes())
    except MidiError as error:
        raise MidiError(f"{name}{str(error).removeprefix('MIDI bytes')}") from error
    if not len(notes):
        why = "only instruments other than a piano" if notes.excluded_notes else "no notes"
        raise GenerationError(f"{name} has {why}: upload a MIDI file with piano notes, or none")
    return notes


def check_size(prompt: Notes | None) -> None:
    """Raise a GenerationError if the prompt is more than can be continued here."""
    if prompt is None:
        return
    if prompt.end_sec > MAX_PIECE_SEC:
        raise GenerationError(
            f"this piece lasts {prompt.end_sec:.0f} s, and up to {MAX_PIECE_SEC} s can be continued here: "
            "upload a shorter prompt, or start over"
        )
    if len(prompt) > MAX_PIECE_NOTES:
        raise GenerationError(f"this piece has {len(prompt):,} notes; up to {MAX_PIECE_NOTES:,} can be continued here")


class Round(NamedTuple):
    """What one press of Generate or Extend has made, which of it the visitor looks at, and by what verb."""

    ideas: list[Continuation]
    chosen: int = 0
    verb: str = CONTINUE


class Knobs(NamedTuple):
    """What a visitor can turn, in the order of the page."""

    amount: float
    unit: str
    ideas: int
    temperature: float
    top_p: float
    new_seed: bool
    seed: int | None
    verb: str = CONTINUE
    first_bar: float = 1
    last_bar: float = 4
    strength: float = 0.5
    side: str = "below"
    density: float = 0
    register: float = 0
    loudness: float = 0
    key: str = ANY
    kind: str = ANY
    chords: str | None = ""  # nothing, as long as nobody has typed
    creativity: float = 0
    guidance_scale: float = GUIDANCE_SCALE

    @property
    def wishes(self) -> dict[str, Any]:
        """What is asked of the new notes; 0 and "any" ask nothing."""
        if not IS_ASKED:
            return {}
        numbers = {name: getattr(self, name) or None for name in ("density", "register", "loudness")}
        words = {name: None if getattr(self, name) == ANY else getattr(self, name) for name in ("key", "kind")}
        creativity = {"creativity": self.creativity} if self.creativity else {}
        chords = (self.chords or "").strip() or None
        return {**numbers, **words, "chords": chords, **creativity, "guidance_scale": self.guidance_scale}


def compose(prompt: Notes | None, knobs: Knobs, seed: int, tell: Callable[..., Any]) -> list[Continuation]:
    """As many ideas as are wanted.

    Raises:
        GenerationError: if that can't be done with the prompt, or it takes longer than a visitor may.
    """
    if prompt is None and knobs.verb != CONTINUE:
        raise GenerationError(f"there is nothing to {knobs.verb.lower()}: upload a MIDI file")
    check_size(prompt)
    end = time.monotonic() + MAX_WAIT_SEC

    def on_progress(share: float) -> None:
        if time.monotonic() > end:
            raise GenerationError(f"this takes more than {MAX_WAIT_SEC} s: ask for less music, or fewer ideas")
        tell(share, desc="Composing")

    options: dict[str, Any] = {"num_samples": int(knobs.ideas), "seed": seed, "on_progress": on_progress}
    options |= {"do_sample": True, "temperature": knobs.temperature, "top_p": knobs.top_p, "top_k": 0, **knobs.wishes}
    if prompt is None or knobs.verb in (CONTINUE, END):
        length = Length(seconds=knobs.amount) if knobs.unit == "seconds" else Length(bars=knobs.amount)
        return continue_notes(model, tokenizer, length, prompt, end=knobs.verb == END, **options)
    if knobs.verb == HARMONISE:
        return harmonise_notes(model, tokenizer, prompt, **options)
    bars = int(knobs.first_bar), int(knobs.last_bar)
    if knobs.verb == FILL:
        return fill_notes(model, tokenizer, prompt, bars=bars, **options)
    if knobs.verb == VARY:
        return vary_notes(model, tokenizer, prompt, bars=bars, strength=knobs.strength, **options)  # type: ignore[arg-type]
    return accompany_notes(model, tokenizer, prompt, knobs.side, bars=bars, **options)  # type: ignore[arg-type]


def show(history: list[Round]) -> dict[Any, Any]:
    """The page after these rounds, of which it shows the last."""
    ideas, chosen, verb = history[-1] if history else Round([])
    page = {
        rounds: history,
        extend: gr.update(interactive=bool(ideas)),
        undo: gr.update(interactive=len(history) > 1),
        idea: gr.update(
            choices=[(f"Idea {i + 1}", i) for i in range(len(ideas))],
            value=chosen if ideas else None,
            visible=len(ideas) > 1,
        ),
    }
    if not ideas:
        return {**page, roll: None, audio: None, download: gr.update(value=None, interactive=False), message: WELCOME}
    result = ideas[chosen]
    folder = fresh_folder()
    write_midi(result.notes, folder / "piano.mid")
    goes_on = verb in (CONTINUE, END)
    drawn, place = (result.notes, result.prompt_end_sec or None) if goes_on else (result.marked, None)
    save_piano_roll(drawn, folder / "piano.png", prompt_end_sec=place, around_sec=10.0)
    sec = result.notes.end_sec - result.prompt_end_sec
    said = f"in {sec:.1f} s" if goes_on else f"beside {len(result.notes) - len(result.new)} as they were"
    return {
        **page,
        roll: str(folder / "piano.png"),
        audio: str(save_wav(result.notes, folder / "piano.wav")),
        download: gr.update(value=str(folder / "piano.mid"), interactive=True),
        message: f"{len(result.new)} new notes {said}. Extend continues from here.",
    }


def fresh_folder() -> Path:
    """A folder for what one click makes; it goes once Gradio has made its own copies."""
    folder = Path(tempfile.mkdtemp(dir=FILES.name))
    removal = threading.Timer(60, shutil.rmtree, (folder, True))
    removal.daemon = True
    removal.start()
    return folder


def next_round(
    history: list[Round], prompt_of: Callable[[], Notes | None], knobs: Knobs, tell: Callable[..., Any]
) -> dict[Any, Any]:
    """The page after another round; what a visitor can mend is said in one line, and all else stays as it was."""
    seed = random.randrange(2**31) if knobs.new_seed or knobs.seed is None else int(knobs.seed)
    try:
        page = show([*history, Round(compose(prompt_of(), knobs, seed, tell), verb=knobs.verb)])
    except PianogenError as error:
        return {message: f"**Error:** {error}"}
    return {**page, seed_box: seed, message: f"{page[message]} The seed was {seed}."}


# Gradio hands in its progress bar where the default stands.
def on_generate(history: list[Round], file: str | None, tell: Any = gr.Progress(), *knobs: Any) -> dict:  # noqa: B008
    """A round from the uploaded prompt, or from nothing."""
    return next_round(history, lambda: read_prompt(file), Knobs(*knobs), tell)


def on_extend(history: list[Round], tell: Any = gr.Progress(), *knobs: Any) -> dict:  # noqa: B008
    """A round that continues from the idea that is shown."""
    if not history:  # kept for an hour, and not over a restart
        return {**show([]), message: "**Error:** what was here is gone: press Generate"}
    ideas, chosen, _ = history[-1]
    return next_round(history, lambda: ideas[chosen].notes, Knobs(*knobs)._replace(verb=CONTINUE), tell)


def on_choose(history: list[Round], chosen: int) -> dict:
    """The same round, but another idea."""
    return show([*history[:-1], *(each._replace(chosen=chosen) for each in history[-1:])])


def on_undo(history: list[Round]) -> dict:
    """The round before."""
    return show(history[:-1])


def on_start_over() -> dict:
    """As if the page had just been opened, but for the knobs."""
    return {**show([]), prompt_file: None}


def on_verb(chosen: str) -> dict:
    """The knobs that a verb has."""
    has_bars = chosen in (FILL, VARY, ACCOMPANY)
    return {
        new_music: gr.update(visible=chosen in (CONTINUE, END)),
        passage: gr.update(visible=has_bars),
        strength: gr.update(visible=chosen == VARY),
        side: gr.update(visible=chosen == ACCOMPANY),
    }


WELCOME = (
    "Upload a MIDI file to continue, or none for a piece from nothing, and press Generate. "
    "Of a long piece the model hears the end."
)
KEYS = [ANY, *(f"{tonic} {mode}" for mode in ("major", "minor") for tonic in PITCH_NAMES)]

with gr.Blocks(title=CARD.title, delete_cache=(600, KEPT_SEC), analytics_enabled=False) as demo:
    rounds = gr.State([], time_to_live=KEPT_SEC)
    gr.Markdown(f"# {CARD.title}\n{CARD.short_description}")
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            prompt_file = gr.File(label="MIDI prompt (optional)", file_types=[".mid", ".midi"], height=150)
            gr.Examples(example_prompts(), prompt_file, label="Prompts to try")
            verb = gr.Dropdown(verbs(), value=CONTINUE, label="What to do", visible=len(verbs()) > 1)
            with gr.Row() as new_music:
                amount = gr.Slider(1, MAX_LENGTH, 12, step=1, label="New music", min_width=200)
                unit = gr.Radio(["seconds", "bars"], value="seconds", label="Measured in", min_width=180)
            with gr.Row(visible=False) as passage:
                first_bar = gr.Number(1, label="From bar", precision=0, minimum=1, min_width=120)
                last_bar = gr.Number(4, label="To bar", precision=0, minimum=1, min_width=120)
            strength = gr.Slider(
                0, 1, 0.5, step=0.05, label="Strength", info="The share of notes that are new", visible=False
            )
            side = gr.Radio(["below", "above"], value="below", label="Write it", visible=False)
            ideas = gr.Slider(1, MAX_IDEAS, 1, step=1, label="Ideas", info="Different versions to choose from")
            with gr.Accordion("Ask for", open=False, visible=IS_ASKED):
                density = gr.Slider(0, 20, 0, step=0.5, label="Density", info="Notes per second; 0 for any")
                register = gr.Slider(0, 108, 0, step=1, label="Register", info="Mean pitch, 60 is middle C; 0 for any")
                loudness = gr.Slider(0, 127, 0, step=1, label="Loudness", info="Mean velocity; 0 for any")
                with gr.Row():
                    key = gr.Dropdown(KEYS, value=ANY, label="Key", min_width=120)
                    kind = gr.Dropdown([ANY, *KINDS], value=ANY, label="Kind of music", min_width=120)
                guidance_scale = gr.Slider(
                    0,
                    5,
                    GUIDANCE_SCALE,
                    step=0.25,
                    label="Guidance",
                    info="How much is made of the above; 1 for little",
                )
                chords = gr.Textbox(
                    label="Chords", placeholder="Cm7 | Fm7 | G7 | Cm", info='A bar between two lines, or "prompt"'
                )
                creativity = gr.Slider(0, 1, 0, step=0.05, label="Creativity", info="Time passes more seldom")
            with gr.Accordion("More", open=False):
                temperature = gr.Slider(0.1, 2, 1, step=0.05, label="Temperature", info="Below 1 safer, above 1 wilder")
                top_p = gr.Slider(0.05, 1, 0.95, step=0.05, label="Top p", info="Choose among the likeliest only")
                new_seed = gr.Checkbox(True, label="A new seed every time")
                seed_box = gr.Number(
                    0, label="Seed", info="The same seed gives the same music", precision=0, minimum=0, maximum=2**31
                )
            generate = gr.Button("Generate", variant="primary")
        with gr.Column(scale=3, min_width=300):
            message = gr.Markdown(WELCOME, elem_id="message")
            idea = gr.Radio([], label="Idea", visible=False)
            roll = gr.Image(show_label=False, buttons=["fullscreen"], format="png", elem_id="roll")
            audio = gr.Audio(label="Sound", interactive=False, buttons=[], elem_id="audio")
            with gr.Row():
                extend = gr.Button("Extend", variant="primary", interactive=False, min_width=120)
                download = gr.DownloadButton("Download", size="lg", interactive=False, min_width=120)
                undo = gr.Button("Undo", interactive=False, min_width=120)
                start_over = gr.Button("Start over", min_width=120)

    knobs = [amount, unit, ideas, temperature, top_p, new_seed, seed_box, verb, first_bar, last_bar, strength, side]
    knobs += [density, register, loudness, key, kind, chords, creativity, guidance_scale]
    page = [rounds, message, idea, roll, audio, extend, download, undo]
    # One at a time: they share the processor, and the seed is the whole process's.
    heavy: dict[str, Any] = {
        "concurrency_id": "model",
        "concurrency_limit": 1,
        "show_progress_on": roll,
        "scroll_to_output": True,
    }
    generate.click(on_generate, [rounds, prompt_file, *knobs], [*page, seed_box], **heavy)
    extend.click(on_extend, [rounds, *knobs], [*page, seed_box], **heavy)
    verb.input(on_verb, verb, [new_music, passage, strength, side], show_progress="hidden")
    idea.input(on_choose, [rounds, idea], page, show_progress_on=roll)
    undo.click(on_undo, rounds, page, show_progress_on=roll)
    start_over.click(on_start_over, None, [*page, prompt_file], show_progress_on=roll)

if __name__ == "__main__":
    system_fonts = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    demo.queue(max_size=20).launch(theme=system_fonts, max_file_size="1mb", footer_links=["gradio"], ssr_mode=False)
