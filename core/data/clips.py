"""Which frames of a video, and which part of them, a clip takes: the rules of PySlowFast and of segment sampling.

As in UniFormer's released loaders (Sense-X/UniFormer@52a0415, arXiv 2201.04676; segments: arXiv 1608.00859). What a
training run draws at random is an argument here.
"""

from __future__ import annotations

import math
from itertools import pairwise

from core.errors import SettingError


def clip_start(length: int, frames: int, stride: int, *, clips: int = 1, clip: int = 0) -> int:
    """First frame of one of several clips spread over a video; that of a single one puts it in the middle.

    Args:
        length: of the video in frames.
        frames: of the clip.
        stride: frames of the video for each of the clip.
        clips: their number.
        clip: which, from 0.

    Raises:
        SettingError: a clip that is not one of them.
    """
    if not 0 <= clip < clips:
        raise SettingError(f"clip {clip} is not one of {clips}, which count from 0")
    spare = max(length - frames * stride, 0)
    return spare // 2 if clips == 1 else clip * (spare // (clips - 1))


def clip_frames(start: int, length: int, frames: int, stride: int) -> list[int]:
    """Indices of a clip's frames: evenly from the start to the last of frames * stride frames, both included.

    So they are a little more than the stride apart. Past the video's end its last frame is repeated.

    >>> clip_frames(0, 60, frames=8, stride=8)
    [0, 9, 18, 27, 36, 45, 54, 59]
    """
    _at_least_one(length=length, frames=frames, stride=stride)
    reach = frames * stride - 1
    return [min(max(start + reach * i // max(frames - 1, 1), 0), length - 1) for i in range(frames)]


def segments(length: int, frames: int) -> list[tuple[int, int]]:
    """First and last index of each of as many segments as the clip has frames; neighbours share their border.

    Training takes one frame of each at random, both ends included.

    >>> segments(11, 4)
    [(0, 2), (2, 5), (5, 8), (8, 10)]
    """
    _at_least_one(length=length, frames=frames)
    each = (length - 1) / frames
    borders = [round(each * i) for i in range(frames + 1)]  # halves to the even number
    return list(pairwise(borders))


def segment_frames(length: int, frames: int, *, views: int = 1, view: int = 0) -> list[int]:
    """Indices of a clip's frames, one of each segment, as far into it for each view as divides it evenly.

    Something-Something numbers its files from 1, one more than these.

    Raises:
        SettingError: a view that is not one of them.

    >>> segment_frames(11, 4)
    [1, 3, 6, 9]
    """
    if not 0 <= view < views:
        raise SettingError(f"view {view} is not one of {views}, which count from 0")
    into = int((length - 1) / frames / (views + 1) * (view + 1))
    return [first + into for first, _ in segments(length, frames)]


def short_side_to(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Rows and columns after scaling so that the shorter is `side`, the longer rounded down, if it is not yet.

    >>> short_side_to((240, 320), 224)
    (224, 298)
    """
    rows, columns = size
    if min(size) == side:
        return size
    if rows == columns:
        return side, side
    return (side, math.floor(columns / rows * side)) if rows < columns else (math.floor(rows / columns * side), side)


def crop_corner(size: tuple[int, int], side: int, position: int) -> tuple[int, int]:
    """Top and left of a square crop: 0, 1, 2 for the start, middle and end of the longer axis, the middle of the other.

    Raises:
        SettingError: another position, or frames smaller than the crop.
    """
    if position not in (0, 1, 2):
        raise SettingError(f"a crop's position is 0, 1 or 2, got {position}")
    if min(size) < side:
        raise SettingError(f"frames of {size[0]} x {size[1]} pixels have no crop of {side}")
    corner = [math.ceil((n - side) / 2) for n in size]
    longer = 0 if size[0] > size[1] else 1
    corner[longer] = (0, corner[longer], size[longer] - side)[position]
    return corner[0], corner[1]


def _at_least_one(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise SettingError(f"{name} is at least 1, got {count}")
