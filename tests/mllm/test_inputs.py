"""Processors that differ from most in one way, as stand-ins."""

import os
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from innervision.errors import InnerVisionError
from innervision.mllm.inputs import InputBuilder

IMAGES = [Image.new("RGB", (60, 40)), Image.new("RGB", (40, 60))]
NO_TOKEN = SimpleNamespace()
"""A configuration that names no image token."""


class Processor:
    """Takes one list of images for each text, and gives pixels of one shape."""

    chat_template = None

    def __call__(self, images: list, text: list[str], padding: bool, return_tensors: str | None) -> dict[str, Any]:
        self.text = text
        pixels = self.pixels(images)
        if return_tensors is None:
            return {"input_ids": [[5, 6, 7]] * len(text), "pixel_values": pixels}
        if len({part.shape for part in pixels}) > 1:
            raise ValueError("Unable to convert output 'pixel_values': stack expects each tensor to be equal size")
        return {"input_ids": torch.tensor([[5, 6, 7]] * len(text)), "pixel_values": torch.stack(pixels)}

    def pixels(self, images: list) -> list[torch.Tensor]:
        return [torch.ones(1, 3, 2, 2) for [_] in images]


def test_a_prompt_stands_alone_where_the_model_names_no_image_token() -> None:
    processor = Processor()
    inputs = InputBuilder(processor, NO_TOKEN)(IMAGES, "Describe.")
    assert processor.text == ["Describe."] * 2
    assert not inputs.image_mask.any()


def test_image_tokens_without_an_id_are_those_of_the_processors_mask() -> None:
    class Marking(Processor):
        def __call__(self, *args: Any, **options: Any) -> dict[str, Any]:
            return super().__call__(*args, **options) | {"image_embeds_position_mask": torch.tensor([[-1, 1, 0]] * 2)}

    inputs = InputBuilder(Marking(), NO_TOKEN)(IMAGES, "Describe.")  # -1 marks the begin or the end of an image
    assert inputs.image_mask.tolist() == [[False, True, False]] * 2


def test_a_processor_that_refuses_a_list_for_each_text_gets_the_images_one_by_one() -> None:
    class Flat(Processor):
        def pixels(self, images: list) -> list[torch.Tensor]:
            if isinstance(images[0], list):
                raise ValueError("Nested images are not supported")
            return [torch.ones(3, 2, 2) for _ in images]

    assert InputBuilder(Flat(), NO_TOKEN)(IMAGES, "Describe.").tensors["pixel_values"].shape == (2, 3, 2, 2)


def test_tiles_of_unequal_number_are_joined() -> None:
    class Tiles(Processor):
        def pixels(self, images: list) -> list[torch.Tensor]:
            return [torch.full((1 + i, 3, 2, 2), float(i)) for i, _ in enumerate(images)]

    pixels = InputBuilder(Tiles(), NO_TOKEN)(IMAGES, "Describe.").tensors["pixel_values"]
    assert pixels.shape == (1, 3, 3, 2, 2)
    assert pixels[0, :, 0, 0, 0].tolist() == [0, 1, 1]


def test_lists_reach_models_that_take_them_and_no_others() -> None:
    class Listing(Processor):
        def __call__(self, *args: Any, **options: Any) -> dict[str, Any]:
            return super().__call__(*args, **options) | {"num_patches": [2, 4], "notes": ["a", "b"]}

    inputs = InputBuilder(Listing(), NO_TOKEN, frozenset({"num_patches"}))(IMAGES, "Describe.")
    assert inputs.tensors["num_patches"] == [2, 4]
    assert "notes" not in inputs.tensors
    assert inputs.to(torch.device("cpu"), torch.bfloat16).tensors["num_patches"] == [2, 4]


def test_a_processor_that_gives_no_pixels_is_refused() -> None:
    class TextOnly(Processor):
        def __call__(self, *args: Any, **options: Any) -> dict[str, Any]:
            return {"input_ids": torch.tensor([[5, 6]] * 2)}

    with pytest.raises(InnerVisionError, match="TextOnly gives no pixels"):
        InputBuilder(TextOnly(), NO_TOKEN)(IMAGES, "Describe.")


def test_what_a_processor_says_first_is_the_error() -> None:
    class Broken(Processor):
        def pixels(self, images: list) -> list[torch.Tensor]:
            raise ValueError("nested" if isinstance(images[0], list) else "flat")

    with pytest.raises(InnerVisionError, match="Broken refuses the input: nested"):
        InputBuilder(Broken(), NO_TOKEN)(IMAGES, "Describe.")


@pytest.mark.parametrize(
    ("work", "said"),
    [
        (lambda: bytearray(10 << 30), "takes more than 2048 MiB of memory"),
        (lambda: torch.zeros(10 << 30), "takes more than 2048 MiB of memory"),
        (lambda: time.sleep(60), "has not ended after 1 s"),
        (lambda: os._exit(1), "the process that ran it was ended"),
    ],
)
def test_a_processor_is_tried_out_under_limits(work: Any, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Asking(Processor):
        def pixels(self, images: list) -> list[torch.Tensor]:
            work()
            return super().pixels(images)

    monkeypatch.setattr("innervision.mllm.inputs.SECONDS", 1.0)
    with pytest.raises(InnerVisionError, match=said):
        InputBuilder(Asking(), NO_TOKEN, name="m").try_out("Describe.")
    InputBuilder(Processor(), NO_TOKEN, name="m").try_out("Describe.")


def test_what_a_processor_raises_is_one_line() -> None:
    class Dividing(Processor):
        def pixels(self, images: list) -> list[torch.Tensor]:
            raise ZeroDivisionError("by zero")

    builder = InputBuilder(Dividing(), NO_TOKEN)
    builder.try_out("Describe.")  # what is refused in words is told when it is used
    with pytest.raises(InnerVisionError, match="Dividing refuses the input: by zero"):
        builder(IMAGES, "Describe.")
