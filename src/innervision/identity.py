"""Which checkpoint a name stands for: a commit on the Hub, or the content of a folder."""

import hashlib
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from transformers.utils import CONFIG_NAME, extract_commit_hash

STRIDE, SAMPLE = 1 << 20, 1 << 12
"""Of every megabyte of a file these many bytes go into a fingerprint; of a smaller file all do."""


def identify(name: str, revision: str | None = None) -> tuple[str, str | None]:
    """Give the name and the revision that tell a checkpoint from others, wherever it lies.

    For a folder its own name and its fingerprint, for a model on the Hub its id and its commit.
    """
    if Path(name).is_dir():
        return Path(name).resolve().name, fingerprint(name)
    return name, hub_commit(name, revision)


def hub_commit(name: str, revision: str | None, file: str = CONFIG_NAME) -> str | None:
    """Give the commit of a model on the Hub whose `file` is in the cache at `revision`, else `revision`."""
    if Path(name).exists():
        return revision
    cached = try_to_load_from_cache(name, file, revision=revision)
    return (extract_commit_hash(cached, None) if isinstance(cached, str) else None) or revision


def fingerprint(folder: str | Path) -> str:
    """Give a short hash of a model folder: names, sizes and samples of its configuration and weight files.

    It tells one checkpoint from another without reading gigabytes.
    """
    digest = hashlib.sha256()
    kinds = (".json", ".safetensors", ".bin", ".pth", ".pt")
    for path in sorted(file for file in Path(folder).rglob("*") if file.suffix in kinds):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()} {size}\n".encode())
        with path.open("rb") as file:
            for start in range(0, size, STRIDE):
                file.seek(start)
                digest.update(file.read(STRIDE if size <= STRIDE else SAMPLE))
    return f"sha256:{digest.hexdigest()[:16]}"
