"""Sums and their solution against scikit-learn's Ridge on the same states, in float64."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import Tensor

from innervision.probes.moments import FIT, HELD_OUT, FeatureMoments, StateMoments, choose, held_out_fifth, solve

IMAGES, CELLS, WIDTH, FEATURES = 40, 9, 12, 5


@dataclass
class Data:
    states: Tensor  # (B, N, D) float32
    seen: Tensor  # (B, N)
    features: Tensor  # (B, N, C)
    held_out: Tensor  # (B,)


def make_data(images: int = IMAGES, seed: int = 0) -> Data:
    """Features that are linear in the states but for noise, with means that differ between cells."""
    random = torch.Generator().manual_seed(seed)
    states = torch.randn(images, CELLS, WIDTH, generator=random) + 3 * torch.randn(CELLS, WIDTH, generator=random)
    mix = torch.randn(WIDTH, FEATURES, generator=random)
    noise = torch.randn(images, CELLS, FEATURES, generator=random)
    features = states @ mix + noise + torch.randn(CELLS, FEATURES, generator=random)
    seen = torch.rand(images, CELLS, generator=random) > 0.2
    return Data(states, seen, features, torch.arange(images) % 5 == 1)


def add_all(data: Data, batches: list[list[int]]) -> tuple[StateMoments, FeatureMoments]:
    features = FeatureMoments(CELLS, data.features.shape[2], torch.float64)
    states = StateMoments(CELLS, data.states.shape[2], {"t": data.features.shape[2]}, torch.float64)
    for moments in (features, states):
        moments.to_empty(device="cpu")
        for buffer in moments.buffers():
            buffer.zero_()
    for rows in batches:
        held_out = data.held_out[rows]
        away = features.add(data.features[rows], held_out)
        states.add(data.states[rows], data.seen[rows], {"t": away}, held_out, torch.float64)
    return states, features


def in_one_batch(data: Data) -> tuple[StateMoments, FeatureMoments]:
    return add_all(data, [list(range(len(data.states)))])


@dataclass
class Reference:
    """scikit-learn's solution: states centred by cell and divided by their deviation over all cells."""

    weight: np.ndarray
    states_mean: np.ndarray
    features_mean: np.ndarray

    def explained(self, data: Data, images: Tensor) -> float:
        states, features = data.states[images].double().numpy(), data.features[images].double().numpy()
        predicted = (states - self.states_mean) @ self.weight * data.seen[images].numpy()[..., None]
        truth = features - self.features_mean
        return 1 - np.square(truth - predicted).sum() / np.square(truth).sum()


def by_scikit_learn(data: Data, images: Tensor, penalty: float) -> Reference:
    states, features = data.states[images].double().numpy(), data.features[images].double().numpy()
    seen = data.seen[images].numpy()
    states_mean = np.stack([states[seen[:, n], n].mean(axis=0) for n in range(CELLS)])
    features_mean = features.mean(axis=0)
    x, y = (states - states_mean)[seen], (features - features_mean)[seen]
    deviation = x.std(axis=0)  # their mean is 0
    kept = deviation > 0
    weight = np.zeros((x.shape[1], y.shape[1]))
    ridge = Ridge(alpha=penalty, fit_intercept=False, solver="svd").fit(x[:, kept] / deviation[kept], y)
    weight[kept] = ridge.coef_.T / deviation[kept, None]
    return Reference(weight, states_mean, features_mean)


def constant_columns(data: Data) -> None:
    data.states[:, :, 2] = 7.3
    data.states[:, :, 5] = 0.0


def massive_activations(data: Data) -> None:
    data.states[:, :, 3] *= 2000
    data.states[:, :, 4] += 5000


def bfloat16_states(data: Data) -> None:
    data.states = data.states.bfloat16().float()


def columns_alike(data: Data) -> None:
    data.states[:, :, 1] = data.states[:, :, 0]


def nothing_special(data: Data) -> None:
    pass


CHANGES = [nothing_special, constant_columns, massive_activations, bfloat16_states, columns_alike]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("penalty", [0.1, 30.0])
def test_weights_are_those_of_scikit_learn(change: Callable[[Data], None], penalty: float) -> None:
    data = make_data()
    change(data)
    states, features = in_one_batch(data)
    found = solve(states, features, "t", penalty)
    expected = by_scikit_learn(data, torch.ones(IMAGES, dtype=torch.bool), penalty)
    np.testing.assert_allclose(found.weight, expected.weight, rtol=1e-6, atol=1e-9 * np.abs(expected.weight).max())
    np.testing.assert_allclose(states.pivot + found.states_mean, expected.states_mean, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(features.pivot + found.features_mean, expected.features_mean, rtol=1e-9, atol=1e-9)


def test_fewer_rows_than_columns() -> None:
    data = make_data(images=6)
    wide = torch.randn(6, CELLS, 100, generator=torch.Generator().manual_seed(3))
    data.states = torch.cat([data.states, wide], dim=2)
    states, features = in_one_batch(data)
    assert int(data.seen.sum()) < data.states.shape[2]
    expected = by_scikit_learn(data, torch.ones(6, dtype=torch.bool), 2.0)
    np.testing.assert_allclose(solve(states, features, "t", 2.0).weight, expected.weight, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("change", CHANGES)
def test_the_penalty_chosen_explains_most_of_the_images_held_out(change: Callable[[Data], None]) -> None:
    data = make_data()
    change(data)
    states, features = in_one_batch(data)
    choice = choose(states, {"t": features})["t"]
    expected = by_scikit_learn(data, ~data.held_out, choice.penalty)
    np.testing.assert_allclose(
        choice.solution.weight, expected.weight, rtol=1e-5, atol=1e-7 * np.abs(expected.weight).max()
    )
    assert choice.explained == pytest.approx(expected.explained(data, data.held_out), rel=1e-6)
    rows = int(data.seen[~data.held_out].sum())
    for exponent in range(-6, 2):
        other = by_scikit_learn(data, ~data.held_out, rows * 10.0**exponent)
        assert other.explained(data, data.held_out) <= choice.explained + 1e-9


def test_what_a_map_explains_of_any_images_comes_from_the_sums() -> None:
    data = make_data()
    states, features = in_one_batch(data)
    early_states, early_features = add_all(data, [list(range(15))])
    early = choose(early_states, {"t": early_features})["t"].solution
    assert torch.allclose(early_states.pivot, states.pivot) is False
    states, features = add_all(data, [list(range(15)), list(range(15, IMAGES))])  # the same pivots as the early ones
    first = torch.arange(IMAGES) < 15
    expected = by_scikit_learn(data, first & ~data.held_out, choose(early_states, {"t": early_features})["t"].penalty)
    for part, images in ((FIT, ~data.held_out), (HELD_OUT, data.held_out)):
        assert early.explained("t", states, features, [part]) == pytest.approx(
            expected.explained(data, images), rel=1e-6
        )


def test_noise_ends_at_the_mean_and_not_below() -> None:
    """Of wide states, a map with a small penalty learns the noise by heart and is far below the mean."""
    data = make_data()
    random = torch.Generator().manual_seed(9)
    data.features = torch.randn(IMAGES, CELLS, FEATURES, generator=random)
    data.states = torch.randn(IMAGES, CELLS, 150, generator=random)
    states, features = in_one_batch(data)
    choice = choose(states, {"t": features})["t"]
    assert by_scikit_learn(data, ~data.held_out, 1e-3).explained(data, data.held_out) < -0.5
    found = choice.solution.explained("t", states, features, [HELD_OUT])
    assert 0 <= found < 0.02
    assert found == pytest.approx(choice.explained)


def test_an_infinite_penalty_leaves_the_mean() -> None:
    data = make_data()
    data.states = data.states[:1].expand(IMAGES, -1, -1)  # all alike: no map explains anything
    states, features = in_one_batch(data)
    choice = choose(states, {"t": features})["t"]
    assert math.isinf(choice.penalty)
    assert not solve(states, features, "t", choice.penalty).weight.any()


def test_features_without_variance_leave_nothing_to_explain() -> None:
    data = make_data()
    data.features = data.features[:1].expand(IMAGES, -1, -1) + 100
    states, features = in_one_batch(data)
    assert not features.varies()
    assert math.isnan(choose(states, {"t": features})["t"].explained)


@pytest.mark.parametrize("sizes", [[1] * IMAGES, [7, 13, 20], [39, 1]])
def test_splitting_the_images_changes_nothing(sizes: list[int]) -> None:
    data = make_data()
    massive_activations(data)
    whole = solved(*in_one_batch(data))
    split = solved(*add_all(data, [part.tolist() for part in torch.arange(IMAGES).split(sizes)]))
    for one, other in zip(whole, split, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def solved(states: StateMoments, features: FeatureMoments) -> list[Tensor]:
    solution = solve(states, features, "t", 3.0)
    return [solution.weight, states.pivot + solution.states_mean, features.pivot + solution.features_mean]


def test_a_cell_that_no_image_shows_takes_no_part() -> None:
    data = make_data()
    data.seen[:, 4] = False
    data.states[:, 4] = float("nan")
    data.states = torch.where(data.seen[..., None], data.states, 0)
    states, features = in_one_batch(data)
    others = [n for n in range(CELLS) if n != 4]
    without = Data(data.states[:, others], data.seen[:, others], data.features[:, others], data.held_out)
    x = without.states.double().numpy() - np.stack(
        [without.states[without.seen[:, n], n].double().mean(0).numpy() for n in range(8)]
    )
    y = without.features.double().numpy() - without.features.double().numpy().mean(0)
    x, y = x[without.seen.numpy()], y[without.seen.numpy()]
    weight = Ridge(alpha=1.0, fit_intercept=False).fit(x / x.std(0), y).coef_.T / x.std(0)[:, None]
    np.testing.assert_allclose(solve(states, features, "t", 1.0).weight, weight, rtol=1e-6, atol=1e-9)


def test_a_fifth_is_held_out_by_name_alone() -> None:
    names = [f"{i:012}" for i in range(1000)]
    chosen = held_out_fifth(names)
    assert len(chosen) == 200
    assert held_out_fifth(reversed(names)) == chosen
    assert len(chosen & set(names[:500])) == pytest.approx(100, abs=40)
    assert len(held_out_fifth(["a", "b"])) == 1
    assert held_out_fifth(["a\udcff", "b", "c"])  # a name that is not UTF-8


@pytest.mark.parametrize("width", [1, 3, 8, 9, 21])
def test_products_of_states_are_whole_whatever_the_width_of_blocks(width: int) -> None:
    random = torch.Generator().manual_seed(width)
    values = torch.randn(6, CELLS, width, generator=random)
    seen = torch.ones(6, CELLS, dtype=torch.bool)
    moments = StateMoments(CELLS, width, {}, torch.float64).to_empty(device="cpu")
    for buffer in moments.buffers():
        buffer.zero_()
    moments.add(values, seen, {}, torch.zeros(6, dtype=torch.bool), torch.float64)
    centred = (values.double() - values.double().mean(dim=0)).reshape(-1, width)
    about = moments.about(moments.states_mean([FIT]), [FIT])
    torch.testing.assert_close(about, centred.T @ centred, rtol=1e-9, atol=1e-9)
