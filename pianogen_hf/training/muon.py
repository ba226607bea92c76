"""Muon for matrices, AdamW for the rest, as one optimizer with one schedule.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) steps along the nearest orthogonal matrix of the
momentum; it is for the matrices of hidden layers. Embeddings, output layers, biases and gains are AdamW's.

torch's own Muon computes in bfloat16 on every machine. A CPU without instructions for it takes 16 times as long for
that as in float32, and a step of a small model is then mostly the optimizer's; so the step is done here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D


def has_fast_bf16(device_type: str) -> bool:
    """Whether devices of this type ("cuda", "cpu" ...) compute in bfloat16 faster than in float32, on this machine."""
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


class Muon(torch.optim.Muon):
    """torch's Muon, with its step in the faster precision."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step."""
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(matrix.grad)
                buffer = state["momentum_buffer"].lerp_(matrix.grad, 1 - group["momentum"])
                update = matrix.grad.lerp(buffer, group["momentum"])
                direction = orthogonalized(update, group["ns_coefficients"], group["ns_steps"])
                rate = group["lr"] * math.sqrt(max(1, matrix.shape[0] / matrix.shape[1]))
                matrix.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-rate)


def orthogonalized(matrix: torch.Tensor, coefficients: tuple[float, float, float], num_steps: int) -> torch.Tensor:
    """A matrix with the same singular vectors and all singular values near 1 (about 0.7 to 1.2), by Newton and Schulz.

    Args:
        matrix: (rows, columns).
        coefficients: of the polynomial of degree five that pushes singular values up.
        num_steps: how often it does.

    Returns:
        (rows, columns), in bfloat16 where that is fast, else in float32.
    """
    linear, cubic, quintic = coefficients
    x = matrix.to(torch.bfloat16 if has_fast_bf16(matrix.device.type) else torch.float32)
    is_tall = x.shape[0] > x.shape[1]
    x = x.mT if is_tall else x
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(num_steps):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=cubic, alpha=quintic), x, beta=linear)
    return x.mT if is_tall else x


class MuonWithAdamW(torch.optim.Optimizer):
    """Both optimizers over one list of parameter groups and one state.

    So a scheduler, a checkpoint and accelerate see an ordinary optimizer.

    Args:
        matrices: for Muon, of two dimensions.
        others: for AdamW.
        lr: of Muon. A step of it changes a matrix by about `lr` in every direction.
        adam_lr: of AdamW.
        weight_decay: of both, times their learning rate.
        betas: of AdamW.
        momentum: of Muon.
    """

    def __init__(
        self,
        matrices: list[nn.Parameter],
        others: list[nn.Parameter],
        *,
        lr: float,
        adam_lr: float,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.95),
        momentum: float = 0.95,
    ) -> None:
        self._muon = Muon(matrices, lr=lr, weight_decay=weight_decay, momentum=momentum)
        self._adamw = torch.optim.AdamW(others, lr=adam_lr, weight_decay=weight_decay, betas=betas)
        groups = [{**group, "is_muon": True} for group in self._muon.param_groups]
        groups += [{**group, "is_muon": False} for group in self._adamw.param_groups]
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of both."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for inner, is_muon in ((self._muon, True), (self._adamw, False)):
            # Loading a state replaces groups and state, so what is shared is shared anew.
            inner.param_groups = [group for group in self.param_groups if group["is_muon"] is is_muon]
            inner.state = self.state
            inner.step()
        return loss


def make_muon(model: nn.Module, **kwargs: Any) -> MuonWithAdamW:
    """The optimizer for a model: Muon takes the matrices of linear layers between hidden states, GPT-2's `Conv1D` too.

    Args:
        model: its embeddings and what makes logits are left to AdamW: layers in modules that are called `embed...`, the
            output embeddings of a model of transformers, and layers that are called `fc2` of a head.
        **kwargs: see [`MuonWithAdamW`].
    """
    outer = {id(layer) for layer in _outer_layers(model)}
    matrices: dict[int, nn.Parameter] = {
        id(layer.weight): layer.weight  # type: ignore[misc]
        for layer in model.modules()
        if isinstance(layer, (nn.Linear, Conv1D)) and layer.weight.requires_grad and id(layer) not in outer
    }
    others = [each for each in model.parameters() if each.requires_grad and id(each) not in matrices]
    return MuonWithAdamW(list(matrices.values()), others, **kwargs)


def _outer_layers(model: nn.Module) -> list[nn.Module]:
    """Layers whose inputs are values and no hidden states, or whose outputs are logits or what a distribution needs."""
    outer = [module for name, module in model.named_modules() if "embed" in name or name.endswith("_head.fc2")]
    output = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    return outer if output is None else [*outer, output]
