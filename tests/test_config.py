"""Settings: the forms of `layers`, and the values that are refused."""

import pytest

from innervision.config import EvaluateSettings, ProbeSettings, TrainSettings, check_layers, parse_layers
from innervision.errors import InnerVisionError


@pytest.mark.parametrize(
    ("text", "vision", "layers"),
    [
        ("all", True, [-1, 0, 1, 2, 3, 4, 5, 6]),
        ("all", False, [0, 1, 2, 3, 4, 5, 6]),
        ("decoder", True, [1, 2, 3, 4, 5, 6]),
        ("every:4", True, [0, 4, 6]),
        ("every:2", True, [0, 2, 4, 6]),
        ("vision,0,6", True, [-1, 0, 6]),
        ("vision, every:4", True, [-1, 0, 4, 6]),
        ("every:5,3", False, [0, 3, 5, 6]),
        ("vision,decoder", True, [-1, 1, 2, 3, 4, 5, 6]),
        ("6, 2,2,-1", True, [-1, 2, 6]),
    ],
)
def test_layers_setting(text: str, vision: bool, layers: list[int]) -> None:
    assert parse_layers(text, 6, vision) == layers


@pytest.mark.parametrize("text", ["", "some", "1-3", "every:", "every:0", "every:-2", "1;2"])
def test_other_forms_of_layers_are_refused(text: str) -> None:
    with pytest.raises(InnerVisionError, match="is not all, decoder, every:N, vision, a number or several"):
        parse_layers(text, 6, True)


def test_layers_that_are_not_there_are_named() -> None:
    with pytest.raises(InnerVisionError, match="no layer 7, 9: the model has vision \\(-1\\) and 0…6"):
        parse_layers("1,7,9", 6, True)
    with pytest.raises(InnerVisionError, match="no vision stage"):
        parse_layers("vision,1", 6, False)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"epochs": 0}, "epochs must be above 0"),
        ({"batch_size": -1}, "batch_size"),
        ({"lr": 0.0}, "lr"),
        ({"warmup": 1.5}, "warmup is a share from 0 to 1"),
        ({"max_bad": -0.1}, "max_bad"),
        ({"clip": 0.0}, "clip"),
        ({"workers": -1}, "workers"),
        ({"save_minutes": -1.0}, "save_minutes must not be negative"),
        ({"layers": "foo"}, "layers=.foo. is not all, decoder"),
        ({"quantization": "4bit", "random_weights": "llm"}, "cannot be combined"),
    ],
)
def test_values_that_make_no_sense_are_refused(settings: dict, named: str) -> None:
    with pytest.raises(InnerVisionError, match=named):
        TrainSettings(mllm="m", images="i", out="o", **settings)


def test_probe_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(InnerVisionError, match=r"probe\.heads"):
        ProbeSettings(heads=0)
    with pytest.raises(InnerVisionError, match="not with linear"):
        ProbeSettings(kind="linear", positions=True)


def test_the_form_of_layers_is_checked_before_the_model_is_known() -> None:
    check_layers("vision,0,123456")
    with pytest.raises(InnerVisionError, match="is not all, decoder, every:N, vision, a number or several"):
        check_layers("vision,")


def test_a_batch_has_an_image() -> None:
    assert EvaluateSettings(images="i", batch_size=1).batch_size == 1
    with pytest.raises(InnerVisionError, match="batch_size must be above 0"):
        EvaluateSettings(images="i", batch_size=0)


def test_training_saves_after_every_step_when_asked() -> None:
    assert TrainSettings(mllm="m", images="i", out="o", save_minutes=0).save_minutes == 0


def test_trust_in_remote_code_is_no_setting() -> None:
    with pytest.raises(TypeError, match="trust_remote_code"):
        TrainSettings(mllm="m", images="i", out="o", trust_remote_code=True)  # type: ignore[call-arg]
