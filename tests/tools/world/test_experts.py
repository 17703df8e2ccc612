"""How the experts that come with the package are made and measured."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tools.world.build import build
from tools.world.training import SIZE, resampling
from torch import nn

from innervision.targets import load_targets
from innervision.targets.target import Target
from innervision.world.dataset import FIRST_INDEX, choose_pairs
from innervision.world.scenes import CATEGORIES, Dice, render
from tools.world import train_depth, train_seg


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Experts that hardly learnt."""
    out = tmp_path_factory.mktemp("built")
    build(out, ["depth", "seg"], effort=0.001, progress=False)
    return out


def test_a_build_of_a_few_steps_makes_experts_that_load(built: Path) -> None:
    targets: list[Target] = load_targets([f"depth={built / 'depth'}", f"seg={built / 'seg'}"], device="cpu", head=True)
    image = Image.fromarray(render(0, 1).image)
    shapes = {target.name: tuple(target.context([image]).features.shape) for target in targets}
    outputs = {target.name: tuple(target.context([image]).output.shape) for target in targets}
    assert shapes == {"depth": (1, 64, 96), "seg": (1, 49, 128)}
    assert outputs == {"depth": (1, 336, 336), "seg": (1, 10, 28, 28)}


def test_the_card_measures_what_was_built(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prior = np.linspace(9, 1, SIZE)[:, None].repeat(SIZE, 1)  # the lower, the nearer; the mean of scenes takes long
    monkeypatch.setattr(train_depth, "mean_depth", lambda seed, size: prior)
    pairs = [
        pair
        for index in range(FIRST_INDEX["val"], FIRST_INDEX["val"] + 6)
        for pair in choose_pairs(render(0, index, SIZE), prior, Dice(0, index, 1))
    ]
    (section,) = train_depth.measure(built, progress=False, count=6)
    assert [figure.count for figure in section.figures] == [len(pairs)] * 2
    assert section.figures[0].baselines["mean depth map"] == 50  # of two pairs it orders one right
    (section,) = train_seg.measure(built, progress=False, count=4)
    assert [figure.what for figure in section.figures[2:]] == [f"IoU of {category['name']}" for category in CATEGORIES]


def test_an_enlarged_depth_expert_sees_in_a_zoomed_scene_what_it_saw_in_the_scene() -> None:
    torch.manual_seed(0)
    model = train_depth.make_model(SIZE).eval()
    zoomed = nn.functional.interpolate(torch.rand(2, 3, SIZE, SIZE), 3 * SIZE, mode="bilinear")
    with torch.no_grad():
        small = model.backbone(nn.functional.avg_pool2d(zoomed, 3)).feature_maps
        large = train_depth.enlarge(model).backbone(zoomed).feature_maps
    for seen, expected in zip(large, small, strict=True):
        torch.testing.assert_close(seen, expected, atol=1e-4, rtol=0)


def test_experts_learn_from_the_pixels_that_their_targets_make(built: Path) -> None:
    """The targets lose at most a grey level in each resizing."""
    depth, seg = load_targets([f"depth={built / 'depth'}", f"seg={built / 'seg'}"], device="cpu")
    image = render(0, 3).image
    plain = torch.from_numpy(image).movedim(-1, 0).float() / 255
    level = 1 / 255 / 0.25

    squash = resampling(3 * SIZE)
    expected = (squash @ plain @ squash.T - 0.5) / 0.25
    assert (depth.prepare([Image.fromarray(image)])[0] - expected).abs().max() <= 1.01 * level

    squash = resampling(768, SIZE)
    expected = (squash @ plain @ squash.T - 0.5) / 0.25
    assert (seg.prepare([Image.fromarray(image)])[0] - expected).abs().max() <= 2.01 * level
