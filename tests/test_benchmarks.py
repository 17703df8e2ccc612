"""The benchmark at its smallest size: it builds, and the ways that it compares do the same work."""

from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks import by_hand, operations
from benchmarks.__main__ import keeps
from benchmarks.models import SIZES, Bench, build, make_descent
from benchmarks.places import count_full
from benchmarks.plain import PlainLearner
from benchmarks.speed import check_same, summarise
from benchmarks.sums import count_bytes

from innervision.engine.descent import Descent


@pytest.fixture(scope="module")
def bench() -> Bench:
    return build(SIZES["tiny"], torch.device("cpu"))


@pytest.fixture
def descent(bench: Bench) -> Descent:
    return make_descent(bench, range(1, bench.mllm.num_layers + 1))


def test_trained_and_plain_have_the_same_losses_and_gradients(bench: Bench, descent: Descent) -> None:
    check_same(bench, descent, PlainLearner(bench, descent))


def test_the_check_sees_a_way_that_does_other_work(bench: Bench, descent: Descent) -> None:
    class Halved(PlainLearner):
        def learn(self) -> dict[str, dict[int, torch.Tensor]]:
            losses = super().learn()
            for target in self.bench.targets:
                for weight in self.descent.banks[target.name].parameters():
                    if weight.grad is not None:
                        weight.grad /= 2
            return losses

    with pytest.raises(AssertionError, match="gradients"):
        check_same(bench, descent, Halved(bench, descent))


def test_smaller_models_keep_the_shares_of_tokens(bench: Bench) -> None:
    assert {target.name: target.num_tokens for target in bench.targets} == {"depth": 36, "seg": 36, "gen": 1}
    assert bench.mllm.num_layers == SIZES["tiny"].num_layers


def test_full_size_models_have_the_tokens_and_widths_of_the_real_ones() -> None:
    full = build(SIZES["full"], torch.device("meta"))
    shapes = {target.name: (target.num_tokens, target.width) for target in full.targets}
    assert shapes == {"depth": (576, 1024), "seg": (576, 1536), "gen": (1, 1024)}


def test_ratios_are_those_of_the_medians() -> None:
    seconds = {"mllm": [1.0, 1.0, 2.0], "experts": [1.0, 1.0, 1.0], "ridge": [2.2, 2.2, 3.0]}
    seconds |= {"resampler": [3.0, 2.0, 3.0], "plain": [9.0, 6.0, 6.0]}
    summary = summarise(seconds, batch=4)
    assert summary["ridge/frozen"] == {"median": 1.1, "min": 1.0, "max": 1.1}
    assert summary["resampler/frozen"] == {"median": 1.5, "min": 1.0, "max": 1.5}
    assert summary["plain/resampler"] == {"median": 2.0, "min": 2.0, "max": 3.0}


def test_bounds() -> None:
    assert keeps("≤ 1.15", 1.15)
    assert not keeps("≤ 1.15", 1.151)
    assert keeps("≥ 2.5", 2.5)
    assert not keeps("≥ 2.5", 2.49)


def test_exact_probes_count_the_upper_blocks_of_the_products_of_states() -> None:
    """By hand, for the `tiny` size: 36 cells, states of width 256, features of widths 64 and 96, and gen's of 64."""
    counts = operations.count(SIZES["tiny"])
    tokens = 36 + 2
    of_cells = 2 * 36 * (36 * 32 * 32 + 256 * (64 + 96))  # 36 of 64 blocks of 32 × 32
    of_images = 2 * (36 * 32 * 32 + 256 * 64)
    layers = SIZES["tiny"].num_layers + 1
    assert counts["ridge: places"] == layers * 2 * 36 * tokens * 256
    assert counts["ridge"] - counts["ridge: places"] == layers * (of_cells + of_images)


def test_exact_probes_cost_at_most_an_eighth_of_the_forwards_at_full_size() -> None:
    counts = operations.count(SIZES["full"])
    frozen = counts["mllm"] + counts["experts"]
    assert 8e12 < counts["mllm"] < 9e12  # 2 × 6.6e9 weights × 596 tokens, attention, and 0.4e12 for the vision tower
    assert counts["ridge"] < 0.125 * frozen
    assert counts["resampler"] < 0.35 * frozen


def test_exact_probes_are_those_of_scikit_learn_from_states_on_disk(bench: Bench, tmp_path: Path) -> None:
    by_hand.fit_ours(bench, 12, tmp_path)
    by_hand.fit_by_hand(bench, 12, tmp_path)
    maps, _ = by_hand.compare(tmp_path)
    assert maps > 0
    on_disk = np.load(tmp_path / "layer 4.npy", mmap_mode="r")
    assert on_disk.shape == (12, 36 + 2, 256)


def test_weights_that_differ_are_seen(tmp_path: Path) -> None:
    np.savez(tmp_path / "hand.npz", x=np.array([1.0, 2.0]))
    np.savez(tmp_path / "package.npz", x=np.array([1.0, 2.0 + 1e-5]))
    with pytest.raises(AssertionError, match="differ by 5"):
        by_hand.compare(tmp_path)


def test_sums_of_a_layer_of_llava_7b_take_426_mb() -> None:
    """Two parts of X'X for 576 cells and for one; X'Y for three targets; sums by cell, and pivots of states."""
    width, features = 4096, 1024 + 1536
    of_cells = 2 * width * (width + features) + 576 * (3 * width + 2 * features + 2)
    of_image = 2 * width * (width + 1024) + 3 * width + 2 * 1024 + 2
    assert count_bytes(width, torch.float32) == 4 * (of_cells + of_image)


def test_a_grid_of_tokens_is_paid_once() -> None:
    """640 × 480 pixels are 23 × 17 tokens of 28 pixels: 0.7 √391 = 14 strips, 2 × (2 × 14 + 1) passes."""
    once, many = count_full([(480, 640)]), count_full([(480, 640)] * 10 + [(478, 640)])
    assert once[:2] == many[:2] == (1, 58)
    assert many[2] == pytest.approx(once[2] / 11)
