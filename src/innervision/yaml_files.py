"""YAML files that may come from strangers."""

from pathlib import Path
from typing import Any

import yaml

from innervision.errors import InnerVisionError, first_line
from innervision.files import require_regular

LARGEST, DEEPEST = 1 << 20, 20
"""Bytes and levels of a file of settings, at most."""


def read_yaml(path: Path) -> Any:
    """Read plain values from one YAML document: no tags, no aliases (which can unfold to gigabytes).

    Raises:
        FileNotFoundError: it does not exist.
        InnerVisionError: it cannot be read, is too large or too deep, or holds something else.
    """
    require_regular(path)
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise ValueError(f"it has more than {LARGEST:,} bytes")
        return yaml.load(content.decode("utf-8"), _Loader)
    except FileNotFoundError:
        raise
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InnerVisionError(f"{path} cannot be read: {error.problem}{line}") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InnerVisionError(f"{path} cannot be read: {first_line(error)}") from error


class _Loader(yaml.SafeLoader):
    """Refuses aliases, and what is nested too deeply."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "it has an alias", self.peek_event().start_mark)
        if self.depth == DEEPEST:
            raise yaml.composer.ComposerError(None, None, "it is nested too deeply", self.peek_event().start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node
