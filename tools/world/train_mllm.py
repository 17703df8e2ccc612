"""The world's MLLMs, grown as large ones grow: a vision tower first, then what joins it to a language model.

All are `LlavaForConditionalGeneration` with eight decoder layers, 112 px and 64 image tokens. They differ in how
far they have come:

    untrained    the trained vision tower; projector and language model have fresh weights
    early        captions have begun to be learnt
    tuned        the end
    distilled    the end, where the experts' features were learnt as well, at layers known (`tools.world.distill`)

The stages: the tower learns what is to be seen in every patch, the language model learns captions without images,
the projector alone learns to join the two, and then everything learns captions together. The last two stages are done
twice, from the same weights and over the same scenes in the same order: for `tuned` and for `distilled`.
"""

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers as hf
from PIL import Image
from safetensors.torch import load_file, load_model, save_model
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers.models import BPE
from tools.world.captions import naming
from tools.world.card import Figure, Section
from tools.world.distill import LOSSES, DistillingLesson, EmbeddingLoss, expert_features
from tools.world.lessons import PATCH, PROMPTS, WIDTH, CaptionLesson, PatchLesson, ask
from tools.world.training import SIZE, Scenes, optimize, save_half
from torch import Tensor, nn
from tqdm import tqdm

from innervision.files import atomic_write
from innervision.world.dataset import FIRST_INDEX
from innervision.world.scenes import VOCABULARY, render

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | upper }}: "
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{{ '\n' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{{ eos_token if message['role'] == 'assistant' else ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)

EARLY = 0.3
"""Share of the steps of the captions' stage after which `early` is kept."""

STAGES = ("tower", "language", "projector", "captions", "everything")
"""In this order; the seed of a stage is that of the training and its number."""


ENDS = {"tuned": (), "distilled": tuple(LOSSES)}
"""Model -> the experts that are distilled into it in the last two stages."""


class Stage(NamedTuple):
    """What learns, from which loss, for how many steps of the full training, at which learning rate."""

    learners: Sequence[nn.Module]
    lesson: PatchLesson | CaptionLesson | DistillingLesson
    steps: int
    lr: float


def train(
    out: Path,
    scenes: Scenes,
    seed: int,
    *,
    effort: float = 1.0,
    progress: bool = True,
    features: Mapping[str, Tensor] | None = None,
    tower: Path | None = None,
    ends: Mapping[str, Sequence[str]] = ENDS,
) -> None:
    """Grow the models and save them to folders in `out`; a stage that is finished there is not done again.

    Args:
        out: folder of the models.
        scenes: to learn from.
        seed: of the weights and of the order of the scenes.
        effort: share of the full training to do, for a try.
        progress: show bars.
        features: of the experts to distil, as `expert_features` gives them; by default of those beside `out`.
        tower: file with the weights of a model whose vision tower is taken; by default one is trained.
        ends: the models in which the training ends, as in `ENDS`.

    Raises:
        InnerVisionError: the folder of `out` lacks an expert to distil.
    """
    if features is None:
        features = expert_features(out.parent, scenes, out, progress=progress)
    processor = make_processor()
    torch.manual_seed(seed)
    model = make_model(processor)
    llava = model.model
    projector, language = llava.multi_modal_projector, llava.language_model
    patches = PatchLesson(llava.vision_tower, scenes, processor)
    captions = CaptionLesson(model, scenes, processor)
    embeddings = EmbeddingLoss(features, WIDTH)
    weights = nn.ModuleList([model, embeddings])

    def keep(name: str) -> None:
        unfinished = out / f".{name}"
        save_half(model, unfinished)
        processor.save_pretrained(unfinished)
        shutil.rmtree(out / name, ignore_errors=True)
        unfinished.rename(out / name)  # a model's folder is complete

    def learn(name: str, stage: Stage, branch: str = "") -> None:
        finished = out / f"{branch}{name}.safetensors"
        if not finished.exists():
            number = STAGES.index(name)
            torch.manual_seed(seed + number)
            weights.requires_grad_(False)
            learners = nn.ModuleList(stage.learners).requires_grad_(True)
            steps = max(2, round(stage.steps * effort))
            loss = _loss(stage.lesson, np.random.default_rng((seed, number)))
            if finished.stem == "tuned-captions":
                loss = _after(round(EARLY * steps), partial(keep, "early"), loss)
            optimize(learners, loss, steps, stage.lr, label=finished.stem, progress=progress)
            with atomic_write(finished) as path:
                save_model(weights, str(path))
        load_model(weights, finished)

    if tower is None:
        learn("tower", Stage([patches], patches, 2400, 2e-3))
    else:
        load_tower(llava.vision_tower, tower)
    keep("untrained")
    learn("language", Stage([language], CaptionLesson(model, scenes, processor, images=False), 200, 2e-3))
    learn("projector", Stage([projector], captions, 40, 2e-3))
    for name, distilled in ends.items():
        lesson = DistillingLesson(captions, embeddings, distilled) if distilled else captions
        heads = [embeddings] if distilled else []
        load_model(weights, out / "projector.safetensors")
        # The tower waits: the first, large steps would wash out the shapes, which captions ask for late.
        learn("captions", Stage([projector, language, *heads], lesson, 700, 2e-3), f"{name}-")
        learn("everything", Stage([model, *heads], lesson, 100, 3e-4), f"{name}-")
        keep(name)


def load_tower(module: nn.Module, path: Path) -> None:
    """Give a vision tower the weights of that of a model of this kind, which was saved to a file."""
    mark = "vision_tower."
    saved = load_file(path)
    module.load_state_dict({name.partition(mark)[2]: weight for name, weight in saved.items() if mark in name})


def _loss(lesson: PatchLesson | CaptionLesson | DistillingLesson, rng: np.random.Generator) -> Callable[[int], Tensor]:
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
    "distilled": _CLASS + "As `tuned`, from the same weights after the projector's stage and over the same scenes in "
    "the same order, but with embedding losses beside that of captions: smooth L1 between what a linear head predicts "
    "at the place of each cell (gen: from the mean over the prompt) and the expert's features, less their mean, in "
    "units of their spread; "
    + "; ".join(f"{name} at decoder layer {loss.layer}, weight {loss.weight:g}" for name, loss in LOSSES.items())
    + ". The heads are thrown away.",
}
