"""The paired difference of two runs: over the images that both have, and with what is common to both cancelled."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from innervision.errors import InnerVisionError
from innervision.report.compare import compare

EASE = np.random.default_rng(0).normal(size=40)
"""What makes an image easy or hard for all models."""
NAMES = [f"{i}.jpg" for i in range(len(EASE))]


def make_run(run: Path, layers: dict[int, np.ndarray], names: list[str] = NAMES, **columns: object) -> Path:
    """Write a run whose probes have the values `layers[layer]`, one for each image; columns are added or replaced."""
    facts = {name: columns.pop(name, {}) for name in ("plan", "images", "metrics", "setup")}
    parts = [
        pd.DataFrame(
            {
                "image": names,
                "target": "depth",
                "layer": pd.array([layer] * len(names), dtype="Int64"),
                "source": "probe",
                "metric": "cosine",
                "protocol": "standard",
                "value": values,
            }
            | columns
        )
        for layer, values in layers.items()
    ]
    evaluation = "depth" if columns.get("metric") == "accuracy" else "similarity"
    facts["images"] = facts["images"] or dict.fromkeys(names, "0a1b")
    (run / "scores").mkdir(parents=True)
    (run / "run.yaml").write_text("format: 2\nsettings: {mllm: world/tuned}\nrecord: {}\n")
    pd.concat(parts, ignore_index=True).to_parquet(run / f"scores/{evaluation}.parquet")
    (run / f"scores/{evaluation}.json").write_text(json.dumps(facts))
    return run


def differences(first: Path, second: Path) -> pd.DataFrame:
    found = compare(first, second)
    assert not found.left_out
    assert not found.notes
    return found.differences


def row(found: pd.DataFrame, layer: int | None) -> pd.Series:
    [number] = np.flatnonzero(found["layer"].isna() if layer is None else found["layer"].eq(layer).fillna(False))
    return found.iloc[number]


def test_a_difference_that_all_images_share_has_no_spread(tmp_path: Path) -> None:
    """The scores of each run vary by about 1 between images, the difference not at all."""
    found = differences(make_run(tmp_path / "a", {1: EASE + 0.3}), make_run(tmp_path / "b", {1: EASE}))
    assert row(found, 1)[["mean", "low", "high"]].tolist() == pytest.approx([0.3, 0.3, 0.3])
    assert row(found, 1)["images"] == len(EASE)


def test_the_interval_is_scipys_for_the_differences(tmp_path: Path) -> None:
    other = EASE + np.random.default_rng(1).normal(0.2, 0.5, size=len(EASE))
    found = row(differences(make_run(tmp_path / "a", {1: other}), make_run(tmp_path / "b", {1: EASE})), 1)
    expected = stats.bootstrap((other - EASE,), np.mean, method="BCa", rng=0).confidence_interval
    assert found["mean"] == pytest.approx((other - EASE).mean())
    assert found["low"] == pytest.approx(expected.low, abs=0.02)  # a tenth of the width
    assert found["high"] == pytest.approx(expected.high, abs=0.02)


def test_the_other_way_round_is_the_same_with_the_sign_turned(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", {1: EASE**2})
    b = make_run(tmp_path / "b", {1: EASE})
    there, back = row(differences(a, b), 1), row(differences(b, a), 1)
    assert there[["mean", "low", "high"]].tolist() == pytest.approx((-back[["mean", "high", "low"]]).tolist())


def test_only_images_of_both_runs_count_whatever_their_order(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", {1: EASE + 0.3})
    b = make_run(tmp_path / "b", {1: EASE[:9:-1]}, NAMES[:9:-1])  # the first ten are lacking
    compared = compare(a, b)
    assert compared.notes == ["similarity: 10 images that one of the runs alone was scored on are left out"]
    found = row(compared.differences, 1)
    assert found["images"] == len(EASE) - 10
    assert found[["mean", "low", "high"]].tolist() == pytest.approx([0.3, 0.3, 0.3])


def test_the_row_without_a_layer_compares_the_averages_of_models_of_unequal_depth(tmp_path: Path) -> None:
    deep = make_run(tmp_path / "a", {0: EASE + 9, 1: EASE + 1, 2: EASE + 2, 3: EASE + 3})
    shallow = make_run(tmp_path / "b", {1: EASE, 2: EASE + 1})
    found = differences(deep, shallow)
    assert row(found, None)["mean"] == pytest.approx(2 - 0.5)
    assert sorted(found["layer"].dropna()) == [1, 2]


def test_pairs_weigh_as_many_as_they_are(tmp_path: Path) -> None:
    weights = {"metric": "accuracy", "weight": [3.0, 1.0], "group": None}
    a = make_run(tmp_path / "a", {1: np.array([1.0, 0.0])}, NAMES[:2], **weights)
    b = make_run(tmp_path / "b", {1: np.array([0.0, 0.0])}, NAMES[:2], **weights)
    assert row(differences(a, b), 1)["mean"] == pytest.approx(3 / 4)


def test_runs_without_anything_in_common_are_refused(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", {1: EASE})
    other_images = make_run(tmp_path / "b", {1: EASE}, [f"other {name}" for name in NAMES])
    other_scores = make_run(tmp_path / "c", {1: EASE}, metric="accuracy", weight=1.0, group=None)
    with pytest.raises(InnerVisionError, match=r"no image of the one has the name of one of the other, as 0\.jpg and"):
        compare(a, other_images)
    with pytest.raises(InnerVisionError, match="not scored by the same metrics on the same images"):
        compare(a, other_scores)


def test_runs_of_equal_depth_are_averaged_over_the_layers_that_both_have(tmp_path: Path) -> None:
    """The same scores at layers 4 and 8, of a run that was probed at all layers and of one at every fourth."""
    dense = make_run(tmp_path / "a", {layer: EASE + layer for layer in range(1, 9)})
    sparse = make_run(tmp_path / "b", {layer: EASE + layer for layer in (4, 8)})
    found = differences(dense, sparse)
    assert [row(found, layer)["mean"] for layer in (4, 8, None)] == pytest.approx([0, 0, 0])


def test_a_distance_of_sets_is_not_compared_over_a_part_of_the_images(tmp_path: Path) -> None:
    scores = [{1: EASE}, {1: EASE[1:]}]
    names = [NAMES, NAMES[1:]]
    runs = []
    for i in range(2):
        distances = make_run(tmp_path / f"{i}", scores[i], names[i], metric="frechet:dino")
        table = pd.read_parquet(distances / "scores/similarity.parquet")
        both = pd.concat([table, table.assign(metric="image_cosine:dino")])
        both.to_parquet(distances / "scores/similarity.parquet")
        runs.append(distances)
    found = compare(*runs)
    assert set(found.differences["metric"]) == {"image_cosine:dino"}
    assert found.left_out == ["similarity: distances of sets of other images"]
    assert set(compare(runs[0], runs[0]).differences["metric"]) == {"frechet:dino", "image_cosine:dino"}


def test_runs_without_a_common_metric_in_a_table_are_refused(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", {1: EASE}, metric="image_cosine:dino")
    b = make_run(tmp_path / "b", {1: EASE}, metric="image_cosine:clip")
    with pytest.raises(InnerVisionError, match="not scored by the same metrics on the same images"):
        compare(a, b)


def test_what_was_scored_otherwise_is_left_out_and_named(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", {1: EASE}, plan={"steps": 10, "files": "x"})
    b = make_run(tmp_path / "b", {1: EASE}, plan={"steps": 25, "files": "y"})
    with pytest.raises(InnerVisionError, match=r"similarity: made otherwise \(steps: 10 and 25\)"):
        compare(a, b)
    c = make_run(tmp_path / "c", {1: EASE}, plan={"steps": 10, "files": "y"})  # over the images of both
    assert row(differences(a, c), 1)["mean"] == 0
    truths = [make_run(tmp_path / name, {1: EASE}, plan={"annotations": name}) for name in ("d", "e")]
    with pytest.raises(InnerVisionError, match=r"made otherwise \(annotations: d and e\)"):
        compare(*truths)  # the right answers may be others


# Images are told by content


def test_images_of_one_name_and_other_content_are_left_out_and_said(tmp_path: Path) -> None:
    same, changed = dict.fromkeys(NAMES, "0a"), dict.fromkeys(NAMES[:3], "1b")
    a = make_run(tmp_path / "a", {1: np.where(np.arange(len(EASE)) < 3, 99, EASE + 0.3)}, images=same)
    b = make_run(tmp_path / "b", {1: EASE}, images=same | changed)
    found = compare(a, b)
    assert row(found.differences, 1)[["mean", "images"]].tolist() == pytest.approx([0.3, 37])
    assert found.left_out == ["similarity: 3 of 40 images of the same name have another content, as 0.jpg"]


def test_sets_of_the_same_names_and_other_pictures_are_refused(tmp_path: Path) -> None:
    a, b = (make_run(tmp_path / name, {1: EASE}, images=dict.fromkeys(NAMES, name)) for name in "ab")
    with pytest.raises(InnerVisionError, match=r"40 of 40 images of the same name have another content, as 0\.jpg"):
        compare(a, b)


def test_a_distance_of_sets_needs_the_same_contents(tmp_path: Path) -> None:
    images = dict.fromkeys(NAMES, "0a")
    a = make_run(tmp_path / "a", {1: EASE}, metric="fid", images=images)
    b = make_run(tmp_path / "b", {1: EASE}, metric="fid", images=images | {NAMES[0]: "1b"})
    with pytest.raises(InnerVisionError, match=r"another content.*distances of sets of other images"):
        compare(a, b)


def test_scores_that_do_not_tell_contents_are_paired_by_name_and_that_is_said(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", {1: EASE + 0.3})
    b = make_run(tmp_path / "b", {1: EASE}, images={"another.jpg": "0a"})
    found = compare(a, b)
    assert row(found.differences, 1)["images"] == len(EASE)
    assert found.notes == [
        "similarity: 40 images were paired by name alone, since the older scores do not tell their content"
    ]


# How scores were made


def test_another_setup_is_said_but_does_not_keep_from_comparing(tmp_path: Path) -> None:
    setup = {"device": "H100", "dtype": {"mllm": "bfloat16", "probes": "bfloat16"}, "processors": {"mllm": "fast"}}
    a = make_run(tmp_path / "a", {1: EASE}, setup=setup)
    b = make_run(tmp_path / "b", {1: EASE}, setup={**setup, "device": "CPU", "dtype": {"mllm": "float32"}})
    found = compare(a, b)
    assert row(found.differences, 1)["mean"] == 0
    assert found.notes == [
        "similarity: device: H100 and CPU",
        "similarity: dtype of mllm: bfloat16 and float32",
        "similarity: dtype of probes: bfloat16 and not recorded",
    ]
    assert not compare(a, a).notes


def test_a_setup_that_one_run_did_not_record_is_not_a_difference(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", {1: EASE}, setup={"device": "CPU"})
    assert not compare(a, make_run(tmp_path / "b", {1: EASE})).notes


def test_truths_of_another_precision_are_not_compared(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / kind, {1: EASE}, plan={"experts_dtype": kind}) for kind in ("float32", "bfloat16")]
    with pytest.raises(InnerVisionError, match=r"made otherwise \(experts_dtype: float32 and bfloat16\)"):
        compare(*runs)


def test_a_tasks_own_metric_of_sets_is_compared_over_the_same_images_alone(tmp_path: Path) -> None:
    metrics = {"spread": {"key": "spread", "name": "Spread", "of_set": True}}
    a = make_run(tmp_path / "a", {1: EASE}, metric="spread", metrics=metrics)
    b = make_run(tmp_path / "b", {1: EASE[1:]}, NAMES[1:], metric="spread", metrics=metrics)
    with pytest.raises(InnerVisionError, match="distances of sets of other images"):
        compare(a, b)
    assert compare(a, a).metrics["spread"].name == "Spread"


def test_a_run_without_scores_is_named(tmp_path: Path) -> None:
    a, empty = make_run(tmp_path / "a", {1: EASE}), tmp_path / "b"
    empty.mkdir()
    (empty / "run.yaml").write_text("format: 2\nsettings: {mllm: world/tuned}\n")
    for runs in ((a, empty), (empty, a)):
        with pytest.raises(InnerVisionError, match=str(empty)):
            compare(*runs)


def test_targets_of_one_name_and_other_experts_are_not_compared(tmp_path: Path) -> None:
    def plan(**experts: str) -> dict[str, object]:
        return {"experts": {name: {"name": expert, "revision": None} for name, expert in experts.items()}}

    a = make_run(tmp_path / "a", {1: EASE}, plan=plan(depth="one/expert"))
    other = make_run(tmp_path / "b", {1: EASE}, plan=plan(depth="other/expert"))
    more = make_run(tmp_path / "c", {1: EASE}, plan=plan(depth="one/expert", seg="another/expert"))
    with pytest.raises(InnerVisionError, match=r"depth \(other experts: .*one/expert.*other/expert"):
        compare(a, other)
    assert not differences(a, more).empty
