"""The task gen: which images are drawn and compared, and what an interruption, a shard or a batch changes (nothing)."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from gen_runs import IMAGES, Trained, Whole, scores_by_image
from innervision.checkpoints.identity import identify
from innervision.config import ProbeSettings, TrainSettings
from innervision.engine.evaluate import evaluate_task
from innervision.engine.fit import fit
from innervision.errors import InnerVisionError
from innervision.metrics.frechet import frechet_distance
from innervision.original.inception import PAPER_SQUASH, describe_as_paper
from innervision.targets import load_targets
from innervision.targets.gen import GenTarget
from innervision.tasks.gen import Gen
from innervision.tasks.image_features import load_image_features
from stand_ins import write_noise_images
from tiny_experts import save_random_inception, save_tiny_gen


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
def whole(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    run = Path(shutil.copytree(trained.run, tmp_path_factory.mktemp("whole") / "run"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(run / "cache"))
        return Whole(trained.evaluate(run, save_images=str(run / "drawn")), run / "drawn")


@pytest.fixture(scope="module")
def table(whole: Whole) -> pd.DataFrame:
    return whole.table


FLIPS = 8
"""Of the 768 values of a drawn image, how many another batch size may round to the next of 256 levels."""


@pytest.fixture(scope="module")
def rounding(trained: Trained, whole: Whole) -> dict[str, float]:
    """By metric, the most that a score changes when FLIPS values of every drawn image are a level off.

    Sums of float32 in another order move a drawn value by some 1e-6, which is seen only where the value lies so near
    to half a level that it is rounded to the other side: then by a whole level. What that does to a score depends on
    the features alone, so it is tried out on the images at hand.
    """
    model = load_image_features(str(trained.backbone), device="cpu")

    def describe(images: list[Image.Image]) -> np.ndarray:
        return model.encode(images)[:, 0].double().numpy()

    real = describe([Image.open(path) for path in sorted(trained.images.iterdir())])
    rng = np.random.default_rng(0)
    most: dict[str, float] = dict.fromkeys(("frechet:dino", "kernel:dino", "image_cosine:dino"), 0.0)
    for folder in whole.drawn.iterdir():
        images = np.stack([np.asarray(Image.open(path)) for path in sorted(folder.iterdir())]).astype(int)
        clean = scores_by_image(describe([Image.fromarray(image.astype(np.uint8)) for image in images]), real)
        for _ in range(5):
            moved = images.reshape(len(images), -1).copy()
            for image in moved:
                image[rng.choice(image.size, FLIPS, replace=False)] += rng.choice([-1, 1], FLIPS)
            levels = moved.reshape(images.shape).clip(0, 255).astype(np.uint8)
            for metric, values in scores_by_image(describe([*map(Image.fromarray, levels)]), real).items():
                most[metric] = max(most[metric], abs(values - clean[metric]).max())
    spread = whole.table.groupby("metric")["value"].std()
    assert all(most[metric] < 0.1 * spread[metric] for metric in most), "nothing is told apart"
    return most


def same(first: pd.DataFrame, second: pd.DataFrame, rounding: dict[str, float]) -> None:
    """Equal but for a few values of the images that are rounded to the next of 256 levels."""
    key = ["metric", "protocol", "source", "layer", "image"]
    frames = [frame.sort_values(key, ignore_index=True) for frame in (first, second)]
    pd.testing.assert_frame_equal(*(frame.drop(columns="value") for frame in frames))
    apart = (frames[0]["value"] - frames[1]["value"]).abs()
    assert (apart <= frames[0]["metric"].map(rounding)).all(), apart.max()


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
    trained: Trained, table: pd.DataFrame, rounding: dict[str, float], source: str, layer: int | None
) -> None:
    model = load_image_features(str(trained.backbone), device="cpu")
    drawn = model.encode(trained.by_hand(layer, source))[:, 0].double().numpy()
    real = model.encode([Image.open(path) for path in sorted(trained.images.iterdir())])[:, 0].double().numpy()
    rows = table[(table["source"] == source) & (table["layer"].isna() if layer is None else table["layer"] == layer)]
    scores = rows.groupby("metric")["value"].mean()
    assert scores["frechet:dino"] == pytest.approx(frechet_distance(drawn, real), abs=rounding["frechet:dino"])
    for metric, expected in scores_by_image(drawn, real).items():
        values = rows[rows["metric"] == metric].sort_values("image")["value"]
        np.testing.assert_allclose(values, expected, atol=rounding[metric], rtol=0)


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
    describe = {
        "standard": lambda images: model.encode(images)[:, 0],
        "paper": lambda images: describe_as_paper(model.module, PAPER_SQUASH(images)),
    }
    for protocol, features in describe.items():
        sets = [features(images).double().numpy() for images in (drawn, real)]
        assert scores[protocol] == pytest.approx(frechet_distance(*sets), rel=1e-3)
    assert scores["standard"] != pytest.approx(scores["paper"], rel=1e-3)
    facts = json.loads((run / "scores/gen.json").read_text())["features"]
    assert facts["revision"] == identify(str(weights))[1]
    assert facts["images"]["paper"].startswith("squashed to 256 × 256 pixels of 8 bits by Lanczos, then to 299 × 299")


def test_two_processes_give_the_table_of_one(
    trained: Trained, run: Path, table: pd.DataFrame, rounding: dict[str, float], tmp_path: Path
) -> None:
    options = {"data": trained.images, "features": trained.backbone, "steps": 2, "size": 16, "batch_size": 3}
    options |= {"workers": 0, "device": "cpu"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    command = ["innervision", "evaluate", "gen", str(run), *(f"--{name}={value}" for name, value in options.items())]
    done = subprocess.run(
        [*launch, *command], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    same(pd.read_parquet(run / "scores/gen.parquet"), table, rounding)
    assert "Fréchet distance (dino)" in done.stdout


@pytest.mark.parametrize("batch_size", [1, 2, 5, IMAGES])
def test_neither_batches_nor_their_decoding_change_a_score(
    batch_size: int, trained: Trained, run: Path, whole: Whole, rounding: dict[str, float], tmp_path: Path
) -> None:
    again = trained.evaluate(
        run, batch_size=batch_size, decode_batch_size=3 * batch_size, save_images=str(tmp_path / "drawn")
    )
    same(again, whole.table, rounding)
    for path in sorted(whole.drawn.rglob("*.png")):
        images = [
            np.asarray(Image.open(root / path.relative_to(whole.drawn))) for root in (whole.drawn, tmp_path / "drawn")
        ]
        apart = abs(images[0].astype(int) - images[1])
        assert apart.max() <= 1
        assert (apart > 0).sum() <= FLIPS


def test_a_drawn_image_that_is_not_finite_is_not_taken_for_a_black_one(
    trained: Trained, run: Path, whole: Whole, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its own cosine, and the distances of the set it belongs to, are not known; all others are as before."""
    decode = GenTarget.decode
    name, layer = "0004.png", 2
    seed = crc32(f"{name} {layer}".encode())

    def spoil(self: GenTarget, features: torch.Tensor, *rest: Any, seeds: Sequence[int]) -> torch.Tensor:
        images = decode(self, features, *rest, seeds=seeds)
        if seed in seeds:
            images[list(seeds).index(seed), 0, 3, 5] = torch.nan
        return images

    monkeypatch.setattr(GenTarget, "decode", spoil)
    table = trained.evaluate(run, save_images=str(tmp_path / "drawn"))
    hit = (table["source"] == "probe") & (table["layer"] == layer)
    cosine = table["metric"] == "image_cosine:dino"
    shuffled = (table["source"] == "shuffled") & (table["layer"] == layer)
    assert table[hit & ~cosine]["value"].isna().all()
    assert list(table[hit & cosine & table["value"].isna()]["image"]) == [name]
    assert table[shuffled]["value"].isna().sum() == 1
    assert table[~hit & ~shuffled]["value"].notna().all()
    saved = {path.relative_to(tmp_path / "drawn") for path in (tmp_path / "drawn").rglob("*.png")}
    before = {path.relative_to(whole.drawn) for path in whole.drawn.rglob("*.png")}
    assert before - saved == {Path(f"layer{layer:02}") / f"{name}.png"}


def test_several_experts_of_a_run_are_scored_side_by_side(trained: Trained, tmp_path: Path) -> None:
    root = trained.run.parent
    other = save_tiny_gen(tmp_path / "other", seed=3, whole=True)
    settings = TrainSettings(
        mllm=str(root / "llava"),
        targets=f"one:gen={root / 'unclip'},two:gen={other}",
        images=str(root / "images"),
        out=str(tmp_path / "run"),
        layers="0",
        probe=ProbeSettings(kind="resampler", heads=2, dim_head=8),
        epochs=1,
        batch_size=4,
        workers=0,
    )
    fit(settings, mllm=trained.mllm, targets=load_targets(settings.targets, device="cpu"), progress=False)
    targets = load_targets(settings.targets, device="cpu", head=True)
    how = {"mllm": trained.mllm, "progress": False}
    table = pd.read_parquet(evaluate_task(tmp_path / "run", "gen", trained.settings(), targets=targets, **how))
    assert set(table["target"]) == {"one", "two"}
    values = table.pivot(index=["metric", "source", "layer", "image"], columns="target", values="value")
    assert len(values) == len(table) / 2
    assert (values["one"] != values["two"]).all()


def test_noise_depends_on_the_seed(trained: Trained, run: Path, table: pd.DataFrame) -> None:
    other, table = (each[each["metric"] == "image_cosine:dino"] for each in (trained.evaluate(run, seed=1), table))
    assert (abs(other["value"] - table["value"]) > 0.01).mean() > 0.5


def test_an_interrupted_evaluation_goes_on_and_ends_with_the_same_table(
    trained: Trained,
    run: Path,
    table: pd.DataFrame,
    rounding: dict[str, float],
    monkeypatch: pytest.MonkeyPatch,
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
    same(trained.evaluate(run), table, rounding)
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
    trained: Trained,
    run: Path,
    cache: Path,
    rounding: dict[str, float],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    images = Path(shutil.copytree(trained.images, tmp_path / "val"))
    first = trained.evaluate(run, data=str(images))
    assert len(list(cache.iterdir())) == 1
    [file] = cache.iterdir()
    before = file.stat().st_mtime_ns

    truth = Gen.truth

    def refuse(self: Gen, name: str, image: Image.Image) -> dict:
        assert not truth(self, name, image), "prepared again"
        return {}

    with monkeypatch.context() as patch:
        patch.setattr(Gen, "truth", refuse)
        same(trained.evaluate(run, overwrite=True, data=str(images), batch_size=2), first, rounding)
    assert file.stat().st_mtime_ns == before
    write_noise_images(images, 1, seed=9, size=(40, 60))  # another image of the same name
    trained.evaluate(run, overwrite=True, data=str(images), batch_size=4)
    assert len(list(cache.iterdir())) == 2


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
    with pytest.raises(InnerVisionError, match=r"made otherwise \(guidance: 10.0\); add --name NAME"):
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


def test_processes_that_read_images_get_no_weights(trained: Trained) -> None:
    task = Gen(trained.settings())
    task.prepare([trained.target])
    content = pickle.dumps(task.truth)
    assert len(content) < 20_000  # the tiny vision model alone has five times as much
    image = Image.new("RGB", (9, 9), (9, 99, 199))
    assert torch.equal(pickle.loads(content)("a", image)["standard"], task.truth("a", image)["standard"])


def test_one_image_is_no_set(trained: Trained, run: Path) -> None:
    with pytest.raises(InnerVisionError, match="sets of images are compared"):
        trained.evaluate(run, data=str(trained.images / "0000.png"))
