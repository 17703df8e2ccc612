"""One forward pass of a model, in which each layer's states are shown as soon as they are there."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from innervision.config import VISION
from innervision.errors import InnerVisionError
from innervision.mllm.architecture import Decoder, VisionStage, first_tensor, handed_over
from innervision.mllm.inputs import Inputs, share_out

Visitor = Callable[[int, Tensor, Tensor], None]
"""Called with a layer's number, its states (B, T, D) and a mask (B, T), True = a token the visitor may read."""


class _LastLayerSeen(Exception):
    """Ends the forward pass: nobody asked for what comes after."""


@dataclass
class Walk:
    """One forward pass: notices the states as the modules produce them."""

    name: str
    """Of the model, for errors."""
    decoder: Decoder
    """Its layers."""
    stage: VisionStage | None
    """Its vision stage, where layer -1 is wanted."""
    inputs: Inputs
    """Of the batch."""
    mask: Tensor
    """(B, T) bool, what the visitor is told of the layers 0…L."""
    wanted: set[int]
    """The layers to visit."""
    visitor: Visitor
    """Is called with each of them."""
    seen: set[int] = field(default_factory=set)
    layers_entered: int = 0
    layers_left: int = 0
    tower_output: Any = None

    def run(self, forward: Callable[[], Any]) -> None:
        """Run the model; the pass ends with the last wanted layer.

        Raises:
            InnerVisionError: a layer was not reached, or its states do not belong to the tokens one to one.
        """
        handles = self.hook()
        try:
            forward()
        except _LastLayerSeen:
            return
        finally:
            for handle in handles:
                handle.remove()
        raise InnerVisionError(
            f"{self.name}: the forward pass ended before layers {sorted(self.wanted - self.seen)} were reached"
        )

    def hook(self) -> list[RemovableHandle]:
        decoder = self.decoder
        handles = [decoder.module.register_forward_hook(self.on_decoder_output)]
        for layer in set(decoder.layers):
            handles.append(layer.register_forward_pre_hook(self.on_layer_input, with_kwargs=True))
            handles.append(layer.register_forward_hook(self.on_layer_output))
        if (stage := self.stage) is not None:
            handles.append(stage.tower.register_forward_hook(self.on_tower_output))
            for module in stage.neighbours:
                handles.append(module.register_forward_pre_hook(self.on_neighbour_input, with_kwargs=True))
        return handles

    def on_tower_output(self, module: nn.Module, args: tuple, output: Any) -> None:
        self.tower_output = output

    def on_neighbour_input(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if self.tower_output is not None and VISION not in self.seen:
            self.show_vision(handed_over(self.tower_output, args, kwargs))

    def on_layer_input(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if VISION in self.wanted - self.seen:  # the projector is a part of the tower, which returns both sides of it
            self.show_vision(getattr(self.tower_output, "last_hidden_state", None))
        if self.layers_entered == 0 or not self.decoder.states_are_outputs:
            self.show(self.layers_entered, first_tensor(args, kwargs))
        self.layers_entered += 1

    def on_layer_output(self, module: nn.Module, args: tuple, output: Any) -> None:
        self.layers_left += 1
        if self.decoder.states_are_outputs and self.layers_left < len(self.decoder.layers):
            self.show(self.layers_left, output[0] if isinstance(output, tuple) else output)

    def on_decoder_output(self, module: nn.Module, args: tuple, output: Any) -> None:
        last = getattr(output, "last_hidden_state", None)
        self.show(len(self.decoder.layers), output[0] if last is None else last)

    def show(self, layer: int, states: Tensor | None) -> None:
        if layer not in self.wanted:
            return
        if states is None or states.dim() != 3 or states.shape[:2] != self.mask.shape:
            shape = None if states is None else tuple(states.shape)
            raise InnerVisionError(
                f"{self.name}: layer {layer} has states of shape {shape}, which are not one for each of the "
                f"{tuple(self.mask.shape)} input tokens; this model cannot be probed"
            )
        self.finish(layer, states, self.mask)

    def show_vision(self, features: Tensor | None) -> None:
        pieces = None if features is None else split_by_image(features, self.inputs)
        if pieces is None:
            shape = None if features is None else tuple(features.shape)
            raise InnerVisionError(
                f"{self.name}: cannot tell which of the vision tower's features (shape {shape}) belong to "
                "which image, so layer -1 (vision) cannot be probed; ask for layers from 0 on"
            )
        states = nn.utils.rnn.pad_sequence(pieces, batch_first=True)  # (B, T, D)
        lengths = torch.tensor([len(piece) for piece in pieces], device=states.device)
        self.finish(VISION, states, torch.arange(states.shape[1], device=states.device) < lengths[:, None])

    def finish(self, layer: int, states: Tensor, mask: Tensor) -> None:
        self.seen.add(layer)
        self.visitor(layer, states, mask)
        if layer == max(self.wanted):
            raise _LastLayerSeen


def split_by_image(features: Tensor, inputs: Inputs) -> list[Tensor] | None:
    """Give each image's own part of what the projector receives, (T_i, D) each, or None where it cannot be told.

    Features come by image (B, …, D), by tile (tiles, T, D), or as one sequence for all images (T, D), in which
    images have shares in proportion to their image tokens.
    """
    width = features.shape[-1]
    if features.dim() == 2 or (features.dim() == 3 and len(features) == 1 and len(inputs.mask) > 1):
        shares = share_out(features.numel() // width, inputs.image_mask)
    elif features.dim() == 3 and inputs.tiles is not None and len(features) == int(inputs.tiles.sum()):
        shares = inputs.tiles * features.shape[1]
    elif features.dim() > 3 and len(features) == len(inputs.mask):
        shares = torch.full((len(features),), features[0].numel() // width)
    else:
        return None
    return None if shares is None else list(features.reshape(-1, width).split(shares.tolist()))
