"""Exact probes on tiny real models: what they are solved from, resuming, and what is refused."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import Ridge

from innervision.config import EvaluateSettings, TrainSettings
from innervision.data import find_images, read_image
from innervision.engine.evaluate import evaluate_similarity
from innervision.engine.fit import fit
from innervision.engine.interrupt import Stopped
from innervision.engine.run import RunFolder
from innervision.engine.session import Session
from innervision.errors import InnerVisionError
from innervision.mllm import MLLM
from innervision.probes import read_metadata
from innervision.probes.cells import read_all, read_cells
from innervision.report.files import read_scores
from innervision.targets.target import Target
from stand_ins import KnownTarget, StandInMLLM, StopAt, weights, write_noise_images
from tiny_mllms import save_tiny

COUNT = 33
LAYERS = [-1, 0, 4]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_noise_images(tmp_path_factory.mktemp("images"), COUNT, size=(60, 60))


@pytest.fixture
def settings(settings: TrainSettings, images: Path) -> TrainSettings:
    return replace(settings, images=str(images), layers="vision,0,4", batch_size=8, micro_batch_size=3)


def test_probes_are_ridge_regressions_from_the_states_at_each_place(
    settings: TrainSettings, mllm: MLLM, targets: list[Target]
) -> None:
    """The plain way: keep all states and features, and let scikit-learn solve for each layer and target."""
    fit(settings, mllm=mllm, targets=targets, progress=False)
    images = find_images(settings.images)
    session = Session(settings, mllm, targets, "train")
    kept: dict[tuple[str, int], list[torch.Tensor]] = {}
    features: dict[str, list[torch.Tensor]] = {target.name: [] for target in targets}
    for path in images.paths:
        inputs, pixels = session.prepare(read_image(path))

        def keep(layer: int, states: torch.Tensor, mask: torch.Tensor, places: torch.Tensor) -> None:
            kept.setdefault(("depth", layer), []).append(read_cells(states, mask, places, targets[0].num_tokens)[0])
            kept.setdefault(("gen", layer), []).append(read_all(states, mask))

        session.read(inputs, keep, LAYERS, places=True)
        for target in targets:
            features[target.name].append(target.encode(pixels[target.name]))
    found = weights(settings.out)
    for target in targets:
        facts = read_metadata(Path(settings.out) / f"probes/{target.name}.safetensors")["facts"]["held_out"]
        y = torch.cat(features[target.name]).double().numpy()
        for layer in LAYERS:
            x = torch.cat(kept[target.name, layer]).double().numpy()
            assert facts[str(layer)]["unseen"] == pytest.approx(0)
            x, centred = x - x.mean(axis=0), (y - y.mean(axis=0)).reshape(-1, target.width)
            x = x.reshape(-1, x.shape[-1])
            deviation = x.std(axis=0)
            penalty = facts[str(layer)]["penalty"]
            key = f"{target.name}/probes.{layer}"
            if penalty is None:
                assert not found[f"{key}.weight"].any()
                continue
            ridge = Ridge(alpha=penalty, fit_intercept=False, solver="svd").fit(x / deviation, centred)
            expected = ridge.coef_.T / deviation[:, None]
            np.testing.assert_allclose(
                found[f"{key}.weight"], expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max()
            )  # the file is in float32
            np.testing.assert_allclose(found[f"{key}.features_mean"], y.mean(axis=0), rtol=1e-5, atol=1e-6)
            assert torch.equal(found[f"{key}.features_mean"], found[f"{target.name}/mean"])


def test_batches_do_not_matter(settings: TrainSettings, mllm: MLLM, targets: list[Target], tmp_path: Path) -> None:
    fit(settings, mllm=mllm, targets=targets, progress=False)
    other = replace(settings, out=str(tmp_path / "other"), batch_size=33, micro_batch_size=11, seed=3)
    fit(other, mllm=mllm, targets=targets, progress=False)
    first, second = weights(settings.out), weights(other.out)
    assert first.keys() == second.keys()
    for key, value in first.items():
        torch.testing.assert_close(value, second[key], rtol=1e-3, atol=1e-5, msg=key)  # states differ by batch


def test_a_stopped_run_ends_bit_for_bit_as_one_that_was_not(
    settings: TrainSettings, mllm: MLLM, targets: list[Target], tmp_path: Path
) -> None:
    fit(settings, mllm=mllm, targets=targets, progress=False)
    whole = weights(settings.out)
    for number in (1, 4, 7, 10):
        stopped = replace(settings, out=str(tmp_path / f"stopped{number}"))
        with pytest.raises(Stopped):
            fit(stopped, mllm=mllm, targets=[StopAt(targets[0], number), targets[1]], progress=False)
        fit(stopped, resume=True, mllm=mllm, targets=targets, progress=False)
        again = weights(stopped.out)
        assert whole.keys() == again.keys()
        assert all(torch.equal(value, again[key]) for key, value in whole.items()), number
        for target in targets:
            facts = [
                read_metadata(Path(run) / f"probes/{target.name}.safetensors")["facts"]
                for run in (settings.out, stopped.out)
            ]
            assert facts[0] == facts[1]


def test_the_layer_that_carries_the_features_is_found(tmp_path: Path) -> None:
    images = str(write_noise_images(tmp_path / "images", 400))
    held = str(write_noise_images(tmp_path / "held", 60, seed=1))
    settings = TrainSettings(mllm="stand-in", images=images, out=str(tmp_path / "run"), workers=0, save_minutes=60)
    models = {"mllm": StandInMLLM(informed=2), "targets": [KnownTarget()], "progress": False}
    fit(settings, **models)
    facts = read_metadata(tmp_path / "run/probes/known.safetensors")["facts"]["held_out"]
    explained = {int(layer): each["explained_variance"][-1] for layer, each in facts.items()}
    assert explained[2] > 0.8
    assert all(abs(explained[layer]) < 0.05 for layer in (0, 1, 3, 4))
    assert facts["2"]["images"] == [25, 50, 100, 200, 400]  # 1/16, 1/8, 1/4, 1/2 and all of them
    evaluate_similarity(tmp_path / "run", EvaluateSettings(images=held, workers=0), **models)
    scores = read_scores(tmp_path / "run").query("source == 'probe' and metric == 'explained_variance'")
    by_layer = scores.groupby("layer")["value"].mean()
    assert by_layer[2] > 0.8  # of images that neither fitted nor chose
    assert by_layer.drop(2).abs().max() < 0.05


def test_a_curve_that_still_rises_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = str(write_noise_images(tmp_path / "images", 100))
    settings = TrainSettings(mllm="stand-in", images=images, out=str(tmp_path / "run"), workers=0, layers="2")
    fit(settings, mllm=StandInMLLM(informed=2, noise=2), targets=[KnownTarget()], progress=False)
    said = capsys.readouterr()
    assert "known: more images would help" in said.out + said.err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"epochs": 5, "lr": 0.1}, "ridge probes are solved in one pass, without epochs, lr: leave that out"),
        ({"clip": 1.0}, "without clip"),
    ],
)
def test_settings_of_trained_probes_are_refused(settings: TrainSettings, changes: dict, said: str) -> None:
    with pytest.raises(InnerVisionError, match=said):
        fit(replace(settings, **changes), progress=False)
    assert not Path(settings.out).exists()


def test_too_few_images_are_refused(settings: TrainSettings, mllm: MLLM, targets: list[Target], tmp_path: Path) -> None:
    few = replace(settings, images=str(write_noise_images(tmp_path / "few", 4)))
    with pytest.raises(InnerVisionError, match=r"at least 5 images.* 4 were found"):
        fit(few, mllm=mllm, targets=targets, progress=False)


def test_images_that_are_all_alike_are_refused(
    settings: TrainSettings, mllm: MLLM, targets: list[Target], tmp_path: Path
) -> None:
    folder = tmp_path / "alike"
    folder.mkdir()
    for i in range(9):
        Image.new("RGB", (60, 60), (90, 120, 150)).save(folder / f"{i}.png")
    with pytest.raises(InnerVisionError, match="the features of depth are the same in all 9 images"):
        fit(replace(settings, images=str(folder)), mllm=mllm, targets=targets, progress=False)


class Spoiled:
    """A target whose features hold a NaN."""

    def __init__(self, target: Target) -> None:
        self.target = target

    def __getattr__(self, name: str) -> object:
        return getattr(self.target, name)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        features = self.target.encode(pixels)
        features[-1, 0, 0] = float("nan")
        return features


def test_a_target_with_nan_is_refused(settings: TrainSettings, mllm: MLLM, targets: list[Target]) -> None:
    with pytest.raises(InnerVisionError, match="the expert of depth gives features that are not finite"):
        fit(settings, mllm=mllm, targets=[Spoiled(targets[0])], progress=False)


def test_states_with_nan_are_refused(tmp_path: Path) -> None:
    class Broken(StandInMLLM):
        def visit(self, inputs, visitor, layers, *, tokens: str = "all") -> None:
            def spoil(layer: int, states: torch.Tensor, mask: torch.Tensor) -> None:
                visitor(layer, states * float("inf") if layer == 3 else states, mask)

            super().visit(inputs, spoil, layers, tokens=tokens)

    images = str(write_noise_images(tmp_path / "images", 10))
    settings = TrainSettings(mllm="stand-in", images=images, out=str(tmp_path / "run"), workers=0)
    with pytest.raises(InnerVisionError, match="layer 3 has states that are not finite"):
        fit(settings, mllm=Broken(), targets=[KnownTarget()], progress=False)


def test_memory_is_checked_before_work_starts(
    settings: TrainSettings, mllm: MLLM, targets: list[Target], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("innervision.engine.memory.free_memory", lambda device: 1000)
    with pytest.raises(
        InnerVisionError, match=r"exact probes need .* kB of memory on cpu for their sums, where 1 kB are free"
    ):
        fit(settings, mllm=mllm, targets=targets, progress=False)


@pytest.mark.parametrize(("family", "tokens"), [("llava", "text"), ("blip-2", "all")])
def test_tokens_without_a_place_are_pooled(
    family: str, tokens: str, settings: TrainSettings, targets: list[Target], tmp_path: Path
) -> None:
    """Of text, and of query tokens, the mean is read, by a map for each cell."""
    save_tiny(family, tmp_path / family)
    settings = replace(settings, mllm=str(tmp_path / family), tokens=tokens, layers="0,4", device="cpu")
    banks = fit(settings, targets=targets, progress=False)
    assert banks["depth"].settings.kind == "pooled"
    width, cells = banks["depth"].info.widths[4], targets[0].num_tokens
    assert banks["depth"].probes["4"].weight.shape == (width, cells * targets[0].width)
    assert RunFolder(settings.out).settings().probe.kind == "ridge"  # as it was asked for


def test_a_sample_of_the_images_is_taken(settings: TrainSettings, mllm: MLLM, targets: list[Target]) -> None:
    fit(replace(settings, limit=12), mllm=mllm, targets=targets, progress=False)
    facts = read_metadata(Path(settings.out) / "probes/gen.safetensors")["facts"]
    assert facts["images"] == 12
    assert RunFolder(settings.out).record()["images"]["found"] == 12


def test_a_sample_depends_on_the_seed_and_keeps_the_order(settings: TrainSettings) -> None:
    images = find_images(settings.images)
    names = images.sample(9, seed=1).names
    assert len(names) == 9
    assert names == sorted(names)
    assert set(names) <= set(images.names)
    assert images.sample(9, seed=1).names == names
    assert images.sample(9, seed=2).names != names
    assert images.sample(1000, seed=1).names == images.names


def test_a_device_that_does_not_tell_its_free_memory_is_trusted(
    settings: TrainSettings, mllm: MLLM, targets: list[Target], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("innervision.engine.memory.free_memory", lambda device: math.inf)
    assert fit(settings, mllm=mllm, targets=targets, progress=False).keys() == {"depth", "gen"}


def test_cells_that_are_cropped_away_are_told(
    settings: TrainSettings, mllm: MLLM, targets: list[Target], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """LLaVA crops 60 x 120 pixels to their middle: of 4 x 4 cells the first and the last column are gone."""
    images = write_noise_images(tmp_path / "wide", 12, size=(60, 120))
    fit(replace(settings, images=str(images)), mllm=mllm, targets=targets, progress=False)
    facts = read_metadata(Path(settings.out) / "probes/depth.safetensors")["facts"]["held_out"]
    assert targets[0].num_tokens == 16
    assert [each["unseen"] for each in facts.values()] == pytest.approx([0.5] * 3)
    told = capsys.readouterr().err
    assert "depth: the MLLM was not shown 50.0% of the cells" in told
    assert "gen: the MLLM was not shown" not in told
