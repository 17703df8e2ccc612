"""Worlds in which the right curve is known."""

from pathlib import Path

import pandas as pd
import pytest

from innervision.config import EvaluateSettings, ProbeSettings, TrainSettings
from innervision.engine.evaluate import evaluate_similarity
from innervision.engine.fit import fit
from innervision.report.tables import summarize
from stand_ins import KnownTarget, StandInMLLM, write_noise_images


def curve(tmp_path: Path, mllm: StandInMLLM, positions: bool = False) -> pd.DataFrame:
    """Train and score on images of noise; one row per source, layer and metric."""
    train = write_noise_images(tmp_path / "train", 256)
    val = write_noise_images(tmp_path / "val", 128, seed=1)
    settings = TrainSettings(
        mllm="stand-in",
        targets="known:backbone=stand-in",
        images=str(train),
        out=str(tmp_path / "run"),
        probe=ProbeSettings(kind="resampler", heads=4, dim_head=8, positions=positions),
        epochs=30,
        batch_size=32,
        micro_batch_size=32,
        lr=3e-3,
        workers=0,
    )
    target = KnownTarget()
    fit(settings, mllm=mllm, targets=[target], progress=False)
    scores = evaluate_similarity(
        tmp_path / "run",
        EvaluateSettings(images=str(val), workers=0),
        mllm=mllm,
        targets=[target],
        progress=False,
    )
    return summarize(pd.read_parquet(scores)).set_index(["source", "layer", "metric"]).sort_index()


@pytest.mark.parametrize("informed", [0, 3])
def test_the_curve_peaks_where_the_features_are_and_is_at_the_floor_elsewhere(tmp_path: Path, informed: int) -> None:
    table = curve(tmp_path, StandInMLLM(informed=informed))
    peak = table.loc[("probe", informed, "centred_cosine")]
    assert peak["low"] > 0.9
    assert table.loc[("probe", informed, "explained_variance")]["low"] > 0.75
    floor = table.loc["mean"].droplevel("layer").loc["cosine"]
    for layer in set(range(5)) - {informed}:
        for metric in ("cosine", "token_cosine"):
            score = table.loc[("probe", layer, metric)]
            assert score["low"] <= floor["high"]
            assert score["high"] >= floor["low"]
        centred = table.loc[("probe", layer, "centred_cosine")]
        assert centred["high"] < 0.15
        assert abs(table.loc[("probe", layer, "explained_variance")]["mean"]) < 0.05
    shuffled = table.loc[("shuffled", informed, "centred_cosine")]
    assert shuffled["low"] < 0.02 < shuffled["high"] + 0.1
    assert shuffled["high"] < 0.15


def test_tokens_that_carry_nothing_leave_every_probe_at_the_floor(tmp_path: Path) -> None:
    table = curve(tmp_path, StandInMLLM(informed=None), positions=True)
    floor = table.loc["mean"].droplevel("layer").loc["cosine"]
    for layer in range(5):
        score = table.loc[("probe", layer, "cosine")]
        assert score["mean"] == pytest.approx(floor["mean"], abs=0.01)
        assert abs(table.loc[("probe", layer, "explained_variance")]["mean"]) < 0.02
        shuffled = table.loc[("shuffled", layer, "cosine")]
        assert shuffled["mean"] == pytest.approx(score["mean"], abs=1e-6)  # the same for every image
