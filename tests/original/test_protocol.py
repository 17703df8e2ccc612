"""Protocol `paper`: what the original code shows its models, and how its probes read."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from innervision import cli
from innervision.config import EvaluateSettings, ProbeSettings, TaskSettings, TrainSettings
from innervision.engine.evaluate import evaluate_similarity, evaluate_task
from innervision.engine.fit import fit
from innervision.engine.importing import import_run
from innervision.engine.session import Session
from innervision.errors import InnerVisionError
from innervision.mllm import MLLM
from innervision.original.conversation import OriginalProcessor, pad_to_square
from innervision.original.experts import resize_positions
from innervision.original.import_probes import read_probes
from innervision.original.protocol import PROTOCOLS
from innervision.probes import ProbeBank
from innervision.targets import load_targets
from innervision.targets.target import Target
from stand_ins import write_noise_images
from tiny_experts import save_tiny_gen, save_tiny_seg
from tiny_mllms import save_tiny

PROMPT = "Describe the image in two lines."


def load_as_paper(*specs: str, head: bool = False) -> list[Target]:
    targets = load_targets(specs, device="cpu", head=head)
    for target in targets:
        PROTOCOLS["paper"].adopt(target)
    return targets


@pytest.fixture
def picture() -> Image.Image:
    """Wider than high, smooth enough for resizing to matter little."""
    rows, columns = np.mgrid[0:90, 0:150]
    return Image.fromarray(np.stack([rows * 2, columns, 255 - columns], axis=-1).astype(np.uint8))


def save_original_depth(shared: Path, folder: Path) -> str:
    golden = load_file(shared / "golden/dav2/tiny.safetensors")
    weights = {key.removeprefix("param."): value for key, value in golden.items() if key.startswith("param.")}
    torch.save(weights, folder / "tiny.pth")
    return f"depth={folder / 'tiny.pth'}"


def test_depth_features_and_maps_are_those_of_the_original(shared: Path, tmp_path: Path) -> None:
    golden = load_file(shared / "golden/dav2/tiny.safetensors")
    image = Image.open(shared / "golden/dav2/image336.png").convert("RGB")
    spec = save_original_depth(shared, tmp_path)
    [paper] = load_as_paper(spec, head=True)
    torch.testing.assert_close(paper.prepare([image]), golden["image_tensor"], atol=1e-6, rtol=0)
    context = paper.context([image])
    torch.testing.assert_close(context.features, golden["feat_last_patch"], atol=1e-4, rtol=0)
    torch.testing.assert_close(paper.decode(context.features, context), golden["depth_4xlast"], atol=1e-4, rtol=0)
    [standard] = load_targets([spec], device="cpu")
    assert not torch.allclose(standard.encode([image]), golden["feat_last_patch"], atol=0.1)


def test_imported_probes_decode_to_the_originals_depth_maps(shared: Path, tmp_path: Path) -> None:
    checkpoints = shared / "golden/probe_ckpt"
    golden = load_file(checkpoints / "depth_eval_image0_fp32.safetensors")
    found_probes = read_probes(str(checkpoints / "probe_depth_tiny-llava-llama3"))
    settings = found_probes.settings
    mllm = MLLM.load(settings.mllm, dtype=torch.float16, device="cpu")
    mllm.model.float()
    [target] = load_as_paper(settings.targets, head=True)
    target.half().float()
    bank = found_probes.bank.half().float()
    image = Image.open(checkpoints / "image0.png").convert("RGB")
    context = target.context([image])
    found: dict[int, Tensor] = {}

    @torch.no_grad()
    def look(layer: int, states: Tensor, mask: Tensor) -> None:
        depth = target.decode(bank(layer, states, mask), context)
        low, high = depth.amin(dim=(1, 2), keepdim=True), depth.amax(dim=(1, 2), keepdim=True)
        found[layer] = (depth - low) / (high - low)

    mllm.visit(mllm.prepare([image], settings.prompt), look, bank.layers)
    for number, layer in enumerate(bank.layers):
        torch.testing.assert_close(found[layer], golden[f"depth_preds.{number}"], atol=1e-4, rtol=0)


def test_positions_are_resized_by_the_factor() -> None:
    """A plane, resized, tells which places were sampled, to 0.05 of a cell: PyTorch's bicubic bends planes."""
    rows, columns = torch.meshgrid(torch.arange(37.0), torch.arange(37.0), indexing="ij")
    positions = torch.cat([torch.full((1, 1, 2), -1.0), torch.stack([rows, columns], -1).reshape(1, -1, 2)], dim=1)
    resized = resize_positions(positions, 24, 24)
    assert resized.shape == (1, 577, 2)
    assert torch.equal(resized[:, :1], positions[:, :1])
    grid = resized[0, 1:].reshape(24, 24, 2)
    by_factor, by_size = ((torch.arange(24) + 0.5) * 37 / cells - 0.5 for cells in (24.1, 24))
    torch.testing.assert_close(grid[3:21, 5, 0], by_factor[3:21], atol=0.05, rtol=0)
    torch.testing.assert_close(grid[5, 3:21, 1], by_factor[3:21], atol=0.05, rtol=0)
    assert abs(grid[20, 5, 0] - by_size[20]) > 0.07
    assert torch.equal(resize_positions(positions, 37, 37), positions)


def test_seg_and_gen_resize_with_pillow_and_gen_crops(picture: Image.Image, tmp_path: Path) -> None:
    seg, gen = load_as_paper(f"seg={save_tiny_seg(tmp_path / 'seg')}", f"gen={save_tiny_gen(tmp_path / 'gen')}")
    mean, std = (torch.tensor(getattr(seg.preparer.processor, f"image_{name}")) for name in ("mean", "std"))
    large = picture.resize((768, 768), Image.Resampling.BICUBIC).resize((800, 800), Image.Resampling.BILINEAR)
    expected = ((torch.from_numpy(np.array(large)) / 255 - mean) / std).permute(2, 0, 1)
    torch.testing.assert_close(seg.prepare([picture])[0], expected, atol=1e-5, rtol=0)

    side = gen.preparer.height
    mean, std = (torch.tensor(getattr(gen.preparer.processor, f"image_{name}")) for name in ("mean", "std"))
    wide = picture.resize((int(side * 150 / 90), side), Image.Resampling.BICUBIC)
    left = (wide.width - side) // 2
    middle = np.array(wide)[:, left : left + side]
    expected = ((torch.from_numpy(middle.copy()) / 255 - mean) / std).permute(2, 0, 1)
    torch.testing.assert_close(gen.prepare([picture])[0], expected, atol=1e-5, rtol=0)


class PaperRun:
    """A run of protocol `paper` on tiny models that pad the images of a batch."""

    def __init__(self, root: Path) -> None:
        save_tiny("qwen2_vl", root / "mllm")
        save_tiny_gen(root / "gen")
        images = write_noise_images(root / "images", 1, seed=0, size=(56, 56))
        write_noise_images(root / "more", 1, seed=1, size=(112, 84))
        (root / "more/0000.png").rename(images / "0001.png")
        self.settings = TrainSettings(
            mllm=str(root / "mllm"),
            targets=f"gen={root / 'gen'}",
            images=str(images),
            out=str(root / "run"),
            probe=ProbeSettings(kind="resampler", heads=2, dim_head=8),
            layers="decoder",
            protocol="paper",
            epochs=1,
            batch_size=2,
            workers=0,
            device="cpu",
        )
        self.pictures = [Image.open(path).convert("RGB") for path in sorted(images.iterdir())]


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> PaperRun:
    run = PaperRun(tmp_path_factory.mktemp("paper"))
    fit(run.settings, progress=False)
    return run


def test_training_pads_images_shows_the_reply_and_reads_padding(paper: PaperRun) -> None:
    line = json.loads((Path(paper.settings.out) / "train/log.jsonl").read_text())
    mllm = MLLM.load(paper.settings.mllm, device="cpu")
    [target] = load_as_paper(paper.settings.targets)
    bank = ProbeBank.for_models(mllm, target, [1, 2, 3, 4], paper.settings.probe, seed=paper.settings.seed)
    truth = target.encode(paper.pictures)
    squares = [pad_to_square(image, mllm.builder.processor.image_processor.image_mean) for image in paper.pictures]
    inputs = mllm.prepare(squares, PROMPT, "n")
    assert not bool(inputs.mask.all())  # one of the images is padded in its batch
    masked: dict[int, float] = {}
    read: dict[int, float] = {}

    def look(layer: int, states: Tensor, mask: Tensor) -> None:
        masked[layer] = F.smooth_l1_loss(bank(layer, states, mask), truth).item()
        read[layer] = F.smooth_l1_loss(bank(layer, states, torch.ones_like(mask)), truth).item()

    mllm.visit(inputs, look, bank.layers)
    for layer, loss in read.items():
        assert line["loss"]["gen"][str(layer)] == pytest.approx(loss, abs=1e-6)
        assert masked[layer] != pytest.approx(loss, abs=1e-6)


def test_similarity_squashes_images_first_as_the_originals_script(paper: PaperRun) -> None:
    settings = EvaluateSettings(images=paper.settings.images, batch_size=2, workers=0, device="cpu")
    path = evaluate_similarity(paper.settings.out, settings, progress=False)
    table = pd.read_parquet(path)
    assert set(table[table["metric"] == "cosine"]["protocol"]) == {"paper"}
    assert set(table[table["metric"] != "cosine"]["protocol"]) == {"standard"}  # which the original has not
    assert json.loads(path.with_suffix(".json").read_text())["plan"]["protocol"] == "paper"
    mllm = MLLM.load(paper.settings.mllm, device="cpu")
    [target] = load_as_paper(paper.settings.targets)
    bank = ProbeBank.load(Path(paper.settings.out) / "probes/gen.safetensors")
    squashed = [image.resize((640, 640)) for image in paper.pictures]
    truth = target.encode(squashed)
    expected: dict[tuple[int, str], float] = {}

    @torch.no_grad()
    def look(layer: int, states: Tensor, mask: Tensor) -> None:
        values = F.cosine_similarity(bank(layer, states, torch.ones_like(mask)).flatten(1), truth.flatten(1))
        expected.update({(layer, f"000{number}.png"): value.item() for number, value in enumerate(values)})

    mllm.visit(mllm.prepare(squashed, PROMPT), look, bank.layers)
    found = table.query("source == 'probe' and metric == 'cosine'").set_index(["layer", "image"])["value"]
    assert len(found) == len(expected) == 8
    assert all(found[key] == pytest.approx(value, abs=1e-5) for key, value in expected.items())


def test_training_and_tasks_leave_the_experts_image_alone(paper: PaperRun) -> None:
    mllm = MLLM.load(paper.settings.mllm, device="cpu")
    targets = load_as_paper(paper.settings.targets)
    from innervision.data import find_images

    session = Session(paper.settings, mllm, targets, "train")
    batch = session.batches(find_images(paper.settings.images), [[0, 1]])[0]
    assert torch.equal(batch.pixels["gen"], targets[0].prepare(paper.pictures))


@pytest.fixture(scope="module")
def depth_run(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("depth")
    return import_run(str(shared / "golden/probe_ckpt/probe_depth_tiny-llava-llama3"), folder / "run").path


def test_da2k_has_the_originals_prompt_and_rows_of_both_rules(
    depth_run: Path, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversations: set[bool] = set()
    real = OriginalProcessor.token_ids

    def spy(self: OriginalProcessor, text: str) -> list[int]:
        conversations.add(text == self.text("Describe the image."))
        return real(self, text)

    monkeypatch.setattr(OriginalProcessor, "token_ids", spy)
    settings = TaskSettings(data=str(shared / "da2k-sample"), batch_size=2, workers=0, device="cpu")
    path = evaluate_task(depth_run, "depth", settings, progress=False)
    assert conversations == {True}
    assert set(pd.read_parquet(path)["protocol"]) == {"standard", "paper"}
    assert json.loads(path.with_suffix(".json").read_text())["plan"]["protocol"] == "paper"


def test_an_imported_run_without_a_mean_is_scored_without_what_needs_it(depth_run: Path, shared: Path) -> None:
    settings = EvaluateSettings(images=str(shared / "da2k-sample/images"), batch_size=2, workers=0, device="cpu")
    table = pd.read_parquet(evaluate_similarity(depth_run, settings, progress=False))
    assert set(table["source"]) == {"probe", "shuffled", "blank"}
    assert set(table["metric"]) == {"cosine", "token_cosine"}
    assert table["value"].notna().all()


def test_paper_reads_all_tokens_without_positions() -> None:
    required = {"mllm": "a", "images": "b", "out": "c", "protocol": "paper"}
    for setting in ({"tokens": "image"}, {"probe": ProbeSettings(kind="resampler", positions=True)}):
        with pytest.raises(InnerVisionError, match="protocol=paper reads all tokens, without positions"):
            TrainSettings(**(required | setting))


@pytest.mark.parametrize("target", ["depth", "seg", "gen"])
def test_a_preset_is_the_experiment_of_the_paper(target: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[TrainSettings] = []
    monkeypatch.setattr("innervision.engine.fit.fit", lambda settings, **_: seen.append(settings) or {})
    words = ["--mllm", "a", "--images", str(tmp_path), "--out", str(tmp_path / "c")]
    assert cli.main(["train", *words, "--preset", f"paper-{target}"]) == 0
    assert cli.main(["train", f"--preset=paper-{target}", "--epochs", "1", *words]) == 0
    (tmp_path / "more.yaml").write_text(yaml.safe_dump({"lr": 0.5}))
    assert cli.main(["train", *words, "--config", str(tmp_path / "more.yaml"), "--preset", f"paper-{target}"]) == 0
    whole, changed, configured = seen
    assert (whole.protocol, whole.targets, whole.layers) == ("paper", target, "decoder")
    assert (whole.batch_size, whole.lr, whole.epochs, whole.warmup, whole.weight_decay) == (256, 1e-3, 2, 0.03, 0.0)
    probe = whole.probe
    assert (probe.kind, probe.depth, probe.heads, probe.dim_head, probe.ff_mult) == ("resampler", 1, 4, 32, 1)
    assert (whole.mllm, whole.prompt) == ("a", PROMPT)
    assert (changed.epochs, changed.protocol) == (1, "paper")
    assert (configured.lr, configured.protocol) == (0.5, "paper")


def test_there_is_no_other_preset(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--mllm", "a", "--images", "b", "--out", "c"]
    assert cli.main(["train", "--preset", "paper-pose", *words]) == 2
    error = capsys.readouterr().err
    assert all(name in error for name in ("paper-pose", "paper-depth", "paper-seg", "paper-gen"))


def test_seg_is_decoded_in_the_images_own_aspect(picture: Image.Image, tmp_path: Path) -> None:
    [target] = load_as_paper(f"seg={save_tiny_seg(tmp_path / 'seg')}", head=True)
    pictures = [picture.resize((96, 64)), picture.resize((64, 80)), picture.resize((96, 64)).rotate(180)]
    target.preparer.processor.size = {"shortest_edge": 160, "longest_edge": 266}
    together = target.context(pictures)
    features = torch.randn(3, target.num_tokens, target.width, generator=torch.Generator().manual_seed(0))
    decoded = target.decode(features, together)
    for row, (image, aspect) in enumerate(zip(pictures, (240 / 160, 160 / 200, 240 / 160), strict=True)):
        pixels = target.prepare([image])
        assert pixels.shape[-1] / pixels.shape[-2] == pytest.approx(aspect)
        alone = target.context(pixels)
        torch.testing.assert_close(together.features[row], alone.features[0], atol=1e-5, rtol=0)
        for found, expected in zip((*together.given, together.output), (*alone.given, alone.output), strict=True):
            torch.testing.assert_close(found[row], expected[0], atol=1e-5, rtol=0)
        expected = target.decode(features[row : row + 1], alone)[0]
        torch.testing.assert_close(decoded[row], expected, atol=1e-5, rtol=0)
        assert not expected.isnan().any()
    rows, columns = decoded[0].shape[-2:]
    assert columns > rows
