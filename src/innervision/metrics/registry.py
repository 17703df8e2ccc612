"""What each metric is called, drawn and formatted as: the one place that tables, figures and comparisons ask.

A key may name a model that the metric depends on, after a colon: `frechet:world/gen`. A task that is not part of the
package brings metrics of its own; they are written beside its scores and read from there.
"""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, replace
from functools import partial


@dataclass(frozen=True)
class Metric:
    """All that is to be known of a metric but how it is computed.

    Raises:
        TypeError: a field has a value of another type.
        ValueError: the key or the format of numbers is not valid.
    """

    key: str
    """In score tables, without a model."""
    name: str
    """As it is shown."""
    meaning: str = ""
    """What it says, in a line."""
    higher_is_better: bool = True
    number_format: str = ".3f"
    """Of a value: Python's format specification."""
    of_set: bool = False
    """Whether it scores a whole set of images, as FID does: a part of the images does not have its own."""
    share: bool = False
    """Whether the value of an image is a share of things that are right or wrong; its weight is how many there are."""
    needs_mean: bool = False
    """Whether it needs the mean feature of the training images."""
    main: bool = False
    """Whether it is drawn where no metric is asked for."""
    floors: tuple[str, ...] = ("shuffled", "blank", "zero", "mean")
    """The sources that say what a useless prediction scores."""

    def __post_init__(self) -> None:
        """Check the types, since plug-ins make metrics, and files hold them."""
        if isinstance(self.floors, list):  # as JSON has it
            object.__setattr__(self, "floors", tuple(self.floors))
        for field in fields(self):
            value, kind = getattr(self, field.name), str if field.default is MISSING else type(field.default)
            if not isinstance(value, kind) or (kind is tuple and not all(isinstance(each, str) for each in value)):
                expected = "a list of strings" if kind is tuple else f"a {kind.__name__}"
                raise TypeError(f"{field.name} of the metric {self.key!r} must be {expected}, not {value!r}")
        if not self.key or ":" in self.key:
            raise ValueError(f"a metric's key is a word without a colon, not {self.key!r}")
        self.format(0.5)

    def format(self, value: float) -> str:
        """Write a value; a zero has no sign.

        Raises:
            ValueError: the format is not valid.
        """
        try:
            return format(value, f"z{self.number_format}")
        except ValueError as error:
            raise ValueError(f"number_format of the metric {self.key!r} is {self.number_format!r}: {error}") from error


_of_image = partial(Metric, floors=("shuffled", "blank", "mean"))
_of_split = partial(Metric, share=True, floors=("shuffled", "blank"))
_of_set = partial(Metric, higher_is_better=False, of_set=True, floors=("mean",))  # shuffled, it is the same set

_METRICS = (
    _of_image("accuracy", "accuracy", "share of the pairs in which the closer point is found", share=True, main=True),
    _of_split(
        "accuracy_mean_right",
        "accuracy, mean right",
        "the same over the pairs that the map of the mean feature gets right: the height in the image tells most",
    ),
    _of_split(
        "accuracy_mean_wrong",
        "accuracy, mean wrong",
        "the same over the pairs that the map of the mean feature gets wrong: only this image can tell",
    ),
    _of_image(
        "ties",
        "ties",
        "share of the pairs in which neither point is closer; they count as wrong",
        share=True,
        higher_is_better=False,
    ),
    Metric("miou", "mIoU", "intersection over union, the mean over the classes", main=True),
    Metric("pixel_accuracy", "pixel accuracy", "share of the pixels that are given their class", share=True),
    _of_set(
        "fid",
        "FID",
        "Fréchet distance of the drawn images from the real ones on Inception",
        number_format=".2f",
        main=True,
    ),
    _of_set("kid", "KID × 1000", "kernel distance on the same, whatever the number of images"),
    _of_set(
        "frechet",
        "Fréchet distance",
        "of drawn images from the real ones, on that model's features",
        number_format="#.4g",  # features have any scale
        main=True,
    ),
    _of_set("kernel", "kernel distance × 1000", "on the same, whatever the number of images", number_format="#.4g"),
    _of_image(
        "image_cosine", "image cosine", "centred cosine of a drawn image with its real one; 0 = nothing in common"
    ),
    _of_image("cosine", "cosine", "of the whole feature maps, as published; the mean feature alone scores high"),
    _of_image("token_cosine", "token cosine", "the cosine of each token, averaged over the tokens"),
    _of_image(
        "centred_cosine",
        "centred cosine",
        "the cosine after the mean feature is taken from both; 0 = the mean feature",
        needs_mean=True,
        main=True,
    ),
    _of_image(
        "explained_variance", "explained variance", "1 = perfect, 0 = no better than the mean feature", needs_mean=True
    ),
)

METRICS = {metric.key: metric for metric in _METRICS}
"""The metrics of the package by key, in the order they are shown."""


def find_metric(key: str, others: Mapping[str, Metric] | None = None) -> Metric:
    """Give the metric of a key in a score table, with the model that the key names in its name.

    Args:
        key: as in the table.
        others: metrics that a task brought, by key. Those of the package go before them.

    Returns:
        The metric; one that nobody knows goes by its key.
    """
    known = {**(others or {}), **METRICS}
    word, _, model = key.partition(":")
    if word not in known:
        return Metric(word or "unknown", key)
    metric = known[word]
    if not model:
        return metric
    return replace(metric, name=f"{metric.name} ({model})")
