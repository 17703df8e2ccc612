"""The frozen models of a run, loaded as its settings say."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from PIL.Image import Image
from torch import Tensor
from transformers.image_utils import OPENAI_CLIP_MEAN

from innervision.config import PaperInputs, TrainSettings
from innervision.data.loader import Batches, Truth
from innervision.data.sources import ImageSet
from innervision.mllm import MLLM, Inputs
from innervision.mllm.inputs import InputBuilder
from innervision.mllm.original import pad_to_square
from innervision.targets import load_targets, parse_target
from innervision.targets.target import Target


def load_mllm(settings: TrainSettings, device: str | None = None) -> MLLM:
    """Load the MLLM of a run, on `device` instead of the settings' own if given.

    Raises:
        InnerVisionError: it cannot be had.
    """
    return MLLM.load(
        settings.mllm,
        revision=settings.revision,
        dtype=getattr(torch, settings.dtype) if settings.dtype else None,
        device=device or settings.device,
        quantization=settings.quantization,
        random_weights={"none": False, "llm": True, "all": "all"}[settings.random_weights],  # type: ignore[arg-type]
        seed=settings.seed,
        trust_remote_code=settings.trust_remote_code,
        template=settings.template,
    )


def load_experts(
    settings: TrainSettings, mllm: MLLM, *, only: Sequence[str] | None = None, head: bool = False
) -> list[Target]:
    """Load the experts of a run beside its MLLM, of all its targets or `only` some, with or without their heads.

    Raises:
        InnerVisionError: one of them cannot be had.
    """
    specs = [spec for spec in settings.targets.split(",") if only is None or parse_target(spec)[0] in only]
    return load_targets(specs, device=mllm.device, dtype=mllm.model.dtype, head=head, protocol=settings.protocol)


def batches_of(
    images: ImageSet,
    order: Sequence[Sequence[int]],
    mllm: MLLM,
    settings: TrainSettings,
    targets: Sequence[Target],
    truth: Truth | None = None,
    paper: PaperInputs = PaperInputs(),  # noqa: B008  # it is frozen
) -> Batches:
    """Give the batches that the MLLM and the experts of a run see.

    Args:
        images: all of them.
        order: for every batch the indices of its images.
        mllm: makes its inputs.
        settings: of the run.
        targets: make their pixels.
        truth: gives what is known of an image.
        paper: what else the original does in this place, if the run follows it.
    """
    preparers: Mapping[str, Callable] = {target.name: target.preparer for target in targets}
    prepare = partial(_prepare, mllm.builder, settings.prompt)
    if settings.protocol == "paper":
        mean = getattr(getattr(mllm.builder.processor, "image_processor", None), "image_mean", None)
        prepare = partial(_prepare_as_paper, mllm.builder, settings.prompt, paper, tuple(mean or OPENAI_CLIP_MEAN))
        preparers = {name: partial(_squash_first, preparer, paper.side) for name, preparer in preparers.items()}
    return Batches(images, order, prepare, preparers, truth)


def _prepare(builder: InputBuilder, prompt: str, images: list[Image]) -> Inputs:
    return builder(images, prompt)


def _prepare_as_paper(
    builder: InputBuilder, prompt: str, paper: PaperInputs, mean: Sequence[float], images: list[Image]
) -> Inputs:
    squares = [pad_to_square(image, mean) for image in _squash(images, paper.side)]
    return builder(squares, paper.prompt or prompt, paper.reply)


def _squash_first(preparer: Callable, side: int | None, images: list[Image]) -> Tensor:
    return preparer(_squash(images, side))


def _squash(images: list[Image], side: int | None) -> list[Image]:
    return images if side is None else [image.resize((side, side)) for image in images]
