"""The notebook of the demo: it runs from top to bottom, and is kept without outputs."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

NOTEBOOK = Path(__file__).parents[2] / "docs/demo.ipynb"


@pytest.fixture
def notebook() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_runs_from_top_to_bottom_on_a_few_scenes(notebook: nbformat.NotebookNode, tmp_path: Path) -> None:
    [parameters] = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    parameters.source = f"TRAIN, VAL = 8, 5\nFOLDER = {str(tmp_path / 'out')!r}"
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    pictures = [output for output in shown if {"image/png", "image/jpeg"} & output.get("data", {}).keys()]
    assert len(pictures) == 3
    assert Image.open(tmp_path / "out/layers.png").width > 1000
    text = "".join(output.get("text", "") for output in shown)
    assert "--- tuned ---" in text
    assert "--- distilled ---" in text
    [table] = [output["data"]["text/plain"] for output in shown if "text/html" in output.get("data", {})]
    assert {"depth", "seg"} <= set(table.split())


def test_it_is_kept_without_outputs(notebook: nbformat.NotebookNode) -> None:
    assert all(not cell.outputs and cell.execution_count is None for cell in notebook.cells if "outputs" in cell)
