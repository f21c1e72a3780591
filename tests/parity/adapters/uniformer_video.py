"""UniFormer (video): beside the networks, which the runner serves, the frames and crops of the released loaders."""

from __future__ import annotations

from typing import Any

from core.data import clips


def check(document: dict[str, Any]) -> dict[str, float]:
    """The largest error of each kind, in frames or pixels; anything but 0 is refused."""
    errors = {kind: max(map(_error, document[kind], [kind] * len(document[kind]))) for kind in _ANSWERS}
    if any(errors.values()):
        raise AssertionError(f"off by {errors}, in frames and pixels")
    return errors


def _error(case: dict[str, Any], kind: str) -> float:
    got, want = _ANSWERS[kind](case), case[_WANTED[kind]]
    return float(max(abs(a - b) for a, b in zip(got, want, strict=True)))


def _clip(case: dict[str, Any]) -> list[int]:
    length, frames, stride = case["length"], case["frames"], case["stride"]
    start = clips.clip_start(length, frames, stride, clips=case["clips"], clip=case["clip"])
    return clips.clip_frames(start, length, frames, stride)


def _segment(case: dict[str, Any]) -> list[int]:
    indices = clips.segment_frames(case["length"], case["frames"], views=case["views"], view=case["view"])
    return [i + 1 for i in indices]  # files are numbered from 1


def _resize(case: dict[str, Any]) -> list[int]:
    return list(clips.short_side_to((case["height"], case["width"]), case["short"]))


def _crop(case: dict[str, Any]) -> list[int]:
    return list(clips.crop_corner((case["height"], case["width"]), case["size"], case["position"]))


_ANSWERS = {"clip": _clip, "segment": _segment, "resize": _resize, "crop": _crop}
_WANTED = {"clip": "indices", "segment": "numbers", "resize": "to", "crop": "top_left"}
