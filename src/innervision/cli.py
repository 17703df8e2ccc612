"""The command line: finds the command, makes its parser from its dataclasses, calls it."""

import argparse
import io
import json
import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from innervision import __version__
from innervision.commands import GROUPS, Command, commands
from innervision.config import with_present_names
from innervision.engine.run import FORMAT
from innervision.errors import InnerVisionError, SharedError, printable
from innervision.original.presets import PRESETS
from innervision.yaml_files import read_yaml

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser


class WrongUsage(Exception):
    """Words that make no command."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        0 done, 1 failed, 2 wrong usage.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    _adapt_to_surroundings()
    try:
        _run(words)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python writes at its end
        return 1
    except (WrongUsage, argparse.ArgumentError) as error:
        return _fail(" ".join(str(error).split()), 2)
    except (InnerVisionError, OSError) as error:
        if "--debug" in words:
            traceback.print_exc()
        shared = isinstance(error, SharedError) and os.environ.get("RANK", "0") != "0"
        return 1 if shared else _fail(str(error), 1)
    except MemoryError:
        return _fail("memory does not suffice", 1)
    except KeyboardInterrupt:
        print("innervision: stopped", file=sys.stderr)
        return 1
    return 0


def _adapt_to_surroundings() -> None:
    """Let neither a terminal of few characters nor a notebook's settings for figures break a command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    os.environ["MPLBACKEND"] = "agg"  # no command opens a window


def _fail(message: str, status: int) -> int:
    print(f"innervision: error: {printable(message)}", file=sys.stderr)
    return status


def _run(words: list[str]) -> None:
    known = commands()
    name = next((name for size in (2, 1) if (name := " ".join(words[:size])) in known), None)
    if name is None:
        _show_commands(words, known)
        return
    command, rest = known[name], words[len(name.split()) :]
    parser, dataclasses = _parser(name, command)
    if command.takes_files:
        rest = _files_first(rest, dataclasses[-1])
    chosen = parser.parse_args([_with_underscores(word) for word in rest])
    try:
        values = [_build(kind, chosen) for kind in dataclasses]
    except InnerVisionError as error:  # settings that make no sense
        raise WrongUsage(str(error)) from error
    if not chosen.debug:
        _quieten()
    command.run(*values)


def _show_commands(words: Sequence[str], known: Mapping[str, Command]) -> None:
    """Answer to words that name no command: --help and --version, and what is wrong with others."""
    group = words[0] if words and words[0] in GROUPS else ""
    rest = words[1:] if group else words
    shown = {name: command for name, command in known.items() if name.startswith(f"{group} " if group else "")}
    if rest and rest[0] in ("-h", "--help"):
        print(f"usage: {' '.join(['innervision', group]).strip()} COMMAND …   (COMMAND --help says more)\n")
        print(GROUPS.get(group, "Shows what a multimodal LLM sees, layer by layer."), end="\n\n")
        for name, command in shown.items():
            print(f"  {name.removeprefix(group).strip():{max(map(len, shown))}}  {command.help}")
    elif list(words) == ["--version"]:
        print(f"innervision {__version__}")
    else:
        wrong = f"there is no command {' '.join(words[: 2 if group else 1])!r}" if rest else "name a command"
        raise WrongUsage(f"{wrong}; there are: {', '.join(shown)}")


def _parser(name: str, command: Command) -> tuple["ArgumentParser", list[type]]:
    """Make the parser of a command, and give the dataclasses that its values fill."""
    from docstring_parser import parse_from_object
    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog=f"innervision {name}",
        description=command.help,
        exit_on_error=False,
        allow_abbrev=False,
        print_config=None,
    )
    kind, settings = command.arguments, [command.settings()] if command.settings else []
    texts = {text.arg_name: text.description for text in parse_from_object(kind).params}
    options = set()
    for field in fields(kind):
        if not field.kw_only:
            several: dict[str, Any] = {"nargs": "+"} if field.type == list[str] else {}
            parser.add_argument(field.name, metavar=field.name.upper(), help=texts[field.name], **several)
        elif field.type is bool:  # --resume, where settings have --probe.positions true
            parser.add_argument(f"--{field.name}", action="store_true", help=texts[field.name])
        else:
            options.add(field.name)
    if command.takes_files:
        parser.add_argument("--preset", choices=sorted(PRESETS), help="Settings of an experiment of the paper.")
        parser.add_argument("--config", action="config", help="YAML file of settings, or the run.yaml of another run.")
    parser.add_argument("--debug", action="store_true", help="Show warnings, and the traceback of an error.")
    for each in settings:
        parser.add_class_arguments(each)
    parser.add_class_arguments(kind, skip={field.name for field in fields(kind)} - options)
    for action in parser._actions:  # help shows --max-bad; words are parsed as --max_bad, so both can be typed
        action.option_strings = [option.replace("_", "-") for option in action.option_strings]
    return parser, [kind, *settings]


def _with_underscores(word: str) -> str:
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def _files_first(words: Sequence[str], settings: type) -> list[str]:
    """Put the settings of --preset and then of --config before the other options, so that they undo none."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--preset", choices=sorted(PRESETS), action="append", default=[])
    parser.add_argument("--config", type=Path, action="append", default=[])
    found, rest = parser.parse_known_args(words)
    given = [*map(PRESETS.get, found.preset), *(_read_settings(file, settings) for file in found.config)]
    return [word for each in given for word in ("--config", json.dumps(each))] + rest


def _read_settings(path: Path, kind: type) -> dict[str, Any]:
    """Read a file of settings, or those of a run.yaml; the run may have been moved, so `out` is the file's folder.

    Raises:
        WrongUsage: it cannot be read or holds something else.
    """
    try:
        content = read_yaml(path)
    except FileNotFoundError as error:
        raise WrongUsage(f"there is no file {path}") from error
    except InnerVisionError as error:
        raise WrongUsage(str(error)) from error
    unknown: list[Any] = []
    of_run = isinstance(content, dict) and "record" in content and bool({"mllm", "settings"} & content.keys())
    if of_run and content.get("format", 1) != FORMAT:
        raise WrongUsage(f"{path} has format {content.get('format', 1)}; this version reads runs of format {FORMAT}")
    if is_run := isinstance(content, dict) and {"format", "settings"} <= content.keys():
        unknown = [name for name in content if name not in ("format", "settings", "record")]
        content = content["settings"]
        content = with_present_names(content) if isinstance(content, dict) else content
    if unknown := [*unknown, *_unknown(content, kind)]:
        raise WrongUsage(f"{path} holds what is no setting: {', '.join(map(str, unknown))}")
    return {**content, "out": str(path.parent)} if is_run and path.name == "run.yaml" else content


def _unknown(content: Any, kind: type) -> Iterator[Any]:
    """Name what is no field of a dataclass or of those within it. jsonargparse would import a `class_path` first."""
    if not isinstance(content, dict):
        yield f"{content!r:.40} (a mapping of names to values is needed)"
        return
    known = {field.name: field.type for field in fields(kind)}
    for name, value in content.items():
        inner = known.get(name)
        if inner is None:
            yield name
        elif isinstance(inner, type) and is_dataclass(inner):
            yield from _unknown(value, inner)


def _build(kind: type, chosen: Any) -> Any:
    """Make a dataclass of parsed values, and those within it."""
    values = {field.name: chosen[field.name] for field in fields(kind)}
    for field in fields(kind):
        if isinstance(field.type, type) and is_dataclass(field.type):
            values[field.name] = _build(field.type, values[field.name])
    return kind(**values)


def _quieten() -> None:
    """Keep the libraries' own warnings off the terminal; downloads show their bars."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


if __name__ == "__main__":
    sys.exit(main())
