"""Files of models from strangers, loaded by libraries that may raise anything: what goes wrong becomes one line."""

import errno
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils import enable_progress_bars
from safetensors import SafetensorError
from torch import nn
from transformers import dynamic_module_utils
from transformers.utils import logging as transformers_logging

from innervision.checkpoints.hub import cached_without_network
from innervision.errors import InnerVisionError, few, first_line, out_of_memory, require
from innervision.json_files import read_json

LARGEST_JSON = 128 << 20
LARGEST = {".json": LARGEST_JSON, ".txt": LARGEST_JSON, ".model": LARGEST_JSON, ".jinja": 1 << 20}
"""Bytes of a model's files that libraries read whole, at most: settings, tokenizers, chat templates."""

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
"""Ends of the names of files of weights."""

MOST_LAYERS = 10_000
"""A configuration that names more would keep the library busy for hours before anything is wrong."""

REAL_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""In which weights may be stored where nothing says how to read others."""


@contextmanager
def loading(kind: str, name: str) -> Iterator[None]:
    """Load a part of a model in the block: quietly, asking nothing at the terminal, every error in one line.

    Args:
        kind: what is loaded, such as `expert`.
        name: a folder, a file or a Hub id.

    Raises:
        InnerVisionError: whatever the block raises.
    """
    patience, dynamic_module_utils.TIME_OUT_REMOTE_CODE = dynamic_module_utils.TIME_OUT_REMOTE_CODE, 0
    try:
        with silent_transformers(), cached_without_network(name):
            yield
    except InnerVisionError:
        raise
    except Exception as error:  # a foreign file can make its reader raise anything
        why = reason(error)
        if isinstance(error, OSError) and not Path(name).exists():
            why = f"there is no such folder, nor a model on the Hub that can be reached or was downloaded ({why})"
        raise InnerVisionError(f"cannot load the {kind} {name}: {why}") from error
    finally:
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = patience


@contextmanager
def silent_transformers() -> Iterator[None]:
    """Keep Transformers from reporting what it loads, in the block."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if bars:
        enable_progress_bars()  # of downloads, which Transformers takes away with its own
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def reason(error: Exception) -> str:
    """Say in a line what is wrong with a file, by the error that its reader raised."""
    text = str(error)
    if out_of_memory(error):
        return "memory does not suffice"
    if isinstance(error, RecursionError):
        return "one of its files is nested too deeply"
    if "trust_remote_code" in text:
        return "it brings code of its own, which is not run (an MLLM's is with --trust-remote-code, if you trust it)"
    if "weights_only" in text or "Weights only load failed" in text:
        return "its file of weights is broken, or holds objects other than weights, which are not loaded"
    if isinstance(error, EOFError):
        return "its file of weights is empty or cut off"
    if isinstance(error, UnicodeDecodeError):
        return f"one of its files is broken ({first_line(error)})"
    if "inline_container" in text or (isinstance(error, OSError) and error.errno == errno.EINVAL):  # PyTorch's reader
        return "its file of weights is broken or incomplete"
    if isinstance(error, SafetensorError):
        return f"its file of weights is broken or incomplete ({first_line(error)})"
    if isinstance(error, KeyError | AttributeError | TypeError | IndexError | ArithmeticError):
        return f"one of its files does not hold what it should ({type(error).__name__}: {first_line(error)})"
    title, _, details = text.strip().partition("\n")
    return (
        f"{title} {first_line(ValueError(details))}" if title.endswith(":") and details.strip() else first_line(error)
    )


def check_files(name: str) -> None:
    """See that a model's folder is there, and that its files are regular ones and not too large to be read whole.

    Pipes and devices would be read for ever. Names on the Hub pass.

    Raises:
        InnerVisionError: there is no such folder though the name can be no id of the Hub, or a file is no regular one
            or too large.
    """
    is_path = name[:1] in (".", "/", "~") or name.count("/") > 1 or name.endswith("/") or "\\" in name
    require(not is_path or Path(name).exists(), f"there is no file or folder {name}")
    for path in [each for pattern in ("*", "*/*") for each in Path(name).glob(pattern)]:
        largest = LARGEST.get(path.suffix)
        if path.is_dir() or (largest is None and path.suffix not in WEIGHTS):
            continue
        require(path.is_file(), f"{path} is not a regular file, which a model's files must be")
        size = path.stat().st_size
        if largest is not None and size > largest:
            raise InnerVisionError(f"{path} is too large: it has {size:,} bytes, more than {largest:,}")
        if path.name.endswith(".index.json"):
            read_index(path)


def read_index(path: str | Path) -> dict[str, str]:
    """Read from an index of shards the file that holds each tensor.

    Raises:
        InnerVisionError: it is no such index, or names a file outside of its folder.
    """
    content = read_json(path, largest=LARGEST_JSON)
    files = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
        raise InnerVisionError(f"{path} is not an index of shards: its weight_map names no files")
    outward = [file for file in files.values() if Path(file).name != file]
    require(not outward, f"{path} names a file outside of the checkpoint: {few(set(outward))}")
    return files


def check_layers(config: Any, name: str, key: str = "") -> None:
    """See that a configuration (the content of config.json) names no absurd number of layers.

    Raises:
        InnerVisionError: it does.
    """
    if isinstance(config, dict):
        for inner, value in config.items():
            check_layers(value, name, str(inner))
    elif isinstance(config, list):
        for value in config:
            check_layers(value, name, key)
    elif isinstance(config, int) and config > MOST_LAYERS and re.search("layers|depth", key):
        raise InnerVisionError(f"the config.json of {name} says {key}={config}, which no model has")


def check_size(build: Callable[[], nn.Module], folder: str | Path, name: str) -> None:
    """See that a configuration asks for no more weights than its folder's files can hold, before memory is taken.

    What is on the Hub passes.

    Args:
        build: makes the model of the configuration; it is called where tensors take no memory.
        folder: holds the files of weights.
        name: of the model, for errors.

    Raises:
        InnerVisionError: it asks for more than two for each byte, which is as much as 4 bits for each allow.
    """
    files = Path(folder).glob("*") if Path(folder).is_dir() else []
    held = sum(path.stat().st_size for path in files if path.suffix in WEIGHTS and path.is_file())
    if held == 0:
        return
    try:
        with torch.device("meta"):
            needed = sum(parameter.numel() for parameter in build().parameters())
    except Exception:  # what is wrong with the configuration is said when the model is loaded
        return
    require(
        needed <= 2 * held,
        f"the config.json of {name} asks for {needed:,} weights, more than its files of {held:,} bytes can hold: "
        "see that they are whole and belong together",
    )


def require_real(types: Mapping[str, torch.dtype], name: str) -> None:
    """See that weights, by name, are stored as real numbers of 16 bits or more.

    Libraries turn whatever a file holds into the type asked for: whole numbers whose scales are elsewhere, complex
    numbers without their imaginary part.

    Raises:
        InnerVisionError: naming some that are not.
    """
    other = {key: dtype for key, dtype in types.items() if dtype not in REAL_TYPES}
    kinds = few({str(dtype).removeprefix("torch.") for dtype in other.values()})
    require(
        not other,
        f"{name} stores weights as {kinds}, where real numbers of 16 bits or more are needed: {few(other)}\n"
        "Use a checkpoint that is not quantized, or one whose config.json says how it is (quantization_config)",
    )


@torch.no_grad()
def check_finite(model: nn.Module, name: str) -> None:
    """See that all weights of a loaded model are finite, and all buffers that a checkpoint holds.

    Raises:
        InnerVisionError: naming one that holds NaN or infinity.
    """
    for key, tensor in model.state_dict().items():
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and not tensor.is_meta:
            values = tensor if tensor.element_size() > 1 else tensor.float()
            require(bool(values.isfinite().all()), f"{name} has weights that are not finite, in {key}: fetch it again")
