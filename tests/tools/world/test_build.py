"""Building the world's models part by part, and their card."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tools.world.__main__ import main
from tools.world.build import Part, build
from tools.world.card import Figure, Section, write_card
from tools.world.training import load_scenes, optimize
from torch import nn

from innervision.errors import InnerVisionError
from innervision.world.scenes import CATEGORIES, render
from tools.world import build as building


class Lesson:
    """A part whose `models` hold one random number; it can be made to stop half-way."""

    def __init__(self, *models: str) -> None:
        self.models, self.calls, self.stop = models, 0, False

    def train(self, out: Path, scenes: Any, seed: int, *, effort: float, progress: bool) -> None:
        self.calls += 1
        for model in self.models:
            (out / model).mkdir(exist_ok=True)
            (out / model / "config.json").write_text(str(torch.rand(1).item()))
            if self.stop:
                raise KeyboardInterrupt

    def measure(self, models: Path, *, progress: bool) -> list[Section]:
        return [
            Section(model, "By chance.", [Figure("right, %", 96.5, {"mean map": 50.25}, 40)]) for model in self.models
        ]


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> dict[str, Lesson]:
    lessons = {"one": Lesson("one"), "two": Lesson("small", "big")}
    monkeypatch.setattr(building, "PARTS", {name: Part(name, part.models) for name, part in lessons.items()})
    monkeypatch.setattr("tools.world.card.PARTS", building.PARTS)
    monkeypatch.setattr(
        Part,
        "load",
        lambda part: SimpleNamespace(train=lessons[part.module].train, measure=lessons[part.module].measure),
    )
    return lessons


def test_finished_parts_stay_and_an_interrupted_one_is_trained_again(parts: dict[str, Lesson], tmp_path: Path) -> None:
    parts["two"].stop = True
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, effort=0, progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".scenes", ".two", "build.json", "one"]
    before = (tmp_path / "one/config.json").stat().st_mtime_ns
    parts["two"].stop = False
    build(tmp_path, effort=0, progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".scenes", "big", "build.json", "one", "small"]
    assert (tmp_path / "one/config.json").stat().st_mtime_ns == before
    assert [part.calls for part in parts.values()] == [1, 2]


def test_a_part_does_not_depend_on_what_was_trained_before_it(parts: dict[str, Lesson], tmp_path: Path) -> None:
    build(tmp_path / "all", effort=0, progress=False)
    torch.rand(3)
    build(tmp_path / "alone", ["two"], effort=0, progress=False)
    assert not (tmp_path / "alone/one").exists()
    made = [(tmp_path / out / "big/config.json").read_text() for out in ("all", "alone")]
    assert made[0] == made[1]
    build(tmp_path / "other", ["two"], seed=1, effort=0, progress=False)
    assert (tmp_path / "other/big/config.json").read_text() != made[0]


def test_an_unknown_part_is_named(parts: dict[str, Lesson], tmp_path: Path) -> None:
    with pytest.raises(InnerVisionError, match="no part 'three'; the parts are one, two"):
        build(tmp_path, ["three"])


def test_a_clone_builds_and_measures_from_the_command_line(
    parts: dict[str, Lesson], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "world")
    assert main(["build", "--out", out, "--only", "two", "--effort", "0"]) == 0
    assert main(["card", "--out", out]) == 0
    assert "## world/big" in capsys.readouterr().out
    assert main(["build", "--out", out, "--only", "three"]) == 1
    assert capsys.readouterr().err == "tools.world: error: there is no part 'three'; the parts are one, two\n"


def test_the_card_has_each_figure_beside_its_baselines(parts: dict[str, Lesson], tmp_path: Path) -> None:
    build(tmp_path, effort=0, progress=False)
    card = write_card(tmp_path, progress=False).read_text()
    assert [line for line in card.splitlines() if line.startswith("## ")] == [
        "## world/one",
        "## world/small",
        "## world/big",
    ]
    assert card.count("| right, % | **96.5** | mean map: 50.25 | 40 |") == 3
    entries = json.loads((tmp_path / "card.json").read_text())
    assert entries[0]["figures"] == [{"what": "right, %", "value": 96.5, "baselines": {"mean map": 50.25}, "count": 40}]
    assert entries[0]["build"]["seed"] == 0
    with pytest.raises(InnerVisionError, match=r"python -m tools\.world build"):
        write_card(tmp_path / "empty", progress=False)


def test_scenes_in_bulk_are_the_renderers(tmp_path: Path) -> None:
    load_scenes(tmp_path, "val", 3, progress=False)
    scenes = load_scenes(tmp_path, "val", 3, progress=False)  # from the disk
    scene = render(0, 500_000_002)
    assert len(scenes) == 3
    np.testing.assert_array_equal(scenes.images[1], scene.image)
    np.testing.assert_array_equal(scenes.panoptic[1], scene.panoptic)
    np.testing.assert_allclose(scenes.depths[1], scene.depth, rtol=1e-3)
    for segment in scene.segments:
        positions = np.unique(scenes.semantic[1][scene.panoptic == segment.id])
        assert [CATEGORIES[position]["id"] for position in positions] == [segment.category_id]
    assert scenes.captions[1] == scene.captions
    assert [item["shape"] for item in scenes.objects[1]] == [item.shape for item in scene.objects]
    assert [item["named"] for item in scenes.objects[1]] == [item.named for item in scene.objects]


def test_the_loop_finds_the_least_squares_solution_and_keeps_it(tmp_path: Path) -> None:
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    y = x @ torch.tensor([[1.0], [-2.0], [0.5]]) + 3
    model = nn.Linear(3, 1)
    kept = tmp_path / "kept.safetensors"
    optimize(model, lambda _: (model(x) - y).square().mean(), 300, 0.1, weight_decay=0, saved=kept, progress=False)
    torch.testing.assert_close(model.weight, torch.tensor([[1.0, -2.0, 0.5]]), atol=1e-3, rtol=0)
    torch.testing.assert_close(model.bias, torch.tensor([3.0]), atol=1e-3, rtol=0)
    again = nn.Linear(3, 1)
    optimize(again, lambda _: pytest.fail("it was learnt before"), 300, 0.1, saved=kept, progress=False)
    assert torch.equal(again.weight, model.weight)
    assert not again.training


@pytest.mark.parametrize(("name", "lost"), [("depth", []), ("seg", []), ("gen", ["U-Net"])])
def test_an_interrupted_training_resumes_to_the_same_weights(
    name: str, lost: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if it had been stopped in its last stage."""
    part = building.PARTS[name]
    monkeypatch.setattr(part.load(), "BATCH", 4, raising=False)
    scenes = load_scenes(tmp_path / "scenes", "train", 64, progress=False)

    def train() -> dict[str, dict[str, torch.Tensor]]:
        torch.manual_seed(0)
        part.load().train(tmp_path, scenes, 0, effort=0.0005, progress=False)
        files = [path for path in tmp_path.rglob("*.safetensors") if path.parent.name in part.models]
        return {str(path): load_file(path) for path in files}

    whole = train()
    for stage in lost:
        (tmp_path / f"{stage}.safetensors").unlink()
    shutil.rmtree(tmp_path / part.models[-1])
    again = train()
    assert again.keys() == whole.keys()
    for path, weights in whole.items():
        for key, weight in weights.items():
            assert torch.equal(again[path][key], weight), f"{path}: {key}"
