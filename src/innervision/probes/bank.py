"""A bank: one probe per layer for one target, and its file, which opens without the MLLM and the expert."""

import json
import zlib
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from inspect import signature
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from innervision.checkpoints.loading import require_real
from innervision.config import VISION, ProbeSettings
from innervision.errors import InnerVisionError
from innervision.files import atomic_write, require_regular
from innervision.json_files import parse_json
from innervision.registry import find
from innervision.seeds import fixed_seed

FORMAT = 2
"""Of a bank's file."""


class Source(Protocol):
    """What a bank needs to know of an MLLM."""

    name: str
    revision: str | None
    num_layers: int

    def width(self, layer: int) -> int:
        """Give the width of a layer's states."""


class Goal(Protocol):
    """What a bank needs to know of a target."""

    name: str
    expert: str
    revision: str | None
    num_tokens: int
    width: int

    @property
    def kind(self) -> str:
        """depth, seg, gen, backbone …"""


@dataclass(frozen=True, kw_only=True)
class BankInfo:
    """What a bank reads and what it predicts."""

    mllm: str
    """Name of the model whose states it reads."""
    mllm_revision: str | None
    num_layers: int
    """L, the number of the model's decoder layers."""
    widths: dict[int, int]
    """Width of the states of each layer that has a probe, in the order of the layers."""
    target: str
    """Name of the target in its run."""
    kind: str
    """Of the target: depth, seg, gen, backbone …"""
    expert: str
    """Whose features it predicts."""
    expert_revision: str | None
    num_tokens: int
    """N, the number of tokens of the target's features."""
    width: int
    """C, their width."""

    @classmethod
    def of(cls, mllm: Source, target: Goal, layers: Sequence[int]) -> Self:
        """Describe the probes from some layers of a model to a target.

        Raises:
            InnerVisionError: there is no such layer.
        """
        if wrong := [layer for layer in layers if not VISION <= layer <= mllm.num_layers]:
            raise InnerVisionError(f"{mllm.name} has no layer {', '.join(map(str, wrong))}")
        return cls(
            mllm=mllm.name,
            mllm_revision=mllm.revision,
            num_layers=mllm.num_layers,
            widths={layer: mllm.width(layer) for layer in layers},
            target=target.name,
            kind=target.kind,
            expert=target.expert,
            expert_revision=target.revision,
            num_tokens=target.num_tokens,
            width=target.width,
        )

    def only(self, layers: Sequence[int]) -> Self:
        """Describe the probes of some of these layers."""
        return replace(self, widths={layer: self.widths[layer] for layer in layers})


class ProbeBank(nn.Module):
    """Probes from layers of one MLLM to one target's features. Each may be on a device of its own."""

    mean: Tensor
    """(N, C): the mean of the target's features over the training images; NaN where it is not known."""

    def __init__(self, info: BankInfo, settings: ProbeSettings | None = None, *, seed: int = 0) -> None:
        """Make probes with fresh weights.

        A probe's first weights depend on `seed`, the target's name and the layer alone, so that they are the same
        whichever other probes are trained beside it.

        Args:
            info: what they read and predict.
            settings: of the probes.
            seed: of their weights.

        Raises:
            InnerVisionError: there is no such kind of probe, or it has no such options.
        """
        super().__init__()
        self.info = info
        self.settings = settings or ProbeSettings()
        self.layers = list(info.widths)
        kind = find("probes", self.settings.kind)
        options = self.settings.options
        try:
            signature(kind).bind(0, info.num_tokens, info.width, self.settings, **options)
        except TypeError as error:
            raise InnerVisionError(f"probe.options does not fit the probe {self.settings.kind!r}: {error}") from error
        self.probes = nn.ModuleDict()
        for layer, width in info.widths.items():
            with fixed_seed(zlib.crc32(f"{seed}/{info.target}/{layer}".encode())):
                self.probes[str(layer)] = kind(width, info.num_tokens, info.width, self.settings, **options)
        self.register_buffer("mean", torch.full((info.num_tokens, info.width), float("nan")))

    @classmethod
    def for_models(
        cls,
        mllm: Source,
        target: Goal,
        layers: Sequence[int] | None = None,
        settings: ProbeSettings | None = None,
        *,
        seed: int = 0,
    ) -> Self:
        """Make fresh probes from layers of a model, by default 0…L, to a target. See `ProbeBank`."""
        chosen = range(mllm.num_layers + 1) if layers is None else layers
        return cls(BankInfo.of(mllm, target, chosen), settings, seed=seed)

    def forward(self, layer: int, states: Tensor, mask: Tensor, places: Tensor | None = None) -> Tensor:
        """Predict the target's features from one layer.

        Args:
            layer: its number.
            states: (B, T, D), its hidden states, in any floating-point type; what masked ones hold does not matter.
            mask: (B, T) bool, True = a token to read.
            places: (B, T, 4), where the tokens stand (see `PlaceFinder.find`); needed where `needs_places` says so.

        Returns:
            (B, N, C) float32

        Raises:
            ValueError: the probes need the tokens' places, and they are not given.
        """
        probe = self.probes[str(layer)]
        states = states.masked_fill(~mask[..., None], 0)  # not 0 × what stands there, which may be infinite
        device = states.device.type
        if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
            states = states.float()
        if not probe.reads_places:
            places = None
        elif places is None:
            raise ValueError("these probes read tokens by their places: give them")
        return probe(states, mask, places).float()

    def place(self, devices: Mapping[int, torch.device]) -> Self:
        """Bring each layer's probe to its device; what is not named stays where it is."""
        for layer, device in devices.items():
            self.probes[str(layer)].to(device)
        return self

    def device_of(self, layer: int) -> torch.device:
        """Tell where a layer's probe is."""
        return next(self.probes[str(layer)].parameters()).device

    @property
    def needs_places(self) -> bool:
        """Whether probes must be told where tokens stand."""
        return any(probe.reads_places for probe in self.probes.values())

    def num_parameters(self) -> int:
        """Count the weights of all probes."""
        return sum(parameter.numel() for parameter in self.parameters())

    def check(self, mllm: Source, target: Goal) -> None:
        """See that the probes belong to this model and this expert.

        Raises:
            InnerVisionError: naming what differs. A revision that is not known is not compared.
        """
        here = asdict(BankInfo.of(mllm, target, self.layers))
        there = asdict(self.info)
        unknown = [key for key in ("mllm_revision", "expert_revision") if there[key] is None]
        if wrong := [key for key in here if there[key] != here[key] and key not in unknown]:
            differences = "; ".join(f"{key} is {there[key]!r} there, {here[key]!r} here" for key in wrong)
            raise InnerVisionError(f"the probes for {self.info.target} were made for another model: {differences}")

    def knows_mean(self) -> bool:
        """Tell whether the mean feature is known."""
        return bool(self.mean.isfinite().all())

    def check_finite(self) -> None:
        """See that no weight is NaN or infinite, and the mean feature is known as a whole or not at all.

        Raises:
            InnerVisionError: naming the first layer that has such weights.
        """
        if not (self.knows_mean() or self.mean.isnan().all()):
            raise InnerVisionError(f"the mean feature of {self.info.target} is not finite")
        for layer, probe in self.probes.items():
            if not all(bool(tensor.isfinite().all()) for tensor in probe.state_dict().values()):
                raise InnerVisionError(
                    f"the probe of {self.info.target} at layer {layer} has weights that are not finite"
                )

    def save(self, path: str | Path, facts: Mapping[str, Any] | None = None) -> None:
        """Write the probes and the mean feature to a safetensors file, atomically.

        Args:
            path: of the file.
            facts: how they were made (prompt, tokens, protocol, steps …), kept in the file's metadata.

        Raises:
            InnerVisionError: a weight is not finite, or the file cannot be written.
        """
        self.check_finite()
        tensors = {key: value.detach().cpu().contiguous() for key, value in self.state_dict().items()}
        metadata = {
            "format": FORMAT,
            **asdict(self.info),
            "probe": asdict(self.settings),
            "facts": dict(facts or {}),
        }
        with atomic_write(path) as temporary:
            save_file(tensors, temporary, metadata={"innervision": json.dumps(metadata)})

    @classmethod
    def load(cls, path: str | Path, layers: Sequence[int] | None = None) -> Self:
        """Read probes back, of all layers or of some; only their tensors are read.

        Raises:
            InnerVisionError: the file is missing, broken or no probe bank, lacks one of the layers, does not hold what
                its metadata names, or has weights that are not finite.
        """
        info, settings = read_info(path)
        widths = info.widths
        if layers is not None:
            if lacking := [layer for layer in layers if layer not in widths]:
                raise InnerVisionError(f"{path} has no probe of layer {', '.join(map(str, lacking))}")
            info = info.only(layers)
        try:
            with safe_open(path, framework="pt") as file:
                shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118  # it is no mapping
                _check_sizes(info, settings, shapes)
                # without memory; probes of other packages may hold tensors that no file gives back
                ours = find("probes", settings.kind).__module__.startswith("innervision.")
                with torch.device("meta") if ours else nullcontext():
                    bank = cls(info, settings)
                tensors = {key: file.get_tensor(key) for key in bank.state_dict()}
                require_real({key: tensor.dtype for key, tensor in tensors.items()}, str(path))
                bank.load_state_dict({key: tensor.float() for key, tensor in tensors.items()}, assign=True)
        except InnerVisionError:
            raise
        except Exception as error:  # foreign numbers can make PyTorch raise anything
            reason = " ".join(str(error).split())[:300]
            raise InnerVisionError(f"{path} does not hold the probes that its metadata names: {reason}") from error
        bank.check_finite()
        return bank


def _check_sizes(info: BankInfo, settings: ProbeSettings, shapes: Mapping[str, Sequence[int]]) -> None:
    """See that a file's tensors allow for what its metadata says, before anything of that size is made.

    Raises:
        ValueError: they do not.
    """
    if tuple(shapes["mean"]) != (info.num_tokens, info.width):
        raise ValueError(f"the mean feature is {tuple(shapes['mean'])}, not {(info.num_tokens, info.width)}")
    if len(info.widths) > len(shapes) or settings.depth > len(shapes):
        raise ValueError(f"{len(shapes)} tensors are not {len(info.widths)} probes of depth {settings.depth}")


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Read what a bank's file says of itself, without its weights: `BankInfo`, `probe` (settings) and `facts`.

    Raises:
        InnerVisionError: the file is missing, broken or no probe bank, or of another format.
    """
    require_regular(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = parse_json((file.metadata() or {})["innervision"], path, unique=True)
    except FileNotFoundError:
        raise InnerVisionError(f"there is no probe file {path}") from None
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise InnerVisionError(f"{path} is not a probe file of InnerVision: {error}") from error
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        found = metadata.get("format") if isinstance(metadata, dict) else None
        raise InnerVisionError(f"{path} has format {found}; this version of InnerVision reads format {FORMAT}")
    return metadata


def read_info(path: str | Path) -> tuple[BankInfo, ProbeSettings]:
    """Read what the probes of a file are, without their weights.

    Raises:
        InnerVisionError: the file is missing, broken or no probe bank, or does not say it.
    """
    metadata = read_metadata(path)
    try:
        widths = {int(layer): int(width) for layer, width in metadata["widths"].items()}
        info = BankInfo(**{**{key: metadata[key] for key in BankInfo.__annotations__}, "widths": widths})
        settings = ProbeSettings(**metadata["probe"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InnerVisionError(f"{path} does not say what its probes are: {error!r}") from error
    if not widths:
        raise InnerVisionError(f"{path} holds no probe")
    return info, settings
