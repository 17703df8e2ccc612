"""What memory and how many operations some PyTorch code takes, found on the device "meta", which computes nothing."""

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only
from torch.utils.flop_counter import FlopCounterMode


class Cost(NamedTuple):
    """Of a piece of code."""

    memory: int
    """Bytes of the tensors that it makes, as many as are there at once."""
    operations: int
    """Of matrices, convolutions and attention; a multiplication and an addition are two."""


def find_cost(work: Callable[[], object]) -> Cost:
    """Run some code whose tensors are on the device "meta", and see what it takes.

    Attention is taken to run without its matrices, as PyTorch's fast kernels do.
    """
    live, attention = LiveMemory(), _FastAttention()
    with FlopCounterMode(display=False) as counter, live, attention:
        result = work()  # it lives to the end
    del result
    return Cost(live.peak, counter.get_total_flops() + attention.operations)


class LiveMemory(TorchDispatchMode):
    """Counts the bytes of tensors that are there at once.

    Tensors with values may be mixed with some on "meta": the result has none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(isinstance(each, Tensor) and each.is_meta for each in tree_iter((args, kwargs))):
            args, kwargs = tree_map_only(Tensor, lambda each: each.to("meta"), (args, kwargs))
        before = {each.untyped_storage()._cdata for each in tree_iter((args, kwargs)) if isinstance(each, Tensor)}
        result = func(*args, **(kwargs or {}))
        for each in tree_iter(result):
            if isinstance(each, Tensor):
                self._add(each, before)
        return result

    def _add(self, tensor: Tensor, before: set[int]) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.known or key in before:
            return
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)

        def forget(_: object) -> None:
            self.now -= size
            self.known.pop(key, None)

        self.known[key] = weakref.ref(storage, forget)


class _FastAttention(TorchFunctionMode):
    """Stands for attention that keeps no matrix, and counts its operations."""

    operations = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention or torch.is_grad_enabled():
            return func(*args, **(kwargs or {}))
        given = dict(zip(("query", "key", "value"), args, strict=False)) | (kwargs or {})
        query, key, value = given["query"], given["key"], given["value"]
        rows, width = query.shape[-2], query.shape[-1] + value.shape[-1]
        self.operations += 2 * query[..., 0, 0].numel() * rows * key.shape[-2] * width
        return query.new_empty(*query.shape[:-1], value.shape[-1])
