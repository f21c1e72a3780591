"""UniFormer's video models in their authors' names and arguments; inflation of weights of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from core.errors import SettingError
from core.layers import local_global_names as shared
from core.weights import KeyMap

_ARGUMENTS = {  # the authors' settings (UNIFORMER.EMBED_DIM ...), in small letters or short, and ours
    "embed_dim": "dims", "dims": "dims", "depth": "depths", "head_dim": "head_dim", "hd": "head_dim",
    "mlp_ratio": "mlp_ratio", "ratio": "mlp_ratio", "qkv_bias": "qkv_bias", "qkv_scale": "scale",
    "drop_depth_rate": "drop_path", "in_chans": "in_channels", "init_value": "layer_scale",
}  # fmt: skip


def inflated(value: Tensor, want: Tensor, _: nn.Module | None = None) -> Tensor:
    """A kernel of images (out, in, h, w) for clips, (out, in, t, h, w): repeated along time, divided by its length.

    A clip of one still picture is answered as the picture is, but for the zeros before and after it. A value of
    another form comes back as it is.
    """
    if value.ndim != 4 or want.ndim != 5:
        return value
    frames = want.shape[2]
    return value[:, :, None].repeat(1, 1, frames, 1, 1) / frames


PUBLISHED = (
    KeyMap(
        rename=[(r"\.t_norm\.", ".norm_time."), (r"\.t_attn\.", ".time_mixer."), *shared.RENAME],
        transform=shared.TRANSFORM,
        resize={r"\.(conv|depthwise|layers\.\d)\.weight$": inflated},
    ),
)


def arguments(build: Mapping[str, Any]) -> dict[str, Any]:
    """The authors' settings as ours; `light` for a class of light models."""
    stated = {key.lower(): value for key, value in build.items()}
    given = {ours: stated[theirs] for theirs, ours in _ARGUMENTS.items() if stated.get(theirs) is not None}
    given |= {k: tuple(given[k]) for k in ("dims", "depths") if k in given}
    if isinstance(ratios := given.get("mlp_ratio"), list | tuple):
        if len(set(ratios)) != 1:
            raise SettingError(f"uniformer_video: one MLP ratio for all stages, got {list(ratios)}")
        given["mlp_ratio"] = ratios[0]
    given |= {k: float(given[k]) for k in ("mlp_ratio", "drop_path", "layer_scale") if k in given}
    if "split" in stated:
        given["attention"] = "split" if stated["split"] else "joint"
    if "std" in stated:
        given["merging_frames"] = 3 if stated["std"] else 1
    if shares := stated.get("prune", stated.get("prune_ratio")):
        given["keep"] = _keep(shares[-2:])
    given["light"] = "light" in str(stated.get("class", "")).lower()
    return given


def _keep(stages: Sequence[Sequence[float]]) -> float | tuple[tuple[float, ...], ...]:
    """Shares of the blocks of two stages, as one number where all but the first have the same."""
    (first, *others), rest = stages
    if first == 1 and len({*others, *rest}) == 1:
        return float(next(iter((*others, *rest))))
    return tuple(tuple(map(float, stage)) for stage in stages)


def shapes(names: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Settings that published names and shapes show; those of images leave open what they say of time."""
    ours = {new: tuple(shape) for name, shape in names.items() if (new := PUBLISHED[0].name(name))}
    found = shared.shapes(ours)
    if not found:
        return {}
    deep = f"{shared.STAGE}2."
    if len(kernel := ours[f"{deep}blocks.0.position.conv.weight"]) == 5:
        found["attention"] = "split" if f"{deep}blocks.0.time_mixer.qkv.weight" in ours else "joint"
        found["merging_frames"] = ours[f"{deep}merge.conv.weight"][2]
    assert len(kernel) in (4, 5)
    return {k: v for k, v in found.items() if k != "overlap"}
