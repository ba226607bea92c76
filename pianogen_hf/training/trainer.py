"""The Trainer: label smoothing that stays out of evaluation, and metrics that mean the same for every tokenizer."""

from __future__ import annotations

import logging
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import EvalPrediction, GenerationConfig, PreTrainedModel, Trainer
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalLoopOutput, HubStrategy, SchedulerType
from transformers.utils.hub import PushInProgress

from pianogen_hf.errors import ArgumentError, FileError
from pianogen_hf.folders import disk_is_full
from pianogen_hf.training.arguments import MUON, PianoTrainingArguments
from pianogen_hf.training.callbacks import EpochCallback
from pianogen_hf.training.collator import IGNORED
from pianogen_hf.training.mixing import MixtureSampler
from pianogen_hf.training.muon import make_muon


class PianoTrainer(Trainer):
    """A `Trainer` for next-token models of music.

    Differs from its parent in six points: label smoothing is applied to the shifted labels of any causal model and to
    training only; evaluation reports nats per token, next-token accuracy and bits per note; every checkpoint is
    complete with what tells of its data; what a checkpoint does not say of generation is set to sampling; to the Hub
    goes what `publish` sends, never the whole folder; and it knows Muon (see `muon.py`) and a decay at the end. It can
    also be told how to draw train examples.

    Args:
        eval_notes: notes in the reference pieces of the evaluation set, for bits per note.
        write_beside: called with the folder of every checkpoint, before it counts as one.
        mixture: draws train examples in the place of the Trainer's own sampler.
        publish: called with a model folder and the title of the commit, on the main process; sends to the Hub what of
            it may go there.
        **kwargs: as for `Trainer`.
    """

    args: PianoTrainingArguments

    def __init__(
        self,
        *,
        eval_notes: int,
        write_beside: Callable[[Path], None] | None = None,
        mixture: MixtureSampler | None = None,
        publish: Callable[[Path, str], None] | None = None,
        **kwargs: Any,
    ) -> None:
        self.eval_notes, self.write_beside, self.mixture, self.publish = eval_notes, write_beside, mixture, publish
        super().__init__(
            compute_loss_func=self._next_token_loss,
            compute_metrics=self._metrics,
            preprocess_logits_for_metrics=token_scores,  # type: ignore[arg-type]
            **kwargs,
        )
        if isinstance(self.model, PreTrainedModel) and self.model.can_generate():
            _sample_by_default(self.model.generation_config)
        changing = [each.set_epoch for each in self._changing() if hasattr(each, "set_epoch")]
        if changing:
            self.add_callback(EpochCallback(*changing))

    def _changing(self) -> list[Any]:
        """What may be other in every epoch."""
        return [self.train_dataset, self.data_collator, self.mixture]

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """As the parent, which takes a tied weight that is stored once for one that is missing."""
        tied = getattr(self.model, "all_tied_weights_keys", None) or {}
        load_result.missing_keys[:] = [key for key in load_result.missing_keys if key not in tied]
        super()._issue_warnings_after_load(load_result)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        return super()._get_train_sampler(train_dataset) if self.mixture is None else self.mixture

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """The parent's, or Muon with AdamW, which the parent does not know."""
        if self.optimizer is None and self.args.optim == MUON:
            adam_lr = self.args.adam_learning_rate
            self.optimizer = make_muon(
                model or self.model,  # type: ignore[arg-type]
                lr=self.args.learning_rate,
                adam_lr=self.args.learning_rate / 5 if adam_lr is None else adam_lr,
                weight_decay=self.args.weight_decay,
            )
        return super().create_optimizer(model)

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """The parent's, with a decay over the last steps where a share of them is set aside for it."""
        if self.args.decay_share is not None:
            self.args.lr_scheduler_type = SchedulerType.WARMUP_STABLE_DECAY
            num_decay_steps = round(self.args.decay_share * num_training_steps)
            self.args.lr_scheduler_kwargs = {"num_decay_steps": num_decay_steps, "decay_type": "linear"}
        return super().create_scheduler(num_training_steps, optimizer)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """As the parent, but what the run is asked for now holds, and not what it was asked for before."""
        asked = [{name: value for name, value in group.items() if name != "params"} for group in self._groups()]
        super()._load_optimizer_and_scheduler(checkpoint)
        scheduler: Any = self.lr_scheduler
        schedule = getattr(scheduler, "lr_lambdas", None)
        if checkpoint is None or schedule is None:
            return
        for group, options in zip(self._groups(), asked, strict=True):
            group.update(options)
        scheduler.base_lrs = [group["initial_lr"] for group in asked]
        for group, rate, share in zip(self._groups(), scheduler.base_lrs, schedule, strict=True):
            group["lr"] = rate * share(scheduler.last_epoch)
        scheduler._last_lr = [group["lr"] for group in self._groups()]  # what is logged

    def _groups(self) -> list[dict[str, Any]]:
        """Groups of parameters of the optimizer, each with its options."""
        assert self.optimizer is not None
        return self.optimizer.param_groups

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        """As the parent, but a resumed run logs, saves and evaluates as often as it is asked to now.

        Raises:
            ArgumentError: if it is to end before the step that it has reached.
        """
        warns = logging.getLogger("transformers.trainer_utils")  # of what would else hold no longer
        warns.disabled, before = True, warns.disabled
        try:
            reached = super()._init_training_state(*args, **kwargs)
        finally:
            warns.disabled = before
        step, end = self.state.global_step, self.state.max_steps
        if step > end:
            raise ArgumentError(
                f"the run to resume is at step {step}, and is to end at step {end} now: ask for more max_steps (or "
                "num_train_epochs), or name an earlier checkpoint"
            )
        self.state.compute_steps(self.args, end)
        return reached

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """As the parent, but a run that was killed after its last step takes no further one."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def get_train_dataloader(self) -> DataLoader:
        """The parent's, with a generator of its own: making workers must not change what dropout draws next."""
        loader = super().get_train_dataloader()
        getattr(loader, "base_dataloader", loader).generator = torch.Generator()
        return loader

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """The parent's, but never compiled: batches of other shapes would each be compiled for a minute or two."""
        with torch.compiler.set_stance("force_eager"):
            return super().evaluation_loop(*args, **kwargs)

    def get_eval_dataloader(self, eval_dataset: str | Dataset | None = None) -> DataLoader:
        """The parent's, with batches as `_eval_collator` makes them."""
        for_training = self.data_collator
        self.data_collator = self._eval_collator()
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = for_training

    def _eval_collator(self) -> Any:
        """What makes batches of evaluation: what makes those of training, where a subclass does not say otherwise."""
        return self.data_collator

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """As the parent, but where the disk is full nothing half-written is left.

        Raises:
            FileError: in one line, where the disk is full.
        """
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError, SafetensorError) as error:
            folder = Path(str(self.args.output_dir), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
            if not disk_is_full(error, folder.parent):
                raise
            shutil.rmtree(folder, ignore_errors=True)
            raise FileError(
                f"{folder} can't be written (No space left on device): make room, and --resume_from_checkpoint true "
                "resumes from the checkpoint before it"
            ) from error

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.write_beside is not None:
            self.write_beside(Path(str(output_dir or self.args.output_dir)))

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Nothing to do: whoever gives `publish` has made the repository."""
        self.push_in_progress: Any = None

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: the card is made from what was measured, and the parent's would overwrite it."""

    def push_to_hub(  # type: ignore[override]
        self, commit_message: str = "End of training", blocking: bool = True
    ) -> None:
        """Save the model and publish `output_dir`; to be called in all processes.

        Args:
            commit_message: title of the commit.
            blocking: only True; the process may end right afterwards.
        """
        if self.publish is None or not blocking:
            raise ValueError("PianoTrainer pushes with `publish`, and waits for it")
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        self.save_model(_internal_call=True)
        if self.is_world_process_zero():
            self._finish_current_push()
            self.publish(Path(str(self.args.output_dir)), commit_message)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Publish a checkpoint while training continues; to fail at that is no reason to stop."""
        if self.publish is None or self.args.hub_strategy == HubStrategy.END or not self.is_world_process_zero():
            return
        if self.push_in_progress and not self.push_in_progress.is_done():
            if not self.args.hub_always_push:
                return
            self._finish_current_push()
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        # Links keep the files when the Trainer deletes the checkpoint for a later one.
        kept = Path(tempfile.mkdtemp(prefix=".push-", dir=self.args.output_dir))
        for path in Path(checkpoint_folder).iterdir():
            if path.is_file() and path.suffix not in (".pt", ".pth", ".bin"):
                _link(path, kept / path.name)
        executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="push")
        title = f"Training in progress, step {self.state.global_step}"
        self.push_in_progress = PushInProgress([executor.submit(self._publish_quietly, kept, title)])  # type: ignore[arg-type]
        executor.shutdown(wait=False)

    def _publish_quietly(self, folder: Path, title: str) -> None:
        assert self.publish is not None
        try:
            self.publish(folder, title)
        except Exception as error:  # of any kind: this is beside the training
            print(f"{title}: {' '.join(str(error).split())}; training continues", file=sys.stderr)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _next_token_loss(
        self,
        outputs: CausalLMOutputWithPast,
        labels: torch.Tensor,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Cross-entropy of the shifted labels, scalar; divided by the items of the whole accumulated batch if given."""
        assert outputs.logits is not None
        targets = labels[:, 1:]
        logits = outputs.logits[:, : targets.shape[1]]  # the last one predicts nothing, where there is one
        total = F.cross_entropy(
            logits.flatten(0, 1).float(),
            targets.flatten(),
            ignore_index=IGNORED,
            label_smoothing=self.args.label_smoothing_factor,
            reduction="sum",
        )
        return total / (num_items_in_batch if num_items_in_batch is not None else (targets != IGNORED).sum())

    def _metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        nats, is_right = prediction.predictions  # type: ignore[misc]
        counted = np.asarray(prediction.label_ids)[:, 1:] != IGNORED
        num_tokens = max(int(counted.sum()), 1)
        total_nats = float(np.where(counted, nats, 0).sum(dtype=np.float64))
        return {
            # Takes the place of the Trainer's own `eval_loss`: a smoothed mean of batch means of unequal weight.
            "loss": total_nats / num_tokens,
            "nats_per_token": total_nats / num_tokens,
            "accuracy": float(np.where(counted, is_right, 0).sum()) / num_tokens,
            "bits_per_note": total_nats / math.log(2) / max(self.eval_notes, 1),
        }


def _sample_by_default(generation_config: GenerationConfig) -> None:
    """Let `generate()` draw where a checkpoint does not say how: the likeliest music soon goes in circles.

    The temperature is said, too, because pipelines have one of their own.
    """
    if generation_config.do_sample is None:
        generation_config.update(do_sample=True, temperature=1.0, top_p=0.95)


def _link(path: Path, target: Path) -> None:
    try:
        os.link(path, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(path, target)


def token_scores(logits: Any, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Per prediction its negative log-likelihood in nats and whether the likeliest token is right.

    Args:
        logits: shape (batch, length, vocab), or a tuple that begins with it; the last one may be left out.
        labels: shape (batch, length); `IGNORED` entries give 0.

    Returns:
        Two float32 tensors of shape (batch, length - 1): so small that a whole evaluation set stays in memory.
    """
    targets = labels[:, 1:]
    logits = (logits[0] if isinstance(logits, tuple) else logits)[:, : targets.shape[1]].float()
    nats = F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=IGNORED, reduction="none")
    return nats, (logits.argmax(-1) == targets).float()
