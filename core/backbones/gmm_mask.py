"""Gaussian mixture masks on five small networks: attention learns how far to look, for data sets of small images.

Paper: arXiv 2309.05375 ("Toward a Deeper Understanding: RetNet Viewed through Convolution"). Reference:
CatworldLee/Gaussian-Mixture-Mask-Attention@b06b199 (no licence stated).
Differs: factors are computed once per distance, not per pair of tokens. core.mixers.gaussian_mask.with_masks lays the
same masks on other networks of the house.
Our reading: talking heads start standard normal, as in the networks that CaiT's code goes back to; heads of the depth
studies share the channels (their networks with 4 heads of 64 or patches of 2 are settings of "vit"); what an
element-wise mask is called in a file (none was published, nor recorded).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from torch import nn

from core.backbones._gmm_mask_hosts import HOSTS, Tower
from core.backbones._gmm_mask_hosts import head as head
from core.backbones._gmm_mask_published import GAUSSIAN, OTHERS, linear_patches
from core.backbones._gmm_mask_published import PUBLISHED as PUBLISHED
from core.errors import SettingError, WeightsError
from core.facts import Facts
from core.mixers.gaussian_mask import with_masks

Hosts = Literal["vit", "swin", "cait", "pit", "t2t"]
SIZES = (32, 64)


@dataclass(frozen=True)
class GMMMaskConfig:
    in_channels: int = 3
    image_size: int = 32  # pixels, 32 or 64; images are squares of this size
    host: Hosts = "vit"
    mask: Literal["gaussian", "elements", "none"] = "gaussian"  # "elements" is one trained number per pair of tokens
    kernels: int = 5  # Gaussians in each mask
    patch: int = 4  # pixels; T2T's is 4 at 32 pixels and 8 at 64
    dim: int = 192  # channels of the first stage; Swin and PiT double them from stage to stage
    depths: tuple[int, ...] = (9,)  # blocks per stage
    class_depth: int = 0  # CaiT: layers of the class token behind the others
    heads: tuple[int, ...] = (12,)
    head_dim: int | None = None  # width of a head, dim // heads by default and always in Swin
    window: int = 4  # Swin: side in cells
    mlp_ratio: float = 2.0
    drop_path: float = 0.1  # in every block alike; Swin and T2T linear from 0 to it


def build(config: GMMMaskConfig) -> Tower:
    """The plain host, and a mask on each of its attention layers but CaiT's class layers.

    Raises:
        SettingError: a size that was not published, or sides that do not divide.
    """
    c = config
    _check(c)
    tower = HOSTS[c.host](c)
    if c.mask == "none":
        return tower
    for stage, side in zip(tower.stages, tower.sides, strict=True):
        with_masks(cast(nn.Module, stage.blocks), (side, side), kind=c.mask, kernels=c.kernels, prefix=tower.carried)
    if c.host == "t2t":
        merge: Any = tower.stages[0].merge
        for i, mixer in enumerate(merge.mixers, 1):
            with_masks(mixer, (c.image_size >> i, c.image_size >> i), kind=c.mask, kernels=c.kernels)
    return tower


def _check(c: GMMMaskConfig) -> None:
    if c.image_size not in SIZES:
        raise SettingError(f"gmm_mask: image_size is one of {SIZES}, the sizes published, got {c.image_size}")
    unit = {"swin": 16 * c.patch, "pit": 4 * c.patch}.get(c.host, c.patch)
    if c.patch < 1 or c.image_size % unit:
        raise SettingError(
            f"gmm_mask: {c.host} with patch={c.patch} needs sides that {unit} divides, {c.image_size} is none"
        )
    if c.host == "t2t" and c.patch != c.image_size // 8:
        raise SettingError(f"gmm_mask: t2t at {c.image_size} pixels has patch={c.image_size // 8}, got {c.patch}")
    stages = len(c.depths)
    if len(c.heads) != stages or (stages > 1 and c.host not in ("swin", "pit")):
        raise SettingError(f"gmm_mask: {stages} depths and {len(c.heads)} heads; only swin and pit have stages")
    if (c.class_depth > 0) != (c.host == "cait"):
        raise SettingError("gmm_mask: class_depth is for cait, which needs one")
    widths = [c.dim * 2**i for i in range(stages)]
    if c.host == "swin" and c.head_dim is not None:
        raise SettingError("gmm_mask: swin's heads share its channels, leave head_dim out")
    if c.head_dim is None and any(w % h for w, h in zip(widths, c.heads, strict=True)):
        raise SettingError(f"gmm_mask: heads {c.heads} do not divide channels {widths}")


def _ratio(hidden: int, dim: int) -> float:
    """Such that int(dim * ratio) is `hidden` again."""
    ratio = hidden / dim
    return ratio if int(dim * ratio) == hidden else math.nextafter(ratio, math.inf)


VIT = GMMMaskConfig()
SWIN = replace(VIT, host="swin", patch=2, dim=96, depths=(2, 6, 4), heads=(3, 6, 12))
CAIT = replace(VIT, host="cait", dim=192, depths=(24,), class_depth=2, heads=(4,), head_dim=64)
PIT = replace(VIT, host="pit", patch=2, dim=96, depths=(2, 6, 4), heads=(2, 4, 8))
T2T = replace(VIT, host="t2t", dim=256, depths=(12,), heads=(4,))
CAIT_TINY = replace(CAIT, dim=108, mlp_ratio=_ratio(384, 108))


def _sizes(name: str, config: GMMMaskConfig) -> dict[str, GMMMaskConfig]:
    """A network for 32 pixels and, with patches twice as large, for 64."""
    return {name: config, f"{name}_64": replace(config, image_size=64, patch=2 * config.patch)}


VARIANTS = {
    **_sizes("vit", VIT),
    **_sizes("swin", SWIN),
    **_sizes("cait", CAIT),
    **_sizes("cait_tiny", CAIT_TINY),
    **_sizes("pit", PIT),
    **_sizes("t2t", T2T),
    "vit_plain": replace(VIT, mask="none"),
    "swin_plain": replace(SWIN, mask="none"),
    "cait_plain": replace(CAIT, mask="none"),
    "pit_plain": replace(PIT, mask="none"),
    "t2t_plain": replace(T2T, mask="none"),
    "vit_6": replace(VIT, depths=(6,), dim=252),
    "vit_15": replace(VIT, depths=(15,), dim=144),
    "vit_30_c72": replace(VIT, depths=(30,), dim=72),
    "vit_30_c108": replace(VIT, depths=(30,), dim=108),
    "vit_30_c192": replace(VIT, depths=(30,), dim=192),
    "vit_60": replace(VIT, depths=(60,), dim=72),
}
FACTS = Facts(
    title="Gaussian mixture mask",
    paper="arXiv 2309.05375",
    licence="none stated",
    size={name: config.image_size for name, config in VARIANTS.items()},
)
_BASES = {"vit": VIT, "swin": SWIN, "cait": CAIT, "pit": PIT, "t2t": T2T}


def from_published(
    build: Mapping[str, Any], names: Mapping[str, Sequence[int]], base: GMMMaskConfig = VIT
) -> GMMMaskConfig:
    """The host and its shape by published names and shapes; what they leave open (image size of T2T, heads of a plain
    host) from the authors' arguments, else from `base`.

    Raises:
        WeightsError: the names are of no host, or, where nothing was said of the network, of another one than `base`.
    """
    gaussian = any(n.endswith("mask.sigma") for n in names)
    maps = GAUSSIAN if gaussian else OTHERS
    host = next((h for h, keymap in maps.items() if keymap.fits(names)), None)
    if host is None:
        raise WeightsError("names of none of the networks that Gaussian masks were published on")
    if base.host != host:
        if not build:
            raise WeightsError(f"holds a network with host {host}, and this one has {base.host}")
        base = _BASES[host]
    given: dict[str, Any] = {}
    for theirs, ours in (("stochastic_depth", "drop_path"), ("drop_path_rate", "drop_path")):
        if theirs in build:
            given[ours] = float(build[theirs])
    heads = build.get("num_heads", build.get("heads"))
    if heads is not None:
        given["heads"] = tuple(heads) if isinstance(heads, list | tuple) else (heads,)
    shapes: dict[str, Sequence[int]] = {}
    for name, shape in names.items():
        if (mapped := maps[host].name(name)) is not None:
            shapes[mapped] = shape
    return replace(base, **(given | _seen(host, shapes, given.get("heads", base.heads))))


def _seen(host: str, shapes: Mapping[str, Sequence[int]], heads: tuple[int, ...]) -> dict[str, Any]:
    """What our names with published shapes tell; `heads` where they tell nothing of heads."""
    found = [m for n in shapes if (m := re.match(r"backbone\.stages\.(\d+)\.blocks\.(\d+)\.", n))]
    stages = 1 + max(int(m[1]) for m in found)
    blocks = [f"backbone.stages.{i}.blocks.0." for i in range(stages)]
    mixers = [b + ("token_mixer.attention." if host == "t2t" else "token_mixer.") for b in blocks]
    hidden, dim = shapes[blocks[0] + "channel_mixer.fc1.weight"]
    new: dict[str, Any] = {
        "depths": tuple(1 + max(int(m[2]) for m in found if int(m[1]) == i) for i in range(stages)),
        "dim": dim,
        "mlp_ratio": _ratio(hidden, dim),
        "mask": "elements" if mixers[0] + "mask.weight" in shapes else "none",
        "heads": heads,
    }
    if mixers[0] + "mask.sigma" in shapes:
        new |= {"mask": "gaussian", "kernels": shapes[mixers[0] + "mask.sigma"][0]}
    for told in ("mask.sigma", "bias_table", "mix_scores"):  # each has the heads second
        if mixers[0] + told in shapes:
            new["heads"] = tuple(shapes[m + told][1] for m in mixers)
    inner, first = shapes[mixers[0] + "proj.weight"][1], new["heads"][0]
    new["head_dim"] = None if inner == dim and dim % first == 0 else inner // first
    if host == "cait":
        layers = [m for n in shapes if (m := re.match(r"backbone\.class_blocks\.(\d+)\.", n))]
        new["class_depth"] = 1 + max(int(m[1]) for m in layers)
    if host == "swin":
        new["window"] = (math.isqrt(shapes[mixers[0] + "bias_table"][0]) + 1) // 2
    return new | (_t2t_size(shapes) if host == "t2t" else _size(shapes))


def _size(shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Channels, patch and image size by the patches' weight and the rows of positions."""
    weight = tuple(shapes["backbone.stages.0.merge.patches.conv.weight"])
    if len(weight) == 2:
        weight = tuple(linear_patches(torch.empty(weight, device="meta")).shape)
    rows = shapes["backbone.stages.0.merge.positions"][1]
    rows -= "backbone.stages.0.merge.class_token" in shapes
    return {"in_channels": weight[1], "patch": weight[2], "image_size": math.isqrt(rows) * weight[2]}


def _t2t_size(shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Each soft split halves the sides, down to 8."""
    merge = "backbone.stages.0.merge."
    mixers = sum(f"{merge}mixers.{i}.norm1.weight" in shapes for i in range(4))
    channels = shapes[merge + "mixers.0.norm1.weight"][0] // 9
    return {"in_channels": channels, "patch": 2 ** (mixers + 1), "image_size": 2 ** (mixers + 4)}
