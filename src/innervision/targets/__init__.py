"""The vision experts whose features the probes learn to predict.

A target is named by its kind, and may name the expert: `depth`, `depth=ID_OR_PATH`, `backbone=ID@REVISION`.
Kinds come from the entry points of the group `innervision.targets`, so other packages can bring their own: a
class with the methods of `innervision.targets.target.Target`.
"""

from collections import Counter
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from innervision.errors import InnerVisionError

if TYPE_CHECKING:  # naming a target needs no torch
    import torch

    from innervision.targets.target import Target

__all__ = ["load_targets", "parse_target"]


def parse_target(spec: str) -> tuple[str, str | None, str | None]:
    """Split `KIND`, `KIND=ID_OR_PATH` or `KIND=ID@REVISION` into kind, expert and revision.

    A folder's name may contain an `@`. Expert and revision are None where the spec leaves them out.

    Raises:
        InnerVisionError: there is no such kind, or nothing stands after `=` or `@`.
    """
    kind, equals, expert = (part.strip() for part in spec.partition("="))
    if kind not in (kinds := _kinds()):
        raise InnerVisionError(f"there is no target {kind!r}; the targets are {', '.join(sorted(kinds))}")
    if not equals:
        return kind, None, None
    revision = None
    if "@" in expert and not Path(expert).exists():
        expert, _, revision = expert.rpartition("@")
    if not expert or revision == "":
        raise InnerVisionError(f"{spec!r} is incomplete; write {kind}=ID_OR_PATH or {kind}=ID@REVISION")
    return kind, expert, revision


def load_targets(
    specs: Sequence[str],
    *,
    device: "str | torch.device | None" = None,
    dtype: "torch.dtype | None" = None,
    head: bool = False,
) -> "list[Target]":
    """Load the experts named by `specs` (see `parse_target`), in that order.

    Args:
        specs: each names one target; no name may come up twice.
        device: by default the accelerator, where there is one.
        dtype: of the matrix work, by default float32; bfloat16 runs it under autocast.
        head: load what `decode` needs as well.

    Raises:
        InnerVisionError: a spec is wrong, two targets have the same name, or an expert cannot be loaded.
    """
    parsed = [parse_target(spec) for spec in specs]
    if twice := [kind for kind, count in Counter(kind for kind, _, _ in parsed).items() if count > 1]:
        raise InnerVisionError(
            f"{', '.join(twice)} is named more than once, and a run holds one target of a name; "
            "give the other expert a run of its own"
        )
    classes = [_target_class(kind) for kind, _, _ in parsed]
    targets = [
        target.load(expert, revision=revision, device=device, dtype=dtype, head=head)
        for target, (_, expert, revision) in zip(classes, parsed, strict=True)
    ]
    return targets


def _kinds() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group="innervision.targets")}


def _target_class(kind: str) -> "type[Target]":
    entry = _kinds()[kind]
    try:
        return entry.load()
    except (ImportError, AttributeError) as error:
        raise InnerVisionError(f"the target {kind!r} ({entry.value}) cannot be imported: {error}") from error
