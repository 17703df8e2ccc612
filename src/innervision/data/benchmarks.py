"""COCO and DA-2K, fetched and unpacked.

innervision data coco --split val2017 --annotations captions,panoptic OUT
innervision data da2k OUT
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO
from zipfile import BadZipFile, ZipFile

from huggingface_hub import get_hf_file_metadata, hf_hub_url

from innervision.data.archive import check_space, unpack
from innervision.data.download import Remote, download, partial
from innervision.errors import InnerVisionError, first_line, require
from innervision.files import locked

COCO_URL = "http://images.cocodataset.org"
"""Plain HTTP: the certificate of this host is for another name. The checksums stand in for it."""

COCO_IMAGES = {
    "train2017": Remote(
        "zips/train2017.zip", 19336861798, "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929"
    ),
    "val2017": Remote(
        "zips/val2017.zip", 815585330, "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05"
    ),
}
_OBJECTS = Remote(
    "annotations/annotations_trainval2017.zip",
    252907541,
    "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
)
COCO_ANNOTATIONS = {
    "captions": _OBJECTS,
    "instances": _OBJECTS,
    "panoptic": Remote(
        "annotations/panoptic_annotations_trainval2017.zip",
        860725834,
        "c05f76d2129b6b561eb70efe16e7006df62f73fb92889132d373b9d90e31a370",
    ),
}
"""Archives by what they hold; their URLs are relative to the server's."""

DA2K_REPOSITORY, DA2K_FILE = "depth-anything/DA-2K", "DA-2K.zip"


def download_coco(
    out: str | Path, splits: Sequence[str], annotations: Sequence[str] = (), mirror: str | None = None
) -> list[Path]:
    """Fetch images and annotations of COCO 2017 to the folder `out`, in COCO's own layout.

    What is there already is left as it is; a call that was stopped resumes.

    Args:
        out: root of COCO; made if it does not exist.
        splits: of train2017, val2017.
        annotations: of captions, instances, panoptic; for all of the splits.
        mirror: URL of a copy of COCO's server.

    Returns:
        The folders and files asked for.

    Raises:
        InnerVisionError: an unknown name; not enough room on the disk; or the server cannot be reached, or has
            something else.
    """
    for kind, names, known in (("split", splits, COCO_IMAGES), ("annotation", annotations, COCO_ANNOTATIONS)):
        if unknown := [name for name in names if name not in known]:
            raise InnerVisionError(f"there is no {kind} {unknown[0]!r} of COCO 2017; there are: {', '.join(known)}")
    out = Path(out).expanduser()
    wanted: dict[Remote, dict[Path, Sequence[str]]] = {}  # archive -> path -> member of it, or of an archive within it
    for split in splits:
        for annotation in annotations:
            name, parts = f"annotations/{annotation}_{split}", wanted.setdefault(COCO_ANNOTATIONS[annotation], {})
            parts[out / f"{name}.json"] = [f"{name}.json"]
            if annotation == "panoptic":
                parts[out / name] = [f"{name}.zip", f"panoptic_{split}"]
    for split in splits:
        wanted[COCO_IMAGES[split]] = {out / split: [split]}
    for remote, parts in wanted.items():
        missing = {path: members for path, members in parts.items() if not path.exists()}
        if missing:
            url = f"{(mirror or COCO_URL).rstrip('/')}/{remote.url}"
            with _fetched(replace(remote, url=url), out / ".downloads") as archive, ExitStack() as stack:
                for path, members in missing.items():
                    opened: Path | IO[bytes] = archive
                    for member in members[:-1]:
                        opened = stack.enter_context(stack.enter_context(ZipFile(opened)).open(member))
                    unpack(opened, members[-1], path)
    return [path for parts in wanted.values() for path in parts]


def download_da2k(out: str | Path, mirror: str | None = None) -> Path:
    """Fetch DA-2K from the Hub to the folder `out`, as `out/DA-2K`. A call that was stopped resumes.

    Args:
        out: made if it does not exist.
        mirror: URL of a copy of the Hub.

    Raises:
        InnerVisionError: the Hub cannot be reached or has something else; the disk is too small.
    """
    out = Path(out).expanduser()
    folder = out / "DA-2K"
    if folder.exists():
        return folder
    url = hf_hub_url(DA2K_REPOSITORY, DA2K_FILE, repo_type="dataset", endpoint=mirror)
    try:
        found = get_hf_file_metadata(url)
    except Exception as error:  # huggingface_hub changes its own HTTP library, and with it what it raises
        raise InnerVisionError(f"cannot find {DA2K_REPOSITORY} on the Hub: {first_line(error)}") from error
    # hf_hub_download would start anew after a call that was stopped. The ETag of a large file is its SHA-256.
    with _fetched(Remote(url, found.size or 0, found.etag or ""), out / ".downloads") as archive:
        unpack(archive, _folder_of(archive, "annotations.json"), folder)
    return folder


@contextmanager
def _fetched(remote: Remote, downloads: Path) -> Iterator[Path]:
    """Fetch an archive to the folder `downloads`, and delete it when the block that unpacks it ends well."""
    archive = downloads / remote.url.rpartition("/")[2]
    with locked(downloads / ".lock"):
        here = sum(path.stat().st_size for path in (archive, partial(archive)) if path.exists())
        check_space(downloads, 2 * remote.size - here)  # images, and label maps, are unpacked to about their size
        download(remote, archive)
        yield archive
        archive.unlink()
    with suppress(OSError):  # it holds what another call has begun, or is gone already
        downloads.rmdir()


def _folder_of(archive: Path, file: str) -> str:
    """Give the highest folder of an archive that holds `file`."""
    try:
        with ZipFile(archive) as opened:
            found = [name for name in opened.namelist() if f"/{name}".endswith(f"/{file}")]
    except BadZipFile as error:
        raise InnerVisionError(f"cannot unpack {archive}: {error}") from error
    require(bool(found), f"{archive} holds no {file}")
    return min(found, key=lambda name: name.count("/")).removesuffix(file).rstrip("/")
