"""For every image another one, drawn at random: whose score a prediction gets by what is true of all images alone."""

import hashlib
from collections.abc import Sequence


def random_order(names: Sequence[str]) -> list[int]:
    """Give the indices of images in an order that is random, but the same wherever the same names come from.

    Each image's partner is the one that follows it in this order; the last one's is the first. So partners are drawn
    from the whole set, no image is its own, every image is the partner of one, and neither batches nor processes nor
    the order in which images are listed play a part.
    """
    return sorted(range(len(names)), key=lambda index: hashlib.sha256(names[index].encode()).digest())
