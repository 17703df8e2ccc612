"""The task depth: pairs of points become scores by two rules, also for maps that say nothing."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from innervision.config import TaskSettings
from innervision.targets.depth import DepthTarget
from innervision.tasks.depth import Depth, Question
from innervision.tasks.evaluation import Scores
from task_runs import write_pairs
from tiny_experts import save_tiny_depth


@pytest.fixture
def task(tmp_path: Path) -> Depth:
    write_pairs(tmp_path / "DA-2K")
    return Depth(TaskSettings(data=str(tmp_path / "DA-2K")))


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> DepthTarget:
    return DepthTarget.load(str(save_tiny_depth(tmp_path_factory.mktemp("depth"))), size=56, head=True, device="cpu")


def questions_of(task: Depth) -> list[Question]:
    questions = []
    for name, path in zip(task.images.names, task.images.paths, strict=True):
        questions.append(task.truth(name, Image.open(path)))
    return questions


def overall(scores: list[Scores], metric: str, protocol: str = "standard") -> Tensor:
    [found] = [each for each in scores if (each.metric, each.protocol, each.groups) == (metric, protocol, None)]
    return found.values


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 3.5])
def test_a_map_that_says_nothing_is_wrong_in_standard_and_right_in_paper(
    value: float, task: Depth, target: DepthTarget
) -> None:
    questions = questions_of(task)
    scores = task.score(torch.full((len(questions), 24, 24), value), questions, target)
    assert overall(scores, "accuracy").eq(0).all()
    assert overall(scores, "ties").eq(1).all()
    assert overall(scores, "accuracy", "paper").eq(1).all()  # point 1 is always right, and a tie counts for it


def test_shares_are_of_the_images_own_pairs_and_weighted_by_their_number(task: Depth, target: DepthTarget) -> None:
    questions = questions_of(task)
    upper_is_closer = torch.linspace(1, 0, 40)[:, None].expand(40, 40)
    scores = task.score(upper_is_closer.expand(len(questions), 40, 40), questions, target)
    expected = [
        ((points[:, 0, 0] < points[:, 1, 0]) == (closer == 1)).mean()
        for points, closer in ((question.pairs.points, question.pairs.closer) for question in questions)
    ]
    same_row = [(question.pairs.points[:, 0, 0] == question.pairs.points[:, 1, 0]).mean() for question in questions]
    torch.testing.assert_close(overall(scores, "ties"), torch.tensor(same_row, dtype=torch.float64))
    assert overall(scores, "accuracy").tolist() == pytest.approx(expected)
    weights = next(each.weights for each in scores if each.metric == "accuracy")
    assert weights is not None
    assert weights.tolist() == [len(question.pairs.closer) for question in questions]


def test_types_of_scenes_have_scores_of_their_own(task: Depth, target: DepthTarget) -> None:
    questions = questions_of(task)
    scores = task.score(torch.rand(len(questions), 24, 24), questions, target)
    grouped = [each for each in scores if each.groups is not None]
    assert [each.protocol for each in grouped] == ["standard", "paper"]
    assert set(grouped[0].groups or ()) == {"indoor", "outdoor"}
