"""An expert's files, on the Hugging Face Hub or in a folder."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from torch import Tensor, nn
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, BaseImageProcessor, PreTrainedConfig
from transformers.utils import CONFIG_NAME

from innervision.checkpoints.identity import hub_commit, locate
from innervision.checkpoints.loading import check_files, check_finite, check_layers, check_size, loading
from innervision.checkpoints.shards import check_types, find_file
from innervision.errors import InnerVisionError
from innervision.json_files import read_json

MIRRORS = {"stabilityai/stable-diffusion-2-1-unclip": "sd2-community/stable-diffusion-2-1-unclip"}
"""Models that are gone from the Hub, and where there are copies."""


@dataclass
class Checkpoint:
    """Loads the parts of one expert, all from one commit. No code that comes with it is run.

    Every method raises InnerVisionError when the files cannot be had or are not what they should be.
    """

    expert: str
    """A Hub id, the path of a folder, or `world/NAME`, a model of the package."""
    revision: str | None = None
    """Branch, tag or commit on the Hub; once the configuration is read, the commit where the Hub tells it."""
    weights: bool = True
    """Whether weights are read; without them models are made on the device "meta"."""

    def __post_init__(self) -> None:
        self.source = locate(self.expert)
        check_files(self.source)

    def load_config(self, *, subfolder: str = "", model_type: str | None = None) -> PreTrainedConfig:
        """Read the model's configuration; it must be of `model_type`, where that is given."""
        with self._loading():
            content, _ = PreTrainedConfig.get_config_dict(self.source, revision=self.revision, subfolder=subfolder)
            check_layers(content, self.expert)
        config: PreTrainedConfig = self._load(AutoConfig, subfolder)
        if model_type is not None and config.model_type != model_type:
            raise InnerVisionError(
                f"{self.expert} is a {config.model_type!r} model, but a {model_type!r} model is needed here"
            )
        file = f"{subfolder}/{CONFIG_NAME}" if subfolder else CONFIG_NAME
        self.revision = hub_commit(self.source, self.revision, file)
        return config

    def load_model(
        self, model_class: Any, config: PreTrainedConfig, *, subfolder: str = ""
    ) -> tuple[Any, dict[str, Tensor]]:
        """Load a model in float32 on the CPU, or without weights on "meta".

        Returns:
            The model, and those of its parameters and buffers that the checkpoint does not hold (or holds in
            another shape) by name: their values are random, see `Target.check_weights`.
        """
        if not self.weights:
            with self._loading(), torch.device("meta"):
                make = model_class.from_config if hasattr(model_class, "from_config") else model_class._from_config
                return make(config, dtype=torch.float32), {}
        settings = {"dtype": torch.float32, "ignore_mismatched_sizes": True, "output_loading_info": True}
        build = getattr(model_class, "from_config", model_class)
        check_size(lambda: build(config), Path(self.source) / subfolder, self.expert)
        model, report = self._load(model_class, subfolder, config=config, **settings)
        check_types(model, self.source, self.revision, subfolder)
        check_finite(model, self.expert)
        tensors = dict(model.named_parameters()) | dict(model.named_buffers())
        random = set(report["missing_keys"]) | {key for key, *_ in report["mismatched_keys"]}
        return model, {name: tensors[name] for name in sorted(random) if name in tensors}

    def load_image_processor(
        self, processor_class: Any = AutoImageProcessor, *, subfolder: str = "", **settings: Any
    ) -> BaseImageProcessor:
        """Load the image processor; `settings` replace what its file says."""
        return self._load(processor_class, subfolder, **settings)

    def load_tokenizer(self, *, subfolder: str = "") -> Any:
        """Load the tokenizer."""
        return self._load(AutoTokenizer, subfolder)

    def load_class_file(self) -> dict[str, Any]:
        """Read what OneFormer's image processor knows of the classes, by index: their `name` and `isthing`.

        The file lies beside the expert's others, or in the data set on the Hub that the image processor names.
        """
        with self._loading():
            settings, _ = BaseImageProcessor.get_image_processor_dict(self.source, revision=self.revision)
            name = settings["class_info_file"]
            beside = find_file(self.source, name, self.revision)
            return read_json(beside or hf_hub_download(settings["repo_path"], name, repo_type="dataset"))

    def load_part(self, part_class: Any, subfolder: str) -> Any:
        """Load a part of a Diffusers pipeline: a model in float32 on the CPU, or a scheduler."""
        with self._loading():
            where = {"revision": self.revision, "subfolder": subfolder}
            if not issubclass(part_class, nn.Module):
                return part_class.from_pretrained(self.source, **where)
            part, report = part_class.from_pretrained(
                self.source, torch_dtype=torch.float32, output_loading_info=True, **where
            )
        self.require_all(subfolder, report["missing_keys"])
        check_types(part, self.source, self.revision, subfolder)
        check_finite(part, self.expert)
        return part

    def require_all(self, part: str, missing: Sequence[str]) -> None:
        """Refuse a part of the expert that lacks weights."""
        if missing:
            raise InnerVisionError(
                f"{self.expert} does not hold {len(missing)} weights of its {part} "
                f"(one is {missing[0]}); name an expert whose weights are complete"
            )

    def _load(self, part_class: Any, subfolder: str, **settings: Any) -> Any:
        with self._loading():
            return part_class.from_pretrained(
                self.source, revision=self.revision, subfolder=subfolder, trust_remote_code=False, **settings
            )

    @contextmanager
    def _loading(self) -> Iterator[None]:
        """Give errors the expert's name, and say where to find one that is gone."""
        try:
            with loading("expert", self.source):
                yield
        except InnerVisionError as error:
            if self.expert in MIRRORS:
                raise InnerVisionError(
                    f"{error}\nIt is gone from the Hub. Name a copy, such as {MIRRORS[self.expert]}."
                ) from error
            raise
