"""LMD-ViT: a U-net of window attention that skips the windows whose predictor sees no blur.

Paper: arXiv 2306.14268 (ICLR 2024). Reference: LeiaLi/LMD-ViT@57b529f (no licence stated; built from the description
alone). Differs: several images in a batch are each treated as if alone, where the published evaluation masks shifted
windows of all but the first wrongly; channels of the picture other than three are allowed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import lcm
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apps.deblurring._lmd_vit_block import Block
from apps.deblurring._windows import Keep, Kept, by_hand, kept
from core.errors import SettingError, ShapeError, expect_shape
from core.layers.convs import convolve

SLOPE = 0.01  # of the leaky ReLU below zero
GATE = 0.1  # the smallest value of the gate


@dataclass(frozen=True)
class LMDViTConfig:
    in_channels: int = 3
    dims: tuple[int, ...] = (32, 64, 128, 256, 512)  # of the encoder and, last, the bottleneck; halved maps between
    depths: tuple[int, ...] = (1, 2, 8, 8, 2, 8, 8, 2, 1)  # blocks of encoder, bottleneck and decoder stages
    heads: tuple[int, ...] = (1, 2, 4, 8, 16, 16, 8, 4, 2)  # of the same stages
    window: int = 8  # side in cells; windows of every other block are shifted by half of it
    nominal: int = 512  # side of the image by which a stage as small as a window gets that window and no shift
    ratio: float = 4.0  # hidden channels of the FFN over a stage's
    modulator: bool = True  # learned rows for the cells of the decoder's windows
    prune: tuple[bool, ...] = ()  # which stages have predictors, the others work on every window; none named: all
    drop_path: float = 0.1  # of the bottleneck; linear from 0 over the encoder, back to 0 over the decoder
    drawn: bool = True  # draw decisions in training; else as in evaluation, which a short training misses less
    still: bool = False  # start with a residual of zero and nearly every window kept: for a short training
    classes: ClassVar[None] = None  # it answers a picture


class Restored(NamedTuple):
    """What the network answers.

    Attributes:
        image: (B, C, H, W), about 0..1, not limited to it.
        gate: (B, 1, H, W), 0.1..1: how much of the residual was added.
        scores: for each predictor in order its logits (B, 2, h, w), keep and prune; empty where `keep` was given.
        keeps: for each decision (B, 1, windows down, windows across), 1 where a window was worked on; of shifted
            blocks in the frame of the rolled map.
        shifts: of each decision, pixels of the image by which that frame was rolled up and left.
    """

    image: Tensor
    gate: Tensor
    scores: list[Tensor]
    keeps: list[Tensor]
    shifts: tuple[int, ...] = ()

    @property
    def blur(self) -> Tensor:
        """The blur that was found, (B, 1, H, W), 0..1: the predictors' mean probability that a cell needs work.

        Each is enlarged bilinearly. Where `keep` was given, the share of its maps that kept a pixel; without any
        predictor, ones.
        """
        if not self.scores:
            return self.worked
        size = self.image.shape[-2:]
        found = [(s[:, :1] - s[:, 1:]).sigmoid() for s in self.scores]
        found = [F.interpolate(p, size=size, mode="bilinear", align_corners=False) for p in found]
        return torch.stack(found).mean(0)

    @property
    def worked(self) -> Tensor:
        """The share of the decisions that worked on each pixel, (B, 1, H, W); ones without decisions."""
        found = self.drawn()
        return torch.stack(found).mean(0) if found else torch.ones_like(self.gate)

    def drawn(self) -> list[Tensor]:
        """The decisions at the image's size and in its frame, each (B, 1, H, W)."""
        size = self.image.shape[-2:]
        large = [F.interpolate(k, size=size, mode="nearest") for k in self.keeps]
        return [k.roll((s, s), (2, 3)) if s else k for k, s in zip(large, self.shifts, strict=True)]


class Stage(nn.Module):
    """Blocks of one resolution; every other one is shifted, and those of a parity share one decision."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    @property
    def decisions(self) -> list[Block]:
        """The blocks that hold a predictor."""
        return [block for block in self._typed() if block.predictor is not None]

    def _typed(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    def forward(
        self, x: Tensor, given: Sequence[Tensor] | None = None, *, dense: bool = False
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """(B, H, W, C) -> the same, score maps, decisions; `given` are decisions in place of the predictors'."""
        scores: list[Tensor] = []
        maps: list[Tensor] = []
        plans: list[Kept] = []
        for i, block in enumerate(self._typed()):
            if i < 2:
                if block.predictor is None:
                    n = block.window
                    maps.append(x.new_ones(x.shape[0], 1, x.shape[1] // n, x.shape[2] // n))
                elif given is not None:
                    maps.append(given[i])
                else:
                    score, decision = block.decide(x)
                    scores.append(score)
                    maps.append(decision)
                if not dense:
                    plans.append(kept(maps[i], block.window, block.shift))
            x = block.dense(x, maps[i % 2]) if dense else block(x, plans[i % 2])
        return x, scores, maps if self.decisions else []


class LMDViT(nn.Module):
    """Picture (B, C, H, W), 0..1 -> Restored; H and W are multiples of `multiple` (128), nothing is padded inside.

    In evaluation windows that are not kept are not computed. In training every window is, branches are multiplied by
    the decisions, which are drawn, so that the score maps get gradients; what is kept comes out the same.

    Raises:
        SettingError: settings that do not fit one another.
        ShapeError: another number of channels, other sides.
    """

    def __init__(self, config: LMDViTConfig) -> None:
        super().__init__()
        c = self.config = config
        self.levels = len(c.dims) - 1
        for name in ("depths", "heads", *(("prune",) if c.prune else ())):
            if self.levels < 1 or len(getattr(c, name)) != 2 * self.levels + 1:
                raise SettingError(
                    f"lmd_vit: {len(c.dims)} dims are {self.levels} encoder stages and a bottleneck, which takes "
                    f"{2 * self.levels + 1} {name}, got {len(getattr(c, name))}"
                )
        sides = [min(c.window, c.nominal >> k) for k in range(self.levels + 1)]
        if min(sides) < 2:
            raise SettingError(f"lmd_vit: windows have 2 cells a side at least, got {min(sides)}; raise nominal")
        self.multiple = lcm(*(side << k for k, side in enumerate(sides)))
        rates = _rates(c.drop_path, c.depths)
        decoder = [2 * d for d in reversed(c.dims[:-1])]
        stages = []
        for i, dim in enumerate((*c.dims, *decoder)):
            if dim % c.heads[i]:
                raise SettingError(f"lmd_vit: {c.heads[i]} heads do not divide stage {i}'s {dim} channels")
            stages.append(self._stage(i, dim, rates[i]))
        self.embed = nn.Conv2d(c.in_channels, c.dims[0], 3, padding=1)
        self.encoder = nn.ModuleList(stages[: self.levels])
        self.downs = nn.ModuleList(nn.Conv2d(a, b, 4, 2, 1) for a, b in zip(c.dims[:-1], c.dims[1:], strict=True))
        self.bottleneck = stages[self.levels]
        self.decoder = nn.ModuleList(stages[self.levels + 1 :])
        below = [c.dims[-1], *decoder[:-1]]
        self.ups = nn.ModuleList(
            nn.ConvTranspose2d(a, b, 2, 2) for a, b in zip(below, reversed(c.dims[:-1]), strict=True)
        )
        self.out = nn.Conv2d(decoder[-1], c.in_channels + 1, 3, padding=1)
        self._initialise()

    def _stage(self, place: int, dim: int, rates: Sequence[float]) -> Stage:
        c = self.config
        level = self.levels - abs(place - self.levels)
        window = min(c.window, c.nominal >> level)
        shift = window // 2 if c.nominal >> level > c.window else 0
        return Stage([
            Block(
                dim, c.heads[place], window=window, shift=shift * (i % 2), ratio=c.ratio, drop_path=rate,
                modulator=c.modulator and place > self.levels, predictor=i < 2 and (not c.prune or c.prune[place]),
                drawn=c.drawn,
            )
            for i, rate in enumerate(rates)
        ])  # fmt: skip

    @torch.no_grad()
    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        if self.config.still:
            for p in self.out.parameters():
                nn.init.zeros_(p)
            for block in (b for stage in self.stages() for b in stage.decisions):
                assert block.predictor is not None
                block.predictor.out3.bias.copy_(torch.tensor([1.5, -1.5]))  # 95 per cent of them

    def stages(self) -> list[Stage]:
        """Encoder, bottleneck, decoder, in the order of their decisions."""
        return [s for s in (*self.encoder, self.bottleneck, *self.decoder) if isinstance(s, Stage)]

    def grids(self, height: int, width: int) -> list[tuple[int, int]]:
        """Rows and columns of windows of each decision, in order, for an image of this size."""
        found = []
        for i, stage in enumerate(self.stages()):
            level = self.levels - abs(i - self.levels)
            found += [(height // (b.window << level), width // (b.window << level)) for b in stage.decisions]
        return found

    @property
    def shifts(self) -> tuple[int, ...]:
        """Of each decision, the roll of its frame in pixels of the image."""
        levels = [self.levels - abs(i - self.levels) for i in range(2 * self.levels + 1)]
        return tuple(b.shift << k for k, s in zip(levels, self.stages(), strict=True) for b in s.decisions)

    def forward(self, image: Tensor, keep: Keep = None, *, dense: bool = False) -> Restored:
        """Restore pictures.

        Args:
            image: (B, C, H, W).
            keep: in place of the predictors' decisions: the share of the windows to work on, 0..1, spread by a fixed
                pseudo-random order; or a map for each decision like those of `Restored.keeps`.
            dense: work on every window and mask the results, so that no shape depends on values: the same answer.
        """
        n = expect_shape(image, "B C H W", C=self.config.in_channels)
        if n["H"] % self.multiple or n["W"] % self.multiple or not min(n.values()):
            raise ShapeError(
                f"lmd_vit takes sides that are multiples of {self.multiple}, got {n['H']} x {n['W']}; pad the image"
            )
        dense = dense or self.training or image.device.type == "meta"
        given = by_hand(keep, self.grids(n["H"], n["W"]), image)
        scores: list[Tensor] = []
        keeps: list[Tensor] = []

        def run(stage: nn.Module, x: Tensor) -> Tensor:
            assert isinstance(stage, Stage)
            mine = None if given is None else given[len(keeps) : len(keeps) + len(stage.decisions)]
            x, found, decided = stage(x, mine, dense=True) if dense else _pruned(stage, x, mine)
            scores.extend(found)
            keeps.extend(decided)
            return x

        x = F.leaky_relu(self.embed(image).permute(0, 2, 3, 1), SLOPE).contiguous()
        skips = []
        for stage, down in zip(self.encoder, self.downs, strict=True):
            skips.append(run(stage, x))
            assert isinstance(down, nn.Conv2d)
            x = convolve(down, skips[-1])
        x = run(self.bottleneck, x)
        for up, stage in zip(self.ups, self.decoder, strict=True):
            x = run(stage, torch.cat([up(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1), skips.pop()], -1))
        answer = convolve(self.out, x).permute(0, 3, 1, 2)
        gate = answer[:, -1:].sigmoid().clamp_min(GATE)
        return Restored(image + answer[:, :-1] * gate, gate, scores, keeps, self.shifts)

    def scales(self, image: Tensor) -> list[Tensor]:
        """The restored picture, as a list of one, for core.facts_table."""
        return [self(image).image]


class Dense(nn.Module):
    """For export: pictures (B, C, H, W) -> pictures and blur (B, C + 1, H, W); no shape depends on values."""

    def __init__(self, network: LMDViT) -> None:
        super().__init__()
        self.network = network
        self.multiple = network.multiple

    def forward(self, image: Tensor) -> Tensor:
        found = self.network(image, dense=True)
        return torch.cat([found.image, found.blur], 1)


@torch.compiler.disable  # type: ignore[untyped-decorator]  # the number of windows is another for every image
def _pruned(stage: Stage, x: Tensor, given: Sequence[Tensor] | None) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """A stage in the form that skips windows."""
    found: tuple[Tensor, list[Tensor], list[Tensor]] = stage(x, given)
    return found


def _rates(top: float, depths: Sequence[int]) -> list[list[float]]:
    """Drop-path rates of every block: 0 to `top` over the encoder, `top` in the bottleneck, back to 0."""
    half = len(depths) // 2
    before, after = sum(depths[:half]), sum(depths[half + 1 :])
    flat = [top * i / max(before - 1, 1) for i in range(before)] + [top] * depths[half]
    flat += [top * i / max(after - 1, 1) for i in reversed(range(after))]
    rates = iter(flat)
    return [[next(rates) for _ in range(depth)] for depth in depths]
