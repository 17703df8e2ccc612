import json
import math

import pytest
import torch
from safetensors.torch import load_file

from innervision.metrics.similarity import (
    centred_cosine,
    cosine,
    explained_variance,
    similarity,
    token_cosine,
)


def random_maps(batch: int = 3, tokens: int = 5, width: int = 7) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    prediction = torch.randn(batch, tokens, width, generator=generator)
    truth = torch.randn(batch, tokens, width, generator=generator)
    mean = torch.randn(tokens, width, generator=generator)
    return prediction, truth, mean


# Two tokens of width 2; the closed forms below are worked out by hand from these.
TRUTH = torch.tensor([[[3.0, 4.0], [0.0, 2.0]]])
PREDICTION = torch.tensor([[[4.0, 3.0], [2.0, 0.0]]])
MEAN = torch.tensor([[3.0, 3.0], [0.0, 0.0]])


def test_cosine_is_that_of_the_flattened_maps():
    assert cosine(PREDICTION, TRUTH).item() == pytest.approx(24 / 29)


def test_token_cosine_averages_over_tokens():
    assert token_cosine(PREDICTION, TRUTH).item() == pytest.approx((24 / 25 + 0) / 2)


def test_centred_cosine_takes_the_mean_from_both():
    # centred truth (0, 1, 0, 2), centred prediction (1, 0, 2, 0): orthogonal
    assert centred_cosine(PREDICTION, TRUTH, MEAN).item() == 0
    # against the mean 0 nothing changes
    assert centred_cosine(PREDICTION, TRUTH, 0 * MEAN).item() == pytest.approx(24 / 29)


def test_explained_variance_compares_with_the_error_of_the_mean():
    # squared errors: (1, 1, 4, 4) for the prediction, (0, 1, 0, 4) for the mean
    assert explained_variance(PREDICTION, TRUTH, MEAN).item() == pytest.approx(1 - 10 / 5)


@pytest.mark.parametrize("name", ["depth", "seg", "gen", "depth_small"])
def test_cosine_equals_the_original(shared, name):
    maps = load_file(shared / "golden/metrics/cosine.safetensors")
    expected = json.loads((shared / "golden/metrics/cosine.json").read_text())[name]
    truth = maps[f"{name}.feats"]
    truth = truth.reshape(1, -1, truth.shape[-1])
    prediction = maps[f"{name}.emb"].reshape(truth.shape)
    value = cosine(prediction, truth).item()
    assert value == pytest.approx(expected["reference"], abs=1e-7)
    assert value == pytest.approx(expected["cos_f64"], abs=1e-12)
    by_token = expected.get("per_token_mean_cos(NOT what reference does)")
    if by_token is not None:
        assert token_cosine(prediction, truth).item() == pytest.approx(by_token, abs=1e-7)


def test_a_perfect_prediction_scores_one():
    _, truth, mean = random_maps()
    for scores in similarity(truth, truth, mean).values():
        torch.testing.assert_close(scores, torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-12)


def test_the_mean_has_no_centred_direction_and_explains_nothing():
    _, truth, mean = random_maps()
    scores = similarity(mean.expand_as(truth), truth, mean)
    assert scores["centred_cosine"].tolist() == [0, 0, 0]
    assert scores["explained_variance"].tolist() == [0, 0, 0]


def test_opposite_maps_score_minus_one():
    _, truth, mean = random_maps()
    assert cosine(-truth, truth).tolist() == pytest.approx([-1, -1, -1])
    assert centred_cosine(2 * mean - truth, truth, mean).tolist() == pytest.approx([-1, -1, -1], abs=1e-6)


def test_no_cosine_leaves_its_range():
    # 10 times a vector is rounded to float32, so the true cosine is 1 - 1e-15 or so
    _, truth, _ = random_maps(batch=200)
    assert cosine(10 * truth, truth).max() <= 1


def test_a_zero_prediction_has_cosine_zero():
    _, truth, _ = random_maps()
    assert cosine(torch.zeros_like(truth), truth).tolist() == [0, 0, 0]
    assert token_cosine(torch.zeros_like(truth), truth).tolist() == [0, 0, 0]


def test_a_truth_equal_to_the_mean_leaves_nothing_to_explain():
    prediction, _, mean = random_maps()
    truth = mean.expand_as(prediction)
    assert explained_variance(prediction, truth, mean).tolist() == [0, 0, 0]
    assert explained_variance(truth, truth, mean).tolist() == [0, 0, 0]
    assert centred_cosine(prediction, truth, mean).tolist() == [0, 0, 0]


def test_explained_variance_is_r_squared_where_the_mean_is_the_images_own():
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    prediction, truth, _ = random_maps(batch=1, tokens=50)
    constant = truth.mean().expand(truth.shape[1:])
    expected = sklearn_metrics.r2_score(truth.flatten().double(), prediction.flatten().double())
    assert explained_variance(prediction, truth, constant).item() == pytest.approx(expected, abs=1e-6)


def test_cosines_equal_those_of_torch():
    prediction, truth, mean = random_maps()
    scores = similarity(prediction, truth, mean)
    torch_cosine = torch.nn.functional.cosine_similarity
    assert torch.allclose(scores["cosine"].float(), torch_cosine(prediction.flatten(1), truth.flatten(1)))
    assert torch.allclose(scores["token_cosine"].float(), torch_cosine(prediction, truth, dim=-1).mean(1))


def test_images_are_scored_one_by_one():
    prediction, truth, mean = random_maps()
    together = similarity(prediction, truth, mean)
    assert {(scores.shape, scores.dtype) for scores in together.values()} == {((3,), torch.float64)}
    for image in range(3):
        alone = similarity(prediction[image : image + 1], truth[image : image + 1], mean)
        for name, scores in together.items():
            assert alone[name].item() == pytest.approx(scores[image].item(), abs=1e-14)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["prediction", "truth"])
def test_nan_and_infinity_are_not_hidden(bad, where):
    prediction, truth, mean = random_maps()
    {"prediction": prediction, "truth": truth}[where][1, 2, 3] = bad
    for scores in similarity(prediction, truth, mean).values():
        assert scores.isfinite().tolist() == [True, False, True]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_is_not_hidden_by_a_zero_norm(bad):
    zeros = torch.zeros(1, 2, 2)
    broken = torch.tensor([[[bad, 0.0], [0.0, 0.0]]])
    assert cosine(broken, zeros).isnan().all()
    assert token_cosine(broken, zeros).isnan().all()
    assert centred_cosine(broken, zeros, zeros[0]).isnan().all()
    assert explained_variance(broken, zeros, zeros[0]).isnan().all()


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_features_of_any_float32_size_have_the_same_cosine(scale):
    assert cosine(scale * PREDICTION, scale * TRUTH).item() == pytest.approx(24 / 29, rel=1e-6)


def test_shapes_that_differ_are_refused():
    prediction, truth, mean = random_maps()
    with pytest.raises(ValueError, match=r"prediction has shape \(1, 5, 7\), the truth needs \(3, 5, 7\)"):
        similarity(prediction[:1], truth, mean)
    for score in (cosine, token_cosine):
        with pytest.raises(ValueError, match=r"prediction has shape \(1, 5, 7\)"):
            score(prediction[:1], truth)
    for score in (centred_cosine, explained_variance):
        with pytest.raises(ValueError, match=r"prediction has shape \(1, 5, 7\)"):
            score(prediction[:1], truth, mean)
        with pytest.raises(ValueError, match=r"mean has shape \(7,\), the truth needs \(5, 7\)"):
            score(prediction, truth, mean[0])


@pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))],
)
def test_neither_device_nor_autocast_changes_a_score(device):
    prediction, truth, mean = random_maps(batch=2, tokens=64, width=128)
    expected = similarity(prediction, truth, mean)
    with torch.autocast(device, dtype=torch.bfloat16):
        scores = similarity(prediction.to(device), truth.to(device), mean.to(device))
    for name in expected:
        torch.testing.assert_close(scores[name].cpu(), expected[name], rtol=0, atol=1e-12)
