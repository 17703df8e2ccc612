"""Every public function of the report takes a path as a string as well."""

import importlib
import inspect
import pkgutil
import typing
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import innervision.report
from innervision.report.compare import compare
from innervision.report.figures import curves_figure, plot_curves
from innervision.report.files import Facts, evaluations_of, read_facts, read_scores, read_settings, run_protocol
from innervision.report.tables import summarize, tabulate, write_summary


def public_functions() -> list[Callable]:
    modules = [
        importlib.import_module(f"innervision.report.{module.name}")
        for module in pkgutil.iter_modules(innervision.report.__path__)
    ]
    found = [
        function
        for module in modules
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if not name.startswith("_") and function.__module__ == module.__name__
    ]
    assert len(found) > 12
    return found


@pytest.mark.parametrize("function", public_functions(), ids=lambda function: function.__name__)
def test_where_a_path_is_taken_a_string_is_too(function: Callable) -> None:
    annotations = {name: str(kind) for name, kind in inspect.get_annotations(function).items() if name != "return"}
    for name, kind in annotations.items():
        if "Path" in kind:
            assert "str | pathlib.Path" in kind, f"{function.__name__}({name}: {kind})"


@pytest.mark.parametrize("kind", [str, Path])
def test_strings_and_paths_give_the_same(tmp_path: Path, kind: typing.Callable[[Path], str | Path]) -> None:
    run = tmp_path / "run"
    (run / "scores").mkdir(parents=True)
    (run / "run.yaml").write_text("format: 2\nsettings: {mllm: world/tuned}\nrecord: {}\n")
    columns = {"target": "depth", "source": "probe", "metric": "cosine", "protocol": "standard", "layer": 1}
    scores = pd.DataFrame({"image": list("abcdef"), **columns, "value": np.linspace(0, 1, 6)})
    scores.to_parquet(run / "scores/similarity.parquet")
    path = kind(run)
    assert evaluations_of(path) == ["similarity"]
    assert read_settings(path) == {"mllm": "world/tuned"}
    assert run_protocol(path, read_facts(path, "similarity")) == run_protocol(path, Facts()) == "standard"
    assert len(read_scores(path)) == 6
    assert tabulate(path).text.startswith("depth: 6 images")
    write_summary(summarize(scores), kind(tmp_path / "scores.csv"))
    assert (tmp_path / "scores.csv").exists()
    assert set(compare(path, path).differences["mean"]) == {0}
    assert len(curves_figure([path]).axes) == 1
    assert [made.name for made in plot_curves([path], kind(tmp_path / "x"))] == ["x.png", "x.pdf"]
