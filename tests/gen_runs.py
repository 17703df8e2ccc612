"""A trained run of tiny real models that draws images, and its scores by other code than the task's."""

from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import numpy as np
import pandas as pd
import torch
from PIL import Image

from innervision.config import GenSettings, ProbeSettings, TrainSettings
from innervision.engine.evaluate import evaluate_task
from innervision.engine.fit import fit
from innervision.metrics.frechet import frechet_by_image, kernel_by_image
from innervision.mllm import MLLM
from innervision.probes import ProbeBank
from innervision.targets.gen import GenTarget
from stand_ins import write_noise_images
from tiny_experts import save_tiny_backbone, save_tiny_gen
from tiny_mllms import save_tiny

PROMPT = "Describe the image in two lines."
IMAGES = 7


class Trained:
    """A run on tiny models, and the images to draw again."""

    def __init__(self, root: Path) -> None:
        save_tiny("llava", root / "llava")
        save_tiny_gen(root / "unclip", whole=True)
        self.backbone = save_tiny_backbone(root / "dino")
        self.mllm = MLLM.load(str(root / "llava"), device="cpu")
        self.target = GenTarget.load(str(root / "unclip"), device="cpu", head=True)
        self.run = root / "run"
        self.images = write_noise_images(root / "val", IMAGES, seed=1, size=(40, 60))
        settings = TrainSettings(
            mllm=str(root / "llava"),
            targets=f"gen={root / 'unclip'}",
            images=str(write_noise_images(root / "images", 8, size=(40, 60))),
            out=str(self.run),
            layers="0,2",
            probe=ProbeSettings(kind="resampler", heads=2, dim_head=8),
            epochs=1,
            batch_size=4,
            workers=0,
        )
        fit(settings, mllm=self.mllm, targets=[self.target], progress=False)

    def settings(self, **options: object) -> GenSettings:
        usual = {
            "data": str(self.images),
            "features": str(self.backbone),
            "steps": 2,
            "size": 16,
            "batch_size": 3,
            "workers": 0,
        }
        return GenSettings(**{**usual, **options})

    def evaluate(self, run: Path, *, overwrite: bool = False, **options: object) -> pd.DataFrame:
        path = evaluate_task(
            run,
            "gen",
            self.settings(**options),
            overwrite=overwrite,
            mllm=self.mllm,
            targets=[self.target],
            progress=False,
        )
        return pd.read_parquet(path)

    def by_hand(self, layer: int | None, source: str) -> list[Image.Image]:
        """Draw one image after the other with Diffusers' own pipeline."""
        import diffusers

        pipeline = diffusers.StableUnCLIPImg2ImgPipeline.from_pretrained(self.run.parent / "unclip")
        pipeline.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
        pipeline.set_progress_bar_config(disable=True)
        bank = ProbeBank.load(self.run / "probes/gen.safetensors")
        drawn = []
        for path in sorted(self.images.iterdir()):
            image = Image.open(path)
            inputs = self.mllm.prepare([image], PROMPT)
            with torch.no_grad():
                if source == "expert":
                    embedding = self.target.encode([image])
                elif source == "mean":
                    embedding = bank.mean[None]
                else:
                    states = self.mllm.model(**inputs.tensors, output_hidden_states=True).hidden_states[layer]
                    embedding = bank(layer, states, inputs.mask)
            drawn += pipeline(
                prompt="",
                image_embeds=embedding[:, 0],
                num_inference_steps=2,
                height=16,
                width=16,
                generator=torch.Generator().manual_seed(crc32(f"{path.name} {layer}".encode())),
            ).images
        return drawn


class Whole(NamedTuple):
    """A finished evaluation."""

    table: pd.DataFrame
    drawn: Path
    """Its images, in a folder for each layer and floor."""


def scores_by_image(drawn: np.ndarray, real: np.ndarray) -> dict[str, np.ndarray]:
    centred = drawn - real.mean(axis=0), real - real.mean(axis=0)
    norms = np.linalg.norm(centred[0], axis=1) * np.linalg.norm(centred[1], axis=1)
    return {
        "frechet:dino": frechet_by_image(drawn, real),
        "kernel:dino": 1000 * kernel_by_image(drawn, real),
        "image_cosine:dino": (centred[0] * centred[1]).sum(axis=1) / norms,
    }
