"""The docs site: Sphinx reads the pages where they lie in the clone, so links between files are links of the site.

make docs
"""

import shutil
from pathlib import Path

from sphinx.application import Sphinx

project = "InnerVision"
author = copyright = "The InnerVision developers"
extensions = ["myst_parser"]
html_theme = "furo"
html_title = project
html_copy_source = False
root_doc = "README"
include_patterns = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/*.md", "src/innervision/world/models/card.md"]
exclude_patterns = [".*", "build", "runs", "site"]  # folders that are not searched
myst_heading_anchors = 3

CHAPTERS = {
    "Use": ["start", "data", "models", "families", "tasks", "runs", "report", "python", "original"],
    "Understand": ["method", "world", "../src/innervision/world/models/card"],
    "Scale": ["speed", "scale"],
    "Work on it": ["../CONTRIBUTING", "../CHANGELOG"],
}
"""What the menu shows."""


def add_menu(app: Sphinx, name: str, source: list[str]) -> None:
    """Give the home page, README.md, the list of all other pages, which Sphinx wants in a page."""
    if name == app.config.root_doc:
        for title, pages in CHAPTERS.items():
            names = "\n".join(str(Path("docs", page)) for page in pages)
            source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {title}\n\n{names}\n```\n"


def add_index(app: Sphinx, error: Exception | None) -> None:
    """Let the site begin where servers and readers look first."""
    if error is None:
        shutil.copyfile(app.outdir / f"{app.config.root_doc}.html", app.outdir / "index.html")


def setup(app: Sphinx) -> None:
    """Tell Sphinx of the above."""
    app.connect("source-read", add_menu)
    app.connect("build-finished", add_index)
