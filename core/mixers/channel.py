"""Attention between channels: every channel of a group is a token whose feature is the whole map (DaViT)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.layers.linear import Linear


class ChannelAttention(nn.Module):
    """Each output channel is a mix of its group's query channels (arXiv 2204.03645, 3.2, as the published code has it).

    (B, H, W, C) -> (B, H, W, C) for any H and W. In each group of d channels, with q, k, v of shape (N, d) over the
    N = H * W positions:

        A = softmax(d^-0.5 k^T v), rows by channel of k, the softmax over the channels of v
        out = q A^T

    so A is built from k and v and applied to q: the names are rotated against attention between positions. Nothing is
    divided by N: the logits grow with the area of the map.

    Args:
        dim: channels.
        groups: channel groups; they divide `dim`.
        qkv_bias: biases of the q, k, v projection.
    """

    def __init__(self, dim: int, groups: int, *, qkv_bias: bool = True) -> None:
        super().__init__()
        self.groups, self.scale = groups, (dim // groups) ** -0.5
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        B, H, W, C = x.shape
        tokens = x.reshape(B, H * W, C)
        out = self._by_gram(tokens) if self._gram_is_faster(tokens) else self._by_tokens(tokens)
        return out.reshape(B, H, W, C)

    def _by_tokens(self, x: Tensor) -> Tensor:
        """The definition: (B, N, C) -> (B, N, C)."""
        qkv = self.qkv(x).unflatten(-1, (3, self.groups, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, groups, N, d)
        mix = torch.matmul((k * self.scale).transpose(-2, -1), v).softmax(-1)  # (B, groups, d, d)
        out = torch.matmul(q, mix.transpose(-2, -1))
        return self.proj(out.transpose(1, 2).flatten(2))

    def _gram_is_faster(self, x: Tensor) -> bool:
        """Whether `_by_gram` has clearly fewer products, in a type whose digits stand sums before projections."""
        if torch.compiler.is_compiling():  # torch 2.11 then writes past a buffer where a convolution follows
            return False
        exact = x.dtype in (torch.float32, torch.float64)
        return exact and x.device.type == "cpu" and not torch.is_grad_enabled() and x.shape[1] >= 2 * x.shape[2]

    def _by_gram(self, x: Tensor) -> Tensor:
        """The same without q, k and v: the map enters the logits only by its Gram matrix x^T x and its sum.

        k^T v = Wk (x^T x) Wv^T + (Wk s) bv^T + bk (Wv s)^T + N bk bv^T with s the sum over positions, and all that is
        applied to x afterwards is one matrix per image, Wp A Wq: 2 N C^2 + O(C^3) products instead of 4 N C^2.
        """
        B, N, C = x.shape
        d = C // self.groups
        weight = self.qkv.weight.view(3, C, C)
        bias = x.new_zeros(3, C) if self.qkv.bias is None else self.qkv.bias.view(3, C)
        k_weight, k_bias = weight[1] * self.scale, (bias[1] * self.scale).view(self.groups, d, 1)
        q_weight, v_weight = weight[0].view(self.groups, d, C), weight[2].view(self.groups, d, C)
        total = x.sum(1)  # (B, C)
        k_total = F.linear(total, k_weight).view(B, self.groups, d, 1)
        v_total = F.linear(total, weight[2], N * bias[2]).view(B, self.groups, 1, d)
        logits = torch.matmul(k_weight, torch.matmul(x.transpose(1, 2), x)).view(B, self.groups, d, C)
        logits = torch.matmul(logits, v_weight.transpose(1, 2))
        logits += k_total * bias[2].view(self.groups, 1, d) + k_bias * v_total
        mix = logits.softmax(-1)
        applied = torch.matmul(self.proj.weight, torch.matmul(mix, q_weight).view(B, C, C))
        shift = torch.matmul(mix, bias[0].view(self.groups, d, 1)).view(B, C)
        shift = F.linear(shift, self.proj.weight, self.proj.bias)
        return torch.baddbmm(shift[:, None], x, applied.transpose(1, 2))
