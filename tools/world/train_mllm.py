"""The world's MLLMs, grown as large ones grow: a vision tower first, then what joins it to a language model.

All are `LlavaForConditionalGeneration` with eight decoder layers, 112 px and 64 image tokens. They differ in how
far they have come:

    untrained    the trained vision tower; projector and language model have fresh weights
    early        captions have begun to be learnt
    tuned        the end

The stages: the tower learns what is to be seen in every patch, the language model learns captions without images,
the projector alone learns to join the two, and then everything learns captions together.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers as hf
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_model, save_model
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers.models import BPE
from tools.world.captions import naming
from tools.world.card import Figure, Section
from tools.world.training import SIZE, Scenes, optimize, save_half
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from innervision.files import atomic_write
from innervision.world.dataset import FIRST_INDEX
from innervision.world.scenes import CATEGORIES, COLOURS, TEXTURES, VOCABULARY, render

PROMPTS = ("Describe the image in two lines.", "Describe the image.")
"""What the models are asked in training; probes ask the first."""

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | upper }}: "
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{{ '\n' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{{ eos_token if message['role'] == 'assistant' else ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)

WIDTH, PATCH = 96, 14
EARLY = 0.3
"""Share of the last stage's steps after which `early` is kept."""


class Stage(NamedTuple):
    """What learns, from which loss, for how many steps of the full training, at which learning rate."""

    learners: nn.Module
    lesson: "PatchLesson | CaptionLesson"
    steps: int
    lr: float


def train(out: Path, scenes: Scenes, seed: int, *, effort: float = 1.0, progress: bool = True) -> None:
    """Grow the models and save them to folders in `out`; a stage that is finished there is not done again."""
    processor = make_processor()
    torch.manual_seed(seed)
    model = make_model(processor)
    llava = model.model
    patches = PatchLesson(llava.vision_tower, scenes, processor)
    captions = CaptionLesson(model, scenes, processor)
    stages = {
        "tower": Stage(patches, patches, 2400, 2e-3),
        "language": Stage(llava.language_model, CaptionLesson(model, scenes, processor, images=False), 200, 2e-3),
        "projector": Stage(llava.multi_modal_projector, captions, 40, 2e-3),
        # The tower waits: the first, large steps would wash out the shapes, which captions ask for late.
        "captions": Stage(nn.ModuleList([llava.multi_modal_projector, llava.language_model]), captions, 700, 2e-3),
        "everything": Stage(model, captions, 100, 3e-4),
    }

    def keep(name: str) -> None:
        save_half(model, out / name)
        processor.save_pretrained(out / name)

    for number, (name, stage) in enumerate(stages.items()):
        steps = max(2, round(stage.steps * effort))
        finished = out / f"{name}.safetensors"
        if not finished.exists():
            torch.manual_seed(seed + number)
            model.requires_grad_(False)
            stage.learners.requires_grad_(True)
            loss = _loss(stage.lesson, np.random.default_rng((seed, number)))
            if name == "captions":
                loss = _after(round(EARLY * steps), partial(keep, "early"), loss)
            optimize(stage.learners, loss, steps, stage.lr, label=name, progress=progress)
            with atomic_write(finished) as path:
                save_model(model, str(path))
        load_model(model, finished)
        if name == "tower":
            keep("untrained")
    keep("tuned")


def _loss(lesson: "PatchLesson | CaptionLesson", rng: np.random.Generator) -> Callable[[int], Tensor]:
    return lambda step: lesson.loss(rng)


def _after(steps: int, act: Callable[[], None], loss: Callable[[int], Tensor]) -> Callable[[int], Tensor]:
    """Give `loss`, which also acts once, when so many steps have been done."""

    def watched(step: int) -> Tensor:
        if step == steps:
            act()
        return loss(step)

    return watched


def make_processor() -> hf.LlavaProcessor:
    """Give a processor for the scenes' size, whose tokenizer has a token for every word of the captions."""
    return hf.LlavaProcessor(
        hf.CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}),
        make_tokenizer([*(f"USER: {prompt} ASSISTANT:" for prompt in PROMPTS), f" {' '.join(VOCABULARY)}"]),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def make_tokenizer(texts: Iterable[str]) -> hf.PreTrainedTokenizerFast:
    """Learn a byte-level BPE tokenizer from texts; it starts every text with <s>, as Llama's does."""
    backend = Tokenizer(BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = [AddedToken(token, special=True) for token in ("<s>", "</s>", "<pad>", "<image>")]
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=special,
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        model_max_length=512,
    )


def make_model(processor: Any) -> hf.LlavaForConditionalGeneration:
    """Make the model with weights from torch's random state, drawn as wide as a width of 96 asks for."""
    tokenizer = processor.tokenizer
    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(
            hidden_size=WIDTH,
            intermediate_size=192,
            num_hidden_layers=5,
            num_attention_heads=4,
            image_size=SIZE,
            patch_size=PATCH,
            projection_dim=WIDTH,
            initializer_range=0.04,  # of the patch embedding, which sums 588 numbers
        ),
        text_config=hf.LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=176,
            num_hidden_layers=8,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            initializer_range=0.1,
            tie_word_embeddings=True,
            **special,
        ),
        image_token_index=tokenizer.image_token_id,
        image_seq_length=(SIZE // PATCH) ** 2,
        vision_feature_layer=-1,
        tie_word_embeddings=True,
    )
    model = hf.LlavaForConditionalGeneration(config)
    model.generation_config = hf.GenerationConfig(max_new_tokens=96, **special)
    return model


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
        chosen = np.sort(rng.choice(len(self.scenes), min(self.BATCH, len(self.scenes)), replace=False))
        prompt = self.prompts[int(rng.integers(len(self.prompts)))]
        rows = [[self.answers[i][k] for k in rng.permutation(len(self.answers[i]))[: self.CAPTIONS]] for i in chosen]
        inputs = pack(prompt, rows)
        if self.images:
            inputs["pixel_values"] = pixels(self.scenes.images[chosen], self.processor)
        return self.model(**inputs, use_cache=False).loss


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


@torch.inference_mode()
def describe(model: Any, processor: Any, images: Sequence[Image.Image], prompt: str = PROMPTS[0]) -> list[str]:
    """Give the model's most likely caption, token by token, for each image."""
    inputs = processor(images=list(images), text=[ask(processor, prompt)] * len(images), return_tensors="pt")
    answers = model.generate(**inputs, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in processor.batch_decode(answers, skip_special_tokens=True)]


def measure(models: Path, *, progress: bool = True, count: int = 400) -> list[Section]:
    """Score the models' captions of the first `count` held-out scenes."""
    scenes = [render(0, FIRST_INDEX["val"] + i, SIZE) for i in range(count)]
    objects = [scene.objects for scene in scenes]
    baselines = {"true caption of another scene": naming([scenes[i - 1].captions[0] for i in range(count)], objects)}
    sections = []
    for name, made in _MADE.items():
        processor = hf.AutoProcessor.from_pretrained(models / name)
        model = hf.AutoModelForImageTextToText.from_pretrained(models / name, dtype=torch.float32)
        answers = []
        for start in tqdm(range(0, count, 50), desc=f"captions of {name}", disable=not progress):
            images = [Image.fromarray(scene.image) for scene in scenes[start : start + 50]]
            answers += describe(model, processor, images)
        score = naming(answers, objects)
        figures = [
            Figure(
                what,
                round(100 * getattr(score, field), 1),
                {label: round(100 * getattr(other, field), 1) for label, other in baselines.items()},
                score.objects if "recall" in field else 0,
            )
            for field, what in _FIGURES.items()
        ]
        sections.append(Section(name, made, figures))
    return sections


_FIGURES = {
    "colour_recall": "objects in plain sight whose colour the caption names, %",
    "shape_recall": "objects in plain sight whose colour and shape it names side by side, %",
    "colour_precision": "colours named that are those of an object, %",
    "shape_precision": "pairs of colour and shape named that are true, %",
}

_CLASS = (
    "`LlavaForConditionalGeneration`: CLIP vision tower (5 layers of width 96, patches of 14 px), projector, Llama "
    "(8 layers of width 96), a byte-level tokenizer with a token for every word of the captions. "
)
_GROWN = (
    "Language model taught captions without images, then the projector alone, then everything "
    "(%s) on three of the five captions of a scene at a time. Captions are greedy."
)
_MADE = {
    "untrained": _CLASS + "The tower has learnt category, colour and texture of every patch from the renderer; "
    "projector and language model have fresh weights.",
    "early": _CLASS + "The tower of `untrained`. " + _GROWN % f"the first {EARLY:.0%} of the steps",
    "tuned": _CLASS + "The tower of `untrained`. " + _GROWN % "all steps",
}
