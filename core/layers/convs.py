"""Convolutional blocks on channels-last maps: squeeze-and-excitation, inverted bottleneck (MBConv)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.layers.linear import Linear
from core.layers.mlp import ACTIVATIONS, Activation
from core.layers.residual import DropPath


def convolve(conv: nn.Conv2d | nn.Conv3d, x: Tensor) -> Tensor:
    """A convolution on a channels-last map: (B, H, W, C) -> (B, h, w, out), without a copy on either side.

    With a Conv3d on a clip: (B, T, H, W, C) -> (B, t, h, w, out).
    """
    return conv(x.movedim(-1, 1)).movedim(1, -1)


def scale_and_shift(norm: nn.BatchNorm2d | nn.BatchNorm3d) -> tuple[Tensor, Tensor]:
    """The map x -> scale x + shift, each (C,), that a batch norm is in evaluation."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return scale, norm.bias - norm.running_mean * scale


class ResidualDepthwise(nn.Conv2d):
    """x + depthwise 3x3 of x, channels-last (B, H, W, C) -> the same; one convolution, its centre larger by 1.

    As an encoding of positions before a token mixer: arXiv 2102.10882 (CPE).
    """

    centre: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim, 3, padding=1, groups=dim)
        centre = torch.zeros(1, 1, 3, 3)
        centre[0, 0, 1, 1] = 1
        self.register_buffer("centre", centre, persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight + self.centre
        return F.conv2d(input.permute(0, 3, 1, 2), weight, self.bias, padding=1, groups=self.groups).permute(0, 2, 3, 1)


class TanhGELU(nn.GELU):
    """GELU by tanh; in float32 inference on the CPU as x sigmoid(2 u), the same function at half of tanh's time there.

    0.5 x (1 + tanh(u)) with u = sqrt(2 / pi) (x + 0.044715 x^3) (arXiv 1606.08415, section 2).
    """

    def __init__(self) -> None:
        super().__init__(approximate="tanh")

    def forward(self, x: Tensor) -> Tensor:
        written_out = x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_grad_enabled()
        if torch.compiler.is_compiling() or not written_out:
            return super().forward(x)
        slope = 2 * math.sqrt(2 / math.pi)
        y = x * x
        return y.mul_(0.044715 * slope).add_(slope).mul_(x).sigmoid_().mul_(x)


class SqueezeExcitation(nn.Module):
    """Channels of a map weighted by what its mean says: (B, H, W, C) -> the same (arXiv 1709.01507).

    Args:
        dim: channels.
        hidden: width between the two linear maps.
        activation: after the first; a sigmoid follows the second.
        bias: of both.
    """

    def __init__(self, dim: int, hidden: int, *, activation: Activation = "relu", bias: bool = True) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden, bias=bias)
        self.act = ACTIVATIONS[activation]()
        self.fc2 = Linear(hidden, dim, bias=bias)

    def weights(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, 1, 1, C), between 0 and 1."""
        return self.fc2(self.act(self.fc1(x.mean((1, 2), keepdim=True)))).sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weights(x)


class MBConv(nn.Module):
    """Pre-norm inverted bottleneck, (B, H, W, C) -> (B, H / stride, W / stride, out) (arXiv 2204.01697, 3.3).

    Batch norm, widening, batch norm, GELU, depthwise 3 x 3, batch norm, GELU, squeeze-and-excitation, narrowing; the
    shortcut branches before the first norm. Padding is TensorFlow's "same": at stride 2 a row at the bottom and a
    column at the right of a map with even sides, which are asked for.

    Args:
        dim: channels.
        out: channels after.
        stride: 1, or 2 for half the size.
        expand: inner width over `out`.
        squeeze: width of squeeze-and-excitation over `out`.
        drop_path: of the branch.
        eps, momentum: of the batch norms.
    """

    fusable = (("norm0", "widen", "norm1"), ("depthwise", "norm2"))  # for core.compression.fold

    def __init__(
        self, dim: int, out: int, *, stride: int = 1, expand: float = 4.0, squeeze: float = 0.25,
        drop_path: float = 0.0, eps: float = 1e-3, momentum: float = 0.01,
    ) -> None:  # fmt: skip
        super().__init__()
        inner = round(out * expand)
        self.stride = stride
        self.norm0 = nn.BatchNorm2d(dim, eps=eps, momentum=momentum)
        self.widen = Linear(dim, inner, bias=False)
        self.norm1 = nn.BatchNorm2d(inner, eps=eps, momentum=momentum)
        padding = 1 if stride == 1 else 0
        self.depthwise = nn.Conv2d(inner, inner, 3, stride, padding, groups=inner, bias=False)
        self.norm2 = nn.BatchNorm2d(inner, eps=eps, momentum=momentum)
        self.act = TanhGELU()
        self.se = SqueezeExcitation(inner, round(out * squeeze), activation="silu")
        self.narrow = Linear(inner, out)
        self.drop_path = DropPath(drop_path)
        self.shortcut = Linear(dim, out) if dim != out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        plain = self.training or isinstance(self.norm0, nn.Identity)  # folded for good by core.compression.fold
        y = self.drop_path(self.narrow(self.se(self._inner(x) if plain else self._inner_folded(x))))
        if self.stride > 1:
            x = F.avg_pool2d(x.permute(0, 3, 1, 2), self.stride).permute(0, 2, 3, 1)
        return self.shortcut(x) + y

    def _inner(self, x: Tensor) -> Tensor:
        """(B, H, W, dim) -> (B, h, w, inner), up to the second activation."""
        x = self.widen(self.norm0(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = self.act(self.norm1(x))
        if self.stride > 1:
            x = F.pad(x, (0, 1, 0, 1))
        return self.act(self.norm2(self.depthwise(x))).permute(0, 2, 3, 1)

    def _inner_folded(self, x: Tensor) -> Tensor:
        """`_inner` in evaluation: each norm is part of the weights beside it, so the wide map is read less often."""
        s0, t0 = scale_and_shift(self.norm0)
        s1, t1 = scale_and_shift(self.norm1)
        s2, t2 = scale_and_shift(self.norm2)
        if self.stride > 1:
            x = F.pad(x, (0, 0, 0, 1, 0, 1))  # here and not after widening, where the map is several times larger
        w = self.widen.weight * s1[:, None]
        x = self.act(F.linear(x, w * s0, torch.mv(w, t0) + t1))
        if self.stride > 1:
            x[:, -1], x[:, :, -1] = 0, 0
        conv = self.depthwise
        x = x.permute(0, 3, 1, 2)
        x = F.conv2d(x, conv.weight * s2[:, None, None, None], t2, conv.stride, conv.padding, groups=conv.groups)
        return self.act(x).permute(0, 2, 3, 1)
