"""How experts are named, and which class a name stands for."""

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from innervision.errors import InnerVisionError
from innervision.targets import TargetSpec, load_targets, parse_target, parse_targets
from tiny_experts import save_tiny_backbone, save_tiny_depth


def test_kind_expert_and_revision() -> None:
    assert parse_target("depth") == TargetSpec("depth", "depth", None, None)
    assert parse_target("gen=some/copy") == TargetSpec("gen", "gen", "some/copy", None)
    named = TargetSpec("backbone", "backbone", "facebook/dinov2-base", "v1")
    assert parse_target(" backbone = facebook/dinov2-base@v1 ") == named
    assert parse_target("seg=./my=model") == TargetSpec("seg", "seg", "./my=model", None)


def test_a_name_of_its_own_stands_before_the_kind() -> None:
    assert parse_target("dino:backbone=a/b@v1") == TargetSpec("dino", "backbone", "a/b", "v1")
    with pytest.raises(InnerVisionError, match=r"'\.\./up' cannot be the name of a target"):
        parse_target("../up:depth")


def test_at_sign_in_a_folders_name_is_no_revision(tmp_path: Path) -> None:
    (tmp_path / "a@b").mkdir()
    assert parse_target(f"depth={tmp_path}/a@b").expert == f"{tmp_path}/a@b"


def test_unknown_kind_lists_the_known_ones() -> None:
    with pytest.raises(InnerVisionError, match=r"no target 'dept'.* backbone, depth, gen, seg"):
        parse_target("dept=x")


@pytest.mark.parametrize("spec", ["depth=", "depth=@main", "depth=a/b@"])
def test_incomplete_spec_is_refused(spec: str) -> None:
    with pytest.raises(InnerVisionError, match=r"is incomplete; write depth=ID_OR_PATH"):
        parse_target(spec)


def test_a_path_may_hold_commas() -> None:
    specs = parse_targets("depth=/a, b/depth,x/c,seg")
    assert [(spec.kind, spec.expert) for spec in specs] == [("depth", "/a, b/depth,x/c"), ("seg", None)]


def test_several_of_one_kind_are_told_apart_by_their_last_names() -> None:
    names = [spec.name for spec in parse_targets("depth,backbone=a/dino,backbone=b/siglip@v1,mine:backbone=c/dino")]
    assert names == ["depth", "backbone-dino", "backbone-siglip", "mine"]


def test_two_targets_of_one_name_are_refused_before_any_is_loaded() -> None:
    for specs in ("backbone=no/such,depth=no/such,backbone=other/such", "depth,depth"):
        with pytest.raises(InnerVisionError, match=r"several targets are called .*; give each a name"):
            load_targets(specs)


def test_targets_of_one_kind_are_loaded_side_by_side(tmp_path: Path) -> None:
    first, second = (save_tiny_backbone(tmp_path / family, family=family) for family in ("dinov2", "siglip"))
    targets = load_targets(f"backbone={first},words:backbone={second}", device="cpu")
    assert [(target.name, target.kind, target.expert) for target in targets] == [
        ("backbone", "backbone", "dinov2"),
        ("words", "backbone", "siglip"),
    ]


def test_parsing_imports_no_torch() -> None:
    code = (
        "import sys; from innervision.targets import parse_target; parse_target('depth=a/b');"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_other_packages_bring_their_own_kinds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    entries = [
        EntryPoint("geometry", "innervision.targets.depth:DepthTarget", "innervision.targets"),
        EntryPoint("gone", "no_such_package:Target", "innervision.targets"),
    ]
    installed = {"innervision.targets": entries}
    monkeypatch.setattr("innervision.registry.entry_points", lambda group: installed.get(group, []))
    [target] = load_targets(f"geometry={save_tiny_depth(tmp_path / 'expert')}", device="cpu")
    assert (target.name, target.num_tokens) == ("geometry", 576)
    with pytest.raises(InnerVisionError, match=r"'gone' \(no_such_package:Target\) cannot be imported"):
        load_targets("gone")
