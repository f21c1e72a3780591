"""FcaFormer: ConvNeXt blocks, then attention that also sees compact tokens of the stage's earlier blocks.

Paper: arXiv 2211.07198. Reference: hkzhang91/FcaFormer@7dcd8e0 (no licence stated), classification and dense code.
Differs: queries are not made for the tokens of earlier blocks, which have no use for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from core.backbones._fcaformer_published import PUBLISHED as PUBLISHED
from core.backbones._fcaformer_published import settings
from core.errors import SettingError, ShapeError, expect_shape
from core.facts import Facts
from core.heads.classify import ClassifierHead
from core.layers import windows
from core.layers.convnext import ConvNeXtBlock
from core.layers.convs import convolve
from core.layers.linear import Linear
from core.layers.mlp import MLP
from core.layers.patches import to_channels_first
from core.layers.residual import DropPath, LayerScale, Stage, spread
from core.mixers.forward_cross import ForwardCrossAttention

FACTS = Facts(
    title="FcaFormer",
    paper="arXiv 2211.07198",
    licence="none stated",
    top1={"l1": 80.3, "l2": 83.1, "l3": 84.2, "l4": 84.9},
)
HEAD = ClassifierHead(norm=nn.LayerNorm, eps=1e-5, pool="mean", norm_first=False)


@dataclass(frozen=True)
class FcaFormerConfig:
    in_channels: int = 3
    dims: tuple[int, ...] = (64, 128, 192, 320)  # channels of each stage
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (0, 0, 6, 10)  # 0 for a stage of ConvNeXt blocks
    image_size: int | tuple[int, int] = 224  # the one size that stages without windows take
    windows: tuple[int, ...] = ()  # side of each stage's windows, 0 in stages without attention; empty: whole maps.
    # The published dense form has (0, 0, 14, 7), to which the weights for 224 pixels fit, and takes any size
    remembered: int = 12  # earlier blocks of the stage that a block sees
    mlp_ratio: float = 4.0
    outputs: tuple[int, ...] = ()  # widths of the dense form's levels, each a linear map and a norm; empty for none
    layer_scale: float = 1e-6  # its start; the authors' dense configurations begin at 1
    drop_path: float = 0.0  # of the last block; linear from 0


class FcaBlock(nn.Module):
    """Attention, a depthwise convolution without a shortcut, MLP; (B, h, w, C) and the tokens of earlier blocks.

    Gives the map and its own tokens, (B, ceil(h / 4) * ceil(w / 4), C); in the last block of a stage none.
    """

    fusable = (("local.0", "local.1"),)

    def __init__(
        self, dim: int, mixer: ForwardCrossAttention, *, ratio: float, last: bool, drop_path: float, scale: float
    ) -> None:
        super().__init__()
        self.norm1, self.token_mixer, self.scale1 = nn.LayerNorm(dim), mixer, LayerScale(dim, scale)
        self.compact = None if last else nn.Conv2d(dim, dim, 7, 4, 3, groups=dim, bias=False)
        self.local = nn.Sequential(nn.Conv2d(dim, dim, 3, 1, 1, groups=dim, bias=False), nn.BatchNorm2d(dim))
        self.norm2, self.norm3 = nn.LayerNorm(dim), nn.LayerNorm(dim)  # the published MLP has a norm of its own
        self.channel_mixer, self.scale2 = MLP(dim, ratio=ratio), LayerScale(dim, scale)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, earlier: Tensor | None) -> tuple[Tensor, Tensor | None]:
        x = x + self.drop_path(self.scale1(self.token_mixer(self.norm1(x), earlier)))
        tokens = None if self.compact is None else convolve(self.compact, x).flatten(1, 2)
        x = self.local(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x + self.drop_path(self.scale2(self.channel_mixer(self.norm3(self.norm2(x))))), tokens


class FcaStage(nn.Module):
    """Merging, then blocks that hand their tokens on; gives (B, H, W, C).

    Args:
        merge: merging of the map before.
        blocks: FcaBlocks.
        grid: rows and columns of every window, or of the one map.
        windowed: cut maps of any size into windows, anew for each block: what is missing to whole ones is padded at
            the top and left for even blocks, at the bottom and right for odd ones. Tokens go on by a window's number.
        remembered: earlier blocks that a block sees.
    """

    def __init__(
        self, merge: nn.Module, blocks: Sequence[nn.Module], grid: tuple[int, int], *, windowed: bool, remembered: int
    ) -> None:
        super().__init__()
        self.merge, self.blocks = merge, nn.ModuleList(blocks)
        self.grid, self.windowed, self.remembered = grid, windowed, remembered

    def forward(self, x: Tensor) -> Tensor:
        x = self.merge(x)
        _, H, W, C = x.shape
        h, w = self.grid
        tokens: list[Tensor] = []
        again = bool(H % h or W % w)  # else all blocks cut alike, and once is enough
        where: windows.Crop = (0, 0, H, W)
        for i, block in enumerate(self.blocks):
            if self.windowed and (again or i == 0):
                x, where = windows.pad(x, self.grid, "end" if i % 2 else "start")
                size = (x.shape[1], x.shape[2])
                x = windows.partition(x, self.grid).reshape(-1, h, w, C)
            seen = tokens[-self.remembered :]
            x, own = block(x, torch.cat(seen, 1) if seen else None)
            if own is not None:
                tokens.append(own)
            if self.windowed and (again or i == len(self.blocks) - 1):
                x = windows.crop(windows.join(x.reshape(-1, h * w, C), self.grid, size), where)
        return x


class _Convolutions(nn.Sequential):
    """Convolutions, batch norms and GELUs, (B, H, W, C) -> (B, ceil(H / s), ceil(W / s), out)."""

    def forward(self, input: Tensor) -> Tensor:
        x = input.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
        return super().forward(x).permute(0, 2, 3, 1)


class Stem(_Convolutions):
    """Two 3x3 convolutions of stride 2."""

    fusable = (("0", "1"), ("3", "4"))

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__(*_conv_norm(in_channels, dim // 2, 3, 2), nn.GELU(), *_conv_norm(dim // 2, dim, 3, 2))


class Merging(_Convolutions):
    """Pointwise to the new width, depthwise 3x3 of stride 2, pointwise."""

    fusable = (("0", "1"), ("3", "4"), ("6", "7"))

    def __init__(self, dim: int, out: int) -> None:
        middle = _conv_norm(out, out, 3, 2, groups=out)
        super().__init__(*_conv_norm(dim, out), nn.GELU(), *middle, nn.GELU(), *_conv_norm(out, out))


def _conv_norm(dim: int, out: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> tuple[nn.Module, nn.Module]:
    conv = nn.Conv2d(dim, out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return conv, nn.BatchNorm2d(out)


class Output(nn.Module):
    """What the dense form answers for a level: (B, H, W, C) -> (B, H, W, out); the next stage reads the map before."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.proj = Linear(dim, out, bias=False)
        self.norm = nn.LayerNorm(out, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x))


class FcaFormer(nn.Module):
    """Image (B, C, H, W) -> pyramid, one (B, channels[i], h, w) per stage.

    Without windows H and W are those of `image_size`; with windows any, and the first level has ceil(H / 4) rows, each
    further one half of them, rounded up; columns likewise.
    """

    def __init__(self, config: FcaFormerConfig) -> None:
        super().__init__()
        c = self.config = config
        _check(c)
        self.channels = c.outputs or c.dims
        self.strides = tuple(4 * 2**i for i in range(len(c.dims)))
        self.fixed_size = _sides(c) if any(c.heads) and not c.windows else None
        rates = spread(c.drop_path, c.depths)
        stages: list[nn.Module] = []
        for i, dim in enumerate(c.dims):
            merge = Merging(c.dims[i - 1], dim) if i else Stem(c.in_channels, dim)
            if c.heads[i]:
                grid = _grid(c, i)
                blocks = list(_blocks(c, i, grid, rates[i]))
                stages.append(FcaStage(merge, blocks, grid, windowed=bool(c.windows), remembered=c.remembered))
            else:
                convs = [
                    ConvNeXtBlock(dim, ratio=c.mlp_ratio, drop_path=rate, layer_scale=c.layer_scale)
                    for rate in rates[i]
                ]
                stages.append(Stage(merge, convs))
        self.stages = nn.ModuleList(stages)
        self.outputs = nn.ModuleList(Output(*widths) for widths in zip(c.dims, c.outputs, strict=False))
        self.apply(_start)

    def forward(self, image: Tensor) -> list[Tensor]:
        expect_shape(image, "B C H W", C=self.config.in_channels)
        size = tuple(image.shape[2:])
        if self.fixed_size and size != self.fixed_size:
            raise ShapeError(
                f"this fcaformer was built for {self.fixed_size[0]} x {self.fixed_size[1]} pixels, got {size[0]} x "
                f"{size[1]}: resize the image, or build with image_size={size}, or for any size with windows"
            )
        x, pyramid = image.permute(0, 2, 3, 1), []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            pyramid.append(to_channels_first(self.outputs[i](x) if self.outputs else x))
        return pyramid


def _check(c: FcaFormerConfig) -> None:
    lists = {"dims": c.dims, "depths": c.depths, "heads": c.heads}
    lists |= {name: values for name in ("windows", "outputs") if (values := getattr(c, name))}
    if len({len(values) for values in lists.values()}) > 1:
        counts = ", ".join(str(len(values)) for values in lists.values())
        raise SettingError(f"fcaformer: {', '.join(lists)} have one entry a stage, got {counts}")
    if c.windows and any(bool(h) != bool(w) for h, w in zip(c.heads, c.windows, strict=True)):
        raise SettingError(f"fcaformer: stages with heads, and no others, have windows: {c.heads} and {c.windows}")
    if c.remembered < 1:
        raise SettingError(f"fcaformer: a block sees at least one block before it, got remembered={c.remembered}")
    side = 4 * 2 ** (len(c.dims) - 1)
    if any(c.heads) and not c.windows and any(n % side for n in _sides(c)):
        raise SettingError(
            f"fcaformer: without windows, sides that {side} divides are needed, got image_size={c.image_size}"
        )


def _sides(c: FcaFormerConfig) -> tuple[int, int]:
    return (c.image_size, c.image_size) if isinstance(c.image_size, int) else c.image_size


def _grid(c: FcaFormerConfig, stage: int) -> tuple[int, int]:
    if c.windows:
        return c.windows[stage], c.windows[stage]
    height, width = _sides(c)
    return height // (4 * 2**stage), width // (4 * 2**stage)


def _blocks(c: FcaFormerConfig, stage: int, grid: tuple[int, int], rates: list[float]) -> Iterator[FcaBlock]:
    dim, tokens = c.dims[stage], -(-grid[0] // 4) * -(-grid[1] // 4)
    for i, rate in enumerate(rates):
        mixer = ForwardCrossAttention(dim, c.heads[stage], grid, cross=min(i, c.remembered) * tokens)
        last = i == len(rates) - 1
        yield FcaBlock(dim, mixer, ratio=c.mlp_ratio, last=last, drop_path=rate, scale=c.layer_scale)


def _start(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


L1 = FcaFormerConfig()

VARIANTS = {
    "l1": L1,
    "l2": replace(L1, dims=(96, 192, 320, 480), depths=(2, 2, 7, 2), heads=(0, 0, 10, 15), drop_path=0.1),
    "l3": replace(L1, dims=(96, 192, 320, 512), depths=(3, 6, 12, 3), heads=(0, 0, 10, 16), drop_path=0.2),
    "l4": replace(L1, dims=(128, 256, 512, 768), depths=(3, 6, 12, 3), heads=(0, 0, 16, 24), drop_path=0.4),
}

build = FcaFormer


def from_published(
    build: Mapping[str, Any], names: Mapping[str, Sequence[int]], base: FcaFormerConfig = L1
) -> FcaFormerConfig:
    """The variant of the authors' function name ("fcaformer_l1"), then the arguments, then all that names show.

    Shapes tell the size of a square image only: of another shape it is an argument, or that of `base`.
    """
    base = VARIANTS.get(str(build.get("factory", build.get("fn", ""))).lower().removeprefix("fcaformer_"), base)
    return replace(base, **settings(build, names, _sides(base), base.remembered))
