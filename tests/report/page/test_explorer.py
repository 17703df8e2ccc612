"""Which images a page shows, and which pictures of them."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from innervision.errors import InnerVisionError
from innervision.report.page.explorer import Ranking, choose_images, explorer, rank_images, shares
from innervision.report.page.study import read_study
from page_runs import CELLS, IMAGES, write_pictures, write_run

ROOM = 1_000_000


def test_images_are_chosen_best_worst_median_and_at_random_in_turn() -> None:
    ranking = Ranking("depth", "depth", "accuracy", {f"{number:03}": 1 - number / 100 for number in range(101)})
    assert choose_images(ranking, 3) == ["000", "050", "100"]
    four = choose_images(ranking, 4)
    assert set(four) > {"000", "050", "100"}
    twelve = choose_images(ranking, 12)
    assert set(twelve) > {*four, "001", "002", "049", "051", "099", "098"}
    assert twelve == sorted(twelve) == choose_images(ranking, 12)
    assert choose_images(ranking, 500) == [*ranking.scores]


def test_images_are_ranked_by_their_mean_over_the_decoder_layers(tmp_path: Path) -> None:
    run = read_study([write_run(tmp_path / "a", {-1: 0.1, 1: 0.5, 2: 0.7})]).runs[0].scored
    ranking = rank_images(run, "depth", "depth")
    assert ranking is not None
    assert ranking.key == "accuracy"
    assert [*ranking.scores] == IMAGES[::-1]  # the ease rises with the number
    assert ranking.scores[IMAGES[-1]] == pytest.approx(0.6 + 0.1)


def test_a_number_of_images_is_shared_out() -> None:
    assert shares(12, ["a", "b", "c"]) == {"a": 4, "b": 4, "c": 4}
    assert shares(4, ["a", "b", "c"]) == {"a": 2, "b": 1, "c": 1}


def decode(url: str) -> np.ndarray:
    kind, _, content = url.partition(",")
    assert kind == "data:image/webp;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("L"), dtype=int)


def test_a_page_shows_what_runs_have_kept_of_the_chosen_images(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "a", pictures=True), write_run(tmp_path / "b", dict.fromkeys(range(1, 5), 0.5))]
    [target] = explorer(read_study(runs, ["one", "two"]), 4, ROOM)
    assert [image["rank"] for image in target["images"]][::3] == [1, 12]
    best = target["images"][0]
    assert best["name"] == IMAGES[-1]
    assert [*best["runs"]] == [0]  # the other run has kept none
    assert best["runs"][0]["cells"] == CELLS
    assert best["runs"][0]["scores"]["3"] == pytest.approx(0.7 + 0.1)
    assert best["runs"][0]["scores"]["expert"] == 0.95
    sheet = decode(best["runs"][0]["sheet"])
    columns = best["runs"][0]["columns"]
    for number in range(len(CELLS)):
        row, column = 16 * (number // columns) + 8, 16 * (number % columns) + 8
        assert sheet[row, column] == pytest.approx(20 * number, abs=6)


def test_pictures_of_other_probes_or_images_and_broken_ones_are_not_shown(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    hashes = {name: f"{number:016x}" for number, name in enumerate(IMAGES)}
    write_pictures(run, "depth", hashes, probes="sha256:others")
    assert explorer(read_study([run]), 4, ROOM) == []
    album = run / "pictures/depth.json"
    content = json.loads(album.read_text()) | {"probes": "sha256:probes"}
    album.write_text(json.dumps(content))
    assert len(explorer(read_study([run]), 12, ROOM)[0]["images"]) == len(IMAGES)
    for name, change in (
        (IMAGES[0], {"hash": "../../secret"}),
        (IMAGES[1], {"hash": f"{5:016x}"}),
        (IMAGES[2], {"pairs": [["a", "b"]]}),
        (IMAGES[3], {"cells": "expert"}),
    ):
        content["images"][name] |= change
    album.write_text(json.dumps(content))
    (run / f"pictures/depth/{4:016x}.png").write_bytes(b"no picture")
    Image.new("L", (5000, 10)).save(run / f"pictures/depth/{5:016x}.png")
    [target] = explorer(read_study([run]), 12, ROOM)
    assert {image["name"] for image in target["images"]} == set(IMAGES[6:])
    album.write_text("no JSON")
    assert explorer(read_study([run]), 12, ROOM) == []


def test_pictures_are_made_smaller_until_they_fit_and_refused_if_they_do_not(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    noise = np.random.default_rng(0).integers(0, 256, (144, 144), dtype=np.uint8)
    hashes = {name: f"{number:016x}" for number, name in enumerate(IMAGES)}
    write_pictures(run, "depth", hashes)
    for hash in hashes.values():
        Image.fromarray(noise).save(run / f"pictures/depth/{hash}.png")
    study = read_study([run])
    whole = len(json.dumps(explorer(study, 4, ROOM)))
    small = explorer(study, 4, whole - 1)
    assert len(json.dumps(small)) < whole
    with pytest.raises(InnerVisionError, match="do not fit into the page: give fewer runs, or fewer images"):
        explorer(study, 4, 2000)
