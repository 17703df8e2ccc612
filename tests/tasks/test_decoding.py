"""Which maps go through a head, in which company, and what their outputs are compared with."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from innervision.config import TaskSettings
from innervision.data.loader import Batch
from innervision.data.sources import ImageSet
from innervision.errors import InnerVisionError
from innervision.targets.target import Context
from innervision.tasks.evaluation import Label, Scores
from innervision.tasks.task import Task

NAMES = ["a", "b", "c"]
LAYERS = [0, 1]


@dataclass
class KnownTarget:
    """Its output is the sum of a map's features, plus a hundred times what the real image gives."""

    name: str = "known"
    kind: str = "known"
    draws_at_random: bool = False
    looks_at_the_image: bool = True
    calls: list[int] = field(default_factory=list)
    seeds: dict[float, int] = field(default_factory=dict)

    def context(self, pixels: Tensor) -> Context:
        given = (pixels,) if self.looks_at_the_image else ()
        return Context(pixels[:, None, None].expand(-1, 2, 3) * 0.5, pixels * 1000, given)

    def decode(self, features: Tensor, context: Context, *, seeds: Sequence[int]) -> Tensor:
        self.calls.append(len(features))
        outputs = features.sum(dim=(1, 2))
        outputs = outputs + 100 * context.given[0] if self.looks_at_the_image else outputs
        self.seeds |= dict(zip(outputs.tolist(), seeds, strict=True))
        return outputs


class Difference(Task):
    """Reports output and truth as they are."""

    name = "difference"
    kind = "known"
    sources = ("probe", "shuffled", "blank", "zero", "mean", "expert", "plain")

    def __init__(self, settings: TaskSettings) -> None:
        self.settings = settings
        self.images = ImageSet([], [], [])

    def truth(self, name: str, image: Any) -> Any:
        raise AssertionError("the batch has its truth already")

    def score(self, outputs: Tensor, truths: Sequence[float], target: Any) -> list[Scores]:
        return [Scores("output", outputs), Scores("truth", torch.tensor(truths))]

    def keep(self, outputs: Tensor, labels: Sequence[Label]) -> dict[str, Tensor]:
        return {"pair": torch.stack([outputs, -outputs], dim=1)}


class WithoutArrays(Difference):
    """Needs nothing of all images together."""

    def keep(self, outputs: Tensor, labels: Sequence[Label]) -> dict[str, Tensor]:
        return {}


def make_task(size: int = 100, kind: type[Difference] = Difference, beside: str = "all") -> Difference:
    return kind(TaskSettings(data="nowhere", decode_batch_size=size, beside=beside))


def run(
    target: KnownTarget, size: int = 100, following: str | None = None, beside: str = "all"
) -> tuple[dict[tuple, tuple[float, float]], dict]:
    """Decode two layers of three images; give output and truth of each label, and what was kept."""
    count = 3 if following is None else 4
    pixels, truths = torch.tensor([1.0, 2.0, 3.0, 4.0])[:count], [10.0, 20.0, 30.0, 40.0][:count]
    batch = Batch(NAMES, None, {"known": pixels}, [], truths, following, paired=True)
    blank = {layer: torch.full((2, 3), 0.2 + layer) for layer in LAYERS}
    comparison = make_task(size, WithoutArrays if following else Difference, beside).compare(
        batch, target, torch.full((2, 3), 0.1), blank
    )
    for layer in LAYERS:
        comparison.predicted(layer, torch.tensor([7.0, 8.0, 9.0])[:, None, None].expand(3, 2, 3) + 10 * layer)
    findings = comparison.finish()
    found: dict[tuple, dict[str, float]] = {}
    for labels, scores in findings.scores:
        for label, value in zip(labels, scores.values.tolist(), strict=True):
            entry = found.setdefault((label.image, label.layer, label.source), {})
            assert scores.metric not in entry, "scored twice"
            entry[scores.metric] = value
    return {key: (entry["output"], entry["truth"]) for key, entry in found.items()}, findings.arrays


def expected(image_matters: bool) -> dict[tuple, tuple[float, float]]:
    found = {}
    for i, name in enumerate(NAMES):
        truth, own = 10.0 * (i + 1), (100.0 * (i + 1) if image_matters else 0.0)
        for layer in LAYERS:
            value = [6 * (7.0 + j + 10 * layer) for j in range(3)]
            found[name, layer, "probe"] = value[i] + own, truth
            found[name, layer, "shuffled"] = value[i - 1] + own, truth
            found[name, layer, "blank"] = 6 * (0.2 + layer) + own, truth
        found[name, None, "zero"] = own, truth
        found[name, None, "mean"] = 0.6 + own, truth
        found[name, None, "expert"] = 6 * 0.5 * (i + 1) + own, truth
        found[name, None, "plain"] = 1000.0 * (i + 1), truth
    return found


@pytest.mark.parametrize("image_matters", [True, False])
@pytest.mark.parametrize("size", [1, 4, 100])
def test_every_map_is_compared_with_its_image_in_the_context_of_its_image(image_matters: bool, size: int) -> None:
    found, _ = run(KnownTarget(looks_at_the_image=image_matters), size)
    assert found.keys() == expected(image_matters).keys()
    for key, values in expected(image_matters).items():
        assert found[key] == pytest.approx(values), key


@pytest.mark.parametrize("image_matters", [True, False])
@pytest.mark.parametrize(
    ("beside", "sources", "count"),
    [
        ("none", {"probe"}, {True: 6, False: 6}),
        ("shuffled, expert", {"probe", "shuffled", "expert"}, {True: 6 + 6 + 3, False: 6 + 3}),
        ("blank,mean,plain", {"probe", "blank", "mean", "plain"}, {True: 6 + 6 + 3, False: 6 + 2 + 1}),
    ],
)
def test_what_is_not_asked_for_is_neither_decoded_nor_scored(
    beside: str, sources: set[str], count: dict[bool, int], image_matters: bool
) -> None:
    target = KnownTarget(looks_at_the_image=image_matters)
    found, _ = run(target, beside=beside)
    assert found == {
        key: values
        for key, values in run(KnownTarget(looks_at_the_image=image_matters))[0].items()
        if key[2] in sources
    }
    assert {source for *_, source in found} == sources
    assert sum(target.calls) == count[image_matters]


@pytest.mark.parametrize("beside", ["probe", "everything", "mean,all", ""])
def test_sources_that_the_task_does_not_have_are_refused(beside: str) -> None:
    with pytest.raises(
        InnerVisionError, match=r"difference has no .*, only shuffled, blank, zero, mean, expert, plain"
    ):
        make_task(beside=beside).plan()


def test_the_plan_names_what_is_scored_where_that_is_not_all() -> None:
    assert "sources" not in make_task().plan()
    assert make_task(beside="mean").plan()["sources"] == ["probe", "mean"]


@pytest.mark.parametrize(
    ("image_matters", "count"),
    [
        # predictions twice, for shuffled sees another image; blank; zero, mean, expert
        (True, 2 * 3 * 2 + 2 * 3 + 3 * 3),
        # every prediction once; for all images one blank of each layer, one zero and one mean
        (False, 2 * 3 + 2 + 1 + 1 + 3),
    ],
)
def test_nothing_is_decoded_twice(image_matters: bool, count: int) -> None:
    target = KnownTarget(looks_at_the_image=image_matters)
    run(target)
    assert sum(target.calls) == count


def test_maps_of_all_images_and_layers_share_a_batch_of_the_size_asked_for() -> None:
    target = KnownTarget()
    run(target, size=8)
    assert target.calls == [8, 8, 8, 3]


def test_outputs_that_are_drawn_at_random_are_drawn_for_every_image() -> None:
    target = KnownTarget(looks_at_the_image=False, draws_at_random=True)
    run(target)
    assert sum(target.calls) == 2 * 3 * 2 + 2 * 3 + 3 * 3


def test_a_seed_belongs_to_an_image_and_a_layer_whatever_the_company() -> None:
    together, alone = KnownTarget(draws_at_random=True), KnownTarget(draws_at_random=True)
    run(together)
    run(alone, size=1)
    assert together.seeds == alone.seeds
    assert len(set(together.seeds.values())) == len(NAMES) * (len(LAYERS) + 1)  # and one where there is no layer


def test_arrays_are_kept_in_the_order_of_the_images() -> None:
    values = expected(True)
    _, arrays = run(KnownTarget(), size=4)
    # without the predictions for partners, which are the same set
    assert set(arrays) == {("known", source, layer) for _, layer, source in values if source != "shuffled"}
    for (_, source, layer), kept in arrays.items():
        outputs = torch.tensor([values[name, layer, source][0] for name in NAMES])
        torch.testing.assert_close(kept["pair"], torch.stack([outputs, -outputs], dim=1))


def test_a_mean_that_is_not_known_is_left_out() -> None:
    batch = Batch(NAMES[:2], None, {"known": torch.tensor([1.0, 2.0])}, [], [1.0, 2.0])
    findings = make_task().compare(batch, KnownTarget(), torch.full((2, 3), torch.nan), {}).finish()
    assert {label.source for labels, _ in findings.scores for label in labels} == {"zero", "expert", "plain"}


@pytest.mark.parametrize("image_matters", [True, False])
def test_a_prediction_is_also_compared_with_a_partner_outside_of_the_batch(image_matters: bool) -> None:
    """The last image's partner is `d`; who has the first image for partner is in another batch."""
    found, _ = run(KnownTarget(looks_at_the_image=image_matters), following="d")
    shuffled = {key: value for key, value in found.items() if key[2] == "shuffled"}
    assert {key[0] for key in shuffled} == {"b", "c", "d"}
    own = 400.0 if image_matters else 0.0
    for layer in LAYERS:
        assert shuffled["d", layer, "shuffled"] == pytest.approx((6 * (9.0 + 10 * layer) + own, 40.0))
    assert {key[0] for key in found if key[2] != "shuffled"} == set(NAMES)


def test_the_task_takes_all_targets_of_its_kind() -> None:
    kinds = {"a": "known", "b": "other", "c": "known"}
    assert make_task().choose(kinds) == ["a", "c"]
    with pytest.raises(InnerVisionError, match="no probes for known, only for b"):
        make_task().choose({"b": "other"})


def test_all_of_a_tasks_own_settings_are_in_its_plan() -> None:
    """Else scores made with other settings would be taken for those that are asked for."""

    @dataclass(kw_only=True)
    class Own(TaskSettings):
        below: float = 0.5

    task = make_task()
    assert task.plan() == {}
    task.settings = Own(data="x", below=0.1)
    assert task.plan() == {"below": 0.1}
