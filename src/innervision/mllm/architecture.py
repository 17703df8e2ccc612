"""Where a Hugging Face image-text model keeps its decoder layers and its vision stage."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from innervision.errors import InnerVisionError


@dataclass(frozen=True)
class Decoder:
    """The language model's stack of layers."""

    module: nn.Module
    """The module that runs the layers and the final norm; its output holds the last hidden state."""
    layers: nn.ModuleList
    """The decoder layers, in order."""
    states_are_outputs: bool
    """Whether `hidden_states[k]` is the output of layer k (as Transformers records it by hooks) or, in models that
    collect the tuple themselves, the input of layer k+1. The two differ in models that add to the states between
    two layers."""


def find_decoder(model: PreTrainedModel) -> Decoder:
    """Find the decoder layers through `get_decoder()`.

    Raises:
        InnerVisionError: the model is an encoder-decoder, or holds no list of as many layers as its text
            configuration says.
    """
    name = type(model).__name__
    if model.config.is_encoder_decoder:
        raise InnerVisionError(f"{name} is an encoder-decoder; only decoder-based image-text models can be probed")
    depth = getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", None)
    decoder = model.get_decoder()
    for module in decoder.modules():
        for child in module.children():
            if isinstance(child, nn.ModuleList) and len(child) == depth:
                recorded = getattr(module, "_can_record_outputs", None) or {}
                return Decoder(module, child, states_are_outputs="hidden_states" in recorded)
    raise InnerVisionError(
        f"{name}: get_decoder() gives {type(decoder).__name__}, which holds no list of {depth} layers "
        "(text_config.num_hidden_layers); this model cannot be probed"
    )


@dataclass(frozen=True)
class VisionStage:
    """The vision tower and the modules beside it, the first of which to run after the tower is the projector."""

    tower: nn.Module
    neighbours: list[nn.Module]


def find_vision_stage(model: PreTrainedModel, decoder: Decoder) -> VisionStage:
    """Find the vision tower through `get_encoder("image")`.

    Raises:
        InnerVisionError: the model has no vision tower of its own (the decoder reads pixels directly).
    """
    tower = model.get_encoder("image")
    holds_decoder = any(module is decoder.module for module in tower.modules())
    if holds_decoder:
        raise InnerVisionError(
            f"{type(model).__name__} has no vision tower that hands features to a projector, "
            "so there is no layer -1 (vision); ask for layers from 0 on"
        )
    parent = next(module for module in model.modules() if any(child is tower for child in module.children()))
    neighbours = [
        child
        for child in parent.children()
        if child is not tower and not any(module is decoder.module for module in child.modules())
    ]
    return VisionStage(tower, neighbours)


def first_tensor(args: tuple, kwargs: dict) -> Tensor | None:
    """Give the first tensor that a module was called with."""
    return next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)


def handed_over(tower_output: Any, args: tuple, kwargs: dict) -> Tensor | None:
    """Give what a module received from the vision tower.

    That is the tower's own output, where it is among the tensors that the module was called with, else the first
    of them (the output of an inner layer, cropped or shuffled).
    """
    features = getattr(tower_output, "last_hidden_state", None)
    values = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    return next((value for value in values if value is features), first_tensor(args, kwargs))
