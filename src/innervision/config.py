"""Every setting of a run. The text below a field is also its help on the command line."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from innervision.errors import InnerVisionError, require

RENAMED = {"max_images": "limit"}
"""Settings that were called otherwise in older runs of the same format."""

VISION = -1
"""The layer number of what the vision tower hands to the projector."""

Protocol = Literal["standard", "paper"]
"""How probes are trained and scores are made; every score names it."""

DType = Literal["float32", "bfloat16", "float16"]

Option = bool | int | float | str | list[bool | int | float | str] | None
"""What a setting of another package's probe may hold. Not Any: for that jsonargparse imports what a file names."""


@dataclass(kw_only=True)
class ProbeSettings:
    """The probe that reads one layer. The defaults of a resampler are those of the paper."""

    kind: str = "ridge"
    """Exact, solved in one pass: ridge (a linear map from the states at the place of each cell of the target) or pooled
    (a linear map for each cell from the mean of the tokens). Trained: resampler (the paper's one-layer Perceiver
    Resampler), linear (as pooled), or blind (the resampler's queries without any input: what can be learnt without the
    MLLM)."""
    positions: bool = False
    """Add each token's place (in the sequence and, where it is known, in the image) to its key. Without it a
    resampler cannot address a token by where it is."""
    depth: int = 1
    """Attention layers of a resampler."""
    heads: int = 4
    """Attention heads of a resampler."""
    dim_head: int = 32
    """Width of an attention head."""
    ff_mult: float = 1.0
    """Hidden width of a resampler's feed-forward part, as a multiple of the features' width."""
    options: dict[str, Option] = field(default_factory=dict)
    """Settings of a kind of probe that another package brings: --probe.options.NAME VALUE."""

    def __post_init__(self) -> None:
        """Refuse values that make no sense."""
        require_types(self)
        _require_positive(self, "depth", "heads", "dim_head", "ff_mult", prefix="probe.")
        require(
            self.kind == "resampler" or not self.positions,
            f"probe.positions works with probe.kind=resampler, not with {self.kind}",
        )


@dataclass(kw_only=True)
class TrainSettings:
    """What is trained on what, and how."""

    mllm: str
    """Image-text model: a Hugging Face id or the path of a folder."""
    images: str
    """COCO captions or instances JSON, a folder of images, or a text file of paths."""
    out: str
    """The run's folder; made if it does not exist."""
    targets: str = "depth,seg,gen"
    """Experts whose features are predicted, separated by commas: depth, seg, gen; KIND=ID_OR_PATH for another expert of
    that kind, such as backbone=facebook/dinov2-base or backbone=ID@REVISION; NAME:KIND=ID_OR_PATH to name it, such as
    dino:backbone=A,siglip:backbone=B. Several of one kind without names are called KIND-BASENAME."""
    layers: str = "all"
    """Layers to probe: all (vision where the model has it, 0 = embeddings, 1…L), decoder (1…L, as in the paper),
    every:N (0, N, 2N … and L), vision, a number, or several of these with commas, such as vision,every:4."""
    tokens: Literal["all", "image", "text"] = "all"
    """Tokens that the probes may read; padding never."""
    prompt: str = "Describe the image in two lines."
    """Text that stands beside every image."""
    protocol: Protocol = "standard"
    """standard, or paper: as the original code does it, faults included (see docs/original.md). Training follows its
    training script."""
    probe: ProbeSettings = field(default_factory=ProbeSettings)
    """The probe."""
    limit: int | None = None
    """Take that many of the images, drawn with the seed: a few thousand are often enough for exact probes; by default
    all."""
    epochs: int = 2
    """Passes over the images; exact probes have one."""
    batch_size: int = 256
    """Images for one optimizer step; of exact probes, for one line of the log."""
    micro_batch_size: int = 8
    """Images that go through the models at once; gradients are summed up to batch_size."""
    lr: float = 1e-3
    """Peak learning rate of AdamW."""
    weight_decay: float = 0.0
    """Weight decay of AdamW."""
    warmup: float = 0.03
    """Share of the steps in which the learning rate rises, before it falls along a cosine."""
    clip: float | None = None
    """Largest norm of each probe's gradient; not clipped by default."""
    seed: int = 0
    """Of the probes' first weights, the order of the images, and which of them limit takes."""
    revision: str | None = None
    """Branch, tag or commit of the MLLM on the Hub."""
    dtype: DType | None = None
    """Of the MLLM; by default bfloat16 on an accelerator and float32 on a CPU."""
    expert_dtype: DType = "float32"
    """Of the experts' matrix work. Scores can be compared between runs only where it is the same."""
    probe_dtype: DType | None = None
    """Of the probes' matrix work; by default bfloat16 on an accelerator and float32 on a CPU, but for protocol=paper,
    which evaluates in float16 on an accelerator, as the original does. Probes trained in float16 may diverge, since
    gradients are not scaled."""
    device: str | None = None
    """By default the accelerator, where there is one; auto spreads the MLLM's layers over all of this machine."""
    quantization: Literal["4bit", "8bit"] | None = None
    """Load the MLLM in 4 or 8 bits (needs bitsandbytes)."""
    random_weights: Literal["none", "llm", "all"] = "none"
    """A control: give the LLM, or all of the MLLM, fresh weights."""
    split_mllm: int = 1
    """Processes that hold the MLLM together, each a part of every layer (tensor parallelism), where it does not fit one
    device; each has the probes of some of the layers. Started as torchrun --nproc-per-node N -m innervision train …"""
    shard_probes: bool = False
    """Share out each trained probe's weights, gradients and optimizer state over the processes that share the images
    (PyTorch's FSDP2), where they do not fit beside the MLLM."""
    template: str | None = None
    """Conversation template of an MLLM in the original LLaVA layout: v1, llava_llama_3 or llava_phi_3; by default the
    one that its language model was tuned with."""
    workers: int = 2
    """Processes that read and prepare images; 0 = the main one."""
    save_minutes: float = 10.0
    """Minutes between two saves of the state for --resume; 0 = after every step."""
    max_bad: float = 0.01
    """Share of broken or missing images at which the run stops."""
    trackers: str = ""
    """Send the losses to these of Accelerate's trackers as well: tensorboard, wandb, …"""

    def __post_init__(self) -> None:
        """Refuse values that make no sense."""
        require_types(self)
        _require_positive(self, "epochs", "batch_size", "micro_batch_size", "lr", "split_mllm", "limit", "clip")
        _require_not_negative(self, "workers", "weight_decay", "seed", "save_minutes")
        _require_shares(self, "warmup", "max_bad")
        require(
            not (self.quantization and self.random_weights != "none"),
            "random_weights cannot be combined with quantization",
        )
        require(
            self.split_mllm == 1 or self.random_weights == "none",
            f"an MLLM with random weights is made whole, not by split_mllm={self.split_mllm} processes",
        )
        require(
            self.protocol == "standard" or (self.tokens == "all" and not self.probe.positions),
            "protocol=paper reads all tokens, without positions: leave out tokens and probe.positions",
        )
        check_layers(self.layers)
        self.micro_batch_size = min(self.micro_batch_size, self.batch_size)


@dataclass(kw_only=True)
class ScoreSettings:
    """How a run is scored, whatever is scored."""

    limit: int | None = None
    """Take that many of the images, drawn at random and always the same ones; by default all."""
    batch_size: int = 16
    """Images that go through the models at once."""
    device: str | None = None
    """By default the accelerator, where there is one; auto as in training."""
    split_mllm: int = 1
    """Processes that hold the MLLM together, as in training; see there."""
    workers: int = 2
    """Processes that read and prepare images; 0 = the main one."""
    max_bad: float = 0.01
    """Share of broken or missing images at which the evaluation stops."""

    def __post_init__(self) -> None:
        """Refuse values that make no sense."""
        require_types(self)
        _require_positive(self, "limit", "batch_size", "split_mllm")
        _require_not_negative(self, "workers")
        _require_shares(self, "max_bad")


@dataclass(kw_only=True)
class EvaluateSettings(ScoreSettings):
    """How a run is scored by the similarity of features."""

    images: str
    """COCO captions or instances JSON, a folder of images, or a text file of paths."""


@dataclass(kw_only=True)
class TaskSettings(ScoreSettings):
    """How a run is scored by a task."""

    data: str
    """The benchmark: a folder in the layout of DA-2K (depth) or COCO (seg, gen; its val2017), or its annotation
    file."""
    decode_batch_size: int = 16
    """Predictions, of any images and layers, that the expert decodes at once."""
    beside: str = "all"
    """What is scored beside the probes' predictions: all that the task knows, none, or some of shuffled, blank, zero,
    mean, expert and plain, separated by commas. Where the head looks at the image as well (seg), shuffled and blank
    are each decoded as often as the predictions themselves."""

    def __post_init__(self) -> None:
        """Refuse values that make no sense."""
        super().__post_init__()
        _require_positive(self, "decode_batch_size")


@dataclass(kw_only=True)
class DrawSettings:
    """How images are drawn from embeddings. The defaults are those of the paper."""

    steps: int = 25
    """Denoising steps."""
    scheduler: str = "DPMSolverMultistepScheduler"
    """A scheduler of Diffusers."""
    size: int | None = None
    """Edge in pixels; by default the model's own."""
    guidance: float = 10.0
    """Scale of the guidance towards the embedding; 1 = none, which halves the work."""
    noise_level: int = 0
    """Noise added to the embedding, in steps of the model's own schedule (0…999)."""
    seed: int = 0
    """Of the noise, together with each image's name and layer."""

    def __post_init__(self) -> None:
        """Refuse values that make no sense."""
        require_types(self)
        _require_positive(self, "steps", "size")
        _require_not_negative(self, "noise_level", "seed")


@dataclass(kw_only=True)
class GenSettings(DrawSettings, TaskSettings):
    """How a run is scored by the images that are drawn from its predictions."""

    data: str
    """The real images: COCO annotations, a folder of images, or a text file of paths."""
    features: str = "inception"
    """In whose features images are compared: inception (downloaded), inception=PATH, the id or folder of a vision model
    of Hugging Face, such as facebook/dinov2-base, or an expert, such as backbone=ID_OR_PATH."""
    save_images: str | None = None
    """Folder to which the drawn images go as PNG."""

    def __post_init__(self) -> None:
        """Refuse values that make no sense."""
        TaskSettings.__post_init__(self)
        DrawSettings.__post_init__(self)


def with_present_names(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Give the settings of a run.yaml under the names that they have now."""
    return {RENAMED.get(name, name): value for name, value in settings.items()}


def split_names(text: str) -> list[str]:
    """Give the names that a setting lists between commas."""
    return [name.strip() for name in text.split(",")]


def check_layers(text: str) -> None:
    """Check the form of the `layers` setting, whatever the model.

    Raises:
        InnerVisionError: the text is none of the forms that the setting allows.
    """
    part = r"\s*(all|decoder|vision|every:0*[1-9]\d*|-?\d+)\s*"
    require(
        re.fullmatch(rf"{part}(,{part})*", text) is not None,
        f"layers={text!r} is not all, decoder, every:N, vision, a number or several of these, such as vision,0,8",
    )


def parse_layers(text: str, num_layers: int, has_vision: bool) -> list[int]:
    """Turn the `layers` setting into layer numbers in ascending order.

    Raises:
        InnerVisionError: the text is none of the forms that the setting allows, or names a layer that is not there.
    """
    check_layers(text)
    lowest = VISION if has_vision else 0

    def parse(part: str) -> Iterable[int]:
        if part == "all":
            return range(lowest, num_layers + 1)
        if part == "decoder":
            return range(1, num_layers + 1)
        if part.startswith("every:"):
            return [*range(0, num_layers + 1, int(part.removeprefix("every:"))), num_layers]
        return [VISION if part == "vision" else int(part)]

    layers = sorted({layer for part in split_names(text) for layer in parse(part)})
    if wrong := [layer for layer in layers if not lowest <= layer <= num_layers]:
        known = f"vision (-1) and 0…{num_layers}" if has_vision else f"0…{num_layers} and no vision stage (-1)"
        raise InnerVisionError(f"there is no layer {', '.join(map(str, wrong))}: the model has {known}")
    return layers


def require_types(settings: object) -> None:
    """See that every field of a dataclass has a value of its type: files may hold anything.

    Raises:
        InnerVisionError: naming the field.
    """
    for name, kind in get_type_hints(type(settings)).items():
        value = getattr(settings, name)
        if not _fits(value, kind):
            allowed = [repr(each) for each in get_args(kind) if isinstance(each, str)]
            raise InnerVisionError(
                f"{name}={value!r:.40} is not {' or '.join(allowed) or getattr(kind, '__name__', kind)}"
            )


def _require_positive(settings: object, *names: str, prefix: str = "") -> None:
    """Refuse fields that are 0 or below; None is none of these."""
    for name in names:
        value = getattr(settings, name)
        require(value is None or value > 0, f"{prefix}{name} must be above 0, not {value}")


def _require_not_negative(settings: object, *names: str) -> None:
    for name in names:
        require(getattr(settings, name) >= 0, f"{name} must not be negative, as {getattr(settings, name)} is")


def _require_shares(settings: object, *names: str) -> None:
    for name in names:
        require(0 <= getattr(settings, name) <= 1, f"{name} is a share from 0 to 1, not {getattr(settings, name)}")


def _fits(value: object, kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) in (Union, UnionType):
        return any(_fits(value, part) for part in get_args(kind))
    if kind in (int, float):
        return isinstance(value, int | kind) and not isinstance(value, bool)
    return not isinstance(kind, type) or isinstance(value, kind)
