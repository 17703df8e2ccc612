"""The depth expert of the world: a Depth Anything whose DINOv2 sees a scene as 8 × 8 patches.

It learns nearness, the logarithm of inverse depth scaled to 0 (the sky) … 1 (`NEAREST`), from the scenes alone.
First the backbone learns, with a linear reading of its last feature as bins of nearness; then, on the frozen backbone,
neck and head.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from PIL import Image
from tools.world.card import Figure, Section
from tools.world.training import SIZE, Scenes, draw_batch, held_out, optimize, resampling, save_half
from torch import Tensor, nn
from tqdm import tqdm

from innervision.mllm.model import default_device
from innervision.targets.depth import DepthTarget
from innervision.world.dataset import FIRST_INDEX, choose_pairs, mean_depth
from innervision.world.scenes import CATEGORIES, FAR, Dice

SIDE = 8
"""Patches along a side."""
ZOOM = 3
"""The target squashes images to 336 pixels a side, three times a scene's; training works at a scene's own."""
NEAREST = 0.8
"""Metres; hardly a point of any scene is nearer."""
STEPS = (24_000, 3000)
"""Of the backbone, and of neck and head."""
BINS, COARSE = 24, 2
"""The backbone learns which of so many equal bins of nearness a square of COARSE pixels a side is in."""
BATCH, LR = 16, 2e-3
WIDTH, BLOCKS = 96, 5
MEAN, STD = 0.5, 0.25
THINGS = [category["isthing"] for category in CATEGORIES]


def train(out: Path, scenes: Scenes, seed: int, *, effort: float = 1.0, progress: bool = True) -> None:
    """Train the expert and save it to `out/depth`. See `tools.world.build.Part`."""
    model = make_model(SIZE)
    spread_weights(model.backbone)
    model.to(default_device(), memory_format=torch.channels_last)
    dice = np.random.default_rng(seed)
    # The mean of the pixels that the target makes of one pixel of a scene.
    squash = resampling(ZOOM * SIZE).unflatten(0, (SIZE, ZOOM)).mean(1)
    squares = SIZE // SIDE // COARSE  # along the side of a patch
    reading = nn.Linear(WIDTH, BINS * squares**2).to(model.device)

    def draw() -> tuple[Tensor, Tensor, Tensor]:
        """Pixels (B, 3, H, W), nearness (B, H, W), and what a pixel counts: fourfold on an object."""
        images, depths, labels = draw_batch(scenes, dice, BATCH)
        images = images[:, dice.permutation(3)]  # other colours, the same depth
        pixels = (squash @ images @ squash.T - MEAN) / STD
        weight = 1.0 + 3.0 * torch.tensor(THINGS)[labels]
        return pixels.to(model.device), nearness(depths).to(model.device), (weight / weight.mean()).to(model.device)

    def read(step: int) -> Tensor:
        """Cross entropy with the two bins that a nearness lies between: it learns faster than absolute error."""
        pixels, truth, weight = draw()
        truth, weight = (maps[:, ::COARSE, ::COARSE] for maps in (truth, weight))
        cells = reading(model.backbone(pixels).feature_maps[-1][:, 1:])  # (B, 64, BINS · 7 · 7)
        scores = nn.functional.pixel_shuffle(cells.mT.unflatten(-1, (SIDE, SIDE)), squares).log_softmax(dim=1)
        place = truth.clamp(0, 1) * (BINS - 1)
        below = place.floor().clamp(max=BINS - 2)
        share = place - below  # of the upper bin
        lower, upper = (scores.gather(1, (below.long() + up)[:, None])[:, 0] for up in (0, 1))
        return -(weight * (lower * (1 - share) + upper * share)).mean()

    def decoded(step: int) -> Tensor:
        pixels, truth, weight = draw()
        with torch.no_grad():
            features = model.backbone(pixels).feature_maps
        half = BATCH // 2  # of the other half the last feature is decoded alone, as tasks decode a prediction
        mixed = [torch.cat([feature[:half], features[-1][half:]]) for feature in features]
        return (weight * (decode(model, mixed) - truth).abs()).mean()

    steps = [max(1, round(count * effort)) for count in STEPS]
    learners, saved = nn.ModuleList([model.backbone, reading]), out / "backbone.safetensors"
    optimize(learners, read, steps[0], LR, saved=saved, label="depth backbone", progress=progress)
    dice = np.random.default_rng((seed, 1))
    learners = nn.ModuleList([model.neck, model.head])
    optimize(learners, decoded, steps[1], LR, label="depth head", progress=progress)
    save_half(enlarge(model), out / "depth")
    processor = hf.DPTImageProcessor(
        size={"height": ZOOM * SIZE, "width": ZOOM * SIZE},
        resample=Image.Resampling.BILINEAR,
        image_mean=[MEAN] * 3,
        image_std=[STD] * 3,
    )
    processor.save_pretrained(out / "depth")


def measure(models: Path, *, progress: bool = True, count: int = 500) -> list[Section]:
    """Measure how many pairs of held-out scenes the expert orders right. See `tools.world.build.Part`."""
    target = DepthTarget.load(str(models / "depth"), head=True)
    prior = mean_depth(0, SIZE)
    place = torch.from_numpy(-prior)
    scenes = held_out(count)
    contexts = [target.context([Image.fromarray(scene.image)]) for scene in tqdm(scenes, "depth", disable=not progress)]
    mean_feature = torch.cat([context.features for context in contexts]).mean(0, keepdim=True)
    right: dict[str, list[bool]] = {}
    for i, (scene, context) in enumerate(zip(scenes, contexts, strict=True)):
        assert context.output is not None
        maps = {
            "expert": context.output,
            "last feature": target.decode(context.features, context),
            "another scene's feature": target.decode(contexts[i - 1].features, context),
            "mean feature": target.decode(mean_feature, context),
        }
        shown = {
            name: nn.functional.interpolate(decoded[None].cpu(), (SIZE, SIZE), mode="bilinear")[0, 0]
            for name, decoded in maps.items()
        } | {"mean depth map": place}
        for pair in choose_pairs(scene, prior, Dice(0, FIRST_INDEX["val"] + i, 1)):
            near, far = tuple(pair["point1"]), tuple(pair["point2"])
            for name, decoded in shown.items():
                right.setdefault(name, []).append(bool(decoded[near] > decoded[far]))
    score = {name: 100 * float(np.mean(verdicts)) for name, verdicts in right.items()}
    pairs = len(right["expert"])
    floors = {name: score[name] for name in ("mean feature", "another scene's feature")}
    millions = sum(weight.numel() for weight in target.parameters()) / 1e6
    made = (
        f"`DepthAnythingForDepthEstimation`, a DINOv2 of {BLOCKS} blocks of width {WIDTH} that sees {SIDE} × {SIDE} "
        f"patches, {millions:.2f} M parameters. {STEPS[0]} steps of {BATCH} scenes for the backbone with a linear "
        f"reading of its last feature as {BINS} bins of nearness; then, on the frozen backbone, {STEPS[1]} for neck "
        "and head, half of the scenes decoded from all blocks and half from the last alone. Loss: cross entropy of the "
        "bins, then the absolute error of the logarithm of inverse depth; objects count fourfold. The colour channels "
        "of every batch change places."
    )
    figures = [
        Figure("pairs ordered right, %", score["expert"], {"mean depth map": score["mean depth map"]}, pairs),
        Figure("pairs ordered right, decoded from the last feature alone, %", score["last feature"], floors, pairs),
    ]
    return [Section("depth", made, figures)]


def make_model(size: int) -> Any:
    """Make the expert for images of `size` pixels a side, with weights from torch's random state."""
    config = hf.DepthAnythingConfig(
        backbone_config=hf.Dinov2Config(  # type: ignore[call-arg]  # it takes out_indices, untyped
            hidden_size=WIDTH,
            num_hidden_layers=BLOCKS,
            num_attention_heads=4,
            mlp_ratio=2,
            image_size=size,
            patch_size=size // SIDE,
            out_indices=list(range(BLOCKS - 3, BLOCKS + 1)),
            reshape_hidden_states=False,
        ),
        patch_size=size // SIDE,
        reassemble_hidden_size=WIDTH,
        neck_hidden_sizes=[24, 24, 32, 32],
        fusion_hidden_size=24,
        head_hidden_size=12,
    )
    model: Any = hf.DepthAnythingForDepthEstimation(config)
    nn.init.constant_(model.head.conv3.bias, 0.5)  # so that the last ReLU passes a gradient from the start
    return model


def spread_weights(backbone: nn.Module) -> None:
    """Draw a backbone's first weights as wide as their inputs allow: at DINOv2's own 0.02 a small one hardly learns."""
    for name, weight in backbone.named_parameters():
        if "position_embeddings" in name:
            nn.init.normal_(weight, std=0.5)
        elif weight.dim() > 1 and "token" not in name:
            nn.init.xavier_uniform_(weight.view(len(weight), -1))


@torch.no_grad()
def enlarge(model: Any) -> Any:
    """Make of the expert for scenes the one for zoomed scenes: every weight of a patch goes to `ZOOM`² pixels."""
    large = make_model(ZOOM * SIZE)
    weights = model.state_dict()
    kernel = "backbone.embeddings.patch_embeddings.projection.weight"
    weights[kernel] = nn.functional.interpolate(weights[kernel], scale_factor=ZOOM, mode="nearest") / ZOOM**2
    large.load_state_dict(weights)
    return large.eval()


def nearness(depth: Tensor) -> Tensor:
    """Scale depth in metres to 0 at `FAR` … 1 at `NEAREST`, logarithmically."""
    return (FAR / depth).log() / math.log(FAR / NEAREST)


def decode(model: Any, features: list[Tensor]) -> Tensor:
    """Decode the features (B, 1 + 64, C) of four blocks to nearness (B, H, W)."""
    return model.head(model.neck(features, SIDE, SIDE), SIDE, SIDE)
