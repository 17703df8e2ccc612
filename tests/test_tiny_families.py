"""Families made from their own classes, where a general way has to do what a family does in its own."""

from collections.abc import Callable

import pytest
from benchmarks.tiny_families import save_family

from innervision.config import VISION
from innervision.errors import InnerVisionError
from innervision.mllm import MLLM
from innervision.mllm.check import hidden_states_agree, noise, self_test

Build = Callable[[str], MLLM]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    return lambda family: MLLM.load(str(save_family(family, tmp_path_factory.mktemp(family))), device="cpu")


RIGHT = {
    "idefics": 32,  # cross-attention takes text before the tower's features
    "instructblip": 32,  # a Q-Former that reads the prompt
    "cosmos3_edge": 32,  # needs mm_token_type_ids
    "perception_lm": 64,  # its processor does not stack tiles of unequal number
    "gemma3n": 256,  # several streams of states in the decoder
    "glm5_next": 64,
    "kosmos-2": 32,  # no image token in the configuration
    "pp_chart2table": 64,  # a tower that starts without spread
}
"""Families whose tests all pass, with the width of their tower's features."""


@pytest.mark.parametrize("family", RIGHT)
def test_families_are_read_rightly(family: str, build: Build) -> None:
    mllm = build(family)
    assert [finding for finding in self_test(mllm) if finding.verdict != "ok"] == []
    assert hidden_states_agree(mllm).verdict == "ok"
    assert mllm.width(VISION) == RIGHT[family]


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("deepseek_vl_hybrid", "a second vision tower reads the pixels"),
        ("granite4_vision", "hands features of several of its layers to several modules"),
        ("step3p7", "cannot tell which of the vision tower's features"),
        ("chameleon", "no vision tower that hands features to a projector"),
        ("gemma4_unified", "no vision tower that hands features to a projector"),
    ],
)
def test_families_without_a_vision_layer_are_right_from_layer_0_on(family: str, reason: str, build: Build) -> None:
    mllm = build(family)
    with pytest.raises(InnerVisionError, match=reason):
        mllm.width(VISION)
    assert [finding for finding in self_test(mllm) if finding.verdict != "ok"] == []


def test_a_decoder_that_runs_layers_in_a_loop_is_refused(build: Build) -> None:
    [finding] = self_test(build("inkling2_loop"))
    assert finding.verdict == "error"
    assert "once each in their order" in finding.detail


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("mistral4", "no processor that takes images"),
        ("git", "not one for each of"),
        ("florence2", "encoder-decoder"),
        ("diffusion_gemma", "not one for each of"),
    ],
)
def test_families_that_cannot_be_probed_are_refused_in_one_line(family: str, reason: str, build: Build) -> None:
    with pytest.raises(InnerVisionError, match=reason) as error:
        build(family)
    assert len(str(error.value).splitlines()) == 1


def test_marks_around_an_image_are_no_image_tokens(build: Build) -> None:
    """Kosmos-2 writes <image>, 64 tokens, </image>."""
    assert int(build("kosmos-2").prepare([noise(64, 48)], "Describe.").image_mask.sum()) == 64
