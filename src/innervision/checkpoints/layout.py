"""Checkpoints in other layouts than Hugging Face's, read into its classes (entry points `innervision.layouts`)."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import BaseImageProcessor, PreTrainedConfig, PreTrainedModel

from innervision.checkpoints.loading import loading
from innervision.registry import find, offered


class ForeignMLLM(ABC):
    """How the checkpoint of an MLLM becomes a Hugging Face model and its inputs."""

    config: PreTrainedConfig
    """Of the Hugging Face class."""
    processor: Any
    """Makes the model's inputs; has of a Hugging Face processor what `InputBuilder` asks for."""
    key_mapping: dict[str, str]
    """From the checkpoint's names of tensors to those of the class (regular expressions)."""

    @abstractmethod
    def complete(self, model: PreTrainedModel, missing: Sequence[str], unexpected: Sequence[str]) -> list[str]:
        """Give a loaded model what lies elsewhere.

        Args:
            model: of the class that `config` names.
            missing: names of weights that the checkpoint does not hold.
            unexpected: names of the checkpoint's tensors that the model has no place for.

        Returns:
            The weights that are still missing.

        Raises:
            ValueError: the checkpoint holds tensors that nothing is known of.
        """

    @abstractmethod
    def embed(self, model: PreTrainedModel, random: bool = False) -> None:
        """Make a model take the ids that the processor gives; with `random`, learnt tokens are drawn anew."""


@dataclass(frozen=True)
class ForeignExpert:
    """An expert that is not in Hugging Face's layout."""

    model: Any
    """In float32 on the CPU. depth: a DepthAnythingForDepthEstimation, seg: a OneFormerModel, gen: a
    CLIPVisionModelWithProjection."""
    processor: BaseImageProcessor
    named: str | None = None
    """The expert that it came from, whose files hold what decoding needs beside this model, if the source names it."""


class Layout(ABC):
    """A layout of checkpoints."""

    @abstractmethod
    def read_mllm(
        self, name: str, config: dict[str, Any], revision: str | None, template: str | None
    ) -> ForeignMLLM | None:
        """Read what an MLLM needs beside its weights; None where the checkpoint is not in this layout.

        Args:
            name: a folder or a Hub id.
            config: the content of its config.json.
            revision: branch, tag or commit on the Hub.
            template: of the conversation; by default the language model's.

        Raises:
            InnerVisionError: the checkpoint is of a kind that is not known, or lacks something.
        """

    @abstractmethod
    def read_expert(self, kind: str, source: str, revision: str | None) -> ForeignExpert | None:
        """Load an expert; None where `source` holds none in this layout.

        Args:
            kind: depth, seg or gen.
            source: a file, a folder or a Hub id.
            revision: branch, tag or commit on the Hub.

        Raises:
            InnerVisionError: the expert is broken or incomplete.
        """


def read_foreign_mllm(
    name: str, config: dict[str, Any], revision: str | None, template: str | None
) -> ForeignMLLM | None:
    """Let the installed layouts read an MLLM; None where it is in none of them. See `Layout.read_mllm`."""
    found = (layout.read_mllm(name, config, revision, template) for layout in _layouts())
    return next(filter(None, found), None)


def read_foreign_expert(kind: str, source: str, revision: str | None = None) -> ForeignExpert | None:
    """Let the installed layouts load an expert; None where it is in none of them. See `Layout.read_expert`."""
    with loading("expert", source):
        found = (layout.read_expert(kind, source, revision) for layout in _layouts())
        return next(filter(None, found), None)


def _layouts() -> Iterator[Layout]:
    for name in offered("layouts"):
        yield find("layouts", name)()
