"""The task seg: counts of pixels become scores; which class of which expert; and what is not finite is wrong."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from innervision.config import TaskSettings
from innervision.errors import InnerVisionError
from innervision.targets.seg import SegTarget
from innervision.targets.target import Maps
from innervision.tasks.evaluation import Scores
from innervision.tasks.seg import Seg
from task_runs import NAMES, write_panoptic
from tiny_experts import save_tiny_seg


def save_expert(folder: Path, names: list[str]) -> SegTarget:
    save_tiny_seg(folder, num_classes=len(names))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"id2label": dict(enumerate(names))}))
    return SegTarget.load(str(folder), name=folder.name, size=64, head=True, device="cpu")


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> list[SegTarget]:
    """Two that know the same classes by other numbers."""
    root = tmp_path_factory.mktemp("experts")
    return [save_expert(root / "one", NAMES), save_expert(root / "two", [NAMES[i] for i in (3, 1, 4, 0, 2)])]


@pytest.fixture
def task(experts: list[SegTarget], tmp_path: Path) -> Seg:
    write_panoptic(tmp_path / "coco")
    task = Seg(TaskSettings(data=str(tmp_path / "coco")))
    task.prepare(experts)
    return task


def maps_that_say(truth: np.ndarray, target: SegTarget, categories: list[str]) -> Tensor:
    """Scores (K, H, W) of an expert that sees the truth; void is seen as the first class."""
    classes = torch.tensor([target.labels.index(name) for name in categories])
    labels = classes[torch.from_numpy(truth.astype(np.int64)).where(torch.from_numpy(truth) < len(categories), 0)]
    return torch.nn.functional.one_hot(labels, len(categories)).permute(2, 0, 1).float()


def values(scores: list[Scores], metric: str, protocol: str = "standard") -> Tensor:
    [found] = [each.values for each in scores if (each.metric, each.protocol) == (metric, protocol)]
    return found


def truths_of(task: Seg) -> list[np.ndarray]:
    return [task.truth(name, Image.new("RGB", (1, 1))) for name in task.images.names]


def test_every_expert_is_read_by_its_own_numbers_of_the_classes(task: Seg, experts: list[SegTarget]) -> None:
    truths = truths_of(task)
    for target in experts:
        exact = torch.stack([maps_that_say(truth, target, task.categories) for truth in truths])
        scores = task.score(exact, truths, target)
        assert values(scores, "miou").nan_to_num(1.0).eq(1).all()
        assert values(scores, "pixel_accuracy").eq(1).all()
        other = experts[1] if target is experts[0] else experts[0]
        assert values(task.score(exact, truths, other), "pixel_accuracy").lt(0.6).all()


def test_an_expert_of_other_classes_is_refused_by_name(task: Seg, tmp_path: Path) -> None:
    other = save_expert(tmp_path / "other", [*NAMES[:4], "sky"])
    with pytest.raises(InnerVisionError, match=r"other and .* do not have the same classes.* lacks 'class 4'"):
        task.prepare([other])


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_map_that_is_nowhere_finite_scores_nothing(value: float, task: Seg, experts: list[SegTarget]) -> None:
    truths = truths_of(task)
    outputs: Maps = torch.full((len(truths), 5, 6, 8), value)
    scores = task.score(outputs, truths, experts[0])
    assert values(scores, "miou").nan_to_num(0).eq(0).all()
    assert values(scores, "pixel_accuracy").eq(0).all()
    assert values(scores, "miou", "paper").eq(0).all()


def test_a_pixel_that_is_not_finite_costs_itself_alone(task: Seg, experts: list[SegTarget]) -> None:
    truth = truths_of(task)[0]
    exact = maps_that_say(truth, experts[0], task.categories)
    row, column = np.argwhere(truth < 5)[0]
    exact[2, row, column] = torch.nan  # the map has the size of the truth, so no other pixel is made of it
    accuracy = values(task.score(exact[None], [truth], experts[0]), "pixel_accuracy")
    assert accuracy.item() == pytest.approx(1 - 1 / (truth < 5).sum())


def test_maps_may_differ_in_size(task: Seg, experts: list[SegTarget]) -> None:
    truths = truths_of(task)[:2]
    exact = [maps_that_say(truth, experts[0], task.categories) for truth in truths]
    exact[1] = exact[1].repeat_interleave(2, dim=1)
    assert values(task.score(exact, truths, experts[0]), "pixel_accuracy")[0] == 1
