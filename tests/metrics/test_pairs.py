"""Which of two points is closer: read from maps as if they were resized, and judged by two rules."""

import json
from pathlib import Path

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


def read(depth: torch.Tensor, points: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    index = torch.zeros(len(points), dtype=torch.long)
    return sample(depth[None], index, points, torch.tensor([size]).expand(len(points), 2))


@pytest.mark.parametrize("size", [(24, 24), (31, 50), (100, 9), (1, 1)])
def test_points_are_read_as_from_a_resized_map(size: tuple[int, int]) -> None:
    depth = torch.rand(24, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = interpolate(depth[None, None], size, mode="bilinear", align_corners=False)[0, 0].flatten()
    torch.testing.assert_close(read(depth, every_pixel(*size), size), expected, atol=1e-12, rtol=0)


def test_each_point_is_read_from_its_own_map() -> None:
    maps = torch.arange(3.0)[:, None, None].expand(3, 4, 4)
    points, sizes = torch.tensor([[0, 0], [5, 7], [9, 1], [3, 3]]), torch.tensor([[10, 8]] * 4)
    assert sample(maps, torch.tensor([2, 0, 1, 2]), points, sizes).tolist() == [2, 0, 1, 2]


@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, 12345.678])
def test_a_constant_map_is_the_same_everywhere(value: float) -> None:
    """To the last bit, or rounding would decide its pairs."""
    values = read(torch.full((24, 24), value), every_pixel(37, 53), (37, 53))
    assert len(values.unique()) == 1


def test_what_is_squashed_is_stretched_again() -> None:
    """In a map of left and right, a point of a wide image lies where it lay in the image."""
    depth = torch.cat([torch.zeros(24, 12), torch.ones(24, 12)], dim=1)
    assert read(depth, torch.tensor([[5, 300], [5, 340]]), (10, 640)).tolist() == [0, 1]


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


@pytest.mark.parametrize("value", [0.0, 3.5, np.nan])
def test_a_constant_map_scores_nothing_in_standard_and_everything_in_paper(value: float) -> None:
    depth = np.full((24, 24), value, dtype=np.float32)
    points = np.random.default_rng(1).integers(0, 50, (40, 2))
    closer = np.ones(20, dtype=int)  # as in all of DA-2K
    values = read(torch.from_numpy(depth), torch.from_numpy(points), (50, 50)).reshape(-1, 2)
    assert verdicts(values, torch.from_numpy(closer)).right.double().mean() == 0
    assert paper_verdicts(paper_sample(depth, points, (50, 50)).reshape(-1, 2), closer).mean() == 1
