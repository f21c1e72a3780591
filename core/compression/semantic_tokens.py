"""Semantic tokens put on a network that exists: fewer tokens for the middle and the end of it.

Paper: arXiv 2303.08685 (STViT). `semantic_vit` and `plain_semantic_swin` are its plain form, which has no published
code; "Our reading:" marks what the paper leaves open. `semantic_swin` is STViT-R, with the blocks that changsn/STViT-R
(MIT) published. All take over the weights of the blocks that they replace; the result approximates the network, and is
made to be trained.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.compression._semantic_blocks import cross_attention, in_windows, take, token_block, window_stage
from core.errors import SettingError, ShapeError
from core.layers import windows
from core.layers.linear import Linear
from core.layers.residual import LayerScale
from core.mixers.dumbbell import ROUND, DenseDumbbell, Dumbbell, DumbbellSettings
from core.mixers.semantic_tokens import Mask, NeighbourBlock, TokenBlock, key_mask, pooled

HIDDEN = -100.0  # logit of a padded cell in pooling


class WeightedPooling(nn.Module):
    """Learned means of the cells of a map: (B, H, W, C) -> (B, side * side, C), row-major.

    The map is padded with zeros on all sides to side x side parts; a part's cells are weighed by softmax over one
    logit each, of a depthwise 3x3 convolution, LayerNorm, GELU and a linear layer, padded cells by -100 (the authors'
    description of what they did on DeiT: 16 parts of 4x4 cells out of 14x14, padded by 1).

    Our reading: the last layer starts at zero, so that training starts from plain means.

    Raises:
        ShapeError: in `forward`, where the map is so small that a part would lie in the padding.
    """

    def __init__(self, dim: int, side: int = 4) -> None:
        super().__init__()
        self.side = side
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm = nn.LayerNorm(dim)
        self.fc = Linear(dim, 1)
        nn.init.zeros_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        B, H, W, C = x.shape
        logits = self.fc(F.gelu(self.norm(self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))))
        padded, (top, left, _, _) = windows.pad(x, (self.side, self.side), "centre")
        h, w = padded.shape[1] // self.side, padded.shape[2] // self.side
        below, right = padded.shape[1] - H - top, padded.shape[2] - W - left
        if below >= h or right >= w:
            raise ShapeError(f"a map of {H} x {W} cells is too small for {self.side} x {self.side} semantic tokens")
        logits = F.pad(logits, (0, 0, left, right, top, below), value=HIDDEN)
        weights = windows.partition(logits, (h, w)).softmax(1)  # (B * parts, h * w, 1)
        return torch.matmul(weights.transpose(1, 2), windows.partition(padded, (h, w))).reshape(B, -1, C)


class SemanticViT(nn.Module):
    """A plain ViT on semantic tokens: image (B, C, H, W) -> logits (B, classes), without a head tokens (B, N, dim).

    The first `after` blocks see every token; pooled patches s then go through two blocks, whose keys are all tokens X
    and, in the second, s and X, its queries s + G with learned global centres G; the other blocks see s alone, and
    the mean of their tokens is classified.

    Our reading: the two blocks take over those that stand there in the network, so the depth stays; class and
    distillation tokens and registers are keys like patches and end there; a network with two heads answers with the
    mean of both on the mean token.

    Args:
        model: the network, or a classifier around it; copied.
        side: rows and columns of the tokens' grid.
        after: blocks that see every token.

    Raises:
        SettingError: for a network that is not a plain ViT, that is not deep enough, or whose attention is tied to a
            grid of patches.
    """

    def __init__(self, model: nn.Module, *, side: int = 4, after: int = 4) -> None:
        super().__init__()
        model = copy.deepcopy(model)
        vit: Any = getattr(model, "backbone", model)
        if not (hasattr(vit, "tokens") and hasattr(vit, "prefix") and len(vit.stages) == 1):
            raise SettingError(f"semantic tokens of this form go on a plain ViT, not on {type(vit).__name__}")
        blocks = list(vit.blocks)
        if not 0 <= after <= len(blocks) - 2:
            raise SettingError(f"{after} blocks and two that make semantic tokens do not fit in {len(blocks)}")
        if any(block.token_mixer.bias_table is not None for block in blocks):
            raise SettingError("semantic tokens have no place on the grid that relative position biases are made for")
        self.prefix: int = vit.prefix
        self.embed = vit.stages[0].embed
        self.early = nn.Sequential(*blocks[:after])
        like = blocks[0].norm1.weight
        self.pool = WeightedPooling(like.shape[0], side).to(like)
        self.generate, self.refine = (token_block(block) for block in blocks[after : after + 2])
        self.centres = nn.Parameter(torch.empty(1, side * side, like.shape[0]).to(like))
        nn.init.trunc_normal_(self.centres, std=0.02)
        self.late = nn.Sequential(*blocks[after + 2 :])
        self.norm = vit.norm
        self.head: nn.Module | None = getattr(model, "head", None)
        self.train(model.training)

    def tokens(self, image: Tensor) -> Tensor:
        """Semantic tokens after the final norm, (B, side * side, dim), row-major."""
        x, size = self.embed(image)
        x = self.early(x)
        s = self.generate(self.pool(x[:, self.prefix :].unflatten(1, size)), x)
        s = self.refine(s + self.centres, torch.cat([s, x], 1))
        out: Tensor = self.norm(self.late(s))
        return out

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.tokens(image)
        if self.head is None:
            return tokens
        # Whichever tokens the head looks at (the class token, both heads' tokens, the mean of patches), it finds this.
        logits: Tensor = self.head(tokens.mean(1, keepdim=True).expand(-1, self.prefix + 1, -1))
        return logits


def semantic_vit(model: nn.Module, *, side: int = 4, after: int = 4) -> SemanticViT:
    """STViT on a plain ViT; see `SemanticViT`. 16 tokens after 4 of 12 blocks save 58 per cent of DeiT's MACs.

    >>> from core import registry
    >>> vit = registry.create("vit/tiny", classes=10, depth=6)
    >>> tuple(semantic_vit(vit).tokens(torch.zeros(2, 3, 224, 224)).shape)
    (2, 16, 192)
    """
    return SemanticViT(model, side=side, after=after)


def semantic_swin(
    model: nn.Module, *, stage: int = 2, dense: bool = False, sample: int = 3, layer_scale: float = 1e-5,
    mask: Mask = "published",
) -> nn.Module:  # fmt: skip
    """STViT-R on a Swin: a copy of the network whose stage runs on semantic tokens in rounds of six blocks.

    The first block of each round stays. The other five keep their norms, MLPs, projections and drop paths; their
    position biases go, and layer scale comes.

    Args:
        model: the network, or a classifier around it, with `stages` of window-attention blocks.
        stage: whose number of blocks is a multiple of six.
        dense: the published detection form, which takes any size; else the classification form, whose stage takes a
            map of 2 x 2 windows of 7 cells (the third of a Swin at 224 x 224 pixels) and no other.
        sample: side of a window's tokens.
        layer_scale: of the five blocks, at the start. The published 1e-5 makes them nearly nothing before training.
        mask: of the dense form; see DumbbellSettings.

    Raises:
        SettingError: for a network without such a stage.
    """
    out = copy.deepcopy(model)
    backbone: Any = getattr(out, "backbone", out)
    old, blocks = window_stage(backbone, stage)
    if len(blocks) % ROUND:
        raise SettingError(f"stage {stage} has {len(blocks)} blocks, which are no rounds of {ROUND}")
    mixer = blocks[0].token_mixer
    settings = DumbbellSettings(
        blocks[0].norm1.weight.shape[0], mixer.heads, window=mixer.window[0], sample=sample, layer_scale=layer_scale,
        mask=mask,
    )  # fmt: skip
    kind = DenseDumbbell if dense else Dumbbell
    new = kind(old.merge, blocks[::ROUND], settings, [0.0] * len(blocks))
    for i, (ours, theirs) in enumerate(zip(new.blocks, blocks, strict=True)):
        if i % ROUND:
            assert isinstance(ours, TokenBlock)
            take(ours, theirs)
            for name in ("scale1", "scale2"):
                setattr(ours, name, LayerScale(settings.dim, layer_scale).to(theirs.norm1.weight))
    backbone.stages[stage] = new.train(old.training)
    return out


class WindowTokens(nn.Module):
    """A stage of a plain STViT on Swin: (B, H, W, C) of the stage before -> grid of tokens (B, h, w, C).

    Args:
        merge: what brings the map there.
        early: blocks on the map.
        generate, refine: blocks that make the tokens of what lies around their window.
        late: blocks on the tokens, whose windows hold `side` x `side` of them.
        side: rows and columns of a window's tokens.
    """

    def __init__(
        self, merge: nn.Module, early: list[nn.Module], generate: NeighbourBlock, refine: NeighbourBlock,
        late: list[nn.Module], side: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.side, self.window = side, generate.theirs
        self.merge, self.early, self.late = merge, nn.Sequential(*early), nn.Sequential(*late)
        self.generate, self.refine = generate, refine

    def forward(self, x: Tensor) -> Tensor:
        x, (_, _, H, W) = windows.pad(self.early(self.merge(x)), (self.window, self.window), "end")
        size = (x.shape[1], x.shape[2])
        missing = (size[0] - H, size[1] - W)
        s = pooled(x, self.window, self.side)
        for block in (self.generate, self.refine):
            mask = key_mask(size, missing, block.size, self.window, published=False, device=x.device)
            s = block(s, x, mask)
        return self.late(s)


def plain_semantic_swin(model: nn.Module, *, stage: int = 2, side: int = 4, after: int = 2) -> nn.Module:
    """Plain STViT on a Swin: a copy of the network that ends on side x side tokens per window.

    Our reading: `after` blocks of the stage see the map; two that stood there next make the tokens, by pooling each
    window and attending to its surroundings of two and of three windows' sides, as the published dense STViT-R does,
    but with everything outside the map hidden; from there on blocks work on the grid of tokens, merged and shifted as
    the map was, in windows that hold as many tokens as one window's, their bias tables resized bicubically. The network
    is for classification: its last levels are no longer maps at their strides.

    Args:
        model: the network, or a classifier around it, with `stages` of window-attention blocks.
        stage: where tokens begin.
        side: rows and columns of a window's tokens.
        after: blocks of that stage that still see the map.

    Raises:
        SettingError: for a network without such a stage, or with too few blocks in it.
    """
    out = copy.deepcopy(model)
    backbone: Any = getattr(out, "backbone", out)
    old, blocks = window_stage(backbone, stage)
    if not 0 <= after <= len(blocks) - 2:
        raise SettingError(f"{after} blocks and two that make semantic tokens do not fit in {len(blocks)}")
    makers = []
    for block, reach in zip(blocks[after : after + 2], (2, 3), strict=True):
        window, dim = block.token_mixer.window[0], block.norm1.weight.shape[0]
        mixer = cross_attention(block.token_mixer)
        maker = NeighbourBlock(dim, mixer, block.channel_mixer, ours=side, theirs=window, size=reach * window)
        take(maker, block)
        maker.scale1, maker.scale2 = block.scale1, block.scale2
        makers.append(maker)
    late = blocks[after + 2 :]
    backbone.stages[stage] = WindowTokens(old.merge, blocks[:after], makers[0], makers[1], late, side).train(
        old.training
    )
    for further in range(stage + 1, len(backbone.stages)):
        late = late + window_stage(backbone, further)[1]
    for block in late:
        block.token_mixer = in_windows(block.token_mixer, side).train(block.training)
    return out
