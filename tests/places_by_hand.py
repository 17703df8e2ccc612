"""Where the image tokens of tiny models stand, worked out from how each processor resizes, crops, cuts and pads.

Each function takes height and width of an image and gives, for every image token in order, row and column of the centre
of what it stands for, and its height and width, as shares of the image; None for tokens that stand for nothing.
"""

import math
from collections.abc import Callable

Place = tuple[float, float, float, float]
Places = list[Place | None]


def grid(rows: int, columns: int, box: tuple[float, float, float, float] = (0, 0, 1, 1)) -> Places:
    """Cells of a box (top, left, bottom, right) in raster order; None where the centre is outside of the image."""
    top, left, bottom, right = box
    height, width = (bottom - top) / rows, (right - left) / columns
    cells = [(top + (i + 0.5) * height, left + (j + 0.5) * width) for i in range(rows) for j in range(columns)]
    return [(r, c, height, width) if 0 <= r <= 1 and 0 <= c <= 1 else None for r, c in cells]


def tiled(rows: int, columns: int, per_tile: int) -> Places:
    """Tiles of per_tile × per_tile tokens that together are the whole image."""
    boxes = [(i / rows, j / columns, (i + 1) / rows, (j + 1) / columns) for i in range(rows) for j in range(columns)]
    return [place for box in boxes for place in grid(per_tile, per_tile, box)]


def squash(rows: int, columns: int) -> Callable[[int, int], Places]:
    """The whole image is squashed to one grid: PaliGemma, Gemma 3."""
    return lambda height, width: grid(rows, columns)


def llava(height: int, width: int) -> Places:
    """The shorter side becomes 28 pixels, and the middle 28 × 28 are kept."""
    short = min(height, width)
    visible = [side / short for side in (height, width)]  # in crops
    (top, bottom), (left, right) = (((1 - 1 / n) / 2, (1 + 1 / n) / 2) for n in visible)
    return grid(4, 4, (top, left, bottom, right))


def padded_square(height: int, width: int) -> Places:
    """The longer side becomes 28 pixels, the other at least 14, and is padded on both sides: DeepSeek-VL, Janus."""
    visible = [max(side / max(height, width), 14 / 28) for side in (height, width)]  # shares of the square
    (top, bottom), (left, right) = (((1 - 1 / part) / 2, (1 + 1 / part) / 2) for part in visible)
    return grid(4, 4, (top, left, bottom, right))


def qwen_sides(height: int, width: int) -> tuple[int, int]:
    """Sides in tokens of 14 × 14 pixels: rounded, and scaled where the area is not from 28² to 84²."""
    sides = [max(1, round(side / 14)) for side in (height, width)]
    area = sides[0] * sides[1] * 14**2
    if area > 84**2:
        factor = math.sqrt(height * width) / 84
        sides = [max(1, math.floor(side / factor / 14)) for side in (height, width)]
    elif area < 28**2:
        factor = 28 / math.sqrt(height * width)
        sides = [math.ceil(side * factor / 14) for side in (height, width)]
    return sides[0], sides[1]


def qwen(height: int, width: int) -> Places:
    """The image is squashed a little, to whole tokens."""
    return grid(*qwen_sides(height, width))


def qwen_patches(height: int, width: int) -> Places:
    """Layer -1 of Qwen2-VL and Qwen3-VL: 2 × 2 patches of each token, one after the other."""
    rows, columns = qwen_sides(height, width)
    patches = grid(2 * rows, 2 * columns)
    order = [
        (2 * i + y) * 2 * columns + 2 * j + x
        for i in range(rows)
        for j in range(columns)
        for y in range(2)
        for x in range(2)
    ]
    return [patches[index] for index in order]


def qwen_windows(height: int, width: int) -> Places:
    """Layer -1 of Qwen2.5-VL: `qwen_patches`, window by window of 2 × 2 tokens; those at the border may be smaller."""
    rows, columns = qwen_sides(height, width)
    patches = qwen_patches(height, width)
    windows: dict[tuple[int, int], Places] = {}
    for i in range(rows):
        for j in range(columns):
            token = patches[4 * (i * columns + j) : 4 * (i * columns + j + 1)]
            windows.setdefault((i // 2, j // 2), []).extend(token)
    return [place for window in sorted(windows) for place in windows[window]]


def best_canvas(height: int, width: int) -> tuple[int, int]:
    """LLaVA-NeXT's canvas of the three: most of the image's pixels, then least of its own."""

    def judge(canvas: tuple[int, int]) -> tuple[int, int]:
        scale = min(canvas[0] / height, canvas[1] / width)
        kept = min(int(height * scale) * int(width * scale), height * width)
        return kept, kept - canvas[0] * canvas[1]

    return max([(28, 56), (56, 28), (56, 56)], key=judge)


def llava_next(height: int, width: int) -> Places:
    """The squashed image; then its tiles on a padded canvas, joined, without the padded lines, each row closed."""
    canvas = best_canvas(height, width)
    scale = min(canvas[0] / height, canvas[1] / width)
    places = grid(4, 4)
    rows, columns = canvas[0] // 7, canvas[1] // 7
    box = []
    for side, full in ((height, canvas[0]), (width, canvas[1])):
        margin = (full - side * scale) / 2
        box.append((-margin / (side * scale), (full - margin) / (side * scale)))
    (top, bottom), (left, right) = box
    cell = ((bottom - top) / rows, (right - left) / columns)
    first_row = first_column = 0
    last_row, last_column = rows, columns
    if width / height > columns / rows:
        first_row = (rows - math.floor(height * columns / width)) // 2
        last_row = rows - first_row
    else:
        first_column = (columns - math.floor(width * rows / height)) // 2
        last_column = columns - first_column
    for i in range(first_row, last_row):
        for j in range(first_column, last_column):
            r, c = top + (i + 0.5) * cell[0], left + (j + 0.5) * cell[1]
            places.append((r, c, *cell) if 0 <= r <= 1 and 0 <= c <= 1 else None)
        places.append(None)
    return places


def closest_tiles(height: int, width: int, tile: int, least: int = 1) -> tuple[int, int]:
    """Rows and columns of at most four tiles whose shape is closest; of equal ones the larger, if not too large."""
    pairs = [(c, r) for c in range(1, 5) for r in range(1, 5) if least <= c * r <= 4]
    best, distance = (1, 1), math.inf
    for columns, rows in sorted(pairs, key=lambda pair: pair[0] * pair[1]):
        new = abs(width / height - columns / rows)
        if new < distance or (new == distance and height * width > tile**2 * columns * rows / 2):
            best, distance = (rows, columns), new
    return best


def tiles_and_thumbnail(tile: int, per_tile: int) -> Callable[[int, int], Places]:
    """The image squashed to tiles, and where there are several, as a whole after them: InternVL, Aya Vision."""

    def places(height: int, width: int) -> Places:
        rows, columns = closest_tiles(height, width, tile)
        return tiled(rows, columns, per_tile) + (grid(per_tile, per_tile) if rows * columns > 1 else [])

    return places


def idefics3(height: int, width: int) -> Places:
    """The longer side becomes 84 pixels, both are brought to multiples of 42; the tiles, then the whole."""
    if width >= height:
        wide, high = 84, math.ceil(84 * height / width / 42) * 42
    else:
        wide, high = math.ceil(84 * width / height / 42) * 42, 84
    return tiled(high // 42, wide // 42, 3) + grid(3, 3)


def ovis2(height: int, width: int) -> Places:
    """The whole, then the fewest tiles of 56 pixels that, kept in shape, cover more than 90% of the image."""

    def covered(columns: int, rows: int) -> float:
        total = 0.0
        # the library divides the height by the number of columns and the width by that of rows
        for i in range(columns):
            for j in range(rows):
                high = height // columns if i < columns - 1 else height - (columns - 1) * (height // columns)
                wide = width // rows if j < rows - 1 else width - (rows - 1) * (width // rows)
                long, short = max(high, wide), min(high, wide)
                total += min(long, 56) * (short if long <= 56 else short * 56 / long)
        return total / (height * width)

    pairs = sorted(((c, r) for c in range(1, 5) for r in range(1, 5) if c * r <= 4), key=lambda pair: pair[0] * pair[1])
    enough = [pair for pair in pairs if covered(*pair) > 0.9]
    if enough:
        columns, rows = min(enough, key=lambda pair: (pair[0] * pair[1], -covered(*pair)))
    else:
        columns, rows = min(pairs, key=lambda pair: (-covered(*pair), pair[0] * pair[1]))
    return grid(4, 4) + (tiled(rows, columns, 4) if rows * columns > 1 else [])


def lfm2_vl(height: int, width: int) -> Places:
    """Two to four tiles of 3 × 3 tokens, then a thumbnail of at most nine; small images are not cut."""
    sides = [max(1, round(side / 14)) for side in (height, width)]
    if sides[0] * sides[1] > 9:
        factor = math.sqrt(height * width / 9) / 14
        sides = [max(1, math.floor(side / factor / 14)) for side in (height, width)]
    large = max(7, round(height / 14) * 14) * max(7, round(width / 14) * 14) > 2 * 9 * 14**2
    return (tiled(*closest_tiles(height, width, 42, least=2), 3) if large else []) + grid(*sides)


def mistral3(height: int, width: int) -> Places:
    """At most 84 pixels on the longer side, in tokens of 14 × 14; what marks the ends of rows is no image token."""
    ratio = max(height, width, 84) / 84
    sides = [math.floor(side / ratio) if ratio > 1 else side for side in (height, width)]
    return grid(*(math.ceil(side / 14) for side in sides))


def nowhere(tokens: int) -> Callable[[int, int], Places]:
    """Queries, which look at the image as a whole: BLIP-2, Idefics 2."""
    return lambda height, width: [None] * tokens


PLACES: dict[str, Callable[[int, int], Places]] = {
    "llava": llava,
    "llava_next": llava_next,
    "llava_onevision": llava_next,
    "qwen2_vl": qwen,
    "qwen2_5_vl": qwen,
    "qwen3_vl": qwen,
    "qwen3_5": qwen,
    "glm4v": qwen,
    "internvl": tiles_and_thumbnail(42, 3),
    "smolvlm": idefics3,
    "idefics3": idefics3,
    "paligemma": squash(4, 4),
    "gemma3": squash(4, 4),
    "idefics2": nowhere(8),
    "mistral3": mistral3,
    "aya_vision": tiles_and_thumbnail(56, 4),
    "lfm2_vl": lfm2_vl,
    "mllama": nowhere(1),
    "blip-2": nowhere(8),
    "deepseek_vl": padded_square,
    "janus": padded_square,
    "ovis2": ovis2,
}
"""By family, for the layers from 0 on."""
