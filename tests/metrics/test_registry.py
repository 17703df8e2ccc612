"""What metrics are called and how they are written."""

import json
import subprocess
import sys
from dataclasses import asdict

import pytest

from innervision.metrics.registry import METRICS, Metric, find_metric


def test_each_stands_under_its_own_key() -> None:
    assert all(metric.key == key for key, metric in METRICS.items())


def test_a_key_may_name_a_model() -> None:
    metric = find_metric("frechet:world/gen")
    assert metric.name == "Fréchet distance (world/gen)"
    assert metric.of_set
    assert not metric.higher_is_better


def test_an_unknown_metric_goes_by_its_key() -> None:
    assert find_metric("sharpness:x").name == "sharpness:x"


def test_a_task_brings_metrics_but_does_not_replace_those_of_the_package() -> None:
    others = {"sharpness": Metric("sharpness", "Sharpness"), "miou": Metric("miou", "another")}
    assert find_metric("sharpness", others).name == "Sharpness"
    assert find_metric("miou", others) == METRICS["miou"]


@pytest.mark.parametrize("metric", METRICS.values(), ids=str)
def test_it_comes_back_from_json(metric: Metric) -> None:
    assert Metric(**json.loads(json.dumps(asdict(metric)))) == metric


@pytest.mark.parametrize(
    ("field", "value"),
    [("name", 3), ("higher_is_better", "yes"), ("floors", "mean"), ("floors", [1]), ("number_format", None)],
)
def test_a_value_of_another_type_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(TypeError, match=rf"{field} of the metric 'a' must be a"):
        Metric(**{"key": "a", "name": "A"} | {field: value})  # type: ignore[arg-type]


def test_a_format_that_python_does_not_know_is_refused() -> None:
    with pytest.raises(ValueError, match=r"number_format of the metric 'a' is '\.3q'"):
        Metric("a", "A", number_format=".3q")


@pytest.mark.parametrize("key", ["", "a:b"])
def test_a_key_is_a_word(key: str) -> None:
    with pytest.raises(ValueError, match="without a colon"):
        Metric(key, "A")


def test_a_zero_has_no_sign() -> None:
    assert METRICS["cosine"].format(-1e-9) == "0.000"


def test_it_needs_no_torch() -> None:
    code = "import sys, innervision.metrics.registry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
