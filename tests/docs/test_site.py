"""The site of the docs: all pages are in it, and no link, anchor or picture is amiss."""

import subprocess
import sys
from pathlib import Path

import pytest

from doc_pages import PAGES, ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build it as `make docs` does: a warning is an error."""
    folder = tmp_path_factory.mktemp("site")
    [words] = [line.split() for line in (ROOT / "Makefile").read_text().splitlines() if "sphinx-build" in line]
    options = words[1 : words.index("-d")]
    assert "--fail-on-warning" in options
    command = [sys.executable, "-m", "sphinx", *options, "-d", str(folder / "read"), str(ROOT), str(folder / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "site"


def test_every_page_is_in_it_and_in_its_menu(site: Path) -> None:
    home = (site / "index.html").read_text()
    for page in PAGES:
        name = page.relative_to(ROOT).with_suffix(".html")
        assert (site / name).is_file()
        assert page.name == "README.md" or f'href="{name.as_posix()}"' in home


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        assert 'src="http' not in page.read_text()
        assert 'rel="stylesheet" type="text/css" href="http' not in page.read_text()
