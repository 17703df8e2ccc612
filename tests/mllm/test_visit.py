"""What a visitor is shown of real architectures, compared with Transformers' own `hidden_states`."""

from collections.abc import Callable

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from innervision.config import VISION
from innervision.errors import InnerVisionError
from innervision.mllm import MLLM, Inputs
from innervision.mllm.architecture import find_decoder
from innervision.mllm.inputs import share_out
from innervision.mllm.shares import split_by_image, tiles_of
from innervision.mllm.vision import channels_last, handed_over
from innervision.mllm.walk import Walk
from tiny_mllms import FAMILIES, WITHOUT_VISION_LAYER, gemma3n_text

Load = Callable[[str], MLLM]
Images = list[Image.Image]


def states_of(mllm: MLLM, inputs: Inputs, layers: list[int] | None = None, **options: str) -> dict[int, Tensor]:
    seen: dict[int, Tensor] = {}
    mllm.visit(inputs, lambda layer, states, mask: seen.__setitem__(layer, states.clone()), layers, **options)
    return seen


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_are_hidden_states_bit_for_bit(family: str, load_family: Load, unequal_images: Images) -> None:
    mllm = load_family(family)
    inputs = mllm.prepare(unequal_images, "Describe the image.")
    with torch.no_grad():
        output = mllm.model(**inputs.tensors, output_hidden_states=True, use_cache=False)
    expected = (output if output.get("hidden_states") else output.language_model_outputs).hidden_states
    seen = states_of(mllm, inputs)
    assert list(seen) == list(range(mllm.num_layers + 1))
    assert len(expected) == len(seen)
    for layer, states in seen.items():
        assert torch.equal(states, expected[layer]), layer


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - WITHOUT_VISION_LAYER))
def test_vision_states_of_a_batch_are_those_of_each_image_alone(
    family: str, load_family: Load, unequal_images: Images
) -> None:
    mllm = load_family(family)
    together: list[Tensor] = []
    inputs = mllm.prepare(unequal_images, "Describe the image.")
    mllm.visit(
        inputs, lambda _, states, mask: together.extend(s[m] for s, m in zip(states, mask, strict=True)), [VISION]
    )
    for image, states in zip(unequal_images, together, strict=True):
        alone = states_of(mllm, mllm.prepare([image], "Describe the image."), [VISION])[VISION][0]
        assert states.shape == (len(alone), mllm.width(VISION))
        torch.testing.assert_close(states, alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "family", ["llava", "llava_next", "internvl", "smolvlm", "qwen2_vl", "qwen2_5_vl", "glm4v", "gemma3"]
)
def test_projected_vision_states_are_the_image_tokens_of_layer_0(
    family: str, load_family: Load, unequal_images: Images
) -> None:
    """The projector, applied by hand to what layer -1 shows, gives the image tokens that enter the decoder."""
    mllm = load_family(family)
    image = unequal_images[2]
    inputs = mllm.prepare([image], "Describe the image.")
    seen = states_of(mllm, inputs, [VISION, 0])
    model = mllm.model.model
    projector = {
        "smolvlm": lambda: model.connector,
        "qwen2_vl": lambda: model.visual.merger,
        "qwen2_5_vl": lambda: model.visual.merger,
        "glm4v": lambda: model.visual.merger,
    }.get(family, lambda: model.multi_modal_projector)()
    states = seen[VISION][0]
    if family in ("llava_next", "internvl", "smolvlm"):  # the projector takes tiles
        states = states.unflatten(0, (len(tiles_of(inputs)[1]), -1))
    elif family in ("llava", "gemma3"):
        states = states[None]
    projected = projector(states).flatten(0, -2)
    tokens = seen[0][0][inputs.image_mask[0]]
    nearest = (tokens[:, None] - projected).abs().amax(dim=2).min(dim=1).values
    if family == "llava_next":  # adds a newline token after each of the 2 x 4 rows of patches
        assert (nearest < 1e-5).sum() == len(tokens) - 8
    elif family == "qwen2_5_vl":  # reads patches in the order of its attention windows
        assert nearest.max() < 1e-5
    else:
        torch.testing.assert_close(tokens, projected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", sorted(WITHOUT_VISION_LAYER))
def test_a_model_that_does_not_show_its_projector_has_no_vision_layer(family: str, load_family: Load) -> None:
    mllm = load_family(family)
    assert not mllm.has_vision_layer()
    with pytest.raises(InnerVisionError, match="layer -1"):
        mllm.width(VISION)


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_is_masked_and_states_of_real_tokens_do_not_depend_on_it(
    family: str, load_family: Load, unequal_images: Images
) -> None:
    mllm = load_family(family)
    batch = mllm.prepare(unequal_images, "Describe the image.")
    assert torch.equal(batch.mask, batch.tensors["attention_mask"].bool())
    together = states_of(mllm, batch, [mllm.num_layers])[mllm.num_layers]
    for i, image in enumerate(unequal_images):
        single = mllm.prepare([image], "Describe the image.")
        assert single.mask.sum() == batch.mask[i].sum()
        alone = states_of(mllm, single, [mllm.num_layers])[mllm.num_layers][0]
        torch.testing.assert_close(together[i][batch.mask[i]], alone[single.mask[0]], atol=1e-3, rtol=1e-3)


def test_nothing_after_the_last_layer_is_run(load_family: Load, unequal_images: Images) -> None:
    mllm = load_family("llava")
    ran: list[str] = []
    language_model = mllm.model.model.language_model
    hooks = [
        module.register_forward_pre_hook(lambda *_, name=name: ran.append(name))
        for name, module in [
            *((f"layer {i + 1}", layer) for i, layer in enumerate(language_model.layers)),
            ("norm", language_model.norm),
            ("lm_head", mllm.model.lm_head),
        ]
    ]
    inputs = mllm.prepare(unequal_images, "Describe the image.")
    try:
        assert list(states_of(mllm, inputs, [0, 2])) == [0, 2]
        assert ran == ["layer 1", "layer 2"]
        ran.clear()
        states_of(mllm, inputs)
        assert ran == ["layer 1", "layer 2", "layer 3", "layer 4", "norm"]
        ran.clear()
        states_of(mllm, inputs, [VISION])
        assert ran == []
    finally:
        for hook in hooks:
            hook.remove()


def test_no_hook_stays_behind(load_family: Load, unequal_images: Images) -> None:
    mllm = load_family("llava")
    inputs = mllm.prepare(unequal_images, "Describe the image.")

    def fail(layer: int, states: Tensor, mask: Tensor) -> None:
        raise ZeroDivisionError

    before = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in mllm.model.modules())
    with pytest.raises(ZeroDivisionError):
        mllm.visit(inputs, fail, [VISION, 1])
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in mllm.model.modules()) == before


def test_the_visitor_may_turn_gradients_on(load_family: Load, unequal_images: Images) -> None:
    mllm = load_family("llava")
    weight = torch.ones(32, requires_grad=True)

    def learn(layer: int, states: Tensor, mask: Tensor) -> None:
        assert not states.requires_grad
        assert not torch.is_grad_enabled()
        with torch.enable_grad():
            (states * weight).sum().backward()

    mllm.visit(mllm.prepare(unequal_images, "Describe the image."), learn)
    assert weight.grad is not None
    assert all(parameter.grad is None for parameter in mllm.model.parameters())


@pytest.mark.parametrize(("tokens", "share"), [("image", 16), ("text", 20), ("all", 36)])
def test_tokens_can_be_restricted(tokens: str, share: int, load_family: Load, unequal_images: Images) -> None:
    mllm = load_family("llava")
    inputs = mllm.prepare(unequal_images, "Describe the image.")
    counts: list[Tensor] = []
    mllm.visit(inputs, lambda _, __, mask: counts.append(mask.sum(dim=1)), [2], tokens=tokens)
    assert counts[0].tolist() == [share] * 3


def test_unknown_layers_are_refused(load_family: Load, unequal_images: Images) -> None:
    mllm = load_family("llava")
    with pytest.raises(InnerVisionError, match=r"1…4.*no layer 5"):
        mllm.visit(mllm.prepare(unequal_images, "Describe"), lambda *_: None, [5])


def test_streams_of_a_token_are_read_one_after_the_other() -> None:
    """Gemma 3n's decoder keeps four streams of states; after the final norm there is one."""
    model = gemma3n_text()
    ids = torch.arange(14).reshape(2, 7) + 5
    mask = torch.ones_like(ids, dtype=torch.bool)
    inputs = Inputs({"input_ids": ids}, mask, mask, torch.full((2, 7, 2), float("nan")))
    seen: dict[int, Tensor] = {}
    walk = Walk(
        "gemma3n", find_decoder(model), None, inputs, mask, {0, 1, 2}, lambda k, states, _: seen.update({k: states})
    )
    with torch.no_grad():
        output = model(input_ids=ids, output_hidden_states=True, use_cache=False)
        walk.run(lambda: model(input_ids=ids, use_cache=False))
    for layer in (0, 1):
        for stream in range(4):
            found = seen[layer][..., 32 * stream : 32 * (stream + 1)]
            assert torch.equal(found, output.hidden_states[layer][stream])
    assert torch.equal(seen[2], output.last_hidden_state)


def test_features_are_shared_out_by_the_grid_not_by_tokens_that_end_rows() -> None:
    """Grids of 2 x 4 and 4 x 6 patches, 8 and 24; with a token that ends each row they have 10 and 28."""
    mask = torch.zeros(2, 28, dtype=torch.bool)
    mask[0, :10], mask[1] = True, True
    grid = torch.tensor([[1, 2, 4], [1, 4, 6]])
    inputs = Inputs({"image_grid_thw": grid}, mask, mask, torch.full((2, 28, 2), float("nan")))
    pieces = split_by_image(torch.arange(32.0)[:, None], inputs)
    assert pieces is not None
    assert [len(piece) for piece in pieces] == [8, 24]


def test_features_are_shared_out_by_the_patches_of_the_sizes_also_where_a_merge_leaves_an_odd_row_out() -> None:
    """12 x 9 and 3 x 6 patches of 14 pixels, of which 2 x 2 make a token: 6 x 4 and 1 x 3 tokens."""
    mask = torch.zeros(2, 24, dtype=torch.bool)
    mask[0], mask[1, :3] = True, True
    sizes = torch.tensor([[168, 126], [42, 84]])
    inputs = Inputs({"image_sizes": sizes}, mask, mask, sizes)
    pieces = split_by_image(torch.arange(126.0)[:, None], inputs, patch_size=14)
    assert pieces is not None
    assert [len(piece) for piece in pieces] == [108, 18]
    assert split_by_image(torch.arange(125.0)[:, None], inputs, patch_size=14) is None


@pytest.mark.parametrize(("total", "counts", "shares"), [(6, [4, 8], [2, 4]), (24, [4, 8], [8, 16]), (9, [4, 8], None)])
def test_things_are_shared_out_in_whole_multiples_only(total: int, counts: list[int], shares: list[int] | None) -> None:
    """9 would divide as 3 and 6, which says nothing."""
    found = share_out(total, torch.tensor(counts))
    assert (None if found is None else found.tolist()) == shares


@pytest.mark.parametrize("shape", [(4, 3, 8), (2, 6, 8), (12, 8)])
def test_what_a_module_receives_from_the_tower_is_a_view_of_its_output_not_the_text_beside_it(shape: tuple) -> None:
    """As the cross-attention of IDEFICS, which takes states of text first."""
    features, text, mask = torch.randn(4, 3, 8), torch.randn(2, 5, 16), torch.ones(2, 5)
    received = handed_over([{"last_hidden_state": features}], (text, None, features.view(shape)), {"mask": mask})
    assert torch.equal(received, features.view(shape))


def test_what_a_module_receives_of_an_inner_layer_is_its_first_tensor() -> None:
    features, cropped = torch.randn(4, 3, 8), torch.randn(4, 2, 8)
    assert handed_over([{"last_hidden_state": features}], (cropped, torch.randn(2, 5)), {}) is cropped


def test_maps_for_a_convolution_are_read_by_channel() -> None:
    features = torch.randn(2, 3, 4, 4)
    convolution = nn.Sequential(nn.Conv2d(3, 8, 2))
    assert channels_last(features, convolution).shape == (2, 4, 4, 3)
    assert channels_last(features, nn.Linear(4, 8)) is features
