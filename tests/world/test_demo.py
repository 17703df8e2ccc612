import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from innervision.config import EvaluateSettings
from innervision.evaluate import evaluate_similarity
from innervision.identity import fingerprint
from innervision.mllm import MLLM
from innervision.report.tables import read_scores
from innervision.run import RunFolder
from innervision.targets import load_targets
from innervision.world.demo import demonstrate
from innervision.world.random_models import SIZE, save_models


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "out"
    demonstrate(out, train=8, val=4, epochs=1, progress=False)
    return out


def files_of(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_image_text_model_loads_as_any_other(models: dict[str, Path]) -> None:
    mllm = MLLM.load(str(models["llava"]), device="cpu")
    assert mllm.num_layers == 8
    assert mllm.has_vision_layer()
    inputs = mllm.prepare([Image.new("RGB", (SIZE, SIZE), color) for color in ("red", "blue")], "What is it?")
    states: dict[int, torch.Tensor] = {}
    mllm.visit(inputs, lambda layer, state, mask: states.update({layer: state}), range(-1, 9))
    assert states[-1].shape == (2, 64, 64)
    assert all(not torch.allclose(state[0], state[1], atol=0.01) for state in states.values())


def test_chat_template_puts_the_image_before_the_prompt(models: dict[str, Path]) -> None:
    mllm = MLLM.load(str(models["llava"]), device="cpu")
    inputs = mllm.prepare([Image.new("RGB", (SIZE, SIZE))], "What is it?")
    text = mllm.builder.processor.decode(inputs.tensors["input_ids"][0])
    assert text.replace("<image>" * 64, "[64]") == "<s>USER: [64]\nWhat is it? ASSISTANT:"


def test_experts_load_as_any_others(models: dict[str, Path]) -> None:
    targets = load_targets([f"{name}={models[name]}" for name in ("depth", "seg", "gen")], device="cpu")
    shapes = {target.name: (target.num_tokens, target.width) for target in targets}
    assert shapes == {"depth": (64, 32), "seg": (16, 32), "gen": (1, 32)}


def test_a_seed_gives_the_same_models_and_leaves_the_random_state(models: dict[str, Path], tmp_path: Path) -> None:
    before = torch.get_rng_state()
    again, other = save_models(tmp_path / "again"), save_models(tmp_path / "other", seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    for name, folder in models.items():
        assert fingerprint(again[name]) == fingerprint(folder)
        assert fingerprint(other[name]) != fingerprint(folder)


def test_an_unfinished_model_is_saved_anew(tmp_path: Path) -> None:
    (tmp_path / ".gen").mkdir()
    (tmp_path / ".gen" / "half").touch()
    folder = save_models(tmp_path)["gen"]
    assert sorted(path.name for path in folder.iterdir()) == ["feature_extractor", "image_encoder"]
    assert not (tmp_path / ".gen").exists()


def test_demo_ends_with_a_figure_and_scores_of_both_probes(demo: Path) -> None:
    assert Image.open(demo / "curves.png").width > 1000
    assert (demo / "curves.pdf").read_bytes().startswith(b"%PDF")
    for name, positions in (("resampler", False), ("positions", True)):
        run = demo / "runs" / name
        assert RunFolder(run).settings().probe.positions is positions
        scores = read_scores(run)
        assert set(scores["target"]) == {"depth", "seg", "gen"}
        assert set(scores["image"]) == {path.name for path in (demo / "scenes" / "val2017").iterdir()}
        assert sorted(scores["layer"].dropna().unique()) == list(range(-1, 9))


def test_demo_begins_with_the_notice_and_leaves_finished_work_alone(
    demo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files_of(demo)
    demonstrate(demo, train=8, val=4, epochs=1, progress=False)
    printed = capsys.readouterr().out
    assert "random weights" in printed.split("\n\n")[0]
    assert "--- resampler ---" in printed
    assert "--- positions ---" in printed
    assert str(demo / "curves.png") in printed
    after = files_of(demo)
    assert {name for name in after if after[name] != before.get(name)} == {"curves.png", "curves.pdf"}
    assert after.keys() == before.keys()


def test_settings_of_a_demo_run_are_all_it_takes_to_score_it_again(demo: Path) -> None:
    run = demo / "runs" / "positions"
    scores = read_scores(run)
    evaluate_similarity(
        run,
        EvaluateSettings(images=str(demo / "scenes" / "val2017"), batch_size=4, workers=0, device="cpu"),
        overwrite=True,
        progress=False,
    )
    assert json.loads((run / "scores" / "similarity.json").read_text())["plan"]["batch_size"] == 4
    again = read_scores(run)
    probe = [table[table["source"] == "probe"]["value"].to_numpy() for table in (scores, again)]
    assert probe[0] == pytest.approx(probe[1], abs=1e-5)
