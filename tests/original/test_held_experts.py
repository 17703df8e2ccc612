"""Experts that probe checkpoints hold beside their probes, compared with the original's numbers and Hugging Face's."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers as hf
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from innervision.checkpoints.shards import find_file
from innervision.errors import InnerVisionError
from innervision.original import clip_encoder, oneformer
from innervision.original.held_experts import find_beside, read_held_expert
from innervision.targets.gen import GenTarget
from innervision.targets.seg import SegTarget
from tiny_experts import save_tiny_gen, save_tiny_seg


def save_probe_checkpoint(folder: Path, weights: dict[str, Tensor], mode: str, **config: object) -> Path:
    """What of a probe checkpoint tells which expert it holds; the probes are left out."""
    folder.mkdir()
    save_file({key: value.contiguous() for key, value in weights.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"probe_mode": mode, **config}))
    return folder


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse every question to the Hub, whoever asks it."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the Hub was asked")

    for place in ("huggingface_hub.file_download.hf_hub_download", "transformers.utils.hub.hf_hub_download"):
        monkeypatch.setattr(place, refuse)
    monkeypatch.setattr("innervision.checkpoints.shards.hf_hub_download", refuse)
    with pytest.raises(AssertionError, match="the Hub was asked"):  # the trap works
        find_file("no/such", "config.json")


# --- OneFormer


@pytest.fixture(scope="module")
def oneformer_weights(shared: Path) -> dict[str, Tensor]:
    """The original's tiny OneFormer under the names that a probe checkpoint has."""
    weights = load_file(shared / "golden/oneformer/tiny/model.safetensors")
    return {key.replace("model.", "oneformer.", 1): value for key, value in weights.items() if key.startswith("model.")}


@pytest.mark.usefixtures("no_hub")
def test_features_of_a_held_oneformer_are_the_originals(
    shared: Path, oneformer_weights: dict[str, Tensor], tmp_path: Path
) -> None:
    golden = load_file(shared / "golden/oneformer/outputs.safetensors")
    target = SegTarget.load(str(save_probe_checkpoint(tmp_path / "probe", oneformer_weights, "seg")), device="cpu")
    expected = golden["forward_features"].flatten(2).mT  # (1, 576, 64)
    torch.testing.assert_close(target.encode(golden["pixel_values"]), expected, atol=1e-4, rtol=0)


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize("case", ["plain", "replaced"])
def test_a_held_oneformer_decodes_as_the_original_with_tokenizer_and_names_of_the_expert_it_names(
    case: str, shared: Path, oneformer_weights: dict[str, Tensor], tmp_path: Path
) -> None:
    golden = load_file(shared / "golden/oneformer/outputs.safetensors")
    save_tiny_seg(tmp_path / "expert")
    folder = save_probe_checkpoint(tmp_path / "probe", oneformer_weights, "seg", image_segmentor="expert")
    target = SegTarget.load(str(folder), device="cpu", head=True)
    assert target.labels == [f"class {number}" for number in range(5)]
    head = target.head
    assert head is not None
    head.task_inputs.copy_(golden["task_inputs"])
    context = target.context(golden["pixel_values"])
    scores = context.output if case == "plain" else target.decode(golden["seg_emb"].flatten(2).mT, context)
    classes = golden[f"{case}.class_queries_logits"].softmax(-1)[..., :-1]
    expected = torch.einsum("bqc,bqhw->bchw", classes, golden[f"{case}.masks_queries_logits"].sigmoid())
    torch.testing.assert_close(scores, expected, atol=1e-3, rtol=0)


def test_a_held_oneformer_is_squashed_and_enlarged_as_the_published_one(
    oneformer_weights: dict[str, Tensor], tmp_path: Path
) -> None:
    held = SegTarget.load(str(save_probe_checkpoint(tmp_path / "probe", oneformer_weights, "seg")), device="cpu")
    published = SegTarget.load(str(save_tiny_seg(tmp_path / "seg")), device="cpu")
    image = Image.linear_gradient("L").convert("RGB").resize((123, 77))
    assert torch.equal(held.prepare([image]), published.prepare([image]))


def test_classes_of_another_number_than_the_weights_know_are_refused(
    oneformer_weights: dict[str, Tensor], tmp_path: Path
) -> None:
    save_tiny_seg(tmp_path / "expert", num_classes=4)
    folder = save_probe_checkpoint(tmp_path / "probe", oneformer_weights, "seg", image_segmentor="expert")
    with pytest.raises(InnerVisionError, match="names 4 classes, but the weights know 5"):
        SegTarget.load(str(folder), device="cpu", head=True)


def published_oneformer() -> tuple[hf.OneFormerConfig, dict[str, Tensor]]:
    """OneFormer with Swin-L for COCO, in names and shapes alone."""
    config = hf.OneFormerConfig(
        backbone_config=hf.SwinConfig(
            embed_dim=192,
            depths=[2, 2, 18, 2],
            num_heads=[6, 12, 24, 48],
            window_size=12,
            image_size=384,
            out_features=["stage1", "stage2", "stage3", "stage4"],
        ),
        num_labels=133,
    )
    with torch.device("meta"):
        return config, hf.OneFormerModel(config).state_dict()


def test_the_size_of_a_published_oneformer_is_told_from_its_shapes() -> None:
    expected, state = published_oneformer()
    renamed = {  # as Transformers saved it when the checkpoints were made
        key.replace("encoder.swin.", "encoder.")
        .replace("attention.relative_position_bias.", "attention.self.")
        .replace("attention.relative_position_bias_table", "attention.self.relative_position_bias_table")
        .replace("mlp.fc1.", "intermediate.dense."): value
        for key, value in state.items()
    }
    found = oneformer.make_config(renamed)
    for name in ("num_queries", "hidden_dim", "conv_dim", "mask_dim", "num_attention_heads", "encoder_layers"):
        assert getattr(found, name) == getattr(expected, name), name
    for name in ("encoder_feedforward_dim", "decoder_layers", "dim_feedforward", "query_dec_layers", "task_seq_len"):
        assert getattr(found, name) == getattr(expected, name), name
    assert found.num_labels == 133
    for name in ("embed_dim", "patch_size", "depths", "num_heads", "window_size", "mlp_ratio", "out_features"):
        assert getattr(found.backbone_config, name) == getattr(expected.backbone_config, name), name


# --- the image encoder of Stable unCLIP


def clip_weights(folder: Path) -> dict[str, Tensor]:
    weights = load_file(folder / "image_encoder/model.safetensors")
    return {f"gen_encoder.{key}": value for key, value in weights.items()}


@pytest.mark.usefixtures("no_hub")
def test_a_held_image_encoder_is_the_expert_itself(tmp_path: Path) -> None:
    whole = save_tiny_gen(tmp_path / "unclip")
    held = GenTarget.load(str(save_probe_checkpoint(tmp_path / "probe", clip_weights(whole), "gen")), device="cpu")
    images = [Image.linear_gradient("L").convert("RGB").resize((123, 77))]
    assert torch.equal(held.encode(images), GenTarget.load(str(whole), device="cpu").encode(images))
    assert held.expert == "probe"


def test_a_held_image_encoder_draws_with_the_rest_of_the_pipeline_it_names(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    whole = save_tiny_gen(tmp_path / "unclip", whole=True)
    folder = save_probe_checkpoint(tmp_path / "probe", clip_weights(whole), "gen", image_generator="unclip")
    features = torch.randn(1, 1, 24, generator=torch.Generator().manual_seed(0))
    drawn = [
        (target := GenTarget.load(str(source), device="cpu", head=True)).decode(features, target.context([IMAGE]))
        for source in (folder, whole)
    ]
    assert torch.equal(*drawn)


IMAGE = Image.new("RGB", (56, 56))


@pytest.mark.parametrize(
    ("width", "projection", "layers", "patch", "heads", "activation"),
    [(1280, 1024, 32, 14, 16, "gelu"), (1024, 768, 24, 14, 16, "quick_gelu"), (768, 512, 12, 32, 12, "quick_gelu")],
)
def test_published_clip_encoders_are_told_from_their_shapes(
    width: int, projection: int, layers: int, patch: int, heads: int, activation: str
) -> None:
    """OpenCLIP's ViT-H of Stable unCLIP; OpenAI's ViT-L/14 and ViT-B/32."""
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers, "patch_size": patch}
    expected = hf.CLIPVisionConfig(**sizes, num_attention_heads=heads, image_size=224, projection_dim=projection)
    with torch.device("meta"):
        found = clip_encoder.make_config(hf.CLIPVisionModelWithProjection(expected).state_dict())
    for name in (*sizes, "num_attention_heads", "image_size", "projection_dim"):
        assert getattr(found, name) == getattr(expected, name), name
    assert found.hidden_act == activation


# --- both


Edit = Callable[[dict[str, Tensor]], object]
NORM = "gen_encoder.vision_model.post_layernorm.weight"


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda weights: weights.pop(NORM), r"it lacks .*post_layernorm\.weight"),
        (lambda weights: weights.pop("gen_encoder.visual_projection.weight"), r"it lacks .*visual_projection"),
        (lambda weights: weights.update({NORM: torch.zeros(5)}), r"it has of another shape .*post_layernorm"),
        (lambda weights: weights.update({"gen_encoder.other": torch.zeros(5)}), r"it has the unknown other"),
    ],
)
def test_missing_extra_and_misshapen_weights_are_named(edit: Edit, says: str, tmp_path: Path) -> None:
    weights = clip_weights(save_tiny_gen(tmp_path / "unclip"))
    edit(weights)
    folder = save_probe_checkpoint(tmp_path / "probe", weights, "gen")
    with pytest.raises(InnerVisionError, match=rf"probe does not hold a CLIP image encoder: {says}"):
        read_held_expert("gen", str(folder))


def test_what_holds_no_expert_of_the_kind_is_left_to_others(shared: Path, tmp_path: Path) -> None:
    assert read_held_expert("seg", str(shared / "golden/oneformer/tiny")) is None  # Hugging Face's layout
    assert read_held_expert("seg", str(shared / "golden/probe_ckpt/probe_depth_tiny-llava-llama3")) is None
    assert read_held_expert("gen", str(tmp_path)) is None
    assert read_held_expert("gen", "no/such") is None
    assert read_held_expert("backbone", str(shared / "golden/probe_ckpt/probe_depth_tiny-llava-llama3")) is None


def test_a_checkpoint_on_the_hub_gives_the_expert_it_holds_at_its_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    folder = save_probe_checkpoint(tmp_path / "probe", clip_weights(save_tiny_gen(tmp_path / "unclip")), "gen")
    repository = tmp_path / "models--tiny--probe"
    shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    target = GenTarget.load("tiny/probe", device="cpu")
    assert (target.expert, target.revision, target.width) == ("tiny/probe", commit, 24)


def test_what_a_checkpoint_names_is_looked_for_here_and_beside_it(tmp_path: Path) -> None:
    checkpoint = tmp_path / "all" / "probe"
    (tmp_path / "all/expert").mkdir(parents=True)
    checkpoint.mkdir()
    assert find_beside(str(checkpoint), "expert") == str(tmp_path / "all/expert")
    assert find_beside(str(checkpoint), "expert", "config.json") == "expert"
    assert find_beside("some/model", "expert") == "expert"
    gone = "stabilityai/stable-diffusion-2-1-unclip"
    assert find_beside(str(checkpoint), gone) == "sd2-community/stable-diffusion-2-1-unclip"


def test_an_expert_that_is_gone_from_the_hub_is_told_with_a_copy() -> None:
    with pytest.raises(InnerVisionError, match=r"is gone from the Hub.*sd2-community/stable-diffusion-2-1-unclip"):
        GenTarget.load("stabilityai/stable-diffusion-2-1-unclip", device="cpu")
