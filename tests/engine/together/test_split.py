"""An MLLM that several processes hold together, each with the probes of some layers: the probes of one process."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from innervision.config import ProbeSettings, TrainSettings
from innervision.engine.mesh import Mesh
from innervision.engine.processes import Rank
from innervision.engine.run import RunFolder
from innervision.errors import InnerVisionError
from innervision.mllm import MLLM
from innervision.mllm.split import bytes_of_part
from innervision.world.dataset import write_scenes
from split_runs import load, read_other_images, stand, train_and_score, weigh
from tiny_mllms import save_tiny
from together import run_together
from train_runs import RESAMPLER, Alone, assert_close, train

pytestmark = pytest.mark.usefixtures("one_thread")


def table_of(out: Path, name: str) -> pd.Series:
    """Give the scores by all that names them; each is there once."""
    table = pd.read_parquet(out / f"scores/{name}.parquet")
    names = [column for column in table.columns if column not in ("value", "weight")]
    scores = table.set_index(names)["value"].sort_index()
    if name == "similarity":
        assert scores.index.is_unique
    return scores


def test_a_model_of_the_world_has_the_probes_and_scores_of_one_process(tmp_path: Path) -> None:
    """By two that hold it together, and by three that share the images."""
    write_scenes(tmp_path / "scenes", train=10, val=4, seed=3, progress=False)
    scenes = str(tmp_path / "scenes")
    settings = TrainSettings(
        mllm="world/tuned",
        targets="depth=world/depth,seg=world/seg",
        images=f"{scenes}/train2017",
        out=str(tmp_path / "alone"),
        layers="vision,0,8",
        micro_batch_size=1,  # else states would depend on the images beside
        workers=0,
        device="cpu",
    )
    train_and_score(0, settings, scenes, split=1)
    for count, split in ((2, 2), (3, 1)):
        out = tmp_path / f"{count} by {split}"
        found = run_together(count, train_and_score, replace(settings, out=str(out)), scenes, split)
        assert found == [["depth", "seg"], *[[]] * (count - 1)]
        assert_close(settings.out, str(out), 1e-4 if split > 1 else 1e-5)
        facts = [json.loads((out / f"scores/{name}.json").read_text()) for name in ("similarity", "depth")]
        for took in (each["took"] for each in [RunFolder(out).record(), *facts]):
            assert took["device_seconds"] == pytest.approx(
                count * took["seconds"], abs=0.06 * count
            )  # both are rounded
        for name in ("similarity", "depth"):
            alone, together = (table_of(each, name) for each in (Path(settings.out), out))
            assert alone.index.equals(together.index)
            if name == "similarity":
                assert (alone - together).abs().max() < 1e-4
            else:  # a pair may fall to the other side
                assert abs(alone.mean() - together.mean()) < 0.01


def test_two_by_two_processes_train_the_probes_of_one(settings: TrainSettings, alone: Alone) -> None:
    """25 steps of two micro-batches; the last step of each epoch has 3 images, of which one may be broken."""
    settings = replace(settings, probe=RESAMPLER, epochs=5)
    assert run_together(4, train, replace(settings, split_mllm=2)) == [["depth", "gen"], [], [], []]
    assert_close(alone(settings), settings.out, 1e-4)
    assert len((Path(settings.out) / "train/log.jsonl").read_text().splitlines()) == 25


@pytest.mark.parametrize(("count", "split"), [(3, 1), (4, 2)])
def test_sharded_probes_are_those_of_one_process(settings: TrainSettings, alone: Alone, count: int, split: int) -> None:
    """With steps in which a process has fewer micro-batches than others, or no image, and with gradients clipped."""
    settings = replace(settings, probe=RESAMPLER, epochs=2, clip=0.5)
    together = replace(settings, split_mllm=split, shard_probes=True)
    assert run_together(count, train, together) == [["depth", "gen"], *[[]] * (count - 1)]
    assert_close(alone(settings), settings.out, 1e-5 if split == 1 else 1e-4)


@pytest.mark.parametrize(
    ("probe", "shared"),
    [(RESAMPLER, {"split_mllm": 2}), (ProbeSettings(), {"split_mllm": 2}), (RESAMPLER, {"shard_probes": True})],
)
def test_a_run_that_was_stopped_goes_on_in_one_process(
    settings: TrainSettings, folder: Path, alone: Alone, probe: ProbeSettings, shared: dict[str, Any]
) -> None:
    settings = replace(settings, mllm=str(folder / "qwen2_vl"), probe=probe, micro_batch_size=2)
    split = replace(settings, **shared)
    stopped = run_together(2, train, split, False, {0: (5, "SIGTERM")})
    assert all(each.startswith("Stopped: stopped after step ") for each in stopped)
    train(0, settings, True)
    assert_close(alone(settings), settings.out, 1e-4)
    notes = RunFolder(settings.out).record()["notes"]
    assert any(note.startswith("the number of processes is 1 from step") for note in notes)
    assert any(note.startswith("split_mllm is 1 from step") for note in notes) == ("split_mllm" in shared)


def test_a_run_that_one_process_began_goes_on_with_sharded_probes(
    settings: TrainSettings, folder: Path, alone: Alone
) -> None:
    settings = replace(settings, mllm=str(folder / "qwen2_vl"), probe=RESAMPLER, micro_batch_size=2)
    stopped = run_together(1, train, settings, False, {0: (5, "SIGTERM")})
    assert stopped[0].startswith("Stopped: stopped after step ")
    assert run_together(2, train, replace(settings, shard_probes=True), True) == [["depth", "gen"], []]
    assert_close(alone(settings), settings.out, 1e-5)


def test_a_process_reads_its_part_of_the_weights_as_the_dry_run_says(folder: Path) -> None:
    path = str(folder / "llava")
    said = bytes_of_part(MLLM.load(path, device="meta", dtype=torch.float32).model, 2)
    whole = load(0, path, 1)
    for part in run_together(2, load, path, 2):
        assert part == pytest.approx(said, rel=0.01)
        assert part < 0.7 * whole


@pytest.mark.parametrize(
    ("probe", "shared"),
    [(RESAMPLER, {"split_mllm": 2}), (ProbeSettings(), {"split_mllm": 2}), (RESAMPLER, {"shard_probes": True})],
)
def test_each_of_two_processes_has_half_of_what_fitting_needs(
    settings: TrainSettings, tmp_path: Path, probe: ProbeSettings, shared: dict[str, Any]
) -> None:
    """At most 55%: probes, and moments or the optimizer's state."""
    settings = replace(settings, probe=probe, layers="0,1,2,4")
    whole = weigh(0, replace(settings, out=str(tmp_path / "alone")))
    parts = run_together(2, weigh, replace(settings, **shared))
    assert max(parts) <= 0.55 * whole
    assert sum(parts) >= whole


def test_where_processes_stand() -> None:
    """In the table of rows 0 1 and 2 3."""
    found = run_together(4, stand, 2)
    assert [each["column"] for each in found] == [(0, 2, 2), (0, 2, 4), (1, 2, 2), (1, 2, 4)]
    assert [each["row"] for each in found] == [(0, 2, 1), (1, 2, 1), (0, 2, 5), (1, 2, 5)]
    assert [each["brought"] for each in found] == [[0, 1], [], [2, 3], []]
    assert [each["own"] for each in found] == [[-1, 1, 3], [0, 2]] * 2


def test_what_does_not_come_out_even_is_refused() -> None:
    with pytest.raises(InnerVisionError, match="split_mllm=2 needs as many processes: torchrun --nproc-per-node 2"):
        Mesh.of(Rank(), 2)
    with pytest.raises(InnerVisionError, match="4 processes do not make whole groups of 3"):
        Mesh.of(Rank(0, 4), 3)
    with pytest.raises(InnerVisionError, match=r"2 processes hold the MLLM together .* at least; 1 are probed"):
        Mesh(layers=Rank(0, 2)).own([5])
    with pytest.raises(InnerVisionError, match="random weights is made whole"):
        TrainSettings(mllm="m", images="i", out="o", random_weights="llm", split_mllm=2)


@pytest.mark.parametrize(
    ("family", "count", "said"),
    [
        ("llava", 4, "the 2 heads of {} (num_key_value_heads) cannot be shared out to 4 processes"),
        ("qwen3_vl", 2, "has no plan to split a Qwen3VLForConditionalGeneration over processes ({})"),
    ],
)
def test_models_that_cannot_be_split_are_refused(tmp_path: Path, family: str, count: int, said: str) -> None:
    path = tmp_path / family
    save_tiny(family, path)
    for each in run_together(count, load, str(path), count):
        assert said.format(path) in each


def test_an_image_that_only_some_of_a_row_can_read_ends_the_work() -> None:
    for each in run_together(2, read_other_images):
        assert "b can be read by some of the processes that hold the MLLM together, and not by all" in each
