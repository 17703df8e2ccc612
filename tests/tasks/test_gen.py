"""The task gen: which images are drawn and compared, and what an interruption, a shard or a batch changes (nothing)."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from zlib import crc32

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from innervision.checkpoints.identity import identify
from innervision.config import GenSettings, ProbeSettings, TrainSettings
from innervision.engine.evaluate import evaluate_task
from innervision.engine.fit import fit
from innervision.errors import InnerVisionError
from innervision.metrics.frechet import frechet_distance, kernel_by_image
from innervision.mllm import MLLM
from innervision.probes import ProbeBank
from innervision.targets.gen import GenTarget
from innervision.tasks.image_features import load_image_features
from stand_ins import write_noise_images
from tiny_experts import save_random_inception, save_tiny_backbone, save_tiny_gen
from tiny_mllms import save_tiny

PROMPT = "Describe the image in two lines."
IMAGES = 7


class Trained:
    """A run on tiny models, and the images to draw again."""

    def __init__(self, root: Path) -> None:
        save_tiny("llava", root / "llava")
        save_tiny_gen(root / "unclip", whole=True)
        self.backbone = save_tiny_backbone(root / "dino")
        self.mllm = MLLM.load(str(root / "llava"), device="cpu")
        self.target = GenTarget.load(str(root / "unclip"), device="cpu", head=True)
        self.run = root / "run"
        self.images = write_noise_images(root / "val", IMAGES, seed=1, size=(40, 60))
        settings = TrainSettings(
            mllm=str(root / "llava"),
            targets=f"gen={root / 'unclip'}",
            images=str(write_noise_images(root / "images", 8, size=(40, 60))),
            out=str(self.run),
            layers="0,2",
            probe=ProbeSettings(heads=2, dim_head=8),
            epochs=1,
            batch_size=4,
            workers=0,
        )
        fit(settings, mllm=self.mllm, targets=[self.target], progress=False)

    def settings(self, **options: object) -> GenSettings:
        usual = {
            "data": str(self.images),
            "features": str(self.backbone),
            "steps": 2,
            "size": 16,
            "batch_size": 3,
            "workers": 0,
        }
        return GenSettings(**{**usual, **options})

    def evaluate(self, run: Path, *, overwrite: bool = False, **options: object) -> pd.DataFrame:
        path = evaluate_task(
            run,
            "gen",
            self.settings(**options),
            overwrite=overwrite,
            mllm=self.mllm,
            targets=[self.target],
            progress=False,
        )
        return pd.read_parquet(path)

    def by_hand(self, layer: int | None, source: str) -> list[Image.Image]:
        """Draw one image after the other with Diffusers' own pipeline."""
        import diffusers

        pipeline = diffusers.StableUnCLIPImg2ImgPipeline.from_pretrained(self.run.parent / "unclip")
        pipeline.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
        pipeline.set_progress_bar_config(disable=True)
        bank = ProbeBank.load(self.run / "probes/gen.safetensors", self.mllm, self.target)
        drawn = []
        for path in sorted(self.images.iterdir()):
            image = Image.open(path)
            inputs = self.mllm.prepare([image], PROMPT)
            with torch.no_grad():
                if source == "expert":
                    embedding = self.target.encode([image])
                elif source == "mean":
                    embedding = bank.mean[None]
                else:
                    states = self.mllm.model(**inputs.tensors, output_hidden_states=True).hidden_states[layer]
                    embedding = bank(layer, states, inputs.mask)
            drawn += pipeline(
                prompt="",
                image_embeds=embedding[:, 0],
                num_inference_steps=2,
                height=16,
                width=16,
                generator=torch.Generator().manual_seed(crc32(f"{path.name} {layer}".encode())),
            ).images
        return drawn


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    pytest.importorskip("diffusers")
    return Trained(tmp_path_factory.mktemp("gen"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/innervision/features"


@pytest.fixture
def run(trained: Trained, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained.run, tmp_path / "run"))


@pytest.fixture(scope="module")
def table(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    run = Path(shutil.copytree(trained.run, tmp_path_factory.mktemp("whole") / "run"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(run / "cache"))
        return trained.evaluate(run)


def same(first: pd.DataFrame, second: pd.DataFrame) -> None:
    """Equal but for a pixel here and there that is rounded to the next of 256 values."""
    key = ["metric", "protocol", "source", "layer", "image"]
    frames = [frame.sort_values(key, ignore_index=True) for frame in (first, second)]
    pd.testing.assert_frame_equal(*(frame.drop(columns="value") for frame in frames))
    spread = frames[1].groupby("metric")["value"].transform("std")
    np.testing.assert_allclose(frames[0]["value"] / spread, frames[1]["value"] / spread, atol=2e-3)


def test_every_layer_and_floor_is_compared_with_the_real_images(table: pd.DataFrame) -> None:
    assert set(table["metric"]) == {"frechet:dino", "kernel:dino", "image_cosine:dino"}
    assert set(table["protocol"]) == {"standard"}
    counts = table.groupby(["metric", "source"]).size().unstack(fill_value=0)
    assert counts.loc["frechet:dino"].to_dict() == {
        "expert": IMAGES,
        "mean": IMAGES,
        "probe": 2 * IMAGES,
        "shuffled": 0,  # the same set in another order
    }
    assert counts.loc["image_cosine:dino", "shuffled"] == 2 * IMAGES
    assert sorted(table["layer"].dropna().unique()) == [0, 2]
    assert np.isfinite(table["value"]).all()


@pytest.mark.parametrize(("source", "layer"), [("probe", 2), ("mean", None), ("expert", None)])
def test_scores_are_those_of_images_drawn_by_the_whole_pipeline(
    trained: Trained, table: pd.DataFrame, source: str, layer: int | None
) -> None:
    model = load_image_features(str(trained.backbone), device="cpu")
    drawn = model.encode(trained.by_hand(layer, source))[:, 0].double().numpy()
    real = model.encode([Image.open(path) for path in sorted(trained.images.iterdir())])[:, 0].double().numpy()
    rows = table[(table["source"] == source) & (table["layer"].isna() if layer is None else table["layer"] == layer)]
    scores = rows.groupby("metric")["value"].mean()
    assert scores["frechet:dino"] == pytest.approx(frechet_distance(drawn, real), rel=1e-3)
    assert scores["kernel:dino"] == pytest.approx(1000 * kernel_by_image(drawn, real).mean(), rel=1e-3)
    centred = drawn - real.mean(axis=0), real - real.mean(axis=0)
    norms = np.linalg.norm(centred[0], axis=1) * np.linalg.norm(centred[1], axis=1)
    cosine = rows[rows["metric"] == "image_cosine:dino"].sort_values("image")["value"]
    np.testing.assert_allclose(cosine, (centred[0] * centred[1]).sum(axis=1) / norms, atol=1e-3)


def test_inception_gives_fid_and_kid_and_the_distance_of_the_paper(trained: Trained, run: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch_fidelity")
    weights = save_random_inception(tmp_path / "weights.pth")
    images = write_noise_images(tmp_path / "val", 2, seed=1, size=(40, 60))  # few, for a network of full size
    table = trained.evaluate(
        run, data=str(images), features=f"inception={weights}", save_images=str(tmp_path / "drawn")
    )
    assert set(table["metric"]) == {"fid", "kid", "image_cosine"}
    assert set(table[table["protocol"] == "paper"]["metric"]) == {"fid"}

    model = load_image_features(f"inception={weights}", device="cpu")
    real = [Image.open(path) for path in sorted(images.iterdir())]
    drawn = [Image.open(path) for path in sorted((tmp_path / "drawn/layer02").iterdir())]
    scores = table[(table["layer"] == 2) & (table["metric"] == "fid")].groupby("protocol")["value"].mean()
    for protocol, side in (("standard", 299), ("paper", 256)):
        sets = []
        for images in (drawn, real):
            pixels = [np.asarray(image.resize((side, side), Image.Resampling.BICUBIC)) for image in images]
            features = model.encode(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2))
            sets.append(features[:, 0].double().numpy())
        assert scores[protocol] == pytest.approx(frechet_distance(*sets), rel=1e-3)
    assert scores["standard"] != pytest.approx(scores["paper"], rel=1e-3)
    facts = json.loads((run / "scores/gen.json").read_text())["features"]
    assert facts["revision"] == identify(str(weights))[1]
    assert facts["images"]["paper"] == "squashed to 256 × 256 pixels of 8 bits, bicubic with antialiasing"


def test_two_processes_give_the_table_of_one(trained: Trained, run: Path, table: pd.DataFrame, tmp_path: Path) -> None:
    options = {
        "data": trained.images,
        "features": trained.backbone,
        "steps": 2,
        "size": 16,
        "batch_size": 3,
        "workers": 0,
        "device": "cpu",
    }
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    command = ["innervision", "evaluate", "gen", str(run), *(f"--{name}={value}" for name, value in options.items())]
    done = subprocess.run(
        [*launch, *command], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    same(pd.read_parquet(run / "scores/gen.parquet"), table)
    assert "Fréchet distance (dino)" in done.stdout


def test_neither_batches_nor_their_decoding_change_a_score(trained: Trained, run: Path, table: pd.DataFrame) -> None:
    same(trained.evaluate(run, batch_size=5, decode_batch_size=3), table)


def test_noise_depends_on_the_seed(trained: Trained, run: Path, table: pd.DataFrame) -> None:
    other, table = (each[each["metric"] == "image_cosine:dino"] for each in (trained.evaluate(run, seed=1), table))
    assert (abs(other["value"] - table["value"]) > 0.01).mean() > 0.5


def test_an_interrupted_evaluation_goes_on_and_ends_with_the_same_table(
    trained: Trained, run: Path, table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = GenTarget.decode
    drawn: list[int] = []

    def count(stop: int | None) -> None:
        drawn.clear()

        def interrupt(self: GenTarget, features: torch.Tensor, *rest: object, **options: object) -> torch.Tensor:
            if len(drawn) == stop:
                raise KeyboardInterrupt
            drawn.extend([len(features)])
            return decode(self, features, *rest, **options)

        monkeypatch.setattr(GenTarget, "decode", interrupt)

    count(stop=1)
    with pytest.raises(KeyboardInterrupt):
        trained.evaluate(run)
    assert not (run / "scores/gen.parquet").exists()
    count(stop=None)
    same(trained.evaluate(run), table)
    assert sum(drawn) == (IMAGES - 3) * 4  # the first batch of three was not drawn again
    count(stop=0)
    trained.evaluate(run)  # nothing is left to do


def test_images_can_be_saved_as_they_were_drawn(trained: Trained, run: Path, tmp_path: Path) -> None:
    trained.evaluate(run, save_images=str(tmp_path / "drawn"))
    folders = {folder.name: sorted(path.name for path in folder.iterdir()) for folder in (tmp_path / "drawn").iterdir()}
    names = [f"{path.name}.png" for path in sorted(trained.images.iterdir())]
    assert folders == dict.fromkeys(["expert", "mean", "layer00", "layer02"], names)
    for name, expected in zip(names, trained.by_hand(2, "probe"), strict=True):
        pixels = np.asarray(Image.open(tmp_path / "drawn/layer02" / name)).astype(int)
        assert abs(pixels - np.asarray(expected)).max() <= 1


def test_names_of_images_do_not_lead_out_of_the_folder(trained: Trained, run: Path, tmp_path: Path) -> None:
    paths = sorted(trained.images.iterdir())[:2]
    (tmp_path / "list").mkdir()
    outside = [os.path.relpath(path, tmp_path / "list") for path in paths]  # ../../…
    (tmp_path / "list/images.txt").write_text("\n".join(outside))
    trained.evaluate(run, data=str(tmp_path / "list/images.txt"), save_images=str(tmp_path / "out/drawn"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["drawn"]
    assert len(list((tmp_path / "out/drawn/mean").iterdir())) == 2


def test_features_of_real_images_are_computed_once_for_a_set(
    trained: Trained, run: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    images = Path(shutil.copytree(trained.images, tmp_path / "val"))
    first = trained.evaluate(run, data=str(images))
    assert len(list(cache.iterdir())) == 1
    [file] = cache.iterdir()
    before = file.stat().st_mtime_ns

    def refuse(*arguments: object) -> None:
        raise AssertionError("described again")

    with monkeypatch.context() as patch:
        patch.setattr("innervision.tasks.gen._prepare", lambda views, name, image: refuse() if views else {})
        same(trained.evaluate(run, overwrite=True, data=str(images), batch_size=2), first)
    assert file.stat().st_mtime_ns == before
    write_noise_images(images, 1, seed=9, size=(40, 60))  # another image of the same name
    trained.evaluate(run, overwrite=True, data=str(images), batch_size=4)
    assert len(list(cache.iterdir())) == 2


def test_two_descriptions_by_one_model_are_not_mixed_up(trained: Trained, run: Path, cache: Path) -> None:
    """The pooled output, and the mean of the tokens, which is not taken from what is kept of the first."""
    tokens = f"backbone={trained.backbone}"
    trained.evaluate(run)
    after = trained.evaluate(run, features=tokens, overwrite=True)
    assert {metric for metric in after["metric"] if metric.startswith("frechet")} == {"frechet:backbone=dino"}
    for file in cache.iterdir():
        file.unlink()
    pd.testing.assert_frame_equal(trained.evaluate(run, features=tokens, overwrite=True), after)


def test_a_broken_file_of_known_features_does_no_harm(
    trained: Trained, run: Path, cache: Path, table: pd.DataFrame
) -> None:
    trained.evaluate(run)
    [file] = cache.iterdir()
    file.write_bytes(b"broken")
    same(trained.evaluate(run, overwrite=True, batch_size=4), table)


def test_a_broken_image_is_left_out_of_both_sets(trained: Trained, run: Path, cache: Path, tmp_path: Path) -> None:
    images = Path(shutil.copytree(trained.images, tmp_path / "val"))
    (images / "0004.png").write_bytes(b"not an image")
    table = trained.evaluate(run, data=str(images), max_bad=0.5)
    assert table["image"].nunique() == IMAGES - 1
    assert not cache.exists()  # only a whole set is kept


def test_fewer_images_than_features_are_warned_of(
    trained: Trained, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained.evaluate(run)
    assert "warning: 7 images are fewer than the 32 features" in capsys.readouterr().err


def test_result_names_model_and_resizing(trained: Trained, run: Path) -> None:
    trained.evaluate(run)
    facts = json.loads((run / "scores/gen.json").read_text())
    assert facts["features"]["model"] == "pooled dino"
    assert facts["features"]["revision"].startswith("sha256:")
    assert facts["features"]["width"] == 32
    assert facts["features"]["images"] == {"standard": "squashed to 56 × 56 pixels for a BitImageProcessor"}
    assert facts["plan"]["steps"] == 2


def test_other_settings_do_not_replace_scores_unasked(trained: Trained, run: Path) -> None:
    trained.evaluate(run)
    with pytest.raises(InnerVisionError, match=r"made otherwise \(guidance: 10.0\); add --overwrite"):
        trained.evaluate(run, guidance=3.0)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"steps": 2000}, "steps is at most 1000"),
        ({"noise_level": 1000}, "noise_level is at most 999"),
        ({"size": 17}, "size must be a multiple of"),
        ({"scheduler": "Foo"}, "there is no scheduler 'Foo'"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_anything_is_drawn(
    trained: Trained, run: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, object], says: str
) -> None:
    monkeypatch.setattr(trained.target, "decode", lambda *_, **__: pytest.fail("it draws"))
    with pytest.raises(InnerVisionError, match=says):
        trained.evaluate(run, **options)


def test_one_image_is_no_set(trained: Trained, run: Path) -> None:
    with pytest.raises(InnerVisionError, match="one image; sets are compared"):
        trained.evaluate(run, data=str(trained.images / "0000.png"))
