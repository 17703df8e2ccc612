"""What the original's metric rules make of predictions that say nothing, on synthetic scenes: docs/original.md.

innervision data scenes scenes --train 256 --val 128 --seed 7
python -m benchmarks.faults scenes
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from innervision.data.da2k import read_da2k
from innervision.data.images import read_image
from innervision.data.panoptic import read_panoptic
from innervision.metrics.pairs import sample, verdicts
from innervision.metrics.segmentation import count_pixels, overlap
from innervision.original.scoring import paper_iou, paper_sample, paper_verdicts

SIDE = 336


def depth(scenes: Path) -> None:
    """Print the accuracy of depth maps over all pairs of points, by both rules, and the share of ties."""
    benchmark = read_da2k(scenes / "da2k")
    rng = np.random.default_rng(0)

    def exact(name: str) -> NDArray[np.float32]:
        millimetres = np.array(Image.open(scenes / "depth/val2017" / Path(name).with_suffix(".png").name), np.float32)
        return np.array(Image.fromarray(1 / millimetres).resize((SIDE, SIDE), Image.Resampling.NEAREST))

    def noise(name: str) -> NDArray[np.float32]:
        return rng.random((SIDE, SIDE), dtype=np.float32)

    def noise_with_an_outlier(name: str) -> NDArray[np.float32]:
        depth = noise(name)
        depth[0, 0] = 1e4
        return depth

    maps: dict[str, Callable[[str], NDArray[np.float32]]] = {
        "the same depth everywhere": lambda name: np.ones((SIDE, SIDE), np.float32),
        "noise": noise,
        "noise and one outlier": noise_with_an_outlier,
        "exact depth": exact,
    }
    for title, make in maps.items():
        right, tied, paper = [], [], []
        for path, name in zip(benchmark.images.paths, benchmark.images.names, strict=True):
            pairs, image, found = benchmark.pairs[name], read_image(path), make(name)
            points, size = pairs.points.reshape(-1, 2), (image.height, image.width)
            values = sample(torch.from_numpy(found), torch.from_numpy(points), size).view(-1, 2)
            verdict = verdicts(values, torch.from_numpy(pairs.closer))
            right += verdict.right.tolist()
            tied += verdict.tied.tolist()
            paper += paper_verdicts(paper_sample(found, points, size).reshape(-1, 2), pairs.closer).tolist()
        print(f"{title}: standard {np.mean(right):.1%}, ties {np.mean(tied):.1%}, paper {np.mean(paper):.1%}")


def segmentation(scenes: Path) -> None:
    """Print the mIoU of label maps that do not look at the image, by both rules, and by the first 8 images alone."""
    benchmark = read_panoptic(scenes, "val2017")
    truth = np.stack([benchmark.maps[name].labels() for name in benchmark.images.names])  # (images, H, W)
    classes = len(benchmark.categories)
    shares = np.stack([(truth == label).mean(axis=0) for label in range(classes)])  # (classes, H, W)
    maps = {
        "the most frequent class everywhere": np.full_like(truth, shares.mean(axis=(1, 2)).argmax()),
        "the most frequent class of each pixel": np.broadcast_to(shares.argmax(axis=0), truth.shape),
        "the map of another image": np.roll(truth, 1, axis=0).clip(max=classes - 1),
    }
    for title, predictions in maps.items():
        counts = [
            count_pixels(torch.from_numpy(prediction.astype(np.int64)), torch.from_numpy(each), classes)
            for prediction, each in zip(predictions, truth, strict=True)
        ]
        found = overlap(torch.stack(counts).sum(dim=0))
        there = found.truth > 0
        standard = (found.intersection[there] / found.union[there]).mean().item()
        paper = [paper_iou(each) for each in counts]
        print(f"{title}: standard {standard:.3f}, paper {np.mean(paper):.3f}, its first 8 {np.mean(paper[:8]):.3f}")


if __name__ == "__main__":
    depth(Path(sys.argv[1]))
    segmentation(Path(sys.argv[1]))
