"""A stand-in MLLM whose layers are known, and a target whose features are known."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from innervision.mllm.inputs import image_sizes
from innervision.targets.target import Target

WIDTH = 24
TOKENS = 6
FEATURES = 12


def write_noise_images(folder: Path, count: int, seed: int = 0, size: tuple[int, int] = (8, 8)) -> Path:
    """Images of independent noise: what one shows says nothing about another."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:04}.png")
    return folder


def to_pixels(images: list[Image.Image]) -> Tensor:
    return torch.stack([torch.from_numpy(np.array(image.resize((8, 8)))).float() / 255 for image in images])


def features_of(pixels: Tensor) -> Tensor:
    """Fixed random features of the pixels, normalised as an expert's, with a mean that is far from zero."""
    mix = torch.randn(8 * 8 * 3, FEATURES, generator=torch.Generator().manual_seed(7))
    values = (pixels - 0.5).flatten(1) @ mix / 4 + torch.linspace(-1, 1, FEATURES)
    return torch.nn.functional.layer_norm(values, (FEATURES,))[:, None]  # (B, 1, FEATURES)


@dataclass
class KnownTarget:
    """Features of a batch's images, without an expert."""

    name: str = "known"
    kind: str = "backbone"
    protocol: str = "standard"
    expert: str = "stand-in"
    revision: str | None = None
    num_tokens: int = 1
    width: int = FEATURES

    preparer = staticmethod(to_pixels)
    processor_name = "none"
    dtype = torch.float32

    def encode(self, pixels: Tensor) -> Tensor:
        return features_of(pixels)


class StopAt:
    """A target that gets the process a signal while it encodes for the n-th time."""

    def __init__(self, target: Target, number: int, sent: int = signal.SIGTERM) -> None:
        self.target, self.number, self.sent, self.calls = target, number, sent, 0

    def __getattr__(self, name: str) -> object:
        return getattr(self.target, name)

    def encode(self, pixels: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.number:
            os.kill(os.getpid(), self.sent)
        return self.target.encode(pixels)


def weights(run: str | Path) -> dict[str, Tensor]:
    """All tensors of a run's probe files."""
    return {
        f"{path.stem}/{key}": value
        for path in sorted((Path(run) / "probes").glob("*.safetensors"))
        for key, value in load_file(path).items()
    }


@dataclass
class KnownInputs:
    features: Tensor
    sizes: Tensor

    def to(self, device: torch.device) -> "KnownInputs":
        return self

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {"features": self.features}

    @property
    def mask(self) -> Tensor:
        return torch.ones(len(self.features), TOKENS, dtype=torch.bool)

    image_mask = mask


def build_inputs(images: list[Image.Image], prompt: str) -> KnownInputs:
    return KnownInputs(features_of(to_pixels(images)), image_sizes(images))


class StandInMLLM:
    """Layer `informed` carries the target's features, linearly mixed, plus noise; the others carry noise alone.

    With `informed=None` no layer carries anything: all tokens of all images are the same.
    """

    name = "stand-in"
    revision = None
    device = torch.device("cpu")
    dtype = torch.float32
    builder = staticmethod(build_inputs)
    processor_name = "none"

    def __init__(self, num_layers: int = 4, informed: int | None = 2, noise: float = 0.3) -> None:
        self.num_layers = num_layers
        self.informed = informed
        self.noise = noise
        self.random = torch.Generator().manual_seed(11)
        self.mix = torch.randn(FEATURES, WIDTH, generator=torch.Generator().manual_seed(5)) / FEATURES**0.5

    def has_vision_layer(self) -> bool:
        return False

    def device_of(self, layer: int) -> torch.device:
        return self.device

    def width(self, layer: int) -> int:
        return WIDTH

    def visit(self, inputs: KnownInputs, visitor, layers, *, tokens: str = "all") -> None:
        batch = len(inputs.features)
        mask = torch.ones(batch, TOKENS, dtype=torch.bool)
        with torch.no_grad():
            for layer in layers:
                states = torch.ones(batch, TOKENS, WIDTH)
                if self.informed is not None:
                    states = self.noise * torch.randn(batch, TOKENS, WIDTH, generator=self.random)
                if layer == self.informed:
                    states = states + inputs.features @ self.mix
                visitor(layer, states, mask)
