"""Whose image features are: they come as one sequence, by image or by tile, and padding is among them."""

import torch
from torch import Tensor
from torch.nn import functional

from innervision.mllm.inputs import Inputs, share_out


def split_by_image(features: Tensor, inputs: Inputs, patch_size: int | None = None) -> list[Tensor] | None:
    """Give each image's own part of what the projector receives, (T_i, D) each, or None where it cannot be told.

    Features come as one sequence for all images (T, D), by image (B, …, D) or by tile (tiles, T, D). Tiles of padding
    and patches of padding (of `patch_size` pixels a side) are left out.
    """
    width = features.shape[-1]
    num_images = len(inputs.mask)
    if features.dim() == 2 or (features.dim() == 3 and len(features) == 1 and num_images > 1):
        shares = shares_of_sequence(features.numel() // width, inputs, patch_size)
        return None if shares is None else list(features.reshape(-1, width).split(shares.tolist()))
    real, owner = tiles_of(inputs)
    if real is None or owner is None:
        if features.dim() < 3 or len(features) != num_images:
            return None
        real, owner = torch.ones(num_images, dtype=torch.bool), torch.arange(num_images)
    lead = next((pixels.shape[:-3] for pixels in pixels_of(inputs)), torch.Size())
    if len(lead) > 1 and features.shape[: len(lead)] == lead and features.dim() > len(lead) + 1:
        features = features.flatten(0, len(lead) - 1)
    features = features.flatten(1, -2)  # (tiles, T, D)
    masks = [mask for mask in _masks(inputs) if mask.dim() > 2 and mask.shape == (*lead, *_size(inputs))]
    patches = None
    if masks and not bool(masks[0].all()):
        patches = real_patches(masks[0], features.shape[1], patch_size)
        if patches is None:
            return None
    if len(features) == int(real.sum()):
        owner, patches = owner[real], None if patches is None else patches[real]
        real = real[real]
    elif len(features) != len(real):
        return None
    pieces = []
    for image in range(num_images):
        mine = (real & (owner == image)).nonzero()[:, 0]
        tiles = features[mine.to(features.device)]
        shown = slice(None) if patches is None else patches[mine].flatten().to(features.device)
        pieces.append(tiles.flatten(0, 1)[shown])
    return pieces if all(len(piece) for piece in pieces) else None


def shares_of_sequence(total: int, inputs: Inputs, patch_size: int | None = None) -> Tensor | None:
    """Give how many of `total` features each image has, where they come as one sequence.  # (B,)

    That is in proportion to the patches of its grid, where the processor tells it; as many as the patches (of
    `patch_size` pixels a side) in the size that it tells, also where the model merges patches and leaves an odd row
    out; else in proportion to its image tokens.
    """
    num_images = len(inputs.mask)
    grid, sizes = (inputs.tensors.get(key) for key in ("image_grid_thw", "image_sizes"))
    if isinstance(grid, Tensor) and len(grid) == num_images:
        return share_out(total, grid.prod(dim=1))
    if isinstance(sizes, Tensor) and sizes.shape == (num_images, 2) and isinstance(patch_size, int):
        patches = (sizes // patch_size).prod(dim=1)
        if int(patches.sum()) == total:
            return patches
    return share_out(total, inputs.image_mask.sum(dim=1))


def pixels_of(inputs: Inputs) -> list[Tensor]:
    """Give the pixels among the model's inputs (…, C, H, W), those of whole images first."""
    found = {
        key: value
        for key, value in inputs.tensors.items()
        if isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 3
    }
    return [found[key] for key in sorted(found, key=lambda key: key != "pixel_values")]


def tiles_of(inputs: Inputs) -> tuple[Tensor | None, Tensor | None]:
    """Tell which tiles hold image and whose they are, in the order in which the pixels come.  # (tiles,) each

    Pixels of shape (B, …, tiles, C, H, W) are padded with tiles that a mask of the same shape leaves out or that are
    zero. Tiles of all images in one row, (tiles, C, H, W), are shared out in proportion to the image tokens. None where
    the pixels do not come as tiles.
    """
    pixels = next(iter(pixels_of(inputs)), None)
    num_images = len(inputs.mask)
    if pixels is None:
        return None, None
    lead = pixels.shape[:-3]
    if lead[0] == num_images:
        mask = next((mask for mask in _masks(inputs) if mask.shape == lead and mask.dim() > 1), None)
        real = (pixels != 0).flatten(-3).any(dim=-1) if mask is None else mask.bool()
        if len(lead) == 1:
            real = torch.ones_like(real)
        owner = torch.arange(num_images).repeat_interleave(lead[1:].numel())
        return real.flatten().cpu(), owner
    shares = share_out(lead.numel(), inputs.image_mask.sum(dim=1))
    if shares is None:
        return None, None
    owner = torch.arange(num_images).repeat_interleave(shares.cpu())
    return torch.ones(len(owner), dtype=torch.bool), owner


def real_patches(mask: Tensor, num_patches: int, patch_size: int | None) -> Tensor | None:
    """Tell which patches of each tile are wholly image, by a mask of the pixels (…, H, W).  # (tiles, T) bool

    An image without padding is cut to whole patches, too. None where the tile has not one feature for each patch.
    """
    height, width = mask.shape[-2:]
    if not isinstance(patch_size, int) or (height // patch_size) * (width // patch_size) != num_patches:
        return None
    padding = (mask == 0).float().reshape(-1, 1, height, width)
    return functional.max_pool2d(padding, patch_size).flatten(1).cpu() == 0


def _size(inputs: Inputs) -> tuple[int, ...]:
    return next((tuple(pixels.shape[-2:]) for pixels in pixels_of(inputs)), ())


def _masks(inputs: Inputs) -> list[Tensor]:
    return [
        value
        for key, value in inputs.tensors.items()
        if isinstance(value, Tensor) and "mask" in key and not value.is_floating_point()
    ]
