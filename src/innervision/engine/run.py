"""The run folder: one MLLM, its probes and their scores.

run.yaml                  all settings as resolved, and under `record` what they were resolved to
probes/TARGET.safetensors one file per target
train/log.jsonl           loss per target and layer, learning rate, images/s
train/bad_images.json     images that were left out, and why
train/state.pt            what --resume needs; gone when training is done
scores/*.parquet          one row per image, target, layer, source and metric
figures/                  PNG and PDF
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from innervision.config import ProbeSettings, TrainSettings
from innervision.errors import InnerVisionError
from innervision.files import atomic_write

FREE_TO_CHANGE = {"out", "device", "workers", "save_every", "max_bad", "trackers"}
"""Settings that may differ when a run is resumed: they leave its result alone."""

PACKAGES = (
    "innervision",
    "torch",
    "torchvision",
    "transformers",
    "diffusers",
    "accelerate",
    "safetensors",
    "numpy",
)


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

    def probes(self, target: str) -> Path:
        """Give the path of a target's probe bank."""
        return self.path / "probes" / f"{target}.safetensors"

    def check_free(self, settings: TrainSettings, resume: bool) -> None:
        """Check that `settings` may be trained here. A run of which nothing was saved yet may be begun anew.

        Raises:
            InnerVisionError: the folder holds a run already and `resume` is not asked for, or it is to be resumed
                with other settings, or it holds something that is no run.
        """
        if self.yaml.exists():
            if not resume and (self.state.exists() or any(self.path.glob("probes/*.safetensors"))):
                raise InnerVisionError(
                    f"{self.path} holds a run already: add --resume to go on with it, or use another --out"
                )
            differing = [
                name for name in changed(asdict(self.settings()), asdict(settings)) if name not in FREE_TO_CHANGE
            ]
            if resume and differing:
                raise InnerVisionError(
                    f"{self.path} was begun with other settings: {', '.join(differing)} (see {self.yaml})"
                )
        elif resume:
            raise InnerVisionError(f"{self.path} holds no run to resume")
        elif self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise InnerVisionError(f"{self.path} exists and is no run; use another --out")

    def check_same(self, record: Mapping[str, Any]) -> None:
        """Check that a run that is resumed has the models and the images that it was begun with.

        Raises:
            InnerVisionError: one of them has changed.
        """
        before = self.record()
        for key in ("mllm", "dtype", "experts", "layers", "images"):
            if before.get(key) != record[key]:
                raise InnerVisionError(
                    f"{self.path} cannot be resumed: its {key} changed from {before.get(key)} to {record[key]}"
                )

    def write_settings(self, settings: TrainSettings, record: Mapping[str, Any]) -> None:
        """Write run.yaml: the settings, and what they were resolved to, with the versions of the packages used."""
        content = {**asdict(settings), "record": {**record, "versions": package_versions()}}
        with atomic_write(self.yaml) as temporary:
            temporary.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True))

    def settings(self) -> TrainSettings:
        """Read the settings of this run.

        Raises:
            InnerVisionError: there is no run here, or its run.yaml is broken.
        """
        content = self._read()
        content.pop("record", None)
        try:
            return TrainSettings(**{**content, "probe": ProbeSettings(**content["probe"])})
        except (TypeError, KeyError) as error:
            raise InnerVisionError(f"{self.yaml} does not hold the settings of a run: {error}") from error

    def record(self) -> dict[str, Any]:
        """Read what the settings were resolved to."""
        return self._read().get("record", {})

    def write_bad_images(self, reasons: Mapping[str, str]) -> None:
        """Write the names of images that were left out, with the reasons."""
        with atomic_write(self.bad_images) as temporary:
            temporary.write_text(json.dumps(reasons, indent=1, ensure_ascii=False))

    def _read(self) -> dict[str, Any]:
        try:
            content = yaml.safe_load(self.yaml.read_text())
        except FileNotFoundError:
            raise InnerVisionError(f"{self.path} is not a run folder: it has no run.yaml") from None
        except (OSError, yaml.YAMLError) as error:
            raise InnerVisionError(f"{self.yaml} cannot be read: {error}") from error
        if not isinstance(content, dict):
            raise InnerVisionError(f"{self.yaml} does not hold the settings of a run")
        return content


def package_versions() -> dict[str, str]:
    """Give the versions of the packages that decide a run's numbers."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Name the settings whose values differ."""
    return [name for name in now if before.get(name) != now[name]]
