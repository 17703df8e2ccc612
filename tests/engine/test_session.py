"""The one walk: the same prediction for whoever asks, on whatever device, in the precision that the settings say."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import task_runs
from innervision.config import EvaluateSettings, ProbeSettings, TaskSettings, TrainSettings
from innervision.data import ImageSet, read_image
from innervision.engine.decode import decode_layers
from innervision.engine.evaluate import evaluate_similarity, evaluate_task
from innervision.engine.fit import fit
from innervision.engine.session import Session
from innervision.errors import InnerVisionError
from innervision.mllm import MLLM
from innervision.original.protocol import PROTOCOLS
from innervision.probes import ProbeBank
from innervision.seeds import fixed_seed
from innervision.targets.depth import DepthTarget
from innervision.targets.seg import SegTarget
from innervision.targets.target import Target
from stand_ins import KnownTarget, StandInMLLM, write_noise_images
from tiny_experts import save_tiny_depth, save_tiny_seg
from tiny_mllms import save_tiny


class Models:
    """Tiny models, a benchmark for each task, and runs of both protocols."""

    def __init__(self, root: Path) -> None:
        self.root = root
        # pads: what protocol `paper` masks and what it shows differ
        save_tiny("qwen2_vl", root / "mllm")
        save_tiny_depth(root / "depth")
        save_tiny_seg(root / "seg", num_classes=len(task_runs.NAMES))
        write_noise_images(root / "images", 4, size=(40, 90))
        task_runs.write_pairs(root / "DA-2K")
        task_runs.write_panoptic(root / "coco")
        self.mllm = MLLM.load(str(root / "mllm"), device="cpu")
        self.targets = {protocol: self.load(protocol) for protocol in PROTOCOLS}
        for protocol in PROTOCOLS:
            settings = TrainSettings(
                mllm=str(root / "mllm"),
                targets=f"depth={root / 'depth'},seg={root / 'seg'}",
                images=str(root / "images"),
                out=str(self.run(protocol)),
                probe=ProbeSettings(kind="resampler", heads=2, dim_head=8),
                layers="1,3",
                protocol=protocol,
                epochs=1,
                batch_size=4,
                workers=0,
            )
            fit(settings, mllm=self.mllm, targets=self.targets[protocol], progress=False)

    def run(self, protocol: str) -> Path:
        return self.root / protocol

    def load(self, protocol: str) -> list[Target]:
        targets = [
            DepthTarget.load(str(self.root / "depth"), size=56, head=True, device="cpu"),
            SegTarget.load(str(self.root / "seg"), size=64, head=True, device="cpu"),
        ]
        for target in targets:
            PROTOCOLS[protocol].adopt(target)
        return targets


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("session"))


def spy(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, Tensor]]:
    """Note every prediction of every bank."""
    seen: list[tuple[str, int, Tensor]] = []
    forward = ProbeBank.forward

    def noting(self: ProbeBank, layer: int, *inputs: Tensor) -> Tensor:
        prediction = forward(self, layer, *inputs)
        seen.append((self.info.target, layer, prediction.detach()))
        return prediction

    monkeypatch.setattr(ProbeBank, "forward", noting)
    return seen


@pytest.mark.parametrize("protocol", ["standard", "paper"])
@pytest.mark.parametrize(("task", "data"), [("depth", "DA-2K/images/indoor"), ("seg", "coco/val2017")])
def test_a_picture_shows_the_predictions_that_the_task_scores(
    models: Models, protocol: str, task: str, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = spy(monkeypatch)
    how: dict[str, Any] = {"mllm": models.mllm, "targets": models.targets[protocol]}
    source = models.root / {"depth": "DA-2K", "seg": "coco"}[task]
    settings = TaskSettings(data=str(source), batch_size=1, workers=0)
    evaluate_task(models.run(protocol), task, settings, overwrite=True, progress=False, **how)
    scored, seen[:] = [*seen], []
    decode_layers(models.run(protocol), read_image(sorted((models.root / data).iterdir())[0]), **how)
    shown = [each for each in seen if each[0] == task]
    assert [layer for _, layer, _ in shown] == [1, 3]
    for name, layer, prediction in shown:
        distances = [
            (prediction - other).abs().max().item() for found, at, other in scored if (found, at) == (name, layer)
        ]
        # that of the same image, and of no other one
        assert sorted(distances)[0] < 1e-5
        assert sorted(distances)[1] > 1e-3


def test_what_is_scored_by_paper_differs_from_standard(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the test above would say nothing."""
    seen = spy(monkeypatch)
    image = read_image(models.root / "images/0000.png")
    settings = TrainSettings(mllm="x", images="x", out="x")
    bank = ProbeBank.load(models.run("paper") / "probes/depth.safetensors")
    for protocol in PROTOCOLS:
        session = Session(replace(settings, protocol=protocol), models.mllm, models.targets[protocol], "depth")
        session.predict(session.prepare(image)[0], {"depth": bank}, lambda *_: None)
    assert (seen[0][2] - seen[2][2]).abs().max() > 1e-3


@pytest.mark.parametrize(("setting", "expected"), [(None, None), ("float32", None), ("bfloat16", torch.bfloat16)])
@pytest.mark.parametrize("script", ["train", "depth"])
def test_probes_work_in_the_precision_that_the_settings_say(
    models: Models, setting: Any, expected: torch.dtype | None, script: str
) -> None:
    settings = TrainSettings(mllm="x", images="x", out="x", probe_dtype=setting)
    session = Session(settings, models.mllm, models.targets["standard"], script)
    found = []
    bank = ProbeBank.load(models.run("standard") / "probes/depth.safetensors")
    for probe in bank.probes.values():
        probe.proj_out.register_forward_hook(lambda *given: found.append(given[2].dtype))
    predictions: list[Tensor] = []
    inputs, _ = session.prepare(read_image(models.root / "images/0000.png"))
    session.predict(inputs, {"depth": bank}, lambda name, layer, prediction: predictions.append(prediction))
    assert found == [expected or torch.float32] * 2
    assert [prediction.dtype for prediction in predictions] == [torch.float32] * 2
    assert session.setup()["dtype"]["probes"] == (setting or "float32")


@pytest.mark.parametrize(
    ("protocol", "device", "script", "expected"),
    [
        ("standard", "cpu", "train", torch.float32),
        ("standard", "cuda", "train", torch.bfloat16),
        ("standard", "cuda", "depth", torch.bfloat16),
        ("paper", "cpu", "depth", torch.float32),
        ("paper", "cuda", "train", torch.bfloat16),
        ("paper", "cuda", "depth", torch.float16),
        ("paper", "cuda", "similarity", torch.float16),
    ],
)
def test_precision_where_no_setting_says_it(protocol: str, device: str, script: str, expected: torch.dtype) -> None:
    assert PROTOCOLS[protocol].probe_dtype(torch.device(device), script) == expected


@pytest.mark.usefixtures("plain_attention")
def test_experts_do_not_follow_the_precision_of_the_mllm(models: Models) -> None:
    settings = settings_of(models)
    session = Session.load(replace(settings, dtype="bfloat16"), "train", device="cpu")
    assert session.mllm.dtype == torch.bfloat16
    assert {target.dtype for target in session.targets} == {torch.float32}
    chosen = Session.load(replace(settings, expert_dtype="bfloat16"), "train", device="cpu")
    assert chosen.mllm.dtype == torch.float32
    assert {target.dtype for target in chosen.targets} == {torch.bfloat16}
    assert chosen.setup()["dtype"] == {"mllm": "float32", "experts": "bfloat16", "probes": "float32"}


def settings_of(models: Models) -> TrainSettings:
    from innervision.engine.run import RunFolder

    return RunFolder(models.run("standard")).settings()


def test_every_probe_may_have_a_device_of_its_own(models: Models) -> None:
    """What is on the device `meta` has shapes and no values, which is enough to see where it is."""
    session = Session(settings_of(models), models.mllm, models.targets["standard"], "train")
    bank = ProbeBank.load(models.run("standard") / "probes/depth.safetensors")
    bank.place({1: torch.device("meta"), 3: torch.device("cpu")})
    found = {}
    inputs, _ = session.prepare(read_image(models.root / "images/0000.png"))
    session.predict(inputs, {"depth": bank}, lambda name, layer, prediction: found.update({layer: prediction}))
    assert {layer: prediction.device.type for layer, prediction in found.items()} == {1: "meta", 3: "cpu"}


def test_experts_of_another_protocol_are_refused(models: Models) -> None:
    with pytest.raises(InnerVisionError, match="does not see images by the run's protocol, paper"):
        decode_layers(
            models.run("paper"), Image.new("RGB", (40, 60)), mllm=models.mllm, targets=models.targets["standard"]
        )


def out_of_memory(*_: object) -> Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.parametrize("where", ["mllm", "expert"])
def test_memory_that_runs_out_is_an_error_that_says_what_to_do(
    tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = write_noise_images(tmp_path / "images", 4)
    settings = TrainSettings(
        mllm="stand-in",
        targets="known:backbone=stand-in",
        images=str(images),
        out=str(tmp_path / "run"),
        probe=ProbeSettings(kind="resampler"),
        epochs=1,
        batch_size=2,
        workers=0,
    )
    mllm, target = StandInMLLM(1), KnownTarget()
    fit(settings, mllm=mllm, targets=[target], progress=False)

    def train() -> None:
        fit(replace(settings, out=str(tmp_path / "other")), mllm=mllm, targets=[target], progress=False)

    def score() -> None:
        how = EvaluateSettings(images=str(images), workers=0)
        evaluate_similarity(settings.out, how, mllm=mllm, targets=[target], progress=False)

    monkeypatch.setattr(*((mllm, "visit") if where == "mllm" else (KnownTarget, "encode")), out_of_memory_of(where))
    for work, advice in ((train, "lower micro_batch_size"), (score, "lower batch_size")):
        with pytest.raises(InnerVisionError, match=f"out of memory: {advice}"):
            work()


def out_of_memory_of(where: str) -> Callable[..., Tensor]:
    return (lambda *_, **__: out_of_memory()) if where == "mllm" else out_of_memory


def test_a_fixed_seed_leaves_every_generator_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def touched(*_: object) -> None:
        raise AssertionError("the accelerator's generator was reseeded")

    for module in (torch.cuda, torch.mps, torch.xpu):
        for name in ("manual_seed", "manual_seed_all"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, touched)
    torch.random.default_generator.manual_seed(3)
    expected = torch.rand(2)
    torch.random.default_generator.manual_seed(3)
    with fixed_seed(5):
        first = torch.rand(2)
    ProbeBank.for_models(StandInMLLM(1), KnownTarget())
    assert torch.equal(torch.rand(2), expected)
    with fixed_seed(5):
        assert torch.equal(torch.rand(2), first)


@pytest.mark.parametrize("protocol", ["standard", "paper"])
def test_a_score_does_not_depend_on_the_images_beside_it(
    models: Models, protocol: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Images of unequal size, which the model pads: the original scores them one by one."""
    for number, side in enumerate((40, 60, 90)):
        write_noise_images(tmp_path / "more", 1, seed=number, size=(40, side))
        (tmp_path / "more/0000.png").rename(tmp_path / f"{number}.png")
    session = Session(
        replace(settings_of(models), protocol=protocol), models.mllm, models.targets[protocol], "similarity"
    )
    bank = ProbeBank.load(models.run(protocol) / "probes/depth.safetensors")
    images = [read_image(tmp_path / f"{number}.png") for number in range(3)]
    prepare = session.batches(ImageSet([], [], []), []).prepare
    found: list[Tensor] = []
    for batch in (images, images[:1]):
        session.predict(prepare(batch), {"depth": bank}, lambda name, layer, prediction: found.append(prediction[0]))
    assert len(found) == 4
    for together, alone in zip(found[:2], found[2:], strict=True):
        torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


def test_a_reader_may_change_the_states(models: Models) -> None:
    """As the visitor of a plain walk may."""
    settings = TrainSettings(mllm="", images="", out="")
    session = Session.load(settings, "similarity", mllm=models.mllm, targets=[])
    inputs, _ = session.prepare(Image.new("RGB", (64, 48), (90, 120, 150)))
    seen: dict[str, dict[int, Tensor]] = {"read": {}, "visited": {}}

    def read(layer: int, states: Tensor, mask: Tensor, places: Tensor) -> Tensor:
        seen["read"][layer] = states.clone()
        return states.flip(-1)

    def visit(layer: int, states: Tensor, mask: Tensor) -> Tensor:
        seen["visited"][layer] = states.clone()
        return states.flip(-1)

    session.read(inputs, read, [0, 2])
    models.mllm.visit(inputs, visit, [0, 2])
    plain: dict[int, Tensor] = {}
    models.mllm.visit(inputs, lambda layer, states, _: plain.update({layer: states.clone()}), [0, 2])
    assert torch.equal(seen["read"][2], seen["visited"][2])
    assert torch.equal(seen["read"][0], plain[0])
    assert not torch.allclose(seen["read"][2], plain[2])
