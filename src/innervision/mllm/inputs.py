"""Images and a prompt as the tensors that the model under study takes."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Literal

import PIL.Image
import torch
from PIL.Image import Image
from torch import Tensor
from transformers import PretrainedConfig, ProcessorMixin

from innervision.errors import InnerVisionError, first_line, out_of_memory, require
from innervision.mllm.limits import run_limited
from innervision.mllm.template import write_conversation

Tokens = Literal["all", "image", "text"]
"""Which tokens a probe may read."""


@dataclass
class Inputs:
    """A batch as the processor made it, and what its tokens are."""

    tensors: dict[str, Any]
    """The arguments of the model's forward pass: tensors, and for a few models lists of numbers."""
    mask: Tensor
    """(B, T) bool: True = a real token, False = padding."""
    image_mask: Tensor
    """(B, T) bool: True = a token that stands for a part of the image."""
    sizes: Tensor
    """(B, 2) int64: height and width of each original image in pixels."""

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> "Inputs":
        """Give a copy on `device`; floating-point arguments of the model become `dtype`."""
        moved = self._each(lambda tensor: tensor.to(device, non_blocking=True))
        floats = {
            key: value.to(dtype)
            for key, value in moved.tensors.items()
            if isinstance(value, Tensor) and value.is_floating_point()
        }
        return replace(moved, tensors=moved.tensors | floats)

    def pin_memory(self) -> "Inputs":
        """Give a copy in page-locked memory (what a DataLoader asks for)."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Inputs":
        tensors = {key: change(value) if isinstance(value, Tensor) else value for key, value in self.tensors.items()}
        return Inputs(tensors, change(self.mask), change(self.image_mask), change(self.sizes))

    def visible(self, tokens: Tokens) -> Tensor:
        """Give the mask of the tokens asked for, padding left out.  # (B, T) bool

        Raises:
            InnerVisionError: a sample has no such token (cross-attention models have no image tokens).
        """
        mask = {"all": self.mask, "image": self.mask & self.image_mask, "text": self.mask & ~self.image_mask}[tokens]
        if not bool(mask.any(dim=1).all()):
            raise InnerVisionError(f"this model's input has no {tokens} tokens; use tokens=all")
        return mask


SECONDS, MEMORY = 60.0, 2 << 30
"""What a processor may take for one small image: time and bytes of memory."""

_REFUSALS = (ValueError, TypeError, IndexError, KeyError, RuntimeError, AttributeError, ArithmeticError, AssertionError)
"""What a processor raises when it cannot do what it is asked for."""


@dataclass(frozen=True)
class InputBuilder:
    """Builds `Inputs` on the CPU, without the model's weights, so that a DataLoader worker can do it."""

    processor: ProcessorMixin
    config: PretrainedConfig
    arguments: frozenset[str] = frozenset()
    """Names of the arguments of the model's forward pass."""
    name: str = "the model"
    """Of the model, for errors."""
    written: dict[tuple[str, str | None], str] = field(default_factory=dict, compare=False)
    """What the chat template has made of a prompt and a reply."""

    def __call__(self, images: Sequence[Image], prompt: str, reply: str | None = None) -> Inputs:
        """Make the model's inputs from RGB images, each beside the same prompt.

        The prompt goes through the processor's chat template as one user turn, and the reply, if there is one, as
        the model's; where the processor has none, the text is the image token, a line break, prompt and reply, or
        prompt and reply alone for processors that write the image tokens themselves and models that have none.

        Raises:
            InnerVisionError: the processor refuses the images, or gives no `input_ids` or no pixels.
        """
        try:
            encoded = self._encode(list(images), prompt, reply)
        except _REFUSALS as error:
            if out_of_memory(error):
                raise
            raise InnerVisionError(f"{type(self.processor).__name__} refuses the input: {first_line(error)}") from error
        tensors: dict[str, Any] = {
            key: value
            for key, value in encoded.items()
            if key != "labels" and (isinstance(value, Tensor) or (isinstance(value, list) and key in self.arguments))
        }
        if "input_ids" not in tensors:
            raise InnerVisionError(f"{type(self.processor).__name__} gives no input_ids; this model cannot be probed")
        if not any(isinstance(value, Tensor) and value.is_floating_point() for value in tensors.values()):
            raise InnerVisionError(
                f"{type(self.processor).__name__} gives no pixels: this is a text model, or its processor is missing"
            )
        ids = tensors["input_ids"]
        mask = tensors.get("attention_mask", torch.ones_like(ids)).bool()
        return Inputs(tensors, mask, self._image_mask(tensors), image_sizes(images))

    def try_out(self, prompt: str) -> None:
        """Make inputs of a small image under limits: numbers in a processor's files may ask for any size.

        What it refuses in words is left to `__call__`, since the model may say better what is wrong.

        Raises:
            InnerVisionError: it takes too long or too much memory, or its chat template cannot be used.
        """
        if getattr(self.processor, "chat_template", None):
            self._write(prompt, None)

        def work() -> dict[str, str]:
            with suppress(InnerVisionError):
                self([PIL.Image.new("RGB", (224, 224), (120, 120, 120))], prompt)
            return {}

        found = run_limited(work, SECONDS, MEMORY)
        require("error" not in found, f"the processor of {self.name} cannot be used: {found.get('error')}")

    def _write(self, prompt: str, reply: str | None) -> str:
        if (prompt, reply) not in self.written:
            self.written[prompt, reply] = write_conversation(self.processor, self.name, prompt, reply)
        return self.written[prompt, reply]

    def _encode(self, images: list[Image], prompt: str, reply: str | None) -> dict[str, Any]:
        if not getattr(self.processor, "chat_template", None):
            prompt = f"{prompt} {reply}" if reply else prompt
            bare = self._image_token is None or self._writes_image_tokens
            return self._encode_text(images, prompt if bare else f"{self._image_token}\n{prompt}")
        text = self._write(prompt, reply)
        first = getattr(self.processor.tokenizer, "bos_token", None)
        begun = first is not None and text.startswith(first)  # then the processor's own apply_chat_template adds none
        return self._encode_text(images, text, **({"add_special_tokens": False} if begun else {}))

    def _encode_text(self, images: list[Image], text: str, **options: Any) -> dict[str, Any]:
        """Give the images one list for each text or, to processors that refuse that, one by one.

        Where images have pixels of unequal shape, which the processor cannot stack, they are joined here.

        Raises:
            Exception: of the first way, if the processor accepts none.
        """
        options["padding"] = True
        if "mm_token_type_ids" in self.arguments and isinstance(self.processor, ProcessorMixin):
            options["return_mm_token_type_ids"] = True
        processor: Any = self.processor  # its base class is not said to be callable
        encode = partial(processor, text=[text] * len(images), **options)
        refusal: Exception | None = None
        given: list[Any]
        for given in ([[image] for image in images], images):
            try:
                return encode(images=given, return_tensors="pt")
            except _REFUSALS as error:
                refusal = refusal or error
            with suppress(*_REFUSALS):
                return join_unequal(encode(images=given, return_tensors=None))
        assert refusal is not None
        raise refusal

    @cached_property
    def _image_token(self) -> str | None:
        token = image_token_id(self.config)
        return None if token is None else self.processor.tokenizer.convert_ids_to_tokens(token)

    @cached_property
    def _writes_image_tokens(self) -> bool:
        """Whether the processor puts the image tokens in by itself, as it is given a text without one."""
        try:
            encoded = self._encode_text([PIL.Image.new("RGB", (64, 48))], "a")
        except _REFUSALS:
            return False
        return bool(self._image_mask(encoded).any())

    def _image_mask(self, encoded: dict[str, Any]) -> Tensor:
        """Find the image tokens by their id or, where they have none of their own, by the processor's mask.

        In that mask 1 is an image token, 0 is text, and -1 is a mark before or after the image.
        """
        ids = encoded["input_ids"]
        token = image_token_id(self.config)
        if token is not None:
            return ids == token
        given = encoded.get("image_embeds_position_mask")
        return torch.zeros_like(ids, dtype=torch.bool) if given is None else given > 0


def join_unequal(encoded: dict[str, Any]) -> dict[str, Any]:
    """Make tensors of what a processor gives as lists: rows of text are stacked, unequal stacks of tiles concatenated.

    The concatenated tiles have the shape (1, tiles, C, H, W), in which models that take several images for each text
    find them again.

    Raises:
        ValueError: there is nothing to concatenate, or a list of another kind.
    """
    joined = {}
    for key, value in encoded.items():
        if isinstance(value, list) and value and isinstance(value[0], Tensor):
            equal = all(part.shape == value[0].shape for part in value)
            joined[key] = torch.stack(value) if equal else torch.cat(value)[None]
        else:
            joined[key] = torch.tensor(value) if not isinstance(value, Tensor) else value
    return joined


def image_token_id(config: PretrainedConfig) -> int | None:
    """Give the id of the token that stands for a part of an image, where the configuration names one."""
    for key in ("image_token_id", "image_token_index"):
        if isinstance(token := getattr(config, key, None), int):
            return token
    return None


def share_out(total: int, counts: Tensor) -> Tensor | None:
    """Divide `total` things among images in proportion to what they have of another kind, (B,) int64.

    None where that is not a whole number for each one of the other kind, or a whole number of these for each thing:
    a number that merely happens to divide says nothing.
    """
    whole = int(counts.sum())
    if 0 in (total, whole) or (total % whole and whole % total):
        return None
    shares = counts * total // whole
    return shares if int(shares.sum()) == total else None


def image_sizes(images: Sequence[Image]) -> Tensor:
    """Give height and width of images in pixels.  # (B, 2) int64"""
    return torch.tensor([(image.height, image.width) for image in images])
