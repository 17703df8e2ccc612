"""Reads the probes of a probe checkpoint of the original code, and how they were made."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedConfig

from innervision.checkpoints.identity import absolute, hub_commit, identify
from innervision.checkpoints.loading import check_layers, require_real
from innervision.checkpoints.shards import Shards
from innervision.config import ProbeSettings, TrainSettings
from innervision.data import find_images
from innervision.data.loader import BadImages, Batches, load_batches
from innervision.errors import InnerVisionError, few, first_line, require
from innervision.original.experts import follow_paper
from innervision.original.held_experts import HELD, find_beside, holds
from innervision.original.layout import UNUSED_KEYS
from innervision.probes.bank import BankInfo, ProbeBank
from innervision.targets import load_targets, parse_target
from innervision.targets.target import Target
from innervision.terminal import tell

MLLM_KEYS = re.compile(r"model\.(embed_tokens|norm|layers|vision_tower|mm_projector)\.|lm_head\.")
"""Tensors of the MLLM, which a probe checkpoint holds as a whole."""

BATCH = 16
"""Images that an expert encodes at once for the mean feature."""

MOST_BAD = 0.01
"""Share of broken images that the mean feature bears, as training does by default."""


@dataclass(frozen=True)
class ImportedProbes:
    """What a run is made of."""

    settings: TrainSettings
    """With which training would have made such probes; `out` is empty."""
    record: dict[str, Any]
    """What they come from, in values of JSON."""
    bank: ProbeBank


def read_probes(
    checkpoint: str,
    *,
    expert: str | None = None,
    images: str | None = None,
    revision: str | None = None,
    template: str | None = None,
    device: str | None = None,
    progress: bool = True,
) -> ImportedProbes:
    """Read the probes of a checkpoint. Of its files only those that hold probes are read.

    Args:
        checkpoint: a folder or a Hub id, in the layout that the original code saves.
        expert: the expert that the probes predict; by default the one that the checkpoint holds, or else names.
        images: over which to average the expert's features, as protocol `paper` has them, for the floor `mean` and the
            scores that are centred on it. The checkpoint does not hold this mean: without images it is NaN, not known.
        revision: branch, tag or commit on the Hub.
        template: of the conversation; by default the language model's.
        device: of the expert, where images are given.
        progress: show a bar.

    Raises:
        InnerVisionError: this is no such checkpoint, or it lacks tensors, or has some of another shape, that are not
            finite or that nothing is known of; the expert cannot be had.
    """
    config = _read_config(checkpoint, revision)
    mode = config["probe_mode"]
    revision = hub_commit(checkpoint, revision)
    shards = Shards(checkpoint, revision)
    keys, unknown = sort_keys(shards.files, mode)
    require(not unknown, f"{checkpoint} (probe_mode={mode}) holds {len(unknown)} unknown tensors: {few(unknown)}")
    shape = _head_settings(checkpoint, config)
    settings = TrainSettings(
        mllm=absolute(checkpoint),
        images=images or "",
        out="",
        targets=f"{mode}={absolute(expert) if expert else own_expert(checkpoint, config, shards)}",
        layers="decoder",
        probe=ProbeSettings(
            kind="resampler",
            depth=shape["depth"],
            heads=shape["num_heads"],
            dim_head=shape["dim_head"],
            ff_mult=shape["ff_mult"],
        ),
        revision=revision,
        template=template,
        protocol="paper",
    )
    info = _bank_info(settings, config, shape)
    bank = read_bank(info, settings.probe, shards, keys)
    if images:
        [target] = load_targets(settings.targets, device=device)
        follow_paper(target)  # as the features that the probes learnt, and those that they are scored against
        bank.mean = mean_feature(target, images, progress)
    record = {
        "imported": {"checkpoint": info.mllm, "revision": info.mllm_revision},
        "mllm": {"name": info.mllm, "revision": info.mllm_revision, "num_layers": info.num_layers},
        "experts": {mode: {"name": info.expert, "revision": info.expert_revision, "kind": mode}},
        "layers": bank.layers,
        "parameters": {mode: bank.num_parameters()},
    }
    return ImportedProbes(settings, record, bank)


def sort_keys(keys: Iterable[str], mode: str) -> tuple[dict[tuple[int, str], str], list[str]]:
    """Find among the names of a probe checkpoint's tensors those of the probes and those that nothing is known of.

    Returns:
        The first by (number of the probe, name in the probe), and the second. All others are known and not needed here
        (the MLLM, the expert).
    """
    probes, unknown = {}, []
    for key in keys:
        if found := re.match(rf"image_{mode}_heads\.(\d+)\.projector\.(.+)$", key):
            probes[int(found[1]), found[2]] = key
        elif re.match(r"image_\w+_heads\.", key) or not (MLLM_KEYS.match(key) or UNUSED_KEYS.match(key)):
            unknown.append(key)
    return probes, unknown


def read_bank(info: BankInfo, settings: ProbeSettings, shards: Shards, probes: dict[tuple[int, str], str]) -> ProbeBank:
    """Read the probes; the first belongs to layer 1.

    Raises:
        InnerVisionError: naming tensors that are missing, too many, of another shape or not finite.
    """
    with torch.device("meta"):
        bank = ProbeBank(info, settings)
    expected = {
        (layer - 1, name): tensor.shape
        for layer in bank.layers
        for name, tensor in bank.probes[str(layer)].state_dict().items()
    }
    lacking = [f"image_{info.target}_heads.{number}.projector.{name}" for number, name in expected.keys() - probes]
    extra = [probes[key] for key in probes.keys() - expected]
    require(not lacking, f"{shards.name} lacks {len(lacking)} tensors: {few(lacking)}")
    require(not extra, f"{shards.name} holds {len(extra)} tensors too many: {few(extra)}")
    tensors = shards.read(probes.values())
    misshapen = [
        f"{key} is {tuple(tensors[key].shape)}, not {tuple(expected[place])}"
        for place, key in probes.items()
        if tensors[key].shape != expected[place]
    ]
    require(not misshapen, f"{shards.name} holds {len(misshapen)} tensors of another shape: {few(misshapen)}")
    require_real({key: tensor.dtype for key, tensor in tensors.items()}, shards.name)
    endless = [key for key, tensor in tensors.items() if not tensor.float().isfinite().all()]
    require(not endless, f"{shards.name} holds {len(endless)} tensors that are not finite: {few(endless)}")
    state = {f"probes.{number + 1}.{name}": tensors.pop(key).float() for (number, name), key in probes.items()}
    state["mean"] = torch.full(bank.mean.shape, float("nan"))
    bank.load_state_dict(state, assign=True)
    return bank


def mean_feature(target: Target, images: str, progress: bool) -> Tensor:
    """Average an expert's features over images.

    Returns:
        (N, C) float32 on the CPU.

    Raises:
        InnerVisionError: none of the images can be read.
    """
    found = find_images(images)
    order = [part.tolist() for part in torch.arange(len(found)).split(BATCH)]
    total = torch.zeros(target.num_tokens, target.width, dtype=torch.float64)
    count = 0
    batches = Batches(found, order, len, {target.name: target.preparer})
    bad = BadImages(found, MOST_BAD)
    with load_batches(batches, range(len(batches))) as loader:
        for batch in tqdm(
            loader, total=len(batches), desc="mean feature", unit=" batches", disable=not progress, dynamic_ncols=True
        ):
            for name in bad.add(batch.bad):
                tell(f"left out {name}: {bad.reasons[name]}")
            if batch.names:
                total += target.encode(batch.pixels[target.name]).cpu().double().sum(dim=0)
                count += len(batch.names)
    require(count > 0, f"no image of {images} can be read")
    return (total / count).float()


def own_expert(checkpoint: str, config: dict[str, Any], shards: Shards) -> str:
    """Give the expert of a checkpoint, as specs name it: a file or folder that it names, itself, or a Hub id."""
    mode = config["probe_mode"]
    named = config.get(HELD[mode].named_by)
    place = find_beside(checkpoint, str(named)) if named else ""
    if place and Path(place).exists():
        return absolute(place)
    if holds(mode, shards):
        return absolute(checkpoint) if shards.revision is None else f"{checkpoint}@{shards.revision}"
    require(bool(place), f"{checkpoint} neither holds its expert nor names it ({HELD[mode].named_by}): give the expert")
    return place


def _read_config(checkpoint: str, revision: str | None) -> dict[str, Any]:
    try:
        config, _ = PreTrainedConfig.get_config_dict(checkpoint, revision=revision)
    except OSError as error:
        raise InnerVisionError(f"cannot read {checkpoint}: {first_line(error)}") from error
    check_layers(config, checkpoint)
    mode = config.get("probe_mode")
    require(
        mode in HELD,
        f"{checkpoint} is no probe checkpoint: probe_mode in its config.json is {mode}, not depth, seg or gen",
    )
    return config


def _bank_info(settings: TrainSettings, config: dict[str, Any], shape: dict[str, Any]) -> BankInfo:
    name, commit = identify(settings.mllm, settings.revision)
    target = parse_target(settings.targets)
    expert, expert_commit = identify(str(target.expert), target.revision)
    num_layers = config["num_hidden_layers"]
    return BankInfo(
        mllm=name,
        mllm_revision=commit,
        num_layers=num_layers,
        widths=dict.fromkeys(range(1, num_layers + 1), config["hidden_size"]),
        target=target.name,
        kind=target.kind,
        expert=expert,
        expert_revision=expert_commit,
        num_tokens=shape["num_tokens"],
        width=shape["output_dim"],
    )


def _head_settings(checkpoint: str, config: dict[str, Any]) -> dict[str, Any]:
    key = f"image_{config['probe_mode']}"
    settings = config.get(key) or {}
    needed = ("depth", "dim_head", "num_heads", "num_tokens", "output_dim", "ff_mult")
    lacking = [name for name in needed if name not in settings]
    require(not lacking, f"the config.json of {checkpoint} lacks {', '.join(lacking)} in {key}")
    words = [name for name in needed if not isinstance(settings[name], int | float)]
    require(not words, f"the config.json of {checkpoint} has no number for {', '.join(words)} in {key}")
    return settings
