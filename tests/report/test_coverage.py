"""Intervals hold as often as they say, in worlds whose true scores are known. All of them: `benchmarks.coverage`."""

from functools import partial

import numpy as np
import pytest
from benchmarks.coverage import (
    World,
    draw_classes,
    draw_mean,
    draw_sets,
    draw_share,
    draw_two_means,
    simulate,
)

CLASSES = partial(draw_classes, classes=20, top=0.6, power=0.7)


@pytest.mark.parametrize(
    ("world", "images", "share"),
    [
        (partial(draw_mean, kind="exponential"), 50, False),
        (partial(draw_mean, kind="left-skewed"), 50, False),
        (partial(draw_mean, kind="normal"), 5, False),
        (partial(draw_share, share=0.6, alike=0.3), 50, True),
        (partial(draw_share, share=0.97, alike=0.3), 50, True),
        (CLASSES, 50, False),
        (partial(CLASSES, by_class=True), 50, False),
        (partial(CLASSES, by_class=True, runs=2), 50, False),
        (draw_sets, 50, False),
        (partial(draw_sets, near=1.0), 50, False),
        (draw_two_means, 50, False),
        (partial(draw_share, share=0.6, alike=0.3, runs=2), 50, True),
    ],
)
def test_95_of_100_intervals_hold(world: World, images: int, share: bool) -> None:
    """Of 400 trials, 95% are known to a standard deviation of 1.1%."""
    covers, *_ = simulate(world, images, 400, np.random.default_rng(0), share=share)
    assert 0.92 <= covers <= 0.985


def test_where_few_images_have_most_classes_a_warning_is_given() -> None:
    """133 classes in 50 images, whose intervals hold in a quarter of the trials."""
    world = partial(draw_classes, classes=133, top=0.6, power=1.0)
    covers, _, _, warned = simulate(world, 50, 50, np.random.default_rng(0))
    assert covers < 0.5
    assert warned == 1
