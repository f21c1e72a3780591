"""Multi-scale deformable attention: a query looks at a few points of several maps, at places that it chooses itself.

Paper: arXiv 2010.04159 (Deformable DETR), section 4.1, equation 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.errors import SettingError
from core.layers.linear import Linear

Sizes = Sequence[tuple[int, int]]  # rows and columns of each map, in the order of their cells


def centres(sizes: Sizes, *, dtype: torch.dtype = torch.float32, device: torch.device | None = None) -> Tensor:
    """Where the cells of some maps lie on the image, x and y from 0 to 1: (cells of all maps, 2), row-major.

    >>> centres([(1, 2)])
    tensor([[0.2500, 0.5000],
            [0.7500, 0.5000]])
    """
    points = []
    for h, w in sizes:
        y, x = ((torch.arange(n, dtype=dtype, device=device) + 0.5) / n for n in (h, w))
        points.append(torch.stack([x.expand(h, w), y[:, None].expand(h, w)], -1).flatten(0, 1))
    return torch.cat(points)


def gather_points(value: Tensor, sizes: Sizes, x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of points between the cells of several maps: the attention itself, without projections.

    Args:
        value: (B, S, heads, d), the cells of all maps, one map after the other, row-major; S = sum of h * w.
        sizes: h, w of each map.
        x: places (B, N, heads, maps, points); 0 and 1 are the outer edges of a map's first and last cell. Between cells
            values are interpolated linearly, outside they are 0.
        y: the same from top to bottom.
        weights: (B, N, heads, maps, points).

    Returns:
        (B, N, heads * d).
    """
    # Both ways are the same function. On the CPU rows that are read as they lie in memory take a quarter of the time;
    # exporters know the other form.
    exporting = torch.onnx.is_in_onnx_export() or torch.compiler.is_exporting()
    if value.device.type == "cpu" and not torch.is_grad_enabled() and not exporting:
        return _by_rows(value, sizes, x, y, weights)
    return _by_grids(value, sizes, x, y, weights)


def _by_grids(value: Tensor, sizes: Sizes, x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    B, _, heads, d = value.shape
    N = x.shape[1]
    places = 2 * torch.stack([x, y], -1) - 1  # from -1 to 1
    grids = places.permute(0, 2, 3, 1, 4, 5).flatten(0, 1)  # (B * heads, maps, N, points, 2)
    shares = weights.permute(0, 2, 3, 1, 4).flatten(0, 1)[:, :, None]  # (B * heads, maps, 1, N, points)
    out = value.new_zeros(())
    for i, (cells, (h, w)) in enumerate(zip(value.split([h * w for h, w in sizes], 1), sizes, strict=True)):
        maps = cells.permute(0, 2, 3, 1).reshape(B * heads, d, h, w)
        found = F.grid_sample(maps, grids[:, i], mode="bilinear", padding_mode="zeros", align_corners=False)
        out = out + (found * shares[:, i]).sum(-1)  # (B * heads, d, N)
    return out.reshape(B, heads * d, N).transpose(1, 2)


def _by_rows(value: Tensor, sizes: Sizes, x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """A point lies between four cells, so a query's answer is one weighted sum of rows (d,)."""
    B, S, heads, d = value.shape
    N, points = x.shape[1], x.shape[4]
    # K = heads * maps * points, all points of a query in one row, so that what follows runs over long rows. Of each:
    # the sides of its map, and the row of that map's first cell and its own head.
    starts = [sum(h * w for h, w in sizes[:i]) for i in range(len(sizes))]
    each = [(w, h, start) for (h, w), start in zip(sizes, starts, strict=True) for _ in range(points)]
    about = torch.tensor([(w, h, start * heads + i) for i in range(heads) for w, h, start in each])
    wide, high, first = about.to(value.device, torch.int32).unbind(1)
    image = torch.arange(B, dtype=torch.int32, device=value.device)[:, None, None] * (S * heads)
    left, right, share_left, share_right = _neighbours(x.flatten(2), wide)
    top, bottom, share_top, share_bottom = _neighbours(y.flatten(2), high)
    weights = weights.flatten(2)
    columns = [(left * heads + first, share_left), (right * heads + first, share_right)]
    lines = [(at * (wide * heads) + image, share * weights) for at, share in ((top, share_top), (bottom, share_bottom))]
    corners = [(row + column, share_y * share_x) for row, share_y in lines for column, share_x in columns]
    # (B, N, K) each -> (B * N * heads, 4 * maps * points)
    rows, shares = (
        torch.stack([p.unflatten(2, (heads, -1)) for p in parts], 3) for parts in zip(*corners, strict=True)
    )
    rows.clamp_(0, B * S * heads - 1)  # a place that is no number must not become an address
    bags = (B * N * heads, -1)
    table = value.reshape(B * S * heads, d)
    out = F.embedding_bag(rows.view(bags), table, mode="sum", per_sample_weights=shares.view(bags))
    return out.view(B, N, heads * d)


def _neighbours(place: Tensor, cells: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The two cells beside a place along one axis, and their shares, 0 for those outside.

    Args:
        place: (B, N, K), 0..1 spans the axis.
        cells: (K,), number of cells on the axis, int32.
    """
    count = cells.to(place.dtype)
    last = count - 1
    place = torch.addcmul(place.new_tensor(-0.5), place, count)  # 0 is the centre of the first cell
    low = place.floor()
    part = place - low
    found, shares = [], []
    for at, share in ((low, 1 - part), (low + 1, part)):
        inside = torch.minimum(at.clamp_min(0), last)
        found.append(inside.to(torch.int32))
        shares.append(share * (inside == at))
    return found[0], found[1], shares[0], shares[1]


class DeformableAttention(nn.Module):
    """Attention of N queries to a few points on each of several maps: (B, N, C) -> (B, N, C).

    A query's linear maps give the points' offsets, in cells of the map that they lie on, and, by a softmax over the
    points of all maps together, their weights. Places and sums are computed in float32 at least.

    Args:
        dim: channels of queries and cells.
        heads: attention heads, each with points of its own; they divide the inner width.
        maps: number of maps.
        points: on each map.
        ratio: inner width over `dim`.
    """

    def __init__(self, dim: int, heads: int, *, maps: int = 3, points: int = 4, ratio: float = 1.0) -> None:
        super().__init__()
        inner = int(dim * ratio)
        if heads < 1 or points < 1 or inner < heads or inner % heads:
            raise SettingError(f"deformable attention: {heads} heads of {points} points do not share {inner} channels")
        self.heads, self.maps, self.points = heads, maps, points
        self.value = Linear(dim, inner)
        self.sampling = Linear(dim, 3 * heads * maps * points)  # x of every point, then y, then logits of the weights
        self.proj = Linear(inner, dim)
        self.initialise()

    def initialise(self) -> None:
        """Queries start alike: a head looks along its own one of `heads` directions, 1, 2 ... cells away."""
        for layer in (self.value, self.proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.sampling.weight)
        x, y = [], []
        for head in range(self.heads):
            angle = 2 * math.pi * head / self.heads
            longest = max(abs(math.cos(angle)), abs(math.sin(angle)))
            steps = [step / longest for step in range(1, self.points + 1)] * self.maps
            x += [math.cos(angle) * step for step in steps]
            y += [math.sin(angle) * step for step in steps]
        with torch.no_grad():
            self.sampling.bias.copy_(torch.tensor([*x, *y, *[0.0] * len(x)]))

    def forward(self, query: Tensor, reference: Tensor, cells: Tensor, sizes: Sizes) -> Tensor:
        """Attend.

        Args:
            query: (B, N, C).
            reference: (N, 2) or (B, N, 2), x and y that offsets are counted from; 0..1 spans the maps.
            cells: (B, S, C), the maps' cells as in `gather_points`.
            sizes: h, w of each map.
        """
        kind = torch.promote_types(query.dtype, torch.float32)
        value = self.value(cells).unflatten(-1, (self.heads, -1)).to(kind)
        x, y, logits = self.sampling(query).to(kind).chunk(3, -1)  # (B, N, heads * maps * points) each
        sides = torch.tensor([(w, h) for _ in range(self.heads) for h, w in sizes for _ in range(self.points)])
        wide, high = sides.to(query.device, kind).unbind(1)
        across, down = reference.to(kind)[..., None].unbind(-2)
        each = (self.heads, self.maps, self.points)
        x, y = ((start + off / side).unflatten(-1, each) for start, off, side in ((across, x, wide), (down, y, high)))
        weights = _short_softmax(logits.unflatten(-1, (self.heads, -1))).unflatten(-1, each[1:])
        return self.proj(gather_points(value, sizes, x, y, weights).to(query.dtype))


def _short_softmax(logits: Tensor) -> Tensor:
    """Softmax over a last dimension of a dozen entries, where torch's own takes several times as long on the CPU."""
    share = (logits - logits.amax(-1, keepdim=True).detach()).exp()
    return share / share.sum(-1, keepdim=True)
