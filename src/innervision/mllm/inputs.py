"""Images and a prompt as the tensors that the model under study takes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import PIL.Image
import torch
from PIL.Image import Image
from torch import Tensor
from transformers import PretrainedConfig, ProcessorMixin

from innervision.errors import InnerVisionError

Tokens = Literal["all", "image", "text"]
"""Which tokens a probe may read."""


@dataclass
class Inputs:
    """A batch as the processor made it, and what its tokens are."""

    tensors: dict[str, Tensor]
    """The arguments of the model's forward pass."""
    mask: Tensor
    """(B, T) bool: True = a real token, False = padding."""
    image_mask: Tensor
    """(B, T) bool: True = a token that stands for a part of the image."""
    sizes: Tensor
    """(B, 2) int64: height and width of each original image in pixels."""
    tiles: Tensor | None
    """(B,) int64: how many pictures the vision tower sees of each image, where an image may be cut into tiles;
    None where the processor does not tell."""

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> "Inputs":
        """Give a copy on `device`; floating-point arguments of the model become `dtype`."""
        moved = self._each(lambda tensor: tensor.to(device, non_blocking=True))
        floats = {key: value.to(dtype) for key, value in moved.tensors.items() if value.is_floating_point()}
        return replace(moved, tensors=moved.tensors | floats)

    def pin_memory(self) -> "Inputs":
        """Give a copy in page-locked memory (what a DataLoader asks for)."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Inputs":
        tensors = {key: change(value) for key, value in self.tensors.items()}
        tiles = None if self.tiles is None else change(self.tiles)
        return Inputs(tensors, change(self.mask), change(self.image_mask), change(self.sizes), tiles)

    def visible(self, tokens: Tokens) -> Tensor:
        """Give the mask of the tokens asked for, padding left out.  # (B, T) bool

        Raises:
            InnerVisionError: a sample has no such token (cross-attention models have no image tokens).
        """
        mask = {"all": self.mask, "image": self.mask & self.image_mask, "text": self.mask & ~self.image_mask}[tokens]
        if not bool(mask.any(dim=1).all()):
            raise InnerVisionError(f"this model's input has no {tokens} tokens; use tokens=all")
        return mask


@dataclass(frozen=True)
class InputBuilder:
    """Builds `Inputs` on the CPU, without the model's weights, so that a DataLoader worker can do it."""

    processor: ProcessorMixin
    config: PretrainedConfig

    def __call__(self, images: Sequence[Image], prompt: str, reply: str | None = None) -> Inputs:
        """Make the model's inputs from RGB images, each beside the same prompt.

        The prompt goes through the processor's chat template as one user turn, and the reply, if there is one, as
        the model's; where the processor has none, the text is the image token, a line break, prompt and reply.

        Raises:
            InnerVisionError: the processor refuses the images, or gives no `input_ids`.
        """
        try:
            encoded = self._encode(list(images), prompt, reply)
        except (ValueError, TypeError, IndexError, KeyError, RuntimeError, AttributeError) as error:
            raise InnerVisionError(f"{type(self.processor).__name__} refuses the input: {error}") from error
        tensors = {key: value for key, value in encoded.items() if isinstance(value, Tensor) and key != "labels"}
        if "input_ids" not in tensors:
            raise InnerVisionError(f"{type(self.processor).__name__} gives no input_ids; this model cannot be probed")
        ids = tensors["input_ids"]
        mask = tensors.get("attention_mask", torch.ones_like(ids)).bool()
        image_mask = self._image_mask(ids)
        tiles = count_tiles(tensors, image_mask)
        return Inputs(tensors, mask, image_mask, image_sizes(images), tiles)

    def _encode(self, images: list[Image], prompt: str, reply: str | None) -> dict[str, Any]:
        if getattr(self.processor, "chat_template", None):
            answer = [{"role": "assistant", "content": [{"type": "text", "text": reply}]}] if reply else []
            turns = [
                [
                    {
                        "role": "user",
                        "content": [{"type": "image", "image": image}, {"type": "text", "text": prompt}],
                    },
                    *answer,
                ]
                for image in images
            ]
            return self.processor.apply_chat_template(  # type: ignore[return-value]  # a mapping, with return_dict
                turns,  # type: ignore[arg-type]  # its annotation knows no images
                add_generation_prompt=not reply,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                processor_kwargs={"padding": True},
            )
        prompt = f"{prompt} {reply}" if reply else prompt
        text = prompt if self._writes_image_tokens else f"{self._image_token}\n{prompt}"
        return self._encode_text(images, text)

    def _encode_text(self, images: list[Image], text: str) -> dict[str, Any]:
        nested = [[image] for image in images]
        return self.processor(images=nested, text=[text] * len(images), padding=True, return_tensors="pt")

    @property
    def _image_token(self) -> str:
        token = image_token_id(self.config)
        if token is None:
            raise ValueError("it has no chat template and the model's configuration names no image token")
        return self.processor.tokenizer.convert_ids_to_tokens(token)

    @cached_property
    def _writes_image_tokens(self) -> bool:
        """Whether the processor puts the image tokens in by itself, as it is given a text without one."""
        try:
            ids = self._encode_text([PIL.Image.new("RGB", (64, 48))], "a")["input_ids"]
        except ValueError:
            return False
        return bool(self._image_mask(ids).any())

    def _image_mask(self, ids: Tensor) -> Tensor:
        token = image_token_id(self.config)
        return torch.zeros_like(ids, dtype=torch.bool) if token is None else ids == token


def image_token_id(config: PretrainedConfig) -> int | None:
    """Give the id of the token that stands for a part of an image, where the configuration names one."""
    for key in ("image_token_id", "image_token_index"):
        if isinstance(token := getattr(config, key, None), int):
            return token
    return None


def count_tiles(tensors: dict[str, Tensor], image_mask: Tensor) -> Tensor | None:
    """Count the pictures that the vision tower sees of each image.

    Pixels of shape (B, tiles, C, H, W) are padded with tiles of zeros, which the models leave out; it is not told
    where tiles themselves are padded. Tiles of all images in one row, (tiles, C, H, W), are shared out in proportion
    to the image tokens, of which each tile has equally many.
    """
    pixels = tensors.get("pixel_values")
    if pixels is None or "image_grid_thw" in tensors:
        return None
    if pixels.dim() == 5 and len(pixels) == len(image_mask):
        real = (pixels != 0).flatten(2).any(dim=2)  # (B, tiles)
        padding = tensors.get("pixel_attention_mask")
        whole = padding is None or bool(padding[real].all())
        return real.sum(dim=1) if whole else None
    if pixels.dim() != 4:
        return None
    if len(pixels) == len(image_mask):
        return torch.ones(len(pixels), dtype=torch.int64)
    return share_out(len(pixels), image_mask)


def share_out(total: int, image_mask: Tensor) -> Tensor | None:
    """Divide `total` things among images in proportion to their image tokens; None where that leaves a rest."""
    counts = image_mask.sum(dim=1)
    if int(counts.sum()) == 0 or bool((counts * total % counts.sum()).any()):
        return None
    return counts * total // counts.sum()


def image_sizes(images: Sequence[Image]) -> Tensor:
    """Give height and width of images in pixels.  # (B, 2) int64"""
    return torch.tensor([(image.height, image.width) for image in images])
