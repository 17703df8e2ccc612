"""The test that every model has to pass: real families do, and models that are broken in one way do not."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from innervision.cli import main
from innervision.config import VISION
from innervision.errors import InnerVisionError
from innervision.mllm import MLLM
from innervision.mllm.check import hidden_states_agree, noise, require_sound, self_test
from innervision.mllm.model import redraw_constants
from tiny_mllms import FAMILIES, save_tiny

Load = Callable[[str], MLLM]


@pytest.fixture
def fresh(tmp_path: Path) -> Load:
    """A model that a test may break."""
    return lambda family: MLLM.load(str(save_tiny(family, tmp_path / family)), device="cpu")


def verdicts(mllm: MLLM) -> dict[str, str]:
    return {finding.test: finding.verdict for finding in self_test(mllm)}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_passes(family: str, load_family: Load) -> None:
    mllm = load_family(family)
    found = {finding.test: finding for finding in self_test(mllm)}
    if family == "mllama":  # its first cross-attention is in layer 2
        assert found.pop("image reaches every layer").detail.startswith("layers 0, 1 see nothing")
    assert [finding.verdict for finding in found.values()] == ["ok"] * len(found)
    assert ("vision features belong to their image" in found) == mllm.has_vision_layer()
    assert hidden_states_agree(mllm).detail == "yes, bit for bit"


def test_an_image_that_does_not_reach_the_decoder_is_an_error(fresh: Load) -> None:
    mllm = fresh("llava")
    mllm.model.model.multi_modal_projector.linear_2.weight.zero_()
    assert verdicts(mllm)["image reaches every layer"] == "error"
    with pytest.raises(InnerVisionError, match="does not reach the decoder"):
        require_sound(mllm, "Describe.")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize(("place", "layer"), [("vision", "vision"), ("decoder", "3")])
def test_states_that_are_not_finite_are_an_error(value: float, place: str, layer: str, fresh: Load) -> None:
    mllm = fresh("llava")
    parts = {"vision": mllm.model.get_encoder("image"), "decoder": mllm.decoder.layers[2]}
    next(parts[place].parameters()).fill_(value)
    [finding] = self_test(mllm)
    assert (finding.verdict, finding.detail.partition(":")[0]) == (
        "error",
        f"the states of layer {layer} are not finite",
    )


@pytest.mark.parametrize("order", [[0, 1, 2, 1, 2, 3], [0, 2, 1, 3], [0, 1, 3], [0, 1, 2, 3, 0]])
def test_layers_that_do_not_run_once_each_in_their_order_are_refused(order: list[int], fresh: Load) -> None:
    mllm = fresh("llava")
    mllm.widths = dict.fromkeys(range(5), 32)
    decoder, layers = mllm.decoder.module, mllm.decoder.layers

    class Reordered(nn.ModuleList):
        def __getitem__(self, index: object) -> object:
            return [layers[i] for i in order] if isinstance(index, slice) else super().__getitem__(index)

    decoder.layers = Reordered(layers)
    [finding] = self_test(mllm)
    assert finding.verdict == "error"
    assert "once each in their order" in finding.detail or "layers [3, 4] were reached" in finding.detail


def test_states_that_depend_on_neighbours_are_a_warning_with_the_size_of_the_effect(fresh: Load) -> None:
    mllm = fresh("llava")
    mllm.decoder.layers[1].register_forward_hook(lambda _, __, output: output + 0.1 * output.flip(0))
    findings = {finding.test: finding for finding in self_test(mllm)}
    finding = findings["padding and neighbours change nothing"]
    assert finding.verdict == "warning"
    assert "% of their length in layer" in finding.detail
    assert require_sound(mllm, "Describe.")


def run_beside_the_tower(mllm: MLLM, extra: Callable[[torch.Tensor, object], object]) -> None:
    """Let the model's image features be made as before, and `extra(pixel_values, tower_output)` be called meanwhile."""
    tower = mllm.model.model.vision_tower
    forward = mllm.model.model.multi_modal_projector.forward
    seen: dict[str, object] = {}
    tower.register_forward_hook(
        lambda _, args, kwargs, output: seen.update(pixels=(*args, *kwargs.values())[0], output=output),
        with_kwargs=True,
    )

    def project(features: torch.Tensor) -> torch.Tensor:
        extra(seen["pixels"], seen["output"])
        return forward(features)

    mllm.model.model.multi_modal_projector.forward = project


def test_features_of_a_neighbour_in_layer_minus_1_are_an_error(fresh: Load) -> None:
    mllm = fresh("llava")
    encoder = mllm.model.model.vision_tower.get_submodule("encoder.layers.0")
    encoder.register_forward_hook(lambda _, __, states: states + 0.1 * states.flip(0))
    assert verdicts(mllm)["vision features belong to their image"] == "error"


def test_a_second_tower_that_reads_the_pixels_leaves_no_vision_layer(fresh: Load) -> None:
    """As DeepSeek-VL Hybrid's."""
    mllm = fresh("llava")
    mllm.model.model.second_tower = nn.Flatten()
    run_beside_the_tower(mllm, lambda pixels, _: mllm.model.model.second_tower(pixels))
    with pytest.raises(InnerVisionError, match="second vision tower"):
        mllm.width(VISION)


def test_projectors_in_a_list_that_take_several_layers_leave_no_vision_layer(fresh: Load) -> None:
    """As Granite 4 Vision's: each projector receives another layer of the tower."""
    mllm = fresh("llava")
    mllm.model.model.projectors = nn.ModuleList([nn.Identity()])
    run_beside_the_tower(mllm, lambda _, output: mllm.model.model.projectors[0](output.last_hidden_state))
    with pytest.raises(InnerVisionError, match="several of its layers"):
        mllm.width(VISION)


def test_layers_of_a_decoder_that_stand_beside_the_tower_are_no_projectors(fresh: Load) -> None:
    mllm = fresh("llava")
    mllm.model.model.layers = mllm.decoder.layers
    assert not {*mllm.decoder.layers} & {*mllm.vision_stage.neighbours}


def test_hidden_states_of_another_module_are_not_compared(fresh: Load) -> None:
    """As those of BLIP's vision tower, which the output gives by the same name."""
    mllm = fresh("llava")
    forward = mllm.model.forward

    def with_states_of_the_tower(**inputs: object) -> object:
        output = forward(**inputs)
        output["hidden_states"] = (torch.zeros(2, 17, 16),) * 4
        return output

    mllm.model.forward = with_states_of_the_tower
    finding = hidden_states_agree(mllm)
    assert finding.verdict == "warning"
    assert finding.detail == "cannot be compared: the model gives no hidden_states of its decoder"


@pytest.mark.parametrize("calls", [2, 3])
def test_a_tower_that_runs_several_times_leaves_no_vision_layer(calls: int, fresh: Load) -> None:
    """As where the whole image and its crops are calls of their own: also where these are as many as the images."""
    mllm = fresh("llava")
    inner, get = mllm.model.model, mllm.model.model.get_image_features

    def several(pixel_values: torch.Tensor, **options: object) -> object:
        return [get(pixel_values=pixel_values, **options) for _ in range(calls)].pop()

    inner.get_image_features = several
    with pytest.raises(InnerVisionError, match=r"so layer -1 \(vision\) cannot be probed"):
        mllm.width(VISION)


def test_padding_tiles_and_patches_are_no_tokens_of_layer_minus_1(load_family: Load) -> None:
    """Mllama: 17 tokens a tile of which one fits a square; Idefics 2: whole patches of 7 pixels of a 42 x 31 image."""
    shown: dict[str, list[int]] = {}
    for family in ("mllama", "idefics2"):
        mllm = load_family(family)
        inputs = mllm.prepare([noise(20, 20), noise(80, 60), noise(200, 40)], "Describe.")
        mllm.visit(inputs, lambda _, __, mask, family=family: shown.__setitem__(family, mask.sum(1).tolist()), [VISION])
    assert shown["mllama"][0] == 17
    assert shown["idefics2"][1] == 6 * 4


def test_what_a_class_draws_with_no_spread_is_drawn_anew_and_gates_are_opened(fresh: Load) -> None:
    mllm = fresh("mllama")
    layer = mllm.decoder.layers[1]
    layer.cross_attn_attn_gate.zero_()
    flat = layer.mlp.up_proj.weight.normal_(std=1e-10)
    norm = layer.input_layernorm.weight.clone()
    redraw_constants(mllm.model)
    assert layer.cross_attn_attn_gate.item() == 1
    assert flat.std().item() == pytest.approx(mllm.model.config.text_config.initializer_range, rel=0.1)
    assert torch.equal(layer.input_layernorm.weight, norm)


@pytest.mark.parametrize("which", ["llm", "all"])
def test_with_random_weights_the_image_reaches_mllamas_decoder(which: str, tmp_path: Path) -> None:
    mllm = MLLM.load(str(save_tiny("mllama", tmp_path)), device="cpu", random_weights=which)
    assert verdicts(mllm)["image reaches every layer"] == "warning"  # not in the layers before the first gate


def test_a_models_own_failure_is_one_line(fresh: Load) -> None:
    mllm = fresh("llava")
    inputs = mllm.prepare([noise(60, 40)], "Describe.")
    inputs.tensors["pixel_values"] = inputs.tensors["pixel_values"][..., :-3]
    with pytest.raises(InnerVisionError, match=r"fails on these inputs: \w+Error: .*") as raised:
        mllm.visit(inputs, lambda *_: None)
    assert "\n" not in str(raised.value)


def test_the_command_prints_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(save_tiny("llava", tmp_path)), "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert "640×480: 16, 480×640: 16, 336×336: 16, 1280×720: 16" in shown
    assert "0…4, 32 wide" in shown
    assert "yes, bit for bit" in shown


def test_the_command_fails_with_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("innervision.mllm.check.LEAST_EFFECT", float("inf"))
    assert main(["check", str(save_tiny("llava", tmp_path)), "--device", "cpu"]) == 1
    captured = capsys.readouterr()
    assert "error: the image does not reach the decoder" in captured.out
    assert "2 of 5 tests failed" in captured.err
