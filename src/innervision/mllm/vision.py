"""What the vision tower of a Hugging Face image-text model hands to the projector."""

import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from innervision.errors import InnerVisionError
from innervision.mllm.architecture import Decoder, in_layout_of, replace_tensor
from innervision.mllm.inputs import Inputs
from innervision.mllm.shares import shares_of_sequence, split_by_image


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
    of_decoder = {decoder.module, *decoder.layers}
    neighbours = [
        child for child in called_children(parent) if child is not tower and of_decoder.isdisjoint(child.modules())
    ]
    return VisionStage(tower, neighbours)


def called_children(module: nn.Module) -> Iterator[nn.Module]:
    """Give the children of a module; in place of a list of modules, which is never called itself, its elements."""
    for child in module.children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            yield from called_children(child)
        else:
            yield child


@dataclass
class HandOver:
    """Watches one forward pass for what the vision tower hands to the projector, and may change it in another."""

    stage: VisionStage
    inputs: Inputs
    """Of the batch, as the model gets them."""
    outputs: list[Any] = field(default_factory=list)
    """Of the tower, one for each time that it is called."""
    calls: int = 0
    """How often the modules within the tower, and those beside it once it has run, were called."""
    handed: list[tuple[int, nn.Module, tuple, dict]] = field(default_factory=list)
    """What the modules beside the tower are called with once it has run, after the number of the call."""
    received_inside: list[tuple[int, int, weakref.ref]] = field(default_factory=list)
    """The tensors that modules of the tower were called with: its last part may be the projector. Before each stand
    the number of the call, and its own among the tensors of the call."""
    found: "Found | None" = None
    """What `by_image` found."""
    changed: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    """What is put in the place of a tensor, by the number of the call and its own among the tensors of the call."""

    def hook(self) -> list[RemovableHandle]:
        """Register what notices the calls."""
        handles = [self.stage.tower.register_forward_hook(self._on_tower_output)]
        for module in self.stage.neighbours:
            handles.append(module.register_forward_pre_hook(self._on_neighbour_input, with_kwargs=True))
        for module in called_children(self.stage.tower):
            handles.append(module.register_forward_pre_hook(self._on_inner_input, with_kwargs=True))
        return handles

    def _on_tower_output(self, module: nn.Module, args: tuple, output: Any) -> None:
        self.outputs.append(output)

    def _on_neighbour_input(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        if not self.outputs:
            return None
        self.handed.append((self.calls, module, args, kwargs))
        return self._change_call(args, kwargs)

    def _on_inner_input(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        references = map(weakref.ref, _tensors(args, kwargs))
        self.received_inside.extend((self.calls, place, reference) for place, reference in enumerate(references))
        return self._change_call(args, kwargs)

    def _change_call(self, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        """Count a call, and give its arguments where some of them are changed."""
        places = [place for call, place in self.changed if call == self.calls]
        tensors = _tensors(args, kwargs)
        for place in places:
            args, kwargs = replace_tensor(args, kwargs, tensors[place], self.changed[self.calls, place])
        self.calls += 1
        return (args, kwargs) if places else None

    def by_image(self) -> list[Tensor]:
        """Give what each image's own part of the features is, (T_i, D) each, once the decoder begins.

        Raises:
            InnerVisionError: it is not one tensor, or it cannot be told which features belong to which image.
        """
        self.found = found = self._find()
        num_images = len(self.inputs.mask)
        numbers = _number_rows(found.features)
        if len(numbers) == len(self.outputs) == 1:
            patch_size = getattr(getattr(self.stage.tower, "config", None), "patch_size", None)
            pieces = split_by_image(numbers[0], self.inputs, patch_size)
        elif len(numbers) == num_images and len(self.outputs) in (1, num_images):
            pieces = _one_call_per_image(numbers, self.inputs)
        else:
            raise InnerVisionError(
                f"the vision tower runs {len(self.outputs)} times and hands over {len(numbers)} tensors for "
                f"{num_images} images"
            )
        if pieces is None:
            shapes = ", ".join(str(tuple(features.shape)) for features in found.features[:3])
            raise InnerVisionError(
                f"cannot tell which of the vision tower's features (shape {shapes}) belong to which image"
            )
        found.rows = [piece[:, 0] for piece in pieces]
        features = torch.cat([features.flatten(0, -2) for features in found.features])
        return [features[rows] for rows in found.rows]

    def change(self, pieces: list[Tensor]) -> None:
        """Put other features in the place of those that `by_image` gave, in a second forward pass.

        Raises:
            InnerVisionError: another module than the projector receives them, too.
        """
        found = self.found
        if found is None:
            raise ValueError("what is not found yet cannot be changed: call by_image first")
        if found.shared:
            raise InnerVisionError(
                "the vision tower's features go to other modules beside the projector, so they cannot be changed"
            )
        rows = torch.cat([features.flatten(0, -2) for features in found.features])
        rows[torch.cat(found.rows)] = torch.cat(pieces)
        parts = rows.split([features[..., 0].numel() for features in found.features])
        for where, tensor, features, part in zip(found.where, found.tensors, found.features, parts, strict=True):
            values = part.reshape(features.shape)
            values = values if features is tensor else values.movedim(-1, 1)  # as `channels_last` moved them
            self.changed |= dict.fromkeys(where, in_layout_of(tensor, values))
        self.outputs, self.handed, self.received_inside, self.found, self.calls = [], [], [], None, 0

    def _find(self) -> "Found":
        """Find what the projector receives.

        Raises:
            InnerVisionError: it is not one tensor of the tower's for each time that it is called.
        """
        handed = [
            (call, module, tensor, _tensors(args, kwargs))
            for call, module, args, kwargs in self.handed
            if (tensor := handed_over(self.outputs, args, kwargs)) is not None
        ]
        if not self.outputs:
            raise InnerVisionError("the vision tower does not run before the decoder")
        if any(self._is_pixels(tensor) for _, _, tensor, _ in handed):
            raise InnerVisionError("a second vision tower reads the pixels")
        if self._num_sources([tensor for _, _, tensor, _ in handed]) > 1:
            raise InnerVisionError("the vision tower hands features of several of its layers to several modules")
        if not handed:
            features = getattr(self.outputs[-1], "last_hidden_state", None)
            where = [(call, place) for call, place, received in self.received_inside if received() is features]
            if features is None or not where:
                raise InnerVisionError("no module is seen to receive the vision tower's features")
            return Found([where], [features], [features], shared=False)
        projector = handed[0][1]
        received = [(call, tensor, others) for call, module, tensor, others in handed if module is projector]
        return Found(
            [
                [(call, place) for place, other in enumerate(others) if other is tensor]
                for call, tensor, others in received
            ],
            [tensor for _, tensor, _ in received],
            [channels_last(tensor, projector) for _, tensor, _ in received],
            shared=any(
                module is not projector and any(_same_storage(tensor, other) for _, other, _ in received)
                for _, module, tensor, _ in handed
            ),
        )

    def _is_pixels(self, tensor: Tensor) -> bool:
        pixels = [value for value in _tensors((), self.inputs.tensors) if value.is_floating_point()]
        return any(
            _same_storage(tensor, value) or (value.dim() > 3 and tensor.shape[-3:] == value.shape[-3:])
            for value in pixels
        )

    def _num_sources(self, handed: list[Tensor]) -> int:
        """Count the tensors of the tower's output that other modules receive, unchanged or cut."""
        sources: list[Tensor] = []
        for tensor in handed:
            whole = next((value for value in _leaves(self.outputs) if _same_storage(value, tensor)), None)
            if whole is not None and not any(_same_storage(whole, source) for source in sources):
                sources.append(whole)
        return len(sources) if len(self.outputs) == 1 else min(1, len(sources))


@dataclass
class Found:
    """What the projector receives, one tensor for each time that it is called."""

    where: list[list[tuple[int, int]]]
    """Numbers of the calls, and of the tensor among those of the call."""
    tensors: list[Tensor]
    """As they are received."""
    features: list[Tensor]
    """The same, channels last: (…, D)."""
    shared: bool
    """Whether other modules receive them as well."""
    rows: list[Tensor] = field(default_factory=list)
    """(T_i,) for each image: where its features stand in those of all calls, written as one sequence."""


def handed_over(tower_outputs: list[Any], args: tuple, kwargs: dict) -> Tensor | None:
    """Give what a module received from the vision tower; None where it was called without features.

    That is the tower's own output or a view of it, where one is among the tensors that the module was called with
    (which may be text too, as in cross-attention), else the first of them (the output of an inner layer, cropped or
    shuffled).
    """
    last = [getattr(output, "last_hidden_state", None) for output in tower_outputs]
    values = [value for value in _tensors(args, kwargs) if value.is_floating_point() and value.dim() > 1]
    own = [value for value in values if any(value is features for features in last)]
    views = [value for value in values if any(_same_storage(value, leaf) for leaf in _leaves(tower_outputs))]
    return next(iter([*own, *views, *values]), None)


def channels_last(features: Tensor, projector: nn.Module) -> Tensor:
    """Bring a map for a convolution, (B, C, H, W), into the order that features have elsewhere.  # (B, H, W, C)"""
    convolution = next((module for module in projector.modules() if isinstance(module, nn.Conv2d)), None)
    is_map = convolution is not None and features.dim() == 4 and features.shape[1] == convolution.in_channels
    first_weight = next(projector.parameters(), None)
    reads_channels = is_map and first_weight is not None and first_weight.dim() == 4
    return features.movedim(1, -1) if reads_channels else features


def _number_rows(calls: list[Tensor]) -> list[Tensor]:
    """Give tensors (…, 1) in place of (…, D), which hold the number of each feature in the sequence of all."""
    counts = [features[..., 0].numel() for features in calls]
    numbers = torch.arange(sum(counts), device=calls[0].device).split(counts)
    return [number.reshape(*features.shape[:-1], 1) for number, features in zip(numbers, calls, strict=True)]


def _one_call_per_image(calls: list[Tensor], inputs: Inputs) -> list[Tensor] | None:
    pieces = [call.reshape(-1, call.shape[-1]) for call in calls if call.dim() == 2 or len(call) == 1]
    if len(pieces) < len(calls):
        return None
    shares = shares_of_sequence(sum(map(len, pieces)), inputs)
    return pieces if shares is not None and [len(piece) for piece in pieces] == shares.tolist() else None


def _tensors(args: tuple, kwargs: dict) -> list[Tensor]:
    return [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]


def _leaves(value: Any) -> list[Tensor]:
    """Give the tensors within a module's output."""
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def _same_storage(first: Tensor, second: Tensor) -> bool:
    return first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()
