"""The task depth: pairs of points become scores by two rules, also for maps that say nothing."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from innervision.config import TaskSettings
from innervision.data.loader import Batch
from innervision.targets.depth import DepthTarget
from innervision.targets.target import Context
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


def score(task: Depth, maps: Tensor, questions: list[Question], target: DepthTarget) -> list[Scores]:
    """Score maps where the mean feature is not known."""
    names = [question.name for question in questions]
    batch = Batch(names, None, {"depth": torch.zeros(len(names), 3, 56, 56)}, [], questions)
    task.compare(batch, target, torch.full((target.num_tokens, target.width), torch.nan), {})
    return task.score(maps, questions, target)


def overall(scores: list[Scores], metric: str, protocol: str = "standard") -> Tensor:
    [found] = [each for each in scores if (each.metric, each.protocol, each.groups) == (metric, protocol, None)]
    return found.values


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 3.5])
def test_a_map_that_says_nothing_is_wrong_in_standard_and_right_in_paper(
    value: float, task: Depth, target: DepthTarget
) -> None:
    questions = questions_of(task)
    scores = score(task, torch.full((len(questions), 24, 24), value), questions, target)
    assert overall(scores, "accuracy").eq(0).all()
    assert overall(scores, "ties").eq(1).all()
    assert overall(scores, "accuracy", "paper").eq(1).all()  # point 1 is always right, and a tie counts for it


def test_shares_are_of_the_images_own_pairs_and_weighted_by_their_number(task: Depth, target: DepthTarget) -> None:
    questions = questions_of(task)
    upper_is_closer = torch.linspace(1, 0, 40)[:, None].expand(40, 40)
    scores = score(task, upper_is_closer.expand(len(questions), 40, 40), questions, target)
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
    scores = score(task, torch.rand(len(questions), 24, 24), questions, target)
    grouped = [each for each in scores if each.groups is not None]
    assert [each.protocol for each in grouped] == ["standard", "paper"]
    assert set(grouped[0].groups or ()) == {"indoor", "outdoor"}


# --- what the mean feature gets right, and what it does not


@dataclass
class MapTarget:
    """Its features are the map: four tokens of one number, for an image of 2 × 2 pixels."""

    name: str = "depth"
    kind: str = "depth"
    draws_at_random: bool = False
    device = torch.device("cpu")

    def context(self, pixels: Tensor) -> Context:
        return Context(pixels)

    def decode(self, features: Tensor, context: Context, *, seeds: Sequence[int] | None = None) -> Tensor:
        return features.view(-1, 2, 2)


def features_of(*maps: list[list[int]]) -> Tensor:
    return torch.tensor(maps).float().view(len(maps), 4, 1)


MEAN = [[1, 2], [3, 4]]
PAIRS = {
    "a": [((1, 0), (0, 0), 1), ((0, 1), (1, 1), 1), ((1, 1), (1, 0), 2)],  # MEAN says: 3 > 1, 2 < 4, 4 > 3
    "b": [((1, 0), (0, 1), 1), ((0, 0), (1, 1), 2)],  # 3 > 2, 1 < 4
    "c": [((0, 0), (1, 0), 1)],  # 1 < 3
}
"""Point, point, and which one is closer. MEAN has the first pair of `a` and both of `b` right."""

PREDICTIONS = {"a": [[4, 3], [2, 1]], "b": [[0, 5], [3, 4]], "c": [[0, 2], [0, 1]]}
BLANK = [[0, 0], [0, 1]]

SPLIT = {
    # its own pairs. a: 2 < 4 is wrong; 3 > 1 and 1 < 2 are right. b: 3 < 5 is wrong, 0 < 4 right. c: 0 = 0
    ("a", "probe"): {"right": (0.0, 1), "wrong": (1.0, 2)},
    ("b", "probe"): {"right": (0.5, 2)},
    ("c", "probe"): {"wrong": (0.0, 1)},
    # by the map for the image before. a by c: 0 = 0; 2 > 1 is right, 1 > 0 wrong. b by a: 2 < 3, 4 > 1. c by b: 0 < 3
    ("a", "shuffled"): {"right": (0.0, 1), "wrong": (0.5, 2)},
    ("b", "shuffled"): {"right": (0.0, 2)},
    ("c", "shuffled"): {"wrong": (0.0, 1)},
    # a: 0 = 0; 0 < 1 and 1 > 0 are wrong. b: 0 = 0, 0 < 1 is right. c: 0 = 0
    ("a", "blank"): {"right": (0.0, 1), "wrong": (0.0, 2)},
    ("b", "blank"): {"right": (0.5, 2)},
    ("c", "blank"): {"wrong": (0.0, 1)},
    ("a", "mean"): {"right": (1.0, 1), "wrong": (0.0, 2)},
    ("b", "mean"): {"right": (1.0, 2)},
    ("c", "mean"): {"wrong": (0.0, 1)},
    # the expert's features are the same as BLANK upside down. a: 0 < 0, no; 1 > 0 and 0 = 0. b: 0 < 1, 0 = 0. c: 0 = 0
    ("a", "expert"): {"right": (0.0, 1), "wrong": (0.5, 2)},
    ("b", "expert"): {"right": (0.0, 2)},
    ("c", "expert"): {"wrong": (0.0, 1)},
}
"""By image and source: the share of right verdicts over the pairs that MEAN has right, and over the others; and how
many these are."""


def score_pairs(folder: Path, mean: Tensor) -> dict[str, dict[tuple[str, str], tuple[float, float]]]:
    """Give value and weight of the scores by the standard rule of no group: metric -> (image, source) -> both."""
    (folder / "images").mkdir()
    content = {}
    for name, pairs in PAIRS.items():
        Image.new("RGB", (2, 2)).save(folder / f"images/{name}.png")
        content[f"images/{name}.png"] = [
            {"point1": first, "point2": second, "closer_point": f"point{closer}"} for first, second, closer in pairs
        ]
    (folder / "annotations.json").write_text(json.dumps(content))
    task = Depth(TaskSettings(data=str(folder)))
    experts = features_of(*[[[0, 1], [0, 0]]] * 3)
    batch = Batch([*content], None, {"depth": experts}, [], questions_of(task), paired=True)
    comparison = task.compare(batch, MapTarget(), mean, {5: features_of(BLANK)[0]})
    comparison.predicted(5, features_of(*PREDICTIONS.values()))
    found: dict[str, dict[tuple[str, str], tuple[float, float]]] = {}
    for labels, scores in comparison.finish().scores:
        if scores.protocol != "standard" or scores.groups is not None:
            continue
        assert scores.weights is not None
        rows = range(len(labels)) if scores.labels is None else scores.labels
        for row, value, weight in zip(rows, scores.values.tolist(), scores.weights.tolist(), strict=True):
            key = Path(labels[row].image).stem, labels[row].source
            assert key not in found.setdefault(scores.metric, {})
            found[scores.metric][key] = value, weight
    return found


def test_accuracy_is_split_by_what_the_mean_feature_gets_right_of_the_images_own_pairs(tmp_path: Path) -> None:
    found = score_pairs(tmp_path, features_of(MEAN)[0])
    for part in ("right", "wrong"):
        assert found[f"accuracy_mean_{part}"] == {key: each[part] for key, each in SPLIT.items() if part in each}


def test_both_parts_together_are_the_accuracy(tmp_path: Path) -> None:
    found = score_pairs(tmp_path, features_of(MEAN)[0])
    assert found["accuracy"]["a", "probe"] == (pytest.approx(2 / 3), 3)
    assert found["accuracy"].keys() == SPLIT.keys()
    for key, (value, weight) in found["accuracy"].items():
        parts = [found[f"accuracy_mean_{part}"][key] for part in SPLIT[key]]
        assert sum(number for _, number in parts) == weight
        assert sum(share * number for share, number in parts) == pytest.approx(value * weight)


def test_a_mean_whose_map_says_nothing_gets_no_pair_right(tmp_path: Path) -> None:
    found = score_pairs(tmp_path, features_of([[3, 3], [3, 3]])[0])
    assert "accuracy_mean_right" not in found
    assert found["accuracy_mean_wrong"] == found["accuracy"]
    assert {value for (_, source), (value, _) in found["accuracy"].items() if source == "mean"} == {0}


def test_nothing_is_split_where_the_mean_is_not_known(tmp_path: Path) -> None:
    found = score_pairs(tmp_path, torch.full((4, 1), torch.nan))
    assert found.keys() == {"accuracy", "ties"}
    assert {source for _, source in found["accuracy"]} == {"probe", "shuffled", "blank", "expert"}
