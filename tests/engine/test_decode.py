"""What heads make of each layer, against Transformers' own hidden states."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from innervision.config import ProbeSettings, TrainSettings
from innervision.data import read_image
from innervision.engine.decode import decode_layers
from innervision.engine.fit import fit
from innervision.engine.run import RunFolder
from innervision.errors import InnerVisionError
from innervision.mllm import MLLM
from innervision.probes import ProbeBank
from innervision.targets import load_targets
from stand_ins import write_noise_images
from tiny_experts import save_tiny_depth, save_tiny_gen
from tiny_mllms import save_tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    root = tmp_path_factory.mktemp("decode")
    save_tiny("llava", root / "llava")
    targets = f"depth={save_tiny_depth(root / 'depth')},gen={save_tiny_gen(root / 'gen')}"
    images = write_noise_images(root / "images", 4, size=(40, 60))
    settings = TrainSettings(
        mllm=str(root / "llava"),
        targets=targets,
        images=str(images),
        out=str(root / "run"),
        probe=ProbeSettings(kind="resampler"),
        layers="1,2,4",
        epochs=1,
        batch_size=2,
        workers=0,
        device="cpu",
    )
    fit(settings, progress=False)
    return RunFolder(root / "run")


def test_predictions_of_the_models_own_states_are_decoded(run: RunFolder) -> None:
    settings = run.settings()
    image = read_image(sorted(Path(settings.images).iterdir())[0])
    found = decode_layers(
        run.path, image, targets=load_targets([settings.targets.split(",")[0]], device="cpu", head=True)
    )
    assert list(found) == ["depth"]
    decoded = found["depth"]
    assert list(decoded.layers) == [1, 2, 4]

    mllm = MLLM.load(settings.mllm, device="cpu")
    target = load_targets([settings.targets.split(",")[0]], device="cpu", head=True)[0]
    bank = ProbeBank.load(run.probes("depth"))
    context = target.context([image])
    torch.testing.assert_close(decoded.expert[None], target.decode(context.features, context))
    torch.testing.assert_close(decoded.mean[None], target.decode(bank.mean[None], context))
    inputs = mllm.prepare([image], settings.prompt)
    with torch.no_grad():
        states = mllm.model(**inputs.tensors, output_hidden_states=True).hidden_states
        for layer in (1, 2, 4):
            expected = target.decode(bank(layer, states[layer], inputs.mask), context)
            torch.testing.assert_close(decoded.layers[layer][None], expected)
    assert not torch.allclose(decoded.layers[1], decoded.layers[4])


def test_a_run_without_probes_or_a_head(run: RunFolder, tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 60))
    with pytest.raises(InnerVisionError, match="no run"):
        decode_layers(tmp_path, image)
    with pytest.raises(InnerVisionError, match="head"):
        decode_layers(run.path, image, targets=load_targets(run.settings().targets.split(","), device="cpu"))
