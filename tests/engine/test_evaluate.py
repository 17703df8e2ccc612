"""Similarity scores of a run: what is written, and what an interruption leaves."""

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from innervision.config import EvaluateSettings, ProbeSettings, TrainSettings
from innervision.data.content import content_hash
from innervision.data.partners import random_order
from innervision.engine.evaluate import evaluate_similarity
from innervision.engine.fit import fit
from innervision.engine.interrupt import Stopped
from innervision.engine.run import RunFolder
from innervision.errors import InnerVisionError
from innervision.metrics.similarity import similarity
from innervision.mllm import MLLM
from innervision.probes import ProbeBank
from innervision.report.compare import compare
from innervision.report.files import evaluations_of
from innervision.targets.gen import GenTarget
from other_process import holding
from stand_ins import write_noise_images
from tiny_experts import save_tiny_gen
from tiny_mllms import save_tiny


class Trained:
    """A run on tiny real models, and the images to score it on."""

    def __init__(self, root: Path) -> None:
        save_tiny("llava", root / "llava")
        save_tiny_gen(root / "gen")
        self.mllm = MLLM.load(str(root / "llava"), device="cpu")
        self.targets = [GenTarget.load(str(root / "gen"), device="cpu")]
        self.run = root / "run"
        self.images = write_noise_images(root / "val", 9, seed=1, size=(40, 60))
        settings = TrainSettings(
            mllm=str(root / "llava"),
            targets=f"gen={root / 'gen'}",
            images=str(write_noise_images(root / "images", 8, size=(40, 60))),
            out=str(self.run),
            probe=ProbeSettings(kind="resampler", heads=2, dim_head=8),
            epochs=1,
            batch_size=4,
            workers=0,
        )
        fit(settings, mllm=self.mllm, targets=self.targets, progress=False)

    def evaluate(self, run: Path, overwrite: bool = False, name: str | None = None, **options: object) -> pd.DataFrame:
        settings = EvaluateSettings(**{"images": str(self.images), "batch_size": 4, "workers": 0, **options})
        how = {"mllm": self.mllm, "targets": self.targets, "progress": False, "overwrite": overwrite, "name": name}
        return pd.read_parquet(evaluate_similarity(run, settings, **how))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("evaluate"))


@pytest.fixture
def run(trained: Trained, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained.run, tmp_path / "run"))


def test_every_image_layer_source_and_metric_has_one_row(trained: Trained, run: Path) -> None:
    table = trained.evaluate(run)
    assert list(table.columns) == ["image", "target", "layer", "source", "metric", "protocol", "value"]
    assert not table.duplicated(["image", "target", "layer", "source", "metric"]).any()
    counts = table.groupby("source").size()
    assert counts.to_dict() == {"probe": 9 * 6 * 4, "shuffled": 9 * 6 * 4, "blank": 9 * 6 * 4, "mean": 9 * 4}
    assert table[table["source"] == "mean"]["layer"].isna().all()
    assert sorted(table["layer"].dropna().unique()) == [-1, 0, 1, 2, 3, 4]
    assert set(table["image"]) == {path.name for path in trained.images.iterdir()}
    assert set(table["protocol"]) == {"standard"}


def test_scores_are_those_of_each_image_by_hand(trained: Trained, run: Path) -> None:
    table = trained.evaluate(run).set_index(["image", "layer", "source", "metric"])["value"]
    [target], mllm = trained.targets, trained.mllm
    bank = ProbeBank.load(run / "probes/gen.safetensors")
    names = [f"{number:04}.png" for number in range(9)]
    order = [names[index] for index in random_order(names)]
    before = order[order.index("0000.png") - 1]  # whose partner the image is
    predictions = {}
    for name in ("0000.png", before):
        image = Image.open(trained.images / name).convert("RGB")
        inputs = mllm.prepare([image], "Describe the image in two lines.")
        with torch.no_grad():
            states = mllm.model(**inputs.tensors, output_hidden_states=True).hidden_states[2]
            predictions[name] = bank(2, states, inputs.mask)
    truth = target.encode([Image.open(trained.images / "0000.png").convert("RGB")])
    for source, prediction in {"probe": predictions["0000.png"], "shuffled": predictions[before]}.items():
        for metric, value in similarity(prediction, truth, bank.mean).items():
            assert table[("0000.png", 2, source, metric)] == pytest.approx(value.item(), rel=1e-4, abs=1e-5)


def test_blank_is_what_the_probe_says_of_a_grey_image_whatever_the_image(trained: Trained, run: Path) -> None:
    table = trained.evaluate(run).set_index(["image", "layer", "source", "metric"])["value"]
    [target], mllm = trained.targets, trained.mllm
    bank = ProbeBank.load(run / "probes/gen.safetensors")
    inputs = mllm.prepare([Image.new("RGB", (448, 448), (128, 128, 128))], "Describe the image in two lines.")
    with torch.no_grad():
        states = mllm.model(**inputs.tensors, output_hidden_states=True).hidden_states
    for layer in range(5):
        with torch.no_grad():
            prediction = bank(layer, states[layer], inputs.mask)
        for path in trained.images.iterdir():
            truth = target.encode([Image.open(path).convert("RGB")])
            for metric, value in similarity(prediction, truth, bank.mean).items():
                assert table[(path.name, layer, "blank", metric)] == pytest.approx(value.item(), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("size", [1, 9])
def test_the_shuffled_floor_does_not_depend_on_the_size_of_batches(trained: Trained, run: Path, size: int) -> None:
    keys = ["image", "layer", "metric"]
    tables = [trained.evaluate(run, batch_size=number, overwrite=True) for number in (4, size)]
    first, second = (table[table["source"] == "shuffled"].set_index(keys)["value"].sort_index() for table in tables)
    assert len(first) == 9 * 6 * 4
    assert first.index.equals(second.index)
    np.testing.assert_allclose(first, second, rtol=1e-5, atol=2e-5)  # float32, in other batches


def test_the_hash_of_every_images_content_stands_beside_the_scores(trained: Trained, run: Path) -> None:
    trained.evaluate(run)
    hashes = json.loads((run / "scores/similarity.json").read_text())["images"]
    assert hashes == {path.name: content_hash(path) for path in trained.images.iterdir()}


def test_what_the_scores_were_made_on_stands_beside_them(trained: Trained, run: Path) -> None:
    trained.evaluate(run)
    facts = json.loads((run / "scores/similarity.json").read_text())
    assert facts["plan"]["experts_dtype"] == "float32"
    assert facts["setup"]["dtype"] == {"mllm": "float32", "experts": "float32", "probes": "float32"}
    assert facts["setup"]["processors"].keys() == {"mllm", "gen"}
    assert facts["setup"]["processors"]["mllm"] == "CLIPImageProcessor (torchvision)"
    assert facts["settings"]["images"] == str(trained.images)
    assert {"torch", "transformers", "pillow"} <= facts["setup"]["versions"].keys()
    assert facts["setup"]["device"].startswith("cpu (")


def test_images_exchanged_for_others_of_the_same_size_are_noticed(trained: Trained, run: Path, tmp_path: Path) -> None:
    (tmp_path / "bmp").mkdir()
    for path in trained.images.iterdir():
        Image.open(path).save(tmp_path / "bmp" / f"{path.stem}.bmp")  # all of one size in bytes
    trained.evaluate(run, images=str(tmp_path / "bmp"))
    (tmp_path / "bmp/0002.bmp").write_bytes((tmp_path / "bmp/0003.bmp").read_bytes())
    with pytest.raises(InnerVisionError, match=r"scores made otherwise \(files"):
        trained.evaluate(run, images=str(tmp_path / "bmp"))


def test_an_interrupted_evaluation_goes_on_and_ends_with_the_same_table(
    trained: Trained, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trained.evaluate(shutil.copytree(run, tmp_path / "whole"))
    encode, calls = GenTarget.encode, []

    def interrupt(self: GenTarget, pixels: torch.Tensor) -> torch.Tensor:
        calls.append(len(pixels))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return encode(self, pixels)

    monkeypatch.setattr(GenTarget, "encode", interrupt)
    with pytest.raises(KeyboardInterrupt):
        trained.evaluate(run)
    assert not (run / "scores/similarity.parquet").exists()
    pd.testing.assert_frame_equal(trained.evaluate(run), whole)
    assert calls == [5, 5, 5, 2]  # four, four and one image, each with the last one's partner; none was done again
    assert sorted(path.name for path in (run / "scores").iterdir()) == ["similarity.json", "similarity.parquet"]
    trained.evaluate(run)
    assert len(calls) == 4  # a finished table is not made again


def test_scores_for_other_images_are_not_replaced_unasked(trained: Trained, run: Path, tmp_path: Path) -> None:
    before = trained.evaluate(run)
    other = write_noise_images(tmp_path / "other", 4, seed=2, size=(40, 60))
    with pytest.raises(InnerVisionError, match=r"holds scores made otherwise.*--overwrite"):
        trained.evaluate(run, images=str(other))
    pd.testing.assert_frame_equal(pd.read_parquet(run / "scores/similarity.parquet"), before)
    assert trained.evaluate(run, images=str(other), overwrite=True)["image"].nunique() == 4


def test_scores_of_other_images_stay_beside_the_first_under_a_name(trained: Trained, run: Path, tmp_path: Path) -> None:
    first = trained.evaluate(run)
    other = write_noise_images(tmp_path / "other", 4, seed=9, size=(40, 60))
    (run / "scores/.similarity@val-b").mkdir()  # of an evaluation that is not finished
    trained.evaluate(run, name="val", images=str(other))
    assert sorted(path.name for path in (run / "scores").iterdir()) == [
        ".similarity@val-b",
        *("similarity.json", "similarity.parquet", "similarity@val.json", "similarity@val.parquet"),
    ]
    pd.testing.assert_frame_equal(pd.read_parquet(run / "scores/similarity.parquet"), first)
    assert pd.read_parquet(run / "scores/similarity@val.parquet")["image"].nunique() == 4
    assert evaluations_of(run) == ["similarity"]
    assert evaluations_of(run, "val") == ["similarity@val"]
    with pytest.raises(InnerVisionError, match="has no scores named val-c, only without a name, named val"):
        evaluations_of(run, "val-c")
    assert compare(run, run, "val").differences["mean"].abs().max() == 0


@pytest.mark.parametrize("name", ["", "a/b", "../a", "a.lock", "-a", "a b"])
def test_a_name_that_no_file_can_have_is_refused(trained: Trained, run: Path, name: str) -> None:
    with pytest.raises(InnerVisionError, match="cannot be the name of a table"):
        trained.evaluate(run, name=name)


def test_a_limit_takes_some_of_the_images_always_the_same(trained: Trained, run: Path) -> None:
    every = {path.name for path in trained.images.iterdir()}
    some = set(trained.evaluate(run, limit=3)["image"])
    assert len(some) == 3
    assert some < every
    assert set(trained.evaluate(run, limit=3, overwrite=True, batch_size=2)["image"]) == some
    assert set(trained.evaluate(run, limit=50, overwrite=True)["image"]) == every
    with pytest.raises(InnerVisionError, match="limit must be above 0"):
        trained.evaluate(run, limit=0)


def test_broken_images_are_left_out_and_recorded(trained: Trained, run: Path, tmp_path: Path) -> None:
    images = Path(shutil.copytree(trained.images, tmp_path / "val"))
    (images / "0004.png").write_bytes(b"not an image")
    with pytest.raises(InnerVisionError, match=r"1 of 9 images are missing or broken.*0004\.png"):
        trained.evaluate(run, images=str(images), max_bad=0.0)
    table = trained.evaluate(run, images=str(images))
    assert "0004.png" not in set(table["image"])
    assert table["image"].nunique() == 8
    assert list(json.loads((run / "scores/similarity.json").read_text())["bad_images"]) == ["0004.png"]


def test_a_run_that_is_not_trained_yet_says_how_to_go_on(trained: Trained, run: Path) -> None:
    (run / "probes/gen.safetensors").unlink()
    with pytest.raises(InnerVisionError, match=r"not trained yet.*--resume"):
        trained.evaluate(run)


def test_scoring_on_the_images_of_the_training_bears_a_warning(
    trained: Trained, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "the probes were trained on images of this set"
    trained.evaluate(run)
    assert said not in capsys.readouterr().err
    of_training = Path(RunFolder(run).settings().images)
    copied = Path(shutil.copytree(of_training, tmp_path / "copied"))
    for images in (of_training, copied):
        trained.evaluate(run, images=str(images), overwrite=True)
        assert said in capsys.readouterr().err
    trained.evaluate(run, images=str(of_training), limit=3, overwrite=True)
    assert said in capsys.readouterr().err
    next(copied.iterdir()).unlink()
    trained.evaluate(run, images=str(copied), overwrite=True)
    assert said not in capsys.readouterr().err


def test_what_is_no_run_is_refused(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(InnerVisionError, match=r"no run\.yaml"):
        trained.evaluate(tmp_path)
    (tmp_path / "run.yaml").write_text("mllm: [unclosed")
    with pytest.raises(InnerVisionError, match="cannot be read"):
        trained.evaluate(tmp_path)
    (tmp_path / "run.yaml").write_text("mllm: x\n")
    with pytest.raises(InnerVisionError, match=r"has format 1, .*reads format 2"):
        trained.evaluate(tmp_path)
    (tmp_path / "run.yaml").write_text("format: 2\nsettings: {mllm: x}\nrecord: {}\n")
    with pytest.raises(InnerVisionError, match="does not hold the settings"):
        trained.evaluate(tmp_path)


def test_values_are_float64_and_finite(trained: Trained, run: Path) -> None:
    table = trained.evaluate(run)
    assert table["value"].dtype == np.float64
    assert np.isfinite(table["value"]).all()


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_evaluation_that_is_asked_to_stop_keeps_what_it_has(
    trained: Trained, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: int
) -> None:
    whole = trained.evaluate(shutil.copytree(run, tmp_path / "whole"))
    encode, calls = GenTarget.encode, []

    def interrupt(self: GenTarget, pixels: torch.Tensor) -> torch.Tensor:
        calls.append(len(pixels))
        if len(calls) == 2:
            os.kill(os.getpid(), sent)
        return encode(self, pixels)

    monkeypatch.setattr(GenTarget, "encode", interrupt)
    with pytest.raises(Stopped, match="the same call resumes it"):
        trained.evaluate(run)
    assert len(list((run / "scores/.similarity").glob("0*.parquet"))) == 2
    pd.testing.assert_frame_equal(trained.evaluate(run), whole)
    assert calls == [5, 5, 2]  # no batch was done again


def test_a_table_that_another_process_writes_is_left_alone(trained: Trained, run: Path) -> None:
    with holding(run / "scores/.similarity.lock") as other:
        with pytest.raises(InnerVisionError, match=f"is being written by process {other.pid} on"):
            trained.evaluate(run)
        assert [path.name for path in (run / "scores").iterdir()] == [".similarity.lock"]
    trained.evaluate(run)
    with holding(run / "scores/.similarity.lock"):
        trained.evaluate(run)  # it is finished: nothing is written
