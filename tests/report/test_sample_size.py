"""How many images exact probes need: what a run keeps of it, and the figure."""

from pathlib import Path

import pytest
import yaml

from innervision.cli import main
from innervision.config import ProbeSettings
from innervision.errors import InnerVisionError
from innervision.probes import BankInfo, ProbeBank
from innervision.report.sample_size import read_sample_sizes, sample_size_figure

CURVES = {0: [0.1, 0.2, 0.25], 3: [0.3, 0.35, 0.36]}


def write_run(folder: Path, facts: dict) -> Path:
    """A run of which only run.yaml and one probe file are there."""
    record = {"experts": {"gen": {"kind": "gen", "name": "e", "revision": None}}}
    folder.mkdir()
    (folder / "run.yaml").write_text(yaml.safe_dump({"format": 2, "settings": {"mllm": "a/model"}, "record": record}))
    info = BankInfo(
        mllm="a/model",
        mllm_revision=None,
        num_layers=3,
        widths={0: 4, 3: 4},
        target="gen",
        kind="gen",
        expert="e",
        expert_revision=None,
        num_tokens=1,
        width=2,
    )
    ProbeBank(info, ProbeSettings()).save(folder / "probes/gen.safetensors", facts)
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    held_out = {layer: {"images": [10, 20, 40], "explained_variance": curve} for layer, curve in CURVES.items()}
    return write_run(tmp_path / "run", {"held_out": held_out})


def test_the_numbers_of_a_run_are_read(run: Path) -> None:
    table = read_sample_sizes(run)
    assert list(table["layer"].unique()) == [0, 3]
    for layer, curve in CURVES.items():
        rows = table[table["layer"] == layer]
        assert rows["explained_variance"].tolist() == curve
        assert rows["images"].tolist() == [10, 20, 40]


def test_the_figure_has_a_line_for_each_layer(run: Path) -> None:
    figure = sample_size_figure([run, str(run)], ["one", "two"])
    panels = figure.axes[:2]
    for panel in panels:
        lines = {line.get_label(): line for line in panel.get_lines()}
        for layer, curve in CURVES.items():
            assert list(lines[str(layer)].get_xdata()) == [10, 20, 40]
            assert list(lines[str(layer)].get_ydata()) == curve
    assert panels[0].get_ylabel().startswith("one")


def test_trained_probes_do_not_know(tmp_path: Path) -> None:
    with pytest.raises(InnerVisionError, match="only exact probes do"):
        read_sample_sizes(write_run(tmp_path / "run", {"steps": 3}))


def test_names_are_written_as_they_are(run: Path, tmp_path: Path) -> None:
    figure = sample_size_figure([run], ["$\\frac{ \x1b"])
    figure.savefig(tmp_path / "a.png")  # a formula that is wrong would fail
    assert figure.axes[0].get_ylabel().startswith(r"\$\frac{ \x1b")


@pytest.mark.parametrize(
    "held_out",
    [3, [1], {"x": {}}, {"0": [1]}, {"0": {"images": [1], "explained_variance": ["a"]}}, {"0": {"images": [1]}}],
)
def test_numbers_that_are_none_are_one_error(held_out: object, tmp_path: Path) -> None:
    with pytest.raises(InnerVisionError, match=r"gen\.safetensors does not say what its probes explain"):
        read_sample_sizes(write_run(tmp_path / "run", {"held_out": held_out}))


def test_the_command_draws_it_alone(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plot", str(run), "--metrics", "images", "--out", str(tmp_path / "images.pdf")]) == 0
    assert (tmp_path / "images.pdf").read_bytes().startswith(b"%PDF")
    assert main(["plot", str(run), "--metrics", "images,cosine", "--out", str(tmp_path / "x.png")]) == 1
    assert "images is a figure of its own" in capsys.readouterr().err
