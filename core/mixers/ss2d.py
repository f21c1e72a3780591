"""SS2D: a map read along several orders, each by its own selective scan (VMamba)."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.layers.linear import Linear
from core.mixers.scan import grouped_scan

Orders = Callable[[int, int], Tensor]


def cross_orders(height: int, width: int) -> Tensor:
    """By rows, by columns, and both reversed: (4, H*W).

    >>> cross_orders(2, 2).tolist()
    [[0, 1, 2, 3], [0, 2, 1, 3], [3, 2, 1, 0], [3, 1, 2, 0]]
    """
    rows = torch.arange(height * width)
    columns = rows.view(height, width).t().flatten()
    return torch.stack([rows, columns, rows.flip(0), columns.flip(0)])


class SS2D(nn.Module):
    """A token mixer of several selective scans over a map; (B, H, W, C) to the same shape, any H and W.

    A linear layer gives a map of expand x C channels and a gate.  The map passes a depthwise convolution and SiLU,
    is laid out along each of K visiting orders, and every order has its own step sizes, B and C (from its own linear
    maps), A and D.  The results go back to their cells, are summed and normalised, gated by SiLU, and projected.

    Source: VMamba, arXiv 2401.10166, section 4.2; the first release's layer as in Swin-UMamba, arXiv 2402.03302.

    Compiled for several map sizes, torch 2.11's Inductor needs options={"layout_optimization": False} (its
    channels-last pass fails on open sizes); for one size, or dynamic=False, nothing.

    Args:
        dim: Channels C.
        state: State size N of each channel.
        expand: Inner channels per channel.
        dt_rank: Rank of the step sizes; ceil(C / 16) when None.
        kernel: Side of the depthwise convolution, odd.
        orders: From (H, W), the (K, H*W) table whose row k lists the row-major cells in the order of visiting.

    Raises:
        ValueError: If the kernel is even, or (in forward) a row of the table does not visit every cell once.
    """

    def __init__(
        self,
        dim: int,
        *,
        state: int = 16,
        expand: int = 2,
        dt_rank: int | None = None,
        kernel: int = 3,
        orders: Orders = cross_orders,
    ) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(f"expected an odd kernel, got {kernel}")
        inner, rank = expand * dim, math.ceil(dim / 16) if dt_rank is None else dt_rank
        count = len(orders(1, 1))
        self.state, self.rank, self.orders = state, rank, orders
        self._tables: dict[tuple[int, int, torch.device], tuple[Tensor, Tensor]] = {}
        self.in_proj = Linear(dim, 2 * inner, bias=False)
        self.conv = nn.Conv2d(inner, inner, kernel, padding=kernel // 2, groups=inner)
        self.x_proj = nn.Parameter(torch.empty(count, rank + 2 * state, inner))
        self.dt_proj = nn.Parameter(torch.empty(count, inner, rank))
        self.dt_bias = nn.Parameter(torch.empty(count, inner))
        self.A_log = nn.Parameter(torch.empty(count * inner, state))
        self.skip = nn.Parameter(torch.empty(count * inner))
        self.out_norm = nn.LayerNorm(inner)
        self.out_proj = Linear(inner, dim, bias=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The published initialisation; the convolution and the norm keep torch's."""
        for layer in (self.in_proj, self.out_proj):
            nn.init.trunc_normal_(layer.weight, std=0.02)
        bound = self.x_proj.shape[-1] ** -0.5  # nn.Linear's own
        self.x_proj.uniform_(-bound, bound)
        self.dt_proj.uniform_(-(self.rank**-0.5), self.rank**-0.5)
        low, high = math.log(1e-3), math.log(1e-1)
        step = self.dt_bias.uniform_(low, high).exp().clamp(min=1e-4)
        self.dt_bias.copy_(step + torch.log(-torch.expm1(-step)))  # softplus brings the step back
        self.A_log.copy_(torch.arange(1, self.state + 1, dtype=torch.float32).log().expand_as(self.A_log))
        self.skip.fill_(1)

    def forward(self, x: Tensor) -> Tensor:
        inner, gate = self.in_proj(x).chunk(2, dim=-1)
        _, scans = self.directions(inner)
        if self.orders is cross_orders:
            rows, columns, rows_back, columns_back = scans
            y = rows + rows_back + columns + columns_back  # the published order of adding
        else:
            y = torch.stack(scans).sum(0)
        y = y.transpose(1, 2).unflatten(1, x.shape[1:3]).to(self.out_norm.weight.dtype)  # (B, H, W, Di)
        y = self.out_norm(y)
        return self.out_proj(y.to(gate.dtype) * F.silu(gate))

    def directions(self, inner: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The map after convolution and SiLU, and what each order's scan makes of it.

        Args:
            inner: The first half of `in_proj`'s output, (B, H, W, Di).

        Returns:
            The map, (B, Di, H, W), and for each of the K orders y, (B, Di, H*W), its cells back in row-major order.
        """
        height, width = inner.shape[1:3]
        act = F.silu(self.conv(inner.permute(0, 3, 1, 2)))  # (B, Di, H, W)
        order, inverse = self._table(height, width, inner.device)
        wide = torch.float64 if inner.dtype == torch.float64 else torch.float32  # the scan's, under autocast too
        cells = act.permute(0, 2, 3, 1).flatten(1, 2)  # (B, L, Di)
        u = cells.index_select(1, order.flatten()).unflatten(1, order.shape)  # (B, K, L, Di)
        split = u @ self.x_proj.transpose(1, 2)  # (B, K, L, R + 2N)
        dt, B, C = split.split([self.rank, self.state, self.state], dim=-1)
        delta = dt @ self.dt_proj.transpose(1, 2)  # (B, K, L, Di)
        y = grouped_scan(
            u.to(wide).transpose(2, 3),
            delta.transpose(2, 3),
            -torch.exp(self.A_log.to(wide)).unflatten(0, (len(order), -1)),
            B.transpose(2, 3),
            C.transpose(2, 3),
            self.skip.unflatten(0, (len(order), -1)),
            delta_bias=self.dt_bias,
            delta_softplus=True,
        )
        scans = y.transpose(2, 3).unbind(1)  # K of (B, L, Di)
        if self.orders is cross_orders:  # flips and transposes: half the time of gathering
            rows, columns, rows_back, columns_back = scans
            columns, columns_back = (
                t.unflatten(1, (width, height)).transpose(1, 2).flatten(1, 2) for t in (columns, columns_back.flip(1))
            )
            scans = (rows, columns, rows_back.flip(1), columns_back)
        else:
            scans = tuple(t.index_select(1, back) for t, back in zip(scans, inverse, strict=True))
        return act, [t.transpose(1, 2) for t in scans]

    def _table(self, height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """The visiting orders and their inverses, built once for each size; anew in a traced graph."""
        if torch.compiler.is_compiling():
            order = self.orders(height, width).to(device)
            return order, order if self.orders is cross_orders else order.argsort(1)  # it needs no inverse
        key = (height, width, device)
        if key not in self._tables:
            with torch.inference_mode(False), torch.device("cpu"):
                order = self.orders(height, width)
                inverse = order.argsort(1)
                each = torch.arange(height * width)
                if order.shape != (order.shape[0], len(each)) or not order.gather(1, inverse).eq(each).all():
                    raise ValueError(
                        f"expected orders that visit each of the {len(each)} cells of a {height} x {width} map once, "
                        f"got a table {tuple(order.shape)} that does not"
                    )
                self._tables[key] = order.to(device), inverse.to(device)
        return self._tables[key]
