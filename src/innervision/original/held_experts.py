"""The expert that a probe checkpoint of the original holds beside its probes, or a file of Depth Anything's authors."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import (
    BaseImageProcessor,
    CLIPVisionModelWithProjection,
    DepthAnythingForDepthEstimation,
    OneFormerModel,
    PreTrainedConfig,
    PreTrainedModel,
)

from innervision.checkpoints.checkpoint import MIRRORS
from innervision.checkpoints.layout import ForeignExpert
from innervision.checkpoints.loading import check_finite, silent_transformers
from innervision.checkpoints.shards import Shards, require_real_weights
from innervision.errors import InnerVisionError, few
from innervision.original import clip_encoder, depth_anything, oneformer

Weights = dict[str, Tensor]


class Held(NamedTuple):
    """How a probe checkpoint holds an expert."""

    title: str
    prefix: str
    """Of the names of its tensors."""
    named_by: str
    """The key of the configuration that names where the expert came from."""
    model_class: type[PreTrainedModel]
    config: Callable[[Weights], PreTrainedConfig]
    """Tells the model's configuration from the shapes of its weights."""
    processor: Callable[[Any], BaseImageProcessor]
    """Makes the image processor that goes with such a model."""
    convert: Callable[[Weights], Weights] = dict
    """Gives the weights the names that Hugging Face has."""
    unneeded: str = "$^"
    """Names of weights and constants that may be missing or too many, since no feature needs them (a regular
    expression)."""


HELD = {
    "depth": Held(
        "Depth Anything V2",
        "dav2_backbone.",
        "depth_estimator",
        DepthAnythingForDepthEstimation,
        depth_anything.make_config,
        depth_anything.make_processor,
        depth_anything.convert,
        unneeded=r".*mask_token$",
    ),
    "seg": Held(
        "OneFormer with a Swin",
        "oneformer.",
        "image_segmentor",
        OneFormerModel,
        oneformer.make_config,
        oneformer.make_processor,
        unneeded=r"pixel_level_module\.encoder\.swin\.(layernorm\.|.*relative_position_index$)",
    ),
    "gen": Held(
        "a CLIP image encoder",
        "gen_encoder.",
        "image_generator",
        CLIPVisionModelWithProjection,
        clip_encoder.make_config,
        clip_encoder.make_processor,
        unneeded=r".*position_ids$",
    ),
}
"""By kind of target, which is the checkpoint's `probe_mode`."""


def read_held_expert(kind: str, source: str, revision: str | None = None) -> ForeignExpert | None:
    """Load the expert that a file or a probe checkpoint holds. See `Layout.read_expert`."""
    if kind not in HELD:
        return None
    held = HELD[kind]
    if kind == "depth" and Path(source).is_file():
        return ForeignExpert(*_load(held, source, Shards(source), prefix=""))
    try:
        config, _ = PreTrainedConfig.get_config_dict(source, revision=revision)
    except OSError:
        return None
    if "probe_mode" not in config or not holds(kind, shards := Shards(source, revision)):
        return None
    named = config.get(held.named_by)
    return ForeignExpert(*_load(held, source, shards, held.prefix), named and find_beside(source, str(named)))


def holds(kind: str, shards: Shards) -> bool:
    """Tell whether a probe checkpoint holds the expert of a kind."""
    return any(key.startswith(HELD[kind].prefix) for key in shards.files)


def find_beside(checkpoint: str, named: str, file: str = "") -> str:
    """Find what a checkpoint names, which may be a path from its own folder or the one that this is in.

    Args:
        checkpoint: a folder or a Hub id.
        named: in its configuration: a file, a folder or a Hub id.
        file: what the folder must hold.

    Returns:
        The path, or else the name as it is; of a model that is gone from the Hub, that of a copy.
    """
    beside = [Path(checkpoint) / named, Path(checkpoint).parent / named] if Path(checkpoint).is_dir() else []
    return next((str(place) for place in (Path(named), *beside) if (place / file).exists()), MIRRORS.get(named, named))


def _load(held: Held, expert: str, shards: Shards, prefix: str) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """Load a model in float32 on the CPU.

    Raises:
        InnerVisionError: naming tensors that are missing, too many or of another shape.
    """
    keys = [key for key in shards.files if key.startswith(prefix)]
    tensors = {key.removeprefix(prefix): value for key, value in shards.read(keys).items()}
    try:
        config = held.config(tensors)
        weights = held.convert(tensors)
        with silent_transformers():
            loaded: Any = held.model_class.from_pretrained(
                None,
                config=config,
                state_dict={key: value.float() for key, value in weights.items()},
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    except (KeyError, ValueError) as error:  # a name that is looked for is not there
        raise InnerVisionError(f"{expert} does not hold {held.title}: it lacks {error}") from error
    model, report = loaded
    require_real_weights(model, weights, expert)
    faults = {
        "has of another shape": {key for key, *_ in report["mismatched_keys"]},
        "lacks": {key for key in report["missing_keys"] if not re.match(held.unneeded, key)},
        "has the unknown": {key for key in report["unexpected_keys"] if not re.match(held.unneeded, key)},
    }
    for fault, names in faults.items():
        if names:
            raise InnerVisionError(f"{expert} does not hold {held.title}: it {fault} {few(names)}")
    check_finite(model, expert)
    return model, held.processor(config)
