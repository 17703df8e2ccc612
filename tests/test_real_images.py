"""The main job from the command line on real COCO images, with tiny models."""

from pathlib import Path

import pandas as pd
import pytest

from innervision.cli import main
from innervision.report.tables import read_scores
from tiny_experts import save_tiny_backbone, save_tiny_gen
from tiny_mllms import save_tiny


@pytest.mark.parametrize(
    ("family", "options"),
    [("llava", []), ("qwen2_vl", ["--probe.kind", "resampler", "--epochs", "1"])],
    ids=["llava, exact", "qwen2_vl, trained"],
)
def test_train_evaluate_and_plot_on_coco(family: str, options: list[str], shared: Path, tmp_path: Path) -> None:
    coco = shared / "coco-sample"
    save_tiny(family, tmp_path / family)
    save_tiny_gen(tmp_path / "gen")
    save_tiny_backbone(tmp_path / "backbone")
    run = tmp_path / "run"
    targets = f"gen={tmp_path / 'gen'},backbone={tmp_path / 'backbone'}"
    images = coco / "annotations/captions_train2017.json"
    words = ["--mllm", str(tmp_path / family), "--targets", targets, "--images", str(images), "--out", str(run)]
    assert main(["train", *words, *options, "--batch-size", "10", "--device", "cpu"]) == 0
    assert main(["evaluate", "similarity", str(run), "--images", str(coco / "val2017")]) == 0
    assert main(["plot", str(run), "--out", str(run / "figures/curves")]) == 0
    scores = read_scores(run)
    assert set(scores["image"]) == {path.name for path in (coco / "val2017").iterdir()}
    assert set(scores["target"]) == {"gen", "backbone"}
    probes = scores[scores["source"] == "probe"]
    assert set(probes["layer"]) == {-1, 0, 1, 2, 3, 4}
    assert probes["value"].notna().all()
    log = pd.read_json(run / "train/log.jsonl", lines=True)
    # of 50 images; those of exact probes end after 3, 6, 12 and 25 images, too, which are 1/16, 1/8, 1/4 and 1/2
    assert list(log["step"]) == list(range(1, 6 if options else 10))
    assert (run / "figures/curves.pdf").exists()
