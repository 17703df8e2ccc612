"""Makes a run of a probe checkpoint of the original code.

innervision import shi-labs/probe_depth_llava-1.5-pt-ift --out runs/depth
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedConfig

from innervision.checkpoints.identity import hub_commit, identify
from innervision.checkpoints.shards import Shards
from innervision.config import ProbeSettings, TrainSettings
from innervision.data import find_images
from innervision.data.loader import Batches, load_batches
from innervision.engine.run import RunFolder
from innervision.errors import InnerVisionError, require
from innervision.original.layout import UNUSED_KEYS
from innervision.probes import ProbeBank
from innervision.targets import load_targets
from innervision.targets.target import Target

EXPERTS = {"depth": "depth_estimator", "seg": "image_segmentor", "gen": "image_generator"}
"""By mode, the key of the configuration that names the expert."""

MLLM_KEYS = re.compile(r"model\.(embed_tokens|norm|layers|vision_tower|mm_projector)\.|lm_head\.")
"""Tensors of the MLLM, which a probe checkpoint holds as a whole."""


@dataclass
class Model:
    """What a bank needs to know of the MLLM."""

    name: str
    revision: str | None
    num_layers: int
    hidden_size: int

    def width(self, layer: int) -> int:
        """Give the width of a decoder layer's states."""
        return self.hidden_size


@dataclass
class Features:
    """What a bank needs to know of the target."""

    name: str
    expert: str
    revision: str | None
    num_tokens: int
    width: int


def import_probes(
    checkpoint: str,
    out: str | Path,
    *,
    expert: str | None = None,
    images: str | None = None,
    revision: str | None = None,
    template: str | None = None,
    device: str | None = None,
    progress: bool = True,
) -> RunFolder:
    """Write a run that holds the probes of a checkpoint. Of its files only the probes are read.

    Args:
        checkpoint: a folder or a Hub id, in the layout that the original code saves.
        out: the run's folder.
        expert: the expert that the probes predict; by default the one that the checkpoint names or holds.
        images: over which to average the expert's features, for the floor `mean` and the scores that are centred
            on it. The checkpoint does not hold this mean: without images the run has neither.
        revision: branch, tag or commit on the Hub.
        template: of the conversation; by default the language model's.
        device: of the expert, where images are given.
        progress: show a bar.

    Raises:
        InnerVisionError: this is no such checkpoint, or it lacks tensors, or has some of another shape or that
            nothing is known of; the expert cannot be had.
    """
    try:
        config, _ = PreTrainedConfig.get_config_dict(checkpoint, revision=revision)
    except OSError as error:
        raise InnerVisionError(f"cannot read {checkpoint}: {' '.join(str(error).split())[:300]}") from error
    revision = hub_commit(checkpoint, revision)
    mode = str(config.get("probe_mode"))
    require(
        mode in EXPERTS,
        f"{checkpoint} is no probe checkpoint: probe_mode in its config.json is {mode}, not depth, seg or gen",
    )
    shards = Shards(checkpoint, revision)
    probes, _, unknown = sort_keys(shards.files, mode)
    require(not unknown, f"{checkpoint} (probe_mode={mode}) holds {len(unknown)} unknown tensors: {_few(unknown)}")
    place = expert or named_expert(checkpoint, config, shards)
    shape = _head_settings(checkpoint, config)
    settings = TrainSettings(
        mllm=_absolute(checkpoint),
        images=images or "",
        out=str(out),
        targets=f"{mode}={_absolute(place)}",
        layers="decoder",
        probe=ProbeSettings(
            depth=shape["depth"], heads=shape["num_heads"], dim_head=shape["dim_head"], ff_mult=shape["ff_mult"]
        ),
        revision=revision,
        template=template,
        protocol="paper",
    )
    run = RunFolder(out)
    run.check_free(settings, resume=False)
    name, commit = identify(checkpoint, revision)
    model = Model(name, commit, config["num_hidden_layers"], config["hidden_size"])
    target = Features(mode, *identify(place), num_tokens=shape["num_tokens"], width=shape["output_dim"])
    bank = read_bank(model, target, settings.probe, shards, probes)
    if images:
        [loaded] = load_targets([f"{mode}={place}"], device=device)
        bank.mean = mean_feature(loaded, images, progress).cpu()
    record = {
        "imported": {"checkpoint": name, "revision": commit},
        "mllm": {"name": name, "revision": commit, "num_layers": model.num_layers},
        "experts": {mode: {"name": target.expert, "revision": target.revision}},
        "layers": bank.layers,
        "parameters": {mode: sum(parameter.numel() for parameter in bank.parameters())},
    }
    run.write_settings(settings, record)
    facts = {"prompt": settings.prompt, "tokens": "all", "protocol": "paper", "imported": name}
    bank.save(run.probes(mode), facts)
    return run


def sort_keys(keys: Iterable[str], mode: str) -> tuple[dict[tuple[int, str], str], list[str], list[str]]:
    """Divide the names of a probe checkpoint's tensors.

    Returns:
        Those of the probes by (number of the probe, name in the probe); those known and not needed here (the MLLM, the
        expert); and all others.
    """
    probes, unused, unknown = {}, [], []
    for key in keys:
        if found := re.match(rf"image_{mode}_heads\.(\d+)\.projector\.(.+)$", key):
            probes[int(found[1]), found[2]] = key
        elif MLLM_KEYS.match(key) or (UNUSED_KEYS.match(key) and not re.match(r"image_\w+_heads\.", key)):
            unused.append(key)
        else:
            unknown.append(key)
    return probes, unused, unknown


def read_bank(
    model: Model, target: Features, settings: ProbeSettings, shards: Shards, probes: dict[tuple[int, str], str]
) -> ProbeBank:
    """Read the probes; the first belongs to layer 1.

    Raises:
        InnerVisionError: naming tensors that are missing, too many or of another shape.
    """
    with torch.device("meta"):
        bank = ProbeBank(model, target, range(1, model.num_layers + 1), settings)
    expected = {
        (layer - 1, name): tensor.shape
        for layer in bank.layers
        for name, tensor in bank.probes[str(layer)].state_dict().items()
    }
    lacking = [f"image_{target.name}_heads.{number}.projector.{name}" for number, name in expected.keys() - probes]
    extra = [probes[key] for key in probes.keys() - expected]
    require(not lacking, f"{shards.name} lacks {len(lacking)} tensors: {_few(lacking)}")
    require(not extra, f"{shards.name} holds {len(extra)} tensors too many: {_few(extra)}")
    tensors = shards.read(probes.values())
    misshapen = [
        f"{key} is {tuple(tensors[key].shape)}, not {tuple(expected[place])}"
        for place, key in probes.items()
        if tensors[key].shape != expected[place]
    ]
    require(not misshapen, f"{shards.name} holds {len(misshapen)} tensors of another shape: {_few(misshapen)}")
    state = {f"probes.{number + 1}.{name}": tensors.pop(key).float() for (number, name), key in probes.items()}
    state["mean"] = torch.full(bank.mean.shape, float("nan"))
    bank.load_state_dict(state, assign=True)
    return bank


def mean_feature(target: Target, images: str, progress: bool) -> torch.Tensor:
    """Average an expert's features over images.  # (N, C) float32

    Raises:
        InnerVisionError: none of the images can be read.
    """
    found = find_images(images)
    order = [list(range(start, min(start + 16, len(found)))) for start in range(0, len(found), 16)]
    total = torch.zeros(target.num_tokens, target.width, dtype=torch.float64)
    count = 0
    batches = Batches(found, order, len, {target.name: target.preparer})
    for batch in tqdm(
        load_batches(batches, range(len(batches))), unit="batch", disable=not progress, dynamic_ncols=True
    ):
        if batch.names:
            total += target.encode(batch.pixels[target.name]).sum(dim=0).cpu()
            count += len(batch.names)
    require(count > 0, f"no image of {images} can be read")
    return (total / count).float()


def named_expert(checkpoint: str, config: dict[str, Any], shards: Shards) -> str:
    """Give the expert of a checkpoint: the file or folder it names, here or beside it, what it holds, or a Hub id."""
    named = config.get(EXPERTS[config["probe_mode"]])
    if named:
        beside = [Path(checkpoint) / named, Path(checkpoint).parent / named] if Path(checkpoint).is_dir() else []
        if found := next((path for path in (Path(named), *beside) if path.exists()), None):
            return str(found)
    if config["probe_mode"] == "depth":
        holds = Path(checkpoint).is_dir() and any(key.startswith("dav2_backbone.") for key in shards.files)
        return checkpoint if holds else "depth-anything/Depth-Anything-V2-Large-hf"
    require(bool(named), f"{checkpoint} names no {EXPERTS[config['probe_mode']]}: give the expert")
    return str(named)


def _head_settings(checkpoint: str, config: dict[str, Any]) -> dict[str, Any]:
    key = f"image_{config['probe_mode']}"
    settings = config.get(key) or {}
    needed = ("depth", "dim_head", "num_heads", "num_tokens", "output_dim", "ff_mult")
    lacking = [name for name in needed if name not in settings]
    require(not lacking, f"the config.json of {checkpoint} lacks {', '.join(lacking)} in {key}")
    return settings


def _absolute(place: str) -> str:
    """Make a path absolute, since the run may be used from elsewhere; leave a Hub id."""
    return str(Path(place).resolve()) if Path(place).exists() else place


def _few(names: Iterable[str]) -> str:
    shown = sorted(names)
    return ", ".join(shown[:3]) + (" …" if len(shown) > 3 else "")
