"""A pipeline of transformers that continues music: `pipeline("midi-generation", model=...)`.

It travels with checkpoints, and needs of them the tokenizer or feature extractor alone. Where the package is installed
it is registered, and no code of a checkpoint is run; elsewhere config.json names it, and `trust_remote_code=True` lets
it be run. What else can be done with a piece (filling, varying ...) takes the package: a pipeline has one task.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessor, LogitsProcessorList, Pipeline, StoppingCriteria, StoppingCriteriaList

_CHECK_EVERY = 16  # tokens between two looks at how long the music has become
_MOST = 1 << 14  # tokens or notes of music that is measured in seconds


class MidiGenerationPipeline(Pipeline):
    """Goes on with a piece of music, or begins one from nothing.

    What it takes is a path or the bytes of a MIDI file, `Notes`, a list of these, or None. For each of them it gives a
    dict, or a list of `num_return_sequences` dicts:

        notes       all of the music, as `Notes`, with the prompt as the model heard it
        new_notes   the number of notes after the prompt
        midi        the same as the bytes of a MIDI file

    Options, when it is made or called: `seconds` of new music (20 by default), or `max_new_tokens` (of models of notes:
    notes); `seed`; and what `generate` of the model takes, such as `temperature` and `top_p`. Whatever tokens are
    written obey the tokenizer's grammar, and are no more than fit into the model's context.
    """

    _load_processor: Any = False
    _load_image_processor: Any = False
    _load_video_processor: Any = False
    _load_feature_extractor: Any = None  # one of these two there is
    _load_tokenizer: Any = None

    def _sanitize_parameters(
        self, seconds: float | None = None, seed: int | None = None, **options: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if seconds is not None and not 0 < seconds < float("inf"):
            raise ValueError(f"seconds must be more than 0, got {seconds}")
        forward = {"seconds": seconds, "seed": seed, **options}
        return {}, {name: value for name, value in forward.items() if value is not None}, {}

    def __call__(self, inputs: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Go on with music; see the class."""
        if isinstance(inputs, (list, tuple)):
            return [super(MidiGenerationPipeline, self).__call__(_Music(each), *args, **kwargs) for each in inputs]
        return super().__call__(_Music(inputs), *args, **kwargs)

    @property
    def _encoder(self) -> Any:
        encoder = self.feature_extractor if self.tokenizer is None else self.tokenizer
        if encoder is None or not hasattr(encoder, "decode_notes"):
            raise ValueError("this model has no tokenizer or feature extractor of music")
        return encoder

    def preprocess(self, input_: Any, **preprocess_parameters: Any) -> dict[str, Any]:
        """The model's inputs, cut to the latest half of its context where they would fill it."""
        music, encoder = input_.music, self._encoder
        music = Path(music) if isinstance(music, str) else music
        name = encoder.model_input_names[0]
        if music is None:
            return {name: torch.from_numpy(encoder.beginning)[None]}
        rows = {"is_prompt": True} if name == "input_values" else {}
        steps = encoder(music, return_tensors="pt", **rows)[name]
        room = int(self.model.config.max_position_embeddings) // 2
        if name == "input_ids" and steps.shape[1] > room:
            unit = encoder.cut_unit(room)
            steps = steps[:, -(-(steps.shape[1] - room) // unit) * unit :]
        return {name: steps}

    def _forward(self, input_tensors: Any, **options: Any) -> Any:
        (name, steps), seed = next(iter(input_tensors.items())), options.pop("seed", None)
        if name == "input_values":
            seconds = options.pop("seconds", None if "max_new_tokens" in options else 20.0)
            if seconds is not None:
                options = {"max_new_tokens": _MOST, "max_new_seconds": seconds, **options}
            model: Any = self.model
            return {"steps": model.generate(steps, seed=seed, **options), "prompt": steps}
        write = self._write_events if steps.ndim == 3 else self._write_tokens
        return {"steps": write(steps, seed, **options), "prompt": steps}

    def _write_events(self, rows: torch.Tensor, seed: int | None, seconds: float | None = None, **options: Any) -> Any:
        """Rows of tokens, by a `generate` that holds itself to the grammar; no more than fit into the context."""
        model: Any = self.model
        if seconds is None and "max_new_tokens" in options:
            return model.generate(rows, seed=seed, **options)
        room = int(model.config.max_position_embeddings) - rows.shape[1]
        until = self._encoder.decode_notes(rows[0]).end_sec + (20.0 if seconds is None else seconds)
        while room > 0 and min(self._encoder.decode_notes(each).end_sec for each in rows) < until:
            size = min(_CHECK_EVERY, room)
            rows = model.generate(rows, seed=seed, max_new_tokens=size, **options)
            options["num_return_sequences"], seed, room = 1, None if seed is None else seed + 1, room - size
        return rows

    def _write_tokens(self, ids: torch.Tensor, seed: int | None, seconds: float | None = None, **options: Any) -> Any:
        tokenizer, context = self._encoder, int(self.model.config.max_position_embeddings)
        if seed is not None:
            torch.manual_seed(seed)
        room = max(context - ids.shape[1], 1)
        if seconds is None and "max_new_tokens" not in options:
            seconds = 20.0
        stops = [] if seconds is None else [_LongEnough(tokenizer, ids, seconds)]
        options = {"do_sample": "num_beams" not in options, "max_new_tokens": room, **options}
        options["max_new_tokens"] = min(options["max_new_tokens"], room)
        model: Any = self.model
        return model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            logits_processor=LogitsProcessorList([_Grammar(tokenizer)]),
            stopping_criteria=StoppingCriteriaList(stops),
            **options,
        )

    def postprocess(self, model_outputs: Any, **kwargs: Any) -> Any:
        """Music of the tokens or rows."""
        encoder = self._encoder
        heard = len(encoder.decode_notes(model_outputs["prompt"][0]))
        results = []
        for steps in model_outputs["steps"]:
            notes = encoder.decode_notes(steps)
            results.append({"notes": notes, "new_notes": len(notes) - heard, "midi": encoder.to_midi(notes)})
        return results[0] if len(results) == 1 else results


class _Music:
    """One input, wrapped: pipelines take lists and generators apart, and call what is None missing."""

    def __init__(self, music: Any) -> None:
        self.music = music


class _Grammar(LogitsProcessor):
    """Only tokens that the tokenizer allows next."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> Any:
        forbidden = np.ones(scores.shape, dtype=bool)
        for row, ids in enumerate(input_ids.cpu().numpy()):
            allowed = self.tokenizer.allowed_next(ids)
            forbidden[row, : len(allowed)] = ~allowed
        return scores.masked_fill(torch.from_numpy(forbidden).to(scores.device), -torch.inf)


class _LongEnough(StoppingCriteria):
    """Stops each row once its music is so many seconds longer than the prompt."""

    def __init__(self, tokenizer: Any, prompt: torch.Tensor, seconds: float) -> None:
        self.tokenizer, self.calls = tokenizer, 0
        self.end_sec = tokenizer.decode_notes(prompt[0]).end_sec + seconds

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> Any:
        self.calls += 1
        done = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        if self.calls % _CHECK_EVERY == 0:
            for row, ids in enumerate(input_ids):
                done[row] = self.tokenizer.decode_notes(ids).end_sec >= self.end_sec
        return done


__all__ = ["MidiGenerationPipeline"]
