"""The two protocols, at the points where they differ on the way from images to predictions.

How predictions are scored by each protocol is in `innervision.original.scoring`; which experts' rules differ is in
`innervision.original.experts`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from PIL.Image import Image
from torch import Tensor
from transformers.image_utils import OPENAI_CLIP_MEAN

from innervision.mllm import Inputs
from innervision.mllm.inputs import InputBuilder, image_sizes
from innervision.original.conversation import pad_to_square
from innervision.original.experts import follow_paper
from innervision.targets.target import Target

Prepare = Callable[[list[Image]], Inputs]
"""Makes the MLLM's inputs of RGB images."""


class Standard:
    """The protocol of this package: every model sees what its own processor makes of the image."""

    name = "standard"

    def inputs(self, builder: InputBuilder, prompt: str, script: str) -> Prepare:
        """Give what makes the MLLM's inputs of images.

        Args:
            builder: of the MLLM.
            prompt: of the run.
            script: what the inputs are for: `train`, or the name of an evaluation.
        """
        return partial(builder, prompt=prompt)

    def pixels(self, preparer: Callable, script: str) -> Callable:
        """Give what makes an expert's pixels of images, from its own preparer."""
        return preparer

    def mask(self, mask: Tensor, script: str) -> Tensor:
        """Give the tokens that probes read, of those that the run allows: (B, T) bool."""
        return mask

    def adopt(self, target: Target) -> None:
        """Let an expert see images as the protocol has it."""

    def probe_dtype(self, device: torch.device, script: str) -> torch.dtype:
        """Give the type of the probes' matrix work where the settings name none."""
        return torch.float32 if device.type == "cpu" else torch.bfloat16


class Paper(Standard):
    """What the original code does (arXiv:2412.09585), its faults included."""

    name = "paper"

    def inputs(self, builder: InputBuilder, prompt: str, script: str) -> Prepare:
        """Pad images to a square, and take prompt and reply of the original's script. See `Standard.inputs`."""
        given = SCRIPTS.get(script, Script())
        mean = getattr(getattr(builder.processor, "image_processor", None), "image_mean", None)
        return partial(_build_as_paper, builder, given.prompt or prompt, given, tuple(mean or OPENAI_CLIP_MEAN))

    def pixels(self, preparer: Callable, script: str) -> Callable:
        """Squash images first, where the original's script does. See `Standard.pixels`."""
        return partial(_squash_first, preparer, SCRIPTS.get(script, Script()).side)

    def mask(self, mask: Tensor, script: str) -> Tensor:
        """Show padding as well in training; the original's other scripts take single images. See `Standard.mask`."""
        return torch.ones_like(mask) if script == "train" else mask

    def adopt(self, target: Target) -> None:
        """Prepare images with Pillow, by the rules of the original. See `Standard.adopt`."""
        follow_paper(target)

    def probe_dtype(self, device: torch.device, script: str) -> torch.dtype:
        """Train in bfloat16 and evaluate in float16; on a CPU float32. See `Standard.probe_dtype`."""
        evaluating = script != "train" and device.type != "cpu"
        return torch.float16 if evaluating else super().probe_dtype(device, script)


PROTOCOLS: dict[str, Standard] = {protocol.name: protocol for protocol in (Standard(), Paper())}
"""By the name that settings and scores have."""


@dataclass(frozen=True)
class Script:
    """What one of the original's scripts gives its models beside padded images."""

    prompt: str | None = None
    """In place of the run's."""
    reply: str | None = None
    """What the model is shown as its own answer."""
    side: int | None = None
    """Images are first squashed to side × side pixels."""


SCRIPTS = {
    "train": Script(reply="n"),
    "similarity": Script(side=640),
    "depth": Script(prompt="Describe the image."),
}
"""By what they are for; the others give nothing more."""


def _build_as_paper(
    builder: InputBuilder, prompt: str, script: Script, mean: Sequence[float], images: list[Image]
) -> Inputs:
    squares = [pad_to_square(image, mean) for image in _squash(images, script.side)]
    return replace(builder(squares, prompt, script.reply), sizes=image_sizes(images))


def _squash_first(preparer: Callable, side: int | None, images: list[Image]) -> Tensor:
    return preparer(_squash(images, side))


def _squash(images: list[Image], side: int | None) -> list[Image]:
    return images if side is None else [image.resize((side, side)) for image in images]
