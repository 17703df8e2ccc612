"""The calibration at its smallest size. All of it: `benchmarks.calibration`."""

import numpy as np
import pandas as pd
import pytest
import torch
from benchmarks import planted
from benchmarks.calibration import summarize_erased, summarize_growth, summarize_noise, summarize_written
from benchmarks.planted import StandIn, World, erase, erasing_projection, grow, noise, permute, write


@pytest.fixture(scope="module")
def world() -> World:
    return World(eraser=192, train=64, val=64)


def test_the_projection_is_that_of_leace() -> None:
    """The one projection of the covariance's rank that erases it and is symmetric in the metric of whitened states.

    Theorem 4.3 of arXiv:2306.03819.
    """
    torch.manual_seed(0)
    states = torch.randn(500, 12, dtype=torch.float64) @ torch.randn(12, 12, dtype=torch.float64)
    features = states[:, :3] @ torch.randn(3, 5, dtype=torch.float64)
    states, features = states - states.mean(dim=0), features - features.mean(dim=0)
    products, with_features = states.T @ states, states.T @ features
    projection = erasing_projection(products, with_features)
    torch.testing.assert_close(projection @ projection, projection)
    torch.testing.assert_close(projection @ products, (projection @ products).T)
    assert torch.linalg.matrix_rank(projection) == 3
    left = states - states @ projection.T
    assert (left.T @ features).abs().max() < 1e-8 * with_features.abs().max()


def test_the_projection_is_orthogonal_where_states_are_white() -> None:
    direction = torch.tensor([[3.0, 4.0, 0.0]], dtype=torch.float64).T
    projection = erasing_projection(2 * torch.eye(3, dtype=torch.float64), direction)
    torch.testing.assert_close(projection, direction @ direction.T / 25)


def test_what_is_erased_is_gone_there_and_nothing_changes_before(world: World) -> None:
    found = erase(world, 2, np.random.default_rng(0))
    assert len(found) == 2
    assert (found["earlier"] == 0).all()
    assert (found["after"] < 0.25 * found["before"]).all()  # 192 scenes do not tell exactly what to erase
    assert not world.mllm.changes


def test_what_is_written_is_found(world: World) -> None:
    found = write(world, 3, np.random.default_rng(1))
    assert summarize_written(found)[2].startswith("3 of 3;")


def test_a_layer_that_is_not_the_written_one_does_not_count_as_found(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Elsewhere(StandIn):
        def __init__(self, num_layers: int, width: int, informed: int, seed: int) -> None:
            super().__init__(num_layers, width, (informed + 1) % (num_layers + 1), seed)

    monkeypatch.setattr(planted, "StandIn", Elsewhere)
    found = write(world, 2, np.random.default_rng(1))
    assert summarize_written(found)[2].startswith("0 of 2;")


def test_noise_is_seldom_taken_for_something(world: World) -> None:
    """Of 40 trials at 95%, five or more are above 0 with a chance of 0.4% (2.5% each)."""
    found = noise(world, 40, np.random.default_rng(2))
    assert found.groupby("metric").size().to_dict() == {"centred_cosine": 40, "explained_variance": 40}
    assert (found["low"] > 0).groupby(found["metric"]).sum().max() < 5


def test_features_of_other_images_are_not_explained(world: World) -> None:
    found = permute(world, 1, np.random.default_rng(3))
    own = world.plain[world.plain["metric"] == "explained_variance"].groupby("target")["value"].mean()
    mixed = found[found["metric"] == "explained_variance"].groupby("target")["score"].max()
    assert (mixed < 0.02).all()
    assert (own > 0.1).all()


def test_more_images_explain_more(world: World) -> None:
    curves, differences = grow(world)
    assert list(curves.columns) == [32, 64]
    assert curves[64].mean() > curves[32].mean()
    assert len(curves) == len(differences) == 3 * 10


def test_the_words_count_what_fails() -> None:
    erased = pd.DataFrame(
        {
            "before": [0.5, 0.5, 0.5, 0.02],
            "after": [0.001, 0.001, 0.3, 0.001],
            "earlier": [0.0, 0.01, 0.0, 0.0],
        }
    )
    assert summarize_erased(erased)[2].startswith("1 of 4;")
    score = {"score": [0.0, 0.1, -0.1, 0.1], "low": [0.0, 0.05, -0.2, -0.1], "high": [0.0, 0.15, -0.05, 0.3]}
    found = pd.concat([pd.DataFrame(score | {"metric": name}) for name in planted.METRICS])
    assert summarize_noise(found)[0][2] == (
        "50.0% (above 0: 25.0%, below 0: 25.0%); exactly 0 in 25.0%, of the others 33.3% hold it"
    )
    curves = pd.DataFrame({32: [0.1, 0.2], 64: [0.2, 0.15]})
    differences = pd.DataFrame({"low": [-0.1, 0.01], "mean": [-0.1, 0.05]})
    rise, above = summarize_growth(curves, differences)
    assert rise[2] == "in 1 of 2 steps; the largest fall is 0.0500"
    assert above[2] == "1 of 2; the largest difference is +0.0500"
