"""Models of one size: the width at which an architecture has a wanted number of parameters.

Layers and heads stay what they are; the width is a multiple of the heads, and the feed-forward part keeps its
proportion to it as nearly as the wanted number allows. Sizes are known by the names that configuration classes of
transformers give them (`attribute_map`), so any architecture will do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from pianogen_hf.errors import PianogenError

# What configuration classes call the width of the feed-forward part; no `attribute_map` tells of it everywhere.
_FEED_FORWARD_NAMES = ("intermediate_size", "n_inner", "ffn_dim", "d_ff", "encoder_ffn_dim")
_USUAL_FEED_FORWARD = 4  # times the width, where a configuration leaves it open (None)
_MAX_WIDTH = 65_536
_TOLERANCE = 0.05  # a share of the wanted number: further away, sizes are not matched
# The feed-forward part may leave its proportion this far, so that the number of parameters is met. Where heads are
# many for a small model, widths lie far apart.
_LEAST_FEED_FORWARD, _MOST_FEED_FORWARD = 0.5, 2.0

Build = Callable[[Mapping[str, Any]], PreTrainedModel]


class SizeError(PianogenError):
    """No width gives the wanted number of parameters; the message is one line that says what to do."""


def meta_model(build: Build, settings: Mapping[str, Any]) -> PreTrainedModel:
    """The model without any memory for its weights.

    Args:
        build: makes a model of settings of its configuration.
        settings: these.
    """
    with torch.device("meta"):
        return build(settings)


def sizes_of(config: PreTrainedConfig) -> dict[str, int]:
    """Width, layers, heads and width of the feed-forward part, under the names that transformers documents."""
    name = _feed_forward_name(config)
    width = int(config.hidden_size)
    feed_forward = getattr(config, name) if name else None
    return {
        "hidden_size": width,
        "num_hidden_layers": int(config.num_hidden_layers),
        "num_attention_heads": int(config.num_attention_heads),
        "intermediate_size": int(feed_forward or _USUAL_FEED_FORWARD * width),
    }


def parameters_of(model: PreTrainedModel) -> dict[str, int]:
    """Number of parameters, each counted once where weights are tied: all, and without embedding tables."""
    return {
        "total": model.num_parameters(),
        "without_embeddings": model.num_parameters(exclude_embeddings=True),
    }


def match_parameters(
    build: Build, settings: Mapping[str, Any], target: int, layers: int | None = None, heads: int | None = None
) -> dict[str, Any]:
    """Settings of a model of the same depth with about `target` parameters, embeddings included.

    Args:
        build: makes a model of settings of its configuration class; runs on the meta device.
        settings: those of the recipe; its proportion of feed-forward part to width is kept, roughly.
        target: the number of parameters wanted.
        layers: instead of the recipe's.
        heads: instead of the recipe's.

    Returns:
        The settings with another width and feed-forward part, by the configuration's own names.

    Raises:
        SizeError: if even the smallest width has more, or none has as many.
    """
    scale = _Scale(meta_model(build, settings).config, settings, layers, heads)

    def count(width: int, feed_forward: int | None = None) -> int:
        return meta_model(build, scale.settings(width, feed_forward)).num_parameters()

    best: tuple[float, int, int] | None = None
    for width in _nearest_widths(count, scale.step, target):
        feed_forward = _fitted_feed_forward(count, width, scale.feed_forward(width), target)
        miss = abs(count(width, feed_forward) - target)
        if best is None or miss < best[0]:
            best = miss, width, feed_forward
    assert best is not None
    if best[0] > _TOLERANCE * target:
        raise SizeError(
            f"{target:,} parameters can't be met with {scale.heads} heads: {count(*best[1:]):,} are the nearest; ask "
            "for more, or set fewer layers or heads"
        )
    return scale.settings(*best[1:])


class _Scale:
    """Settings of one architecture at other widths."""

    def __init__(
        self, config: PreTrainedConfig, settings: Mapping[str, Any], layers: int | None, heads: int | None
    ) -> None:
        names = config.attribute_map
        kept = {names.get(name, name): value for name, value in settings.items()}
        self._width_name, self._feed_forward_name = names.get("hidden_size", "hidden_size"), _feed_forward_name(config)
        for name in (self._width_name, self._feed_forward_name, "head_dim"):
            kept.pop(name or "", None)  # the size of a head follows from the width
        if heads is not None and "num_key_value_heads" in kept:  # in the recipe's proportion
            kept["num_key_value_heads"] = max(1, heads * kept["num_key_value_heads"] // config.num_attention_heads)
        for name, value in (("num_hidden_layers", layers), ("num_attention_heads", heads)):
            if value is not None:
                kept[names.get(name, name)] = value
        self._settings, self._sizes = kept, sizes_of(config)
        self.heads = heads or self._sizes["num_attention_heads"]
        self.step = 2 * self.heads  # rotary positions want heads of even size

    def feed_forward(self, width: int) -> int:
        """The feed-forward part in the recipe's proportion to the width."""
        return max(1, round(width * self._sizes["intermediate_size"] / self._sizes["hidden_size"]))

    def settings(self, width: int, feed_forward: int | None = None) -> dict[str, Any]:
        sizes = {self._width_name: width}
        if self._feed_forward_name:
            sizes[self._feed_forward_name] = feed_forward or self.feed_forward(width)
        return {**self._settings, **sizes}


def _nearest_widths(count: Callable[[int], int], step: int, target: int) -> list[int]:
    """The two multiples of `step` next to the target, the nearer one first: parameters become more with the width."""
    low, high = step, 2 * step
    while count(high) < target:
        low, high = high, 2 * high
        if high > _MAX_WIDTH:
            raise SizeError(f"no width up to {_MAX_WIDTH:,} gives {target:,} parameters: ask for fewer")
    while high - low > step:
        middle = (low + high) // 2 // step * step
        low, high = (middle, high) if count(middle) < target else (low, middle)
    return sorted((low, high), key=lambda width: abs(count(width) - target))


def _feed_forward_name(config: PreTrainedConfig) -> str | None:
    return next((name for name in _FEED_FORWARD_NAMES if hasattr(config, name)), None)


def _fitted_feed_forward(count: Callable[..., int], width: int, proportional: int, target: int) -> int:
    """The feed-forward part that meets the target best: the number of parameters is linear in it."""
    base = count(width, proportional)
    each = count(width, proportional + 1) - base
    if each <= 0:
        return proportional
    wanted = proportional + round((target - base) / each)
    least, most = round(_LEAST_FEED_FORWARD * proportional), round(_MOST_FEED_FORWARD * proportional)
    return max(1, min(max(wanted, least), most))
