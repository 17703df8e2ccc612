"""Overlap of label maps, against scikit-learn and the original's numbers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import confusion_matrix, jaccard_score

from innervision.metrics.segmentation import count_pixels, overlap, predict_classes
from innervision.original.scoring import paper_iou

CLASSES = 5


@pytest.fixture
def maps() -> tuple[torch.Tensor, torch.Tensor]:
    """A prediction of four of five classes, and a truth of three with void."""
    rng = np.random.default_rng(0)
    prediction = torch.from_numpy(rng.integers(0, 4, (30, 40)))
    truth = torch.from_numpy(rng.choice([0, 1, 2, 255], (30, 40)).astype(np.uint8))
    return prediction, truth


def test_counts_are_scikit_learns_confusion_matrix(maps: tuple[torch.Tensor, torch.Tensor]) -> None:
    prediction, truth = maps
    counts = count_pixels(prediction, truth, CLASSES)
    labels = [0, 1, 2, 3, 4, 255]
    expected = confusion_matrix(truth.flatten(), prediction.flatten(), labels=labels)
    np.testing.assert_array_equal(counts.numpy(), expected)


def test_what_is_no_class_stands_in_the_last_column_and_is_wrong() -> None:
    truth = torch.tensor([0, 0, 1, 1, 255])
    counts = count_pixels(torch.tensor([0, -1, 2, 1, -1]), truth, 2)
    assert counts.tolist() == [[1, 0, 1], [0, 1, 1], [0, 0, 1]]  # -1, and a class beyond the last
    found = overlap(counts)
    assert found.intersection.tolist() == [1, 1]
    assert found.truth.tolist() == [2, 2]
    assert found.union.tolist() == [2, 2]  # no class enters no other class's union
    assert overlap(counts, void=True).union.tolist() == [2, 2]
    assert paper_iou(counts) == 0.5


def test_the_largest_finite_score_wins_and_other_pixels_have_no_class() -> None:
    scores = torch.tensor([[0.1, 0.9, torch.nan, 0.2, torch.nan], [0.8, 0.3, 0.5, torch.inf, torch.nan]])
    assert predict_classes(scores[:, None]).tolist() == [[1, 0, -1, -1, -1]]


def test_a_map_without_a_finite_score_scores_nothing_by_both_rules() -> None:
    truth = torch.tensor([[0, 0, 1], [1, 1, 255]])
    counts = count_pixels(predict_classes(torch.full((2, 2, 3), torch.nan)), truth, 2)
    found = overlap(counts)
    assert found.intersection.sum() == 0
    assert found.union.tolist() == [2, 3]
    assert paper_iou(counts) == 0


def test_overlap_is_torchmetrics_where_every_score_is_finite() -> None:
    from torchmetrics.functional.classification import multiclass_jaccard_index

    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(CLASSES, 30, 40, generator=generator)
    truth = torch.randint(0, CLASSES + 1, (30, 40), generator=generator)  # 5 is void
    found = overlap(count_pixels(predict_classes(scores), truth, CLASSES))
    expected = multiclass_jaccard_index(scores[None], truth[None], CLASSES, average="none", ignore_index=CLASSES)
    torch.testing.assert_close((found.intersection / found.union), expected)


def test_overlap_is_scikit_learns_jaccard_where_void_is_left_out(maps: tuple[torch.Tensor, torch.Tensor]) -> None:
    prediction, truth = maps
    found = overlap(count_pixels(prediction, truth, CLASSES))
    known = truth != 255
    expected = jaccard_score(truth[known], prediction[known], labels=range(4), average=None)
    np.testing.assert_allclose((found.intersection / found.union)[:4], expected)
    assert found.truth.tolist() == [int((truth == label).sum()) for label in range(CLASSES)]
    assert found.union[4] == 0  # neither there nor predicted


def test_counts_add_up_over_images(maps: tuple[torch.Tensor, torch.Tensor]) -> None:
    prediction, truth = maps
    parts = sum(count_pixels(prediction[rows], truth[rows], CLASSES) for rows in (slice(0, 7), slice(7, 30)))
    assert torch.equal(parts, count_pixels(prediction, truth, CLASSES))


def test_the_paper_score_is_the_originals(shared: Path) -> None:
    maps = load_file(shared / "golden/metrics/mask_iou.safetensors")
    cases = json.loads((shared / "golden/metrics/mask_iou.json").read_text())["cases"]
    assert len(cases) == 8
    for case in cases:
        [(name, expected)] = case.items()
        prediction, truth = maps[f"{name}.pred"], maps[f"{name}.gt"]
        void = truth == 255  # a prediction of 255 is a class like others, but one that is never there
        found = paper_iou(count_pixels(prediction, truth.int().masked_fill(void, 256), 256))
        assert found == pytest.approx(expected, rel=1e-12, nan_ok=True), name
