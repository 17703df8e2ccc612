"""Bars say how long the whole of a command takes, and runs what it took: by a clock that only the work lets go on."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gen_runs import Trained
from innervision.config import EvaluateSettings, ProbeSettings, TrainSettings
from innervision.engine import progress, solver
from innervision.engine.evaluate import evaluate_similarity, evaluate_task
from innervision.engine.fit import fit
from innervision.engine.interrupt import Stopped
from innervision.engine.progress import Phases, Took
from innervision.engine.run import RunFolder
from innervision.mllm import MLLM
from innervision.targets.target import Target
from stand_ins import StopAt, write_noise_images

JOBS = 6
"""Layers times numbers of cells that the exact probes of these tests are solved for."""
SOLVING = 10.0
"""Seconds by the tests' clock for each; an image takes one."""


class Clock:
    """Stands still but for the work that is said to take time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.images = self.jobs = 0
        """What was done."""

    def __call__(self) -> float:
        return self.now

    def slow(self, target: Target) -> Any:
        """Let a target take a second for each image."""
        clock = self

        class Slow:
            def __getattr__(self, name: str) -> Any:
                return getattr(target, name)

            def encode(self, pixels: Any) -> Any:
                clock.now += len(pixels)
                clock.images += len(pixels)
                return target.encode(pixels)

        return Slow()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found, choose = Clock(), solver.choose

    def slowly(*arguments: Any) -> Any:
        found.now += SOLVING
        found.jobs += 1
        return choose(*arguments)

    monkeypatch.setattr(progress, "perf_counter", found)
    monkeypatch.setattr(solver, "choose", slowly)
    return found


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Whatever bars say, after each piece of work."""
    told: list[str] = []
    update = progress._Bar.update

    def watched(bar: Any, units: float = 1) -> Any:
        result = update(bar, units)
        told.append(str(bar))
        return result

    monkeypatch.setattr(progress._Bar, "update", watched)
    return told


def rest(text: str) -> str:
    return text.split("<")[1].split(",")[0]


def interval(seconds: float) -> str:
    return f"{round(seconds) // 60:02}:{round(seconds) % 60:02}"


@pytest.fixture
def exact(settings: TrainSettings, tmp_path: Path) -> TrainSettings:
    """Four solutions on the way: after 5, 10, 20 and 40 of 80 images."""
    images = write_noise_images(tmp_path / "images", 80, size=(60, 60))
    return replace(settings, images=str(images), layers="vision,0,4", batch_size=10, micro_batch_size=5)


def test_the_bar_of_exact_probes_counts_their_solution_on_the_way_and_at_the_end(
    exact: TrainSettings, mllm: MLLM, targets: list[Target], clock: Clock, bars: list[str]
) -> None:
    fit(exact, mllm=mllm, targets=[clock.slow(targets[0]), targets[1]])
    reading, solving = bars[:-JOBS], bars[-JOBS:]
    assert all(text.startswith("1 of 2: reading layers: ") for text in reading)
    assert all(text.startswith("2 of 2: solving: ") for text in solving)
    # steps end after 5, 10, 20, 30, 40 … images, and after the first, second, third and fifth all jobs are solved
    images = [5, 10, 20, 30, 40, 50, 60, 70, 80]
    solved = [1, 2, 3, 3, 4, 4, 4, 4, 4]
    left = [80 - seen + SOLVING * JOBS * (5 - times) for seen, times in zip(images, solved, strict=True)]
    assert [rest(text) for text in reading] == [f"{interval(seconds)} in all" for seconds in left]
    assert [rest(text) for text in solving] == [f"{interval(SOLVING * n)} in all" for n in reversed(range(JOBS))]


def test_what_is_not_timed_yet_is_named() -> None:
    phases = Phases({"reading layers": 100, "solving": 4}, shown=False)
    assert phases.rest() == "?"
    with phases.work("reading layers", 10):
        pass
    assert phases.rest() == "00:00 + solving"
    with phases.work("solving", 2):
        pass
    assert phases.rest() == "00:00 in all"


def test_work_of_one_phase_within_that_of_another_counts_once(clock: Clock) -> None:
    phases = Phases({"reading": 20, "solving": 3})
    with phases.work("reading", 10):
        clock.now += 4
        with phases.work("solving", 1):
            clock.now += 100
        clock.now += 6
    assert phases.rest() == f"{interval(10 + 200)} in all"


def test_a_slow_beginning_is_forgotten(clock: Clock) -> None:
    """The first image finds the places: a minute, and then a second each."""
    phases = Phases({"reading": 200})
    for seconds in (60, *[1] * 99):
        with phases.work("reading", 1):
            clock.now += seconds
    assert phases.rest() == "01:40 in all"


def test_the_bar_of_a_resumed_run_counts_what_is_left_to_do(
    exact: TrainSettings, mllm: MLLM, targets: list[Target], clock: Clock, bars: list[str]
) -> None:
    fit(exact, mllm=mllm, targets=[clock.slow(targets[0]), targets[1]], progress=False)
    whole = RunFolder(exact.out).record()["took"]
    assert whole == {"seconds": clock.now, "device_seconds": clock.now}
    assert clock.now == 80 + SOLVING * JOBS * 5
    stopped = replace(exact, out=f"{exact.out}-stopped")
    with pytest.raises(Stopped):
        fit(stopped, mllm=mllm, targets=[clock.slow(StopAt(targets[0], 7)), targets[1]], progress=False)
    bars.clear()
    fit(stopped, resume=True, mllm=mllm, targets=[clock.slow(targets[0]), targets[1]])
    # it stopped after 40 images; of these 40 the last step was solved for
    assert " 50/80 images " in bars[0]
    assert rest(bars[0]) == "00:30 + solving"
    assert rest(bars[-JOBS]) == f"{interval(SOLVING * (JOBS - 1))} in all"
    assert RunFolder(stopped.out).record()["took"] == whole


def test_the_bar_of_trained_probes_has_one_phase(
    settings: TrainSettings, mllm: MLLM, targets: list[Target], clock: Clock, bars: list[str]
) -> None:
    trained = replace(settings, probe=ProbeSettings(kind="blind"), epochs=2, batch_size=5, micro_batch_size=5)
    fit(trained, mllm=mllm, targets=[clock.slow(targets[0]), targets[1]])
    assert all(text.startswith("training: ") for text in bars)
    assert [rest(text) for text in bars] == [f"{interval(26 - seen)} in all" for seen in (5, 10, 13, 18, 23, 26)]


@pytest.fixture
def scored(settings: TrainSettings, mllm: MLLM, targets: list[Target]) -> Callable[..., Path]:
    fit(settings, mllm=mllm, targets=targets, progress=False)

    def score(first: Any, **options: Any) -> Path:
        how = EvaluateSettings(images=settings.images, batch_size=4, workers=0)
        return evaluate_similarity(settings.out, how, mllm=mllm, targets=[first, targets[1]], **options)

    return score


def test_the_bar_of_an_evaluation_counts_its_images_and_a_resumed_one_what_is_left(
    scored: Callable[..., Path], targets: list[Target], clock: Clock, bars: list[str]
) -> None:
    """Thirteen images, four a batch; the expert looks at the partner of the last one of a batch as well."""
    with pytest.raises(Stopped):
        scored(clock.slow(StopAt(targets[0], 2)))
    assert [rest(text) for text in bars] == [f"{interval(5 / 4 * left)} in all" for left in (9, 5)]
    bars.clear()
    facts = json.loads(scored(clock.slow(targets[0])).with_suffix(".json").read_text())
    assert [rest(text) for text in bars] == [f"{interval(5 / 4 * left)} in all" for left in (1, 0)]
    assert all(text.startswith("similarity: ") for text in bars)
    assert facts["took"] == {"seconds": 17.0, "device_seconds": 17.0}


def test_the_bar_of_drawing_names_the_phase_that_follows(tmp_path: Path, bars: list[str]) -> None:
    trained = Trained(tmp_path)
    how = {"mllm": trained.mllm, "targets": [trained.target]}
    evaluate_task(trained.run, "gen", trained.settings(), **how)
    bars = [text for text in bars if "gen" in text]
    assert all(text.startswith("1 of 2: gen: ") for text in bars)
    assert all(rest(text).endswith(" + distances") for text in bars)


def test_time_on_several_devices_counts_once_as_wall_time() -> None:
    took = Took().plus(10.0, 4).plus(2.04, 1)
    assert took.rounded() == {"seconds": 12.0, "device_seconds": 42.0}
