"""Tasks of a run from images to scores: what is written, stopped, resumed and shared among processes."""

import json
import multiprocessing
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.metrics import accuracy_score, jaccard_score
from torch.nn.functional import interpolate

import task_runs
from innervision.config import GenSettings
from innervision.errors import InnerVisionError
from innervision.mllm import MLLM
from innervision.probes import ProbeBank
from innervision.report.tables import format_table, read_scores, summarize
from innervision.targets.depth import DepthTarget
from innervision.targets.seg import SegTarget
from innervision.targets.target import Target
from innervision.tasks.gen import Gen
from together import run_together

LAYERS = [0, 2, 4]


class World:
    """A trained run, and its models in memory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        task_runs.prepare(root)
        self.mllm: MLLM = task_runs.load_mllm(root)
        self.targets: list[Target] = task_runs.load_targets(root)

    def evaluate(self, run: Path, task: str, **options: object) -> pd.DataFrame:
        return pd.read_parquet(task_runs.evaluate(self.root, run, task, (self.mllm, self.targets), **options))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture
def run(world: World, tmp_path: Path) -> Path:
    return Path(shutil.copytree(world.root / "run", tmp_path / "run"))


@pytest.fixture(scope="module")
def scored(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run, scored by both tasks."""
    run = Path(shutil.copytree(world.root / "run", tmp_path_factory.mktemp("scored") / "run"))
    for task in ("depth", "seg"):
        world.evaluate(run, task)
    return run


def score(
    summary: pd.DataFrame, source: str, metric: str, layer: int | None = None, protocol: str = "standard"
) -> float:
    chosen = summary[["source", "metric", "protocol"]].eq([source, metric, protocol]).all(axis=1)
    chosen &= summary["group"].isna()
    chosen &= summary["layer"].isna() if layer is None else summary["layer"].eq(layer).fillna(False)
    return summary[chosen]["mean"].item()


GREY = Image.new("RGB", (448, 448), (128, 128, 128))


def by_hand(world: World, run: Path, name: str, image: Image.Image, layer: int) -> torch.Tensor:
    """One image's prediction, by other code than the evaluation's."""
    bank = ProbeBank.load(run / f"probes/{name}.safetensors")
    inputs = world.mllm.prepare([image], "Describe the image in two lines.")
    with torch.no_grad():
        states = world.mllm.model(**inputs.tensors, output_hidden_states=True).hidden_states[layer]
        return bank(layer, states, inputs.mask)


# --- what is written


def test_every_image_layer_and_source_has_its_row(scored: Path) -> None:
    table = read_scores(scored, "depth")
    whole = table[(table["metric"] == "accuracy") & table["group"].isna() & (table["protocol"] == "standard")]
    images = task_runs.IMAGES
    expected = dict.fromkeys(("probe", "shuffled", "blank"), 3 * images)
    expected |= dict.fromkeys(("mean", "expert", "plain"), images)
    assert whole.groupby("source", observed=True).size().to_dict() == expected
    assert sorted(whole["layer"].dropna().unique()) == LAYERS
    assert set(read_scores(scored, "seg")["source"]) == {*expected, "zero"}
    assert set(table["protocol"]) == {"standard", "paper"}


def test_depth_accuracy_is_that_of_whole_resized_maps(world: World, scored: Path) -> None:
    """Every map is resized to its image's size and asked for every pair."""
    target = world.targets[0]
    assert isinstance(target, DepthTarget)
    pairs = json.loads((world.root / "DA-2K/annotations.json").read_text())
    found: dict[str, list[bool]] = {"probe": [], "blank": [], "expert": [], "plain": []}
    for name, questions in pairs.items():
        path = world.root / "DA-2K" / name
        image = Image.open(path).convert("RGB")
        context = target.context([image])
        features = {
            "probe": by_hand(world, scored, "depth", image, 2),
            "blank": by_hand(world, scored, "depth", GREY, 2),
            "expert": context.features,
        }
        maps = {source: target.decode(feature, context) for source, feature in features.items()}
        assert context.output is not None
        for source, depth in {**maps, "plain": context.output}.items():
            resized = interpolate(depth[None].double(), (image.height, image.width), mode="bilinear")[0, 0]
            found[source] += [bool(resized[*q["point1"]] > resized[*q["point2"]]) for q in questions]
    summary = summarize(read_scores(scored, "depth"))
    for source, right in found.items():
        assert score(summary, source, "accuracy", 2 if source in ("probe", "blank") else None) == pytest.approx(
            np.mean(right)
        )
        assert 0 < np.mean(right) < 1


def test_seg_scores_are_scikit_learns_over_all_pixels(world: World, scored: Path) -> None:
    target = world.targets[1]
    assert isinstance(target, SegTarget)
    truths, predictions = [], {"probe": [], "blank": [], "expert": [], "zero": [], "plain": []}
    for path in sorted((world.root / "coco/val2017").iterdir()):
        segments = np.asarray(Image.open(world.root / "coco/annotations/panoptic_val2017" / path.name))[..., 0]
        # label i of the annotations is the expert's class 4 - i
        truths.append(np.where(segments == 0, -1, 5 - segments.astype(int)).ravel())
        image = Image.open(path).convert("RGB")
        context = target.context([image])
        features = {
            "probe": by_hand(world, scored, "seg", image, 4),
            "blank": by_hand(world, scored, "seg", GREY, 4),
            "expert": context.features,
            "zero": torch.zeros_like(context.features),
        }
        scores = {source: target.decode(feature, context) for source, feature in features.items()}
        assert context.output is not None
        for source, each in {**scores, "plain": context.output}.items():
            resized = interpolate(each, segments.shape, mode="bilinear", align_corners=False)
            predictions[source].append(resized[0].argmax(0).numpy().ravel())
    truth = np.concatenate(truths)
    known = truth >= 0
    summary = summarize(read_scores(scored, "seg"))
    for source, maps in predictions.items():
        prediction, layer = np.concatenate(maps), 4 if source in ("probe", "blank") else None
        iou = jaccard_score(truth[known], prediction[known], labels=np.unique(truth[known]), average="macro")
        assert score(summary, source, "miou", layer) == pytest.approx(iou)
        accuracy = accuracy_score(truth[known], prediction[known])
        assert score(summary, source, "pixel_accuracy", layer) == pytest.approx(accuracy)
    assert score(summary, "probe", "miou", 4) > 0


def test_the_two_parts_of_depth_accuracy_are_the_whole_and_the_mean_has_them_all_or_none(scored: Path) -> None:
    table = read_scores(scored, "depth")
    table = table[table["group"].isna() & table["protocol"].eq("standard")].astype({"source": str})
    parts = ["accuracy_mean_right", "accuracy_mean_wrong"]
    keys = ["source", "layer", "image"]
    right = (table["value"] * table["weight"]).groupby([table[key] for key in [*keys, "metric"]], dropna=False).sum()
    right = right.unstack("metric")
    pairs = table.groupby([*keys, "metric"], dropna=False, observed=True)["weight"].sum().unstack("metric")
    assert len(right) == (3 * 3 + 3) * task_runs.IMAGES
    np.testing.assert_allclose(right[parts].sum(axis=1), right["accuracy"])
    np.testing.assert_allclose(pairs[parts].sum(axis=1), pairs["accuracy"])
    assert (pairs[parts].groupby("image").nunique() <= 1).all(axis=None)  # the same pairs whatever is scored
    assert (pairs[parts].sum() > 0).all()
    mean = table[table["source"].eq("mean")].groupby("metric", observed=True)["value"]
    assert mean.agg(set)[parts].tolist() == [{1.0}, {0.0}]


def test_the_table_shows_floors_and_ceilings_below_the_layers(scored: Path) -> None:
    text = format_table(summarize(read_scores(scored, "seg")), ["seg"])
    first = [line.split()[0] for line in text.splitlines()[4:12]]
    assert first == ["0", "2", "4", "avg", "zero", "mean", "expert", "plain"]
    assert "mIoU by group" in text


def test_how_many_maps_are_decoded_at_once_changes_nothing(world: World, run: Path, scored: Path) -> None:
    for task in ("depth", "seg"):
        one_by_one = world.evaluate(run, task, decode_batch_size=1)
        together = pd.read_parquet(scored / f"scores/{task}.parquet")
        keys = ["image", "layer", "source", "metric", "protocol", "group"]
        both = one_by_one.merge(together, on=keys, suffixes=("", "_together"))
        assert len(both) == len(one_by_one) == len(together)
        np.testing.assert_allclose(both["value"], both["value_together"], atol=1e-12)


@pytest.mark.parametrize("task", ["depth", "seg"])
def test_a_table_of_some_sources_has_the_rows_of_the_whole_one(
    world: World, run: Path, scored: Path, task: str
) -> None:
    some = world.evaluate(run, task, beside="shuffled,mean")
    whole = pd.read_parquet(scored / f"scores/{task}.parquet")
    keys = ["image", "layer", "source", "metric", "protocol", "group"]
    both = some.merge(whole, on=keys, suffixes=("", "_whole"))
    assert len(both) == len(some) == whole["source"].isin(["probe", "shuffled", "mean"]).sum()
    np.testing.assert_allclose(both["value"], both["value_whole"], atol=1e-12)
    text = format_table(summarize(read_scores(run, task)), [task])
    assert "mean" in text
    assert not {"expert", "blank", "zero", "plain"} & {*text.split()}
    with pytest.raises(InnerVisionError, match="scores made otherwise"):
        world.evaluate(run, task)


def test_of_a_coco_folder_val2017_is_scored(world: World, run: Path, tmp_path: Path) -> None:
    coco = Path(shutil.copytree(world.root / "coco", tmp_path / "coco"))
    shutil.copytree(coco / "val2017", coco / "train2017")
    (coco / "annotations/panoptic_train2017.json").write_text("{}")
    assert len(world.evaluate(run, "seg", data=str(coco))["image"].unique()) == task_runs.IMAGES
    assert len(Gen(GenSettings(data=str(coco))).images) == task_runs.IMAGES


# --- what does not fit


def test_classes_of_another_data_set_are_refused(world: World, run: Path, tmp_path: Path) -> None:
    coco = Path(shutil.copytree(world.root / "coco", tmp_path / "coco"))
    path = coco / "annotations/panoptic_val2017.json"
    path.write_text(path.read_text().replace("class 3", "giraffe"))
    with pytest.raises(InnerVisionError, match=r"do not have the same classes.*lacks 'giraffe'"):
        world.evaluate(run, "seg", data=str(coco))


def test_a_run_without_the_target_is_refused(world: World, run: Path) -> None:
    (run / "run.yaml").write_text((run / "run.yaml").read_text().replace("kind: seg", "kind: other"))
    with pytest.raises(InnerVisionError, match="no probes for seg, only for depth, seg"):
        world.evaluate(run, "seg")


def test_scores_of_other_probes_are_not_taken_for_those_of_the_run(world: World, run: Path) -> None:
    before = world.evaluate(run, "depth")
    path = run / "probes/depth.safetensors"
    bank = ProbeBank.load(path)
    with torch.no_grad():
        for weight in bank.parameters():
            weight.add_(0.5 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    bank.save(path)
    with pytest.raises(InnerVisionError, match=r"scores made otherwise \(probes: .*--overwrite"):
        world.evaluate(run, "depth")
    assert not world.evaluate(run, "depth", overwrite=True).equals(before)


def test_scores_of_changed_answers_are_not_taken_for_the_present_ones(world: World, run: Path, tmp_path: Path) -> None:
    da2k = Path(shutil.copytree(world.root / "DA-2K", tmp_path / "DA-2K"))
    first = world.evaluate(run, "depth", data=str(da2k))
    path = da2k / "annotations.json"
    path.write_text(path.read_text().replace('"closer_point": "point1"', '"closer_point": "point2"'))
    with pytest.raises(InnerVisionError, match=r"scores made otherwise \(annotations: .*--overwrite"):
        world.evaluate(run, "depth", data=str(da2k))
    second = world.evaluate(run, "depth", data=str(da2k), overwrite=True)
    chosen = [frame[frame["protocol"].eq("standard") & frame["group"].isna()] for frame in (first, second)]
    shares = pd.concat(chosen).groupby(["image", "layer", "source", "metric"], dropna=False)["value"].sum()
    shares = shares.unstack("metric")
    assert len(shares) > task_runs.IMAGES
    # what was right is wrong now; what was tied is tied in both tables
    np.testing.assert_allclose(shares["accuracy"], 1 - shares["ties"] / 2)


def test_a_broken_annotation_leaves_the_image_out(world: World, run: Path, tmp_path: Path) -> None:
    coco = Path(shutil.copytree(world.root / "coco", tmp_path / "coco"))
    (coco / "annotations/panoptic_val2017/0003.png").write_bytes(b"no PNG")
    with pytest.raises(InnerVisionError, match=r"1 of 9 images are missing or broken.*cannot read the panoptic map"):
        world.evaluate(run, "seg", data=str(coco), max_bad=0.0)
    table = world.evaluate(run, "seg", data=str(coco))
    assert "0003.png" not in set(table["image"])
    assert list(json.loads((run / "scores/seg.json").read_text())["bad_images"]) == ["0003.png"]


# --- several processes, and none that lives long


def test_two_processes_write_the_tables_of_one(world: World, run: Path, tmp_path: Path, one_thread: None) -> None:
    alone = Path(shutil.copytree(run, tmp_path / "alone"))
    tasks = ("similarity", "depth")
    assert run_together(2, task_runs.load_and_evaluate, world.root, run, tasks) == [None, None]
    for task in tasks:
        pd.testing.assert_frame_equal(
            pd.read_parquet(run / f"scores/{task}.parquet"), world.evaluate(alone, task), check_exact=True
        )
        facts = [json.loads((each / f"scores/{task}.json").read_text()) for each in (run, alone)]
        for each, devices in zip(facts, (2, 1), strict=True):
            took = each.pop("took")
            assert took["device_seconds"] == pytest.approx(devices * took["seconds"], abs=0.16)  # both are rounded
        assert facts[0] == facts[1]
        assert len(facts[0]["images"]) == task_runs.IMAGES


def test_killed_again_and_again_it_ends_with_the_same_table(world: World, run: Path, one_thread: None) -> None:
    """Five times: after some of the five parts were written, at an instant that is left to chance."""
    scores = run / "scores"
    whole = world.evaluate(run, "depth")
    shutil.rmtree(scores)

    def parts() -> int:
        return len(list(scores.glob(".depth/0*.parquet")))

    dice, left = random.Random(0), []
    for number in range(5):
        child = multiprocessing.get_context("fork").Process(target=world.evaluate, args=(run, "depth"))
        child.start()
        while child.is_alive() and parts() < number:
            time.sleep(0.001)
        child.join(dice.uniform(0, 0.05))
        child.kill()
        child.join()
        assert child.exitcode in (-signal.SIGKILL, 0)
        left.append(parts())
    assert set(left) & {1, 2, 3, 4}  # a kill fell into the work
    pd.testing.assert_frame_equal(world.evaluate(run, "depth"), whole)
    # a lock that a process killed at the very end has left is nobody's
    assert {path.name for path in scores.iterdir()} - {".depth.lock"} == {"depth.json", "depth.parquet"}
