"""Overlap of label maps, against scikit-learn and the original's numbers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import confusion_matrix, jaccard_score

from innervision.metrics.segmentation import count_pixels, overlap
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
    np.testing.assert_array_equal(counts.numpy(), expected[:, :CLASSES])


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
