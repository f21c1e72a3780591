"""VMamba, first generation: selective scans along rows and columns at four resolutions.

Paper: arXiv 2401.10166; as the encoder of Swin-UMamba, arXiv 2402.03302. Reference: JiarunLiu/Swin-UMamba@2c1f72e
(Apache-2.0); weights of MzeroMiko/VMamba@2ed52ea (MIT), release "vssmtiny_dp01".
Differs: nothing. Later releases of VMamba (no gate, an MLP branch, overlapping stem) are other networks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from core.errors import ShapeError, expect_shape
from core.facts import Facts
from core.heads.classify import ClassifierHead
from core.layers.patches import PatchEmbedding, PatchMerging, to_channels_first
from core.layers.residual import DropPath, Stage, spread
from core.mixers.ss2d import SS2D
from core.weights import KeyMap

FACTS = Facts(title="VMamba (first generation)", paper="arXiv 2401.10166", licence="MIT")
HEAD = ClassifierHead(norm=nn.LayerNorm, eps=1e-5, pool="mean")


@dataclass(frozen=True)
class VMambaConfig:
    in_channels: int = 3
    patch: int = 4  # pixels; Swin-UMamba's base form reads a half-size stem with 2
    dims: tuple[int, ...] = (96, 192, 384, 768)
    depths: tuple[int, ...] = (2, 2, 9, 2)
    state: int = 16  # of each scanned channel
    drop_path: float = 0.2  # of the last block; linear from 0


class VSSBlock(nn.Module):
    """A scanned residual branch and no feed-forward branch, (B, H, W, C) in and out."""

    def __init__(self, dim: int, *, state: int = 16, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.token_mixer = SS2D(dim, state=state)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.token_mixer(self.norm(x)))


class VMamba(nn.Module):
    """Image (B, C, H, W) -> pyramid, one (B, dims[i], floor(h), floor(w)) per stage, un-normed.

    Any size from `patch * 2 ** (stages - 1)` pixels a side; sides that do not divide lose the remainder.
    """

    def __init__(self, config: VMambaConfig) -> None:
        super().__init__()
        c = self.config = config
        self.channels = c.dims
        self.strides = tuple(c.patch * 2**i for i in range(len(c.dims)))
        stages = []
        for i, (dim, rates) in enumerate(zip(c.dims, spread(c.drop_path, c.depths), strict=True)):
            merge = PatchMerging(c.dims[i - 1], dim, floor=True) if i else _patches(c)
            stages.append(Stage(merge, [VSSBlock(dim, state=c.state, drop_path=rate) for rate in rates]))
        self.stages = nn.ModuleList(stages)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)

    def forward(self, image: Tensor) -> list[Tensor]:
        n = expect_shape(image, "B C H W", C=self.config.in_channels)
        if min(n["H"], n["W"]) < self.strides[-1]:
            raise ShapeError(
                f"vmamba halves {len(self.strides) - 1} times and needs at least {self.strides[-1]} pixels a side, "
                f"got {n['H']} x {n['W']}"
            )
        x, pyramid = image, []
        for stage in self.stages:
            x = stage(x)
            pyramid.append(to_channels_first(x))
        return pyramid


def _patches(c: VMambaConfig) -> PatchEmbedding:
    return PatchEmbedding(c.in_channels, c.dims[0], c.patch, norm=True)


VARIANTS = {"tiny": VMambaConfig()}

build = VMamba

_ARGUMENTS = {
    "in_chans": "in_channels", "patch_size": "patch", "depths": "depths", "d_state": "state",
    "drop_path_rate": "drop_path",
}  # fmt: skip


def from_published(
    build: Mapping[str, Any], names: Mapping[str, Sequence[int]], base: VMambaConfig = VARIANTS["tiny"]
) -> VMambaConfig:
    """The authors' arguments as ours; widths, depths, patch, channels and state are read from the shapes."""
    config = replace(base, **{ours: build[theirs] for theirs, ours in _ARGUMENTS.items() if theirs in build})
    conv = names.get("patch_embed.proj.weight")
    if conv is None:
        return replace(config, depths=tuple(config.depths))
    blocks = [n.split(".") for n in names if n.startswith("layers.") and n.endswith(".ln_1.weight")]
    count = 1 + max(int(b[1]) for b in blocks)
    return replace(
        config,
        in_channels=conv[1],
        patch=conv[2],
        dims=tuple(names[f"layers.{i}.blocks.0.ln_1.weight"][0] for i in range(count)),
        depths=tuple(1 + max(int(b[3]) for b in blocks if int(b[1]) == i) for i in range(count)),
        state=names["layers.0.blocks.0.self_attention.A_logs"][1],
    )


PUBLISHED = (
    KeyMap(
        rename=[
            (r"^patch_embed\.proj\.", "backbone.stages.0.merge.conv."),
            (r"^patch_embed\.norm\.", "backbone.stages.0.merge.norm."),
            # VMamba keeps the merging in the layer before it, Swin-UMamba in a list of its own.
            *(
                (rf"^(?:layers\.{i}\.downsample|downsamples\.{i})\.", f"backbone.stages.{i + 1}.merge.")
                for i in range(8)
            ),
            (r"^layers\.(\d+)\.blocks\.(\d+)\.", r"backbone.stages.\1.blocks.\2."),
            (r"\.ln_1\.", ".norm."),
            (r"\.self_attention\.", ".token_mixer."),
            (r"\.conv2d\.", ".conv."),
            (r"\.x_proj_weight$", ".x_proj"),
            (r"\.dt_projs_weight$", ".dt_proj"),
            (r"\.dt_projs_bias$", ".dt_bias"),
            (r"\.A_logs$", ".A_log"),
            (r"\.Ds$", ".skip"),
            (r"^norm\.", "head.norm."),
            (r"^head\.(weight|bias)$", r"head.fc.\1"),
        ],
    ),
)
