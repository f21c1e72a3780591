"""LITv2: convolutional MLPs at high resolution, high and low frequency attention below, deformable merging between.

Paper: arXiv 2205.13213. Reference: ziplab/LITv2@7501c86 (Apache-2.0), its classification and its dense code.
Differs: the classification form takes any size by the dense code's padding; at the published sizes it is the published
function. Images smaller than 29 pixels leave the last merging nothing and are refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.errors import SettingError, ShapeError, expect_shape
from core.facts import Facts
from core.heads.classify import ClassifierHead
from core.layers.convs import convolve, scale_and_shift
from core.layers.gelu import GELU
from core.layers.linear import Linear, linear
from core.layers.patches import PatchEmbedding, to_channels_first
from core.layers.residual import Block, DropPath, Stage, spread
from core.mixers.high_low import HiLoAttention, low_heads
from core.weights import KeyMap

FACTS = Facts(
    title="LITv2",
    paper="arXiv 2205.13213",
    licence="Apache-2.0",
    top1={"small": 82.0, "medium": 83.3, "base": 83.6, "base_384": 84.7},
    size={"base_384": 384},
)
HEAD = ClassifierHead(norm=nn.LayerNorm, eps=1e-5, pool="mean")


@dataclass(frozen=True)
class LITv2Config:
    in_channels: int = 3
    dim: int = 96  # channels of stage 1; each stage doubles them
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)  # unused in stages without attention
    windows: tuple[int, ...] = (0, 0, 2, 1)  # side in tokens, per stage; 1 is plain attention, 0 none
    alpha: float = 0.9  # share of the heads that see window means, where the window is larger than 1
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    norms: tuple[int, ...] = ()  # levels with an output LayerNorm; published detection has 1 to 3, segmentation all
    drop_path: float = 0.0  # of the last block; linear from 0
    dropout: float = 0.0  # inside the MLPs


class DepthwiseMLP(nn.Module):
    """Linear, depthwise 3x3 convolution, GELU, Linear on a map: (B, H, W, C) -> the same."""

    def __init__(self, dim: int, *, ratio: float, dropout: float) -> None:
        super().__init__()
        inner = int(dim * ratio)
        self.fc1 = Linear(dim, inner)
        self.conv = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.act = GELU()
        self.fc2 = Linear(inner, dim)
        self.dropout = nn.Dropout(dropout)
        nn.init.normal_(self.conv.weight, std=(2 / 9) ** 0.5)
        assert self.conv.bias is not None
        nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.fc2(self.dropout(self.act(convolve(self.conv, self.fc1(x))))))


class ConvolutionalBlock(nn.Module):
    """Pre-norm residual MLP without a token mixer beside its convolution: (B, H, W, C) -> the same."""

    def __init__(self, dim: int, channel_mixer: nn.Module, *, drop_path: float) -> None:
        super().__init__()
        self.norm2, self.channel_mixer = nn.LayerNorm(dim), channel_mixer
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.channel_mixer(self.norm2(x)))


class DeformableMerging(nn.Module):
    """2x2 deformable convolution with stride 2, batch norm, GELU: (B, H, W, C) -> (B, H // 2, W // 2, out).

    Each of the four taps reads the map bilinearly at its own place plus an offset (dy, dx) in cells, which a plain 2x2
    convolution of the same cells gives (arXiv 1703.06211, 2.1); cells outside the map are zero. Odd sides lose the last
    row or column as places, while offsets still reach it.
    """

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.offsets = nn.Conv2d(dim, 8, 2, stride=2)
        self.conv = nn.Conv2d(dim, out, 2, stride=2)
        self.norm = nn.BatchNorm2d(out)
        for value in self.offsets.parameters():
            nn.init.zeros_(value)

    def forward(self, x: Tensor) -> Tensor:
        B, H, W, C = x.shape
        h, w = H // 2, W // 2
        # 2x2 cells that do not overlap: both convolutions are matrix products
        cells = x[:, : 2 * h, : 2 * w].reshape(B, h, 2, w, 2, C).transpose(2, 3).reshape(B, h, w, 4 * C)
        offsets = linear(cells, _matrix(self.offsets), self.offsets.bias).unflatten(-1, (4, 2))
        taps = sample(x, *_places(offsets)).flatten(-2)
        weight, bias = _matrix(self.conv), self.conv.bias
        assert bias is not None
        if self.training:
            x = self.norm(F.linear(taps, weight, bias).permute(0, 3, 1, 2))
            return F.gelu(x.permute(0, 2, 3, 1))
        scale, shift = scale_and_shift(self.norm)
        return linear(taps, weight * scale[:, None], bias * scale + shift, "gelu")


def _matrix(conv: nn.Conv2d) -> Tensor:
    """A 2x2 convolution's weight for cells laid out (row, column, channel): (out, 4 C)."""
    return conv.weight.permute(0, 2, 3, 1).flatten(1)


def _places(offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns to read, (B, h, w, 4) each, from offsets (B, h, w, 4, 2); float32 at least."""
    _, h, w = offsets.shape[:3]
    offsets = offsets.to(torch.promote_types(offsets.dtype, torch.float32))  # bfloat16 cannot say 33.25
    row = torch.arange(2 * h, device=offsets.device, dtype=offsets.dtype).reshape(h, 1, 2, 1)
    column = torch.arange(2 * w, device=offsets.device, dtype=offsets.dtype).reshape(1, w, 1, 2)
    rows, columns = (t.expand(h, w, 2, 2).reshape(h, w, 4) for t in (row, column))
    return rows + offsets[..., 0], columns + offsets[..., 1]


def sample(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """A map (B, H, W, C) read bilinearly at fractional cells (B, ...) -> (B, ..., C); zeros outside the map."""
    B, H, W, C = x.shape
    rows, columns = rows.clamp(-1, H), columns.clamp(-1, W)  # from there on nothing is seen
    top, left = rows.floor(), columns.floor()
    down, right = rows - top, columns - left
    first = torch.arange(B, device=x.device).reshape(B, *[1] * (rows.ndim - 1)) * (H * W)
    flat = x.reshape(B * H * W, C)
    out: Tensor | None = None
    for y, above in ((top, 1 - down), (top + 1, down)):
        for z, beside in ((left, 1 - right), (left + 1, right)):
            inside = (y >= 0) & (y < H) & (z >= 0) & (z < W)
            index = first + y.long().clamp(0, H - 1) * W + z.long().clamp(0, W - 1)
            weight = (above * beside * inside).to(x.dtype)
            part = flat.index_select(0, index.reshape(-1)).reshape(*index.shape, C) * weight[..., None]
            out = part if out is None else out + part
    assert out is not None
    return out


class LITv2(nn.Module):
    """Image (B, C, H, W) -> pyramid, one (B, channels[i], h, w) per stage, for any H and W from 29 up.

    Sides are ceil(H / 4), then halved and rounded down. In the dense forms the levels of `norms` are normed; the
    un-normed map goes on.
    """

    def __init__(self, config: LITv2Config) -> None:
        super().__init__()
        c = self.config = config
        if not len(c.depths) == len(c.heads) == len(c.windows):
            raise SettingError(f"litv2_hilo: {len(c.depths)} depths, {len(c.heads)} heads and {len(c.windows)} windows")
        self.channels = tuple(c.dim * 2**i for i in range(len(c.depths)))
        self.strides = tuple(4 * 2**i for i in range(len(c.depths)))
        rates = spread(c.drop_path, c.depths)
        stages = []
        for i, dim in enumerate(self.channels):
            embedding = PatchEmbedding(c.in_channels, dim, 4, pad=True, norm=True)
            merge = DeformableMerging(dim // 2, dim) if i else embedding
            stages.append(Stage(merge, [_block(c, i, dim, rate) for rate in rates[i]]))
        self.stages = nn.ModuleList(stages)
        self.norms = nn.ModuleList(
            nn.LayerNorm(dim) if i in c.norms else nn.Identity() for i, dim in enumerate(self.channels)
        )
        self.apply(_initialise)

    def forward(self, image: Tensor) -> list[Tensor]:
        size = expect_shape(image, "B C H W", C=self.config.in_channels)
        least = self.strides[-1] - 3  # each merging needs two rows and columns
        if size["H"] < least or size["W"] < least:
            raise ShapeError(
                f"litv2_hilo: an image of {size['H']} x {size['W']} pixels is too small, sides start at {least}"
            )
        x, pyramid = image, []
        for stage, norm in zip(self.stages, self.norms, strict=True):
            x = stage(x)
            pyramid.append(to_channels_first(norm(x)))
        return pyramid


def _block(c: LITv2Config, stage: int, dim: int, drop_path: float) -> nn.Module:
    mlp = DepthwiseMLP(dim, ratio=c.mlp_ratio, dropout=c.dropout)
    if not c.windows[stage]:
        return ConvolutionalBlock(dim, mlp, drop_path=drop_path)
    mixer = HiLoAttention(dim, c.heads[stage], window=c.windows[stage], alpha=c.alpha, qkv_bias=c.qkv_bias)
    return Block(dim, mixer, mlp, drop_path=drop_path)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


SMALL = LITv2Config(drop_path=0.2)
BASE = LITv2Config(dim=128, depths=(2, 2, 18, 2), heads=(4, 8, 16, 32), drop_path=0.5)

VARIANTS = {
    "small": SMALL,
    "medium": replace(SMALL, depths=(2, 2, 18, 2), drop_path=0.3),
    "base": BASE,
    "base_384": BASE,
}

build = LITv2

_ARGUMENTS = {  # the authors' constructor arguments and our settings
    "in_chans": "in_channels", "embed_dim": "dim", "depths": "depths", "num_heads": "heads", "local_ws": "windows",
    "alpha": "alpha", "mlp_ratio": "mlp_ratio", "qkv_bias": "qkv_bias", "drop_path_rate": "drop_path",
    "drop_rate": "dropout",
}  # fmt: skip


def from_published(
    build: Mapping[str, Any], names: Mapping[str, Sequence[int]], base: LITv2Config = SMALL
) -> LITv2Config:
    """The authors' constructor arguments as ours; what they leave open by parameter names and shapes.

    Heads that nobody states are those of `base` where it has the same width, else 32 channels wide as in every
    published variant. No weight shows the size of a window, only whether there is attention.
    """
    if build.get("patch_size", 4) != 4:
        raise SettingError(f"litv2_hilo: published networks have patches of 4 pixels, got {build['patch_size']}")
    given = _shapes(names) if names else {}
    given |= {ours: build[theirs] for theirs, ours in _ARGUMENTS.items() if theirs in build}
    given |= {k: tuple(given[k]) for k in ("depths", "heads", "windows") if k in given}
    config = replace(base, **given)
    if "heads" not in given and (config.dim, len(config.depths)) != (base.dim, len(base.heads)):
        config = replace(config, heads=tuple(max(1, config.dim * 2**i // 32) for i in range(len(config.depths))))
    return _attention(config, names, stated=frozenset(given)) if names else config


def _shapes(names: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Settings that published names and shapes show, but for those of the attention."""
    first = names["patch_embed.proj.weight"]
    depths: list[int] = []
    while f"layers.{len(depths)}.blocks.0.norm2.weight" in names:
        blocks = {n.split(".")[3] for n in names if n.startswith(f"layers.{len(depths)}.blocks.")}
        depths.append(len(blocks))
    norms = tuple(i for i in range(len(depths)) if f"norm{i}.weight" in names)
    biases = [n for n in names if n.endswith(("attn.l_q.bias", "attn.h_qkv.bias"))]
    weights = [n for n in names if n.endswith(("attn.l_q.weight", "attn.h_qkv.weight"))]
    return {
        "in_channels": first[1],
        "dim": first[0],
        "depths": tuple(depths),
        "mlp_ratio": names["layers.0.blocks.0.mlp.fc1.weight"][0] / first[0],
        **({"qkv_bias": bool(biases)} if weights else {}),
        **({} if not norms and "norm.weight" not in names else {"norms": norms}),
    }


def _attention(c: LITv2Config, names: Mapping[str, Sequence[int]], *, stated: frozenset[str]) -> LITv2Config:
    """`c` with windows and alpha as the attention's names and shapes have them, where the arguments leave them open."""
    sides, shares = [], {}
    for i in range(len(c.depths)):
        block, dim = f"layers.{i}.blocks.0.attn.", c.dim * 2**i
        low = names.get(block + "l_q.weight", (0,))[0]
        if not any(n.startswith(block) for n in names):
            sides.append(0)
            continue
        known = c.windows[i] if i < len(c.windows) else 0
        sides.append(known if known > 1 or (known == 1 and low == dim) else 2 if low < dim else 1)
        if sides[i] > 1:
            shares[i] = low * c.heads[i] // dim
    if "windows" not in stated:
        c = replace(c, windows=tuple(sides))
    if "alpha" not in stated and shares:
        # The same heads come from many shares: the variant's own if it serves, then round ones.
        fits = [a for a in (c.alpha, *(n / 20 for n in range(21))) if _gives(a, c.heads, shares)]
        i, low = next(iter(shares.items()))
        c = replace(c, alpha=fits[0] if fits else min(1.0, (low + 0.5) / c.heads[i]))
    return c


def _gives(alpha: float, heads: Sequence[int], shares: Mapping[int, int]) -> bool:
    return all(low_heads(heads[i], alpha, 2) == low for i, low in shares.items())


PUBLISHED = (
    KeyMap(
        rename=[
            (r"^patch_embed\.proj\.", "backbone.stages.0.merge.conv."),
            (r"^patch_embed\.norm\.", "backbone.stages.0.merge.norm."),
            *((rf"^layers\.{i}\.downsample\.", f"backbone.stages.{i + 1}.merge.") for i in range(8)),
            (r"\.dconv\.conv_offset\.", ".offsets."),
            (r"\.merge\.dconv\.", ".merge.conv."),
            (r"\.norm_layer\.", ".norm."),
            (r"^layers\.(\d+)\.blocks\.", r"backbone.stages.\1.blocks."),
            (r"\.attn\.l_", ".token_mixer.low_"),
            (r"\.attn\.h_", ".token_mixer.high_"),
            (r"\.mlp\.dwconv\.dwconv\.", ".channel_mixer.conv."),
            (r"\.mlp\.", ".channel_mixer."),
            (r"^norm(\d)\.", r"backbone.norms.\1."),
            (r"^norm\.", "head.norm."),
            (r"^head\.(weight|bias)$", r"head.fc.\1"),
        ],
    ),
)
