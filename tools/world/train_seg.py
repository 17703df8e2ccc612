"""The segmentation expert of the world: a OneFormer whose Swin has three stages and ends in 7 × 7 cells.

Query k stands for category k of the world, so the loss needs no matching: a mask for every category, and
whether the image holds it. First the backbone learns alone, with a linear reading of its last stage. Then all
of it learns: a quarter of the steps as it is, the others with all stages resized to the last one's cells, as tasks
decode a prediction, and half of all with the earlier stages of another image, so that the decoder goes by the last
stage.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from PIL import Image
from tokenizers import pre_tokenizers
from tools.world.card import Figure, Section
from tools.world.training import SIZE, Scenes, draw_batch, held_out, optimize, resampling, save_half
from torch import Tensor, nn
from tqdm import tqdm

from innervision.metrics.segmentation import count_pixels, overlap
from innervision.mllm.model import default_device
from innervision.targets.seg import SegTarget
from innervision.world.scenes import CATEGORIES, Scene

STEPS = (1800, 1000)
"""Of the backbone alone, and of the whole."""
BATCH, LR = 16, 2e-3
MEAN, STD = 0.5, 0.25
CLASSES = len(CATEGORIES)
GRID = 28
"""Side of the masks."""


def train(out: Path, scenes: Scenes, seed: int, *, effort: float = 1.0, progress: bool = True) -> None:
    """Train the expert and save it to `out/seg`. See `tools.world.build.Part`."""
    device = default_device()
    processor = make_processor()
    model = make_model().to(device)
    backbone = model.model.pixel_level_module.encoder
    task = processor._preprocess_text(["the task is semantic"], max_length=model.config.task_seq_len).to(device)
    dice = np.random.default_rng(seed)
    squash = resampling(768, SIZE)
    steps = [max(1, round(count * effort)) for count in STEPS]

    def draw() -> tuple[Tensor, Tensor]:
        """Pixels (B, 3, H, W), and the share of each category in the cells of a mask (B, K, 28, 28)."""
        images, _, labels = draw_batch(scenes, dice, BATCH)
        shares = nn.functional.one_hot(labels, CLASSES).movedim(-1, 1).float()
        pixels = (squash @ images @ squash.T - MEAN) / STD
        return pixels.to(device), nn.functional.avg_pool2d(shares, SIZE // GRID).to(device)

    reading = nn.Linear(backbone.channels[-1], CLASSES * 16).to(device)

    def read(last: Tensor, truth: Tensor) -> Tensor:
        logits = nn.functional.pixel_shuffle(reading(last.movedim(1, -1)).movedim(-1, 1), 4)  # (B, K, 28, 28)
        return nn.functional.cross_entropy(logits, truth)

    def alone(step: int) -> Tensor:
        pixels, truth = draw()
        return read(backbone(pixels).feature_maps[-1], truth)

    def whole(step: int) -> Tensor:
        pixels, truth = draw()
        *earlier, last = backbone(pixels).feature_maps
        if step % 4:  # as tasks decode a prediction
            earlier = [nn.functional.interpolate(stage, last.shape[-2:], mode="bilinear") for stage in earlier]
        if step % 4 > 1:
            earlier = [stage.roll(1, 0) for stage in earlier]
        return criterion(decode(model, [*earlier, last], task), truth) + read(last, truth)

    learners, saved = nn.ModuleList([backbone, reading]), out / "backbone.safetensors"
    optimize(learners, alone, steps[0], LR, saved=saved, label="seg backbone", progress=progress)
    dice = np.random.default_rng((seed, 1))
    optimize(nn.ModuleList([model, reading]), whole, steps[1], LR / 2, label="seg", progress=progress)
    save_half(model, out / "seg")
    processor.tokenizer.save_pretrained(out / "seg")
    processor.image_processor.save_pretrained(out / "seg")


def measure(models: Path, *, progress: bool = True, count: int = 500) -> list[Section]:
    """Measure the expert's IoU on held-out scenes. See `tools.world.build.Part`."""
    target = SegTarget.load(str(models / "seg"), head=True)
    scenes = held_out(count)
    contexts = [target.context([Image.fromarray(scene.image)]) for scene in tqdm(scenes, "seg", disable=not progress)]
    mean_feature = torch.cat([context.features for context in contexts]).mean(0, keepdim=True)
    truths = torch.stack([semantic(scene) for scene in scenes])  # (N, H, W)
    usual = truths.mode(0).values
    usual_name = "most frequent class of each pixel"
    counts: dict[str, Tensor] = {}
    for i, context in enumerate(contexts):
        assert context.output is not None
        maps = {
            "expert": label(context.output),
            "last stage": label(target.decode(context.features, context)),
            "another scene's feature": label(target.decode(contexts[i - 1].features, context)),
            "mean feature": label(target.decode(mean_feature, context)),
            "zeros": label(target.decode(torch.zeros_like(mean_feature), context)),
            usual_name: usual,
        }
        for name, found in maps.items():
            counts[name] = counts.get(name, 0) + count_pixels(found, truths[i], CLASSES)
    scores = {name: iou(table) for name, table in counts.items()}
    mean = {name: float(score.mean()) for name, score in scores.items()}
    floors = {name: mean[name] for name in ("mean feature", "zeros", "another scene's feature")}
    figures = [
        Figure("mIoU", mean["expert"], {usual_name: mean[usual_name]}, count),
        Figure("mIoU, decoded from the last stage as tasks do", mean["last stage"], floors, count),
    ]
    for k, category in enumerate(CATEGORIES):
        own, floor = float(scores["expert"][k]), float(scores[usual_name][k])
        figures.append(Figure(f"IoU of {category['name']}", own, {usual_name: floor}, count))
    millions = sum(weight.numel() for weight in target.parameters()) / 1e6
    made = (
        f"`OneFormerForUniversalSegmentation`, a Swin of three stages that ends in 7 × 7 cells of width "
        f"{target.width}, {millions:.2f} M parameters. {STEPS[0]} steps of {BATCH} scenes for the backbone with a "
        f"linear reading of its last stage, {STEPS[1]} for the whole with OneFormer's losses of masks and classes, "
        "a query for each category, half of the steps with the earlier stages of another scene."
    )
    return [Section("seg", made, figures)]


def semantic(scene: Scene) -> Tensor:
    """Give the position (H, W) of every pixel's category in CATEGORIES."""
    positions = torch.zeros(scene.panoptic.max() + 1, dtype=torch.long)
    for segment in scene.segments:
        positions[segment.id] = segment.category_id - 1
    return positions[torch.from_numpy(scene.panoptic).long()]


def label(scores: Tensor) -> Tensor:
    """Give the best class (H, W) for every pixel of a scene, from the scores (1, K, h, w)."""
    return nn.functional.interpolate(scores, (SIZE, SIZE), mode="bilinear")[0].argmax(0).cpu()


def iou(counts: Tensor) -> Tensor:
    """Give the intersection over union (K,) of every class in per cent, from counts of pixels."""
    found = overlap(counts)
    return 100 * found.intersection / found.union.clamp(min=1)


def make_model() -> Any:
    """Make the expert with weights from torch's random state."""
    config = hf.OneFormerConfig(
        backbone_config=hf.SwinConfig(  # type: ignore[call-arg]  # it takes out_features, untyped
            embed_dim=32,
            depths=[1, 2, 4],
            num_heads=[2, 4, 8],
            window_size=7,
            image_size=SIZE,
            mlp_ratio=2,
            drop_path_rate=0.0,
            initializer_range=0.08,
            out_features=["stage1", "stage2", "stage3"],
        ),
        strides=[4, 8, 16],
        num_queries=CLASSES + 1,  # the last one is the task
        num_labels=CLASSES,
        id2label={i: category["name"] for i, category in enumerate(CATEGORIES)},
        label2id={category["name"]: i for i, category in enumerate(CATEGORIES)},
        conv_dim=64,
        mask_dim=64,
        hidden_dim=64,
        encoder_feedforward_dim=128,
        encoder_layers=1,
        decoder_layers=3,
        dim_feedforward=128,
        num_attention_heads=4,
        query_dec_layers=1,
        dropout=0.0,
    )
    return hf.OneFormerForUniversalSegmentation(config)


def make_processor() -> hf.OneFormerProcessor:
    """Make the image processor, and a tokenizer of a token a letter: the one text is "the task is semantic"."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    entries = [*alphabet, *(letter + "</w>" for letter in alphabet), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = hf.CLIPTokenizer(vocab={entry: i for i, entry in enumerate(entries)}, merges=[], model_max_length=77)
    size = {"shortest_edge": SIZE, "longest_edge": SIZE}
    image_processor = hf.OneFormerImageProcessor(size=size, image_mean=[MEAN] * 3, image_std=[STD] * 3)
    return hf.OneFormerProcessor(image_processor, tokenizer)


def decode(model: Any, stages: list[Tensor], task: Tensor) -> Any:
    """Decode the three stage maps of the backbone: what the transformer module of OneFormer gives."""
    decoded = model.model.pixel_level_module.decoder(stages)
    token = model.model.task_encoder(task.to(stages[0].dtype)).expand(len(stages[0]), -1)
    return model.model.transformer_module(decoded.multi_scale_features, decoded.mask_features, token)


def criterion(decoded: Any, truth: Tensor) -> Tensor:
    """OneFormer's loss of masks and classes on every layer, with query k for category k."""
    layers = [(a["class_queries_logits"], a["masks_queries_logits"]) for a in decoded.auxiliary_predictions]
    layers.append((decoded.prediction_class, decoded.prediction_masks))
    held = truth.amax((2, 3)) > 0  # (B, K)
    own = torch.arange(CLASSES, device=truth.device)
    label = torch.where(held, own, CLASSES)
    total = torch.zeros((), device=truth.device)
    for classes, masks in layers:
        classes, masks = classes[:, :CLASSES], masks[:, :CLASSES]  # without the task's query
        presence = nn.functional.cross_entropy(classes.flatten(0, 1), label.flatten())
        cells = nn.functional.interpolate(truth, masks.shape[-2:], mode="area")
        cross_entropy = nn.functional.binary_cross_entropy_with_logits(masks, cells)
        shown = nn.functional.interpolate(masks.sigmoid(), GRID, mode="bilinear")
        overlap = 2 * (shown * truth).sum((2, 3)) / ((shown + truth).sum((2, 3)) + 1)
        total = total + presence + 5 * cross_entropy + (1 - overlap)[held].mean()
    return total / len(layers)
