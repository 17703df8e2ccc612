"""Malformed files and settings: each ends in a line or two that say what is wrong, soon and in little memory.

Every case is a command of the command line, run in a fork (see `limits`) on a spoilt copy of good files.
"""

import io
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from corpus.assets import (
    BROKEN_JSON,
    BROKEN_SAFETENSORS,
    Spoil,
    both,
    change,
    copy,
    remove,
    train,
    write,
    write_assets,
)
from corpus.limits import MEMORY, Outcome, run_limited
from innervision.cli import main

Changes = dict[str, Spoil]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The good files, and a run of them that was scored."""
    root = tmp_path_factory.mktemp("corpus")
    write_assets(root)
    words = train(root, targets=f"depth={root}/depth,gen={root}/gen", out=f"{root}/run", layers="0,4")
    scored = ["evaluate", "similarity", f"{root}/run", "--images", f"{root}/coco/val2017", "--workers", "0"]
    for command in (words, scored):
        assert main(command) == 0  # here, so that all forks have what libraries import and work out at first use
    return root


def assert_told(outcome: Outcome, said: str = "") -> None:
    """See that a command failed in one or two lines of plain text, and not by memory that ran out."""
    assert outcome.status in (1, 2), outcome
    assert outcome.memory < MEMORY
    assert not re.search("memory does not suffice|allocate", outcome.err), outcome.err
    assert "Traceback" not in outcome.err
    assert outcome.error
    assert outcome.error.count("\n") <= 1
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", outcome.error), outcome.error
    assert said in outcome.err


def bin_file(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


class Code:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple:
        return os.system, ("touch executed",)


BROKEN_BIN = {
    "empty": b"",
    "garbage": bytes(range(256)) * 20,
    "plain pickle of code": pickle.dumps(Code()),
    "code": bin_file(Code()),
    "a list": bin_file([1, 2]),
    "a tensor": bin_file(torch.zeros(2)),
    "numbers as names": bin_file({1: torch.zeros(1)}),
    "no tensors": bin_file({"a": 1}),
    "none": bin_file(None),
    "cut": bin_file({"a": torch.zeros(1000)})[:-300],
    "safetensors": BROKEN_SAFETENSORS["no tensors"],
}


def weights(file: str, bins: str) -> Changes:
    """Give all that may be wrong with a file of weights."""
    changes = {f"safetensors, {name}": write(file, content) for name, content in BROKEN_SAFETENSORS.items()}
    return changes | {f"bin, {name}": both(remove(file), write(bins, data)) for name, data in BROKEN_BIN.items()}


def tensors(edit) -> Spoil:
    """Give what edits the tensors of a model."""

    def spoil(folder: Path) -> None:
        save_file(edit(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})

    return spoil


def index(content: bytes | str) -> Spoil:
    """Give what replaces the single file of weights by an index."""
    name = "model-00001-of-00001.safetensors"
    return both(lambda f: (f / "model.safetensors").rename(f / name), write("model.safetensors.index.json", content))


def pipe(name: str) -> Spoil:
    """Give what replaces a file by a pipe into which nobody writes."""

    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return spoil


CODE = write("mine.py", "raise SystemExit('code was run')")
TEMPLATE = "chat_template.jinja"

MLLM: Changes = {
    **weights("model.safetensors", "pytorch_model.bin"),
    **{
        f"{file}, {name}": write(file, content)
        for file in ("config.json", "tokenizer.json")
        for name, content in BROKEN_JSON.items()
    },
    "config.json of another model": change("config.json", model_type="llama"),
    "config.json of nothing known": change("config.json", model_type="unheard-of"),
    "model type is a list": change("config.json", model_type=["llava"]),
    "text_config is a number": change("config.json", text_config=3),
    "vision_config is a list": change("config.json", vision_config=[1]),
    "no such image token": change("config.json", image_token_index=10**9),
    "image token below 0": change("config.json", image_token_index=-5),
    "no such vision layer": change("config.json", vision_feature_layer=99),
    "no such dtype": change("config.json", dtype="float7"),
    "a billion layers": change("config.json", "text_config", num_hidden_layers=10**9),
    "no layers": change("config.json", "text_config", num_hidden_layers=0),
    "fewer than no layers": change("config.json", "text_config", num_hidden_layers=-1),
    "more layers than there are": change("config.json", "text_config", num_hidden_layers=6),
    "huge width": change("config.json", "text_config", hidden_size=10**7),
    "width 0": change("config.json", "text_config", hidden_size=0),
    "width is a word": change("config.json", "text_config", hidden_size="wide"),
    "no heads": change("config.json", "text_config", num_attention_heads=0),
    "no such activation": change("config.json", "text_config", hidden_act="evil"),
    "config.json gone": remove("config.json"),
    "tokenizer.json gone": remove("tokenizer.json"),
    "weights gone": remove("model.safetensors"),
    "no vision tower": tensors(lambda held: {k: v for k, v in held.items() if "vision" not in k}),
    "no last layer": tensors(lambda held: {k: v for k, v in held.items() if "layers.3." not in k}),
    "NaN": tensors(lambda held: {k: v * float("nan") if "layers.1.mlp.up" in k else v for k, v in held.items()}),
    "other shapes": tensors(lambda held: {k: v[:1] for k, v in held.items()}),
    "index leads out": index('{"weight_map": {"a": "../secret.safetensors"}}'),
    "index to nowhere": index('{"metadata": {}, "weight_map": {"a": "gone.safetensors"}}'),
    "index of numbers": index('{"weight_map": {"a": 3}}'),
    **{f"index, {name}": index(content) for name, content in BROKEN_JSON.items()},
    "int8": tensors(lambda held: {k: v.to(torch.int8) if "layers.1.mlp.up" in k else v for k, v in held.items()}),
    "settings are a pipe": pipe("tokenizer_config.json"),
    "template is a device": both(remove(TEMPLATE), lambda folder: (folder / TEMPLATE).symlink_to("/dev/zero")),
    "image of a million pixels": change(
        "processor_config.json", "image_processor", crop_size={"height": 10**6, "width": 10**6}
    ),
    "a billion image tokens": change("processor_config.json", num_additional_image_tokens=10**9),
    "pixels divided by 0": change("processor_config.json", "image_processor", image_std=[0, 0, 0]),
    "patches of 0 pixels": change("processor_config.json", patch_size=0),
    "norm of NaN": change("config.json", "text_config", rms_norm_eps=float("nan")),
    "a billion words": change("config.json", "text_config", vocab_size=10**9),
    "image of 10^12 patches": change("config.json", "vision_config", image_size=10**7),
    "template allocates": write(TEMPLATE, "{{ 'a' * 10000000000 }}"),
    "template writes much": write(TEMPLATE, "{{ 'a' * 10000000 }}"),
    "template does not parse": write(TEMPLATE, "{% for "),
    "template wants strings": write(TEMPLATE, "{% for m in messages %}{{ m.content + '!' }}{% endfor %}"),
    "template prints lists": write(TEMPLATE, "{% for m in messages %}{{ m.content }}{% endfor %}"),
    "template refuses": write(TEMPLATE, "{{ raise_exception('no \x1b[31mway') }}"),
    "template breaks out": write(TEMPLATE, "{{ ''.__class__.__mro__ }}"),
    "template without image": write(TEMPLATE, "hello"),
    "template of megabytes": write(TEMPLATE, "a" * (2 << 20)),
    "code of a model": both(change("config.json", model_type="m", auto_map={"AutoConfig": "mine.C"}), CODE),
    "code of a processor": both(
        change("processor_config.json", processor_class="Mine", auto_map={"AutoProcessor": "mine.P"}), CODE
    ),
}

FILE = "image_encoder/model.safetensors"
EXPERT: Changes = {
    **weights(FILE, "image_encoder/pytorch_model.bin"),
    **{f"config.json, {name}": write("image_encoder/config.json", data) for name, data in BROKEN_JSON.items()},
    **{f"processor, {n}": write("feature_extractor/preprocessor_config.json", d) for n, d in BROKEN_JSON.items()},
    "another model": change("image_encoder/config.json", model_type="llama"),
    "settings are a pipe": pipe("feature_extractor/preprocessor_config.json"),
    "width 10^7": change("image_encoder/config.json", hidden_size=10**7),
    "a billion layers": change("image_encoder/config.json", num_hidden_layers=10**9),
}


@pytest.mark.parametrize("name", MLLM)
def test_an_mllm_that_is_broken_or_hostile(root: Path, tmp_path: Path, name: str) -> None:
    MLLM[name](copy(root / "llava", tmp_path / "llava"))
    assert_told(run_limited(train(root, mllm=f"{tmp_path}/llava"), tmp_path), "llava")
    assert not (tmp_path / "executed").exists()


def test_a_template_without_end_is_interrupted(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("innervision.mllm.template.SECONDS", 1.0)
    loop = "{% for a in range(99999) %}"
    folder = copy(root / "llava", tmp_path / "llava")
    (folder / TEMPLATE).write_text(f"{loop}{loop}{'{% endfor %}' * 2}")
    assert_told(run_limited(train(root, mllm=str(folder)), tmp_path), "has not ended after 1 s")


def test_weights_that_a_model_does_not_use_are_told(root: Path, tmp_path: Path) -> None:
    tensors(lambda held: {**held, "model.image_newline": torch.zeros(3)})(copy(root / "llava", tmp_path / "llava"))
    done = run_limited(train(root, mllm=f"{tmp_path}/llava"), tmp_path)
    assert done.status == 0
    assert "does not use (model.image_newline)" in done.err


@pytest.mark.parametrize("name", EXPERT)
def test_an_expert_that_is_broken_or_hostile(root: Path, tmp_path: Path, name: str) -> None:
    EXPERT[name](copy(root / "gen", tmp_path / "gen"))
    assert_told(run_limited(train(root, targets=f"gen={tmp_path}/gen"), tmp_path), "gen")
    assert not (tmp_path / "executed").exists()


def save_as(path: Path, dtype: torch.dtype) -> None:
    """Store the tensors of a file as another type."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file({key: tensor.to(dtype) for key, tensor in load_file(path).items()}, path, metadata)


BANK: Changes = {
    **{name: write("probes/gen.safetensors", data) for name, data in BROKEN_SAFETENSORS.items()},
    "gone": remove("probes/gen.safetensors"),
    "whole numbers": lambda folder: save_as(folder / "probes/gen.safetensors", torch.int32),
    "probes are a pipe": pipe("probes/gen.safetensors"),
    "run.yaml is a pipe": pipe("run.yaml"),
    **{
        f"run.yaml, {name}": write("run.yaml", text)
        for name, text in {
            "empty": "",
            "a list": "[]",
            "deep": "[" * 1000,
            "binary": b"\xff\xfe\x00",
            "alias": "a: &a [1]\nb: *a",
            "tag": "!!python/object/apply:os.system ['touch executed']",
            "other format": "format: 99",
            "no settings": "format: 2\nsettings: {}\nrecord: {}",
        }.items()
    },
}


@pytest.mark.parametrize("name", BANK)
def test_a_run_that_is_broken_or_hostile(root: Path, tmp_path: Path, name: str) -> None:
    BANK[name](copy(root / "run", tmp_path / "run"))
    words = ["evaluate", "similarity", "run", "--images", f"{root}/images", "--workers", "0", "--overwrite"]
    assert_told(run_limited(words, tmp_path))
    assert not (tmp_path / "executed").exists()


def table_of(path: Path, **columns: object) -> None:
    pd.read_parquet(path).assign(**columns).to_parquet(path)


RESUMED: Changes = {
    "state is a pipe": pipe("train/state.pt"),
    "state is garbage": write("train/state.pt", bytes(range(256))),
    "state is a list": write("train/state.pt", bin_file([1, 2])),
    "state of another run": write("train/state.pt", bin_file({"run": "x"})),
    "log is a pipe": pipe("train/log.jsonl"),
    "log is binary": write("train/log.jsonl", b"\xff\xfe"),
    "log holds a list": write("train/log.jsonl", "[1]\n"),
}


@pytest.mark.parametrize("name", RESUMED)
def test_a_run_to_resume_that_is_broken(root: Path, tmp_path: Path, name: str) -> None:
    run = copy(root / "run", tmp_path / "run")
    for path in (run / "probes").iterdir():
        path.unlink()
    RESUMED[name](run)
    assert_told(run_limited(["train", "--config", "run/run.yaml", "--resume"], tmp_path), "train/")


SCORES: Changes = {
    **{f"facts, {name}": write("scores/similarity.json", data) for name, data in BROKEN_JSON.items()},
    "values are words": lambda folder: table_of(folder / "scores/similarity.parquet", value="high"),
    "layers are shares": lambda folder: table_of(folder / "scores/similarity.parquet", layer=0.5),
    "table is a pipe": pipe("scores/similarity.parquet"),
    "table is empty": write("scores/similarity.parquet", b""),
    "table is garbage": write("scores/similarity.parquet", b"PAR1" + bytes(500) + b"PAR1"),
    "table is gone": remove("scores/similarity.parquet"),
}


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("command", ["plot", "compare"])
def test_scores_that_are_broken(root: Path, tmp_path: Path, name: str, command: str) -> None:
    SCORES[name](copy(root / "run", tmp_path / "run"))
    rest = ["--out", "figure.png"] if command == "plot" else [f"{root}/run"]
    assert_told(run_limited([command, "run", *rest], tmp_path))


COCO = "annotations/panoptic_val2017.json"
BENCHMARKS: dict[str, tuple[str, str, Spoil]] = {
    **{f"coco, {name}": ("seg", "coco", write(COCO, data)) for name, data in BROKEN_JSON.items()},
    **{f"da2k, {name}": ("depth", "da2k", write("annotations.json", data)) for name, data in BROKEN_JSON.items()},
    "coco, no annotations": ("seg", "coco", remove(COCO)),
    "coco, annotations are none": ("seg", "coco", change(COCO, annotations=None)),
    "coco, categories twice": ("seg", "coco", change(COCO, categories=[{"id": 1, "name": "a"}] * 2)),
    "coco, leads out": ("seg", "coco", change(COCO, images=[{"id": 0, "file_name": "../a.png"}])),
    "coco, images are numbers": ("seg", "coco", change(COCO, images=[1, 2])),
    "da2k, image twice": ("depth", "da2k", write("annotations.json", '{"a": [], "a": []}')),
    "da2k, leads out": ("depth", "da2k", write("annotations.json", '{"../a.png": []}')),
    "da2k, no images": ("depth", "da2k", write("annotations.json", '{"a.png": []}')),
    "da2k, words for points": (
        "depth",
        "da2k",
        write("annotations.json", '{"a.png": [{"point1": "a", "point2": "b", "closer_point": "point1"}]}'),
    ),
}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_that_is_broken(root: Path, tmp_path: Path, name: str) -> None:
    task, folder, spoil = BENCHMARKS[name]
    spoil(copy(root / folder, tmp_path / folder))
    assert_told(run_limited(["evaluate", task, f"{root}/run", "--data", folder, "--workers", "0"], tmp_path))


LISTS = {
    "empty list": ("a.txt", b""),
    "list of URLs": ("a.txt", b"https://host/a.jpg\n"),
    "list with NUL": ("a.txt", b"a\0.jpg\n"),
    "list is binary": ("a.txt", b"\xff\xd8\xff"),
    "no image": ("a.png", b"no image"),
    "empty image": ("a.png", b""),
    "list of folders": ("a.txt", b".\n/\n"),
    "unknown kind": ("a.zip", b"PK"),
    **{f"annotations, {name}": ("a.json", data) for name, data in BROKEN_JSON.items()},
}


@pytest.mark.parametrize("name", LISTS)
def test_images_that_cannot_be_had(root: Path, tmp_path: Path, name: str) -> None:
    file, content = LISTS[name]
    (tmp_path / file).write_bytes(content)
    assert_told(run_limited(train(root, images=file), tmp_path))


def shape(**values: object) -> Spoil:
    return change("config.json", "image_depth", **values)


IMPORTS: Changes = {
    **{f"weights, {n}": write("model.safetensors", BROKEN_SAFETENSORS[n]) for n in ("empty", "garbage", "no tensors")},
    **{f"config.json, {name}": write("config.json", data) for name, data in BROKEN_JSON.items()},
    "no such mode": change("config.json", probe_mode="x"),
    "mode is a list": change("config.json", probe_mode=["depth"]),
    "a billion layers": change("config.json", num_hidden_layers=10**9),
    "layers are a word": change("config.json", num_hidden_layers="many"),
    "shape is a number": change("config.json", image_depth=3),
    "a billion blocks": shape(depth=10**9),
    "width is a word": shape(dim_head="wide"),
    "width below 0": change("config.json", hidden_size=-3),
    "NaN": tensors(lambda held: {k: v * float("nan") if "heads" in k else v for k, v in held.items()}),
    "whole numbers": tensors(lambda held: {k: v.to(torch.int8) if "heads" in k else v for k, v in held.items()}),
    "beyond float32": tensors(
        lambda h: {k: torch.full_like(v.double(), 1e300) if "heads" in k else v for k, v in h.items()}
    ),
}


@pytest.mark.parametrize("name", IMPORTS)
def test_a_probe_checkpoint_that_is_broken(shared: Path, tmp_path: Path, name: str) -> None:
    folder = copy(shared / "golden/probe_ckpt/probe_depth_tiny-llava-llama3", tmp_path / "probe")
    for file in folder.iterdir():
        file.chmod(0o644)
    IMPORTS[name](folder)
    assert_told(run_limited(["import", "probe", "--out", "run"], tmp_path), "probe")


@pytest.mark.parametrize("name", ["a.json", "a.txt"])
def test_a_pipe_is_not_waited_for(root: Path, tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    assert_told(run_limited(train(root, images=name), tmp_path), "not a regular file")


@pytest.mark.parametrize(
    ("option", "value"),
    [("mllm", "./gone"), ("mllm", "gone/model"), ("mllm", "a\x1b[31mb"), ("targets", "gen=./gone"), ("layers", "x")],
)
def test_names_of_nothing(root: Path, tmp_path: Path, option: str, value: str) -> None:
    assert_told(run_limited(train(root, **{option: value}), tmp_path))


def test_what_is_left_out_is_counted_and_named(root: Path, tmp_path: Path) -> None:
    folder = copy(root / "images", tmp_path / "photos")
    (folder / "gone\x1b[31m.png").symlink_to("nowhere")
    (folder / "b.heic").touch()
    done = run_limited(train(root, images="photos"), tmp_path)
    assert done.status == 0, done.err
    assert r"left out 1 image: gone\x1b[31m.png (a link to nowhere" in done.err
    assert "1 files are of formats that are not read: b.heic" in done.err
    assert "\x1b[31m" not in done.err + done.out


def test_maps_that_do_not_fit_are_left_out_by_name(root: Path, tmp_path: Path) -> None:
    coco = copy(root / "coco", tmp_path / "coco")
    Image.fromarray(np.full((40, 30, 3), (7, 0, 0), np.uint8)).save(coco / "annotations/panoptic_val2017/0002.png")
    run = copy(root / "run", tmp_path / "run")
    assert_told(
        run_limited(["evaluate", "seg", str(run), "--data", "coco", "--workers", "0"], tmp_path)
    )  # no seg probes
    words = train(root, targets=f"seg={root}/seg", out="segs", layers="4")
    assert run_limited(words, tmp_path).status == 0
    done = run_limited(["evaluate", "seg", "segs", "--data", "coco", "--workers", "0"], tmp_path)
    assert done.status == 0, done.err
    assert "left out 0002.png: its map has 40 × 30 pixels" in done.err
