"""Vision models in whose features sets of images are compared: Inception, as the FID has it, or another."""

import io
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from innervision.checkpoints.checkpoint import Checkpoint
from innervision.checkpoints.loading import check_finite, reason
from innervision.errors import InnerVisionError
from innervision.original.inception import SQUASH
from innervision.targets import load_targets, parse_target
from innervision.targets.backbone import BackboneTarget
from innervision.targets.target import Parts, Target


def load_image_features(spec: str, device: str | torch.device | None = None) -> Target:
    """Load a vision model; the mean over the tokens that its `encode` gives describes an image.

    | spec | model | features |
    |---|---|---|
    | inception | Inception v3 of the FID, downloaded by torch-fidelity | 2048, of the last pooling |
    | inception=PATH | the same, from a file of weights | |
    | ID_OR_PATH | any vision model of Hugging Face, such as openai/clip-vit-base-patch32 | its pooled output |
    | depth=…, seg=…, gen=…, backbone=… | an expert, named as a run's targets are | the mean of its tokens |

    Raises:
        InnerVisionError: it cannot be had.
    """
    kind, equals, path = (part.strip() for part in spec.partition("="))
    if kind == "inception":
        return InceptionTarget.load(path or None, device=device)
    if equals:
        return load_targets([spec], device=device)[0]
    found = parse_target(f"backbone={spec}")
    return PooledTarget.load(found.expert, revision=found.revision, device=device)


class PooledTarget(BackboneTarget):
    """The pooled output of a vision model as one token; the mean of its tokens where it has none."""

    kind = "pooled"

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Give the pooled output (B, 1, C). See `Target.encode`."""
        output = self.module(pixels)
        pooled = output.get("pooler_output")
        if pooled is None:
            return super().encode_pixels(pixels).mean(dim=1, keepdim=True)
        return pooled.flatten(1)[:, None]  # (B, C), or (B, C, 1, 1) of convolutional models


class InceptionTarget(Target):
    """The 2048 features of the last pooling of Inception v3 with the weights of the FID, as one token.

    The network is torch-fidelity's, and so are the weights where no file is named. Heusel et al. 2017,
    https://arxiv.org/abs/1706.08500
    """

    kind = "inception"
    default_expert = "inception"

    @classmethod
    def read(cls, checkpoint: Checkpoint, size: int | None) -> Parts:
        """Load network and weights. See `Target.read`."""
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
        except ImportError as error:
            raise InnerVisionError("Inception features need torch-fidelity: pip install 'innervision[gen]'") from error
        file = None if checkpoint.expert == cls.default_expert else Path(checkpoint.expert)
        try:
            if file is None:
                state = torch.hub.load_state_dict_from_url(
                    URL_INCEPTION_V3, check_hash=True, weights_only=True, map_location="cpu"
                )
                checkpoint.revision = Path(URL_INCEPTION_V3).stem  # ends with the start of the SHA-256
            else:
                state = torch.load(file, weights_only=True, map_location="cpu")
            # The network unpickles whatever its file holds, so it gets a copy of what was read as weights alone.
            weights = io.BytesIO()
            torch.save(state, weights)
            weights.seek(0)
            network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], weights)
        except Exception as error:  # a foreign file can make its reader raise anything
            what = "download the weights of Inception" if file is None else f"read {file} as weights of Inception"
            raise InnerVisionError(
                f"cannot {what}: {reason(error)}\nName a file of them with inception=PATH, or another model."
            ) from error
        check_finite(network, checkpoint.expert)
        # a squasher has of a preparer what this target asks for
        return Parts(network, {}, replace(SQUASH, side=size or SQUASH.side))  # type: ignore[arg-type]

    def shape(self) -> tuple[int, int]:
        """Give one token and the width of the last pooling."""
        return 1, 2048

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Give the features (B, 1, 2048) of 8-bit pixels of any one size. See `Target.encode`."""
        return self.module(pixels)[0][:, None]
