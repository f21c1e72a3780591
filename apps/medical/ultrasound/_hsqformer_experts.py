"""Mixtures of MLPs whose router is noisy in training (HSQformer, arXiv 2502.03772; routing after arXiv 1701.06538).

Sparse ones are computed sparsely: what goes to one expert is gathered, so that nothing is computed and thrown away.
Where shapes must not depend on values (torch.compile, ONNX) every expert is computed and weighted instead, with the
same answer.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.errors import SettingError
from core.layers.linear import Linear
from core.layers.mlp import MLP

Kind = Literal["sparse_token", "dense_token", "sparse_expert", "dense_expert", "mlp"]
Noise = Literal["training", "always"]
Choice = Literal["batch", "image"]


class Expert(MLP):
    """An MLP of four times the width, exact GELU; `out` channels where it does not keep `dim`."""

    def __init__(self, dim: int, *, dropout: float = 0.0, out: int | None = None) -> None:
        super().__init__(dim, dropout=dropout)
        if out is not None:
            self.fc2 = Linear(4 * dim, out)


class Experts(nn.Module):
    """(B, N, dim) -> (B, N, out): a router chooses among experts, for each token or for all of them at once.

    Router logits r = W_r x + b_r, noise n = eps * softplus(W_n x + b_n) with standard normal eps; of r + n the largest
    `kept` stay, a softmax over those weighs their experts. With one kept the weight is 1, so that the output gives the
    router no gradient (as published).

    Args:
        dim: channels.
        kind: "sparse_*" keeps `top`, "dense_*" keeps all; "*_token" chooses for each token, "*_expert" by the mean of
            the noisy logits.
        count: experts.
        top: kept by the sparse kinds.
        dropout: inside the experts.
        out: channels of the answer, `dim` by default.
        noise: in training only, or "always", as published: the answer then differs from call to call.
        choice: what "*_expert" takes the mean over: all tokens of the "batch" (as published: an image's answer then
            depends on the others) or of each "image".

    Raises SettingError for a `top` that is not 1 to `count`, and for the kind "mlp", which is an Expert alone.
    """

    def __init__(
        self, dim: int, kind: Kind = "sparse_token", *, count: int = 4, top: int = 1, dropout: float = 0.0,
        out: int | None = None, noise: Noise = "training", choice: Choice = "batch",
    ) -> None:  # fmt: skip
        super().__init__()
        if kind == "mlp" or count < 1 or not 1 <= top <= count:
            raise SettingError(f"experts are chosen {top} of {count} by a router, got the kind {kind!r}")
        self.by_token, self.noise, self.choice = kind.endswith("_token"), noise, choice
        self.kept = top if kind.startswith("sparse") else count
        self.router, self.spread = Linear(dim, count), Linear(dim, count)
        self.experts = nn.ModuleList(Expert(dim, dropout=dropout, out=out) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        logits = self.logits(x)  # (B, N, count)
        if self.by_token:
            rows, logits = x.flatten(0, 1), logits.flatten(0, 1)
        elif self.choice == "image":
            rows, logits = x, logits.mean(1)
        else:
            rows, logits = x[None], logits.mean((0, 1))[None]
        # Now rows (R, ..., dim) and logits (R, count): one choice a row.
        if self.kept < len(self.experts):
            logits, chosen = logits.topk(self.kept, dim=-1)
            weights = logits.softmax(-1)
            if not _static():
                return self._gathered(rows, chosen, weights).reshape(*x.shape[:-1], -1)
            weights = weights.new_zeros(*weights.shape[:-1], len(self.experts)).scatter(-1, chosen, weights)
        else:
            weights = logits.softmax(-1)
        return self._weighted(rows, weights).reshape(*x.shape[:-1], -1)

    def logits(self, x: Tensor) -> Tensor:
        """Of the router, noisy or not: (B, N, dim) -> (B, N, count)."""
        logits: Tensor = self.router(x)
        if self.noise == "always" or self.training:
            logits = logits + torch.randn_like(logits) * F.softplus(self.spread(x))
        return logits

    def _weighted(self, rows: Tensor, weights: Tensor) -> Tensor:
        """Every expert on every row, times its weight: rows (R, ..., dim), weights (R, count)."""
        shares = weights.reshape(len(weights), *(1,) * (rows.ndim - 2), -1)
        parts = [expert(rows) * shares[..., i : i + 1] for i, expert in enumerate(self.experts)]
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total

    def _gathered(self, rows: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Each row through its experts alone: rows (R, ..., dim), chosen and weights (R, kept)."""
        flat = chosen.flatten()
        order = flat.argsort(stable=True)  # (R * kept,), expert by expert
        source = order if self.kept == 1 else order // self.kept
        parts = rows.index_select(0, source).split(self._sizes(flat))
        # An expert that nothing goes to is called, too: in training its weights get gradients of zero, not none.
        y = torch.cat([expert(part) for expert, part in zip(self.experts, parts, strict=True)])
        if self.kept > 1 or torch.is_grad_enabled():
            y = y * weights.flatten()[order].reshape(-1, *(1,) * (y.ndim - 1)).to(y.dtype)
        out = y.new_zeros(len(rows), *y.shape[1:])
        return out.index_copy_(0, source, y) if self.kept == 1 else out.index_add_(0, source, y)

    def _sizes(self, flat: Tensor) -> list[int]:
        """How many rows go to each expert; on the meta device, where nobody knows, equal shares."""
        count = len(self.experts)
        if flat.is_meta:
            return [len(flat) // count + (i < len(flat) % count) for i in range(count)]
        sizes: list[int] = flat.bincount(minlength=count).tolist()
        return sizes


def _static() -> bool:
    """Whether the shapes of this pass must not depend on values."""
    return torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export()
