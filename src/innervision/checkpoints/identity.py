"""Which checkpoint a name stands for: a model of the package, a commit on the Hub, or the content of a folder."""

import hashlib
from pathlib import Path

from innervision.errors import InnerVisionError

STRIDE, SAMPLE = 1 << 20, 1 << 12
"""Of every megabyte of a file these many bytes go into a fingerprint; of a smaller file all do."""


MODELS = Path(__file__).parents[1] / "world" / "models"
"""The folders of the models that come with the package."""


def locate(name: str) -> str:
    """Give the folder of `world/NAME`, a model that comes with the package; other names stay as they are.

    A folder of one's own that is called so is named `./world/NAME`.

    Raises:
        InnerVisionError: the package holds no such model.
    """
    place, slash, model = name.partition("/")
    if place != "world" or not slash:
        return name
    found = sorted(folder.name for folder in MODELS.glob("[!.]*/"))
    if model not in found:
        names = ", ".join(f"world/{folder}" for folder in found) or "none"
        raise InnerVisionError(
            f"there is no model {name!r} in the package; there are: {names}\nA folder of your own is named ./{name}"
        )
    return str(MODELS / model)


def absolute(name: str) -> str:
    """Make a path that exists absolute, since what names it may be used from elsewhere; leave other names."""
    return str(Path(name).resolve()) if Path(name).exists() else name


def is_public(name: str) -> bool:
    """Tell whether a name stands for the same model on every machine: one of the package, or one on the Hub."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if name.startswith("world/"):
        return True
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not Path(name).exists()


def identify(name: str, revision: str | None = None) -> tuple[str, str | None]:
    """Give the name and the revision that tell a checkpoint from others, wherever it lies.

    For a folder or a file its own name (for a model of the package `world/NAME`) and its fingerprint, for a model on
    the Hub its id and its commit.
    """
    folder = locate(name)
    if Path(folder).exists():
        return Path(name).resolve().name if folder == name else name, fingerprint(folder)
    return name, hub_commit(name, revision)


def hub_commit(name: str, revision: str | None, file: str = "config.json") -> str | None:
    """Give the commit of a model on the Hub whose `file` is in the cache at `revision`, else `revision`."""
    if Path(name).exists():
        return revision
    from huggingface_hub import try_to_load_from_cache
    from transformers.utils import extract_commit_hash  # which imports torch

    cached = try_to_load_from_cache(name, file, revision=revision)
    return (extract_commit_hash(cached, None) if isinstance(cached, str) else None) or revision


def processor_name(processor: object) -> str:
    """Give the class and the backend of an image processor, such as `CLIPImageProcessor (torchvision)`."""
    backend = getattr(processor, "backend", None)
    return type(processor).__name__ + (f" ({backend})" if isinstance(backend, str) else "")


def fingerprint(folder: str | Path) -> str:
    """Give a short hash of a model folder: names, sizes and samples of its configuration and weight files.

    Of a single file its size and samples.

    It tells one checkpoint from another without reading gigabytes.
    """
    digest = hashlib.sha256()
    kinds = (".json", ".safetensors", ".bin", ".pth", ".pt")
    files = [Path(folder)] if Path(folder).is_file() else Path(folder).rglob("*")
    for path in sorted(file for file in files if file.suffix in kinds or Path(folder).is_file()):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()} {size}\n".encode())
        with path.open("rb") as file:
            for start in range(0, size, STRIDE):
                file.seek(start)
                digest.update(file.read(STRIDE if size <= STRIDE else SAMPLE))
    return f"sha256:{digest.hexdigest()[:16]}"
