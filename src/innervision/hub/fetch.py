"""Which folder a run's name stands for: one of this machine, or `hf:USER/REPO@REVISION`, a run on the Hub.

A run from the Hub is data from a stranger. Only files of a run are fetched (`FILES`), of kinds that hold data and no
code; each is held against the checksum that the Hub lists; and `origin.json`, written beside them, lets
`RunFolder.trained_settings` refuse models that run.yaml would load from this machine.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from innervision.checkpoints.hub import cached_without_network
from innervision.checkpoints.identity import fingerprint
from innervision.engine.run import RunFolder
from innervision.errors import InnerVisionError, few, first_line, require
from innervision.files import atomic_write
from innervision.terminal import tell

PREFIX = "hf:"
"""Of the name of a run on the Hub."""

FILES = (
    "run.yaml",
    "probes/*.safetensors",
    "scores/*.parquet",
    "scores/*.json",
    "train/*.json",
    "figures/*.png",
    "pictures/*.json",
    "pictures/*/*.png",
    "pictures/*/*.webp",
)
"""What is fetched of a repository."""
TOO_DEEP = ("probes/*/*", "scores/*/*", "train/*/*", "figures/*/*", "pictures/*/*/*", "*/../*")
"""What is not, since `*` stands for slashes, too: a file deeper than those of a run, and what `..` would lead to."""


class HubRun(NamedTuple):
    """A run on the Hub."""

    repository: str
    """USER/REPO."""
    revision: str | None = None
    """Branch, tag or commit; None = main."""

    @classmethod
    def parse(cls, text: str) -> "HubRun":
        """Split `USER/REPO` or `USER/REPO@REVISION`, with `hf:` before it or not.

        Raises:
            InnerVisionError: it is neither.
        """
        repository, at, revision = text.removeprefix(PREFIX).partition("@")
        require(not at or bool(revision), f"{text!r} is incomplete: write {repository}@REVISION")
        require_repository(repository)
        return cls(repository, revision or None)

    @property
    def name(self) -> str:
        """Give the last part of the repository."""
        return self.repository.rpartition("/")[2]

    def __str__(self) -> str:
        """Write it as the command line takes it."""
        return f"{PREFIX}{self.repository}" + (f"@{self.revision}" if self.revision else "")


def require_repository(name: str) -> None:
    """Check that a name can be that of a repository.

    Raises:
        InnerVisionError: it is not USER/REPO.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise InnerVisionError(f"{name!r} is no repository on the Hub: {first_line(error)}") from error
    require("/" in name, f"{name!r} is no repository on the Hub: write USER/REPO")


def locate_run(name: str | Path) -> Path:
    """Give the folder of a run to read from: for `hf:USER/REPO[@REVISION]` its copy in the Hub's cache.

    Raises:
        InnerVisionError: there is no such run, it cannot be fetched, or is not what the Hub says it is.
    """
    folder = locate(name)
    RunFolder(folder).read()
    return folder


def locate(name: str | Path) -> Path:
    """Give the folder of a run as `locate_run` does, or any other folder, as it is.

    Raises:
        InnerVisionError: the run cannot be fetched, or is not what the Hub says it is.
    """
    return fetch(HubRun.parse(str(name))) if _is_on_hub(name) else Path(name)


def locate_own_run(name: str | Path) -> Path:
    """Give the folder of a run to write scores to: for `hf:USER/REPO[@REVISION]` `runs/REPO`, pulled if need be.

    Raises:
        InnerVisionError: as `pull`, or `runs/REPO` holds something else.
    """
    if not _is_on_hub(name):
        return Path(name)
    run = HubRun.parse(str(name))
    out = Path("runs") / run.name
    if not out.exists() and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InnerVisionError(f"pull the run before several processes score it: innervision pull {run.repository}")
    if not out.exists():
        pull(run, out)
        tell(f"{run} is pulled to {out}, where its new scores go")
    origin = RunFolder(out).origin()
    require(
        origin.get("repository") == run.repository and run.revision in (None, origin.get("revision"), origin["commit"]),
        f"{out} is not {run}: pull that to a folder of your choice, and name this folder\n"
        f"innervision pull {run.repository} --out FOLDER",
    )
    return out


def _is_on_hub(name: str | Path) -> bool:
    return str(name).startswith(PREFIX)


def pull(run: HubRun, out: str | Path) -> Path:
    """Copy a run from the Hub to a folder of one's own, all of it or nothing.

    Raises:
        InnerVisionError: the folder exists, or as `locate_run`.
    """
    out = Path(out)
    require(not out.exists(), f"{out} exists already: choose another --out, or delete it")
    snapshot = fetch(run)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as folder:
            copy = Path(folder) / "run"
            for name in _of_run(snapshot):
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(snapshot / name, copy / name)
            _write_origin(copy, {**RunFolder(snapshot).origin(), "revision": run.revision or "main"})
            copy.replace(out)
    except OSError as error:
        raise InnerVisionError(f"cannot write {out}: {error.strerror or error}") from error
    return out


def fetch(run: HubRun) -> Path:
    """Download what is missing of a run in the Hub's cache, and check all of it; without network the cache is taken.

    Returns:
        The folder in the cache, which is only to be read; its name is the commit.

    Raises:
        InnerVisionError: see `hub_errors`; the repository holds no run; or a file is not what the Hub lists.
    """
    from huggingface_hub import HfApi, constants, snapshot_download

    with hub_errors(run), cached_without_network(run.repository):
        place = snapshot_download(
            run.repository, revision=run.revision, allow_patterns=list(FILES), ignore_patterns=list(TOO_DEEP)
        )
        folder = Path(place)
        require((folder / "run.yaml").exists(), f"{run} holds no run: it has no run.yaml")
        wrong = []
        if not constants.HF_HUB_OFFLINE:
            listed = HfApi().verify_repo_checksums(run.repository, revision=folder.name).mismatches
            wrong = [mismatch for mismatch in listed if mismatch["path"] in _of_run(folder)]
    for mismatch in wrong:  # or the next call would take them for good
        file = folder / mismatch["path"]
        file.resolve().unlink(missing_ok=True)
        file.unlink(missing_ok=True)
    require(
        not wrong,
        f"{run} was altered on its way: {few(each['path'] for each in wrong)} is not what the Hub lists. It is deleted "
        "here; call again to fetch it anew",
    )
    facts = {"repository": run.repository, "commit": folder.name, "run.yaml": fingerprint(folder / "run.yaml")}
    _write_origin(folder, facts)  # over one that another tool has fetched from the repository
    return folder


def _write_origin(folder: Path, facts: Mapping[str, str]) -> None:
    file, text = RunFolder(folder).origin_file, json.dumps(facts, indent=1)
    if not file.exists() or file.read_text(encoding="utf-8") != text:
        with atomic_write(file) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _of_run(snapshot: Path) -> list[str]:
    """Name the files of a snapshot that are fetched of a run: another tool may have brought others."""
    from huggingface_hub.utils import filter_repo_objects

    names = [path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()]
    return list(filter_repo_objects(names, allow_patterns=list(FILES), ignore_patterns=list(TOO_DEEP)))


@contextmanager
def hub_errors(run: HubRun) -> Iterator[None]:
    """Turn what huggingface_hub raises in the block into an error that says what to do.

    Raises:
        InnerVisionError: the repository is private or not there, the revision is not, the Hub cannot be reached, or
            the disk is full.
    """
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise InnerVisionError(f"{run} is gated: ask for access on its page, and log in (hf auth login)") from error
    except errors.RevisionNotFoundError as error:
        raise InnerVisionError(f"{run.repository} has no revision {run.revision or 'main'!r} on the Hub") from error
    except errors.RepositoryNotFoundError as error:
        raise InnerVisionError(
            f"there is no {run} on the Hub, or it is private: check the name, or log in (hf auth login)"
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise InnerVisionError(f"{run} is not in the cache, and the Hub cannot be reached") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        what = "you may not write to it: log in with a token that may (hf auth login)" if status in (401, 403) else ""
        raise InnerVisionError(f"the Hub refuses {run}: {what or first_line(error)}") from error
    except InnerVisionError:
        raise
    except Exception as error:  # of the disk, of the network, of an answer that is none: there are many
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        raise InnerVisionError(f"the transfer of {run} failed: {first_line(cause)}. Call again to resume it") from error
