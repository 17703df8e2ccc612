"""Segmentation: the last feature map of OneFormer's backbone, and the classes that its decoders see in it."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.func import functional_call
from transformers import OneFormerForUniversalSegmentation, OneFormerImageProcessor, OneFormerModel

from innervision.checkpoints.checkpoint import Checkpoint
from innervision.checkpoints.layout import read_foreign_expert
from innervision.errors import InnerVisionError
from innervision.targets.target import Context, Parts, Preparer, Target


class SegTarget(Target):
    """The map of the last backbone stage after its LayerNorm, resized to 24 × 24: 576 tokens, row by row.

    A map of fewer cells keeps its own.

    The image is squashed to 768 × 768 pixels, which OneFormer's image processor then enlarges by its own rule
    (to 800 × 800). A `size` given to `load` is taken as it is. OneFormer: https://arxiv.org/abs/2211.06220

    Decoding puts the features in the place of the last stage; the other stages come from the real image. As in the
    original (arXiv:2412.09585) all stages are resized to the last one's size, 25 × 25.
    """

    kind = "seg"
    default_expert = "shi-labs/oneformer_coco_swin_large"
    size = 768
    largest_grid = 24
    """Cells along a side to which a larger map is resized, as in arXiv:2412.09585."""
    grid: int
    """Cells along a side of the features."""

    @classmethod
    def read(cls, checkpoint: Checkpoint, size: int | None) -> Parts:
        """Keep of OneFormer the backbone. See `Target.read`."""
        foreign = read_foreign_expert(cls.kind, checkpoint.source, checkpoint.revision)
        random_weights: dict[str, Tensor] = {}
        if foreign is not None:
            model, processor, named = foreign.model, foreign.processor, Checkpoint(foreign.named or cls.default_expert)
        else:
            config = checkpoint.load_config(model_type="oneformer")
            # The names of the classes play no part in features, and Transformers looks them up on the Hub.
            processor = checkpoint.load_image_processor(OneFormerImageProcessor, class_info_file=None)
            whole, random_weights = checkpoint.load_model(OneFormerForUniversalSegmentation, config)
            model, named = whole.model, checkpoint
        side = size or cls.size
        preparer = Preparer(processor, side, side, resize_again=size is None)
        head = partial(SegHead.read, named, model)
        return Parts(model.pixel_level_module.encoder, random_weights, preparer, head)

    def shape(self) -> tuple[int, int]:
        """Give the number of cells and the width of the last stage; nothing is computed for it but shapes."""
        weights = {name: tensor.to("meta") for name, tensor in self.module.state_dict().items()}
        blank = Image.new("RGB", (self.preparer.width, self.preparer.height))
        pixels: Any = self.prepare([blank])
        *_, height, width = functional_call(self.module, weights, pixels.to("meta")).feature_maps[-1].shape
        self.grid = min(self.largest_grid, height, width)
        return self.grid**2, self.module.channels[-1]

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Give the tokens (B, N, C) of the resized map. See `Target.encode`."""
        return self._tokens(self.module(pixels).feature_maps[-1])

    def context_of_pixels(self, pixels: Tensor) -> Context:
        """Give the features, the scores that the expert gives to the image as it is, and its other stages."""
        *stages, last = self.module(pixels).feature_maps  # each (B, C, h, w)
        given = tuple(_resize(stage, last.shape[-2:]) for stage in stages)
        return Context(self._tokens(last), self.head([*stages, last]), given)

    def decode_features(self, features: Tensor, given: tuple[Tensor, ...], seeds: Sequence[int] | None) -> Tensor:
        """Give the scores (B, K, h, w) of K classes, the last stage being made of features (B, N, C)."""
        last = features.mT.unflatten(-1, (self.grid, self.grid))  # (B, C, grid, grid)
        return self.head([*given, _resize(last, given[-1].shape[-2:])])

    @property
    def labels(self) -> list[str]:
        """The names of the K classes."""
        return self.head.labels

    def _tokens(self, last: Tensor) -> Tensor:
        return _resize(last.float(), (self.grid, self.grid)).flatten(2).mT  # (B, N, C)


class SegHead(nn.Module):
    """OneFormer without its backbone, for the task "semantic"."""

    def __init__(self, model: Any, task_inputs: Tensor, labels: list[str]) -> None:
        """Take the decoders of a OneFormerModel, the tokens of the task and the names of the classes."""
        super().__init__()
        self.pixel_decoder = model.pixel_level_module.decoder
        self.transformer = model.transformer_module
        self.task_encoder = model.task_encoder
        self.register_buffer("task_inputs", task_inputs)  # (1, length)
        self.labels = labels

    @classmethod
    def read(cls, checkpoint: Checkpoint, model: OneFormerModel) -> "SegHead":
        """Read what the weights of a model leave out: tokenizer and class names.

        Args:
            checkpoint: has them; the model may come from elsewhere.
            model: the expert.

        Raises:
            InnerVisionError: they cannot be had, or are those of another model.
        """
        length: Any = model.config.task_seq_len
        tokenizer, text = checkpoint.load_tokenizer(), "the task is semantic"
        tokens = tokenizer(text, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        # Where the files are missing, Transformers makes a tokenizer without words.
        if tokenizer.decode(tokens["input_ids"][0], skip_special_tokens=True).strip() != text:
            raise InnerVisionError(f"{checkpoint.expert} has no tokenizer for its task's name; add the files of CLIP's")
        labels = _labels(checkpoint)
        known = model.transformer_module.decoder.class_embed.out_features - 1  # the last one is "nothing"
        if len(labels) != known:
            raise InnerVisionError(f"{checkpoint.expert} names {len(labels)} classes, but the weights know {known}")
        return cls(model, tokens["input_ids"] * tokens["attention_mask"], labels)

    def forward(self, stages: list[Tensor]) -> Tensor:
        """Give the scores (B, K, h, w) of the classes for backbone stages (B, C, h, w), finest first.

        As `OneFormerImageProcessor.post_process_semantic_segmentation` computes them: the probability of the class
        times that of the mask, summed over the queries.
        """
        decoded = self.pixel_decoder(stages)
        task: Any = self.task_inputs
        task_token = self.task_encoder(task.to(stages[0].dtype).expand(len(stages[0]), -1))
        result = self.transformer(
            multi_scale_features=decoded.multi_scale_features,
            mask_features=decoded.mask_features,
            task_token=task_token,
        )
        classes = result.prediction_class.float().softmax(dim=-1)[..., :-1]  # (B, queries, K), without "nothing"
        masks = result.prediction_masks.float().sigmoid()  # (B, queries, h, w)
        return torch.einsum("bqk,bqhw->bkhw", classes, masks)


def _labels(checkpoint: Checkpoint) -> list[str]:
    """Name the classes as the configuration does, or else the class file of the image processor."""
    names: Any = checkpoint.load_config(model_type="oneformer").id2label
    labels = [str(names[index]) for index in sorted(names)]
    if labels != [f"LABEL_{index}" for index in range(len(labels))]:
        return labels
    classes = checkpoint.load_class_file()
    return [str(classes[str(index)]["name"]) for index in range(len(labels))]


def _resize(stage: Tensor, size: Sequence[int]) -> Tensor:
    return nn.functional.interpolate(stage, tuple(size), mode="bilinear", align_corners=False)
