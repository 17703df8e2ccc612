"""Loading, random weights and prompts."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from innervision.config import VISION
from innervision.errors import InnerVisionError
from innervision.mllm import MLLM
from tiny_mllms import save_tiny

Load = Callable[[str], MLLM]


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llava", tmp_path_factory.mktemp("llava"))


def parts(mllm: MLLM) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The weights of the language model, and those of the vision tower and the projector."""
    weights = dict(mllm.model.model.named_parameters())
    llm = {key: value for key, value in weights.items() if key.startswith("language_model")}
    return llm, {key: value for key, value in weights.items() if key not in llm}


def test_random_weights_replace_the_llm_and_keep_the_vision_tower_and_the_projector(llava: Path) -> None:
    trained = MLLM.load(str(llava), device="cpu")
    spread = trained.model.config.text_config.initializer_range
    trained_llm, trained_rest = parts(trained)
    random_llm, random_rest = parts(MLLM.load(str(llava), device="cpu", random_weights="llm"))
    assert all(torch.equal(trained_rest[key], value) for key, value in random_rest.items())
    for key, value in random_llm.items():
        is_norm = "norm" in key
        assert torch.equal(value, torch.ones_like(value)) if is_norm else not torch.equal(trained_llm[key], value)
        if not is_norm and value.numel() > 1000:
            assert value.std().item() == pytest.approx(spread, rel=0.15)


def test_random_weights_of_everything_need_no_checkpoint(llava: Path, tmp_path: Path) -> None:
    shutil.copytree(llava, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    mllm = MLLM.load(str(tmp_path / "bare"), device="cpu", random_weights="all")
    seen: list[torch.Tensor] = []
    inputs = mllm.prepare([Image.new("RGB", (60, 40), "red"), Image.new("RGB", (60, 40), "blue")], "Describe.")
    mllm.visit(inputs, lambda _, states, __: seen.append(states), [0])
    assert not torch.allclose(seen[0][0], seen[0][1])


def test_random_weights_of_everything_let_the_image_through(tmp_path: Path) -> None:
    """Gemma 3 leaves its projector at zero when it draws fresh weights."""
    mllm = MLLM.load(str(save_tiny("gemma3", tmp_path)), device="cpu", random_weights="all")
    seen: list[torch.Tensor] = []
    inputs = mllm.prepare([Image.new("RGB", (60, 40), "red")], "Describe.")
    mllm.visit(inputs, lambda _, states, __: seen.append(states[0][inputs.image_mask[0]]), [0])
    assert seen[0].abs().min() > 0


def test_random_weights_depend_on_the_seed_alone(llava: Path) -> None:
    first, again, other = (
        parts(MLLM.load(str(llava), device="cpu", random_weights="llm", seed=seed))[0] for seed in (1, 1, 2)
    )
    key = "language_model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(first[key], again[key])
    assert not torch.equal(first[key], other[key])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtype_is_that_of_the_states(llava: Path, dtype: torch.dtype) -> None:
    mllm = MLLM.load(str(llava), device="cpu", dtype=dtype)
    inputs = mllm.prepare([Image.new("RGB", (60, 40), "red")], "Describe.")
    seen: list[torch.dtype] = []
    mllm.visit(inputs, lambda _, states, __: seen.append(states.dtype), [VISION, 0, 4])
    assert seen == [dtype] * 3


def test_auto_lets_accelerate_spread_the_layers(llava: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    real = AutoModelForImageTextToText.from_pretrained

    def load(*args: object, **options: object) -> object:
        asked.append(options["device_map"])
        return real(*args, **options)

    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", load)
    mllm = MLLM.load(str(llava), device="auto")
    assert asked == ["auto"]
    assert mllm.device_of(1) == next(mllm.decoder.layers[0].parameters()).device
    with pytest.raises(InnerVisionError, match="device=auto spreads the weights of a checkpoint"):
        MLLM.load(str(llava), device="auto", random_weights="llm")
    with pytest.raises(InnerVisionError, match="device=auto works in one process"):
        MLLM.load(str(llava), device="auto", split=2)


@pytest.mark.parametrize(("bits", "option"), [("4bit", "load_in_4bit"), ("8bit", "load_in_8bit")])
def test_quantization_goes_to_the_library_as_its_own_config(
    llava: Path, bits: str, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict = {}

    def spy(name: str, **options: object) -> None:
        seen.update(options)
        raise OSError("enough seen")

    monkeypatch.setattr("innervision.mllm.model.AutoModelForImageTextToText.from_pretrained", spy)
    with pytest.raises(InnerVisionError, match="enough seen"):
        MLLM.load(str(llava), device="cpu", quantization=bits)
    assert getattr(seen["quantization_config"], option) is True


def test_missing_weights_are_refused(llava: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(llava, broken)
    weights = load_file(broken / "model.safetensors")
    gone = next(key for key in weights if "layers.2.mlp" in key)
    save_file({k: v for k, v in weights.items() if k != gone}, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(InnerVisionError, match=r"lacks 1 weights.*layers\.2\.mlp"):
        MLLM.load(str(broken), device="cpu")


def test_a_model_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(InnerVisionError, match="no-such/model"):
        MLLM.load("no-such/model", device="cpu")
    with pytest.raises(InnerVisionError, match="cannot load the MLLM"):
        MLLM.load(str(tmp_path), device="cpu")


def test_a_text_model_is_refused(tmp_path: Path, llava: Path) -> None:
    from transformers import AutoProcessor, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=16)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    AutoProcessor.from_pretrained(llava).tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InnerVisionError, match="llama model is not an image-text model"):
        MLLM.load(str(tmp_path), device="cpu")


def test_a_folder_is_recognised_by_its_weights(llava: Path, tmp_path: Path) -> None:
    moved = tmp_path / llava.name
    shutil.copytree(llava, moved)
    other = save_tiny("llava", tmp_path / "other" / llava.name, seed=1)
    first, same, different = (MLLM.load(str(folder), device="cpu") for folder in (llava, moved, other))
    assert (first.name, first.revision) == (same.name, same.revision)
    assert first.revision != different.revision


def test_the_prompt_goes_through_the_chat_template(load_family: Load) -> None:
    mllm = load_family("llava")
    inputs = mllm.prepare([Image.new("RGB", (60, 40))], "Describe the image.")
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Describe the image."}]}]
    text = mllm.builder.processor.apply_chat_template(turn, add_generation_prompt=True)
    decoded = mllm.builder.processor.tokenizer.decode(inputs.tensors["input_ids"][0])
    assert decoded.replace("<image>", "").removeprefix("<s>") == text.replace("<image>", "")


def test_without_a_chat_template_the_image_token_and_a_line_break_come_first(load_family: Load) -> None:
    mllm = load_family("llava_plain")
    ids = mllm.prepare([Image.new("RGB", (60, 40))], "Describe the image.").tensors["input_ids"]
    plain = mllm.builder.processor.tokenizer("<image>" * 16 + "\nDescribe the image.")["input_ids"]
    assert ids[0].tolist() == plain


def test_a_processor_that_writes_the_image_tokens_gets_the_bare_prompt(load_family: Load) -> None:
    mllm = load_family("paligemma")
    inputs = mllm.prepare([Image.new("RGB", (60, 40))], "Describe the image.")
    assert inputs.image_mask.sum() == 16
    assert "labels" not in inputs.tensors
