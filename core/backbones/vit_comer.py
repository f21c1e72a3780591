"""ViT-CoMer: a small CNN beside a plain ViT, both exchange features at four points and end as one pyramid.

Paper: arXiv 2403.07392. Reference: Traffic-X/ViT-CoMer@b57f386 (Apache-2.0), its detection and its segmentation copy,
which differ.
Differs: the plain ViT is an argument, `adapt` puts the companion beside one that is there already; `stages` are the
four exchanges, after which all levels are made together; in evaluation batch norms are part of the weights beside them.
Our reading: of the large networks width, depth, groups, the attention's heads and its inner width are published, the
class with their ViT (BEiT, relative positions) is not; here it is the plain one. The segmentation form's `field_ratio`
is stated nowhere, so it is the code's default of 6: with it this backbone has 62.8 M parameters more than ViT-Adapter's
large one, and of the published segmenters around the two (633.6 and 571 M) the first has 62.6 M more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from core.backbones._vit_comer_exchange import Exchange
from core.backbones._vit_comer_layers import LEVELS, Companion, PaddedWindows, maps_of, resized, tokens_of
from core.backbones._vit_comer_published import PUBLISHED as PUBLISHED
from core.backbones._vit_comer_published import settings
from core.config import merge
from core.errors import SettingError, ShapeError, expect_shape
from core.facts import Facts
from core.heads.classify import ClassifierHead
from core.layers.linear import linear
from core.layers.positions import resize_grid
from core.mixers.deformable import DeformableAttention, centres

HEAD = ClassifierHead(norm=None, pool="mean")  # nothing published; the levels are normed
HOST = "vit"  # the family whose module `build` takes
PATCH = 16  # pixels


@dataclass(frozen=True)
class ViTCoMerConfig:
    in_channels: int = 3
    image_size: int | tuple[int, int] = 224  # pixels that the table of positions is made for; any is taken
    dim: int = 192
    depths: tuple[int, ...] = (3, 3, 3, 3)  # blocks of the ViT inside each exchange
    heads: int = 3  # of the ViT
    mlp_ratio: float = 4.0  # of the ViT
    layer_scale: float | None = 1.0  # its start in the ViT; None for none
    windows: tuple[int, ...] = ()  # of the ViT's blocks in turn: side in patches, 0 for the whole map
    form: Literal["segmentation", "detection"] = "segmentation"  # the two published copies: level i gets what the ViT
    # had after exchange i, in detection what it has at the end; segmentation has unused layers where `to_vit` is off
    width: int = 64  # channels of the companion's stem
    field_ratio: float = 6.0  # hidden width of the layers of multiple receptive fields over dim
    exchange_mlp_ratio: float = 0.25  # hidden width of the exchanges' MLPs over dim
    deform_heads: int = 6  # of deformable attention
    deform_ratio: float = 1.0  # its inner width over dim
    points: int = 4  # that a head looks at on each map
    to_vit: tuple[bool, ...] = (True, True, True, True)  # exchanges in which the ViT takes from the companion
    to_companion: tuple[bool, ...] = (True, True, True, True)  # exchanges in which the companion takes from the ViT
    interaction: tuple[bool, ...] = (True, True, True, True)  # exchanges in which the companion's maps see each other
    extra: bool = True  # four more extractions at the end
    joined: bool = True  # the ViT's features are added to the levels
    drop_path: float = 0.0  # of the ViT's last block, linear from 0; and of every added branch


class ViTCoMer(nn.Module):
    """Image (B, C, H, W) -> four normed maps (B, dim, h, w) with strides 4, 8, 16 and 32, for dense prediction.

    H and W must be multiples of 32: another size raises ShapeError.

    Args:
        config: settings.
        host: a plain ViT (core.backbones.vit). Its patches, positions and blocks move here and its class token, its
            registers and its last norm are left behind, so hand in a copy of one that is needed elsewhere.

    Raises:
        SettingError: the host is not the network that the settings describe, or none that can be adapted.
    """

    def __init__(self, config: ViTCoMerConfig, host: Any) -> None:
        super().__init__()
        c = self.config = config
        _check(c)
        _check_host(c, host)
        self.channels, self.strides = (c.dim,) * 4, (4, 8, 16, 32)
        embed = host.stages[0].embed
        self.patches, self.positions, self.dropout = embed.patches, embed.learned, embed.dropout
        self.placed, self.grid = embed.placed, embed.grid  # rows of the table before the grid are never used
        self.blocks = host.blocks
        for i, block in enumerate(self.blocks):
            if c.windows and (window := c.windows[i % len(c.windows)]):
                block.token_mixer = PaddedWindows(block.token_mixer, window)
        self.companion = Companion(c.in_channels, c.width, c.dim)
        self.level_embedding = nn.Parameter(torch.empty(LEVELS, c.dim))
        self.stages = nn.ModuleList(Exchange(c, i) for i in range(len(c.depths)))
        self.up = nn.ConvTranspose2d(c.dim, c.dim, 2, 2)
        self.norms = nn.ModuleList(nn.BatchNorm2d(c.dim) for _ in self.channels)
        self._initialise()

    def _initialise(self) -> None:
        """The added part; the ViT keeps what it has."""
        nn.init.normal_(self.level_embedding)
        for part in (self.companion, self.stages, self.up):
            part.apply(_initialise)
        for layer in self.companion.projections:  # 1x1 convolutions to their authors
            nn.init.normal_(layer.weight, 0, (2 / self.config.dim) ** 0.5)  # type: ignore[arg-type]
        for module in self.stages.modules():
            if isinstance(module, DeformableAttention):
                module.initialise()

    def embed(self, image: Tensor) -> Tensor:
        """Image (B, C, H, W) -> patches with their positions (B, h, w, dim)."""
        x: Any = self.patches(image)
        table = self.positions[:, self.placed :].unflatten(1, self.grid)
        size = (x.shape[1], x.shape[2])
        x = x + (table if size == self.grid else resize_grid(table, size, "exact"))
        out: Tensor = self.dropout(x)
        return out

    def forward(self, image: Tensor) -> list[Tensor]:
        size = expect_shape(image, "B C H W", C=self.config.in_channels)
        H, W = size["H"], size["W"]
        if H % 32 or W % 32 or not H * W:
            raise ShapeError(f"vit_comer takes sides that 32 divides, got {H} x {W}: pad the image first")
        first, *maps = self.companion(image)
        sizes = [(H // s, W // s) for s in self.strides[1:]]
        wide = torch.promote_types(first.dtype, torch.float32)
        points = centres(sizes, dtype=wide, device=image.device)
        tokens = tokens_of([m + e for m, e in zip(maps, self.level_embedding, strict=True)])
        x, blocks, seen = self.embed(image), list(self.blocks), []
        for stage, depth in zip(self.stages, self.config.depths, strict=True):
            x, tokens = stage(x, tokens, blocks[:depth], points, sizes)
            blocks = blocks[depth:]
            seen.append(x)
        maps = maps_of(tokens, sizes)
        levels = [self._enlarged(maps[0], first), *maps]
        if self.config.joined:
            seen = seen if self.config.form == "segmentation" else [x] * 4
            levels = [level + resized(s, level.shape[1], level.shape[2]) for level, s in zip(levels, seen, strict=True)]
        return [norm(level.permute(0, 3, 1, 2)) for norm, level in zip(self.norms, levels, strict=True)]

    def _enlarged(self, x: Tensor, onto: Tensor) -> Tensor:
        """`up` of (B, h, w, C), added to (B, 2 h, 2 w, C): cells do not overlap, so it is one matrix product."""
        B, h, w, C = x.shape
        assert self.up.bias is not None
        weight = self.up.weight.permute(2, 3, 1, 0).reshape(4 * C, C)
        cells = linear(x, weight, self.up.bias.repeat(4)).view(B, h, w, 2, 2, C).transpose(2, 3)
        return (onto.view(B, h, 2, w, 2, C) + cells).reshape(onto.shape)


def _check(c: ViTCoMerConfig) -> None:
    for name in ("depths", "to_vit", "to_companion", "interaction"):
        if len(getattr(c, name)) != 4:
            raise SettingError(f"vit_comer: four exchanges, got {len(getattr(c, name))} entries in {name}")
    if min((c.image_size,) if isinstance(c.image_size, int) else c.image_size) < PATCH:
        raise SettingError(f"vit_comer: a table of positions is made for {PATCH} pixels and more, got {c.image_size}")
    if any(w < 0 for w in c.windows):
        raise SettingError(f"vit_comer: windows are sides in patches, 0 for the whole map, got {c.windows}")


def _check_host(c: ViTCoMerConfig, host: Any) -> None:
    given = getattr(host, "config", None)
    if given is None or not hasattr(host, "blocks") or not hasattr(given, "registers"):
        raise SettingError(f"vit_comer adapts a plain ViT, not {type(host).__name__}")
    wanted = {"in_channels": c.in_channels, "dim": c.dim, "depth": sum(c.depths), "heads": c.heads}
    for name, value in wanted.items():
        if getattr(given, name) != value:
            raise SettingError(f"vit_comer: the ViT has {name} {getattr(given, name)}, the settings say {value}")
    if given.patch not in (PATCH, (PATCH, PATCH)) or given.stride not in (None, PATCH, (PATCH, PATCH)):
        raise SettingError(f"vit_comer adapts a ViT with patches of {PATCH} pixels, got {given.patch}")
    if given.positions != "learned" or given.relative or given.norm_pre:
        raise SettingError("vit_comer adapts a ViT with learned positions, no relative ones, and no norm before them")


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, 0, (2 / fan_out) ** 0.5)
    if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d) and module.bias is not None:
        nn.init.zeros_(module.bias)


def build(config: ViTCoMerConfig, host: Any) -> ViTCoMer:
    """The network around a fresh plain ViT.

    Args:
        config: settings.
        host: the module of the family HOST.
    """
    c = config
    _check(c)
    base = next(iter(host.VARIANTS.values()))
    vit = replace(
        base, in_channels=c.in_channels, image_size=c.image_size, patch=PATCH, dim=c.dim, depth=sum(c.depths),
        heads=c.heads, mlp_ratio=c.mlp_ratio, layer_scale=c.layer_scale, drop_path=c.drop_path, norm=False,
    )  # fmt: skip
    return ViTCoMer(c, host.build(vit))


def adapt(vit: Any, **settings: Any) -> ViTCoMer:
    """A plain ViT with weights of its own (DeiT, AugReg, DINOv2 brought to patches of 16) under a fresh companion.

    Args:
        vit: a network of core.backbones.vit whose depth four divides; it is taken apart, see `ViTCoMer`.
        settings: of the companion; what describes the ViT is read from it.

    >>> from core import registry
    >>> adapt(registry.create("vit/tiny", depth=4), windows=(14, 0)).channels
    (192, 192, 192, 192)
    """
    given: Any = getattr(vit, "config", None)
    if not hasattr(given, "depth") or given.depth % 4:
        raise SettingError(f"vit_comer adapts a plain ViT whose depth four divides, not {type(vit).__name__}")
    config = ViTCoMerConfig(
        in_channels=given.in_channels, image_size=given.image_size, dim=given.dim, depths=(given.depth // 4,) * 4,
        heads=given.heads, mlp_ratio=given.mlp_ratio, layer_scale=given.layer_scale,
        drop_path=given.drop_path if isinstance(given.drop_path, float) else 0.0,
    )  # fmt: skip
    return ViTCoMer(merge(config, settings, kind="vit_comer setting"), vit)


SEGMENTATION = ViTCoMerConfig()
DETECTION = ViTCoMerConfig(image_size=592, windows=(14, 14, 0), form="detection", field_ratio=0.5)
SMALL: dict[str, Any] = {"dim": 384, "heads": 6, "drop_path": 0.2}
BASE: dict[str, Any] = {"dim": 768, "heads": 12, "deform_heads": 12, "deform_ratio": 0.5, "drop_path": 0.3}
LARGE: dict[str, Any] = BASE | {"dim": 1024, "depths": (6, 6, 6, 6), "heads": 16, "deform_heads": 16}

VARIANTS = {
    "seg_tiny": replace(SEGMENTATION, drop_path=0.1),
    "seg_small": replace(SEGMENTATION, field_ratio=1.5, **SMALL),
    "seg_base": replace(SEGMENTATION, field_ratio=1.0, **BASE),
    "seg_large": replace(SEGMENTATION, **LARGE),
    "det_small": replace(DETECTION, **SMALL),
    "det_base": replace(DETECTION, **BASE),
    "det_large": replace(DETECTION, **LARGE),
}
FACTS = Facts(title="ViT-CoMer", paper="arXiv 2403.07392", licence="Apache-2.0")


def from_published(
    build: Mapping[str, Any], names: Mapping[str, Sequence[int]], base: ViTCoMerConfig = VARIANTS["seg_tiny"]
) -> ViTCoMerConfig:
    """The authors' arguments as ours; what they leave open by names and shapes, the rest as in `base`.

    Which of the two published copies it is shows in the layers of multiple receptive fields: in detection their hidden
    width is half of `dim`, and where the ViT takes nothing from the companion there are none.
    """
    return replace(base, **settings(build, names, base))
