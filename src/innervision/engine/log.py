"""What a training tells of each step: a log file, and Accelerate's trackers."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from innervision.config import TrainSettings, split_names
from innervision.errors import InnerVisionError
from innervision.files import atomic_write
from innervision.json_files import parse_json, read_text


class TrainingLog:
    """Writes a line of JSON a step, and sends the losses to trackers, if the settings name any."""

    def __init__(self, path: Path, settings: TrainSettings) -> None:
        """Find the trackers; nothing is written yet.

        Args:
            path: of the log file.
            settings: of the run.

        Raises:
            InnerVisionError: a tracker is not known or not installed.
        """
        self.path = path
        self.settings = settings
        self.tracker: Any = None
        if settings.trackers:
            from accelerate import Accelerator

            try:
                self.tracker = Accelerator(cpu=True, log_with=split_names(settings.trackers), project_dir=path.parent)
            except (ValueError, ImportError) as error:
                raise InnerVisionError(f"trackers={settings.trackers!r} cannot be used: {error}") from error

    def open(self, step: int) -> "TrainingLog":
        """Begin after a step: what the file says of later ones is about to be written again."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            lines = read_text(self.path, kind="JSON lines").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and self._step(line) <= step]
            with atomic_write(self.path) as temporary:
                temporary.write_text("".join(kept), encoding="utf-8")
        if self.tracker is not None:
            plain = {
                name: value for name, value in asdict(self.settings).items() if isinstance(value, str | int | float)
            }
            self.tracker.init_trackers("innervision", config=plain)
        self.file = self.path.open("a", encoding="utf-8")
        return self

    def _step(self, line: str) -> int:
        content = parse_json(line, f"a line of {self.path}")
        if not (isinstance(content, dict) and isinstance(step := content.get("step"), int)):
            raise InnerVisionError(f"a line of {self.path} names no step: delete the file to resume without it")
        return step

    def __enter__(self) -> "TrainingLog":
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file and the trackers, whatever has happened."""
        self.file.close()
        if self.tracker is not None:
            self.tracker.end_training()

    def write(self, line: Mapping[str, Any]) -> None:
        """Write the line of one step: its number as `step`, and its losses as `loss`, if it has any."""
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()
        if self.tracker is not None and line.get("loss"):
            by_target = line["loss"].items()
            values = {f"{name}/{layer}": loss for name, losses in by_target for layer, loss in losses.items()}
            self.tracker.log(values, step=line["step"])
