"""The score table: parts, what is done already, and what belongs to something else."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Timer

import pandas as pd
import pytest
import torch

from innervision.engine.progress import Took
from innervision.engine.scores import ScoreTable
from innervision.errors import InnerVisionError
from innervision.tasks.evaluation import Findings, Kept, Label, Scores

PLAN = {"images": 4}
TOOK = Took(2.0, 8.0)
LABELS = {number: [Label(f"{number}{letter}.png", "depth", 2, "probe") for letter in "ab"] for number in range(3)}


def part(number: int) -> Findings:
    """Two scores; what is kept of both images is the number of the part."""
    scores = Scores("accuracy", torch.tensor([number, number + 0.5]))
    return Findings([(LABELS[number], scores)], {("depth", "probe", 2): {"x": torch.full((2, 1), float(number))}})


def write(table: ScoreTable, *numbers: int) -> None:
    for number in numbers:
        table.write_part(
            number, part(number), {label.image: f"hash {label.image}" for label in LABELS[number]}, [], TOOK
        )


def conclude(kept: Kept) -> Iterator[tuple[Sequence[Label], Scores]]:
    """Sum what was kept."""
    total = torch.from_numpy(kept.read(("depth", "probe", 2))["x"]).sum().double()
    yield [Label("all", "depth", 2, "probe")], Scores("sum", total[None])


@pytest.fixture
def table(tmp_path: Path) -> ScoreTable:
    found = ScoreTable(tmp_path / "scores", "depth", PLAN)
    found.open()
    return found


def test_parts_in_any_order_make_one_table(table: ScoreTable) -> None:
    write(table, 2, 0, 1)
    assert table.took() == Took(6.0, 24.0)
    table.finish(3, lambda: {"fact": 1}, conclude)
    rows = pd.read_parquet(table.path)
    assert rows["image"].tolist() == [label.image for number in range(3) for label in LABELS[number]] + ["all"]
    assert rows["value"].tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 6]
    facts = json.loads(table.facts.read_text())
    assert facts["plan"] == PLAN
    assert facts["fact"] == 1
    assert facts["images"]["1b.png"] == "hash 1b.png"
    assert not table.parts.exists()


@pytest.mark.parametrize(("written", "lacking"), [((), 3), ((0, 2), 1), ((1,), 2), ((0, 1), 1)])
def test_a_table_is_not_finished_without_all_its_parts(
    table: ScoreTable, written: tuple[int, ...], lacking: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("innervision.engine.scores.PATIENCE", 0)
    write(table, *written)
    with pytest.raises(InnerVisionError, match=rf"cannot be finished: {lacking} of its 3 batches were not scored"):
        table.finish(3, dict, conclude)
    assert not table.path.exists()
    assert table.done() == set(written)
    write(table, *({0, 1, 2} - set(written)))
    table.finish(3, dict, conclude)
    assert len(pd.read_parquet(table.path)) == 7


def test_a_drive_that_lists_no_new_files_loses_no_part(table: ScoreTable, monkeypatch: pytest.MonkeyPatch) -> None:
    write(table, 0, 1, 2)
    monkeypatch.setattr(Path, "glob", lambda path, pattern: iter([path / "000000.parquet"]))
    table.finish(3, dict, conclude)
    assert pd.read_parquet(table.path)["value"].tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 6]


def test_a_part_that_a_drive_shows_late_is_waited_for(table: ScoreTable) -> None:
    write(table, 0, 2)
    late = Timer(0.6, write, (table, 1))
    late.start()
    table.finish(3, dict, conclude)
    late.join()
    assert pd.read_parquet(table.path)["value"].tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 6]


def test_what_is_done_is_still_there_for_the_next_process(table: ScoreTable, tmp_path: Path) -> None:
    write(table, 1)
    table.write_part(2, Findings(), {}, [("2a.png", "broken")], TOOK)
    later = ScoreTable(tmp_path / "scores", "depth", PLAN)
    assert not later.is_complete(overwrite=False)
    later.open()
    assert later.done() == {1, 2}
    assert later.bad([1, 2]) == [("2a.png", "broken")]


def test_parts_of_another_plan_are_not_used(table: ScoreTable, tmp_path: Path) -> None:
    write(table, 0, 1)
    other = ScoreTable(tmp_path / "scores", "depth", {"images": 5})
    other.open()
    assert other.done() == set()


def test_a_half_written_part_does_not_count(table: ScoreTable, tmp_path: Path) -> None:
    write(table, 0)
    (table.parts / ".000001-abc.parquet").write_bytes(b"PAR1 cut")
    (table.parts / "000001.safetensors").write_bytes(b"written before the part itself")
    later = ScoreTable(tmp_path / "scores", "depth", PLAN)
    later.open()
    assert later.done() == {0}
    assert not list(table.parts.glob(".*"))


def test_a_finished_table_stays_and_one_of_another_plan_is_not_replaced_unasked(
    table: ScoreTable, tmp_path: Path
) -> None:
    write(table, 0, 1, 2)
    table.finish(3, dict, conclude)
    assert ScoreTable(tmp_path / "scores", "depth", PLAN).is_complete(overwrite=False)
    other = ScoreTable(tmp_path / "scores", "depth", {"images": 5})
    with pytest.raises(InnerVisionError, match=r"scores made otherwise \(images: 4\); add --name NAME to keep both"):
        other.is_complete(overwrite=False)
    assert not other.is_complete(overwrite=True)


def test_killed_between_its_two_files_a_table_is_not_complete(
    table: ScoreTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(table, 0, 1, 2)

    class Killed(BaseException):
        pass

    def stop(*_: object, **__: object) -> str:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("innervision.engine.scores.json.dumps", stop)
        with pytest.raises(Killed):
            table.finish(3, dict, conclude)
    assert not table.is_complete(overwrite=False)
    assert table.done() == {0, 1, 2}
    table.finish(3, dict, conclude)
    assert table.is_complete(overwrite=False)


@pytest.mark.parametrize("broken", ["000001.safetensors", "000001.parquet"])
@pytest.mark.parametrize("how", ["deleted", "cut"])
def test_a_part_that_is_broken_or_lacks_its_arrays_is_scored_again(table: ScoreTable, broken: str, how: str) -> None:
    write(table, 0, 1, 2)
    path = table.parts / broken
    path.unlink() if how == "deleted" else path.write_bytes(path.read_bytes()[:50])
    assert table.done() == {0, 2}
    write(table, 1)
    table.finish(3, dict, conclude)
    assert pd.read_parquet(table.path)["value"].tolist()[-1] == 6


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff"])
def test_a_broken_note_beside_the_parts_makes_them_another_plans(table: ScoreTable, content: bytes) -> None:
    write(table, 0)
    (table.parts / "plan.json").write_bytes(content)
    table.open()
    assert table.done() == set()
