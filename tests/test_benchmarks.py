"""The benchmark at its smallest size: it builds, and the two ways that it compares do the same work."""

import pytest
import torch
from benchmarks.models import SIZES, Bench, build
from benchmarks.plain import PlainLearner
from benchmarks.speed import check_same, summarise


@pytest.fixture(scope="module")
def bench() -> Bench:
    return build(SIZES["tiny"], torch.device("cpu"))


def test_both_ways_have_the_same_losses_and_gradients(bench: Bench) -> None:
    check_same(bench, PlainLearner(bench))


def test_the_check_sees_a_way_that_does_other_work(bench: Bench) -> None:
    class Halved(PlainLearner):
        def learn(self) -> dict[str, dict[int, torch.Tensor]]:
            losses = super().learn()
            for target in self.bench.targets:
                for weight in self.bench.banks[target.name].parameters():
                    if weight.grad is not None:
                        weight.grad /= 2
            return losses

    with pytest.raises(AssertionError, match="gradients"):
        check_same(bench, Halved(bench))


def test_smaller_models_keep_the_shares_of_tokens(bench: Bench) -> None:
    assert {target.name: target.num_tokens for target in bench.targets} == {"depth": 36, "seg": 36, "gen": 1}
    assert len(bench.layers) == SIZES["tiny"].num_layers


def test_full_size_models_have_the_tokens_and_widths_of_the_real_ones() -> None:
    full = build(SIZES["full"], torch.device("meta"))
    shapes = {target.name: (target.num_tokens, target.width) for target in full.targets}
    assert shapes == {"depth": (576, 1024), "seg": (576, 1536), "gen": (1, 1024)}


def test_ratios_are_those_of_the_medians() -> None:
    seconds = {"mllm": [1.0, 1.0, 2.0], "experts": [1.0, 1.0, 1.0], "ours": [3.0, 2.0, 3.0], "plain": [9.0, 6.0, 6.0]}
    summary = summarise(seconds, batch=4)
    assert summary["ours/frozen"] == {"median": 1.5, "min": 1.0, "max": 1.5}
    assert summary["plain/ours"] == {"median": 2.0, "min": 2.0, "max": 3.0}
