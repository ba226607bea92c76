"""Decoding with ONNX Runtime: an exported Music Transformer behind the arguments of `generate` that music uses.

What a step costs on a CPU is reading the weights, so everything else is kept out of it: keys and values are written
into one buffer per layer where they lie, inputs and outputs are bound by address, and only the length changes.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteriaList

from pianogen_hf.generation.drawing import draw
from pianogen_hf.generation.onnx.graph import CACHE_SLACK, Scales, fill_placement, placement
from pianogen_hf.generation.onnx.session import bind, exported_file, open_session, opening
from pianogen_hf.models.configuration_music_transformer import MusicTransformerConfig

_CHUNK = 128  # tokens of a prompt at a time: more would compute much of the future, which is masked
_DEFAULTS = {"do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0}  # those of transformers


class OnnxEngine:
    """A causal Music Transformer that generates as its torch model does, faster.

    Args:
        graph: What `build_graph` built, or a path to it.
        config: The model's configuration.
        generation_config: Defaults of `generate`; None for those of the configuration.
        num_threads: Threads within an operator; None for as many as torch has.

    Raises:
        EngineError: If another version has exported the graph.

    Attributes:
        config: As given.
        generation_config: As given.
        device: Always the CPU.
    """

    def __init__(
        self,
        graph: str | Path | bytes,
        config: MusicTransformerConfig,
        generation_config: GenerationConfig | None = None,
        *,
        num_threads: int | None = None,
    ) -> None:
        self.session = open_session(graph, placement(), num_threads)
        self.config = config
        self.generation_config = generation_config or GenerationConfig.from_model_config(config)
        self.device = torch.device("cpu")

    @classmethod
    def from_pretrained(cls, name: str | Path, precision: str = "float32", **kwargs: Any) -> OnnxEngine:
        """Open what `pianogen export` wrote.

        Args:
            name: Model folder or Hub id.
            precision: "float32" or "int8".
            **kwargs: As for the class.

        Raises:
            EngineError: If there is no such model, or it was not exported with this precision.
        """
        path = exported_file(name, precision)
        with opening(path):
            config = MusicTransformerConfig.from_pretrained(str(name))
            return cls(path, config, GenerationConfig.from_pretrained(str(name)), **kwargs)

    def logits(self, input_ids: np.ndarray) -> np.ndarray:
        """Logits after every token, without sampling.

        Args:
            input_ids: Shape `(length,)`.

        Returns:
            Shape `(length, vocab_size)`, float32.
        """
        return Decoder(self, 1, len(input_ids)).read(0, input_ids)

    def generate(
        self,
        inputs: torch.Tensor,
        *,
        max_new_tokens: int,
        attention_mask: torch.Tensor | None = None,
        do_sample: bool | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        num_return_sequences: int = 1,
        eos_token_id: int | list[int] | None = None,
        pad_token_id: int | None = None,
        logits_processor: LogitsProcessorList | None = None,
        stopping_criteria: StoppingCriteriaList | None = None,
    ) -> torch.Tensor:
        """Continue token ids as `model.generate` of transformers does; with the same seed, the same way.

        Args:
            inputs: Prompts, shape `(prompts, length)`, without padding.
            max_new_tokens: How many ids to write at most.
            attention_mask: Only ones, or None.
            do_sample: Whether to draw from `torch`'s generator (see `torch.manual_seed`) or take the likeliest id.
            temperature: As in transformers, like the next two; None for the generation config's.
            top_k: 0 for all.
            top_p: 1 for all.
            num_return_sequences: How many rows for each prompt.
            eos_token_id: Id or ids that end a row; None for the generation config's.
            pad_token_id: What follows in rows that have ended.
            logits_processor: Applied before temperature, top_k and top_p.
            stopping_criteria: Asked after each id; they get None for the scores.

        Returns:
            Prompts and what follows, shape `(prompts * num_return_sequences, at most length + max_new_tokens)`.

        Raises:
            ValueError: If prompts are padded or empty, or if `max_new_tokens` is below 1.
        """
        if inputs.numel() == 0 or max_new_tokens < 1:
            raise ValueError("a prompt needs at least one id, and max_new_tokens must be at least 1")
        if attention_mask is not None and not attention_mask.all():
            raise ValueError("the engine takes no padding: give prompts of one length")
        sampling = self._sampling(do_sample, temperature, top_k, top_p)
        eos_token_id = eos_token_id if eos_token_id is not None else self.generation_config.eos_token_id
        ends = np.ravel([] if eos_token_id is None else eos_token_id)
        pad = pad_token_id if pad_token_id is not None else (self.generation_config.pad_token_id or 0)
        return self._write(
            inputs.repeat_interleave(num_return_sequences, 0),
            num_return_sequences,
            max_new_tokens,
            list(logits_processor or []),  # a LogitsProcessorList would inspect their signatures each time
            sampling,
            (ends, pad),
            stopping_criteria or StoppingCriteriaList(),
        )

    def _sampling(
        self, do_sample: bool | None, temperature: float | None, top_k: int | None, top_p: float | None
    ) -> tuple[float, int, float] | None:
        """Temperature, top_k and top_p of the distribution that an id is drawn from; None if none is drawn."""
        given = {"do_sample": do_sample, "temperature": temperature, "top_k": top_k, "top_p": top_p}
        kept = {name: getattr(self.generation_config, name, None) for name in given}
        chosen: dict[str, Any] = dict(_DEFAULTS)
        for settings in (kept, given):
            chosen.update({name: value for name, value in settings.items() if value is not None})
        if not chosen["do_sample"]:
            return None
        if not (chosen["temperature"] > 0 and chosen["top_k"] >= 0 and 0 <= chosen["top_p"] <= 1):
            raise ValueError("temperature must be above 0, top_k at least 0 (all ids), and top_p between 0 and 1")
        return float(chosen["temperature"]), int(chosen["top_k"]), float(chosen["top_p"])

    @torch.inference_mode()
    def _write(
        self,
        prompts: torch.Tensor,
        repeats: int,
        max_new_tokens: int,
        processors: list[LogitsProcessor],
        sampling: tuple[float, int, float] | None,
        ends_and_pad: tuple[np.ndarray, int],
        stopping_criteria: StoppingCriteriaList,
    ) -> torch.Tensor:
        (num_rows, length), (ends, pad) = prompts.shape, ends_and_pad
        ids: Any = torch.full((num_rows, length + max_new_tokens), pad, dtype=torch.long)
        ids[:, :length] = prompts
        written = ids.numpy()  # the same memory
        unfinished = np.ones(num_rows, dtype=bool)
        decoder = Decoder(self, num_rows, length + max_new_tokens)
        logits = decoder.read_prompts(prompts.numpy(), repeats)
        for place in range(length, length + max_new_tokens):
            scores: Any = torch.from_numpy(logits)  # may be written to: the next step overwrites it anyway
            for processor in processors:
                scores = processor(ids[:, :place], scores)
            tokens = scores.numpy().argmax(-1) if sampling is None else draw(scores.numpy(), *sampling)
            written[:, place] = np.where(unfinished, tokens, pad)
            unfinished &= ~(written[:, place, None] == ends).any(-1)
            if stopping_criteria:
                unfinished &= ~stopping_criteria(ids[:, : place + 1], None).numpy()
            if not unfinished.any() or place + 1 == ids.shape[1]:
                return ids[:, : place + 1]
            logits = decoder.step(written[:, place])
        return ids


class Decoder:
    """Keys and values of some rows of equal length, and what is bound to the session.

    Args:
        engine: Whose graph is run.
        num_rows: How many sequences.
        capacity: How long they can become.
    """

    def __init__(self, engine: OnnxEngine, num_rows: int, capacity: int) -> None:
        self.session, config = engine.session, engine.config
        self.num_rows, self.length, self.vocab_size = num_rows, 0, config.vocab_size
        self.num_distances = config.max_relative_distance
        slots = capacity if config.attention_window is None else config.attention_window + CACHE_SLACK
        types = {each.name: each.type for each in self.session.get_inputs()}
        self.dtype = np.float32 if types["past_key.0"] == "tensor(float)" else np.int8
        shape = (num_rows, config.num_attention_heads, slots, config.hidden_size // config.num_attention_heads)
        names = [f"{kind}.{layer}" for layer in range(config.num_hidden_layers) for kind in ("key", "value")]
        self.cache = {name: np.zeros(shape, self.dtype) for name in names}
        self.total_length = np.zeros((), np.int32)
        self.last_key = np.zeros(num_rows, np.int32)
        self.placement = placement()
        self.token = np.zeros((num_rows, 1), np.int64)
        self.next_logits = np.zeros((num_rows, 1, self.vocab_size), np.float32)
        self.binding = self._bound(slice(None), self.token, self.next_logits)

    def read_prompts(self, prompts: np.ndarray, repeats: int = 1) -> np.ndarray:
        """Read prompts, of which each stands `repeats` times in succession.

        Args:
            prompts: Shape `(num_rows, length)`, int64.
            repeats: How many copies follow one another: they are read once.

        Returns:
            Logits of the next token, shape `(num_rows, vocab_size)`.
        """
        for row in range(0, self.num_rows, repeats):
            self.length = 0
            self.next_logits[row : row + repeats] = self.read(row, prompts[row])[-1]
            for buffer in self.cache.values():
                buffer[row + 1 : row + repeats] = buffer[row]
        return self.next_logits[:, 0]

    def read(self, row: int, ids: np.ndarray) -> np.ndarray:
        """Append ids to one row; logits after each, shape `(length, vocab_size)`."""
        logits = np.empty((1, len(ids), self.vocab_size), np.float32)
        for begin in range(0, len(ids), _CHUNK):
            chunk = np.array(ids[None, begin : begin + _CHUNK], dtype=np.int64)
            part = logits[:, begin : begin + chunk.shape[1]]
            self._run(self._bound(slice(row, row + 1), chunk, part), 1, chunk.shape[1])
        return logits[0]

    def step(self, ids: np.ndarray) -> np.ndarray:
        """Append one id to each row.

        Args:
            ids: Shape `(num_rows,)`.

        Returns:
            Logits of the next token, shape `(num_rows, vocab_size)`: a buffer that the next step overwrites.
        """
        self.token[:, 0] = ids
        self._run(self.binding, self.num_rows, 1)
        return self.next_logits[:, 0]

    def _run(self, binding: Any, num_rows: int, length: int) -> None:
        self.length += length
        self.total_length[...] = self.length
        self.last_key[:] = self.length - 1
        fill_placement(self.placement, num_rows, length, self.length, self.num_distances)
        self.session.run_with_iobinding(binding)

    def _bound(self, rows: slice, ids: np.ndarray, logits: np.ndarray) -> Any:
        """Bind all that the graph reads and writes, for some rows; only the values change from call to call."""
        binding = self.session.io_binding()
        lengths = {"total_length": self.total_length, "last_key": self.last_key[rows]}
        for name, array in {"input_ids": ids, **lengths, **self.placement}.items():
            bind(binding.bind_input, name, array)
        for name, buffer in self.cache.items():
            bind(binding.bind_input, f"past_{name}", buffer[rows])
            bind(binding.bind_output, f"present_{name}", buffer[rows])
        bind(binding.bind_output, "logits", logits)
        return binding


def cache_scales(engine: OnnxEngine, rows: Iterable[np.ndarray]) -> Scales:
    """Scales with which keys and values of 8 bits cover those of a float32 engine.

    Args:
        engine: The float32 engine.
        rows: Typical token ids.

    Returns:
        Per layer the scales of keys and values, shape `(num_heads, head_dim)`.
    """
    config = engine.config
    largest = np.zeros((config.num_hidden_layers, 2, config.num_attention_heads, 1), np.float32)
    for ids in rows:
        decoder = Decoder(engine, 1, len(ids))
        for begin in range(0, len(ids), CACHE_SLACK):  # so few that even a window still holds them all
            decoder.read(0, ids[begin : begin + CACHE_SLACK])
            cached = np.stack([np.abs(buffer[0]).max(1) for buffer in decoder.cache.values()])
            largest = np.maximum(largest, cached.reshape(*largest.shape[:3], -1))
    return [(keys, values) for keys, values in np.where(largest > 0, largest, 1) / 127]
