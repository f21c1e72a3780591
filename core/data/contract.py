"""What a network expects of its input: channels, range, normalisation, size and how to get there from a picture."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class InputContract:
    """The input that a network was trained for.

    Attributes:
        channels: names in order; numbered where the network was not published for colour pictures.
        range: of the values before mean and std are applied.
        mean, std: per channel; None where nothing is published.
        size: rows and columns in pixels.
        resize: what is done with a picture of another size, "" where nothing is published.
        crop: rows and columns of the central part that is kept after it, None for all of it.
        source: where these come from.
    """

    channels: tuple[str, ...]
    range: tuple[float, float]
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    size: tuple[int, int]
    resize: str
    crop: tuple[int, int] | None
    source: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


# What the systems' cards say where it is not ImageNet's usual evaluation: name pattern -> (mean, std, resized straight).
_STATED: tuple[tuple[str, float | None, bool, str], ...] = (
    ("swin/*_384", None, True, "card swin: resized straight to the size"),
    ("vit/flax_*", 0.5, False, "card sam: values from -1 to 1"),
)


def published(name: str, in_channels: int, size: tuple[int, int]) -> InputContract:
    """The input of "family/variant" at a size: as its card says, else ImageNet's usual evaluation.

    With other than three channels only the size is known.
    """
    if in_channels != 3:
        channels = tuple(f"channel {i}" for i in range(in_channels))
        return InputContract(channels, (0.0, 1.0), None, None, size, "", None, "not published for these channels")
    half, straight, source = None, False, "ImageNet's usual evaluation"
    for pattern, *stated in _STATED:
        if fnmatchcase(name, pattern):
            half, straight, source = stated  # type: ignore[assignment]
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if half is None else ((half,) * 3, (half,) * 3)
    crop = None if straight or size[0] != size[1] else size
    if crop is None:
        resize = f"to {size[0]} x {size[1]} pixels, bicubic"
    else:
        resize = f"short side to {int(256 / 224 * size[0])} pixels, bicubic"
    return InputContract(("red", "green", "blue"), (0.0, 1.0), mean, std, size, resize, crop, source)
