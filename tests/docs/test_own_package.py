"""What docs/python.md says of packages that bring targets, probes and tasks of their own: done as written there."""

import re
import tomllib
from pathlib import Path

import pytest
import transformers as hf

from innervision.cli import main
from innervision.engine.run import RunFolder
from innervision.world.dataset import write_scenes

PAGE = Path(__file__).parents[2] / "docs/python.md"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package of the page, installed."""
    blocks = re.findall(r"```(\w+)\n(.*?)```", PAGE.read_text(), re.DOTALL)
    [project] = [tomllib.loads(text)["project"] for kind, text in blocks if kind == "toml"]
    [module] = [text for _, text in blocks if "class Nearest(Task)" in text]
    (tmp_path / "my_probes.py").write_text(module)
    facts = tmp_path / "my_probes-0.1.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n")
    lines = [[f"[{group}]", *map(" = ".join, entries.items())] for group, entries in project["entry-points"].items()]
    (facts / "entry_points.txt").write_text("\n".join(line for group in lines for line in group))
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.fixture
def backbone(tmp_path: Path) -> Path:
    folder = tmp_path / "dinov2"
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    hf.Dinov2Model(hf.Dinov2Config(**shape)).save_pretrained(folder)
    size = {"height": 28, "width": 28}
    hf.BitImageProcessor(size={"shortest_edge": 28}, crop_size=size).save_pretrained(folder)
    return folder


@pytest.mark.usefixtures("package")
def test_a_package_brings_a_target_a_probe_and_a_task_with_settings_of_their_own(
    backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scenes(tmp_path / "scenes", train=4, val=6, size=64, progress=False)
    images, out = str(tmp_path / "scenes/train2017"), tmp_path / "run"
    words = ["--targets", f"pooled={backbone},depth=world/depth", "--probe.kind", "mlp", "--probe.options.hidden", "8"]
    words += ["--layers", "8", "--epochs", "1", "--batch-size", "4", "--workers", "0", "--device", "cpu"]
    assert main(["train", "--mllm", "world/tuned", "--images", images, "--out", str(out), *words]) == 0
    run = RunFolder(out)
    assert run.settings().probe.options == {"hidden": 8}
    inner, outer = 96 * 8 + 8, 8 * 32 + 32  # one layer; a feature of width 32 from states of width 96
    assert run.record()["parameters"]["pooled"] == inner + outer

    val = str(tmp_path / "scenes/val2017")
    shares = []
    for below in ("0", "1"):  # every place is low, and none is
        words = ["--data", val, "--below", below, "--workers", "0", "--device", "cpu", "--overwrite", "--table"]
        assert main(["evaluate", "nearest", str(out), *words]) == 0
        shown = capsys.readouterr().out
        assert "closest point is low" in shown
        shares.append(re.findall(r"^ *8 +(\d\.\d\d) ", shown, re.MULTILINE))
    assert shares == [["1.00"], ["0.00"]]
