"""What a network expects of its input: channels, range, normalisation, size and how to get there from a picture."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any

COLOURS = ("red", "green", "blue")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class InputContract:
    """The input that a network was trained for.

    Attributes:
        channels: names in order; numbered where the network was not published for colour pictures.
        range: of the values before mean and std are applied.
        mean, std: per channel; None where nothing is published.
        size: rows and columns in pixels, of clips frames before them.
        resize: what is done with a picture of another size, "" where nothing is published.
        crop: rows and columns of the central part that is kept after it, None for all of it.
        source: where these come from.
    """

    channels: tuple[str, ...]
    range: tuple[float, float]
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    size: tuple[int, ...]
    resize: str
    crop: tuple[int, int] | None
    source: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_IMAGENET = (IMAGENET_MEAN, IMAGENET_STD)
_USUAL = ("*", _IMAGENET, 0.875, "ImageNet's usual evaluation")
_KINETICS = ((0.45, 0.45, 0.45), (0.225, 0.225, 0.225))

# What the systems' cards say where it differs from ImageNet's usual evaluation; the first that fits holds.
# Name pattern, mean and std, side of the crop over the resized short side (None: whole picture to the size), source.
_STATED = (
    ("swin/*_384", _IMAGENET, None, "card swin"),
    ("cswin/*_384", _IMAGENET, 1.0, "card cswin"),
    ("cswin/*", _IMAGENET, 0.9, "card cswin"),
    ("davit/large", _IMAGENET, 1.0, "card davit"),
    ("davit/*", _IMAGENET, 0.9, "card davit"),
    ("gcvit/*_???", _IMAGENET, None, "card gcvit"),
    *((f"gcvit/{v}", _IMAGENET, 1.0, "card gcvit") for v in ("xxtiny", "tiny", "base", "large")),
    ("maxvit/*_???", _HALF, None, "card maxvit"),
    ("vit/flax_*", _HALF, 0.875, "card sam: values from -1 to 1"),
    ("vit/clip_*", _CLIP, 1.0, "CLIP's own preprocessing, mean and std as in card lyrics"),
    ("vit/siglip_*", _HALF, 0.9, "timm's configuration of these weights"),
    _USUAL,
)


def published(name: str, in_channels: int, size: tuple[int, ...]) -> InputContract:
    """The input of "family/variant" at a size: as its card says, else ImageNet's usual evaluation, of clips Kinetics'.

    With other than three channels only the size is known.
    """
    if in_channels != 3:
        return unstated(in_channels, size)
    if len(size) == 3:
        return _clip(size)
    _, (mean, std), ratio, source = next(entry for entry in _STATED if fnmatchcase(name, entry[0]))
    if ratio is None or size[0] != size[1]:
        return InputContract(
            COLOURS, (0.0, 1.0), mean, std, size, f"to {size[0]} x {size[1]} pixels, bicubic", None, source
        )
    resize = f"short side to {int(size[0] / ratio + 1e-9)} pixels, bicubic"
    return InputContract(COLOURS, (0.0, 1.0), mean, std, size, resize, (size[0], size[1]), source)


def _clip(size: tuple[int, ...]) -> InputContract:
    """Frames as the Kinetics models of card uniformer-video see them in evaluation."""
    frame = (size[1], size[2])
    mean, std = _KINETICS
    if frame[0] != frame[1]:
        how, crop = f"frames to {frame[0]} x {frame[1]} pixels, bilinear without antialiasing", None
    else:
        how, crop = f"short side of the frames to {frame[0]} pixels, bilinear without antialiasing", frame
    return InputContract(COLOURS, (0.0, 1.0), mean, std, size, how, crop, "card uniformer-video, Kinetics")


def unstated(in_channels: int, size: tuple[int, ...]) -> InputContract:
    """An input of which only channels and size are known."""
    channels = tuple(f"channel {i}" for i in range(in_channels))
    return InputContract(channels, (0.0, 1.0), None, None, size, "", None, "not published for these channels")
