"""Training with a memory: a Trainer that carries it from one batch to the next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from pianogen_hf.errors import ArgumentError
from pianogen_hf.models.segment_memory import SegmentMemory
from pianogen_hf.training.arguments import CONTIGUOUS
from pianogen_hf.training.batching import Segments, WalkSampler
from pianogen_hf.training.trainer import PianoTrainer


class MemoryTrainer(PianoTrainer):
    """A `PianoTrainer` that carries a memory from step to step, in training and in evaluation, for each its own.

    Differs from its parent in the order of examples, in that checkpoints hold the memory (that of the first process in
    `segment_memory_0.safetensors`, and so on), and in that the last id of a segment is a label only: the next segment
    begins with it, so that the memory holds every id once. Evaluation walks through each piece.

    Args:
        batching: "contiguous" or "sequence".
        train_dataset: chunks, as `Segments` takes them.
        eval_dataset: chunks of the pieces, without overlaps.
        args: of the run.
        **kwargs: as for `PianoTrainer`.
    """

    def __init__(self, *, batching: str, train_dataset: Any, eval_dataset: Any, args: Any, **kwargs: Any) -> None:
        train_rows, eval_rows = (size * args.world_size for size in (args.train_batch_size, args.eval_batch_size))
        super().__init__(
            train_dataset=Segments(train_dataset, batching, train_rows, args.seed),
            eval_dataset=Segments(eval_dataset, CONTIGUOUS, eval_rows, None),
            args=args,
            **kwargs,
        )
        self._config = self.accelerator.unwrap_model(self.model).config
        self._train_memory, self._eval_memory = (SegmentMemory(self._config) for _ in range(2))

    def _changing(self) -> list[Any]:
        return [self.train_dataset.sampler]  # type: ignore[union-attr]

    def _get_train_sampler(self, train_dataset: Any = None) -> WalkSampler:
        return self.train_dataset.sampler  # type: ignore[union-attr]

    def _get_eval_sampler(self, eval_dataset: Any) -> WalkSampler:
        return eval_dataset.sampler

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """The parent's, with a memory that is empty at first."""
        self._eval_memory = SegmentMemory(self._config)
        return super().evaluation_loop(*args, **kwargs)

    def compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As the parent, of a batch with `begins`; what it leaves in the memory is there for the next one."""
        memory = self._train_memory if model.training else self._eval_memory
        segment = {name: each for name, each in inputs.items() if name != "begins"}
        segment["input_ids"] = segment["input_ids"][:, :-1]
        segment["attention_mask"] = memory.begin_segment(segment["attention_mask"][:, :-1], inputs["begins"])
        return super().compute_loss(model, {**segment, "past_key_values": memory}, *args, **kwargs)

    # The state of the random numbers is what each process saves of its own, and loads where it goes on.

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        save_file({**self._train_memory.state_dict(), "rows": self._layout()}, self._memory_file(output_dir))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is None:
            return
        file = self._memory_file(checkpoint)
        state = load_file(file) if file.exists() else {}
        if "rows" not in state or not torch.equal(state.pop("rows"), self._layout()):
            raise ArgumentError(
                f"{checkpoint} holds no memory of {self.args.train_batch_size} rows in each of {self.args.world_size} "
                "processes: resume with the batch size and the processes that it began with"
            )
        self._train_memory.load_state_dict({name: each.to(self.args.device) for name, each in state.items()})

    def _memory_file(self, folder: str) -> Path:
        return Path(folder, f"segment_memory_{self.args.process_index}.safetensors")

    def _layout(self) -> torch.Tensor:
        return torch.tensor([self.args.train_batch_size, self.args.world_size])
