"""Is a model read rightly? Experiments with three small images that every model has to pass, whatever its family."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from innervision.config import VISION
from innervision.errors import InnerVisionError, first_line
from innervision.mllm.model import MLLM, SAMPLE_PROMPT
from innervision.mllm.walk import join_streams

SHAPES = ((640, 480), (480, 640), (336, 336), (1280, 720))
"""Width and height of the images whose tokens are counted."""

LEAST_EFFECT = 1e-3
"""Relative change of a token's states from which on an image counts as seen; an image that does not reach the decoder
changes them by rounding errors, below 1e-5 in float32."""


@dataclass(frozen=True)
class Finding:
    """What one experiment showed."""

    test: str
    verdict: Literal["ok", "warning", "error"]
    """warning: the scores mean less than they seem to; error: the model cannot be probed."""
    detail: str


def self_test(mllm: MLLM, prompt: str = SAMPLE_PROMPT) -> list[Finding]:
    """Try whether a model's layers show what they are said to show, in three forward passes.

    An image, another of the same size, and a neighbour of another shape go through the model. What must hold:
    the decoder calls each of its layers once, in their order; all states are finite; another image changes the states
    of every layer from 0 on; an image's states do not depend on padding and on its neighbour; its features in layer -1
    are its own.

    Returns:
        One finding for each experiment, an error first if the model cannot be read at all.
    """
    layers = [VISION] * mllm.has_vision_layer() + list(range(mllm.num_layers + 1))
    image, other, neighbour = noise(320, 240, seed=0), noise(320, 240, seed=1), noise(200, 330, seed=2)
    try:
        alone = _states(mllm, [image], prompt, layers)
        together = _states(mllm, [image, neighbour], prompt, layers)
        swapped = _states(mllm, [other, neighbour], prompt, layers)
    except InnerVisionError as error:
        return [Finding("layers", "error", str(error))]
    for layer in layers:
        if not all(bool(each.isfinite().all()) for states in (alone, together, swapped) for each in states[layer]):
            where = "vision" if layer == VISION else str(layer)
            detail = (
                f"the states of layer {where} are not finite: the model's files are broken, or its dtype is too narrow"
            )
            return [Finding("layers", "error", detail)]
    tolerance = max(1e-3, 20 * torch.finfo(mllm.dtype).eps)
    decoder = [layer for layer in layers if layer != VISION]
    changes = {layer: _change(swapped[layer][0], together[layer][0]).max().item() for layer in decoder}
    findings = [
        Finding("layers", "ok", f"each of the {mllm.num_layers} decoder layers runs once, in order"),
        _image_reaches(changes),
        _independent(decoder, alone, together, swapped, tolerance),
    ]
    if VISION in layers:
        findings.append(_vision_is_ones_own(alone[VISION], together[VISION], swapped[VISION], tolerance))
    return findings


def require_sound(mllm: MLLM, prompt: str) -> list[str]:
    """Test a model before work begins, and give the warnings.

    Raises:
        InnerVisionError: it cannot be probed.
    """
    findings = self_test(mllm, prompt)
    if errors := [finding for finding in findings if finding.verdict == "error"]:
        raise InnerVisionError(f"{errors[0].detail}\n`innervision check` shows more of this model")
    return [f"{mllm.name}: {finding.detail}" for finding in findings if finding.verdict == "warning"]


def hidden_states_agree(mllm: MLLM) -> Finding:
    """Compare the layers 0…L of two unequal images with Transformers' own `hidden_states`."""
    test = "same as Transformers' hidden_states"
    inputs = mllm.prepare([noise(320, 240, seed=0), noise(200, 330, seed=2)], SAMPLE_PROMPT)
    seen: list[Tensor] = []
    try:
        mllm.visit(inputs, lambda _, states, __: seen.append(states.cpu()))
    except InnerVisionError as error:
        return Finding(test, "error", f"cannot be compared: {error}")
    try:
        given = inputs.to(mllm.device, mllm.dtype)
        with torch.no_grad():
            output = mllm.model(**given.tensors, output_hidden_states=True, use_cache=False)
    except Exception as error:  # a model can raise anything
        return Finding(test, "warning", f"cannot be compared: Transformers raises {type(error).__name__}: {error}")
    expected = output.get("hidden_states") or getattr(output.get("language_model_outputs"), "hidden_states", None)
    if expected is None or join_streams(expected[0], given.mask.shape) is None:
        return Finding(test, "warning", "cannot be compared: the model gives no hidden_states of its decoder")
    if len(expected) != len(seen):
        return Finding(test, "error", f"Transformers gives {len(expected)} hidden_states, not {len(seen)}")
    differences = []
    for layer, (states, other) in enumerate(zip(seen, expected, strict=True)):
        joined = join_streams(other.cpu(), given.mask.shape)
        if joined is not None and joined.shape != states.shape and layer == mllm.num_layers:
            break  # the library leaves the streams of the last layer as they are before the final norm
        if joined is None or joined.shape != states.shape:
            return Finding(test, "error", f"shapes differ: {tuple(states.shape)} and {tuple(other.shape)}")
        differences.append((states.float() - joined.float()).abs().max().item())
    if not any(differences):
        rest = "" if len(differences) == len(seen) else f" but for layer {mllm.num_layers}, of which it gives streams"
        return Finding(test, "ok", f"yes, bit for bit{rest}")
    largest = max(differences)
    near = largest <= 1e-3 * max(states.float().abs().max().item() for states in seen)
    return Finding(test, "warning" if near else "error", f"maximum difference {largest:.1e}")


def describe(mllm: MLLM) -> Iterator[tuple[str, str]]:
    """Give the facts about a model that need no experiment, as rows of a table: a title and a text."""
    yield "model", " ".join(filter(None, (mllm.name, mllm.revision)))
    yield "class", f"{type(mllm.model).__name__}, {mllm.processor_name}"
    masks = [mllm.prepare([noise(*shape)], SAMPLE_PROMPT).image_mask for shape in SHAPES]
    tokens = (f"{width}×{height}: {mask.sum()}" for (width, height), mask in zip(SHAPES, masks, strict=True))
    yield "image tokens", ", ".join(tokens)
    try:
        widths = sorted(set(mllm.widths.values()))
        yield "decoder layers", f"0…{mllm.num_layers}, {' or '.join(map(str, widths))} wide"
        yield "vision layer", f"yes, {mllm.width(VISION)} wide"
    except InnerVisionError as error:
        yield "vision layer" if "widths" in vars(mllm) else "decoder layers", f"none: {first_line(error)}"


def noise(width: int, height: int, *, seed: int = 0) -> Image.Image:
    """Make an image of blocks of random colours, the same for the same seed."""
    blocks = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST)


def _states(mllm: MLLM, images: Sequence[Image.Image], prompt: str, layers: list[int]) -> dict[int, list[Tensor]]:
    """Give each image's states of real tokens by layer, (T_i, D) float32 on the CPU."""
    found: dict[int, list[Tensor]] = {}

    def keep(layer: int, states: Tensor, mask: Tensor) -> None:
        found[layer] = [each[shown].float().cpu() for each, shown in zip(states, mask, strict=True)]

    mllm.visit(mllm.prepare(images, prompt), keep, layers)
    return found


def _change(new: Tensor, old: Tensor) -> Tensor:
    """Give the change of each token's states, relative to their length; infinite where their number changed.  # (T,)"""
    if new.shape != old.shape:
        return torch.tensor([torch.inf])
    return (new - old).norm(dim=1) / old.norm(dim=1).clamp(min=1e-12)


def _image_reaches(changes: dict[int, float]) -> Finding:
    test = "image reaches every layer"
    blind = [layer for layer, change in changes.items() if not change >= LEAST_EFFECT]
    if len(blind) == len(changes):
        largest = max(changes.values())
        return Finding(
            test,
            "error",
            f"the image does not reach the decoder: another image changes its states by {largest:.0e} of their length",
        )
    if blind:
        layers = ", ".join(map(str, blind))
        return Finding(test, "warning", f"layers {layers} see nothing of the image: another one leaves them unchanged")
    return Finding(test, "ok", f"another image changes every layer, by {min(changes.values()):.0%} of a token or more")


def _independent(
    layers: list[int],
    alone: dict[int, list[Tensor]],
    together: dict[int, list[Tensor]],
    swapped: dict[int, list[Tensor]],
    tolerance: float,
) -> Finding:
    test = "padding and neighbours change nothing"
    changes = {
        layer: max(
            _change(together[layer][0], alone[layer][0]).mean().item(),
            _change(swapped[layer][1], together[layer][1]).mean().item(),
        )
        for layer in layers
    }
    worst = max(changes, key=lambda layer: changes[layer])
    if changes[worst] <= tolerance:
        return Finding(test, "ok", f"by {changes[worst]:.0e} of their length at most")
    how = f"by {changes[worst]:.1%} of their length" if changes[worst] < torch.inf else "even in number"
    return Finding(
        test,
        "warning",
        f"states depend on padding or on the other images of a batch, {how} in layer {worst}: "
        "use micro_batch_size=1 for states that do not",
    )


def _vision_is_ones_own(
    alone: list[Tensor], together: list[Tensor], swapped: list[Tensor], tolerance: float
) -> Finding:
    test = "vision features belong to their image"
    if len(alone[0]) != len(together[0]):
        detail = f"an image has {len(alone[0])} features in layer -1 alone and {len(together[0])} in a batch"
    elif not _change(swapped[0], together[0]).max().item() >= LEAST_EFFECT:
        detail = "another image leaves its features in layer -1 unchanged"
    elif (change := _change(swapped[1], together[1]).mean().item()) > tolerance:
        detail = f"another image changes its neighbour's features in layer -1 by {change:.1%} of their length"
    elif (change := _change(together[0], alone[0]).mean().item()) > tolerance:
        detail = f"an image's features in layer -1 change in a batch, by {change:.1%} of their length"
        return Finding(test, "warning", detail)
    else:
        return Finding(test, "ok", "another image changes its own and no others")
    return Finding(test, "error", f"{detail}: ask for layers from 0 on")
