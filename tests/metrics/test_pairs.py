"""Which of two points is closer: read from maps as if they were resized, and judged by two rules."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn.functional import interpolate

from innervision.metrics.pairs import sample, verdicts
from innervision.original.scoring import paper_sample, paper_verdicts


def every_pixel(height: int, width: int) -> torch.Tensor:
    return torch.cartesian_prod(torch.arange(height), torch.arange(width))  # (P, 2)


@pytest.mark.parametrize("size", [(24, 24), (31, 50), (100, 9), (1, 1)])
def test_points_are_read_as_from_a_resized_map(size: tuple[int, int]) -> None:
    depth = torch.rand(24, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = interpolate(depth[None, None], size, mode="bilinear", align_corners=False)[0, 0].flatten()
    torch.testing.assert_close(sample(depth, every_pixel(*size), size), expected, atol=1e-12, rtol=0)


class WithoutFloat64(torch.Tensor):
    """A tensor as of a device that has no float64, such as Apple's."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        result = super().__torch_function__(function, types, arguments, options or {})
        if function is torch.Tensor.cpu:
            return result.as_subclass(torch.Tensor)
        if isinstance(result, torch.Tensor) and result.dtype == torch.float64:
            raise TypeError("this device has no float64")
        return result


def test_a_map_on_a_device_without_float64_is_read_on_the_cpu() -> None:
    depth = torch.rand(6, 8, generator=torch.Generator().manual_seed(0))
    there = depth.clone().as_subclass(WithoutFloat64)
    with pytest.raises(TypeError, match="no float64"):  # the trap works
        there.double()
    points = every_pixel(9, 7)
    assert torch.equal(sample(there, points, (9, 7)), sample(depth, points, (9, 7)))


@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, 12345.678])
def test_a_constant_map_is_the_same_everywhere(value: float) -> None:
    """To the last bit, or rounding would decide its pairs."""
    values = sample(torch.full((24, 24), value), every_pixel(37, 53), (37, 53))
    assert len(values.unique()) == 1


def test_what_is_squashed_is_stretched_again() -> None:
    """In a map of left and right, a point of a wide image lies where it lay in the image."""
    depth = torch.cat([torch.zeros(24, 12), torch.ones(24, 12)], dim=1)
    assert sample(depth, torch.tensor([[5, 300], [5, 340]]), (10, 640)).tolist() == [0, 1]


def test_the_larger_value_is_closer() -> None:
    values = torch.tensor([[2.0, 1.0], [2.0, 1.0], [1.0, 2.0], [1.0, 2.0]])
    found = verdicts(values, torch.tensor([1, 2, 1, 2]))
    assert found.right.tolist() == [True, False, False, True]
    assert not found.tied.any()


@pytest.mark.parametrize("pair", [(1.0, 1.0), (float("nan"), 1.0), (1.0, float("nan")), (float("inf"), float("inf"))])
def test_a_tie_counts_as_wrong(pair: tuple[float, float]) -> None:
    found = verdicts(torch.tensor([pair, pair]), torch.tensor([1, 2]))
    assert found.right.tolist() == [False, False]
    assert found.tied.tolist() == [True, True]


def test_the_paper_rule_gives_the_originals_verdicts(shared: Path) -> None:
    maps = load_file(shared / "golden/metrics/score_points.safetensors")
    cases = json.loads((shared / "golden/metrics/score_points.json").read_text())
    assert len(cases) > 4
    maps |= {"ties(zeros 4x4)": torch.zeros(4, 4), "nan 4x4": torch.full((4, 4), torch.nan)}
    for case in cases:
        depth = maps[case["map"]].numpy()
        values = [depth[tuple(case[name])].mean() for name in ("point1", "point2")]
        [verdict] = paper_verdicts(np.array([values]), np.array([int(case["closer_point"][-1])]))
        assert verdict == case["correct"], case


def test_the_paper_map_is_the_originals_cut_to_8_bits(shared: Path) -> None:
    golden = load_file(shared / "golden/dav2/tiny.safetensors")
    points = every_pixel(336, 336)[::97].numpy()
    expected = (golden["depth_4xlast_minmax"][0].numpy() * 255).astype(np.uint8)[points[:, 0], points[:, 1]] / 255
    found = paper_sample(golden["depth_4xlast"][0].numpy(), points, (336, 336))
    assert np.abs(found - expected).max() <= 1 / 255 + 1e-9  # where rounding crosses a whole number
    assert (found == expected).mean() > 0.99


@pytest.mark.parametrize("size", [(40, 60), (24, 24), (100, 30), (10, 12)])
def test_a_pixel_of_the_paper_map_is_that_of_pillows_whole_resized_map(size: tuple[int, int]) -> None:
    depth = np.random.default_rng(0).random((24, 24)).astype(np.float32)
    eight_bits = ((depth - depth.min()) / (depth.max() - depth.min()) * 255).astype(np.uint8)
    whole = Image.fromarray(eight_bits).resize(size[::-1])  # Pillow's own default, as in the original
    points = every_pixel(*size).numpy()
    expected = np.asarray(whole)[points[:, 0], points[:, 1]] / 255
    np.testing.assert_allclose(paper_sample(depth, points, size), expected, atol=1e-9)


def test_one_nan_is_a_tie_of_its_pairs_in_standard_and_flattens_the_map_in_paper() -> None:
    """The original cannot stretch a map with a NaN: all of it becomes 0, and every first point right."""
    depth = np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4)
    depth[0, 0] = np.nan
    points = np.array([[3, 3], [0, 0], [3, 3], [1, 1], [1, 1], [3, 3]])
    closer = np.ones(3, dtype=int)
    found = verdicts(sample(torch.from_numpy(depth), torch.from_numpy(points), (4, 4)).view(-1, 2), torch.ones(3))
    assert found.right.tolist() == [False, True, False]
    assert found.tied.tolist() == [True, False, False]
    assert paper_sample(depth, points, (4, 4)).tolist() == [0.0] * 6
    assert paper_verdicts(paper_sample(depth, points, (4, 4)).reshape(-1, 2), closer).all()


@pytest.mark.parametrize("value", [0.0, 3.5, np.nan])
def test_a_constant_map_scores_nothing_in_standard_and_everything_in_paper(value: float) -> None:
    depth = np.full((24, 24), value, dtype=np.float32)
    points = np.random.default_rng(1).integers(0, 50, (40, 2))
    closer = np.ones(20, dtype=int)  # as in all of DA-2K
    values = sample(torch.from_numpy(depth), torch.from_numpy(points), (50, 50)).reshape(-1, 2)
    assert verdicts(values, torch.from_numpy(closer)).right.double().mean() == 0
    assert paper_verdicts(paper_sample(depth, points, (50, 50)).reshape(-1, 2), closer).mean() == 1
