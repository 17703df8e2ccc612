"""The study of distilling: its parts, the models that it grows, and how seeds are joined."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from benchmarks.distilling import runs
from benchmarks.distilling.__main__ import PARTS, Part, main
from benchmarks.distilling.runs import ALL_RANDOM, LEFT_OUT, Studied, Study
from benchmarks.distilling.tables import over_seeds
from tools.world.distill import LOSSES

from innervision import load_targets

# --- parts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PARTS)
def test_all_that_is_compared_is_scored_and_exact_probes_come_before_trained_ones(name: str) -> None:
    part = PARTS[name](2)
    assert len(set(part.studied)) == len(part.studied)
    assert {one for pair in part.pairs for one in pair} - {None} == set(part.studied)
    for number, studied in enumerate(part.studied):
        assert studied.probe == "exact" or studied._replace(probe="exact") in part.studied[:number]


def test_transfer_compares_within_a_seed_that_was_grown_in_one_go() -> None:
    pairs = PARTS["transfer"](3).pairs
    assert all(other is not None and first.seed == other.seed for first, other in pairs)
    assert {first.seed for first, _ in pairs} == {1, 2}


def test_an_unknown_part_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--only", "seeds,references2", "--out", str(tmp_path)])
    assert (
        "there is no part 'references2'; the parts are seeds, references, transfer, trained" in capsys.readouterr().err
    )


# --- models ---------------------------------------------------------------------------------------------------


def test_models_are_the_packages_or_grown_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that leave an expert out are grown for every seed; the features of the experts serve all."""
    grown: list[tuple[str, dict[str, Any]]] = []
    features = {name: object() for name in LOSSES}

    def train(out: Path, scenes: str, seed: int, **options: Any) -> None:
        assert (scenes, options["features"]) == ("scenes", features)
        assert out.name == f"seed-{seed}"
        grown.append((out.name, options["ends"]))
        for name in options["ends"]:
            (out / name).mkdir()

    monkeypatch.setattr(runs, "train", train)
    monkeypatch.setattr(runs, "load_scenes", lambda *_: "scenes")
    monkeypatch.setattr(runs, "expert_features", lambda *_: features)
    study = Study(tmp_path, [], "all", "all")
    wanted = {
        Studied("tuned"): "world/tuned",
        Studied("early"): "world/early",
        Studied("distilled", 2): str(tmp_path / "models/seed-2/distilled"),
        Studied("without depth"): str(tmp_path / "models/seed-0/without-depth"),
        Studied("without depth", 0, "trained"): str(tmp_path / "models/seed-0/without-depth"),
        Studied(ALL_RANDOM, 2): "world/tuned",
    }
    assert {studied: study._locate(studied) for studied in wanted} == wanted
    ends = {"distilled": ("seg", "depth", "gen")}, {"without-depth": ("seg", "gen")}
    assert grown == [("seed-2", ends[0]), ("seed-0", ends[1])]
    assert set(LEFT_OUT) == {f"without {name}" for name in LOSSES}


# --- probes and tables ----------------------------------------------------------------------------------------


def test_a_part_is_scored_compared_and_not_done_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = Studied(ALL_RANDOM, 1)
    trained = exact._replace(probe="trained")
    part = Part([exact, trained], [(trained, exact), (exact, None)])
    monkeypatch.setitem(PARTS, "trained", lambda _: part)
    monkeypatch.setitem(runs.TRAINED, "epochs", 1)
    sizes = ["--train", "12", "--val", "6", "--layers", "4,8", "--trained-layers", "4"]
    main(["--out", str(tmp_path), "--only", "trained", *sizes])
    banks = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/probes/*.safetensors")}
    assert len(banks) == 6  # kinds of probe, and targets

    scores, compared = (pd.read_csv(tmp_path / "trained" / f"{name}.csv") for name in ("scores", "comparisons"))
    assert (tmp_path / "trained/scores.png").exists()
    at = {kind: table[table["layer"] == 4].set_index(["target", "metric"]) for kind, table in _kinds(scores).items()}
    mean = scores[(scores["source"] == "mean") & (scores["probe"] == "exact")].set_index(["target", "metric"])["mean"]
    expected = {
        ("all random - all random, exact", "trained"): at["trained"]["mean"] - at["exact"]["mean"],
        ("all random - mean feature", "exact"): at["exact"]["mean"] - mean,
    }
    differences = compared[compared["layer"] == 4].set_index(["target", "metric"]).groupby(["comparison", "probe"])
    assert set(differences.groups) == set(expected)
    metrics = {("depth", "accuracy"), ("seg", "miou"), *((name, "centred_cosine") for name in LOSSES)}
    for key, rows in differences:  # where both have probes
        assert set(rows.index) == metrics
        assert (rows["seed"] == 1).all()
        pd.testing.assert_series_equal(rows["mean"].sort_index(), expected[key].sort_index())

    study = Study(tmp_path, load_targets([f"{name}=world/{name}" for name in LOSSES], device="cpu"), "4,8", "4")
    study.fit_and_score(exact, tasks=False)
    assert {path: path.stat().st_mtime_ns for path in banks} == banks  # they were not fitted again


def _kinds(scores: pd.DataFrame) -> dict[Any, pd.DataFrame]:
    return dict(iter(scores[scores["source"] == "probe"].groupby("probe")))


def row(seed: int, layer: int | None, mean: float, half: float = 0.05) -> dict[str, object]:
    score = {"comparison": "distilled - tuned", "probe": "exact", "target": "depth", "metric": "centred_cosine"}
    return score | {"layer": layer, "seed": seed, "mean": mean, "low": mean - half, "high": mean + half}


def test_intervals_reach_over_all_seeds_and_are_counted_by_side() -> None:
    rows = [row(0, 4, 0.2), row(1, 4, 0.3), row(2, 4, 0.01), row(0, 5, -0.1), row(1, 5, 0.1)]
    rows += [row(0, None, 9.0)]  # the average over layers
    at, after = over_seeds(pd.DataFrame(rows)).to_dict("records")
    assert (at["layer"], at["loss"], after["layer"], after["loss"]) == (4, "loss", 5, "")
    assert [round(at[end], 6) for end in ("difference", "low", "high")] == [0.17, -0.04, 0.35]
    assert [at[count] for count in ("above", "below", "seeds")] == [2, 0, 3]
    assert [after[count] for count in ("above", "below", "seeds")] == [1, 1, 2]
