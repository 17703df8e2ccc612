"""What the world's MLLMs learn from: what is to be seen in every patch, and captions."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tools.world.training import SIZE, Scenes
from torch import Tensor, nn
from torch.nn import functional as F

from innervision.world.scenes import CATEGORIES, COLOURS, TEXTURES

WIDTH, PATCH = 96, 14

PROMPTS = ("Describe the image in two lines.", "Describe the image.")
"""What the models are asked in training; probes ask the first."""


class PatchLesson(nn.Module):
    """Category, colour and texture of what is at 2 × 2 points of every patch, read by a linear head."""

    POINTS = 2
    SPLIT = (len(CATEGORIES), 1 + len(COLOURS), 1 + len(TEXTURES))  # 0 = not on an object, but for categories
    WEIGHTS = (1.0, 0.5, 0.2)
    BATCH = 48

    def __init__(self, tower: nn.Module, scenes: Scenes, processor: Any) -> None:
        super().__init__()
        self.tower = tower
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, self.POINTS**2 * sum(self.SPLIT))
        self.scenes, self.processor = scenes, processor
        self.facts = np.zeros((len(scenes), 2, 256), np.uint8)  # scene, colour or texture, segment
        for i, objects in enumerate(scenes.objects):
            for item in objects:
                if item["segment_id"]:
                    self.facts[i, 0, item["segment_id"]] = 1 + list(COLOURS).index(item["colour"])
                    self.facts[i, 1, item["segment_id"]] = 1 + TEXTURES.index(item["texture"])

    def loss(self, rng: np.random.Generator) -> Tensor:
        """Cross-entropy on random scenes, half of them mirrored; points on objects count three times."""
        chosen = np.sort(rng.choice(len(self.scenes), min(self.BATCH, len(self.scenes)), replace=False))
        images, labels = pixels(self.scenes.images[chosen], self.processor), self.labels(chosen)
        mirrored = torch.from_numpy(rng.random(len(chosen)) < 0.5)
        images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
        labels = torch.where(mirrored[:, None, None, None], labels.flip(-1), labels)
        side = SIZE // PATCH
        labels = labels.unflatten(3, (side, self.POINTS)).unflatten(2, (side, self.POINTS))  # (B, 3, s, p, s, p)
        labels = labels.permute(1, 0, 2, 4, 3, 5).flatten(1)  # (3, B · s · s · p · p)
        states = self.tower(pixel_values=images).last_hidden_state[:, 1:]
        scores = self.head(self.norm(states)).view(-1, sum(self.SPLIT)).split(self.SPLIT, dim=1)
        importance = torch.where(labels[1] > 0, 1.0, 1 / 3)
        losses = [F.cross_entropy(score, label, reduction="none") for score, label in zip(scores, labels, strict=True)]
        means = torch.stack([(importance * each).sum() for each in losses]) / importance.sum()  # (3,)
        return means @ torch.tensor(self.WEIGHTS)

    def labels(self, chosen: NDArray[np.int64]) -> Tensor:
        """Give category, colour and texture at the points: (B, 3, points, points) int64."""
        step = PATCH // self.POINTS
        segments = self.scenes.panoptic[chosen, step // 2 :: step, step // 2 :: step]
        categories = self.scenes.semantic[chosen, step // 2 :: step, step // 2 :: step]
        facts = [self.facts[chosen, k][np.arange(len(chosen))[:, None, None], segments] for k in (0, 1)]
        return torch.from_numpy(np.stack([categories, *facts], axis=1).astype(np.int64))


class CaptionLesson:
    """The captions of a scene as answers to a prompt, in one sequence, so that the image is read once for all.

    Each caption sees the prompt and itself, at the places that it would have alone.
    """

    BATCH, CAPTIONS = 16, 3

    def __init__(self, model: Any, scenes: Scenes, processor: Any, *, images: bool = True) -> None:
        self.model, self.scenes, self.processor, self.images = model, scenes, processor, images
        blank = Image.new("RGB", (SIZE, SIZE))
        start = processor.tokenizer.bos_token_id
        self.prompts = [
            processor(images=blank, text=ask(processor, prompt))["input_ids"][0] if images else [start]
            for prompt in PROMPTS
        ]
        ends = processor.tokenizer.eos_token
        self.answers = [
            processor.tokenizer([f" {caption}{ends}" for caption in captions], add_special_tokens=False)["input_ids"]
            for captions in scenes.captions
        ]

    def loss(self, rng: np.random.Generator) -> Tensor:
        """Cross-entropy of the captions' tokens, for random captions of random scenes."""
        return self.model(**self.draw(rng).inputs, use_cache=False).loss

    def draw(self, rng: np.random.Generator) -> "Drawn":
        """Draw scenes, a prompt for all, and captions of each."""
        chosen = np.sort(rng.choice(len(self.scenes), min(self.BATCH, len(self.scenes)), replace=False))
        prompt = self.prompts[int(rng.integers(len(self.prompts)))]
        rows = [[self.answers[i][k] for k in rng.permutation(len(self.answers[i]))[: self.CAPTIONS]] for i in chosen]
        inputs = pack(prompt, rows)
        if self.images:
            inputs["pixel_values"] = pixels(self.scenes.images[chosen], self.processor)
        return Drawn(chosen, prompt, inputs)


class Drawn(NamedTuple):
    """What a step learns captions from."""

    chosen: NDArray[np.int64]
    """The numbers of the scenes."""
    prompt: list[int]
    """With which all rows begin."""
    inputs: dict[str, Tensor]
    """The model's arguments."""


def pack(prompt: Sequence[int], rows: Sequence[Sequence[Sequence[int]]]) -> dict[str, Tensor]:
    """Lay several answers to one prompt side by side; give the model's arguments.

    The first token of an answer is a label only in the first answer: the others do not stand after the prompt.
    """
    length = len(prompt) + max(sum(map(len, answers)) for answers in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    owners = torch.full((len(rows), length), -1)  # 0: the prompt, 1…: an answer, -1: padding
    places = torch.zeros(len(rows), length, dtype=torch.long)
    labels = torch.full((len(rows), length), -100)
    for row, answers in enumerate(rows):
        at = 0
        for owner, tokens in enumerate([prompt, *answers]):
            here = slice(at, at + len(tokens))
            ids[row, here] = torch.tensor(tokens)
            owners[row, here] = owner
            places[row, here] = torch.arange(len(tokens)) + (len(prompt) if owner else 0)
            if owner:
                labels[row, here] = ids[row, here]
            if owner > 1:
                labels[row, at] = -100
            at += len(tokens)
    seen = (owners[:, None, :] == owners[:, :, None]) | (owners[:, None, :] == 0)  # (B, T, T): token, what it sees
    seen &= torch.ones(length, length, dtype=torch.bool).tril()
    mask = torch.where(seen, 0.0, torch.finfo(torch.float32).min)[:, None]
    return {"input_ids": ids, "attention_mask": mask, "position_ids": places, "labels": labels}


def pixels(images: NDArray[np.uint8], processor: Any) -> Tensor:
    """Give images of the scenes' size as the processor's image processor would: (B, 3, H, W)."""
    mean, std = (torch.tensor(getattr(processor.image_processor, f"image_{name}")) for name in ("mean", "std"))
    scaled = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2) / 255
    return (scaled - mean.view(3, 1, 1)) / std.view(3, 1, 1)


def ask(processor: Any, prompt: str) -> str:
    """Give the text of a user's turn with an image and a prompt, up to where the answer begins."""
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}]
    return processor.apply_chat_template(turn, add_generation_prompt=True)
