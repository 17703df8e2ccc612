"""What a visitor returns takes the place of a layer's states, as with a plain PyTorch hook at the same place."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from innervision.config import VISION
from innervision.errors import InnerVisionError
from innervision.mllm import MLLM, Inputs
from innervision.mllm.architecture import find_decoder
from innervision.mllm.vision import HandOver, VisionStage
from innervision.mllm.walk import Walk, join_streams, split_streams
from tiny_mllms import FAMILIES, WITHOUT_VISION_LAYER, gemma3n_text

Load = Callable[[str], MLLM]
Images = list[Image.Image]
Change = Callable[[Tensor], Tensor]

PROMPT = "Describe the image."
PROJECTORS = {
    "llava": "multi_modal_projector",
    "llava_next": "multi_modal_projector",
    "internvl": "multi_modal_projector",
    "gemma3": "multi_modal_projector",
    "paligemma": "multi_modal_projector",
    "smolvlm": "connector",
    "idefics2": "connector",
    "qwen2_vl": "visual.merger",
    "qwen2_5_vl": "visual.merger",
    "glm4v": "visual.merger",
}


def walk(mllm: MLLM, inputs: Inputs, changes: dict[int, Change], layers: list[int] | None = None) -> dict[int, Tensor]:
    """The states shown, while those of some layers are changed."""
    seen: dict[int, Tensor] = {}

    def visit(layer: int, states: Tensor, mask: Tensor) -> Tensor | None:
        seen[layer] = states.clone()
        return changes[layer](states) if layer in changes else None

    mllm.visit(inputs, visit, layers)
    return seen


def all_layers(mllm: MLLM) -> list[int]:
    return [*([VISION] if mllm.has_vision_layer() else []), *range(mllm.num_layers + 1)]


def direction_erased(states: Tensor) -> Tensor:
    direction = nn.functional.normalize(torch.arange(1.0, states.shape[-1] + 1), dim=0)
    return states - (states @ direction)[..., None] * direction


@pytest.mark.parametrize("family", FAMILIES)
def test_returning_the_states_changes_nothing_bit_for_bit(
    family: str, load_family: Load, unequal_images: Images
) -> None:
    mllm = load_family(family)
    inputs = mllm.prepare(unequal_images, PROMPT)
    layers = all_layers(mllm)
    plain = walk(mllm, inputs, {}, layers)
    returned = walk(mllm, inputs, dict.fromkeys(layers, torch.clone), layers)
    assert list(returned) == layers
    for layer, states in plain.items():
        assert torch.equal(returned[layer], states), layer


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_later_layers_are_those_of_a_plain_hook_and_earlier_ones_stay(
    family: str, layer: int, load_family: Load, unequal_images: Images
) -> None:
    mllm = load_family(family)
    inputs = mllm.prepare(unequal_images, PROMPT)
    plain = walk(mllm, inputs, {})
    changed = walk(mllm, inputs, {layer: direction_erased})

    def on_input(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        if args:
            return (direction_erased(args[0]), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": direction_erased(kwargs["hidden_states"])}

    def on_output(module: nn.Module, args: tuple, output: Any) -> Any:
        if isinstance(output, tuple):
            return direction_erased(output[0]), *output[1:]
        return direction_erased(output)

    layers = mllm.decoder.layers
    hook = (
        layers[0].register_forward_pre_hook(on_input, with_kwargs=True)
        if layer == 0
        else layers[layer - 1].register_forward_hook(on_output)
    )
    try:
        by_hook = walk(mllm, inputs, {})
    finally:
        hook.remove()
    for number, states in plain.items():
        if number <= layer:
            assert torch.equal(changed[number], states), number
        else:
            assert torch.equal(changed[number], by_hook[number]), number
            assert not torch.allclose(changed[number], states), number


@pytest.mark.parametrize("family", PROJECTORS)
def test_changed_vision_features_are_what_the_projector_gets(
    family: str, load_family: Load, unequal_images: Images
) -> None:
    mllm = load_family(family)
    inputs = mllm.prepare(unequal_images[2:], PROMPT)  # one image, no padding: all features are shown
    plain = walk(mllm, inputs, {}, [VISION, 0, 1])
    changed = walk(mllm, inputs, {VISION: direction_erased}, [VISION, 0, 1])
    projector = mllm.model.model.get_submodule(PROJECTORS[family])

    def on_input(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        edit = {name: direction_erased(value) for name, value in kwargs.items() if name == "image_hidden_states"}
        return tuple(direction_erased(value) if value.is_floating_point() else value for value in args), kwargs | edit

    hook = projector.register_forward_pre_hook(on_input, with_kwargs=True)
    try:
        by_hook = walk(mllm, inputs, {}, [0, 1])
    finally:
        hook.remove()
    assert torch.equal(changed[VISION], plain[VISION])
    for layer in (0, 1):
        # both are float32, in sums of another order; what was changed is a hundred times as much
        torch.testing.assert_close(changed[layer], by_hook[layer], atol=1e-5, rtol=1e-5)
        assert not torch.allclose(changed[layer], plain[layer], atol=1e-3), layer


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - WITHOUT_VISION_LAYER))
def test_the_vision_features_of_one_image_are_changed_alone(
    family: str, load_family: Load, unequal_images: Images
) -> None:
    mllm = load_family(family)
    inputs = mllm.prepare(unequal_images, PROMPT)
    layers = [VISION, 0, 4]

    def second_image_reversed(states: Tensor) -> Tensor:
        return torch.stack([states[0], -states[1], states[2]])

    plain = walk(mllm, inputs, {}, layers)
    changed = walk(mllm, inputs, {VISION: second_image_reversed}, layers)
    moved = (changed[4] - plain[4]).abs().amax(dim=2) * inputs.mask
    assert moved[1].max() > 1e-3
    assert moved[[0, 2]].max() < 1e-4


def test_zeros_in_all_tokens_make_the_later_layers_forget_the_image(load_family: Load, unequal_images: Images) -> None:
    mllm = load_family("llava")
    inputs = mllm.prepare(unequal_images, PROMPT)
    seen = walk(mllm, inputs, {2: torch.zeros_like})
    assert not torch.allclose(seen[2][0], seen[2][1])
    for layer in (3, 4):
        assert torch.equal(seen[layer][0], seen[layer][1])


def test_changes_of_several_layers_add_up(load_family: Load, unequal_images: Images) -> None:
    mllm = load_family("llava")
    inputs = mllm.prepare(unequal_images, PROMPT)
    seen = walk(mllm, inputs, {VISION: torch.zeros_like, 1: torch.zeros_like, 3: lambda states: states + 1}, [-1, 1, 3])
    only_later = walk(mllm, inputs, {1: torch.zeros_like}, [1, 3])
    assert torch.equal(seen[3], only_later[3])  # nothing of what layer -1 held is left after layer 1
    assert not torch.allclose(seen[1], only_later[1])


def test_states_of_another_type_are_brought_back_to_the_models(load_family: Load, unequal_images: Images) -> None:
    mllm = load_family("llava")
    inputs = mllm.prepare(unequal_images, PROMPT)
    for layers in ([VISION, 0], [0, 1], [1, 4]):
        seen = walk(mllm, inputs, {layers[0]: Tensor.double}, layers)
        assert torch.equal(seen[layers[1]], walk(mllm, inputs, {}, layers)[layers[1]])


@pytest.mark.parametrize("layer", [VISION, 0, 2, 4])
@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (lambda states: states[:, :-1], "shape"),
        (lambda states: states.mean(), "shape"),
        (lambda states: 0.5, "float"),
        (lambda states: [states], "list"),
    ],
)
def test_what_cannot_take_their_place_is_refused(
    layer: int, returned: Callable[[Tensor], Any], said: str, load_family: Load, unequal_images: Images
) -> None:
    mllm = load_family("llava")
    inputs = mllm.prepare(unequal_images, PROMPT)
    before = sum(len(each._forward_hooks) + len(each._forward_pre_hooks) for each in mllm.model.modules())
    with pytest.raises(InnerVisionError, match=f"returned {said}.* for layer {layer}: return changed states of shape"):
        walk(mllm, inputs, {layer: returned}, [VISION, 0, 2, 4])
    assert sum(len(each._forward_hooks) + len(each._forward_pre_hooks) for each in mllm.model.modules()) == before


def test_streams_come_back_as_they_were() -> None:
    """In both orders, (streams, B, T, D) and (B, T, streams, D)."""
    tokens = torch.Size([2, 5])
    for states in (torch.randn(3, 2, 5, 4), torch.randn(2, 5, 3, 4), torch.randn(2, 5, 4)):
        joined = join_streams(states, tokens)
        assert joined is not None
        assert torch.equal(split_streams(joined, states), states)


def test_one_stream_can_be_changed() -> None:
    """Gemma 3n's decoder keeps four streams of states."""
    model = gemma3n_text()
    ids = torch.arange(14).reshape(2, 7) + 5
    mask = torch.ones_like(ids, dtype=torch.bool)
    inputs = Inputs({"input_ids": ids}, mask, mask, torch.full((2, 7, 2), float("nan")))
    seen: dict[int, Tensor] = {}

    def third_stream_doubled(layer: int, states: Tensor, mask: Tensor) -> Tensor | None:
        seen[layer] = states
        factors = torch.tensor([1.0, 1.0, 2.0, 1.0]).repeat_interleave(32)
        return states * factors if layer == 1 else None

    def on_output(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        return output * torch.tensor([1.0, 1.0, 2.0, 1.0])[:, None, None, None]

    with torch.no_grad():
        plain = model(input_ids=ids, use_cache=False).last_hidden_state
        Walk("gemma3n", find_decoder(model), None, inputs, mask, {0, 1, 2}, third_stream_doubled).run(
            lambda: model(input_ids=ids, use_cache=False)
        )
        model.layers[0].register_forward_hook(on_output)
        by_hook = model(input_ids=ids, use_cache=False).last_hidden_state
    assert torch.equal(seen[2], by_hook)
    assert not torch.allclose(seen[2], plain)


class Towered(nn.Module):
    """A tower, and modules that receive its features one after the other."""

    def __init__(self, *projectors: nn.Module) -> None:
        super().__init__()
        self.tower, self.projectors = nn.Identity(), nn.ModuleList(projectors)

    def forward(self, features: Tensor) -> list[Tensor]:
        features = self.tower(features)
        return [projector(features) for projector in self.projectors]


def hand_over_of(model: Towered, images: int) -> HandOver:
    mask = torch.ones(images, 4, dtype=torch.bool)
    pixels = {"pixel_values": torch.ones(images, 3, 8, 8)}
    inputs = Inputs(pixels, mask, mask, torch.full((images, 2), 8))
    return HandOver(VisionStage(model.tower, [*model.projectors]), inputs)


@torch.no_grad()
def test_maps_for_a_convolution_are_changed_by_channel() -> None:
    """As many channels as rows and columns, so that their shape does not tell."""
    model = Towered(nn.Conv2d(4, 2, 2))
    features = torch.randn(2, 4, 4, 4)  # (B, C, H, W)
    hand_over = hand_over_of(model, 2)
    hand_over.hook()
    model(features)
    pieces = hand_over.by_image()
    factors = torch.arange(4.0)  # of channels
    hand_over.change([pieces[0] * factors, pieces[1]])
    [found] = model(features)
    [expected] = Towered(model.projectors[0])(torch.stack([features[0] * factors[:, None, None], features[1]]))
    assert torch.equal(found, expected)


@torch.no_grad()
def test_features_that_go_elsewhere_too_are_not_changed() -> None:
    model = Towered(nn.Linear(4, 2), nn.Linear(4, 3))
    hand_over = hand_over_of(model, 2)
    hand_over.hook()
    model(torch.randn(2, 6, 4))
    pieces = hand_over.by_image()
    with pytest.raises(InnerVisionError, match="other modules"):
        hand_over.change(pieces)
