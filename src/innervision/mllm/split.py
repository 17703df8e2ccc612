"""An MLLM that several processes hold together: each has a part of every layer, by Transformers' tensor parallelism."""

from typing import Any

from torch import distributed
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.distributed import DistributedConfig
from transformers.distributed.parallel_utils import replace_layer_number_by_wildcard

from innervision.errors import InnerVisionError, require
from innervision.mllm.architecture import find_decoder

INSTEAD = "take one process with device=auto, which spreads whole layers over the accelerators of a machine"


class Rows(DistributedConfig):
    """Transformers' table of processes, each row of which holds a model of its own."""

    @property
    def dp_size(self) -> int:
        """Weights are frozen, so nothing is shared out over the rows."""
        return 1


def options_of_split(split: int) -> dict[str, Any]:
    """Give what `from_pretrained` needs to let every `split` processes that follow each other hold a model together.

    PyTorch's process group must be there.
    """
    return {"distributed_config": Rows(tp_size=split, dp_replicate_size=distributed.get_world_size() // split)}


def check_split(model: PreTrainedModel, split: int, name: str) -> None:
    """See that a model can be held by so many processes, before its weights are read.

    Args:
        model: of the class and the configuration in question; its weights do not matter.
        split: number of processes.
        name: of the model, for errors.

    Raises:
        InnerVisionError: Transformers has no plan for it, or its attention heads do not come out even.
    """
    decoder = find_decoder(model).module
    prefix = next(name for name, module in model.named_modules() if module is decoder)
    if not any(rule.startswith(f"{prefix}.layers.") for rule in model.tp_plan or {}):
        raise InnerVisionError(
            f"Transformers has no plan to split a {type(model).__name__} over processes ({name}): leave out "
            f"split_mllm, and {INSTEAD}"
        )
    config: PreTrainedConfig = model.config.get_text_config(decoder=True)
    for kind in ("num_attention_heads", "num_key_value_heads"):
        heads = getattr(config, kind, None)
        require(
            not isinstance(heads, int) or heads % split == 0,
            f"the {heads} heads of {name} ({kind}) cannot be shared out to {split} processes (split_mllm)",
        )


def bytes_of_part(model: PreTrainedModel, split: int) -> int:
    """Say how much of a model's weights each of so many processes has; nothing needs to be loaded.

    What the plan does not name, such as the vision tower, each process has whole.
    """
    plan = model.tp_plan or {}
    total = 0
    for name, parameter in model.named_parameters():
        module, _, kind = replace_layer_number_by_wildcard(name).rpartition(".")
        style = plan.get(module, plan.get(f"{module}.{kind}", ""))
        shared = any(word in style for word in ("colwise", "rowwise", "experts")) and not (
            style.endswith("rowwise") and kind == "bias"
        )
        total += parameter.nbytes // (split if shared else 1)
    return total
