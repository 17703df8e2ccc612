"""What the experts' own heads make of features: equal to the original's numbers and to Transformers' whole models."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from innervision.errors import InnerVisionError
from innervision.targets.backbone import BackboneTarget
from innervision.targets.depth import DepthTarget
from innervision.targets.seg import SegTarget
from innervision.targets.target import Context
from tiny_experts import save_tiny_backbone, save_tiny_depth, save_tiny_seg


@pytest.fixture(scope="module")
def depth_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_depth(tmp_path_factory.mktemp("depth"))


@pytest.fixture(scope="module")
def seg_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_seg(tmp_path_factory.mktemp("seg"))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- depth


def dpt_state(original: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the original depth head's weights to Hugging Face's."""
    prefix = "param.depth_head."
    state = {}
    for key, value in original.items():
        if not key.startswith(prefix):
            continue
        name = key.removeprefix(prefix)
        for i in range(4):
            name = name.replace(f"projects.{i}.", f"neck.reassemble_stage.layers.{i}.projection.")
            name = name.replace(f"resize_layers.{i}.", f"neck.reassemble_stage.layers.{i}.resize.")
            name = name.replace(f"scratch.layer{i + 1}_rn.", f"neck.convs.{i}.")
            fusion = f"neck.fusion_stage.layers.{3 - i}."  # counted from the deepest
            name = name.replace(f"scratch.refinenet{i + 1}.out_conv.", f"{fusion}projection.")
            name = name.replace(f"scratch.refinenet{i + 1}.resConfUnit", f"{fusion}residual_layer")
        for i in (1, 2):
            name = name.replace(f"residual_layer{i}.conv1", f"residual_layer{i}.convolution1")
            name = name.replace(f"residual_layer{i}.conv2", f"residual_layer{i}.convolution2")
        name = name.replace("scratch.output_conv1.", "head.conv1.")
        name = name.replace("scratch.output_conv2.0.", "head.conv2.").replace("scratch.output_conv2.2.", "head.conv3.")
        state[name] = value
    return state


@pytest.fixture(scope="module")
def original_depth(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[DepthTarget, dict[str, Tensor]]:
    """The original's depth head, as Hugging Face has it, on a backbone that is not used."""
    golden = load_file(shared / "golden/dav2/tiny.safetensors")
    folder = save_tiny_depth(tmp_path_factory.mktemp("original"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"head_hidden_size": 32}))
    backbone = {k: v for k, v in load_file(folder / "model.safetensors").items() if k.startswith("backbone.")}
    save_file(backbone | dpt_state(golden), folder / "model.safetensors", metadata={"format": "pt"})
    return DepthTarget.load(str(folder), head=True), golden


def test_depth_is_the_originals_with_one_map_at_all_four_inputs(
    original_depth: tuple[DepthTarget, dict[str, Tensor]],
) -> None:
    target, golden = original_depth
    features = golden["feat_last_patch"]
    depth = target.decode(features, Context(features))
    assert depth.shape == (1, 336, 336)
    torch.testing.assert_close(depth, golden["depth_4xlast"], atol=1e-4, rtol=0)


def test_the_experts_own_depth_is_the_originals(
    original_depth: tuple[DepthTarget, dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    target, golden = original_depth
    taps = [golden[f"feat_hf.{i}"] for i in range(4)]
    monkeypatch.setattr(target.module, "forward", lambda pixels: hf.modeling_outputs.BackboneOutput(feature_maps=taps))
    context = target.context(golden["image_tensor"])
    torch.testing.assert_close(context.output, golden["depth_real_4feats"], atol=1e-4, rtol=0)
    torch.testing.assert_close(context.features, golden["feat_hf.3"][:, 1:], atol=0, rtol=0)


def test_own_depth_and_features_are_those_of_the_whole_model(depth_folder: Path) -> None:
    target = DepthTarget.load(str(depth_folder), size=56, head=True)
    whole = hf.DepthAnythingForDepthEstimation.from_pretrained(depth_folder).eval()
    pixels = noise(2, 3, 56, 56)
    context = target.context(pixels)
    with torch.no_grad():
        torch.testing.assert_close(context.output, whole(pixels).predicted_depth)
    torch.testing.assert_close(context.features, target.encode(pixels), atol=0, rtol=0)


def test_a_head_that_taps_one_feature_only_makes_the_experts_own_map(depth_folder: Path, tmp_path: Path) -> None:
    """Where all four taps are the last block, decoding the expert's features is the expert itself."""
    shutil.copytree(depth_folder, tmp_path / "expert")
    target = DepthTarget.load(str(tmp_path / "expert"), size=56, head=True)
    pixels = noise(1, 3, 56, 56)
    last = target.module(pixels).feature_maps[-1]
    with torch.no_grad():
        head = target.head
        assert isinstance(head, nn.ModuleDict)
        expected = head["head"](head["neck"]([last] * 4, 4, 4), 4, 4)
    torch.testing.assert_close(target.decode(target.encode(pixels), target.context(pixels)), expected)


def test_depth_of_a_batch_is_that_of_each(depth_folder: Path) -> None:
    target = DepthTarget.load(str(depth_folder), size=56, head=True)
    features = noise(5, 16, 32)
    context = target.context(noise(1, 3, 56, 56)).take([0] * 5)
    together = target.decode(features, context)
    alone = torch.cat([target.decode(one[None], context.take([0])) for one in features])
    torch.testing.assert_close(together, alone)


# --- seg


@pytest.fixture(scope="module")
def original_seg(
    shared: Path, seg_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[SegTarget, dict[str, Tensor]]:
    golden = load_file(shared / "golden/oneformer/outputs.safetensors")
    folder = tmp_path_factory.mktemp("original") / "expert"
    shutil.copytree(seg_folder, folder)
    shutil.copytree(shared / "golden/oneformer/tiny", folder, dirs_exist_ok=True)
    target = SegTarget.load(str(folder), head=True)
    target.head.task_inputs.copy_(golden["task_inputs"])
    return target, golden


def scores_of(golden: dict[str, Tensor], case: str) -> Tensor:
    """Semantic scores, with Transformers' own rule, from the original's logits."""
    classes = golden[f"{case}.class_queries_logits"].softmax(-1)[..., :-1]
    return torch.einsum("bqc,bqhw->bchw", classes, golden[f"{case}.masks_queries_logits"].sigmoid())


def labels_of(scores: Tensor) -> Tensor:
    resized = nn.functional.interpolate(scores, (60, 80), mode="bilinear", align_corners=False)
    return resized[0].argmax(0).to(torch.uint8)


@pytest.mark.parametrize("case", ["plain", "replaced", "own"])
def test_semantic_scores_and_map_are_the_originals(
    original_seg: tuple[SegTarget, dict[str, Tensor]], case: str
) -> None:
    target, golden = original_seg
    context = target.context(golden["pixel_values"])
    if case == "plain":
        assert context.output is not None
        scores = context.output
    else:
        features = golden["seg_emb"].flatten(2).mT if case == "replaced" else context.features
        scores = target.decode(features, context)
    # mask logits reach some thousands, so float32 leaves their small values an uncertainty of 0.003
    torch.testing.assert_close(scores, scores_of(golden, case), atol=1e-3, rtol=0)
    assert torch.equal(labels_of(scores), golden[f"{case}.semantic_60x80"])


def test_task_and_scores_are_those_of_transformers_processor(seg_folder: Path, tmp_path: Path) -> None:
    settings = json.loads((seg_folder / "preprocessor_config.json").read_text())
    shutil.copytree(seg_folder, tmp_path / "expert")
    settings["repo_path"] = str(tmp_path / "expert")
    (tmp_path / "expert/preprocessor_config.json").write_text(json.dumps(settings))
    image_processor = hf.OneFormerImageProcessor.from_pretrained(tmp_path / "expert")
    tokenizer = hf.AutoTokenizer.from_pretrained(tmp_path / "expert")
    processor = hf.OneFormerProcessor(image_processor, tokenizer)
    target = SegTarget.load(str(tmp_path / "expert"), size=64, head=True)
    pixels = noise(2, 3, 64, 64)
    task = processor._preprocess_text(["the task is semantic"])
    assert torch.equal(target.head.task_inputs, task)
    whole = hf.OneFormerForUniversalSegmentation.from_pretrained(tmp_path / "expert").eval()
    with torch.no_grad():
        outputs = whole(pixels, task_inputs=task.expand(2, -1))
    expected = image_processor.post_process_semantic_segmentation(outputs, [(40, 50)] * 2)
    context = target.context(pixels)
    assert context.output is not None
    resized = nn.functional.interpolate(context.output, (40, 50), mode="bilinear", align_corners=False)
    assert torch.equal(resized.argmax(1), torch.stack(expected))
    torch.testing.assert_close(context.features, target.encode(pixels), atol=0, rtol=0)


def test_a_map_is_decoded_in_the_context_of_its_own_row(seg_folder: Path) -> None:
    """Maps of several layers and images go through the decoder together; none sees another's image."""
    target = SegTarget.load(str(seg_folder), size=96, head=True)
    context = target.context(noise(3, 3, 96, 96))
    rows = [2, 0, 1, 0, 2]
    features = noise(5, 9, 64, seed=1)
    together = target.decode(features, context.take(rows))
    for features_of_one, row, scores in zip(features, rows, together, strict=True):
        alone = target.decode(features_of_one[None], context.take([row]))
        torch.testing.assert_close(scores[None], alone, atol=1e-5, rtol=1e-4)
    swapped = target.decode(features[:1], context.take([0]))
    assert (swapped - together[:1]).abs().max() > 1e-3  # the real image matters


def test_class_names_come_from_the_configuration_or_the_class_file(seg_folder: Path, tmp_path: Path) -> None:
    assert SegTarget.load(str(seg_folder), head=True).labels == [f"class {i}" for i in range(5)]
    shutil.copytree(seg_folder, tmp_path / "named")
    config = json.loads((tmp_path / "named/config.json").read_text())
    names = ["cat", "dog", "sky", "road", "wall"]
    config["id2label"] = dict(enumerate(names))
    (tmp_path / "named/config.json").write_text(json.dumps(config))
    assert SegTarget.load(str(tmp_path / "named"), head=True).labels == names


def test_without_a_tokenizer_the_head_is_refused_and_the_features_are_not(seg_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(seg_folder, tmp_path / "expert")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "expert" / file).unlink()
    with pytest.raises(InnerVisionError, match="no tokenizer"):
        SegTarget.load(str(tmp_path / "expert"), head=True)
    assert SegTarget.load(str(tmp_path / "expert")).head is None


# --- all


@pytest.mark.parametrize("kind", ["depth", "seg"])
def test_a_head_whose_weights_are_missing_is_refused(
    kind: str, depth_folder: Path, seg_folder: Path, tmp_path: Path
) -> None:
    folder, target, lost = {
        "depth": (depth_folder, DepthTarget, "neck.convs.0.weight"),
        "seg": (seg_folder, SegTarget, "model.transformer_module.decoder.class_embed.weight"),
    }[kind]
    shutil.copytree(folder, tmp_path / "expert")
    weights = load_file(folder / "model.safetensors")
    del weights[lost]
    save_file(weights, tmp_path / "expert/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InnerVisionError, match=f"does not hold 1 of the weights that {kind} needs"):
        target.load(str(tmp_path / "expert"), size=56 if kind == "depth" else 64, head=True)
    target.load(str(tmp_path / "expert"), size=56 if kind == "depth" else 64)


def test_decoding_needs_the_head(depth_folder: Path, tmp_path: Path) -> None:
    target = DepthTarget.load(str(depth_folder), size=56)
    with pytest.raises(InnerVisionError, match="loaded without its head"):
        target.context(noise(1, 3, 56, 56))
    with pytest.raises(InnerVisionError, match="loaded without its head"):
        target.decode(noise(1, 16, 32), Context(noise(1, 16, 32)))
    with pytest.raises(InnerVisionError, match="backbone has no head"):
        BackboneTarget.load(str(save_tiny_backbone(tmp_path / "dinov2")), head=True)


def test_decoding_leaves_no_graph_and_no_trainable_weight(depth_folder: Path) -> None:
    target = DepthTarget.load(str(depth_folder), size=56, head=True)
    context = target.context(noise(1, 3, 56, 56))
    depth = target.decode(context.features.requires_grad_(), context)
    assert not depth.requires_grad
    assert not any(parameter.requires_grad for parameter in target.parameters())
