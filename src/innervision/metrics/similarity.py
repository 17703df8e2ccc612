"""How close predicted features are to an expert's own, image by image.

`prediction` and `truth` are feature maps (B, N, C) of B images with N tokens of width C; `mean` (N, C) is the
mean of the target's features over the training images. Every function gives one float64 value per image, on
the inputs' device. Higher is better, 1 is perfect. A NaN or infinity in an image's features gives NaN (or
-inf) for that image and leaves the others alone. Where shapes differ, a ValueError says so: nothing is
broadcast.

Sums and products are in float64, which costs little beside the MLLM and holds for any float32 features. None
of it is matrix multiplication, so neither autocast nor TF32 touches it.
"""

import torch
from torch import Tensor


def similarity(prediction: Tensor, truth: Tensor, mean: Tensor) -> dict[str, Tensor]:
    """Give all the scores of this file by name, each of shape (B,)."""
    return {
        "cosine": cosine(prediction, truth),
        "token_cosine": token_cosine(prediction, truth),
        "centred_cosine": centred_cosine(prediction, truth, mean),
        "explained_variance": explained_variance(prediction, truth, mean),
    }


def cosine(prediction: Tensor, truth: Tensor) -> Tensor:
    """Cosine of the two flattened maps, in [-1, 1]; 0 where either is all zeros.

    The score of the OLA-VLM paper (arXiv 2412.09585). The features of all images share a large mean, so that
    mean alone scores high: read it beside `centred_cosine`.
    """
    _require_same_shape("prediction", prediction, truth)
    return _cosine(prediction.flatten(1), truth.flatten(1))  # (B,)


def token_cosine(prediction: Tensor, truth: Tensor) -> Tensor:
    """Cosine of each token, averaged over the tokens, in [-1, 1]; a token of all zeros counts as 0.

    All tokens count alike, where `cosine` gives more weight to tokens of large norm.
    """
    _require_same_shape("prediction", prediction, truth)
    return _cosine(prediction, truth).mean(dim=1)  # (B,)


def centred_cosine(prediction: Tensor, truth: Tensor, mean: Tensor) -> Tensor:
    """Cosine of the two flattened maps after `mean` is taken from both, in [-1, 1].

    0 where the centred prediction has no direction, as for the mean itself. It scores what the prediction
    says about this image beyond what is true of all.
    """
    _require_same_shape("prediction", prediction, truth)
    _require_same_shape("mean", mean, truth[0])
    return cosine(prediction - mean, truth - mean)  # (B,)


def explained_variance(prediction: Tensor, truth: Tensor, mean: Tensor) -> Tensor:
    """1 - |truth - prediction|² / |truth - mean|² per image, in (-inf, 1]: R² against the training mean.

    The mean itself scores exactly 0, and what is further from the truth than the mean is negative. Where the
    truth equals the mean there is nothing to explain and every finite prediction scores 0.
    """
    _require_same_shape("prediction", prediction, truth)
    _require_same_shape("mean", mean, truth[0])
    residual = _norm((truth - prediction).flatten(1)).square()  # (B,)
    total = _norm((truth - mean).flatten(1)).square()  # (B,)
    return torch.where(total == 0, 0 * residual, 1 - residual / total)


def _cosine(prediction: Tensor, truth: Tensor) -> Tensor:
    """Cosine along the last dimension."""
    product = (prediction.double() * truth.double()).sum(dim=-1)
    norms = _norm(prediction) * _norm(truth)
    # A zero vector has no direction. Rounding may leave the range by 1e-16; clamp lets NaN through.
    return torch.where(norms == 0, 0 * product, product / norms).clamp(-1, 1)


def _norm(vectors: Tensor) -> Tensor:
    return torch.linalg.vector_norm(vectors, dim=-1, dtype=torch.float64)


def _require_same_shape(name: str, tensor: Tensor, truth: Tensor) -> None:
    if tensor.shape != truth.shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, the truth needs {tuple(truth.shape)}")
