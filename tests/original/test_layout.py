"""Models in the original LLaVA layout, compared with what the original code computed."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TimmWrapperModel

from innervision.errors import InnerVisionError
from innervision.mllm import MLLM
from innervision.original.conversation import IMAGE_TOKEN
from innervision.original.layout import Original, convnext_config

PROMPT = "Describe the image in two lines."


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


def test_a_template_can_be_chosen_and_must_exist(checkpoints: Path, image: Image.Image) -> None:
    folder = str(checkpoints / "base-tiny-llava-llama3")
    lengths = {
        template: MLLM.load(folder, device="cpu", template=template).prepare([image], PROMPT).mask.shape[1]
        for template in ("v1", "llava_llama_3", "llava_phi_3")
    }
    assert len(set(lengths.values())) == 3
    with pytest.raises(InnerVisionError, match="no template 'v2'; known are v1, llava_llama_3"):
        MLLM.load(folder, device="cpu", template="v2")


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
    llm = states(MLLM.load(str(base), device="cpu", random_weights="llm", seed=3), [image])
    again = states(MLLM.load(str(base), device="cpu", random_weights="llm", seed=3), [image])
    whole = states(MLLM.load(str(base), device="cpu", random_weights="all", seed=3), [image])
    mask = (MLLM.load(str(base), device="cpu").prepare([image], PROMPT).tensors["input_ids"] == IMAGE_TOKEN)[0]
    assert torch.equal(llm[0][0, mask], trained[0][0, mask])  # the tower and the projector are kept
    assert not torch.allclose(llm[0][0, ~mask], trained[0][0, ~mask])
    assert torch.equal(llm[3], again[3])
    assert not torch.allclose(whole[0][0, mask], trained[0][0, mask])


TOWER = "laion/CLIP-convnext_xxlarge-laion2B-s34B-b82K-augreg-soup"


@pytest.fixture
def convnext(base: Path, shared: Path) -> Path:
    """The tiny base model with the golden ConvNeXT tower in place of its CLIP ViT, for images of 96 pixels."""
    weights = {key: value for key, value in load_file(base / "model.safetensors").items() if "model.mm_p" not in key}
    weights = {key: value for key, value in weights.items() if "vision_tower" not in key}
    for key, value in load_file(shared / "golden/misc/convnext_tower.safetensors").items():
        if key.startswith("param."):
            weights[f"model.vision_tower.{key.removeprefix('param.')}"] = value
    generator = torch.Generator().manual_seed(0)
    for name in ("0", "2"):
        weights[f"model.mm_projector.{name}.weight"] = torch.randn(32, 32, generator=generator) / 6
        weights[f"model.mm_projector.{name}.bias"] = torch.randn(32, generator=generator) / 6
    change_weights(base, weights)
    change_config(base, mm_vision_tower=f"{TOWER}-res96", mm_hidden_size=32)
    return base


def test_a_convnext_tower_gives_what_the_originals_gives(convnext: Path, shared: Path) -> None:
    """The golden tower, a tiny one, has the epsilon of timm's class; the published one that of its architecture."""
    golden = load_file(shared / "golden/misc/convnext_tower.safetensors")
    tower = MLLM.load(str(convnext), device="cpu").model.get_encoder("image")
    norms = [module for module in tower.modules() if isinstance(module, torch.nn.LayerNorm)]
    assert {norm.eps for norm in norms} == {1e-5}
    for norm in norms:
        norm.eps = 1e-6
    with torch.no_grad():
        found = tower(golden["input"]).last_hidden_state.flatten(2).transpose(1, 2)
    torch.testing.assert_close(found, golden["output"], atol=1e-5, rtol=0)


def test_the_projector_of_a_convnext_tower_receives_its_cells_row_by_row(
    convnext: Path, shared: Path, image: Image.Image
) -> None:
    mllm = MLLM.load(str(convnext), device="cpu")
    inputs = mllm.prepare([image, image.transpose(Image.Transpose.ROTATE_90)], PROMPT)
    assert inputs.tensors["pixel_values"].shape == (2, 3, 96, 96)
    assert inputs.image_mask.sum(dim=1).tolist() == [9, 9]
    seen: dict[int, Tensor] = {}
    mllm.visit(inputs, lambda layer, states, mask: seen.update({layer: states}), [-1, 0])
    with torch.no_grad():
        cells = mllm.model.get_encoder("image")(inputs.tensors["pixel_values"]).last_hidden_state
    assert torch.equal(seen[-1], cells.flatten(2).transpose(1, 2))
    weights = load_file(convnext / "model.safetensors")
    hidden = torch.nn.functional.gelu(
        seen[-1] @ weights["model.mm_projector.0.weight"].T + weights["model.mm_projector.0.bias"]
    )
    projected = hidden @ weights["model.mm_projector.2.weight"].T + weights["model.mm_projector.2.bias"]
    torch.testing.assert_close(seen[0][inputs.image_mask], projected.flatten(0, 1), atol=1e-5, rtol=0)


def test_images_for_a_convnext_tower_are_prepared_as_by_the_original(
    convnext: Path, shared: Path, image: Image.Image
) -> None:
    golden = load_file(shared / "golden/misc/preprocess_convnext.safetensors")
    change_config(convnext, mm_vision_tower=TOWER)  # 768 pixels, as its name says nothing else
    mllm = MLLM.load(str(convnext), device="cpu")
    for name, picture in (("pad_train_and_task", image), ("dsg_640_then_pad", image.resize((640, 640)))):
        pixels = mllm.prepare([picture], PROMPT).tensors["pixel_values"]
        assert pixels.shape == (1, 3, 768, 768)
        torch.testing.assert_close(pixels[..., ::16, ::16], golden[name], atol=1e-5, rtol=0)


def test_a_convnext_tower_of_full_size_takes_every_tensor_of_the_published_one(shared: Path) -> None:
    keys = json.loads((shared / "golden/misc/convnext_xxlarge.json").read_text())["trunk_keys"]

    class Listed:
        files = dict.fromkeys(keys, "one.safetensors")

        def shapes(self, wanted: list[str]) -> dict[str, tuple[int, ...]]:
            return {key: tuple(keys[key]) for key in wanted}

    config, size = convnext_config("model", TOWER, Listed())
    assert (config.hidden_size, size) == (3072, 768)
    with torch.device("meta"):
        tower = TimmWrapperModel(config)
    found = {key.replace("timm_model.", "model.vision_tower.vision_tower."): list(t.shape) for key, t in named(tower)}
    assert found == keys


def named(module: torch.nn.Module) -> list[tuple[str, Tensor]]:
    return list(module.state_dict().items())


def test_a_convnext_tower_that_is_not_there_or_of_another_kind_is_named(convnext: Path) -> None:
    change_config(convnext, mm_vision_tower="laion/CLIP-convnext_tiny")
    with pytest.raises(InnerVisionError, match="vision tower 'laion/CLIP-convnext_tiny'; known are convnext_large and"):
        MLLM.load(str(convnext), device="cpu")
    change_config(convnext, mm_vision_tower=TOWER)
    weights = load_file(convnext / "model.safetensors")
    change_weights(convnext, {key: value for key, value in weights.items() if "vision_tower" not in key})
    with pytest.raises(InnerVisionError, match=r"does not hold its vision tower .*stages\.0\.blocks\.0\.conv_dw"):
        MLLM.load(str(convnext), device="cpu")


@pytest.fixture
def with_task_tokens(base: Path) -> tuple[Path, dict[str, Tensor]]:
    """The tiny base model with two task tokens for each of three targets."""
    generator = torch.Generator().manual_seed(1)
    rows = {"depth": 6, "seg": 4, "gen": 2}
    tokens = {f"model.special_{name}_tokens": torch.randn(n, 32, generator=generator) for name, n in rows.items()}
    change_weights(base, load_file(base / "model.safetensors") | tokens)
    change_config(base, model_type="ola_llama", num_task_tokens=2, aux_mode="seg-depth-gen", task_token_format="emb")
    return base, tokens


def test_task_tokens_follow_the_image_in_the_order_of_the_configuration(
    with_task_tokens: tuple[Path, dict[str, Tensor]], image: Image.Image
) -> None:
    folder, tokens = with_task_tokens
    mllm = MLLM.load(str(folder), device="cpu")
    inputs = mllm.prepare([image, image], PROMPT)
    seen: dict[int, Tensor] = {}
    mllm.visit(inputs, lambda layer, states, mask: seen.update({layer: states}), [0])
    end = int(inputs.image_mask[0].nonzero()[-1]) + 1
    depth, seg, gen = (tokens[f"model.special_{name}_tokens"] for name in ("depth", "seg", "gen"))
    expected = [(seg[0] + seg[1]) / 2, (seg[2] + seg[3]) / 2, depth[:3].mean(0), depth[3:].mean(0), gen[0], gen[1]]
    for sample in (0, 1):
        torch.testing.assert_close(seen[0][sample, end : end + 6], torch.stack(expected), atol=1e-6, rtol=0)
    change_config(folder, num_task_tokens=0)
    plain = MLLM.load(str(folder), device="cpu")
    without: dict[int, Tensor] = {}
    plain.visit(plain.prepare([image], PROMPT), lambda layer, states, mask: without.update({layer: states}), [0])
    rest = torch.cat([seen[0][:1, :end], seen[0][:1, end + 6 :]], dim=1)
    torch.testing.assert_close(rest, without[0], atol=1e-6, rtol=0)


def test_a_probe_checkpoint_is_run_without_task_tokens_as_by_the_original(
    with_task_tokens: tuple[Path, dict[str, Tensor]], image: Image.Image
) -> None:
    folder, _ = with_task_tokens
    longer = MLLM.load(str(folder), device="cpu").prepare([image], PROMPT).mask.shape[1]
    change_config(folder, probe_mode="depth", model_type="probe_dsg_llava_llama")
    assert MLLM.load(str(folder), device="cpu").prepare([image], PROMPT).mask.shape[1] == longer - 6


def test_task_tokens_that_are_missing_or_cannot_be_grouped_are_named(
    with_task_tokens: tuple[Path, dict[str, Tensor]],
) -> None:
    folder, _ = with_task_tokens
    change_config(folder, num_task_tokens=4)
    with pytest.raises(InnerVisionError, match="special_depth_tokens has 6 rows, which are not 4 groups"):
        MLLM.load(str(folder), device="cpu")
    weights = load_file(folder / "model.safetensors")
    change_weights(folder, {key: value for key, value in weights.items() if "special_gen" not in key})
    with pytest.raises(InnerVisionError, match=r"4 task tokens for each target but lacks model\.special_gen_tokens"):
        MLLM.load(str(folder), device="cpu")


def test_phi_3_is_loaded_into_its_own_class(base: Path, image: Image.Image) -> None:
    generator = torch.Generator().manual_seed(2)
    config = hf.Phi3Config(
        vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, pad_token_id=0, bos_token_id=1, eos_token_id=2, sliding_window=None,
    )  # fmt: skip
    reference = hf.Phi3ForCausalLM(config).eval()
    for parameter in reference.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / 6
    weights = {key: value for key, value in load_file(base / "model.safetensors").items() if "model.v" in key}
    weights |= {key: value for key, value in load_file(base / "model.safetensors").items() if "mm_projector" in key}
    change_weights(base, weights | {key: value.contiguous() for key, value in reference.state_dict().items()})
    own = {key: value for key, value in config.to_dict().items() if key not in ("model_type", "architectures", "dtype")}
    change_config(base, **own, rope_theta=10_000.0, model_type="llava_phi3")
    mllm = MLLM.load(str(base), device="cpu")
    assert mllm.builder.processor.template == "llava_phi_3"
    seen: dict[int, Tensor] = {}
    mllm.visit(mllm.prepare([image], PROMPT), lambda layer, states, mask: seen.update({layer: states}))
    with torch.no_grad():
        expected = reference(inputs_embeds=seen[0], output_hidden_states=True).hidden_states
    for layer, states in seen.items():
        torch.testing.assert_close(states, expected[layer], atol=1e-5, rtol=0)


@pytest.mark.parametrize("tower", ["clip", "convnext"])
def test_every_tensor_of_a_published_model_has_its_place(tower: str, base: Path, shared: Path) -> None:
    """At full size, on the meta device: the language model's listed tensors, and those of the ConvNeXT tower."""
    published = json.loads((shared / "golden/misc/published_size_keys.json").read_text())["gen"]
    sizes = published["non_head_keys"]
    trunk = json.loads((shared / "golden/misc/convnext_xxlarge.json").read_text())["trunk_keys"]
    blocks = {
        key.replace("layers.0.", f"layers.{number}."): shape
        for number in range(32)
        for key, shape in llama_block().items()
    }
    listed = {**blocks, **sizes, **(trunk if tower == "convnext" else {})}
    own = {key: math.prod(shape) for key, shape in {**blocks, **sizes}.items() if key.startswith("model.")}
    assert [len(own), sum(own.values())] == published["prefix_count_numel"]["model"]
    llama = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
    change_config(base, **llama, num_key_value_heads=8, vocab_size=128_256, model_type="ola_llama")
    if tower == "convnext":
        (base / "model.safetensors").chmod(0o644)
        change_config(base, mm_vision_tower=TOWER)
        change_weights(base, {key: torch.empty(*[1] * len(shape)) for key, shape in trunk.items()})
    original = Original.read(str(base), json.loads((base / "config.json").read_text()))
    if tower == "convnext":
        original.config.vision_config.model_args = None  # the architecture's own depths and widths
    with torch.device("meta"):
        model = hf.AutoModelForImageTextToText.from_config(original.config)
    places = {key: list(tensor.shape) for key, tensor in model.state_dict().items()}
    for key, shape in listed.items():
        for pattern, target in original.key_mapping.items():
            key = re.sub(pattern, target, key)
        assert places[key] == shape


def llama_block() -> dict[str, list[int]]:
    wide, narrow, middle = 4096, 1024, 14336
    return {
        "model.layers.0.self_attn.q_proj.weight": [wide, wide],
        "model.layers.0.self_attn.k_proj.weight": [narrow, wide],
        "model.layers.0.self_attn.v_proj.weight": [narrow, wide],
        "model.layers.0.self_attn.o_proj.weight": [wide, wide],
        "model.layers.0.mlp.gate_proj.weight": [middle, wide],
        "model.layers.0.mlp.up_proj.weight": [middle, wide],
        "model.layers.0.mlp.down_proj.weight": [wide, middle],
        "model.layers.0.input_layernorm.weight": [wide],
        "model.layers.0.post_attention_layernorm.weight": [wide],
    }
