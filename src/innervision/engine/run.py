"""The run folder: one MLLM, its probes and their scores.

run.yaml                  format; settings as resolved; record: what they were resolved to, and on which machine
probes/TARGET.safetensors one file per target
train/log.jsonl           loss per target and layer, learning rate, images/s
train/bad_images.json     images that were left out, and why
train/state.pt            what --resume needs; deleted when training is done
scores/*.parquet          one row per image, target, layer, source and metric; EVALUATION@NAME where it has a name
origin.json               of a run that was pulled from the Hub: repository, revision, commit, hash of its run.yaml
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml

from innervision.checkpoints.identity import fingerprint, is_public
from innervision.config import ProbeSettings, TrainSettings, with_present_names
from innervision.errors import InnerVisionError
from innervision.files import atomic_write, remove_half_written
from innervision.json_files import read_json
from innervision.targets import parse_targets
from innervision.yaml_files import read_yaml

FORMAT = 2
"""Of run.yaml."""

FREE_TO_CHANGE = {
    *("out", "device", "workers", "save_minutes", "max_bad", "trackers"),
    *("micro_batch_size", "split_mllm", "shard_probes"),
}
"""Settings that may differ when a run is resumed: they leave its result alone (the last three but for rounding)."""

OWN_NAME = "@"
"""Stands in the name of a table between that of the evaluation and its own."""


def table_name(evaluation: str, name: str | None) -> str:
    """Name the table of an evaluation: `similarity`, or `similarity@NAME` where it is given a name of its own.

    Raises:
        InnerVisionError: the name cannot be part of a file's.
    """
    if name is None:
        return evaluation
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise InnerVisionError(f"{name!r} cannot be the name of a table: use letters, digits, '_' and '-'")
    return f"{evaluation}{OWN_NAME}{name}"


def evaluation_of(table: str) -> str:
    """Give the evaluation that a table is of, see `table_name`."""
    return table.partition(OWN_NAME)[0]


class RunFolder:
    """Paths of a run, its settings, and the check that it is this run and no other."""

    def __init__(self, path: str | Path) -> None:
        """Point at a folder, which need not exist yet."""
        self.path = Path(path)
        self.yaml = self.path / "run.yaml"
        self.log = self.path / "train" / "log.jsonl"
        self.bad_images = self.path / "train" / "bad_images.json"
        self.state = self.path / "train" / "state.pt"
        self.scores = self.path / "scores"
        self.origin_file = self.path / "origin.json"
        self.lock = self.path / ".lock"
        """Held by the process that trains."""

    def probes(self, target: str) -> Path:
        """Give the path of a target's probe bank."""
        return self.path / "probes" / f"{target}.safetensors"

    def remove_half_written(self) -> None:
        """Delete what a training that was killed has left half-written; none may be at work here."""
        remove_half_written(self.path, self.path / "train", self.path / "probes")

    def check_free(self, settings: TrainSettings, resume: bool) -> None:
        """Check that `settings` may be trained here. A run of which nothing was saved yet may be begun anew.

        Raises:
            InnerVisionError: the folder holds a run already and `resume` is not asked for, or it is to be resumed
                with other settings, or it holds something that is no run.
        """
        if self.yaml.exists():
            if not resume and (self.state.exists() or any(self.path.glob("probes/*.safetensors"))):
                raise InnerVisionError(
                    f"{self.path} holds a run already: add --resume to resume it, or use another --out"
                )
            if resume:
                before, now = asdict(self.settings()), asdict(settings)
                if differing := [name for name in now if name not in FREE_TO_CHANGE and before[name] != now[name]]:
                    raise InnerVisionError(
                        f"{self.path} was begun with other settings: {', '.join(differing)} (see {self.yaml})"
                    )
        elif resume:
            raise InnerVisionError(f"{self.path} holds no run to resume")
        elif self.path.exists() and self.holds_something():
            raise InnerVisionError(f"{self.path} exists and is no run; use another --out")

    def holds_something(self) -> bool:
        """Tell whether there is anything at this path but a folder that holds at most the lock."""
        return not self.path.is_dir() or any(path != self.lock for path in self.path.iterdir())

    def check_same(self, record: Mapping[str, Any]) -> None:
        """Check that a run that is resumed has the models, the images and the precision that it was begun with.

        Raises:
            InnerVisionError: one of them has changed.
        """
        before = {**self.record(), "dtype": (self.record().get("setup") or {}).get("dtype")}
        now = {**record, "dtype": record["setup"]["dtype"]}
        for key in ("mllm", "dtype", "experts", "layers", "images"):
            if before.get(key) != now[key]:
                raise InnerVisionError(
                    f"{self.path} cannot be resumed: its {key} changed from {before.get(key)} to {now[key]}"
                )

    def write_settings(self, settings: TrainSettings, record: Mapping[str, Any]) -> None:
        """Write run.yaml: the settings, and what they were resolved to."""
        content = {"format": FORMAT, "settings": asdict(settings), "record": dict(record)}
        with atomic_write(self.yaml) as temporary:
            temporary.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")

    def settings(self) -> TrainSettings:
        """Read the settings of this run.

        Raises:
            InnerVisionError: there is no run here, its run.yaml is broken or of another format.
        """
        content = self.read()["settings"]
        try:
            return TrainSettings(**{**content, "probe": ProbeSettings(**content["probe"])})
        except (TypeError, KeyError) as error:
            raise InnerVisionError(f"{self.yaml} does not hold the settings of a run: {error}") from error

    def record(self) -> dict[str, Any]:
        """Read what the settings were resolved to: mllm, experts, layers, images, parameters, setup; what it took."""
        return self.read()["record"]

    def origin(self) -> dict[str, Any]:
        """Read where on the Hub a pulled run comes from: repository, revision, commit; empty for other runs.

        Raises:
            InnerVisionError: the file cannot be read.
        """
        if not self.origin_file.exists():
            return {}
        content = read_json(self.origin_file)
        if not (isinstance(content, dict) and {"repository", "commit", "run.yaml"} <= content.keys()):
            raise InnerVisionError(f"{self.origin_file} does not say where the run comes from: pull the run again")
        return content

    def trained_settings(self) -> TrainSettings:
        """Read the settings by which the models of this run are loaded.

        The precision is that in which its MLLM was loaded, where the settings name none.

        Raises:
            InnerVisionError: as `settings`; or the run was pulled and names a model on this machine, which whoever
                pushed it cannot mean. A run.yaml that was changed since is its new owner's.
        """
        settings, setup = self.settings(), self.record().get("setup")
        if self.origin().get("run.yaml") == fingerprint(self.yaml):
            experts = [(spec.expert, spec.name) for spec in parse_targets(settings.targets) if spec.expert]
            for name, part in [(settings.mllm, "mllm"), *experts]:
                if not is_public(name):
                    raise InnerVisionError(
                        f"the run comes from the Hub, and its {part}, {name}, is a path of the machine it was made on. "
                        f"To use your own copy of that model, name it in {self.yaml}"
                    )
        dtype = setup.get("dtype") if isinstance(setup, dict) else None
        return replace(settings, dtype=settings.dtype or (dtype.get("mllm") if isinstance(dtype, dict) else None))

    def write_bad_images(self, reasons: Mapping[str, str]) -> None:
        """Write the names of images that were left out, with the reasons."""
        with atomic_write(self.bad_images) as temporary:
            temporary.write_text(json.dumps(reasons, indent=1, ensure_ascii=False), encoding="utf-8")

    def read(self) -> dict[str, Any]:
        """Read run.yaml as it is: format, settings and record.

        Raises:
            InnerVisionError: there is no run here, its run.yaml is broken or of another format.
        """
        try:
            content = read_yaml(self.yaml)
        except FileNotFoundError:
            what = "is not a run folder: it has no run.yaml" if self.path.exists() else "does not exist"
            raise InnerVisionError(f"{self.path} {what}; innervision train makes runs") from None
        if not isinstance(content, dict):
            raise InnerVisionError(f"{self.yaml} does not hold the settings of a run")
        if (found := content.get("format", 1)) != FORMAT:
            raise InnerVisionError(
                f"{self.yaml} has format {found}, and this version of InnerVision reads format {FORMAT}: use the "
                "version that it names, or train again"
            )
        if not all(isinstance(content.get(part), dict) for part in ("settings", "record")):
            raise InnerVisionError(f"{self.yaml} lacks the settings or the record of a run")
        experts = content["record"].get("experts", {})
        if not isinstance(experts, dict) or not all(
            isinstance(each, dict) and "kind" in each for each in experts.values()
        ):
            raise InnerVisionError(f"{self.yaml} does not say what the experts of the run are")
        return {**content, "settings": with_present_names(content["settings"])}
