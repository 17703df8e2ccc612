"""A bank: one probe per layer for one target, and its file."""

import json
import zlib
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from innervision.config import VISION, ProbeSettings
from innervision.errors import InnerVisionError
from innervision.files import atomic_write
from innervision.probes.places import place_features

FORMAT = 1


class Source(Protocol):
    """What a bank needs to know of an MLLM."""

    name: str
    revision: str | None
    num_layers: int
    hidden_size: int

    def width(self, layer: int) -> int:
        """Give the width of a layer's states."""


class Goal(Protocol):
    """What a bank needs to know of a target."""

    @property
    def name(self) -> str:
        """What runs and files call the target."""

    expert: str
    revision: str | None
    num_tokens: int
    width: int


class ProbeBank(nn.Module):
    """Probes from the layers of one MLLM to one target's features."""

    def __init__(
        self,
        mllm: Source,
        target: Goal,
        layers: Sequence[int] | None = None,
        settings: ProbeSettings | None = None,
        *,
        seed: int = 0,
    ) -> None:
        """Make probes with fresh weights.

        A probe's first weights depend on `seed`, the target's name and the layer alone, so that they are the same
        whichever other probes are trained beside it.

        Args:
            mllm: the model under study.
            target: what to predict.
            layers: which, by default 0…L.
            settings: of the probes.
            seed: of their weights.

        Raises:
            InnerVisionError: there is no such kind of probe, or no such layer.
        """
        super().__init__()
        self.settings = settings or ProbeSettings()
        self.layers = list(range(mllm.num_layers + 1) if layers is None else layers)
        if wrong := [layer for layer in self.layers if not VISION <= layer <= mllm.num_layers]:
            raise InnerVisionError(f"{mllm.name} has no layer {', '.join(map(str, wrong))}")
        kind = probe_class(self.settings.kind)
        self.probes = nn.ModuleDict()
        for layer in self.layers:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(zlib.crc32(f"{seed}/{target.name}/{layer}".encode()))
                self.probes[str(layer)] = kind(mllm.width(layer), target.num_tokens, target.width, self.settings)
        self.register_buffer("mean", torch.full((target.num_tokens, target.width), float("nan")))
        self.mean: Tensor
        """(N, C): the mean of the target's features over the training images; NaN before training."""
        self.identity: dict[str, Any] = identity(mllm, target)
        """Which model's states the probes read and which expert's features they predict."""

    def forward(self, layer: int, states: Tensor, mask: Tensor, grid: Tensor | None = None) -> Tensor:
        """Predict the target's features from one layer.

        Args:
            layer: its number.
            states: (B, T, D), its hidden states, in any floating-point type.
            mask: (B, T) bool, True = a token to read.
            grid: (B, T, 2), the tokens' rows and columns in the image (see `Inputs.places`); by default unknown.

        Returns:
            (B, N, C) float32
        """
        probe = self.probes[str(layer)]
        if not torch.is_autocast_enabled(states.device.type):
            states = states.to(self.mean.dtype)
        places = None
        if self.settings.positions:
            unknown = self.mean.new_full((*mask.shape, 2), float("nan"))
            places = place_features(mask, unknown if grid is None else grid)
        return probe(states, mask, places).float()

    def save(self, path: str | Path, record: Mapping[str, Any] | None = None) -> None:
        """Write the probes and the mean feature to a safetensors file, atomically.

        Args:
            path: of the file.
            record: further facts to keep in the file's metadata (prompt, tokens, protocol, training).

        Raises:
            InnerVisionError: the file cannot be written.
        """
        tensors = {key: value.detach().cpu().contiguous() for key, value in self.state_dict().items()}
        facts = {
            "format": FORMAT,
            **self.identity,
            "layers": self.layers,
            "probe": vars(self.settings),
            **(record or {}),
        }
        with atomic_write(path) as temporary:
            save_file(tensors, temporary, metadata={"innervision": json.dumps(facts)})

    @classmethod
    def load(cls, path: str | Path, mllm: Source, target: Goal) -> "ProbeBank":
        """Read probes back and check that they belong to this model and this target.

        Raises:
            InnerVisionError: the file is missing, broken or no probe bank, or was made for another MLLM or expert,
                for other widths, or for layers that the model lacks.
        """
        facts = read_metadata(path)
        expected = identity(mllm, target)
        unknown = [key for key in ("mllm_revision", "expert_revision") if facts.get(key) is None]
        if wrong := [key for key in expected if facts.get(key) != expected[key] and key not in unknown]:
            differences = "; ".join(f"{key} is {facts.get(key)!r} there, {expected[key]!r} here" for key in wrong)
            raise InnerVisionError(f"{path} was made for another model: {differences}")
        bank = cls(mllm, target, facts["layers"], ProbeSettings(**facts["probe"]))
        try:
            with safe_open(path, framework="pt") as file:
                bank.load_state_dict({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
        except (RuntimeError, SafetensorError) as error:
            raise InnerVisionError(f"{path} does not hold the probes that its metadata names: {error}") from error
        return bank


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Read what a bank's file says of itself, without its weights.

    Raises:
        InnerVisionError: the file is missing, broken or no probe bank.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})["innervision"])
    except FileNotFoundError:
        raise InnerVisionError(f"there is no probe file {path}") from None
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise InnerVisionError(f"{path} is not a probe file of InnerVision: {error}") from error
    if facts.get("format") != FORMAT:
        raise InnerVisionError(f"{path} has format {facts.get('format')}; this version reads format {FORMAT}")
    return facts


def identity(mllm: Source, target: Goal) -> dict[str, Any]:
    """State what a bank belongs to: the MLLM and the expert, with their widths."""
    return {
        "mllm": mllm.name,
        "mllm_revision": mllm.revision,
        "num_layers": mllm.num_layers,
        "hidden_size": mllm.hidden_size,
        "target": target.name,
        "expert": target.expert,
        "expert_revision": target.revision,
        "num_tokens": target.num_tokens,
        "width": target.width,
    }


def probe_class(kind: str) -> type[nn.Module]:
    """Find a kind of probe among the entry points `innervision.probes`.

    Raises:
        InnerVisionError: no installed package offers it.
    """
    known = {entry.name: entry for entry in entry_points(group="innervision.probes")}
    if kind not in known:
        raise InnerVisionError(f"there is no probe {kind!r}; known are {', '.join(sorted(known))}")
    return known[kind].load()
