"""COCO and DA-2K from a server on this machine, in the layout that the readers read."""

import io
import json
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from zipfile import ZipFile

import numpy as np
import pytest
from huggingface_hub import constants, file_download
from huggingface_hub.utils import _http
from PIL import Image

from innervision.cli import main
from innervision.data import benchmarks, find_images, read_da2k, read_panoptic
from innervision.data.benchmarks import download_coco, download_da2k
from innervision.errors import InnerVisionError
from unreliable_server import Server, serve

IMAGES, OBJECTS, PANOPTIC = (
    "/zips/val2017.zip",
    *(f"/annotations/{name}annotations_trainval2017.zip" for name in ("", "panoptic_")),
)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100)  # as much is lost at most when a connection is cut
    for module in (file_download, _http):
        monkeypatch.setattr(module, "time", SimpleNamespace(sleep=lambda seconds: None, time=time.time))
    with serve() as server:
        yield server


@pytest.fixture
def coco(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """Two images and their annotations, packed as COCO packs them, with their checksums."""
    images = [{"id": number, "file_name": f"{number}.jpg", "width": 4, "height": 2} for number in (1, 2)]
    segments = [{"id": 1, "category_id": 5, "iscrowd": 0}]
    panoptic = {
        "images": images,
        "annotations": [{"image_id": n, "file_name": f"{n}.png", "segments_info": segments} for n in (1, 2)],
        "categories": [{"id": 5, "name": "cup"}],
    }
    noise = np.random.default_rng(0).integers(0, 256, (2, 90, 160, 3), dtype=np.uint8)
    maps = pack({f"panoptic_val2017/{n}.png": image(np.full((2, 4, 3), [1, 0, 0], np.uint8), "png") for n in (1, 2)})
    archives = {
        IMAGES: {"val2017/": b"", **{f"val2017/{n}.jpg": image(noise[n - 1], "jpeg") for n in (1, 2)}},
        OBJECTS: {
            f"annotations/{kind}_{split}2017.json": json.dumps({"images": images, "annotations": []}).encode()
            for kind in ("captions", "instances", "person_keypoints")
            for split in ("train", "val")
        },
        PANOPTIC: {
            "annotations/panoptic_val2017.json": json.dumps(panoptic).encode(),
            "annotations/panoptic_val2017.zip": maps,
            "__MACOSX/annotations/._panoptic_val2017.json": b"",
        },
    }
    entries = {}
    for path, files in archives.items():
        remote = server.add(path, pack(files))
        entries[path] = replace(remote, url=path[1:])
    monkeypatch.setitem(benchmarks.COCO_IMAGES, "val2017", entries[IMAGES])
    for kind, path in (("captions", OBJECTS), ("instances", OBJECTS), ("panoptic", PANOPTIC)):
        monkeypatch.setitem(benchmarks.COCO_ANNOTATIONS, kind, entries[path])
    return server


def pack(files: dict[str, bytes]) -> bytes:
    data = io.BytesIO()
    with ZipFile(data, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return data.getvalue()


def image(pixels: np.ndarray, kind: str) -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, kind)
    return data.getvalue()


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def fetch(server: Server, out: Path, *annotations: str) -> list[Path]:
    return download_coco(out, ["val2017"], annotations, server.url)


def asked(server: Server) -> list[str]:
    return [path for path, _ in server.asked]


def test_a_command_fetches_what_the_readers_read(
    coco: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "coco"
    words = ["--split", "val2017", "--annotations", "captions,panoptic", "--mirror", coco.url + "/"]
    assert main(["data", "coco", *words, str(out)]) == 0
    assert names(out) == {
        *("val2017/1.jpg", "val2017/2.jpg"),
        *("annotations/captions_val2017.json", "annotations/panoptic_val2017.json"),
        *("annotations/panoptic_val2017/1.png", "annotations/panoptic_val2017/2.png"),
    }
    assert not (out / ".downloads").exists()
    shown = capsys.readouterr().out.split()
    assert shown == [
        str(out / name)
        for name in (
            "annotations/captions_val2017.json",
            "annotations/panoptic_val2017.json",
            "annotations/panoptic_val2017",
            "val2017",
        )
    ]
    assert find_images(out / "annotations/captions_val2017.json").names == ["1.jpg", "2.jpg"]
    panoptic = read_panoptic(out, "val2017")
    assert (panoptic.maps["2.jpg"].labels() == 0).all()


def test_finished_things_are_not_fetched_again(coco: Server, tmp_path: Path) -> None:
    fetch(coco, tmp_path, "captions")
    assert sorted(asked(coco)) == [OBJECTS, IMAGES]
    fetch(coco, tmp_path, "captions")
    assert len(coco.asked) == 2
    fetch(coco, tmp_path, "captions", "instances")
    assert asked(coco)[2:] == [OBJECTS]
    assert (tmp_path / "annotations/instances_val2017.json").exists()


def test_one_archive_serves_several_annotations(coco: Server, tmp_path: Path) -> None:
    fetch(coco, tmp_path, "captions", "instances")
    assert asked(coco).count(OBJECTS) == 1


def test_a_call_that_was_cut_resumes(coco: Server, tmp_path: Path) -> None:
    coco.faults = ["", "cut:18000", *["cut:0"] * 20]
    with pytest.raises(InnerVisionError, match="The next call resumes"):
        fetch(coco, tmp_path, "captions")
    assert not (tmp_path / "val2017").exists()
    coco.faults, before = [], len(coco.asked)
    fetch(coco, tmp_path, "captions")
    assert coco.asked[before:] == [(IMAGES, "bytes=18000-")]
    assert names(tmp_path / "val2017") == {"1.jpg", "2.jpg"}


def test_wrong_bytes_are_never_unpacked(coco: Server, tmp_path: Path) -> None:
    right = coco.files[IMAGES]
    coco.files[IMAGES] = right[:200] + bytes([right[200] ^ 1]) + right[201:]
    with pytest.raises(InnerVisionError, match="not the file it should be"):
        fetch(coco, tmp_path)
    assert names(tmp_path) == set()
    coco.files[IMAGES] = right
    fetch(coco, tmp_path)
    assert names(tmp_path) == {"val2017/1.jpg", "val2017/2.jpg"}


def test_room_for_archive_and_images_is_seen_to_first(
    coco: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    free = 2 * len(coco.files[IMAGES]) - 1
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=free))
    with pytest.raises(InnerVisionError, match="are free there"):
        fetch(coco, tmp_path)
    assert coco.asked == []
    free += 1
    fetch(coco, tmp_path)


@pytest.mark.parametrize("words", [["--split", "val2014"], ["--split", "val2017", "--annotations", "stuff"]])
def test_unknown_names(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "coco", *words, str(tmp_path / "coco")]) == 1
    assert "of COCO 2017; there are:" in capsys.readouterr().err
    assert not (tmp_path / "coco").exists()


def test_sizes_and_checksums_are_the_published_ones(shared: Path) -> None:
    text = (shared / "reference.md").read_text()
    published = re.findall(r"`(http://images\S+)` \| (\d+) \| ([0-9a-f]{64})", text)
    entries = {*benchmarks.COCO_IMAGES.values(), *benchmarks.COCO_ANNOTATIONS.values()}
    ours = {(f"{benchmarks.COCO_URL}/{entry.url}", str(entry.size), entry.sha256) for entry in entries}
    assert ours == set(published)
    assert len(ours) == 4


# DA-2K


@pytest.fixture(params=["DA-2K/", ""])
def hub(server: Server, request: pytest.FixtureRequest) -> Server:
    """A Hub with DA-2K, packed with or without a folder around it."""
    pair = {"point1": [0, 0], "point2": [1, 3], "closer_point": "point1"}
    files = {
        "annotations.json": json.dumps({"images/indoor/1.png": [pair]}).encode(),
        "images/indoor/1.png": image(np.zeros((2, 4, 3), np.uint8), "png"),
    }
    server.redirects["/datasets/depth-anything/DA-2K/resolve/main/DA-2K.zip"] = DA2K
    server.files[DA2K] = pack({f"{request.param}{name}": content for name, content in files.items()})
    return server


DA2K = "/storage/of/large/files/1234"


def test_da2k_is_fetched_as_the_reader_reads_it(
    hub: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "da2k", str(tmp_path / "da2k"), "--mirror", hub.url]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "da2k/DA-2K")
    assert names(tmp_path / "da2k") == {"DA-2K/annotations.json", "DA-2K/images/indoor/1.png"}
    assert read_da2k(tmp_path / "da2k").images.names == ["images/indoor/1.png"]
    before = len(hub.asked)
    assert download_da2k(tmp_path / "da2k", hub.url) == tmp_path / "da2k/DA-2K"
    assert len(hub.asked) == before


def test_a_download_of_da2k_that_was_cut_resumes(hub: Server, tmp_path: Path) -> None:
    hub.faults = ["cut:200", *["cut:0"] * 20]
    with pytest.raises(InnerVisionError, match="The next call resumes after 200"):
        download_da2k(tmp_path, hub.url)
    hub.faults = []
    download_da2k(tmp_path, hub.url)
    assert hub.asked[-1] == (DA2K, "bytes=200-")
    assert names(tmp_path) == {"DA-2K/annotations.json", "DA-2K/images/indoor/1.png"}


def test_the_checksum_of_the_hub_counts(hub: Server, tmp_path: Path) -> None:
    hub.etags[DA2K] = "0" * 64
    with pytest.raises(InnerVisionError, match="not the file it should be"):
        download_da2k(tmp_path, hub.url)
    assert names(tmp_path) == set()


@pytest.mark.parametrize("content", [b"no archive", pack({"other.json": b"{}"})])
def test_another_file_of_the_hub_is_refused(hub: Server, tmp_path: Path, content: bytes) -> None:
    hub.files[DA2K] = content
    with pytest.raises(InnerVisionError, match=r"DA-2K\.zip"):
        download_da2k(tmp_path, hub.url)
    assert not (tmp_path / "DA-2K").exists()


def test_a_hub_that_is_not_there(hub: Server, tmp_path: Path) -> None:
    with pytest.raises(InnerVisionError, match="cannot find depth-anything/DA-2K on the Hub"):
        download_da2k(tmp_path, "http://127.0.0.1:1")
