"""Single tensors of a checkpoint, read without the rest of it: one file or many, safetensors or PyTorch."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import safe_open
from torch import Tensor, nn
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING
from transformers.utils import (
    CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
)

from innervision.checkpoints.loading import read_index, reason, require_real
from innervision.errors import InnerVisionError, few
from innervision.json_files import read_json

FILES = (
    (SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME),
    (WEIGHTS_INDEX_NAME, WEIGHTS_NAME),
    ("diffusion_pytorch_model.safetensors.index.json", "diffusion_pytorch_model.safetensors"),
    ("diffusion_pytorch_model.bin.index.json", "diffusion_pytorch_model.bin"),
)
"""An index of several files of weights and the name of a single one, as Transformers and Diffusers look for them."""


class Shards:
    """The tensors of one checkpoint by name. Nothing in it is executed."""

    def __init__(self, name: str, revision: str | None = None) -> None:
        """Find the files of a checkpoint; only an index or the head of a single file is read.

        Args:
            name: a folder or a Hub id that holds weights as Transformers saves them, or one file of weights.
            revision: branch, tag or commit on the Hub.

        Raises:
            InnerVisionError: there are no weights, or the index is broken or leads out of the checkpoint.
        """
        self.name = name
        self.revision = revision
        self.files: dict[str, str] = {}
        """The file that holds each tensor, by the tensor's name."""
        if Path(name).is_file():
            self.files = dict.fromkeys(self._open(name), name)
            return
        for index, single in FILES:
            if path := find_file(name, index, revision):
                self.files = read_index(path)
                return
            if find_file(name, single, revision):
                self.files = dict.fromkeys(self._open(single), single)
                return
        raise InnerVisionError(f"{name} holds no weights: no {' and no '.join(single for _, single in FILES)}")

    def shapes(self, keys: Iterable[str]) -> dict[str, tuple[int, ...]]:
        """Give the shapes of tensors, without reading them."""
        return {key: tuple(tensor.shape) for key, tensor in self._mapped(keys)}

    def read(self, keys: Iterable[str]) -> dict[str, Tensor]:
        """Give tensors, on the CPU, in the type they are stored in; their values come from the disk as they are used.

        Raises:
            InnerVisionError: a file is missing or broken, or does not hold what the index says.
        """
        return dict(self._mapped(keys))

    def _mapped(self, keys: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        by_file = defaultdict(list)
        for key in keys:
            by_file[self.files[key]].append(key)
        for file, names in by_file.items():
            held = self._open(file)
            if lacking := [name for name in names if name not in held]:
                raise InnerVisionError(f"{self.name}: {file} does not hold {few(lacking)}, which the index puts there")
            yield from ((name, held[name]) for name in names)

    def _open(self, file: str) -> dict[str, Tensor]:
        """Map the tensors of a file to memory."""
        path = file if file == self.name else find_file(self.name, file, self.revision)
        if path is None:
            raise InnerVisionError(f"{self.name} lacks its file {file}")
        try:
            if Path(file).suffix == ".safetensors":
                with safe_open(path, framework="pt") as opened:
                    return {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118  # it is no mapping
            try:
                tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError:  # written by a PyTorch before 1.6, which cannot be mapped
                tensors = torch.load(path, map_location="cpu", weights_only=True)
            if not isinstance(tensors, dict):
                raise ValueError(f"it holds a {type(tensors).__name__}, not tensors by name")
            return {key: value for key, value in tensors.items() if isinstance(value, Tensor)}
        except Exception as error:  # a broken or foreign file can make its reader raise anything
            raise InnerVisionError(f"{path} cannot be read as a file of weights: {reason(error)}") from error


def check_types(model: nn.Module, name: str, revision: str | None = None, subfolder: str = "") -> None:
    """See that the weights of a model that was just loaded are stored as real numbers of 16 bits or more.

    A model that is quantized in a way that the library knows passes, and so does what is no weight (indices).

    Args:
        model: as it was loaded.
        name: the folder or the Hub id that it was loaded from.
        revision: its commit on the Hub.
        subfolder: of the model in there.

    Raises:
        InnerVisionError: naming some that are not.
    """
    file = f"{subfolder}/{CONFIG_NAME}" if subfolder else CONFIG_NAME
    config = Path(name) / file if Path(name).is_dir() else try_to_load_from_cache(name, file, revision=revision)
    if not isinstance(config, str | Path) or _is_quantized(read_json(config)):  # it is in no cache, or packed
        return
    shards = Shards(str(Path(config).parent))
    require_real_weights(model, shards.read(shards.files), name)


def require_real_weights(model: nn.Module, tensors: Mapping[str, Tensor], name: str) -> None:
    """See that those of a checkpoint's tensors that are called as a model's parameters are real numbers; see above."""
    weights = {key.rpartition(".")[2] for key, _ in model.named_parameters()}
    require_real({key: held.dtype for key, held in tensors.items() if key.rpartition(".")[2] in weights}, name)


def _is_quantized(config: Any) -> bool:
    """Tell whether the content of a config.json, or a part of it, names a way to quantize that Transformers knows."""
    if not isinstance(config, dict):
        return False
    settings = config.get("quantization_config")
    known = isinstance(settings, dict) and settings.get("quant_method") in AUTO_QUANTIZER_MAPPING
    return known or any(_is_quantized(part) for part in config.values())


def find_file(name: str, file: str, revision: str | None = None) -> str | None:
    """Give the path of a file of a folder or a Hub model, which is downloaded if need be; None where it has none."""
    if Path(name).is_dir():
        path = Path(name) / file
        return str(path) if path.is_file() else None
    try:
        return hf_hub_download(name, file, revision=revision)
    except (
        EntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
        HFValidationError,
        OfflineModeIsEnabled,
    ):
        return None
