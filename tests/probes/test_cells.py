"""States at cells: against PyTorch's interpolation on full grids, and by hand where tokens are cropped or tiled."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from innervision.config import ProbeSettings
from innervision.errors import InnerVisionError
from innervision.probes.cells import read_all, read_cells
from innervision.probes.ridge import Pooled, Ridge


def grid(rows: int, columns: int, top: float = 0, left: float = 0, height: float = 1, width: float = 1) -> Tensor:
    """Places of a grid of tokens that covers a part of the image.  # (rows * columns, 4)"""
    h, w = height / rows, width / columns
    return torch.tensor(
        [[top + (i + 0.5) * h, left + (j + 0.5) * w, h, w] for i in range(rows) for j in range(columns)]
    )


@pytest.mark.parametrize(("rows", "columns"), [(6, 6), (4, 4), (3, 5), (12, 12), (9, 7), (1, 1)])
def test_a_full_grid_is_read_as_pytorch_resizes_it(rows: int, columns: int) -> None:
    states = torch.randn(2, rows * columns, 8, generator=torch.Generator().manual_seed(0))
    places = grid(rows, columns).expand(2, -1, -1)
    found, seen = read_cells(states, torch.ones(2, rows * columns, dtype=torch.bool), places, 36)
    maps = states.transpose(1, 2).unflatten(2, (rows, columns))
    expected = F.interpolate(maps, size=(6, 6), mode="bilinear", antialias=True)
    torch.testing.assert_close(found, expected.flatten(2).transpose(1, 2), atol=1e-5, rtol=1e-5)
    assert seen.all()


def test_tokens_in_another_order_between_text_give_the_same() -> None:
    random = torch.Generator().manual_seed(0)
    order = torch.randperm(20, generator=random)
    states = torch.randn(1, 20, 8, generator=random)
    places = torch.cat([grid(4, 4), torch.full((4, 4), float("nan"))])[None]
    mask = torch.ones(1, 20, dtype=torch.bool)
    found, _ = read_cells(states, mask, places, 9)
    mixed, _ = read_cells(states[:, order], mask, places[:, order], 9)
    torch.testing.assert_close(found, mixed)
    unread, _ = read_cells(torch.where(places.isnan().any(2)[..., None], torch.inf, states), mask, places, 9)
    torch.testing.assert_close(found, unread)


def test_what_is_cropped_away_is_not_seen() -> None:
    places = grid(4, 4, left=0.25, width=0.5)[None]  # the middle half of a wide image
    states = torch.ones(1, 16, 3)
    found, seen = read_cells(states, torch.ones(1, 16, dtype=torch.bool), places, 64)
    columns = seen.view(8, 8).all(dim=0)
    assert columns.tolist() == [False, False, True, True, True, True, False, False]
    assert seen.view(8, 8)[0].tolist() == columns.tolist()
    assert torch.equal(found[0, :, 0], seen[0].float())


def test_the_finest_tokens_are_read_where_scales_overlap() -> None:
    whole, tile = grid(4, 4), grid(4, 4, height=1, width=0.5)  # the tile shows the left half alone
    places = torch.cat([whole, tile])[None]
    states = torch.cat([torch.zeros(1, 16, 1), torch.ones(1, 16, 1)], dim=1)
    found, seen = read_cells(states, torch.ones(1, 32, dtype=torch.bool), places, 64)
    assert seen.all()
    assert found.view(8, 8)[:, :4].eq(1).all()
    assert found.view(8, 8)[:, 4:].eq(0).all()


def test_tiles_side_by_side_are_one_grid() -> None:
    left, right = grid(4, 4, width=0.5), grid(4, 4, left=0.5, width=0.5)
    states = torch.randn(1, 32, 5, generator=torch.Generator().manual_seed(0))
    found, _ = read_cells(states, torch.ones(1, 32, dtype=torch.bool), torch.cat([left, right])[None], 25)
    maps = torch.cat([half.transpose(1, 2).unflatten(2, (4, 4)) for half in states.split(16, dim=1)], dim=3)
    expected = F.interpolate(maps, size=(5, 5), mode="bilinear", antialias=True).flatten(2).transpose(1, 2)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_masked_tokens_are_not_read() -> None:
    states, places = torch.ones(1, 16, 3), grid(4, 4)[None]
    mask = torch.ones(1, 16, dtype=torch.bool)
    mask[0, 5] = False
    states[0, 5] = float("nan")
    found, seen = read_cells(states, mask, places, 16)
    assert seen[0].tolist() == mask[0].tolist()
    assert torch.equal(found[0, :, 0], mask[0].float())


def test_the_mean_is_of_visible_tokens() -> None:
    states = torch.tensor([[[1.0], [3.0], [torch.inf]]])
    assert read_all(states, torch.tensor([[True, True, False]])).tolist() == [[[2.0]]]


def test_cells_that_were_never_seen_get_the_mean_feature() -> None:
    random = torch.Generator().manual_seed(0)
    probe = Ridge(3, 64, 2, ProbeSettings())
    weight, states_mean, features_mean = (torch.randn(*shape, generator=random) for shape in ((3, 2), (64, 3), (64, 2)))
    probe.set_solution(weight, states_mean, features_mean)
    states, mask, places = torch.randn(1, 16, 3, generator=random), torch.ones(1, 16, dtype=torch.bool), grid(4, 4)
    places = grid(4, 4, left=0.25, width=0.5)[None]
    prediction = probe(states, mask, places)[0]
    read, seen = read_cells(states, mask, places, 64)
    assert torch.equal(prediction[~seen[0]], features_mean[~seen[0]])
    expected = features_mean + (read[0] - states_mean) @ weight
    torch.testing.assert_close(prediction[seen[0]], expected[seen[0]])


def test_a_pooled_probe_has_a_map_for_each_cell() -> None:
    probe = Pooled(3, 5, 2, ProbeSettings())
    weight = torch.randn(3, 10, generator=torch.Generator().manual_seed(0))
    probe.set_solution(weight, torch.zeros(1, 3), torch.zeros(1, 10))
    states = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(1))
    prediction = probe(states, torch.ones(2, 4, dtype=torch.bool))
    torch.testing.assert_close(prediction, (states.mean(dim=1) @ weight).view(2, 5, 2))


def test_cells_that_are_no_square_are_refused() -> None:
    with pytest.raises(InnerVisionError, match="12 cells are no square grid"):
        Ridge(3, 12, 2, ProbeSettings())
