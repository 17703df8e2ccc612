"""Training in several processes: the probes of one, and an end for all of them when one fails."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from innervision.config import ProbeSettings, TrainSettings
from innervision.probes import read_metadata
from stand_ins import weights, write_noise_images
from tiny_experts import save_tiny_depth, save_tiny_gen
from tiny_mllms import save_tiny
from together import run_together
from train_runs import train

RESAMPLER = ProbeSettings(kind="resampler", heads=2, dim_head=8)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the processes have
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiny models, two experts, and 19 images of which one is broken."""
    root = tmp_path_factory.mktemp("together")
    for family in ("llava", "qwen2_vl"):
        save_tiny(family, root / family)
    save_tiny_depth(root / "depth")
    save_tiny_gen(root / "gen")
    write_noise_images(root / "images", 19, size=(40, 60))
    (root / "images/0004.png").write_bytes(b"no image")
    return root


@pytest.fixture
def settings(folder: Path, tmp_path: Path) -> TrainSettings:
    return TrainSettings(
        mllm=str(folder / "llava"),
        targets=f"depth={folder / 'depth'},gen={folder / 'gen'}",
        images=str(folder / "images"),
        out=str(tmp_path / "one"),
        layers="vision,0,4",
        batch_size=4,
        micro_batch_size=1,  # else states would depend on the images beside
        workers=0,
        save_minutes=60,
        device="cpu",
    )


def facts_of(out: str, target: str) -> dict[str, Any]:
    return read_metadata(Path(out) / f"probes/{target}.safetensors")["facts"]


def log_of(out: str) -> list[dict[str, Any]]:
    lines = (Path(out) / "train/log.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "images_per_second"} for line in lines]


def assert_close(out: str, other: str, tolerance: float) -> None:
    """Every tensor differs by less than this share of its norm."""
    first, second = weights(out), weights(other)
    assert first.keys() == second.keys()
    for key, value in first.items():
        distance = (value.double() - second[key].double()).norm() / value.double().norm().clamp(min=1e-12)
        assert distance < tolerance, f"{key}: {distance:.2g}"


def assert_same_exact_probes(out: str, other: str) -> None:
    assert_close(out, other, 1e-6)  # files hold float32
    assert log_of(out) == log_of(other)
    assert (Path(out) / "train/bad_images.json").read_text() == (Path(other) / "train/bad_images.json").read_text()
    for target in ("depth", "gen"):
        facts, others = facts_of(out, target), facts_of(other, target)
        assert facts["images"] == others["images"] == 18
        for layer, here in facts["held_out"].items():
            there = others["held_out"][layer]
            assert here["images"] == there["images"]
            assert here["penalty"] == there["penalty"]
            assert here["explained_variance"] == pytest.approx(there["explained_variance"], rel=1e-9, abs=1e-12)
            assert here["unseen"] == pytest.approx(there["unseen"], abs=1e-12)


@pytest.mark.parametrize(("count", "family"), [(2, "llava"), (3, "qwen2_vl")])
def test_exact_probes_of_several_processes_are_those_of_one(
    settings: TrainSettings, folder: Path, tmp_path: Path, count: int, family: str
) -> None:
    """Bad images, the log, the held-out images, the curve over the number of images, and the probes."""
    settings = replace(settings, mllm=str(folder / family))
    train(0, settings)
    several = replace(settings, out=str(tmp_path / "several"))
    assert run_together(count, train, several) == [["depth", "gen"], *[[]] * (count - 1)]
    assert_same_exact_probes(settings.out, several.out)
    assert len(facts_of(several.out, "depth")["held_out"]["4"]["images"]) > 2
    assert list(json.loads((tmp_path / "several/train/bad_images.json").read_text())) == ["0004.png"]


@pytest.mark.parametrize(("count", "family"), [(2, "qwen2_vl"), (3, "llava")])
def test_trained_probes_of_several_processes_are_those_of_one(
    settings: TrainSettings, folder: Path, tmp_path: Path, count: int, family: str
) -> None:
    """25 steps; in the last of each epoch there are 3 images, of which one process may have none that is good."""
    settings = replace(settings, mllm=str(folder / family), probe=RESAMPLER, epochs=5)
    train(0, settings)
    several = replace(settings, out=str(tmp_path / "several"))
    assert run_together(count, train, several) == [["depth", "gen"], *[[]] * (count - 1)]
    assert_close(settings.out, several.out, 1e-5)
    for mine, theirs in zip(log_of(several.out), log_of(settings.out), strict=True):
        assert mine["learning_rate"] == theirs["learning_rate"]
        for name, by_layer in mine["loss"].items():
            assert by_layer == pytest.approx(theirs["loss"][name], rel=1e-5)
    assert len(log_of(several.out)) == 25
