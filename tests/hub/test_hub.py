"""Runs go to the Hub and come back: a server on this machine stands in for it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from huggingface_hub import ModelCard, constants, snapshot_download
from safetensors.numpy import save_file

from hub_server import HubServer, Repository, serve_hub, stand_in_for_the_hub
from innervision.cli import main
from innervision.config import TrainSettings
from innervision.engine.run import RunFolder
from innervision.errors import InnerVisionError
from innervision.hub.fetch import FILES, HubRun, fetch, locate_own_run, locate_run, pull
from innervision.hub.push import push

IMAGES = [f"{name}.jpg" for name in "abcdef"]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    with serve_hub() as server:
        stand_in_for_the_hub(server, monkeypatch, tmp_path)
        yield server


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with the probes and scores of two targets, and what a training leaves."""
    settings = TrainSettings(mllm="some/mllm", images="/photos/train", out=str(tmp_path / "run"), targets="depth,seg")
    experts = {name: {"kind": name, "name": f"some/{name}", "revision": None} for name in ("depth", "seg")}
    folder = RunFolder(tmp_path / "run")
    folder.write_settings(settings, {"layers": [-1, 0, 1], "experts": experts, "images": {"found": 6}})
    rng = np.random.default_rng(0)
    folder.probes("depth").parent.mkdir()
    for name in experts:
        save_file({"weight": rng.normal(size=(20, 20))}, folder.probes(name))
    levels = {("probe", -1): 0.75, ("probe", 0): 0.5, ("probe", 1): 0.25, ("shuffled", -1): 0.125, ("mean", None): 0.0}
    table = [
        {"image": image, "target": target, "layer": layer, "source": source, "value": level + step}
        for target in experts
        for (source, layer), level in levels.items()
        for image, step in zip(IMAGES, (-0.02, -0.01, 0, 0, 0.01, 0.02), strict=True)
    ]
    scores = pd.DataFrame(table).assign(metric="centred_cosine", protocol="standard").astype({"layer": "Int64"})
    folder.scores.mkdir()
    scores.to_parquet(folder.scores / "similarity.parquet")
    (folder.scores / "similarity.json").write_text("{}")
    folder.write_bad_images({"x.jpg": "broken"})
    folder.log.write_text("{}\n")
    (tmp_path / "run/pictures/depth").mkdir(parents=True)
    for name in ("depth.json", "depth/0a.png", "depth/0a.webp"):
        (tmp_path / "run/pictures" / name).write_bytes(name.encode())
    folder.state.write_bytes(b"a pickle" * 1000)
    (folder.scores / ".depth").mkdir()
    (folder.scores / ".depth/plan.json").write_text("{}")
    return tmp_path / "run"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


FETCHED = {
    "run.yaml",
    "probes/depth.safetensors",
    "probes/seg.safetensors",
    "scores/similarity.parquet",
    "scores/similarity.json",
    "train/bad_images.json",
    "pictures/depth.json",
    "pictures/depth/0a.png",
    "pictures/depth/0a.webp",
}


# There and back


def test_a_run_comes_back_as_it_went_byte_for_byte(server: HubServer, run: Path, tmp_path: Path) -> None:
    assert main(["push", str(run), "me/run", "--license", "apache-2.0"]) == 0
    assert set(server.repositories["me/run"].files) == FETCHED | {
        *(".gitattributes", "README.md", "curves.png", "train/log.jsonl")
    }
    assert main(["pull", "me/run", "--out", str(tmp_path / "back")]) == 0
    before, back = contents(run), contents(tmp_path / "back")
    assert set(back) == FETCHED | {"origin.json"}
    assert all(back[name] == before[name] for name in FETCHED)


def test_a_run_that_is_pushed_again_replaces_what_was_there(server: HubServer, run: Path) -> None:
    push(run, "me/run", licence="mit")
    (run / "probes/seg.safetensors").unlink()
    content = yaml.safe_load((run / "run.yaml").read_text())
    del content["record"]["experts"]["seg"]
    (run / "run.yaml").write_text(yaml.safe_dump(content))
    push(run, "me/run", licence="mit")
    files = server.repositories["me/run"].files
    assert files["run.yaml"] == (run / "run.yaml").read_bytes()
    assert "probes/seg.safetensors" not in files
    assert "probes/depth.safetensors" in files


def test_the_card_says_what_was_measured_and_how_to_load_it(server: HubServer, run: Path) -> None:
    push(run, "me/run", licence="cc-by-4.0")
    files = server.repositories["me/run"].files
    card = ModelCard(files["README.md"].decode())
    assert card.data.to_dict() == {
        "license": "cc-by-4.0",
        "library_name": "innervision",
        "tags": ["innervision", "probing", "interpretability", "multimodal", "depth", "seg"],
        "base_model": "some/mllm",
    }
    assert "| depth | centred cosine | vision | 0.750 \\[0.7" in card.text
    assert "| shuffled 0.125 |" in card.text
    assert "innervision pull me/run" in card.text
    assert "![Scores by layer](curves.png)" in card.text
    assert files["curves.png"].startswith(b"\x89PNG")


def test_what_a_run_says_of_itself_stays_text_in_the_card(server: HubServer, run: Path) -> None:
    folder = RunFolder(run)
    settings = replace(folder.settings(), prompt="a | b <script>x</script> [c](d)\n# e")
    folder.write_settings(settings, folder.record())
    push(run, "me/run", licence="mit")
    text = ModelCard(server.repositories["me/run"].files["README.md"].decode()).text
    assert "| prompt | a \\| b &lt;script>x&lt;/script> \\[c](d) # e |" in text


def test_only_a_private_run_needs_the_token(
    server: HubServer, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(run, "me/open", licence="mit")
    push(run, "me/closed", licence="mit", private=True)
    fetch(HubRun("me/closed"))
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "another"))
    fetch(HubRun("me/open"))
    with pytest.raises(InnerVisionError, match=r"there is no hf:me/closed on the Hub, or it is private: .*log in"):
        fetch(HubRun("me/closed"))
    with pytest.raises(InnerVisionError, match=r"hf:me/new.*log in"):
        push(run, "me/new", licence="mit")


def test_an_upload_that_was_killed_sends_only_what_is_missing(server: HubServer, run: Path, tmp_path: Path) -> None:
    server.hang_after = 1
    environment = {
        **os.environ,
        **{"HF_ENDPOINT": server.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path)},
    }
    words = ["-m", "innervision", "push", str(run), "me/run", "--license", "mit"]
    with subprocess.Popen([sys.executable, *words], env=environment, stderr=subprocess.DEVNULL) as process:
        assert server.hanging.wait(120)
        process.kill()
    [arrived] = server.uploaded
    assert set(server.repositories["me/run"].files) == {".gitattributes"}
    server.hang_after = 10**9
    server.released.set()
    push(run, "me/run", licence="mit")
    assert server.uploaded.count(arrived) == 1
    assert set(server.repositories["me/run"].files) > FETCHED


@pytest.mark.parametrize("name", ["probes/depth.safetensors", "run.yaml"])
def test_a_file_that_was_altered_on_its_way_is_noticed_and_not_kept(
    name: str, server: HubServer, run: Path, tmp_path: Path
) -> None:
    push(run, "me/run", licence="mit")
    own = server.repositories["me/run"].files[name]
    server.altered[name] = own[:-2] + b"?" + own[-1:]  # of the same size, which huggingface_hub compares
    for _ in range(2):
        with pytest.raises(InnerVisionError, match=f"hf:me/run was altered on its way: {name}"):
            pull(HubRun("me/run"), tmp_path / "back")
    assert not (tmp_path / "back").exists()
    server.altered.clear()
    pull(HubRun("me/run"), tmp_path / "back")
    assert (tmp_path / "back" / name).read_bytes() == own


def test_without_network_the_cache_is_taken(server: HubServer, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    push(run, "me/run", licence="mit")
    folder = locate_run("hf:me/run")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert locate_run("hf:me/run") == folder
    with pytest.raises(InnerVisionError, match="hf:me/other is not in the cache, and the Hub cannot be reached"):
        locate_run("hf:me/other")
    with pytest.raises(InnerVisionError, match="cannot be reached"):
        push(run, "me/run", licence="mit")


def test_where_the_hub_is_gone_the_cache_is_taken(
    server: HubServer, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(run, "me/run", licence="mit")
    folder = locate_run("hf:me/run")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert locate_run("hf:me/run") == folder


# What is named


def test_a_revision_is_fetched_by_name(server: HubServer, run: Path) -> None:
    push(run, "me/run", licence="mit")
    first = server.repositories["me/run"].find("main")
    (run / "train/bad_images.json").write_text("{}")
    push(run, "me/run", licence="mit")
    assert (locate_run(f"hf:me/run@{first}") / "train/bad_images.json").read_text() != "{}"
    assert (locate_run("hf:me/run") / "train/bad_images.json").read_text() == "{}"
    with pytest.raises(InnerVisionError, match="me/run has no revision 'v9'"):
        locate_run("hf:me/run@v9")


@pytest.mark.parametrize("name", ["hf:run", "hf:me/run/x", "hf:", "hf:me/run@", "hf:../run", "hf:me/ru n"])
def test_what_is_no_repository_is_refused_before_anything_is_asked(name: str) -> None:
    with pytest.raises(InnerVisionError, match=r"is no repository on the Hub|is incomplete"):
        locate_run(name)


def test_a_repository_that_holds_something_else_is_left_alone(server: HubServer, run: Path, tmp_path: Path) -> None:
    model = server.repositories["me/model"] = Repository()
    model.commit({"config.json": b"{}", "README.md": b"mine"})
    with pytest.raises(InnerVisionError, match=r"holds something that is no run, such as config\.json"):
        push(run, "me/model", licence="mit")
    assert model.files == {"config.json": b"{}", "README.md": b"mine"}
    with pytest.raises(InnerVisionError, match="hf:me/model holds no run"):
        pull(HubRun("me/model"), tmp_path / "back")


def test_a_run_that_is_not_trained_is_not_pushed(server: HubServer, run: Path) -> None:
    (run / "probes/seg.safetensors").unlink()
    with pytest.raises(InnerVisionError, match="not trained yet: there are no probes for seg"):
        push(run, "me/run", licence="mit")
    assert not server.repositories


def test_nothing_is_overwritten(server: HubServer, run: Path) -> None:
    push(run, "me/run", licence="mit")
    before = contents(run)
    with pytest.raises(InnerVisionError, match="exists already"):
        pull(HubRun("me/run"), run)
    assert contents(run) == before


# Data of a stranger


def test_files_that_are_none_of_a_run_are_not_fetched(server: HubServer, run: Path, tmp_path: Path) -> None:
    push(run, "me/run", licence="mit")
    names = ("probes/depth.pt", "train/state.pt", "x.py", "probes/a/b.safetensors", "scores/.seg/000.parquet")
    names += ("pictures/a/b/c.png", "pictures/a/b.html", "figures/a/b.png", "train/a/b.json")
    bad = dict.fromkeys(names, b"bad" * 1000)
    repository = server.repositories["me/run"]
    repository.commit({**repository.files, **bad})
    pull(HubRun("me/run"), tmp_path / "back")
    assert set(contents(tmp_path / "back")) == FETCHED | {"origin.json"}
    assert not [name for name in contents(locate_run("hf:me/run")) if name in bad]


@pytest.mark.parametrize(
    "change", [{"mllm": "/models/mine"}, {"mllm": "../mine"}, {"targets": "depth=/models/mine"}, {"mllm": "here/mine"}]
)
def test_a_pulled_run_loads_no_model_by_a_path_until_its_owner_names_one(
    change: dict[str, str], server: HubServer, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(run)
    folder.write_settings(replace(folder.settings(), **change), folder.record())
    push(run, "me/run", licence="mit")
    back = RunFolder(pull(HubRun("me/run"), tmp_path / "back"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here/mine").mkdir(parents=True)
    assert folder.trained_settings()  # whoever made it may
    with pytest.raises(InnerVisionError, match=r"comes from the Hub, and its (mllm|depth), .*mine, is a path"):
        back.trained_settings()
    back.yaml.write_text(back.yaml.read_text() + "\n")
    assert back.trained_settings()


def test_models_of_the_hub_and_of_the_package_are_named_before_they_are_loaded(
    server: HubServer, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    push(run, "me/run", licence="mit")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "none").mkdir()
    assert main(["evaluate", "similarity", "hf:me/run", "--images", str(tmp_path / "none")]) == 1
    said = capsys.readouterr().err
    assert "runs/run/run.yaml names the models: some/mllm and the experts depth,seg" in said
    assert "hf:me/run is pulled to runs/run, where its new scores go" in said


def test_scores_go_to_a_folder_of_ones_own(
    server: HubServer, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(run, "me/run", licence="mit")
    push(run, "you/run", licence="mit")
    monkeypatch.chdir(tmp_path)
    assert locate_own_run("hf:me/run") == locate_own_run("hf:me/run") == Path("runs/run")
    with pytest.raises(InnerVisionError, match="runs/run is not hf:you/run"):
        locate_own_run("hf:you/run")
    assert locate_own_run("some/folder") == Path("some/folder")


def test_a_file_of_origin_that_a_stranger_wrote_counts_for_nothing(
    server: HubServer, run: Path, tmp_path: Path
) -> None:
    folder = RunFolder(run)
    folder.write_settings(replace(folder.settings(), mllm="/models/mine"), folder.record())
    push(run, "me/run", licence="mit")
    repository = server.repositories["me/run"]
    repository.commit({**repository.files, "origin.json": b'{"repository": "x", "commit": "y", "run.yaml": "z"}'})
    snapshot_download("me/run")  # all of it, by another tool
    for place in (locate_run("hf:me/run"), pull(HubRun("me/run"), tmp_path / "back")):
        with pytest.raises(InnerVisionError, match="comes from the Hub, and its mllm, /models/mine, is a path"):
            RunFolder(place).trained_settings()


def test_runs_of_the_hub_are_drawn_and_compared_by_name(
    server: HubServer, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    push(run, "me/run", licence="mit")
    assert main(["plot", "hf:me/run", "--out", str(tmp_path / "a.png")]) == 0
    assert main(["compare", "hf:me/run", str(run)]) == 0
    assert "0.000 [0.000, 0.000]" in capsys.readouterr().out
    assert main(["show", "hf:me/run"]) == 0
    shown = capsys.readouterr().out
    assert [line.split()[0] for line in shown.splitlines()[:2]] == ["run", "hf:me/run"]
    assert "--- hf:me/run: similarity ---" in shown


def test_no_kind_of_file_that_is_fetched_can_hold_code() -> None:
    assert {Path(pattern).suffix for pattern in FILES} == {
        ".yaml",
        ".safetensors",
        ".parquet",
        ".json",
        ".png",
        ".webp",
    }
