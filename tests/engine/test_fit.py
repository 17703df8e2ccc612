"""Training on tiny real models: independence, resuming, and what stops a run."""

import json
import shutil
import signal
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from innervision.config import ProbeSettings, TrainSettings
from innervision.data import ImageSet
from innervision.data.loader import BadImages
from innervision.engine.fit import fit
from innervision.engine.interrupt import Stopped
from innervision.engine.run import RunFolder
from innervision.errors import InnerVisionError
from innervision.mllm import MLLM
from innervision.targets.target import Target
from other_process import holding
from stand_ins import KnownTarget, StandInMLLM, StopAt, weights, write_noise_images
from tiny_mllms import save_tiny
from together import run_together
from train_runs import train


@pytest.fixture
def settings(settings: TrainSettings) -> TrainSettings:
    probe = ProbeSettings(kind="resampler", heads=2, dim_head=8)
    return replace(settings, probe=probe, epochs=2, batch_size=5, micro_batch_size=2)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("whole") / "run"


@pytest.fixture
def whole(settings: TrainSettings, mllm: MLLM, targets: list[Target], kept: Path) -> Path:
    """The finished run of these settings, made once; tests only read it."""
    if not kept.exists():
        fit(replace(settings, out=str(kept)), mllm=mllm, targets=targets, progress=False)
    return kept


def assert_same_bits(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


def test_probes_trained_together_are_those_trained_alone(
    settings: TrainSettings, mllm: MLLM, targets: list[Target], tmp_path: Path, whole: Path
) -> None:
    together = weights(whole)
    for target in targets:
        for layer in ("vision", "2"):
            alone = replace(settings, layers=layer, out=str(tmp_path / f"{target.name}{layer}"))
            fit(alone, mllm=mllm, targets=[target], progress=False)
            for key, value in weights(alone.out).items():
                torch.testing.assert_close(value, together[key], atol=1e-6, rtol=1e-5, msg=key)


def test_training_lowers_the_loss_of_every_probe(settings: TrainSettings, mllm: MLLM, targets: list[Target]) -> None:
    fit(replace(settings, epochs=8), mllm=mllm, targets=targets, progress=False)
    log = [json.loads(line) for line in (Path(settings.out) / "train/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == list(range(1, 25))
    for name, by_layer in log[0]["loss"].items():
        assert list(by_layer) == ["-1", "0", "1", "2", "3", "4"]
        for layer, loss in by_layer.items():
            assert sum(line["loss"][name][layer] for line in log[-3:]) / 3 < 0.9 * loss


def test_micro_batches_add_up_to_the_batch(
    settings: TrainSettings, mllm: MLLM, targets: list[Target], whole: Path
) -> None:
    at_once = replace(settings, micro_batch_size=5)
    fit(at_once, mllm=mllm, targets=targets, progress=False)
    for key, value in weights(at_once.out).items():
        torch.testing.assert_close(value, weights(whole)[key], atol=2e-5, rtol=1e-3, msg=key)


def test_the_first_step_is_adamw_on_the_mean_loss_over_the_batch(
    settings: TrainSettings, mllm: MLLM, targets: list[Target], folder: Path
) -> None:
    """One step by hand: states by Transformers, the loss over the whole batch, PyTorch's plain AdamW."""
    from PIL import Image

    from innervision.probes import ProbeBank

    settings = replace(settings, epochs=1, batch_size=13, warmup=0, layers="3", micro_batch_size=4)
    fit(settings, mllm=mllm, targets=targets[:1], progress=False)
    images = [Image.open(path).convert("RGB") for path in sorted((folder / "images").iterdir())]
    inputs = mllm.prepare(images, settings.prompt)
    with torch.no_grad():
        states = mllm.model(**inputs.tensors, output_hidden_states=True).hidden_states[3]
    bank = ProbeBank.for_models(mllm, targets[0], [3], settings.probe, seed=settings.seed)
    optimizer = torch.optim.AdamW(bank.parameters(), lr=settings.lr, weight_decay=0, fused=False, foreach=False)
    truth = targets[0].encode(images)
    torch.nn.functional.smooth_l1_loss(bank(3, states, inputs.mask), truth).backward()
    optimizer.step()
    trained = weights(settings.out)
    for key, value in bank.probes.state_dict().items():
        torch.testing.assert_close(trained[f"depth/probes.{key}"], value, atol=5e-5, rtol=1e-3, msg=key)
    torch.testing.assert_close(trained["depth/mean"], truth.mean(dim=0))


def test_the_learning_rate_rises_and_falls_along_a_cosine(settings: TrainSettings, tmp_path: Path) -> None:
    import math

    write_noise_images(tmp_path / "images", 10)
    settings = replace(
        settings,
        images=str(tmp_path / "images"),
        targets="known:backbone=stand-in",
        epochs=10,
        batch_size=1,
        warmup=0.1,
    )
    fit(settings, mllm=StandInMLLM(1), targets=[KnownTarget()], progress=False)
    log = [json.loads(line) for line in (Path(settings.out) / "train/log.jsonl").read_text().splitlines()]
    for line in log:
        done = line["step"] - 1  # the first step is taken with the schedule's value at 0
        share = done / 10 if done < 10 else 0.5 * (1 + math.cos(math.pi * (done - 10) / 90))
        assert line["learning_rate"] == pytest.approx(settings.lr * share, rel=1e-6)


def test_a_stopped_run_resumes_to_the_same_bits(
    settings: TrainSettings, mllm: MLLM, targets: list[Target], whole: Path
) -> None:
    broken = replace(settings, save_minutes=1000)
    stopping = [StopAt(targets[0], 5, signal.SIGTERM), targets[1]]
    with pytest.raises(Stopped, match="stopped after step 2 of 6"):
        fit(broken, mllm=mllm, targets=stopping, progress=False)
    assert not list((Path(broken.out) / "probes").glob("*"))
    fit(broken, resume=True, mllm=mllm, targets=targets, progress=False)
    assert_same_bits(weights(whole), weights(broken.out))
    logs = [
        [{k: v for k, v in json.loads(line).items() if k != "images_per_second"} for line in file.open()]
        for file in (Path(run) / "train/log.jsonl" for run in (whole, broken.out))
    ]
    assert logs[0] == logs[1]


def test_a_run_is_resumed_with_other_micro_batches_to_the_same_probes_but_for_rounding(
    settings: TrainSettings, mllm: MLLM, targets: list[Target], whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = replace(settings, save_minutes=1000)
    stopping = [StopAt(targets[0], 5, signal.SIGTERM), targets[1]]
    with pytest.raises(Stopped):
        fit(broken, mllm=mllm, targets=stopping, progress=False)
    now = replace(broken, micro_batch_size=1)
    fit(now, resume=True, mllm=mllm, targets=targets, progress=False)
    for key, value in weights(broken.out).items():
        torch.testing.assert_close(value, weights(whole)[key], atol=1e-3, rtol=1e-2, msg=key)
    [note] = yaml.safe_load((Path(broken.out) / "run.yaml").read_text())["record"]["notes"]
    assert note.startswith(f"micro_batch_size is 1 from step 3 on, {settings.micro_batch_size} before")
    assert note in capsys.readouterr().err


def test_the_state_of_another_run_is_refused(
    settings: TrainSettings, mllm: MLLM, targets: list[Target], tmp_path: Path
) -> None:
    runs = [replace(settings, out=str(tmp_path / name), seed=seed) for seed, name in enumerate("ab")]
    for run in runs:
        stopping = [StopAt(targets[0], 5, signal.SIGTERM), targets[1]]
        with pytest.raises(Stopped):
            fit(run, mllm=mllm, targets=stopping, progress=False)
    shutil.copy(tmp_path / "a/train/state.pt", tmp_path / "b/train/state.pt")
    with pytest.raises(InnerVisionError, match="another run has saved it"):
        fit(runs[1], resume=True, mllm=mllm, targets=targets, progress=False)


def test_few_steps_are_warned_of(
    settings: TrainSettings, mllm: MLLM, targets: list[Target], capsys: pytest.CaptureFixture[str]
) -> None:
    fit(replace(settings, epochs=1, batch_size=256), mllm=mllm, targets=targets, progress=False)
    assert "make 1 optimizer steps, too few" in capsys.readouterr().err


def test_a_killed_run_resumes_to_the_same_bits(
    settings: TrainSettings, mllm: MLLM, targets: list[Target], tmp_path: Path, one_thread: None
) -> None:
    """Another process reads the images; it is gone with the one that is killed in the third step of six."""
    settings = replace(settings, workers=1, device="cpu")
    fit(settings, mllm=mllm, targets=targets, progress=False)
    killed = replace(settings, out=str(tmp_path / "killed"))
    assert run_together(1, train, killed, False, {0: (8, "SIGKILL")}) == [None]
    assert not list((Path(killed.out) / "probes").glob("*"))
    fit(killed, resume=True, mllm=mllm, targets=targets, progress=False)
    assert_same_bits(weights(settings.out), weights(killed.out))
    assert "notes" not in RunFolder(killed.out).record()


@pytest.mark.parametrize("content", [b"no state", b"PK\x03\x04 cut"])
def test_a_broken_state_is_a_clear_error(
    settings: TrainSettings, mllm: MLLM, targets: list[Target], content: bytes
) -> None:
    stopping = [StopAt(targets[0], 5, signal.SIGTERM), targets[1]]
    with pytest.raises(Stopped):
        fit(settings, mllm=mllm, targets=stopping, progress=False)
    state = Path(settings.out) / "train/state.pt"
    state.write_bytes(content)
    with pytest.raises(InnerVisionError, match=r"cannot resume from .*state\.pt, which is broken"):
        fit(settings, resume=True, mllm=mllm, targets=targets, progress=False)
    state.unlink()
    assert set(fit(settings, resume=True, mllm=mllm, targets=targets, progress=False)) == {"depth", "gen"}


def test_a_run_folder_that_holds_a_run_is_left_alone(
    settings: TrainSettings, mllm: MLLM, targets: list[Target], tmp_path: Path
) -> None:
    fit(settings, mllm=mllm, targets=targets, progress=False)
    before = weights(settings.out)
    with pytest.raises(InnerVisionError, match="holds a run already"):
        fit(settings, mllm=mllm, targets=targets, progress=False)
    with pytest.raises(InnerVisionError, match="begun with other settings: lr"):
        fit(replace(settings, lr=1e-4), resume=True, mllm=mllm, targets=targets, progress=False)
    with pytest.raises(InnerVisionError, match="no run to resume"):
        fit(
            replace(settings, out=str(tmp_path / "new")),
            resume=True,
            mllm=mllm,
            targets=targets,
            progress=False,
        )
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter1.tex").touch()
    with pytest.raises(InnerVisionError, match="is no run"):
        fit(replace(settings, out=str(tmp_path / "thesis")), mllm=mllm, targets=targets, progress=False)
    assert_same_bits(before, weights(settings.out))


def test_a_run_is_not_resumed_with_other_images_or_another_model(
    settings: TrainSettings, mllm: MLLM, targets: list[Target], tmp_path: Path
) -> None:
    images = write_noise_images(tmp_path / "images", 6, size=(40, 60))
    settings = replace(settings, images=str(images))
    with pytest.raises(Stopped):
        fit(settings, mllm=mllm, targets=[StopAt(targets[0], 1, signal.SIGTERM)], progress=False)
    (images / "0002.png").rename(images / "renamed.png")
    with pytest.raises(InnerVisionError, match="its images changed"):
        fit(settings, resume=True, mllm=mllm, targets=targets[:1], progress=False)
    (images / "renamed.png").rename(images / "0002.png")
    other = MLLM.load(str(save_tiny("llava", tmp_path / "other", seed=1)), device="cpu")
    with pytest.raises(InnerVisionError, match="its mllm changed"):
        fit(settings, resume=True, mllm=other, targets=targets[:1], progress=False)
    fit(settings, resume=True, mllm=mllm, targets=targets[:1], progress=False)


def test_a_finished_run_has_nothing_to_resume(settings: TrainSettings, mllm: MLLM, targets: list[Target]) -> None:
    fit(settings, mllm=mllm, targets=targets, progress=False)
    before = weights(settings.out)
    stopping = [StopAt(target, 1, signal.SIGTERM) for target in targets]
    banks = fit(settings, resume=True, mllm=mllm, targets=stopping, progress=False)
    assert list(banks) == ["depth", "gen"]
    assert_same_bits(before, weights(settings.out))


def test_broken_images_are_named_counted_and_left_out(
    settings: TrainSettings, mllm: MLLM, targets: list[Target], tmp_path: Path
) -> None:
    """Images that cannot be read leave the probes as if they had never been listed."""
    images = write_noise_images(tmp_path / "images", 8, size=(40, 60))
    (images / "0003.png").write_bytes((images / "0003.png").read_bytes()[:500])
    some = replace(settings, images=str(images), batch_size=8, max_bad=0.2, epochs=1)
    fit(some, mllm=mllm, targets=targets, progress=False)
    reasons = json.loads((Path(settings.out) / "train/bad_images.json").read_text())
    assert list(reasons) == ["0003.png"]
    (images / "0003.png").unlink()
    good = replace(some, out=str(tmp_path / "good"))
    fit(good, mllm=mllm, targets=targets, progress=False)
    for key, value in weights(good.out).items():
        torch.testing.assert_close(value, weights(settings.out)[key], atol=5e-5, rtol=1e-3, msg=key)


def test_too_many_bad_images_stop_the_run(
    settings: TrainSettings, mllm: MLLM, targets: list[Target], tmp_path: Path
) -> None:
    images = write_noise_images(tmp_path / "images", 8)
    (images / "0003.png").write_bytes(b"not an image")
    with pytest.raises(
        InnerVisionError, match=r"1 of 8 images are missing or broken, more than max_bad=0 allows.*0003\.png"
    ):
        fit(replace(settings, images=str(images), max_bad=0), mllm=mllm, targets=targets, progress=False)


def test_missing_images_stop_the_run_before_any_model_is_loaded(settings: TrainSettings, tmp_path: Path) -> None:
    listing = {"images": [{"id": i, "file_name": f"{i:04}.png"} for i in range(10)], "annotations": []}
    write_noise_images(tmp_path / "val2017", 5)
    (tmp_path / "annotations").mkdir()
    source = tmp_path / "annotations/captions_val2017.json"
    source.write_text(json.dumps(listing))
    with pytest.raises(InnerVisionError, match="5 of 10 images are missing or broken"):
        fit(replace(settings, images=str(source), mllm="no/such-model"), progress=False)


def test_broken_images_stop_a_small_set_before_any_model_is_loaded(settings: TrainSettings, tmp_path: Path) -> None:
    images = write_noise_images(tmp_path / "images", 8)
    for name in ("0001.png", "0003.png", "0005.png", "0007.png"):
        (images / name).write_bytes((images / name).read_bytes()[:50])
    with pytest.raises(InnerVisionError, match="4 of 8 images are missing or broken"):
        fit(replace(settings, images=str(images), mllm="no/such-model"), progress=False)


def test_an_image_that_the_mllm_cannot_take_is_left_out(folder: Path, tmp_path: Path, settings: TrainSettings) -> None:
    """Qwen2-VL refuses images that are more than 200 times as wide as high."""
    save_tiny("qwen2_vl", tmp_path / "qwen")
    images = write_noise_images(tmp_path / "images", 3, size=(40, 60))
    write_noise_images(tmp_path / "wide", 1, size=(4, 2000))
    (tmp_path / "wide/0000.png").rename(images / "wide.png")
    settings = replace(
        settings,
        mllm=str(tmp_path / "qwen"),
        targets=f"gen={folder / 'gen'}",
        images=str(images),
        max_bad=0.5,
        epochs=1,
        device="cpu",
    )
    fit(settings, progress=False)
    reasons = json.loads((Path(settings.out) / "train/bad_images.json").read_text())
    assert list(reasons) == ["wide.png"]
    assert "aspect ratio" in reasons["wide.png"]


def test_a_full_disk_is_a_clear_error_and_loses_nothing(
    settings: TrainSettings, mllm: MLLM, targets: list[Target], monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []
    real_save = torch.save

    def save(state: dict, path: Path) -> None:
        saved.append(state["step"])
        real_save(state, path)
        if len(saved) == 3:
            raise RuntimeError("[enforce fail at inline_container.cc] unexpected pos 64 vs 0")  # PyTorch's words

    monkeypatch.setattr("innervision.engine.learner.torch.save", save)
    with pytest.raises(InnerVisionError, match=r"cannot write .*state\.pt: .*unexpected pos.*is the disk full"):
        fit(settings, mllm=mllm, targets=targets, progress=False)
    folder = Path(settings.out) / "train"
    assert torch.load(folder / "state.pt", weights_only=True)["step"] == 2
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_a_loss_that_is_not_finite_is_an_error(settings: TrainSettings, mllm: MLLM, targets: list[Target]) -> None:
    with pytest.raises(InnerVisionError, match=r"loss of \w+ at layer -?\d is (nan|inf) in step \d: try a smaller lr"):
        fit(replace(settings, lr=1e30, epochs=9), mllm=mllm, targets=targets, progress=False)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_expert_whose_features_are_not_finite_is_named(
    settings: TrainSettings, mllm: MLLM, targets: list[Target], value: float
) -> None:
    class Broken(StopAt):
        def encode(self, pixels: torch.Tensor) -> torch.Tensor:
            return self.target.encode(pixels) * value

    with pytest.raises(InnerVisionError, match="the expert of gen gives features that are not finite for one of 00"):
        fit(settings, mllm=mllm, targets=[targets[0], Broken(targets[1], 0, 0)], progress=False)


def test_experts_of_another_precision_than_the_runs_are_refused(
    settings: TrainSettings, mllm: MLLM, targets: list[Target]
) -> None:
    with pytest.raises(InnerVisionError, match="the target depth does not work in bfloat16"):
        fit(replace(settings, expert_dtype="bfloat16"), mllm=mllm, targets=targets, progress=False)


def test_clipping_is_per_probe(settings: TrainSettings, mllm: MLLM, targets: list[Target], tmp_path: Path) -> None:
    """A probe's first clipped step does not depend on the gradients of its neighbours."""
    clipped = replace(settings, clip=1e-3, epochs=1)
    fit(clipped, mllm=mllm, targets=targets, progress=False)
    alone = replace(clipped, layers="1", out=str(tmp_path / "alone"))
    fit(alone, mllm=mllm, targets=targets, progress=False)
    for key, value in weights(alone.out).items():
        torch.testing.assert_close(value, weights(clipped.out)[key], atol=1e-6, rtol=1e-5, msg=key)
    free = replace(settings, epochs=1, out=str(tmp_path / "free"))
    fit(free, mllm=mllm, targets=targets, progress=False)
    assert any(
        not torch.allclose(value, weights(free.out)[key], atol=1e-5) for key, value in weights(clipped.out).items()
    )


def test_losses_go_to_tensorboard(settings: TrainSettings, mllm: MLLM, targets: list[Target]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fit(replace(settings, trackers="tensorboard", epochs=1), mllm=mllm, targets=targets, progress=False)
    events = EventAccumulator(str(Path(settings.out) / "train/innervision"))
    events.Reload()
    log = [json.loads(line) for line in (Path(settings.out) / "train/log.jsonl").read_text().splitlines()]
    shown = [event.value for event in events.Scalars("depth/2")]
    assert shown == pytest.approx([line["loss"]["depth"]["2"] for line in log], rel=1e-6)


def test_a_step_without_a_good_image_changes_nothing(tmp_path: Path) -> None:
    """The eleventh image fills the last step alone, and is broken after it was looked at."""
    write_noise_images(tmp_path / "images", 11)
    settings = TrainSettings(
        mllm="stand-in",
        targets="known:backbone=stand-in",
        images=str(tmp_path / "images"),
        out=str(tmp_path / "run"),
        probe=ProbeSettings(kind="resampler"),
        epochs=1,
        batch_size=1,
        max_bad=1,
        workers=0,
    )
    order = torch.randperm(11, generator=torch.Generator().manual_seed(0)).tolist()
    for number in (order[0], order[5]):
        (tmp_path / f"images/{number:04}.png").write_bytes(b"not an image")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # PyTorch's, of a schedule that runs ahead of its optimizer
        fit(settings, mllm=StandInMLLM(1), targets=[KnownTarget()], progress=False)
    log = [json.loads(line) for line in (tmp_path / "run/train/log.jsonl").read_text().splitlines()]
    assert [line["loss"] is None for line in log] == [number in (0, 5) for number in range(11)]
    assert all(loss > 0 for line in log if line["loss"] for loss in line["loss"]["known"].values())


@pytest.mark.parametrize("broken", ["deleted", "spoilt"])
def test_a_training_that_read_no_image_is_an_error(
    settings: TrainSettings, mllm: MLLM, targets: list[Target], tmp_path: Path, broken: str
) -> None:
    images = write_noise_images(tmp_path / "images", 4, size=(40, 60))
    look_ahead = BadImages.look_ahead

    def spoil_afterwards(self: BadImages, found: ImageSet) -> list[str]:
        names = look_ahead(self, found)
        for path in found.paths:
            path.write_bytes(b"not an image") if broken == "spoilt" else path.unlink()
        return names

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BadImages, "look_ahead", spoil_afterwards)
        with pytest.raises(InnerVisionError, match="nothing was learnt: none of the images"):
            fit(replace(settings, images=str(images), max_bad=1), mllm=mllm, targets=targets, progress=False)
    assert not list((Path(settings.out) / "probes").glob("*"))
    assert len(json.loads((Path(settings.out) / "train/bad_images.json").read_text())) == 4


def test_the_state_is_saved_by_the_clock(
    settings: TrainSettings, mllm: MLLM, targets: list[Target], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six steps of four minutes each, and a save after every ten minutes: after steps 3 and 6, which is the last."""
    clock, saved = iter(range(0, 10_000, 240)), []
    monkeypatch.setattr("innervision.engine.fit.time.monotonic", lambda: next(clock))
    monkeypatch.setattr("innervision.engine.descent.Descent.save", lambda self, path: saved.append(self.step))
    monkeypatch.setattr("innervision.engine.fit._finish", lambda plan: {})
    fit(replace(settings, save_minutes=10), mllm=mllm, targets=targets, progress=False)
    assert saved == [3, 6]


def test_a_run_is_not_resumed_with_other_images_of_the_same_size(
    settings: TrainSettings, mllm: MLLM, targets: list[Target], tmp_path: Path
) -> None:
    from PIL import Image

    images = tmp_path / "bmp"
    images.mkdir()
    for path in sorted(Path(settings.images).iterdir())[:6]:
        Image.open(path).save(images / f"{path.stem}.bmp")
    settings = replace(settings, images=str(images))
    with pytest.raises(Stopped):
        fit(settings, mllm=mllm, targets=[StopAt(targets[0], 1, signal.SIGTERM)], progress=False)
    first, second = ((images / name).read_bytes() for name in ("0001.bmp", "0002.bmp"))
    assert len(first) == len(second)
    (images / "0001.bmp").write_bytes(second)
    with pytest.raises(InnerVisionError, match="its images changed"):
        fit(settings, resume=True, mllm=mllm, targets=targets[:1], progress=False)
    (images / "0001.bmp").write_bytes(first)
    fit(settings, resume=True, mllm=mllm, targets=targets[:1], progress=False)


def test_two_targets_of_one_kind_share_a_pass(settings: TrainSettings, folder: Path, mllm: MLLM) -> None:
    backbone = folder / "backbone"
    named = replace(settings, targets=f"one:backbone={backbone},backbone={backbone}", epochs=1)
    banks = fit(named, mllm=mllm, progress=False)
    assert {name: (bank.info.target, bank.info.kind) for name, bank in banks.items()} == {
        "one": ("one", "backbone"),
        "backbone": ("backbone", "backbone"),
    }
    assert sorted(path.name for path in (Path(settings.out) / "probes").iterdir()) == [
        "backbone.safetensors",
        "one.safetensors",
    ]
    # first weights depend on the name, features on the expert alone
    assert torch.equal(banks["one"].mean, banks["backbone"].mean)
    assert not torch.equal(*(bank.probes["1"].latents for bank in banks.values()))


def test_what_the_run_was_made_on_is_recorded(whole: Path) -> None:
    setup = RunFolder(whole).record()["setup"]
    assert setup["device"].startswith("cpu (")
    assert setup["dtype"] == {"mllm": "float32", "experts": "float32", "probes": "float32"}
    assert setup["processors"]["mllm"] == "CLIPImageProcessor (torchvision)"
    assert setup["processors"].keys() == {"mllm", "depth", "gen"}
    assert setup["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert {"pillow", "torchvision", "tokenizers"} <= setup["versions"].keys()


def test_a_folder_in_which_another_process_trains_is_left_alone(
    settings: TrainSettings, mllm: MLLM, targets: list[Target]
) -> None:
    run = RunFolder(settings.out)
    with holding(run.lock) as other:
        with pytest.raises(InnerVisionError, match=f"is being written by process {other.pid} on"):
            fit(settings, mllm=mllm, targets=targets, progress=False)
        assert [path.name for path in run.path.iterdir()] == [".lock"]
    fit(settings, mllm=mllm, targets=targets, progress=False)  # the lock of a killed process holds nobody up
    assert not run.lock.exists()


def test_a_process_killed_while_it_wrote_its_first_file_leaves_a_folder_that_can_be_used(
    settings: TrainSettings, mllm: MLLM, targets: list[Target]
) -> None:
    folder = Path(settings.out)
    (folder / "train").mkdir(parents=True)
    for name in (".lock", ".run-a1b2c3d4.yaml"):
        (folder / name).write_text("half")
    (folder / "train").rmdir()
    fit(settings, mllm=mllm, targets=targets, progress=False)
    assert not list(folder.glob(".*"))


def test_half_written_states_are_gone_when_a_run_is_resumed(
    settings: TrainSettings, mllm: MLLM, targets: list[Target]
) -> None:
    with pytest.raises(Stopped):
        fit(settings, mllm=mllm, targets=[StopAt(targets[0], 4, signal.SIGTERM), targets[1]], progress=False)
    (Path(settings.out) / "train/.state-abcd1234.pt").write_bytes(b"half")
    fit(settings, resume=True, mllm=mllm, targets=targets, progress=False)
    assert not list(Path(settings.out).rglob(".*"))


def test_a_run_names_what_lies_on_the_disk_for_any_folder(
    settings: TrainSettings, mllm: MLLM, targets: list[Target], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    relative = replace(settings, mllm="llava", targets="depth=depth,gen=gen", images="images")
    fit(relative, mllm=mllm, targets=targets, progress=False)
    stored = RunFolder(settings.out).settings()
    assert stored.mllm == str(folder / "llava")
    assert stored.targets == f"depth={folder / 'depth'},gen={folder / 'gen'}"
    assert stored.images == str(folder / "images")
    monkeypatch.chdir("/")
    fit(stored, resume=True, mllm=mllm, targets=targets, progress=False)
