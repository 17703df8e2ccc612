"""The resampler against numbers of the original, and what masks, places and controls must do."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from innervision.config import ProbeSettings
from innervision.probes.linear import Linear
from innervision.probes.places import PLACE_CODE, encode_places
from innervision.probes.resampler import Blind, Resampler

SMALL = ProbeSettings(dim_head=4, heads=2)


def golden(shared: Path, name: str) -> tuple[dict[str, Tensor], Resampler]:
    """The stored tensors, and a resampler with the stored weights."""
    data = load_file(shared / "golden" / "resampler" / f"{name}.safetensors")
    weights = {
        key.removeprefix("param.").removeprefix("projector."): value
        for key, value in data.items()
        if key.startswith("param.")
    }
    probe = Resampler(24, weights["latents"].shape[1], 16, SMALL).to(data["input"].dtype)
    probe.load_state_dict(weights)
    return data, probe


def everything(states: Tensor) -> Tensor:
    return torch.ones(states.shape[:2], dtype=torch.bool)


@pytest.mark.parametrize("name", ["resampler_d1", "depth_head", "seg_head", "gen_head"])
def test_output_loss_and_gradients_are_those_of_the_original(name: str, shared: Path) -> None:
    data, probe = golden(shared, name)
    output, target = data["output"], data["target"]
    if name == "seg_head":  # a row-major map (B, C, h, w) there, tokens (B, N, C) here
        output, target = (x.flatten(2).transpose(1, 2) for x in (output, target))
    states = data["input"].requires_grad_()
    prediction = probe(states, everything(states))
    torch.testing.assert_close(prediction, output, atol=1e-6, rtol=1e-5)
    loss = F.smooth_l1_loss(prediction, target)
    torch.testing.assert_close(loss, data["loss"].squeeze(), atol=1e-7, rtol=1e-6)
    loss.backward()
    torch.testing.assert_close(states.grad, data["grad_input"], atol=1e-8, rtol=1e-4)
    gradients = {
        key.removeprefix("grad.").removeprefix("projector."): value
        for key, value in data.items()
        if key.startswith("grad.")
    }
    assert gradients.keys() == dict(probe.named_parameters()).keys()
    for key, parameter in probe.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[key], atol=1e-7, rtol=1e-4, msg=key)


def test_bfloat16_is_that_of_the_original(shared: Path) -> None:
    data, probe = golden(shared, "resampler_bf16")
    output = probe(data["input"], everything(data["input"]))
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output, data["output"], atol=0.04, rtol=0.02)  # 2 to 3 units in the last place


@pytest.mark.parametrize(("queries", "width", "millions"), [(576, 1024, 8.46), (576, 1536, 15.06), (1, 1024, 7.88)])
def test_published_number_of_parameters(queries: int, width: int, millions: float) -> None:
    with torch.device("meta"):
        probe = Resampler(4096, queries, width, ProbeSettings())
    assert sum(p.numel() for p in probe.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)


def test_first_weights_are_spread_as_in_the_original(shared: Path) -> None:
    import json

    stats = json.loads((shared / "golden/resampler/init_stats_depth_4096.json").read_text())["stats"]
    torch.manual_seed(0)
    weights = dict(Resampler(4096, 576, 1024, ProbeSettings()).named_parameters())
    assert weights.keys() == stats.keys()
    for key, expected in stats.items():
        assert list(weights[key].shape) == expected["shape"]
        assert weights[key].std().item() == pytest.approx(expected["std"], rel=0.05, abs=1e-8), key


def test_masked_tokens_change_nothing() -> None:
    torch.manual_seed(0)
    probe = Resampler(24, 9, 16, SMALL)
    states = torch.randn(2, 13, 24)
    mask = everything(states)
    mask[1, 8:] = False
    changed = states.clone()
    changed[1, 8:] = 1e3
    torch.testing.assert_close(probe(states, mask), probe(changed, mask))
    torch.testing.assert_close(probe(states[1:, :8], mask[1:, :8]), probe(states, mask)[1:], atol=1e-6, rtol=1e-5)
    assert not torch.allclose(probe(states, everything(states))[1], probe(changed, everything(states))[1])


def test_without_positions_the_order_of_tokens_does_not_matter() -> None:
    torch.manual_seed(0)
    probe = Resampler(24, 9, 16, SMALL)
    states = torch.randn(2, 13, 24)
    torch.testing.assert_close(probe(states, everything(states)), probe(states.flip(1), everything(states)))


def test_with_positions_it_does() -> None:
    torch.manual_seed(0)
    probe = Resampler(24, 9, 16, ProbeSettings(dim_head=4, heads=2, positions=True))
    states = torch.randn(2, 13, 24)
    mask = everything(states)
    places = torch.full((2, 13, 4), float("nan"))
    assert not torch.allclose(probe(states, mask, places), probe(states.flip(1), mask, places), atol=1e-3)


def test_only_positions_let_a_resampler_learn_which_token_stands_where() -> None:
    """Every image holds the same four tokens in another order; each query must give the token at its place."""
    losses = {}
    for positions in (False, True):
        torch.manual_seed(0)
        probe = Resampler(8, 4, 16, ProbeSettings(dim_head=8, heads=4, positions=positions))
        optimizer = torch.optim.AdamW(probe.parameters(), lr=5e-3)
        tokens, meaning = torch.randn(4, 8), F.layer_norm(torch.randn(4, 16), (16,))
        mask = torch.ones(32, 4, dtype=torch.bool)
        grid = torch.tensor([[0.25, 0.25], [0.25, 0.75], [0.75, 0.25], [0.75, 0.75]]).expand(32, 4, 2)
        for _ in range(200):
            order = torch.stack([torch.randperm(4) for _ in range(32)])
            loss = F.smooth_l1_loss(probe(tokens[order], mask, torch.cat([grid, grid], dim=-1)), meaning[order])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses[positions] = loss.item()
    assert losses[True] < 0.1 * losses[False]


def test_codes_of_places_do_not_depend_on_padding() -> None:
    grid = torch.rand(1, 5, 2)
    alone = encode_places(torch.ones(1, 5, dtype=torch.bool), grid)
    padded = encode_places(
        torch.tensor([[False] * 3 + [True] * 5]),
        torch.cat([torch.full((1, 3, 2), float("nan")), grid], dim=1),
    )
    assert alone.shape == (1, 5, PLACE_CODE)
    torch.testing.assert_close(padded[:, 3:], alone)
    assert padded.isfinite().all()


def test_the_blind_probe_sees_nothing() -> None:
    torch.manual_seed(0)
    probe = Blind(24, 9, 16, SMALL)
    states = torch.randn(2, 13, 24)
    output = probe(states, everything(states))
    assert output.shape == (2, 9, 16)
    assert torch.equal(output[0], output[1])
    torch.testing.assert_close(output, probe(torch.randn(2, 5, 24), torch.ones(2, 5, dtype=torch.bool)))


def test_the_blind_probe_is_a_resampler_whose_tokens_are_all_masked() -> None:
    torch.manual_seed(0)
    full = Resampler(24, 9, 16, SMALL)
    blind = Blind(24, 9, 16, SMALL)
    blind.load_state_dict({k: v for k, v in full.state_dict().items() if not k.startswith("proj_in")})
    states = torch.randn(2, 13, 24)
    nothing = torch.zeros(2, 13, dtype=torch.bool)
    torch.testing.assert_close(blind(states, nothing), full(states, nothing), atol=1e-6, rtol=1e-5)


def test_the_linear_probe_maps_the_mean_of_the_visible_tokens() -> None:
    torch.manual_seed(0)
    probe = Linear(24, 9, 16, SMALL)
    states = torch.randn(2, 13, 24)
    mask = everything(states)
    mask[0, :4] = False
    weight, bias = probe.map.weight.unflatten(0, (9, 16)), probe.map.bias.unflatten(0, (9, 16))
    means = torch.stack([states[0, 4:].mean(dim=0), states[1].mean(dim=0)])
    expected = torch.einsum("ncd,bd->bnc", weight, means) + bias
    torch.testing.assert_close(probe(states, mask), expected, atol=1e-6, rtol=1e-5)
