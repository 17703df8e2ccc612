"""Where a Hugging Face image-text model keeps its decoder layers."""

from dataclasses import dataclass

import torch
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


def first_tensor(args: tuple, kwargs: dict) -> Tensor | None:
    """Give the first tensor that a module was called with."""
    return next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)


def replace_tensor(args: tuple, kwargs: dict, old: Tensor, new: Tensor) -> tuple[tuple, dict]:
    """Give a call's arguments with another tensor in the place of one of them."""
    return (
        tuple(new if value is old else value for value in args),
        {name: new if value is old else value for name, value in kwargs.items()},
    )


def in_layout_of(tensor: Tensor, values: Tensor) -> Tensor:
    """Give values of a tensor's shape in its type, device and strides, with which kernels round as they do for it."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device).copy_(values)
