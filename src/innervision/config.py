"""Every setting of a run. The text below a field is also its help on the command line."""

from dataclasses import dataclass, field
from typing import Any, Literal

from innervision.errors import InnerVisionError

VISION = -1
"""The layer number of what the vision tower hands to the projector."""

Protocol = Literal["standard", "paper"]
"""How probes are trained and scores are made; every score names it."""


@dataclass(kw_only=True)
class ProbeSettings:
    """The probe that reads one layer. The defaults are those of the paper."""

    kind: str = "resampler"
    """resampler (one-layer Perceiver Resampler), linear (one linear map per query from the mean token), or blind
    (the resampler's queries without any input: what can be learnt without the MLLM)."""
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

    def __post_init__(self) -> None:
        """Refuse values that make no sense."""
        for name in ("depth", "heads", "dim_head", "ff_mult"):
            require(getattr(self, name) > 0, f"probe.{name} must be above 0, not {getattr(self, name)}")
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
    """Experts whose features are predicted, separated by commas: depth, seg, gen, or NAME=ID_OR_PATH for another
    expert of that kind, such as backbone=facebook/dinov2-base."""
    layers: str = "all"
    """Layers to probe: all (vision where the model has it, 0 = embeddings, 1…L), decoder (1…L, as in the paper),
    every:N (0, N, 2N … and L), or a list such as vision,0,8,16."""
    tokens: Literal["all", "image", "text"] = "all"
    """Tokens that the probes may read; padding never."""
    prompt: str = "Describe the image in two lines."
    """Text that stands beside every image."""
    protocol: Protocol = "standard"
    """standard, or paper: as the original code does it, faults included (see docs/original.md). Training follows its
    training script."""
    probe: ProbeSettings = field(default_factory=ProbeSettings)
    """The probe."""
    epochs: int = 2
    """Passes over the images."""
    batch_size: int = 256
    """Images for one optimizer step."""
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
    """Of the probes' first weights and of the order of the images."""
    revision: str | None = None
    """Branch, tag or commit of the MLLM on the Hub."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Of the frozen models; by default bfloat16 on an accelerator and float32 on a CPU."""
    device: str | None = None
    """By default the accelerator, where there is one."""
    quantization: Literal["4bit", "8bit"] | None = None
    """Load the MLLM in 4 or 8 bits (needs bitsandbytes)."""
    random_weights: Literal["none", "llm", "all"] = "none"
    """A control: give the LLM, or all of the MLLM, fresh weights."""
    template: str | None = None
    """Conversation template of an MLLM in the original LLaVA layout: v1, llava_llama_3 or llava_phi_3; by default the
    one that its language model was tuned with."""
    trust_remote_code: bool = False
    """Run model code that comes with the checkpoint. Only for sources that you trust."""
    workers: int = 2
    """Processes that read and prepare images; 0 = the main one."""
    save_every: int = 500
    """Steps after which the state for --resume is saved."""
    max_bad: float = 0.01
    """Share of broken or missing images at which the run stops."""
    trackers: str = ""
    """Send the losses to these of Accelerate's trackers as well: tensorboard, wandb, …"""

    def __post_init__(self) -> None:
        """Refuse values that make no sense."""
        for name in ("epochs", "batch_size", "micro_batch_size", "save_every", "lr"):
            require(getattr(self, name) > 0, f"{name} must be above 0, not {getattr(self, name)}")
        for name in ("workers", "weight_decay", "seed"):
            require(getattr(self, name) >= 0, f"{name} must not be negative, as {getattr(self, name)} is")
        for name in ("warmup", "max_bad"):
            require(0 <= getattr(self, name) <= 1, f"{name} is a share from 0 to 1, not {getattr(self, name)}")
        require(self.clip is None or self.clip > 0, f"clip must be above 0, not {self.clip}")
        require(
            not (self.quantization and self.random_weights != "none"),
            "random_weights cannot be combined with quantization",
        )
        require(
            self.protocol == "standard" or (self.tokens == "all" and not self.probe.positions),
            "protocol=paper reads all tokens, without positions: leave out tokens and probe.positions",
        )
        parse_layers(self.layers, num_layers=10_000, has_vision=True)  # its form; the model is not known yet
        self.micro_batch_size = min(self.micro_batch_size, self.batch_size)


@dataclass(kw_only=True)
class ScoreSettings:
    """How a run is scored, whatever is scored."""

    batch_size: int = 16
    """Images that go through the models at once. The shuffled floor pairs the images of a batch."""
    device: str | None = None
    """By default the accelerator, where there is one."""
    workers: int = 2
    """Processes that read and prepare images; 0 = the main one."""
    max_bad: float = 0.01
    """Share of broken or missing images at which the evaluation stops."""

    def __post_init__(self) -> None:
        """Refuse values that make no sense."""
        require(self.batch_size > 1, "batch_size must be at least 2: the shuffled floor needs another image")
        require(self.workers >= 0, f"workers must not be negative, as {self.workers} is")
        require(0 <= self.max_bad <= 1, f"max_bad is a share from 0 to 1, not {self.max_bad}")


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

    def __post_init__(self) -> None:
        """Refuse values that make no sense."""
        super().__post_init__()
        require(self.decode_batch_size > 0, f"decode_batch_size must be above 0, not {self.decode_batch_size}")


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
        require(self.steps > 0, f"steps must be above 0, not {self.steps}")
        for name in ("noise_level", "seed"):
            require(getattr(self, name) >= 0, f"{name} must not be negative, as {getattr(self, name)} is")
        require(self.size is None or self.size > 0, f"size must be above 0, not {self.size}")


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


TASK_SETTINGS: dict[str, type[TaskSettings]] = {"gen": GenSettings}
"""Of tasks that have settings of their own."""


def task_settings(task: str) -> type[TaskSettings]:
    """Give the class of a task's settings."""
    return TASK_SETTINGS.get(task, TaskSettings)


def parse_layers(text: str, num_layers: int, has_vision: bool) -> list[int]:
    """Turn the `layers` setting into layer numbers in ascending order.

    Raises:
        InnerVisionError: the text is none of the forms that the setting allows, or names a layer that is not there.
    """
    if text == "all":
        return list(range(VISION if has_vision else 0, num_layers + 1))
    if text == "decoder":
        return list(range(1, num_layers + 1))
    try:
        if text.startswith("every:"):
            step = int(text.removeprefix("every:"))
            return sorted({*range(0, num_layers + 1, max(step, 0)), num_layers})  # a step of 0 is a ValueError
        layers = sorted({VISION if part.strip() == "vision" else int(part) for part in text.split(",")})
    except ValueError:
        raise InnerVisionError(f"layers={text!r} is not all, decoder, every:N or a list such as vision,0,8") from None
    lowest = VISION if has_vision else 0
    if wrong := [layer for layer in layers if not lowest <= layer <= num_layers]:
        raise InnerVisionError(
            f"there is no layer {', '.join(map(str, wrong))}: the model has "
            + ("vision (-1) and " if has_vision else "")
            + f"0…{num_layers}"
            + ("" if has_vision else " and no vision stage (-1)")
        )
    return layers


def require(condition: bool, message: str) -> None:
    """Raise InnerVisionError with the message unless the condition holds."""
    if not condition:
        raise InnerVisionError(message)


def changed(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Name the settings whose values differ."""
    return [name for name in now if before.get(name) != now[name]]
