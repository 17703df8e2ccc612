"""What every target offers: images in, an expert's features out; and features in, what its head makes of them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

import torch
from PIL.Image import Image
from torch import Tensor, nn
from torchvision.transforms.v2.functional import pil_to_tensor, resize
from transformers import BaseImageProcessor
from transformers.image_utils import PILImageResampling, SizeDict

from innervision.checkpoints.checkpoint import Checkpoint
from innervision.checkpoints.identity import identify, processor_name
from innervision.errors import InnerVisionError


@dataclass(frozen=True)
class Preparer:
    """Turns images into an expert's pixels on the CPU. Holds no weights, so a DataLoader worker can have it.

    The whole image is squashed to one size, whatever its aspect: nothing is cropped and nothing is padded.
    Resampling, mean and standard deviation are the processor's.
    """

    processor: BaseImageProcessor
    height: int
    width: int
    resize_again: bool = False
    """Whether the processor then resizes the squashed image by its own rule."""

    def __str__(self) -> str:
        return f"squashed to {self.height} × {self.width} pixels for a {type(self.processor).__name__}"

    def __call__(self, images: Sequence[Image]) -> Tensor:
        """Prepare RGB images of any sizes: pixels (B, 3, height, width), float32."""
        resample = getattr(self.processor, "resample", None)
        mode = PILImageResampling.BILINEAR if resample is None else resample
        # Not the processor's own method, since that of some keeps the aspect or crops, however it is called.
        squashed = [resize(pil_to_tensor(image), [self.height, self.width], int(mode)) for image in images]
        pixels = self.processor(
            images=squashed,
            input_data_format="channels_first",
            do_resize=self.resize_again,
            do_center_crop=False,
            return_tensors="pt",
        )["pixel_values"]
        return pixels.float()


class Parts(NamedTuple):
    """What a target is made of."""

    module: nn.Module
    """The part of the expert that makes the features."""
    random_weights: dict[str, Tensor]
    """The weights of the expert that its checkpoint does not hold."""
    preparer: Preparer
    """Makes the pixels that the module takes."""
    head: Callable[[], nn.Module] | None = None
    """Gives the part that turns features into the task's output; called only where it is asked for."""


Maps = Tensor | list[Tensor]
"""Something of each of B images: a tensor (B, ...), or B tensors (...) where images differ in size."""


def take_rows(maps: Maps, rows: Sequence[int]) -> Maps:
    """Give what belongs to these images of the batch: one may come up several times, or never."""
    return [maps[row] for row in rows] if isinstance(maps, list) else maps[torch.tensor(rows, device=maps.device)]


@dataclass(frozen=True)
class Context:
    """What an expert makes of real images, in one pass of its backbone."""

    features: Tensor  # (B, N, C) float32
    """The expert's own features, as `Target.encode` gives them."""
    output: Any = None  # (B, ...)
    """The expert's own output, made the way it was built for; None where its features are all that goes into it."""
    given: tuple[Any, ...] = ()  # each (B, ...)
    """What decoding takes from the real image, apart from the features. Like the output, each is `Maps`."""

    def take(self, rows: Sequence[int]) -> "Context":
        """Give the context of these images of the batch, for decoding: one may come up several times, or never."""
        features = self.features[torch.tensor(rows, device=self.features.device)]
        return Context(features, None, tuple(take_rows(maps, rows) for maps in self.given))

    def single(self, row: int) -> "Context":
        """Give the context of one image, for decoding; all of it tensors."""
        return Context(self.features[row][None], None, tuple(maps[row][None] for maps in self.given))

    @staticmethod
    def join(contexts: Sequence["Context"]) -> "Context":
        """Join the contexts of single images, whose maps may differ in size."""
        return Context(
            torch.cat([context.features for context in contexts]),
            [context.output[0] for context in contexts if context.output is not None] or None,
            tuple([maps[0] for maps in parts] for parts in zip(*(context.given for context in contexts), strict=True)),
        )


class Target(nn.Module, ABC):
    """A frozen expert's features. It stays in evaluation mode, whatever holds it.

    | of images, or of the pixels that `prepare` makes of them | of pixels, said by a subclass | gives |
    |---|---|---|
    | `encode` | `encode_pixels` | the expert's features |
    | `context` | `context_of_pixels` | these, and what decoding takes from the real image |
    | `decode` | `decode_features` | what the expert's head makes of features, for a task to score |

    A subclass also says what it takes from a checkpoint (`read`) and which shape its features have (`shape`). One whose
    features cannot be decoded needs `encode_pixels` alone.
    """

    kind: ClassVar[str]
    """What specs call targets of this class."""
    name: str
    """What a run and its reports call the target; the kind, unless it was given another."""
    protocol: str = "standard"
    """By whose rules it sees images."""
    default_expert: ClassVar[str | None] = None
    """The expert that is loaded when none is named."""
    draws_at_random: ClassVar[bool] = False
    """Whether decoded outputs depend on seeds."""

    module: Any
    head: Any

    def __init__(
        self,
        module: nn.Module,
        preparer: Preparer,
        *,
        head: nn.Module | None = None,
        name: str | None = None,
        expert: str = "",
        revision: str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Freeze the expert.

        Args:
            module: the part of the expert that makes the features.
            preparer: makes the pixels it takes.
            head: the part that `decode` needs.
            name: of the target; by default its kind.
            expert: the id or folder it came from.
            revision: the commit on the Hub that it came from, if any.
            dtype: of the matrix work; None or float32 is full precision, another runs it under autocast. The
                weights are left as they are.

        Raises:
            InnerVisionError: the module cannot make features of the preparer's pixels.
        """
        super().__init__()
        self.module = module
        self.head = head
        self.preparer = preparer
        self.name = name or self.kind
        self.expert = expert
        self.revision = revision
        self.dtype = dtype or torch.float32
        self.eval().requires_grad_(False)
        self.num_tokens, self.width = self.shape()

    @classmethod
    def load(
        cls,
        expert: str | None = None,
        *,
        name: str | None = None,
        revision: str | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        size: int | None = None,
        head: bool = False,
    ) -> Self:
        """Load an expert from the Hugging Face Hub or a folder; only what is asked for stays in memory.

        Args:
            expert: a Hub id or the path of a folder; None is the default expert.
            name: of the target; by default its kind.
            revision: branch, tag or commit on the Hub.
            device: by default the accelerator, where there is one; on "meta" no weights are read.
            dtype: of the matrix work, by default float32. The weights are float32.
            size: squash images to size × size pixels instead of the target's own size.
            head: load what `decode` needs as well.

        Raises:
            InnerVisionError: the expert cannot be had, is of another kind, lacks weights, has no head or does not
                take images of that size.
        """
        expert = expert or cls.default_expert
        if expert is None:
            raise InnerVisionError(f"{cls.kind} has no default expert; name one: {cls.kind}=ID_OR_PATH")
        checkpoint = Checkpoint(expert, revision, weights=device is None or torch.device(device).type != "meta")
        parts = cls.read(checkpoint, size)
        if head and parts.head is None:
            raise InnerVisionError(f"{cls.kind} has no head: its features cannot be decoded")
        decoder = parts.head() if head and parts.head else None
        where, commit = identify(expert, checkpoint.revision)
        target = cls(parts.module, parts.preparer, head=decoder, name=name, expert=where, revision=commit, dtype=dtype)
        target.check_weights(parts.random_weights)
        return target.to(device or torch.accelerator.current_accelerator(check_available=True) or "cpu")

    @classmethod
    @abstractmethod
    def read(cls, checkpoint: Checkpoint, size: int | None) -> Parts:
        """Read the expert, on the CPU; `size` as in `load`."""

    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """Give the shape (N, C) of an image's features."""

    @abstractmethod
    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Give the features (B, N, C) of pixels (B, 3, H, W) on the expert's device. See `encode`."""

    def context_of_pixels(self, pixels: Tensor) -> Context:
        """Give the context of pixels (B, 3, H, W), all of it tensors, in one pass of the backbone. See `context`."""
        return Context(self.encode_pixels(pixels))

    def decode_features(self, features: Tensor, given: tuple[Tensor, ...], seeds: Sequence[int] | None) -> Tensor:
        """Give the head's output for features (B, N, C) and a context's `given`, on their device. See `decode`."""
        raise NotImplementedError(f"{self.kind} has a head, but does not say what it makes of features")

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def processor_name(self) -> str:
        """Class and backend of what prepares the images, such as `DPTImageProcessor (torchvision)`."""
        return processor_name(getattr(self.preparer, "processor", self.preparer))

    def prepare(self, images: Sequence[Image]) -> Maps:
        """Make pixels (B, 3, H, W) of RGB images, float32 on the CPU. See `Preparer`."""
        return self.preparer(images)

    @torch.no_grad()
    def encode(self, images: Sequence[Image] | Maps) -> Tensor:
        """Give the expert's features of RGB images, or of the pixels that `prepare` made of them.

        Returns:
            (B, N, C) float32 on the expert's device, without a graph.
        """
        pixels = self._pixels(images)
        if isinstance(pixels, list):
            return torch.cat([self.encode(each[None]) for each in pixels])
        with self._precision():
            features = self.encode_pixels(pixels.to(self.device, non_blocking=True))
        return features.float()  # (B, N, C)

    @torch.no_grad()
    def context(self, images: Sequence[Image] | Maps) -> Context:
        """Look at RGB images, or the pixels that `prepare` made of them, as far as encoding and decoding need it.

        Returns:
            Their context, all of it float32 on the expert's device, without a graph. Computed once, it serves the
            predictions of all layers.

        Raises:
            InnerVisionError: the target was loaded without its head.
        """
        self._require_head()
        pixels = self._pixels(images)
        if isinstance(pixels, list):
            return Context.join([self.context(each[None]) for each in pixels])
        with self._precision():
            context = self.context_of_pixels(pixels.to(self.device, non_blocking=True))
        output, *given = (None if maps is None else maps.float() for maps in (context.output, *context.given))
        return Context(context.features.float(), output, tuple(given))

    @torch.no_grad()
    def decode(self, features: Tensor, context: Context, *, seeds: Sequence[int] | None = None) -> Maps:
        """Turn features into the task's output with the expert's own head.

        Args:
            features: (B, N, C), predicted or the expert's own.
            context: of the B images, see `Context.take`.
            seeds: one for each image, for outputs that are drawn at random.

        Returns:
            float32 on the expert's device, without a graph. depth: (B, H, W), larger = closer; seg: (B, K, h, w)
            scores of K classes, or B maps (K, h, w) where images differ in size; gen: (B, 3, H, W) images, 0…1.

        Raises:
            InnerVisionError: the target was loaded without its head.
        """
        self._require_head()
        if any(isinstance(maps, list) for maps in context.given):
            return [
                self.decode(features[row : row + 1], context.single(row), seeds=seeds and seeds[row : row + 1])[0]
                for row in range(len(features))
            ]
        with self._precision():
            return self.decode_features(features.to(self.device), context.given, seeds).float()

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode: a frozen expert must not drop anything while the probes train."""
        return super().train(False)

    def check_weights(self, random_weights: Mapping[str, Tensor]) -> None:
        """Refuse an expert whose features depend on weights that its checkpoint does not hold.

        Args:
            random_weights: these weights by name. Those that the features do not use (a pooler, a head) do no
                harm: automatic differentiation tells which ones they are.

        Raises:
            InnerVisionError: naming them.
        """
        parameters = {id(parameter) for parameter in self.parameters()}
        statistics = {id(buffer) for buffer in self.buffers() if buffer.is_floating_point()}
        suspects = {name: weight for name, weight in random_weights.items() if id(weight) in parameters}
        needed = [name for name, weight in random_weights.items() if id(weight) in statistics]
        if suspects:
            for weight in suspects.values():
                weight.requires_grad_(True)
            total = self._total(torch.zeros(1, 3, self.preparer.height, self.preparer.width, device=self.device))
            if total.requires_grad:
                gradients = torch.autograd.grad(total, list(suspects.values()), allow_unused=True)
                needed += [name for name, g in zip(suspects, gradients, strict=True) if g is not None]
            self.requires_grad_(False)
        if needed:
            raise InnerVisionError(
                f"{self.expert} does not hold {len(needed)} of the weights that {self.kind} needs "
                f"(the first is {needed[0]}); name an expert whose weights are complete"
            )

    def _total(self, pixels: Tensor) -> Tensor:
        """Sum all that the target can make of pixels."""
        if self.head is None:
            return self.encode_pixels(pixels).sum()
        context = self.context_of_pixels(pixels)
        made = [context.features, self.decode_features(context.features, context.given, None)]
        return sum(part.sum() for part in (*made, context.output) if part is not None)

    def _pixels(self, images: Sequence[Image] | Maps) -> Maps:
        """Give pixels as they are, and prepare images."""
        ready = isinstance(images, Tensor) or all(isinstance(each, Tensor) for each in images)
        return images if ready else self.prepare(images)  # type: ignore[return-value, arg-type]  # all of one kind

    def _require_head(self) -> None:
        if self.head is None:
            raise InnerVisionError(f"{self.kind} was loaded without its head: load it with head=True to decode")

    def _precision(self) -> AbstractContextManager[Any]:
        device = self.device.type
        if not torch.amp.is_autocast_available(device):
            return nullcontext()
        # float32 even where the caller runs under autocast
        return torch.autocast(device, dtype=self.dtype, enabled=self.dtype != torch.float32)


def native_size(processor: BaseImageProcessor) -> tuple[int, int]:
    """Give height and width of what an image processor crops to, or else resizes to.

    Raises:
        InnerVisionError: it does not tell.
    """
    crops = getattr(processor, "do_center_crop", False)
    size = getattr(processor, "crop_size" if crops else "size", None) or SizeDict()
    edge = size.shortest_edge or size.longest_edge
    height, width = size.height or edge, size.width or edge
    if not height or not width:
        raise InnerVisionError(f"{type(processor).__name__} names no size that images could be squashed to")
    return height, width
