"""What is learnt beside captions when experts are distilled into an MLLM."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tools.world.distill import LOSSES, DistillingLesson, EmbeddingLoss, expert_features, read_cells
from tools.world.training import Scenes, load_scenes
from torch.nn import functional as F

from innervision import MLLM, load_targets
from innervision.checkpoints.identity import MODELS
from innervision.errors import InnerVisionError
from innervision.mllm.places import PlaceFinder
from innervision.probes.ridge import Ridge

CELLS = {"depth": 64, "seg": 49, "gen": 1}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Scenes:
    return load_scenes(tmp_path_factory.mktemp("scenes"), "train", 12, progress=False)


def test_each_expert_has_a_layer_of_its_own() -> None:
    assert LOSSES.keys() == CELLS.keys()
    layers = [loss.layer for loss in LOSSES.values()]
    assert len(set(layers)) == 3
    assert all(1 <= layer < 8 for layer in layers)  # layer 8 is after the final norm


def test_features_are_the_experts_less_their_mean_in_units_of_their_spread(scenes: Scenes, tmp_path: Path) -> None:
    features = expert_features(MODELS, scenes, tmp_path, progress=False)
    for name, cells in CELLS.items():
        [target] = load_targets([f"{name}=world/{name}"], device="cpu")
        truth = target.encode([Image.fromarray(image) for image in scenes.images]).double()
        known = features[name].double()
        assert known.shape[:2] == (12, cells)
        spread = truth.var(0, correction=0).mean().sqrt()
        torch.testing.assert_close(known * spread, truth - truth.mean(0), atol=5e-3, rtol=5e-3)


def test_features_are_made_once(scenes: Scenes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = expert_features(MODELS, scenes, tmp_path, progress=False)
    monkeypatch.setattr("tools.world.distill.load_targets", lambda *_, **__: pytest.fail("they were made before"))
    again = expert_features(MODELS, scenes, tmp_path, progress=False)
    assert all(torch.equal(first[name], again[name]) for name in LOSSES)


def test_a_missing_expert_is_named(scenes: Scenes, tmp_path: Path) -> None:
    for name in ("depth", "seg"):
        (tmp_path / name).symlink_to(MODELS / name)
    with pytest.raises(InnerVisionError, match="lacks the expert gen, which is distilled: build it first"):
        expert_features(tmp_path, scenes, tmp_path, progress=False)


@pytest.mark.parametrize("cells", CELLS.values())
def test_heads_read_what_exact_probes_read(cells: int, scenes: Scenes) -> None:
    mllm = MLLM.load("world/untrained", device="cpu")
    inputs = mllm.prepare([Image.fromarray(image) for image in scenes.images[:2]], "Describe the image.")
    states: dict[int, torch.Tensor] = {}
    mllm.visit(inputs, lambda layer, shown, _: states.update({layer: shown}), [3])
    finder = PlaceFinder(mllm, lambda images: mllm.prepare(list(images), "Describe the image."))
    places = finder.find(inputs, [3])[0]
    first = int(inputs.image_mask[0].int().argmax())
    read = read_cells(states[3].float(), cells, slice(first, first + 64), states[3].shape[1])
    expected, seen = Ridge.read(states[3], inputs.mask, places, cells)
    assert seen.all()
    torch.testing.assert_close(read, expected, atol=0.02, rtol=0.02)


def test_the_loss_is_smooth_l1_at_each_layer_by_weight() -> None:
    torch.manual_seed(0)
    features = {"seg": torch.randn(5, 4, 3), "depth": torch.randn(5, 4, 2), "gen": torch.randn(5, 1, 6)}
    lesson = EmbeddingLoss(features, width=8)
    states = torch.randn(9, 2, 7, 8)  # layers, scenes, tokens; of these 1 to 4 are the image's, 0 to 5 the prompt's
    expected = 0.0
    for name, (layer, weight) in LOSSES.items():
        read = states[layer][:, 1:5] if name != "gen" else states[layer][:, :6].mean(1, keepdim=True)
        expected += weight * F.smooth_l1_loss(lesson.heads[name](read), features[name][[4, 1]])
    found = lesson(list(states), np.array([4, 1]), slice(1, 5), 6)
    torch.testing.assert_close(found, torch.as_tensor(expected))


def test_an_expert_that_is_left_out_costs_nothing_and_its_head_learns_nothing() -> None:
    features = {name: torch.randn(5, cells, 3) for name, cells in CELLS.items()}
    lesson = EmbeddingLoss(features, width=8)
    arguments = torch.randn(9, 2, 101, 8), np.array([4, 1]), slice(1, 101), 101
    apart = {name: lesson(*arguments, [name]) for name in LOSSES}
    without = lesson(*arguments, ["seg", "gen"])
    torch.testing.assert_close(without, apart["seg"] + apart["gen"])
    torch.testing.assert_close(lesson(*arguments), sum(apart.values()))
    without.backward()
    assert {name for name in LOSSES if lesson.heads[name].weight.grad is not None} == {"seg", "gen"}


def test_it_comes_beside_the_loss_of_captions() -> None:
    """Both from one pass; the image's tokens are found in the prompt."""
    calls: list[dict[str, Any]] = []

    def model(**inputs: Any) -> SimpleNamespace:
        calls.append(inputs)
        return SimpleNamespace(loss=torch.tensor(2.0), hidden_states="states")

    def embeddings(*arguments: Any) -> Any:
        assert arguments == ("states", "chosen", slice(2, 5), 6, ("gen",))
        return torch.tensor(0.5)

    drawn = SimpleNamespace(chosen="chosen", prompt=[1, 8, 9, 9, 9, 7], inputs={"input_ids": "ids"})
    captions: Any = SimpleNamespace(draw=lambda rng: drawn, model=model, processor=SimpleNamespace(image_token_id=9))
    lesson = DistillingLesson(captions, embeddings, ["gen"])
    assert lesson.loss(np.random.default_rng(0)) == 2.5
    assert calls == [{"input_ids": "ids", "use_cache": False, "output_hidden_states": True}]
