"""One forward pass of a model, in which each layer's states are shown as soon as they are there."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from innervision.config import VISION
from innervision.errors import InnerVisionError, first_line
from innervision.mllm.architecture import Decoder, first_tensor, in_layout_of, replace_tensor
from innervision.mllm.inputs import Inputs
from innervision.mllm.vision import HandOver, VisionStage

Visitor = Callable[[int, Tensor, Tensor], Tensor | None]
"""Called with a layer's number, its states (B, T, D) and a mask (B, T), True = a token the visitor may read. States
(B, T, D) that it returns take the place of those shown: the model goes on with them. None leaves all as it is."""


class _LastLayerSeen(Exception):
    """Ends the forward pass: nobody asked for what comes after."""


class _VisionChanged(Exception):
    """Ends the forward pass, which starts again with other features for the projector."""


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
    visiting: bool = False

    def __post_init__(self) -> None:
        """Watch the vision tower where layer -1 is wanted."""
        self.hand_over = None if self.stage is None else HandOver(self.stage, self.inputs)

    def run(self, forward: Callable[[], Any]) -> None:
        """Run the model; the pass ends with the last wanted layer.

        Raises:
            InnerVisionError: the model fails, a layer was not reached, its states do not belong to the tokens one
                to one, or cannot be changed as the visitor wants it. What the visitor raises passes through.
        """
        handles = self.hook()
        try:
            try:
                forward()
            except _VisionChanged:
                forward()
        except _LastLayerSeen:
            return
        except (InnerVisionError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # a model can raise anything
            if self.visiting:
                raise
            raise InnerVisionError(
                f"{self.name} fails on these inputs: {type(error).__name__}: {first_line(error)}"
            ) from error
        finally:
            for handle in handles:
                handle.remove()
        raise InnerVisionError(
            f"{self.name}: the forward pass ended before layers {sorted(self.wanted - self.seen)} were reached"
        )

    def hook(self) -> list[RemovableHandle]:
        decoder = self.decoder
        handles = [
            decoder.module.register_forward_pre_hook(self.on_decoder_input),
            decoder.module.register_forward_hook(self.on_decoder_output),
        ]
        for layer in set(decoder.layers):
            handles.append(layer.register_forward_pre_hook(self.on_layer_input, with_kwargs=True))
            handles.append(layer.register_forward_hook(self.on_layer_output))
        return handles if self.hand_over is None else handles + self.hand_over.hook()

    def on_decoder_input(self, module: nn.Module, args: tuple) -> None:
        if self.hand_over is not None and self.hand_over.outputs:  # else the tower is a part of this module
            self.show_vision()

    def on_layer_input(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        self.show_vision()
        number = self.layers_entered
        if number == len(self.decoder.layers) or module is not self.decoder.layers[number]:
            raise InnerVisionError(
                f"{self.name} does not run its {len(self.decoder.layers)} decoder layers once each in their order "
                f"(call {number + 1} is of another), so what it computes has no layer numbers; it cannot be probed"
            )
        self.layers_entered += 1
        if number > 0 and self.decoder.states_are_outputs:
            return None
        states = first_tensor(args, kwargs)
        changed = self.show(number, states)
        return None if states is None or changed is None else replace_tensor(args, kwargs, states, changed)

    def on_layer_output(self, module: nn.Module, args: tuple, output: Any) -> Any:
        self.layers_left += 1
        if not self.decoder.states_are_outputs or self.layers_left == len(self.decoder.layers):
            return None
        states, *others = output if isinstance(output, tuple) else (output,)
        changed = self.show(self.layers_left, states)
        return (changed, *others) if changed is not None and isinstance(output, tuple) else changed

    def on_decoder_output(self, module: nn.Module, args: tuple, output: Any) -> None:
        if self.layers_left < len(self.decoder.layers):
            return  # `run` names the layers that were not reached
        last = getattr(output, "last_hidden_state", None)
        self.show(len(self.decoder.layers), output[0] if last is None else last)

    def show(self, layer: int, states: Tensor | None) -> Tensor | None:
        """Show a layer of the decoder, and give what it is to be changed to."""
        if layer not in self.wanted:
            return None
        flat = None if states is None else join_streams(states, self.mask.shape)
        if states is None or flat is None:
            shape = None if states is None else tuple(states.shape)
            raise InnerVisionError(
                f"{self.name}: layer {layer} has states of shape {shape}, which are not one for each of the "
                f"{tuple(self.mask.shape)} input tokens; this model cannot be probed"
            )
        changed = self.finish(layer, flat, self.mask)
        return None if changed is None else split_streams(changed, states)

    def show_vision(self) -> None:
        if self.hand_over is None or VISION in self.seen:
            return
        try:
            pieces = self.hand_over.by_image()
        except InnerVisionError as error:
            raise InnerVisionError(
                f"{self.name}: {error}, so layer -1 (vision) cannot be probed; ask for layers from 0 on"
            ) from error
        states = nn.utils.rnn.pad_sequence(pieces, batch_first=True)  # (B, T, D)
        lengths = [len(piece) for piece in pieces]
        ends = torch.tensor(lengths, device=states.device)
        mask = torch.arange(states.shape[1], device=states.device) < ends[:, None]
        changed = self.finish(VISION, states, mask)
        if changed is None:
            return
        try:
            self.hand_over.change([row[:length] for row, length in zip(changed, lengths, strict=True)])
        except InnerVisionError as error:
            raise InnerVisionError(f"{self.name}: {error}; change layers from 0 on") from error
        raise _VisionChanged

    def finish(self, layer: int, states: Tensor, mask: Tensor) -> Tensor | None:
        """Call the visitor, and give what it changes the states to, if anything comes after."""
        self.seen.add(layer)
        self.visiting = True
        changed = self.visitor(layer, states, mask)
        self.visiting = False
        if changed is not None and (not isinstance(changed, Tensor) or changed.shape != states.shape):
            what = f"shape {tuple(changed.shape)}" if isinstance(changed, Tensor) else type(changed).__name__
            raise InnerVisionError(
                f"the visitor returned {what} for layer {layer}: return changed states of shape {tuple(states.shape)}, "
                "or None to leave them as they are"
            )
        if layer == max(self.wanted):
            raise _LastLayerSeen
        return None if changed is None else changed.to(states)


def join_streams(states: Tensor, tokens: torch.Size) -> Tensor | None:
    """Give a token's states as one vector, also where the decoder has several streams of them.  # (B, T, D)

    Streams, (streams, B, T, D) or (B, T, streams, D), are written one after the other: the model's later layers read
    all of them. None where the states do not belong to the tokens (B, T) one to one.
    """
    if states.dim() == 4 and states.shape[1:3] == tokens:
        states = states.movedim(0, 2)
    return states.flatten(2) if states.dim() in (3, 4) and states.shape[:2] == tokens else None


def split_streams(states: Tensor, like: Tensor) -> Tensor:
    """Bring states (B, T, D) back to the form that `join_streams` was given."""
    if like.dim() == 3:
        return states
    tokens, width = states.shape[:2], like.shape[-1]
    streams = states.unflatten(2, (-1, width))  # (B, T, streams, D)
    return in_layout_of(like, streams.movedim(2, 0) if like.shape[1:3] == tokens else streams)
