"""COCO and DA-2K, fetched and unpacked.

innervision data coco --split val2017 --annotations captions,panoptic OUT
innervision data da2k OUT
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from huggingface_hub import HfApi, hf_hub_url

from innervision.data.archive import check_space, unpack
from innervision.data.download import Remote, download, partial
from innervision.errors import InnerVisionError

COCO_URL = "http://images.cocodataset.org"
"""Plain HTTP: the certificate of this host is for another name. The checksums stand in for it."""

_IMAGES = {
    "train2017": (
        "zips/train2017.zip",
        19336861798,
        "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
    ),
    "val2017": (
        "zips/val2017.zip",
        815585330,
        "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
    ),
}
_OBJECTS = (
    "annotations/annotations_trainval2017.zip",
    252907541,
    "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
)
_ANNOTATIONS = {
    "captions": _OBJECTS,
    "instances": _OBJECTS,
    "panoptic": (
        "annotations/panoptic_annotations_trainval2017.zip",
        860725834,
        "c05f76d2129b6b561eb70efe16e7006df62f73fb92889132d373b9d90e31a370",
    ),
}

DA2K_REPOSITORY, DA2K_FILE = "depth-anything/DA-2K", "DA-2K.zip"


@dataclass(frozen=True)
class Part:
    """What is taken from an archive."""

    out: Path
    member: str = ""
    """A file or folder."""
    inner: str = ""
    """The archive within the archive that holds the member."""
    beside: str = ""
    """Instead of a member: the folder, wherever it lies, that holds a file of this name."""


def download_coco(
    out: str | Path,
    splits: Sequence[str],
    annotations: Sequence[str] = (),
    mirror: str | None = None,
    *,
    progress: bool = True,
) -> list[Path]:
    """Fetch images and annotations of COCO 2017 to the folder `out`, in COCO's own layout.

    What is there already is left as it is; a call that was stopped is gone on with.

    Args:
        out: root of COCO; made if it does not exist.
        splits: of train2017, val2017.
        annotations: of captions, instances, panoptic; for all of the splits.
        mirror: URL of a copy of COCO's server.
        progress: show bars.

    Returns:
        The folders and files asked for.

    Raises:
        InnerVisionError: an unknown name; not enough room on the disk; or the server cannot be reached, or has
            something else.
    """
    for kind, names, known in (("split", splits, [*_IMAGES]), ("annotation", annotations, [*_ANNOTATIONS])):
        if unknown := [name for name in names if name not in known]:
            raise InnerVisionError(f"there is no {kind} {unknown[0]!r} of COCO 2017; there are: {', '.join(known)}")
    out = Path(out).expanduser()
    parts: dict[Remote, list[Part]] = {}

    def add(entry: tuple[str, int, str], *wanted: Part) -> None:
        path, size, sha256 = entry
        parts.setdefault(Remote(f"{(mirror or COCO_URL).rstrip('/')}/{path}", size, sha256), []).extend(wanted)

    for split in splits:
        for annotation in annotations:
            name = f"annotations/{annotation}_{split}"
            add(_ANNOTATIONS[annotation], Part(out / f"{name}.json", f"{name}.json"))
            if annotation == "panoptic":
                add(_ANNOTATIONS[annotation], Part(out / name, f"panoptic_{split}", inner=f"{name}.zip"))
    for split in splits:
        add(_IMAGES[split], Part(out / split, split))
    _get(out, parts, progress)
    return [part.out for wanted in parts.values() for part in wanted]


def download_da2k(out: str | Path, mirror: str | None = None, *, progress: bool = True) -> Path:
    """Fetch DA-2K from the Hub to the folder `out`, as `out/DA-2K`. See `download_coco`.

    Args:
        out: made if it does not exist.
        mirror: URL of a copy of the Hub.
        progress: show bars.
    """
    out = Path(out).expanduser()
    folder = out / "DA-2K"
    if not folder.exists():
        _get(out, {_da2k(mirror): [Part(folder, beside="annotations.json")]}, progress)
    return folder


def _da2k(mirror: str | None) -> Remote:
    """Ask the Hub for the file's present commit, size and checksum."""
    try:
        found = HfApi(endpoint=mirror).dataset_info(DA2K_REPOSITORY, files_metadata=True)
    except Exception as error:  # the Hub's library changes its own HTTP library, and with it what it raises
        raise InnerVisionError(f"cannot ask for {DA2K_REPOSITORY} on the Hub: {error}") from error
    for file in found.siblings or []:
        if file.rfilename == DA2K_FILE and file.lfs and file.size:
            url = hf_hub_url(DA2K_REPOSITORY, DA2K_FILE, repo_type="dataset", revision=found.sha, endpoint=mirror)
            return Remote(url, file.size, file.lfs.sha256)
    raise InnerVisionError(f"{DA2K_REPOSITORY} on the Hub holds no {DA2K_FILE} (with size and checksum) any more")


def _get(out: Path, wanted: dict[Remote, list[Part]], progress: bool) -> None:
    """Fetch the archives of which something is missing, one by one, and unpack it."""
    downloads = out / ".downloads"
    missing = {remote: parts for remote, parts in wanted.items() if not all(part.out.exists() for part in parts)}
    archives = {remote: downloads / remote.url.rsplit("/", 1)[1] for remote in missing}
    check_space(out, _peak(archives))
    for remote, parts in missing.items():
        archive = archives[remote]
        download(remote, archive, progress=progress)
        for part in parts:
            _unpack(archive, part, progress)
        archive.unlink()
    if downloads.exists() and not any(downloads.iterdir()):
        downloads.rmdir()


def _peak(archives: dict[Remote, Path]) -> int:
    """Estimate the most bytes that are needed at a time: images, and label maps, are unpacked to about their size."""
    unpacked = peak = 0
    for remote, archive in archives.items():
        here = [path.stat().st_size for path in (archive, partial(archive)) if path.exists()]
        peak = max(peak, unpacked + 2 * remote.size - sum(here))
        unpacked += remote.size
    return peak


def _unpack(archive: Path, part: Part, progress: bool) -> None:
    if not part.inner:
        member = _folder_of(archive, part.beside) if part.beside else part.member
        unpack(archive, member, part.out, progress=progress)
        return
    with ExitStack() as stack:
        try:
            inner = stack.enter_context(stack.enter_context(ZipFile(archive)).open(part.inner))
        except (BadZipFile, KeyError) as error:
            raise InnerVisionError(f"{archive} holds no {part.inner}") from error
        unpack(inner, part.member, part.out, progress=progress)


def _folder_of(archive: Path, file: str) -> str:
    """Give the highest folder that holds `file`."""
    try:
        with ZipFile(archive) as opened:
            found = [name for name in opened.namelist() if f"/{name}".endswith(f"/{file}")]
    except BadZipFile as error:
        raise InnerVisionError(f"cannot unpack {archive}: {error}") from error
    if not found:
        raise InnerVisionError(f"{archive} holds no {file}")
    return min(found, key=lambda name: name.count("/")).removesuffix(file).rstrip("/")
