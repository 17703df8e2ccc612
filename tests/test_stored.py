"""The study of trained probes: states that are stored, and a resampler that is added to a ridge."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmarks.stored import ADDED, Stored, offer_added, train
from torch import Tensor

from innervision import MLLM, InnerVisionError, ProbeBank, ProbeSettings, TrainSettings, fit, load_targets
from innervision.data import find_images
from innervision.data.loader import load_batches
from innervision.engine.run import RunFolder
from innervision.engine.session import Session
from innervision.registry import find
from innervision.targets.target import Target
from innervision.world.dataset import write_scenes

LAYERS = [-1, 4]


@pytest.fixture(scope="module")
def mllm() -> MLLM:
    return MLLM.load("world/tuned", device="cpu")


@pytest.fixture(scope="module")
def targets() -> list[Target]:
    return load_targets(["gen=world/gen"], device="cpu")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> TrainSettings:
    folder = tmp_path_factory.mktemp("stored")
    write_scenes(folder / "scenes", 10, 1)
    return TrainSettings(
        mllm="world/tuned",
        targets="gen=world/gen",
        layers="vision,4",
        images=str(folder / "scenes" / "train2017"),
        out=str(folder / "ridge"),
        batch_size=4,
        device="cpu",
        workers=0,
    )


@pytest.fixture(scope="module")
def stored(settings: TrainSettings, mllm: MLLM, targets: list[Target]) -> Stored:
    return Stored.of(settings, mllm, targets)


@pytest.fixture(scope="module")
def ridge(settings: TrainSettings, mllm: MLLM, targets: list[Target]) -> RunFolder:
    fit(settings, mllm=mllm, targets=targets, progress=False)
    return RunFolder(settings.out)


def test_stored_layers_are_those_of_the_walk(
    settings: TrainSettings, mllm: MLLM, targets: list[Target], stored: Stored
) -> None:
    """In any order of the images: what a reader is shown, and the expert's features."""
    numbers = torch.tensor([7, 0, 3])
    session = Session(settings, mllm, targets, "train")
    batches = session.batches(find_images(settings.images), [numbers.tolist()])
    with load_batches(batches, [0], workers=0, pin_memory=False) as loader:
        [batch] = loader
    shown: list[tuple[int, Tensor, Tensor, Tensor]] = []
    session.read(batch.inputs, lambda *layer: shown.append(layer), LAYERS, places=True)
    again: list[tuple[int, Tensor, Tensor, Tensor]] = []
    stored.read(numbers, lambda *layer: again.append(layer), LAYERS, places=True)
    assert [stored.names[i] for i in numbers] == batch.names
    for (layer, *wanted), (number, *found) in zip(shown, again, strict=True):
        assert number == layer
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, equal_nan=True, rtol=1e-4, atol=1e-4)
    features = targets[0].encode(batch.pixels["gen"])
    torch.testing.assert_close(stored.features["gen"][numbers], features, rtol=1e-4, atol=1e-4)


def test_the_added_resampler_learns_and_the_ridge_stays(
    tmp_path: Path, settings: TrainSettings, stored: Stored, ridge: RunFolder
) -> None:
    """From scale 0 the sum begins as the ridge's prediction; its file opens where the kind is offered."""
    solved = ProbeBank.load(ridge.probes("gen"))
    errors = {}
    for name, lr in (("start", 1e-12), ("learnt", 3e-3)):
        how = {
            "out": str(tmp_path / name),
            "probe": ProbeSettings(kind=ADDED, options={"scale": 0.0}),
            "epochs": 40,
            "lr": lr,
        }
        with offer_added():
            train(stored, replace(settings, **how), ridge)
            bank = ProbeBank.load(RunFolder(tmp_path / name).probes("gen"))
        for layer in LAYERS:
            for key, weight in solved.probes[str(layer)].state_dict().items():
                assert torch.equal(bank.probes[str(layer)].ridge.state_dict()[key], weight)
            states, mask, places = stored.layers[layer]
            prediction, of_ridge = bank(layer, states, mask, places), solved(layer, states, mask, places)
            errors[name, layer] = (prediction - stored.features["gen"]).square().mean()
            if name == "start":
                torch.testing.assert_close(prediction, of_ridge)
    for layer in LAYERS:
        assert errors["learnt", layer] < 0.9 * errors["start", layer]


def test_the_kind_is_offered_by_the_study_alone() -> None:
    with pytest.raises(InnerVisionError, match="there is no probe"):
        find("probes", ADDED)
