"""The model under study: loads it, feeds it, shows its layers one at a time."""

import inspect
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import torch
from PIL import Image
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from innervision.checkpoints.identity import hub_commit, identify, locate, processor_name
from innervision.checkpoints.layout import ForeignMLLM, read_foreign_mllm
from innervision.checkpoints.loading import check_files, check_finite, check_layers, check_size, loading
from innervision.checkpoints.shards import check_types
from innervision.config import VISION
from innervision.errors import InnerVisionError, few, require
from innervision.mllm.architecture import Decoder, find_decoder
from innervision.mllm.inputs import InputBuilder, Inputs, Tokens
from innervision.mllm.split import check_split, options_of_split
from innervision.mllm.vision import VisionStage, find_vision_stage
from innervision.mllm.walk import Visitor, Walk
from innervision.seeds import fixed_seed
from innervision.terminal import tell

SAMPLE_PROMPT = "Describe the image."
"""Stands beside the images that show what a model is like."""


class MLLM:
    """A frozen multimodal LLM whose hidden states can be visited layer by layer.

    Layers are numbered and normed as Hugging Face's `hidden_states`: 0 is what enters the decoder (image tokens
    after the projector), 1…L are the decoder layers, L after the final norm. Layer -1 (`vision`) is what the
    vision tower hands to the projector, where the model has such a stage.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        *,
        name: str = "",
        revision: str | None = None,
    ) -> None:
        """Wrap a loaded model and its processor.

        Raises:
            InnerVisionError: the model's decoder layers cannot be found.
        """
        self.model = model.eval().requires_grad_(False)
        self.name = name or model.config.name_or_path or type(model).__name__
        self.revision = revision
        arguments = frozenset(inspect.signature(model.forward).parameters)
        self.builder = InputBuilder(processor, model.config, arguments, self.name)
        self.decoder: Decoder = find_decoder(model)
        self.num_layers = len(self.decoder.layers)
        require(self.num_layers > 0, f"{self.name} has no decoder layers: there is nothing to probe")

    @classmethod
    def load(
        cls,
        name: str,
        *,
        revision: str | None = None,
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
        split: int = 1,
        quantization: Literal["4bit", "8bit"] | None = None,
        random_weights: Literal["none", "llm", "all"] = "none",
        seed: int = 0,
        trust_remote_code: bool = False,
        template: str | None = None,
    ) -> "MLLM":
        """Load an image-text model from the Hugging Face Hub or a folder, in their layout or the original LLaVA's.

        Args:
            name: a Hub id, the path of a folder that `save_pretrained` wrote, or `world/NAME`, a model of the package.
            revision: branch, tag or commit on the Hub.
            dtype: of the weights; by default bfloat16 on an accelerator, float32 on a CPU.
            device: by default the accelerator, where there is one; "auto" spreads the layers over all accelerators
                of this machine; on "meta" no weights are read, and nothing can be computed.
            split: let this number of processes hold the model together (see `innervision.mllm.split`). All of them
                make the same calls that run it.
            quantization: load the linear layers in 4 or 8 bits (needs bitsandbytes).
            random_weights: a control. "llm" gives the LLM fresh weights and keeps the vision tower and the projector;
                "all" gives the whole model fresh weights and reads no checkpoint, only its configuration.
            seed: of the fresh weights.
            trust_remote_code: run model code that comes with the checkpoint.
            template: conversation template of a model in the original layout; by default its language model's.

        Raises:
            InnerVisionError: there is no such model, it is not an image-text model, weights are missing, or its
                layers cannot be found.
        """
        spread = device == "auto"
        try:
            device = default_device() if device is None or spread else torch.device(device)
        except RuntimeError as error:
            raise InnerVisionError(f"there is no device {device!r}: use cpu, cuda, cuda:1, mps, auto …") from error
        dtype = dtype or (torch.float32 if device.type == "cpu" else torch.bfloat16)
        if quantization and random_weights != "none":
            raise InnerVisionError("random_weights cannot be combined with quantization")
        if random_weights != "none" and spread:
            raise InnerVisionError("device=auto spreads the weights of a checkpoint: leave out random_weights")
        source: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
        folder = locate(name)
        check_files(folder)
        with loading("MLLM", name):
            content, _ = PreTrainedConfig.get_config_dict(folder, revision=revision)
            check_layers(content, name)
            source["revision"] = hub_commit(folder, revision)
            processor: Any
            foreign = read_foreign_mllm(folder, content, source["revision"], template)
            if foreign is not None:
                config, processor = foreign.config, foreign.processor
            else:
                require(template is None, f"{name} has a template of its own; leave out template={template}")
                config = AutoConfig.from_pretrained(folder, **source)
                if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and not trust_remote_code:
                    raise ValueError(f"a {config.model_type} model is not an image-text model of Transformers")
                processor = AutoProcessor.from_pretrained(folder, **source)
                if isinstance(processor, PreTrainedTokenizerBase):
                    raise ValueError("it has no processor that takes images, only a tokenizer")
            InputBuilder(processor, config, name=name).try_out(SAMPLE_PROMPT)

            def make() -> Any:
                return AutoModelForImageTextToText.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)

            if device.type == "meta":
                with device:
                    model = make()
            elif random_weights == "all":
                with fixed_seed(seed):
                    model = make()
                    redraw_constants(model)
                    if foreign is not None:
                        foreign.embed(model, random=True)
                model.to(device)
            else:
                check_size(make, folder, name)
                where: dict[str, Any] = {"device_map": "auto" if spread else {"": device}}
                if split > 1:
                    require(not spread, "device=auto works in one process: leave out split_mllm")
                    require(
                        foreign is None, f"{name} is in the original LLaVA's layout, which split_mllm does not know"
                    )
                    with torch.device("meta"):
                        check_split(make(), split, name)
                    where = options_of_split(split)
                model = _load_weights(folder, dtype, where, quantization, source, foreign)
                check_finite(model, name)
                if foreign is not None:
                    foreign.embed(model)
        name, revision = identify(name, source["revision"])
        if random_weights != "none":
            revision = f"{revision or ''} random {random_weights}, seed {seed}".lstrip()
        mllm = cls(model, processor, name=name, revision=revision)
        if device.type == "meta":
            return mllm
        with loading("MLLM", name):  # what fails for every image fails here
            sample = mllm.prepare([Image.new("RGB", (224, 224), (120, 120, 120))], SAMPLE_PROMPT)
            mllm.visit(sample, lambda *_: None, [0])
            if split > 1:  # found now, while all processes run the model
                mllm.has_vision_layer()
                mllm.width(mllm.num_layers)
        if random_weights == "llm":
            mllm.randomize_decoder(seed)
        return mllm

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    def device_of(self, layer: int) -> torch.device:
        """Tell where a layer's states come from, which may differ where a model is spread over devices."""
        module = self.vision_stage.tower if layer == VISION else self.decoder.layers[max(layer - 1, 0)]
        return next((parameter.device for parameter in module.parameters()), self.device)

    @property
    def processor_name(self) -> str:
        """The class and the backend of the image processor, such as `CLIPImageProcessor (torchvision)`."""
        processor = self.builder.processor
        return processor_name(getattr(processor, "image_processor", processor))

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights and the states."""
        return self.model.dtype

    @cached_property
    def vision_stage(self) -> VisionStage:
        """Where the vision tower hands its features to the projector.

        Raises:
            InnerVisionError: the model has no such stage.
        """
        return find_vision_stage(self.model, self.decoder)

    def has_vision_layer(self) -> bool:
        """Whether layer -1 exists: a vision tower hands its features to a projector."""
        try:
            self.width(VISION)
        except InnerVisionError:
            return False
        return True

    def width(self, layer: int) -> int:
        """Give the number of features of a layer's states (the vision tower's own for layer -1).

        Raises:
            InnerVisionError: the model has no such layer.
        """
        self.check_layers([layer])
        return self.vision_width if layer == VISION else self.widths[layer]

    @cached_property
    def widths(self) -> dict[int, int]:
        """The number of features of the layers 0…L, as one forward pass shows them.

        Where the decoder has several streams, that is more than the configuration says.

        Raises:
            InnerVisionError: the model cannot be probed.
        """
        found: dict[int, int] = {}
        sample = self.prepare([Image.new("RGB", (64, 48), (90, 120, 150))], SAMPLE_PROMPT)
        self.visit(sample, lambda layer, states, _: found.__setitem__(layer, states.shape[-1]))
        return found

    @cached_property
    def vision_width(self) -> int:
        """The number of features in layer -1, as two unequal images show it, of which one may be cut into tiles.

        Raises:
            InnerVisionError: the model has no such layer.
        """
        found: list[int] = []
        unequal = [Image.new("RGB", (1280, 960), (90, 120, 150)), Image.new("RGB", (48, 96), (150, 90, 60))]
        sample = self.prepare(unequal, SAMPLE_PROMPT)
        self.visit(sample, lambda _, states, __: found.append(states.shape[-1]), [VISION])
        return found[0]

    def check_layers(self, layers: Sequence[int]) -> None:
        """Raise InnerVisionError unless every number is a layer of this model (-1…L)."""
        if wrong := [layer for layer in layers if not VISION <= layer <= self.num_layers]:
            raise InnerVisionError(
                f"{self.name} has layers -1 (vision), 0 (embeddings) and 1…{self.num_layers}; "
                f"there is no layer {', '.join(map(str, wrong))}"
            )

    def prepare(self, images: Sequence[Image.Image], prompt: str, reply: str | None = None) -> Inputs:
        """Make the inputs of a batch on the CPU, without touching the weights. See `InputBuilder`."""
        return self.builder(images, prompt, reply)

    @torch.no_grad()
    def visit(
        self, inputs: Inputs, visitor: Visitor, layers: Sequence[int] | None = None, *, tokens: Tokens = "all"
    ) -> None:
        """Run the model on a batch and hand each layer's states to `visitor` as soon as they are there.

        The forward pass ends with the last layer asked for; no logits are computed. Nothing is kept: a state is
        gone once the visitor returns, unless it holds on to it. The visitor runs without gradients and may turn
        them on.

        States that the visitor returns take the place of those shown, in all that the model computes from them, for
        all tokens (the mask only tells which may be read): to erase or to patch. What it returns for the last layer
        asked for has nothing left to change. To change layer -1 the vision tower runs a second time, and what a
        model takes from inner layers of the tower stays as it is. States are changed by returning others, not in place.

        Args:
            inputs: what `prepare` gave, on any device.
            visitor: called in the order of the layers as `visitor(layer, states, mask)`: states (B, T, D) in the
                model's dtype, mask (B, T) True = a token it may read. It returns changed states (B, T, D), in any
                floating-point type, or None.
            layers: which, by default 0…L.
            tokens: which tokens the mask shows in the layers 0…L: all, image or text; padding never.

        Raises:
            InnerVisionError: a layer does not exist, the states do not belong to the tokens one to one, or the
                visitor returns something that cannot take their place.
        """
        wanted = set(range(self.num_layers + 1) if layers is None else layers)
        self.check_layers(sorted(wanted))
        inputs = inputs.to(self.device, self.model.dtype)
        stage = self.vision_stage if VISION in wanted else None
        walk = Walk(self.name, self.decoder, stage, inputs, inputs.visible(tokens), wanted, visitor)
        walk.run(lambda: self.model(**inputs.tensors, use_cache=False))

    def randomize_decoder(self, seed: int) -> None:
        """Give the LLM (embeddings, decoder layers, final norm) fresh weights in place, as its class would."""
        decoder = self.model.get_decoder()
        for module in decoder.modules():
            for owner in (module, *module.parameters(recurse=False), *module.buffers(recurse=False)):
                owner.__dict__.pop("_is_hf_initialized", None)
        device = self.device
        decoder.to("cpu")  # where a seed gives the same numbers on every machine
        with fixed_seed(seed):
            decoder.initialize_weights()
            redraw_constants(decoder)
        decoder.to(device)


def default_device() -> torch.device:
    """Give the accelerator of this machine, or the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def _load_weights(
    name: str,
    dtype: torch.dtype,
    where: dict[str, Any],
    quantization: str | None,
    source: dict[str, Any],
    foreign: ForeignMLLM | None,
) -> PreTrainedModel:
    options = source | where
    if foreign is not None:
        options |= {"config": foreign.config, "key_mapping": foreign.key_mapping}
    if quantization:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=quantization == "4bit",
            load_in_8bit=quantization == "8bit",
            bnb_4bit_compute_dtype=dtype,
        )
    loaded: Any = AutoModelForImageTextToText.from_pretrained(
        name, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, **options
    )
    model, info = loaded
    if misshapen := sorted(info["mismatched_keys"]):
        key, shape, needed = misshapen[0]
        raise ValueError(f"the checkpoint holds {key} as {tuple(shape)}, which must be {tuple(needed)}")
    missing = sorted(info["missing_keys"])
    if foreign is not None:
        missing = foreign.complete(model, missing, info["unexpected_keys"])
    check_types(model, name, source["revision"])
    head = model.get_output_embeddings()
    unused = {id(parameter) for parameter in head.parameters()} if head is not None else set()
    parameters = dict(model.named_parameters())
    missing = [key for key in missing if id(parameters.get(key)) not in unused]
    if missing:
        raise ValueError(f"the checkpoint lacks {len(missing)} weights, among them {missing[0]}")
    if foreign is None and (unused_keys := info["unexpected_keys"]):
        tell(
            f"warning: {name} holds {len(unused_keys)} weights that a {type(model).__name__} does not use "
            f"({few(unused_keys)}): see that its config.json belongs to it"
        )
    return model


@torch.no_grad()
def redraw_constants(module: PreTrainedModel) -> None:
    """Draw anew what the class of a model starts at a constant, or all but one, which would hide the image.

    Weight matrices with a standard deviation below 1e-4 (projectors of zeros; vision towers whose initializer_range is
    1e-10) are drawn like the language model's. Gates, which are single numbers that start at zero, are opened to 1.
    """
    spread = getattr(module.config.get_text_config(decoder=True), "initializer_range", 0.0)
    for parameter in module.parameters():
        if parameter.numel() == 1:
            parameter.masked_fill_(parameter == 0, 1.0)
        elif parameter.dim() > 1 and parameter.is_floating_point() and parameter.float().std() < SMALLEST_SPREAD:
            parameter.normal_(std=spread if spread >= SMALLEST_SPREAD else 0.02)


SMALLEST_SPREAD = 1e-4
"""Standard deviation of a weight matrix that counts as drawn; the library's classes draw with 0.006 and above."""
