"""The vision experts whose features the probes learn to predict.

A target is named by its kind, and may name the expert: `depth`, `depth=ID_OR_PATH`, `backbone=ID@REVISION`; and it may
have a name of its own: `dino:backbone=ID`. Kinds come from the entry points of the group `innervision.targets`, so
other packages can bring their own: a class with the methods of `innervision.targets.target.Target`.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from innervision.checkpoints.identity import absolute
from innervision.errors import InnerVisionError, require
from innervision.registry import find, offered

if TYPE_CHECKING:  # naming a target needs no torch
    import torch

    from innervision.targets.target import Target

__all__ = ["TargetSpec", "load_targets", "parse_target", "parse_targets"]

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
"""A name of a target, which is also that of its file in a run."""


@dataclass(frozen=True)
class TargetSpec:
    """Which expert is meant, and what it is called."""

    name: str
    """What a run and its reports call it."""
    kind: str
    expert: str | None = None
    """Id or path; None = the kind's default."""
    revision: str | None = None

    def __str__(self) -> str:
        """Write it as `parse_target` reads it, with the path of an expert absolute."""
        name = "" if self.name == self.kind else f"{self.name}:"
        expert = "" if self.expert is None else f"={absolute(self.expert)}"
        return f"{name}{self.kind}{expert}" + ("" if self.revision is None else f"@{self.revision}")


def parse_targets(text: str) -> list[TargetSpec]:
    """Split `SPEC,SPEC,…` (see `parse_target`); an expert's path may hold commas.

    Several targets of one kind without names of their own are called `KIND-BASENAME`, by the last part of the expert's
    id or path.

    Raises:
        InnerVisionError: a spec is wrong, or two targets have the same name.
    """
    kinds = "|".join(map(re.escape, offered("targets")))
    specs = [parse_target(part) for part in re.split(rf",(?=\s*(?:{NAME}:)?(?:{kinds})\s*(?:=|,|$))", text)]
    count = Counter(spec.name for spec in specs)
    named = [
        replace(spec, name=f"{spec.kind}-{re.sub('[^A-Za-z0-9._-]', '-', Path(spec.expert).name)}")
        if count[spec.name] > 1 and spec.expert and spec.name == spec.kind
        else spec
        for spec in specs
    ]
    if twice := [name for name, number in Counter(spec.name for spec in named).items() if number > 1]:
        raise InnerVisionError(
            f"several targets are called {twice[0]}; give each a name: NAME:{named[0].kind}=ID_OR_PATH"
        )
    return named


def parse_target(spec: str) -> TargetSpec:
    """Split `KIND`, `KIND=ID_OR_PATH`, `KIND=ID@REVISION` or any of these with `NAME:` before it.

    A folder's name may contain an `@`.

    Raises:
        InnerVisionError: there is no such kind, nothing stands after `=` or `@`, or the name cannot be one of a file.
    """
    kind, equals, expert = (part.strip() for part in spec.partition("="))
    name, colon, kind = kind.rpartition(":")
    kinds = offered("targets")
    require(kind in kinds, f"there is no target {kind!r}; the targets are {', '.join(sorted(kinds))}")
    require(
        not colon or bool(re.fullmatch(NAME, name)), f"{name!r} cannot be the name of a target: use letters and digits"
    )
    revision = None
    if "@" in expert and not Path(expert).exists():
        expert, _, revision = expert.rpartition("@")
    if equals and (not expert or revision == ""):
        raise InnerVisionError(f"{spec!r} is incomplete; write {kind}=ID_OR_PATH or {kind}=ID@REVISION")
    return TargetSpec(name or kind, kind, expert or None, revision)


def load_targets(
    specs: str | Sequence[str],
    *,
    only: Sequence[str] | None = None,
    device: "str | torch.device | None" = None,
    dtype: "torch.dtype | None" = None,
    head: bool = False,
) -> "list[Target]":
    """Load experts, in the order in which they are named.

    Args:
        specs: see `parse_targets`; in one text or several.
        only: names of those to load; by default all.
        device: by default the accelerator, where there is one.
        dtype: of the matrix work, by default float32; bfloat16 runs it under autocast.
        head: load what `decode` needs as well.

    Raises:
        InnerVisionError: a spec is wrong, two targets have the same name, or an expert cannot be loaded.
    """
    named = parse_targets(specs if isinstance(specs, str) else ",".join(specs))
    parsed = [spec for spec in named if only is None or spec.name in only]
    classes = [find("targets", spec.kind) for spec in parsed]
    return [
        target.load(spec.expert, name=spec.name, revision=spec.revision, device=device, dtype=dtype, head=head)
        for target, spec in zip(classes, parsed, strict=True)
    ]
