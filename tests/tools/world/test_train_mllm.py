"""How the world's MLLMs are grown, and that those of the package can be used."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image
from safetensors.torch import load_file
from tools.world.build import PARTS
from tools.world.lessons import CaptionLesson, PatchLesson, ask, pack, pixels
from tools.world.train_mllm import make_model, make_processor, train
from tools.world.training import Scenes, load_scenes

from innervision import MLLM
from innervision.checkpoints.identity import MODELS as SHIPPED
from innervision.world.scenes import CATEGORIES, COLOURS, TEXTURES, VOCABULARY, render
from tools.world import train_mllm

HELD_OUT = [render(0, 500_000_001 + i) for i in range(4)]
MODELS = PARTS["mllm"].models


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Scenes:
    return load_scenes(tmp_path_factory.mktemp("scenes"), "train", 24, progress=False)


@pytest.fixture(scope="module")
def processor() -> Any:
    return make_processor()


# --- growing ------------------------------------------------------------------------------------------------


def test_every_word_of_a_caption_is_one_token(processor: Any) -> None:
    for word in VOCABULARY:
        assert len(processor.tokenizer.tokenize(word if len(word) == 1 else f" {word}")) == 1
    caption = HELD_OUT[0].captions[0]
    words = caption.replace(",", " ,").replace(";", " ;").replace(".", " .").split()
    assert len(processor.tokenizer.tokenize(f" {caption}")) == len(words)


def test_captions_side_by_side_cost_what_they_cost_alone(scenes: Scenes, processor: Any) -> None:
    torch.manual_seed(0)
    model = make_model(processor).eval()
    lesson = CaptionLesson(model, scenes, processor)
    prompt, answers = lesson.prompts[0], lesson.answers[0][:3]
    picture = pixels(scenes.images[:2], processor)
    with torch.no_grad():
        # The second row is shorter, so it is padded.
        packed = pack(prompt, [answers, answers[:1]])
        together = model(**packed, pixel_values=picture).logits[0]
        start = len(prompt)
        for tokens in answers:
            alone = model(input_ids=torch.tensor([[*prompt, *tokens]]), pixel_values=picture[:1]).logits[0]
            torch.testing.assert_close(
                together[start : start + len(tokens)], alone[len(prompt) :], atol=1e-4, rtol=1e-4
            )
            start += len(tokens)
    labels = packed["labels"]
    assert (labels[1] != -100).sum() == len(answers[0])
    assert (labels[0] != -100).sum() == sum(map(len, answers)) - 2  # the later ones' first tokens
    assert labels[1, len(prompt) : len(prompt) + len(answers[0])].tolist() == answers[0]


def test_pixels_are_the_processors(scenes: Scenes, processor: Any) -> None:
    inputs = processor(
        images=[Image.fromarray(scenes.images[3])], text=ask(processor, "What is it?"), return_tensors="pt"
    )
    torch.testing.assert_close(inputs["pixel_values"], pixels(scenes.images[3:4], processor))


def test_labels_say_what_is_at_the_points_of_a_patch(scenes: Scenes, processor: Any) -> None:
    lesson = PatchLesson(torch.nn.Identity(), scenes, processor)
    labels = lesson.labels(np.array([4, 7]))
    assert labels.shape == (2, 3, 16, 16)
    scene = render(0, scenes.first + 7)
    owners = {item.segment_id: item for item in scene.objects}
    things = 0
    for row in range(16):
        for column in range(16):
            identity = scene.panoptic[3 + 7 * row, 3 + 7 * column]
            segment = next(segment for segment in scene.segments if segment.id == identity)
            category, colour, texture = labels[1, :, row, column].tolist()
            assert CATEGORIES[category]["id"] == segment.category_id
            if identity in owners:
                things += 1
                assert list(COLOURS)[colour - 1] == owners[identity].colour
                assert TEXTURES[texture - 1] == owners[identity].texture
            else:
                assert (colour, texture) == (0, 0)
    assert things


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Give a folder of experts, for lessons of two scenes a step."""
    for lesson in (PatchLesson, CaptionLesson):
        monkeypatch.setattr(lesson, "BATCH", 2)
    for expert in ("depth", "seg", "gen"):
        (tmp_path / expert).symlink_to(SHIPPED / expert)
    return tmp_path


def test_a_stopped_training_goes_on_to_the_same_models(
    scenes: Scenes, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where what the heads of the embedding losses have learnt must be had again."""
    whole, parts = small / "whole", small / "parts"
    whole.mkdir()
    parts.mkdir()
    train(whole, scenes, 3, effort=0, progress=False)
    optimize = train_mllm.optimize
    labels: list[str] = []

    def stop_once(*args: Any, label: str, **options: Any) -> None:
        labels.append(label)
        if label in ("projector", "distilled-everything") and labels.count(label) == 1:
            raise KeyboardInterrupt
        optimize(*args, label=label, **options)

    monkeypatch.setattr(train_mllm, "optimize", stop_once)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train(parts, scenes, 3, effort=0, progress=False)
    train(parts, scenes, 3, effort=0, progress=False)
    assert labels == [
        *("tower", "language", "projector", "projector", "tuned-captions", "tuned-everything"),
        *("distilled-captions", "distilled-everything", "distilled-everything"),
    ]
    weights = {name: [load_file(out / name / "model.safetensors") for out in (whole, parts)] for name in MODELS}
    for one, other in weights.values():
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    untrained, early, tuned, distilled = (one for one, _ in weights.values())
    assert untrained.keys() == distilled.keys()  # no heads
    tower = "model.vision_tower." if any(key.startswith("model.") for key in tuned) else "vision_tower."
    assert any(not torch.equal(untrained[key], early[key]) for key in tuned if "language_model" in key)
    assert any(not torch.equal(early[key], tuned[key]) for key in tuned if key.startswith(tower))
    assert any(not torch.equal(tuned[key], distilled[key]) for key in tuned if "language_model" in key)


def test_a_tower_may_be_anothers(scenes: Scenes, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (small / "out").mkdir()
    monkeypatch.setattr(train_mllm, "optimize", lambda *args, **options: None)
    train(small / "out", scenes, 7, effort=0, progress=False, tower=SHIPPED / "untrained/model.safetensors")
    shipped, grown = (load_file(models / "untrained/model.safetensors") for models in (SHIPPED, small / "out"))
    for key, weight in shipped.items():
        assert torch.equal(weight, grown[key]) == ("vision_tower" in key or "norm" in key or "bias" in key), key


# --- the models of the package ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_they_load_by_name_and_have_a_vision_stage_and_eight_layers(name: str) -> None:
    mllm = MLLM.load(f"world/{name}", device="cpu")
    assert isinstance(mllm.model, hf.LlavaForConditionalGeneration)
    assert (mllm.num_layers, mllm.has_vision_layer()) == (8, True)
    inputs = mllm.prepare([Image.fromarray(scene.image) for scene in HELD_OUT[:2]], "Describe the image.")
    shapes: dict[int, tuple[int, ...]] = {}
    mllm.visit(inputs, lambda layer, states, _: shapes.update({layer: tuple(states.shape)}), list(range(-1, 9)))
    length = inputs.mask.shape[1]
    assert shapes == {-1: (2, 64, 96)} | dict.fromkeys(range(9), (2, length, 96))
    assert inputs.image_mask.sum(1).tolist() == [64, 64]


def test_padding_on_the_left_does_not_change_a_caption() -> None:
    mllm = MLLM.load("world/tuned", device="cpu")
    model, processor = mllm.model, mllm.builder.processor
    images = [Image.fromarray(scene.image) for scene in HELD_OUT]
    texts = [ask(processor, "Describe the image." + " Please." * repeats) for repeats in (0, 3, 1, 0)]
    together = processor(images=images, text=texts, padding=True, return_tensors="pt")
    assert together["attention_mask"][0, 0] == 0
    answers = model.generate(**together, do_sample=False)
    for i in (0, 3):
        alone = processor(images=images[i], text=texts[i], return_tensors="pt")
        expected = processor.decode(model.generate(**alone, do_sample=False)[0], skip_special_tokens=True)
        assert processor.decode(answers[i], skip_special_tokens=True) == expected
