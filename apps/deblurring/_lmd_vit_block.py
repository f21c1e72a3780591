"""The block of LMD-ViT (adaptive window pruning transformer): predictor, window attention, window FFN."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apps.deblurring._windows import Kept
from core.layers import windows
from core.layers.attend import merge_heads, plain_is_faster
from core.layers.linear import Linear, fuses, linear
from core.layers.positions import relative_index
from core.layers.residual import DropPath

GROUP = 1 << 22  # bytes of an FFN's hidden map in inference on the CPU: more at once falls out of the cache


class Predictor(nn.Module):
    """Two logits for each cell, keep and prune: (B, H, W, C) -> (B, H, W, 2).

    Half of the features stay local, half are the image's mean, as in DynamicViT (arXiv 2106.02034).
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.local1 = Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.local2 = Linear(dim, dim)
        self.out1 = Linear(dim, dim // 2)
        self.out2 = Linear(dim // 2, dim // 4)
        self.out3 = Linear(dim // 4, 2)

    def forward(self, x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        x = self.norm(linear(x, self.local1.weight, self.local1.bias, "gelu"))
        # The mean goes through a linear map as every cell would, so half of two products are done once an image.
        local = linear(x, self.local2.weight[:half], self.local2.bias[:half])
        whole = F.linear(x.mean((1, 2)), self.local2.weight[half:], self.local2.bias[half:])
        whole = F.linear(whole, self.out1.weight[:, half:], self.out1.bias)
        x = linear(local, self.out1.weight[:, :half].contiguous(), None)
        x = F.gelu(x + whole[:, None, None])
        return self.out3(linear(x, self.out2.weight, self.out2.bias, "gelu"))


class WindowAttention(nn.Module):
    """Self-attention inside windows that are cut already: (N, T, C) -> (N, T, C)."""

    bias_index: Tensor
    masks: Tensor

    def __init__(self, dim: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.heads, self.cells = heads, window * window
        self.qkv = Linear(dim, 3 * dim)
        self.bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.bias_table, std=0.02)
        self.proj = Linear(dim, dim)
        self.register_buffer("bias_index", relative_index((window, window)).reshape(-1), persistent=False)
        if shift:
            masks = windows.shift_mask((window, window), (shift, shift))
            self.register_buffer("masks", masks, persistent=False)

    def forward(self, x: Tensor, cut: Tensor) -> Tensor:
        """`cut`: which shift mask each of the last windows takes (as in Kept); (0,) for none."""
        N, T, C = x.shape
        q, k, v = self.qkv(x).reshape(N, T, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        scale = (C // self.heads) ** -0.5
        bias = self.bias_table.index_select(0, self.bias_index).T.reshape(self.heads, T, T).to(q.dtype)
        logits = bias[None].expand(N, -1, -1, -1)
        if plain_is_faster(q, k) and not torch.compiler.is_compiling():
            logits = logits.contiguous()
            if cut.numel():
                logits[-cut.shape[0] :] += self.masks.to(q.dtype)[cut][:, None]
            a, b, c = (part.reshape(-1, T, C // self.heads) for part in (q, k, v))
            weights = logits.flatten(0, 1).baddbmm_(a, b.transpose(1, 2), alpha=scale).softmax(-1)
            return self.proj(merge_heads(torch.bmm(weights, c).reshape(N, self.heads, T, -1)))
        if cut.shape[0]:
            mask = self.masks.to(q.dtype)[cut][:, None]
            logits = logits + (mask if cut.shape[0] == N else F.pad(mask, (0, 0) * 3 + (N - cut.shape[0], 0)))
        return self.proj(merge_heads(F.scaled_dot_product_attention(q, k, v, attn_mask=logits, scale=scale)))


class WindowFFN(nn.Module):
    """Linear, GELU, depthwise 3 x 3 inside each window (its border mirrored), GELU, Linear: (N, T, C) -> (N, T, C)."""

    mirrored: Tensor

    def __init__(self, dim: int, window: int, ratio: float) -> None:
        super().__init__()
        hidden = int(dim * ratio)
        self.fc1 = Linear(dim, hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, groups=hidden)
        self.fc2 = Linear(hidden, dim)
        self.side = window + 2
        steps = torch.arange(-1, window + 1).abs()
        steps = torch.where(steps == window, torch.full_like(steps, window - 2), steps)
        cells = (steps[:, None] * window + steps[None, :]).reshape(-1)
        self.register_buffer("mirrored", cells, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = linear(x, self.fc1.weight, self.fc1.bias, "gelu")
        x = x.index_select(1, self.mirrored).unflatten(1, (self.side, self.side))  # reflect padding of every window
        return self.fc2(self._convolved(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).flatten(1, 2))

    def _convolved(self, x: Tensor) -> Tensor:
        conv = self.depthwise
        if fuses(x) and x.dtype == conv.weight.dtype and hasattr(torch.ops.mkldnn, "_convolution_pointwise"):
            no, one = [0, 0], [1, 1]  # padding; stride and dilation
            how: tuple[Any, ...] = (no, one, one, conv.groups, "gelu", [], "none")
            fused: Tensor = torch.ops.mkldnn._convolution_pointwise(x, conv.weight, conv.bias, *how)
            return fused
        return F.gelu(conv(x))


class Block(nn.Module):
    """Attention and FFN of the windows that are kept; all others pass as they are.

    Args:
        dim: channels.
        heads: of attention.
        window: side in cells, at least 2.
        shift: roll in cells, 0 for none.
        ratio: hidden channels of the FFN over `dim`.
        modulator: add a learned row to each cell of a window before attention.
        predictor: hold a predictor, whose decision this block and later ones follow.
        drawn: in training draw the decision; else take the likelier one, as in evaluation.
        drop_path: of both branches, an image at a time.
    """

    def __init__(
        self, dim: int, heads: int, *, window: int, shift: int, ratio: float = 4.0, modulator: bool = False,
        predictor: bool = False, drawn: bool = True, drop_path: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.window, self.shift, self.drawn = window, shift, drawn
        self.modulator = nn.Parameter(torch.randn(window * window, dim)) if modulator else None
        self.norm1 = nn.LayerNorm(dim)
        self.attention = WindowAttention(dim, heads, window, shift)
        self.norm2 = nn.LayerNorm(dim)
        self.ffn = WindowFFN(dim, window, ratio)
        self.predictor = Predictor(dim) if predictor else None
        self.drop_path = DropPath(drop_path)

    def decide(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Score map (B, 2, H, W) of a map (B, H, W, C), and the decision (B, 1, h, w), 1 where a window is kept.

        The decision lies in the frame of the rolled map. In training its gradient is the probability's (straight
        through), and it is drawn (Gumbel-softmax) unless `drawn` is off.
        """
        assert self.predictor is not None
        scores = self.predictor(x)
        B, H, W, _ = scores.shape
        n = self.window
        rolled = scores.roll((-self.shift, -self.shift), (1, 2)) if self.shift else scores
        logits = rolled.reshape(B, H // n, n, W // n, n, 2).mean((2, 4))
        if self.training and self.drawn:
            keep = F.gumbel_softmax(logits, tau=1.0, hard=True)[..., 0]
        else:
            likely = logits.softmax(-1)[..., 0]
            keep = (likely > 0.5).to(likely.dtype)
            if self.training:
                keep = keep + (likely - likely.detach())  # the bracket is exactly 0
        return scores.permute(0, 3, 1, 2), keep[:, None]

    def forward(self, x: Tensor, kept: Kept) -> Tensor:
        """(B, H, W, C) -> the same; only the kept windows are touched."""
        if not kept.count:
            return x
        flat = x.reshape(-1, x.shape[-1])
        out = flat.clone()
        for first, last in self._groups(kept, x):
            cells = kept.cells[first:last].reshape(-1)
            part = flat.index_select(0, cells).reshape(last - first, -1, x.shape[-1])
            z = self.norm1(part)
            if self.modulator is not None:
                z = z + self.modulator
            cut = kept.cut[max(first - kept.inside, 0) : max(last - kept.inside, 0)]
            part = part + self.attention(z, cut)
            part = part + self.ffn(self.norm2(part))
            out.index_copy_(0, cells, part.flatten(0, 1))
        return out.reshape(x.shape)

    def _groups(self, kept: Kept, x: Tensor) -> list[tuple[int, int]]:
        """Ranges of windows that are done at once: in inference on the CPU as many as the cache holds."""
        step = kept.count
        if x.device.type == "cpu" and not torch.is_grad_enabled():
            hidden = kept.cells.shape[1] * self.ffn.fc1.out_features * x.element_size()
            step = max(1, GROUP // hidden)
        return [(i, min(i + step, kept.count)) for i in range(0, kept.count, step)]

    def dense(self, x: Tensor, keep: Tensor) -> Tensor:
        """The same with every window worked on and the branches multiplied by `keep` (B, 1, h, w).

        For training, where the decisions get a gradient, and where shapes must not depend on values.
        """
        B, H, W, _ = x.shape
        n, grid = self.window, (H // self.window, W // self.window)
        rolled = x.roll((-self.shift, -self.shift), (1, 2)) if self.shift else x
        part = windows.partition(rolled, (n, n))
        keep = keep.reshape(-1, 1, 1).to(x.dtype)
        z = self.norm1(part)
        if self.modulator is not None:
            z = z + self.modulator
        part = part + keep * self._dropped(self.attention(z * keep, self._cut(B, grid, x.device)), B)
        part = part + keep * self._dropped(self.ffn(self.norm2(part)), B)
        rolled = windows.join(part, (n, n), (H, W))
        return rolled.roll((self.shift, self.shift), (1, 2)) if self.shift else rolled

    def _cut(self, batch: int, grid: tuple[int, int], device: torch.device) -> Tensor:
        """The shift mask of each window of whole maps, (B * h * w,); (0,) without a shift."""
        if not self.shift:
            return torch.zeros(0, dtype=torch.long, device=device)
        rows, columns = (torch.arange(n, device=device) == n - 1 for n in grid)
        return (rows.long()[:, None] + 2 * columns.long()[None, :]).reshape(-1).repeat(batch)

    def _dropped(self, branch: Tensor, batch: int) -> Tensor:
        """Drop path by image, not by window."""
        return self.drop_path(branch.reshape(batch, -1, branch.shape[-1])).reshape(branch.shape)
