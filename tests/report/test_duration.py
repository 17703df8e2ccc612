"""How long work took, in words, where it is known."""

from pathlib import Path

import pytest
import yaml

from innervision.report.duration import duration
from innervision.report.page.study import read_study
from innervision.report.page.write import _provenance
from page_runs import write_run


@pytest.mark.parametrize(
    ("seconds", "device_seconds", "words"),
    [
        (0.4, 0.4, "0:00:00 (h:mm:ss)"),
        (725.2, 725.2, "0:12:05 (h:mm:ss)"),
        (725.2, 2900.8, "0:12:05 (h:mm:ss), 0:48:21 over all devices"),
        (93_784, 93_784, "1 day, 2:03:04 (h:mm:ss)"),
    ],
)
def test_wall_time_and_that_of_several_devices(seconds: float, device_seconds: float, words: str) -> None:
    assert duration({"seconds": seconds, "device_seconds": device_seconds}) == words


@pytest.mark.parametrize(
    "took",
    [
        *(None, 12, [], {}, {"seconds": 3}),
        *({"seconds": value, "device_seconds": 1} for value in ("3", True, -1, float("nan"), float("inf"), 1e300)),
    ],
)
def test_what_is_not_recorded_or_no_time_is_not_told(took: object) -> None:
    assert duration(took) == "not recorded"


def test_a_page_tells_it_of_training_and_of_each_table(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", took={"seconds": 61, "device_seconds": 122})
    content = yaml.safe_load((run / "run.yaml").read_text())
    content["record"]["took"] = {"seconds": 3600, "device_seconds": 3600}
    (run / "run.yaml").write_text(yaml.safe_dump(content))
    tables = dict(_provenance(read_study([run]).runs[0])["tables"])
    assert ("took", "1:00:00 (h:mm:ss)") in tables["Training"]
    assert ("took", "0:01:01 (h:mm:ss), 0:02:02 over all devices") in tables["Scores: depth"]
