"""Models in the original LLaVA layout, compared with what the original code computed."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from innervision.errors import InnerVisionError
from innervision.mllm import MLLM
from innervision.mllm.original import (
    IMAGE_TOKEN,
    TEMPLATES,
    OriginalProcessor,
    Tokenizer,
    default_template,
    pad_to_square,
)

PROMPT = "Describe the image in two lines."


@pytest.fixture(scope="module")
def checkpoints(shared: Path) -> Path:
    return shared / "golden/probe_ckpt"


@pytest.fixture(scope="module")
def image(checkpoints: Path) -> Image.Image:
    return Image.open(checkpoints / "image0.png").convert("RGB")


@pytest.fixture
def base(checkpoints: Path, tmp_path: Path) -> Path:
    """A copy of the tiny base model that a test may change."""
    shutil.copytree(checkpoints / "tiny-clip-vit", tmp_path / "tiny-clip-vit")
    return Path(shutil.copytree(checkpoints / "base-tiny-llava-llama3", tmp_path / "llava"))


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.chmod(0o644)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_weights(folder: Path, weights: dict[str, Tensor]) -> None:
    path = folder / "model.safetensors"
    path.chmod(0o644)
    save_file(weights, path, metadata={"format": "pt"})


def states(mllm: MLLM, images: list[Image.Image]) -> dict[int, Tensor]:
    seen: dict[int, Tensor] = {}
    mllm.visit(mllm.prepare(images, PROMPT), lambda layer, states, mask: seen.update({layer: states}))
    return seen


@pytest.mark.parametrize("mode", ["depth", "seg"])
def test_pixels_ids_and_all_hidden_states_agree_with_the_original(
    mode: str, checkpoints: Path, image: Image.Image
) -> None:
    golden = load_file(checkpoints / f"{mode}_eval_image0_fp32.safetensors")
    mllm = MLLM.load(str(checkpoints / f"probe_{mode}_tiny-llava-llama3"), dtype=torch.float16, device="cpu")
    mllm.model.float()
    inputs = mllm.prepare([image], PROMPT)
    assert torch.equal(inputs.tensors["pixel_values"], golden["image_tensor"])
    ids = inputs.tensors["input_ids"][0]
    first = ids.tolist().index(IMAGE_TOKEN)
    assert torch.equal(torch.cat([ids[: first + 1], ids[first + 16 :]]), golden["input_ids"][0])
    for layer, found in states(mllm, [image]).items():
        torch.testing.assert_close(found, golden[f"hidden_states.{layer}"], atol=1e-4, rtol=0)


def test_an_image_has_the_same_states_in_a_batch_of_others(checkpoints: Path, image: Image.Image) -> None:
    mllm = MLLM.load(str(checkpoints / "base-tiny-llava-llama3"), device="cpu")
    other = Image.open(checkpoints / "image1.png").convert("RGB").resize((40, 90))
    together = states(mllm, [other, image])
    for layer, alone in states(mllm, [image]).items():
        torch.testing.assert_close(together[layer][1:], alone, atol=1e-5, rtol=0)
        assert not torch.equal(together[layer][0], together[layer][1])


def test_the_vision_layer_is_what_the_projector_receives(checkpoints: Path, image: Image.Image) -> None:
    golden = load_file(checkpoints / "depth_eval_image0_fp32.safetensors")
    folder = checkpoints / "probe_depth_tiny-llava-llama3"
    mllm = MLLM.load(str(folder), dtype=torch.float16, device="cpu")
    mllm.model.float()
    seen: list[Tensor] = []
    mllm.visit(mllm.prepare([image], PROMPT), lambda layer, states, mask: seen.append(states), [-1])
    weights = {key: value.half().float() for key, value in load_file(folder / "model.safetensors").items()}
    hidden = torch.nn.functional.linear(
        seen[0], weights["model.mm_projector.0.weight"], weights["model.mm_projector.0.bias"]
    )
    projected = torch.nn.functional.linear(
        torch.nn.functional.gelu(hidden), weights["model.mm_projector.2.weight"], weights["model.mm_projector.2.bias"]
    )
    start = golden["input_ids"][0].tolist().index(IMAGE_TOKEN)
    torch.testing.assert_close(projected, golden["inputs_embeds"][:, start : start + 16], atol=1e-4, rtol=0)


def test_prompts_are_those_of_the_original(shared: Path) -> None:
    prompts = json.loads((shared / "golden/misc/prompts.json").read_text())
    assert set(prompts["conv_template_names"]) == set(TEMPLATES)
    checked = 0
    for name, expected in prompts["prompts"].items():
        if name == "train_preprocess_multimodal":
            continue
        kind, template, *prompt = name.split("|")
        processor = OriginalProcessor(None, None, template, 1, 0, True)  # type: ignore[arg-type]
        reply = "n" if kind == "train" else None
        assert processor.text(prompt[0] if prompt else PROMPT, reply) == expected
        checked += 1
    assert checked == 9


def test_training_ids_with_the_reply_are_those_of_the_original(shared: Path, checkpoints: Path) -> None:
    expected = json.loads((shared / "golden/misc/prompts.json").read_text())["train_ids_with_tiny_tokenizer"]
    tokenizer = Tokenizer.load(str(checkpoints / "base-tiny-llava-llama3"), None, None)  # type: ignore[arg-type]
    for template in ("llava_llama_3", "llava_phi_3"):
        processor = OriginalProcessor(tokenizer, None, template, 1, 0, True)
        assert processor.token_ids(PROMPT, "n") == expected[template]["input_ids"]


@pytest.mark.parametrize(
    ("config", "template"),
    [
        ({"model_type": "llava_llama", "vocab_size": 32_000, "rope_theta": 10_000.0}, "v1"),
        ({"model_type": "llava", "vocab_size": 32_000}, "v1"),
        ({"model_type": "ola_llama", "vocab_size": 128_256}, "llava_llama_3"),
        ({"model_type": "llava_llama", "vocab_size": 320, "rope_theta": 500_000.0}, "llava_llama_3"),
        ({"model_type": "llava_phi3", "vocab_size": 32_064}, "llava_phi_3"),
    ],
)
def test_the_template_is_that_of_the_language_model(config: dict[str, object], template: str) -> None:
    assert default_template(config) == template


def test_a_template_can_be_chosen_and_must_exist(checkpoints: Path, image: Image.Image) -> None:
    folder = str(checkpoints / "base-tiny-llava-llama3")
    lengths = {
        template: MLLM.load(folder, device="cpu", template=template).prepare([image], PROMPT).mask.shape[1]
        for template in ("v1", "llava_llama_3", "llava_phi_3")
    }
    assert len(set(lengths.values())) == 3
    with pytest.raises(InnerVisionError, match="no template 'v2'; known are v1, llava_llama_3"):
        MLLM.load(folder, device="cpu", template="v2")


def test_padding_puts_the_image_in_the_middle_of_its_mean_colour() -> None:
    image = Image.new("RGB", (4, 2), (255, 0, 0))
    square = pad_to_square(image, [0.48145466, 0.4578275, 0.40821073])
    assert square.size == (4, 4)
    assert square.getpixel((0, 0)) == (122, 116, 104)
    assert [square.getpixel((1, y))[0] for y in range(4)] == [122, 255, 255, 122]
    assert pad_to_square(square, [0, 0, 0]).tobytes() == square.tobytes()


def test_an_image_that_shall_not_be_padded_is_cropped_by_the_towers_processor(base: Path) -> None:
    wide = Image.effect_noise((112, 56), 90).convert("RGB")
    padded = MLLM.load(str(base), device="cpu").prepare([wide], PROMPT).tensors["pixel_values"]
    change_config(base, image_aspect_ratio=None)
    cropped = MLLM.load(str(base), device="cpu").prepare([wide], PROMPT).tensors["pixel_values"]
    middle = wide.crop((28, 0, 84, 56))
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    pixels = torch.from_numpy(np.array(middle)) / 255
    torch.testing.assert_close(cropped[0], ((pixels - mean) / std).permute(2, 0, 1), atol=1e-5, rtol=0)
    assert not torch.allclose(padded, cropped)


def test_a_tower_that_the_checkpoint_lacks_is_read_from_where_it_lies(base: Path, image: Image.Image) -> None:
    weights = load_file(base / "model.safetensors")
    tower = {
        key.removeprefix("model.vision_tower.vision_tower."): value
        for key, value in weights.items()
        if "vision_tower" in key
    }
    expected = states(MLLM.load(str(base), device="cpu"), [image])
    change_weights(base, {key: value for key, value in weights.items() if "vision_tower" not in key})
    change_weights(base.parent / "tiny-clip-vit", tower)
    found = states(MLLM.load(str(base), device="cpu"), [image])
    assert all(torch.equal(found[layer], expected[layer]) for layer in expected)


def test_weights_in_pytorch_shards_load_too(base: Path, image: Image.Image) -> None:
    weights = load_file(base / "model.safetensors")
    expected = states(MLLM.load(str(base), device="cpu"), [image])
    (base / "model.safetensors").unlink()
    files = {key: f"pytorch_model-0000{1 + number % 2}-of-00002.bin" for number, key in enumerate(weights)}
    for file in set(files.values()):
        torch.save({key: weights[key] for key in weights if files[key] == file}, base / file)
    index = {"metadata": {}, "weight_map": files}
    (base / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    found = states(MLLM.load(str(base), device="cpu"), [image])
    assert all(torch.equal(found[layer], expected[layer]) for layer in expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mm_vision_tower": "gone/clip-vit"}, r"needs the vision tower 'gone/clip-vit' \(mm_vision_tower\)"),
        ({"mm_projector_type": "linear"}, "mm_projector_type='linear'; known is 'mlp2x_gelu'"),
        ({"image_aspect_ratio": "anyres"}, "image_aspect_ratio='anyres'"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end=True"),
        ({"model_type": "llava_mpt"}, "'llava_mpt' model; of the original layout Llama, Vicuna and Phi-3 are known"),
    ],
)
def test_what_is_not_known_is_named(change: dict[str, object], message: str, base: Path) -> None:
    change_config(base, **change)
    with pytest.raises(InnerVisionError, match=message):
        MLLM.load(str(base), device="cpu")


def test_missing_extra_and_misshapen_weights_are_named(base: Path) -> None:
    weights = load_file(base / "model.safetensors")
    change_weights(base, {key: value for key, value in weights.items() if "layers.1.mlp.up_proj" not in key})
    with pytest.raises(InnerVisionError, match=r"lacks 1 weights, among them .*layers\.1\.mlp\.up_proj"):
        MLLM.load(str(base), device="cpu")
    change_weights(base, weights | {"model.layers.7.mlp.weight": torch.zeros(1)})
    with pytest.raises(InnerVisionError, match=r"1 unknown tensors, among them .*layers\.7\.mlp\.weight"):
        MLLM.load(str(base), device="cpu")
    change_weights(base, weights | {"model.norm.weight": torch.zeros(31)})
    with pytest.raises(InnerVisionError, match=r"language_model\.norm\.weight as \(31,\), which must be \(32,\)"):
        MLLM.load(str(base), device="cpu")


def test_controls_with_random_weights(base: Path, image: Image.Image) -> None:
    trained = states(MLLM.load(str(base), device="cpu"), [image])
    llm = states(MLLM.load(str(base), device="cpu", random_weights=True, seed=3), [image])
    again = states(MLLM.load(str(base), device="cpu", random_weights=True, seed=3), [image])
    whole = states(MLLM.load(str(base), device="cpu", random_weights="all", seed=3), [image])
    mask = (MLLM.load(str(base), device="cpu").prepare([image], PROMPT).tensors["input_ids"] == IMAGE_TOKEN)[0]
    assert torch.equal(llm[0][0, mask], trained[0][0, mask])  # the tower and the projector are kept
    assert not torch.allclose(llm[0][0, ~mask], trained[0][0, ~mask])
    assert torch.equal(llm[3], again[3])
    assert not torch.allclose(whole[0][0, mask], trained[0][0, mask])
