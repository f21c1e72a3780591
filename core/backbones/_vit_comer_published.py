"""ViT-CoMer in its authors' names and arguments: the backbone of detectors and segmenters."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from core.errors import SettingError, WeightsError
from core.layers.positions import resize_grid
from core.weights import KeyMap

_MAPS = 3  # of deformable attention
_STAGE = "backbone.stages."
_COMPANION = "backbone.companion."


def _matrix(value: Tensor) -> Tensor:
    return value.flatten(1)


def _axes(value: Tensor) -> Tensor:
    """Rows that take turns, x and y of each point, -> those of x, then those of y."""
    return value.unflatten(0, (-1, 2)).transpose(0, 1).flatten(0, 1)


def _resize_positions(value: Tensor, ours: Tensor, model: nn.Module) -> Tensor:
    """A table made for another image: the first row, of a class token, is kept, the square of the others resized."""
    network: Any = getattr(model, "backbone", model)
    side = math.isqrt(value.shape[1] - 1)
    if side * side != value.shape[1] - 1 or value.shape[2] != ours.shape[2] or network.placed != 1:
        return value  # the shapes that differ are the message
    cells = resize_grid(value[:, 1:].unflatten(1, (side, side)), network.grid, "exact")
    return torch.cat([value[:, :1], cells.flatten(1, 2)], 1)


PUBLISHED = (
    KeyMap(
        rename=[
            (r"^backbone\.", ""),  # whole detectors and segmenters
            (r"^pos_embed$", "backbone.positions"),
            (r"^level_embed$", "backbone.level_embedding"),
            (r"^patch_embed\.proj\.", "backbone.patches.conv."),
            (r"^blocks\.(\d+)\.gamma([12])$", r"backbone.blocks.\1.scale\2.scale"),
            (r"^blocks\.(\d+)\.attn\.", r"backbone.blocks.\1.token_mixer."),
            (r"^blocks\.(\d+)\.mlp\.", r"backbone.blocks.\1.channel_mixer."),
            (r"^blocks\.", "backbone.blocks."),
            *((rf"^spm\.stem\.{3 * i}\.", f"{_COMPANION}stem.{i}.conv.") for i in range(3)),
            *((rf"^spm\.stem\.{3 * i + 1}\.", f"{_COMPANION}stem.{i}.norm.") for i in range(3)),
            *((rf"^spm\.conv{i + 2}\.0\.", f"{_COMPANION}steps.{i}.conv.") for i in range(3)),
            *((rf"^spm\.conv{i + 2}\.1\.", f"{_COMPANION}steps.{i}.norm.") for i in range(3)),
            *((rf"^spm\.fc{i + 1}\.", f"{_COMPANION}projections.{i}.") for i in range(4)),
            (r"^interactions\.", _STAGE),
            (r"\.mrfp\.fc", ".fields.fc"),
            *((rf"\.mrfp\.dwconv\.dwconv{2 * i + 1}\.", f".fields.kernels.{i}.conv3.") for i in range(3)),
            *((rf"\.mrfp\.dwconv\.dwconv{2 * i + 2}\.", f".fields.kernels.{i}.conv5.") for i in range(3)),
            *((rf"\.mrfp\.dwconv\.bn{i + 1}\.", f".fields.kernels.{i}.norm.") for i in range(3)),
            # a refinement lies inside an exchange but, in the further ones, before their extraction
            (r"\.ffn_norm\.", ".refine.norm."),
            (r"\.ffn\.dwconv\.dwconv\.", ".refine.mlp.depthwise."),
            (r"\.ffn\.", ".refine.mlp."),
            (r"\.cti_tov\.gamma$", ".offer.scale"),
            (r"\.cti_tov\.query_norm\.", ".offer.norm_query."),
            (r"\.cti_tov\.feat_norm\.", ".offer.norm_cells."),
            (r"\.cti_tov\.", ".offer."),
            (r"\.cti_toc\.", ".extract."),
            (r"\.extra_CTIs\.(\d+)\.refine\.", r".extra.\1.refine."),
            (r"\.extra_CTIs\.(\d+)\.", r".extra.\1.extract."),
            (r"\.extract\.query_norm\.", ".extract.outer_query."),
            (r"\.extract\.feat_norm\.", ".extract.outer_cells."),
            (r"\.cfinter\.query_norm\.", ".norm_query."),
            (r"\.cfinter\.feat_norm\.", ".norm_cells."),
            (r"\.cfinter\.", "."),
            (r"\.attn\.sampling_offsets\.(weight|bias)$", r".attention.sampling.\1[0]"),
            (r"\.attn\.attention_weights\.(weight|bias)$", r".attention.sampling.\1[1]"),
            (r"\.attn\.value_proj\.", ".attention.value."),
            (r"\.attn\.output_proj\.", ".attention.proj."),
            (r"^up\.", "backbone.up."),
            *((rf"^norm{i + 1}\.", f"backbone.norms.{i}.") for i in range(4)),
        ],
        transform={
            r"(^|\.)spm\.fc\d\.weight$": _matrix,  # 1x1 convolutions
            r"\.sampling_offsets\.(weight|bias)$": _axes,
        },
        resize={r"^positions$": _resize_positions},
    ),
)

_ARGUMENTS = {  # the authors' constructor arguments and our settings
    "in_chans": "in_channels", "embed_dim": "dim", "num_heads": "heads", "mlp_ratio": "mlp_ratio",
    "conv_inplane": "width", "dim_ratio": "field_ratio", "cffn_ratio": "exchange_mlp_ratio",
    "deform_num_heads": "deform_heads", "deform_ratio": "deform_ratio", "n_points": "points",
    "use_extra_CTI": "extra", "add_vit_feature": "joined", "drop_path_rate": "drop_path",
}  # fmt: skip
_FLAGS = {"use_CTI_toV": "to_vit", "use_CTI_toC": "to_companion", "cnn_feature_interaction": "interaction"}
_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16}  # of a plain ViT by its width
_DETECTION = 0.5  # the detection copy's fixed hidden width over dim


def settings(build: Mapping[str, Any], names: Mapping[str, Sequence[int]], base: Any) -> dict[str, Any]:
    """Settings that the authors' arguments give, and over them what names and shapes show.

    Raises:
        WeightsError: nothing was said of the network, and the names are those of the other form than `base`'s.
        SettingError: groups of blocks that do not follow one another.
    """
    given: dict[str, Any] = {
        ours: build[theirs] for theirs, ours in _ARGUMENTS.items() if build.get(theirs) is not None
    }
    for key in ("mlp_ratio", "field_ratio", "exchange_mlp_ratio", "deform_ratio", "drop_path"):
        if key in given:
            given[key] = float(given[key])
    for theirs, ours in _FLAGS.items():
        if theirs in build:
            flag = build[theirs]
            given[ours] = (flag,) * 4 if isinstance(flag, bool) else tuple(flag)
    if (size := build.get("pretrain_size", build.get("img_size"))) is not None:
        given["image_size"] = size if isinstance(size, int) else tuple(size)
    if build.get("layer_scale") is False:
        given["layer_scale"] = None
    if build.get("interaction_indexes"):
        given["depths"] = _groups(build["interaction_indexes"])
    if "window_attn" in build or "window_size" in build:
        given["windows"] = _windows(build.get("window_attn", False), build.get("window_size", 14), sum(base.depths))
    own = [n for n in names if n.startswith("backbone.")] or list(names)  # of a detector, no part of its heads
    shapes = {n.removeprefix("backbone."): tuple(names[n]) for n in own}
    if shapes:
        given |= _seen(shapes, given, base)
        if not build and given["form"] != base.form:
            raise WeightsError(f"holds the {given['form']} form, and this is the {base.form} form")
        if "heads" not in given and given["dim"] != base.dim:
            given["heads"] = _HEADS.get(given["dim"], max(1, given["dim"] // 64))
    elif "dim_ratio" in build:
        given["form"] = "segmentation"
    return given


def _groups(indexes: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """First and last block of each group as numbers of blocks."""
    if indexes[0][0] != 0 or any(a[-1] + 1 != b[0] for a, b in pairwise(indexes)):
        raise SettingError(f"vit_comer: groups of blocks follow one another from 0, got {[list(i) for i in indexes]}")
    return tuple(group[-1] - group[0] + 1 for group in indexes)


def _windows(flags: Any, sides: Any, depth: int) -> tuple[int, ...]:
    """Sides of windows block by block, cut to the pattern that repeats."""
    flags = [flags] * depth if isinstance(flags, bool) else list(flags)
    sides = [sides] * len(flags) if sides is None or isinstance(sides, int) else list(sides)
    each = tuple(int(side or 0) if flag else 0 for flag, side in zip(flags, sides, strict=True))
    if not any(each):
        return ()
    periods = range(1, len(each) + 1)
    return next(each[:p] for p in periods if all(side == each[i % p] for i, side in enumerate(each)))


def _seen(shapes: Mapping[str, Sequence[int]], given: Mapping[str, Any], base: Any) -> dict[str, Any]:
    """Settings that published parameter names and shapes show."""
    dim = shapes["patch_embed.proj.weight"][0]
    found = {
        "in_channels": shapes["patch_embed.proj.weight"][1],
        "dim": dim,
        "mlp_ratio": _ratio(shapes["blocks.0.mlp.fc1.weight"][0], dim),
        "layer_scale": (given.get("layer_scale", base.layer_scale) or 1.0) if "blocks.0.gamma1" in shapes else None,
        "width": shapes["spm.stem.0.weight"][0],
        "extra": any(n.startswith("interactions.3.extra_CTIs.") for n in shapes),
        "to_vit": tuple(f"interactions.{i}.cti_tov.gamma" in shapes for i in range(4)),
        "to_companion": tuple(f"interactions.{i}.cti_toc.query_norm.weight" in shapes for i in range(4)),
        **_positions(shapes["pos_embed"][1], given.get("image_size", base.image_size)),
    }
    depth = 1 + max(int(m[1]) for n in shapes if (m := re.match(r"blocks\.(\d+)\.", n)))
    depths = given.get("depths", base.depths)
    if sum(depths) != depth:
        depths = (depth // 4,) * 3 + (depth - 3 * (depth // 4),)
    found["depths"] = depths
    looks = tuple(any(re.match(rf"interactions\.{i}\..*\.cfinter\.", n) for n in shapes) for i in range(4))
    silent = [not t and not (i == 3 and found["extra"]) for i, t in enumerate(found["to_companion"])]
    stated = given.get("interaction", base.interaction)  # where an exchange has no layers that could tell
    found["interaction"] = tuple(s if q else seen for s, q, seen in zip(stated, silent, looks, strict=False))
    found |= _attention(shapes, dim, given.get("points", base.points))
    return found | _fields(shapes, dim, found["to_vit"], given, base)


def _positions(rows: int, size: int | tuple[int, int]) -> dict[str, Any]:
    """The size that the table is for: the stated one, where it fits, else a square."""
    H, W = (size, size) if isinstance(size, int) else size
    if rows != (H // 16) * (W // 16) + 1:
        size = 16 * math.isqrt(rows - 1)
    return {"image_size": size}


def _attention(shapes: Mapping[str, Sequence[int]], dim: int, points: int) -> dict[str, Any]:
    """Heads and widths of the exchanges, from any of them."""
    layer = next(
        (n.removesuffix("attention_weights.weight") for n in shapes if n.endswith("attention_weights.weight")), ""
    )
    hidden = next((s[0] for n, s in shapes.items() if n.endswith(".ffn.fc1.weight")), None)
    found = {} if hidden is None else {"exchange_mlp_ratio": _ratio(hidden, dim)}
    if layer:
        heads, rest = divmod(shapes[layer + "attention_weights.weight"][0], _MAPS * points)
        if rest:
            raise WeightsError(f"attention weights that do not divide into {points} points on each of {_MAPS} maps")
        found |= {"deform_heads": heads, "deform_ratio": _ratio(shapes[layer + "value_proj.weight"][0], dim)}
    return found


def _fields(
    shapes: Mapping[str, Sequence[int]], dim: int, to_vit: Sequence[bool], given: Mapping[str, Any], base: Any
) -> dict[str, Any]:
    """Hidden width of the multi-receptive-field layers, and by it which of the two published copies this is."""
    hidden = [shapes.get(f"interactions.{i}.mrfp.fc1.weight", (0,))[0] for i in range(4)]
    if not any(hidden):
        return {"form": "detection"}
    ratio = _ratio(max(hidden), dim)
    if any(h and not t for h, t in zip(hidden, to_vit, strict=True)) or "field_ratio" in given:
        form = "segmentation"
    elif any(t and not h for h, t in zip(hidden, to_vit, strict=True)):
        raise WeightsError("an exchange to the ViT without its multi-receptive-field layer")
    elif ratio == base.field_ratio:
        form = base.form
    else:
        form = "detection" if ratio == _DETECTION else "segmentation"
    return {"field_ratio": ratio, "form": form}


def _ratio(hidden: int, dim: int) -> float:
    """Such that int(dim * ratio) is `hidden` again."""
    ratio = hidden / dim
    return ratio if int(dim * ratio) == hidden else math.nextafter(ratio, math.inf)
