"""YAML from strangers: plain values, or an error of one line."""

import resource
import time
from pathlib import Path

import pytest

from innervision.errors import InnerVisionError, printable
from innervision.yaml_files import read_yaml

LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}]\n" for a, b in zip("abcdefghi", "bcdefghij", strict=True)
)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (LAUGHS.encode(), "it has an alias, line 2"),
        (b"a: &a [*a]", "it has an alias"),
        (b"[" * 10_000, "it is nested too deeply"),
        (b"{a: " * 5_000, "it is nested too deeply"),
        (b"- " * 3_000 + b"x", "it is nested too deeply"),
        (b"a: !!python/object/apply:os.system [true]", "could not determine a constructor"),
        (b"a: !mine 3", "could not determine a constructor"),
        (b"a: 1\n---\nb: 2\n", "another document"),
        (b"a:\n\t- b\n", r"cannot start any token"),
        (b"\x00\x01\x02", "special characters are not allowed"),
        ("a: 1".encode("utf-16"), "can't decode"),
        (b"a: " + b"x" * (1 << 20), "more than 1,048,576 bytes"),
        (b"? [a, b]\n: c\n? {d: e}\n: f\n", "unhashable|found"),
        (b"a: 'unclosed", "unexpected end of stream"),
    ],
)
def test_what_could_do_harm_or_makes_no_sense_is_an_error_of_one_line(
    tmp_path: Path, content: bytes, said: str
) -> None:
    (tmp_path / "run.yaml").write_bytes(content)
    began, memory = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InnerVisionError, match=rf"run\.yaml cannot be read: .*({said})") as caught:
        read_yaml(tmp_path / "run.yaml")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert time.monotonic() - began < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 200_000  # KiB


def test_plain_values_are_read(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("# a comment\na: 1\nb: [true, 0.5, é]\nc: {d: null}\n")
    assert read_yaml(path) == {"a": 1, "b": [True, 0.5, "é"], "c": {"d": None}}
    path.write_text("")
    assert read_yaml(path) is None


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("a\rb\tc", r"a\rb\tc"),
        ("two\nlines", "two\nlines"),
        ("\u202etxt.exe", r"\u202etxt.exe"),
        ("\x9b2J", r"\x9b2J"),
        ("é 猫 🐈", "é 猫 🐈"),
    ],
)
def test_control_characters_do_not_reach_a_terminal(text: str, shown: str) -> None:
    assert printable(text) == shown
