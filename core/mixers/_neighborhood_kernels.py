"""Neighborhood attention as dense products of query blocks with the key blocks that hold all their windows.

A dilated map falls apart into groups, every D-th cell of each axis; a group is a small map of its own with dilation 1.
Where D does not divide a side, some groups are one cell longer; equal groups go through together, so one call handles
at most four sizes and no cell is ever masked for the groups' sake.

In a group the queries are cut into blocks of b cells a side. All windows of one block lie in b + k - 1 cells a side
(fewer where the map has only one or two blocks), so a block costs two matrix products; a table of biases, minus
infinity outside each query's own k x k window, makes the softmax exact. The clamped windows at the borders only change
that table: it has three kinds of block an axis (first, inner, last).

Shapes: B images, H x W cells, h heads of width d, k kernel, D dilation; N = B * groups maps of a size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from core.mixers._neighborhood_cut import Axis, Cut, bias_index, plan

# Numbers of one chunk's key and value blocks, logits and weights together: on the CPU they should stay in the cache.
CPU_CHUNK, GPU_CHUNK, LEAST_CHUNK = 1 << 20, 1 << 27, 1 << 18

Run = tuple[int, int, int]  # first group, number of groups, their length


def bias_blocks(table: Tensor | None, cut: Cut, kernel: int, like: Tensor) -> Tensor:
    """Biases of every kind of block, (y kinds, h or 1, x kinds, queries, keys), minus infinity outside the windows."""
    y, x = cut
    side = 2 * kernel - 1
    flat = like.new_zeros(1, side * side) if table is None else table.flatten(1).to(like.dtype)
    flat = F.pad(flat, (0, 1), value=-math.inf).index_select(1, bias_index(cut, kernel, like.device))
    shape = (-1, len(y.kinds), len(x.kinds), y.block * x.block, y.keys * x.keys)
    return flat.reshape(shape).transpose(0, 1)


def runs(size: int, dilation: int) -> list[Run]:
    """The longer groups of an axis, then the shorter ones."""
    short, longer = divmod(size, dilation)
    return [(0, longer, short + 1)] * (longer > 0) + [(longer, dilation - longer, short)]


def group(x: Tensor, rows: Run, columns: Run, dilation: int) -> Tensor:
    """A view of the groups of one size: (B, H, W, c, h, d) -> (B, y groups, x groups, c, h, rows, columns, d)."""
    for dim, (first, count, length) in ((1, rows), (2, columns)):
        if count == dilation:
            x = x.unflatten(dim, (length, dilation)).movedim(dim + 1, -1)
        else:
            x = x.narrow(dim, first, x.shape[dim] - first).unfold(dim, count, dilation)
    return x.permute(0, 6, 7, 3, 4, 1, 2, 5)  # from (B, rows, columns, c, h, d, y groups, x groups)


def join(pieces: list[Tensor], dim: int, size: int) -> Tensor:
    """Groups of all lengths, cells on `dim` and groups on `dim + 1`, back into one axis of `size` cells."""
    x = pieces[0]
    if len(pieces) > 1:
        longest = max(p.shape[dim] for p in pieces)  # what short groups get lies past the end of the map
        pieces = [F.pad(p, (0, 0) * (p.ndim - 1 - dim) + (0, longest - p.shape[dim])) for p in pieces]
        x = torch.cat(pieces, dim + 1)
    return x.flatten(dim, dim + 1).narrow(dim, 0, size)


def query_blocks(x: Tensor, cut: Cut) -> Tensor:
    """(B, y groups, x groups, h, rows, columns, d) -> (N, y blocks, h, x blocks, queries, d)."""
    (down, right), heads = (axis.count * axis.block - axis.length for axis in cut), x.shape[3]
    if down or right:
        x = F.pad(x, (0, 0, 0, right, 0, down))
    x = x.unflatten(4, (cut[0].count, cut[0].block)).unflatten(6, (cut[1].count, cut[1].block))
    x = x.permute(0, 1, 2, 4, 3, 6, 5, 7, 8)
    return x.reshape(-1, cut[0].count, heads, cut[1].count, cut[0].block * cut[1].block, x.shape[-1])


def query_maps(blocks: Tensor, cut: Cut, groups: tuple[int, int]) -> Tensor:
    """Blocks (N, y blocks, h, x blocks, queries, d) by their axes, a view.

    (B, y groups, x groups, y blocks, h, x blocks, rows of a block, columns of a block, d).
    """
    return blocks.unflatten(4, (cut[0].block, cut[1].block)).unflatten(0, (-1, *groups))


def whole_maps(x: Tensor, cut: Cut) -> Tensor:
    """Keys and values with their margins: (B, y groups, x groups, 2, h, rows, columns, d) -> (2, N, h, Y, X, d)."""
    x = x.movedim(3, 0)
    margins = (cut[1].before, cut[1].after, cut[0].before, cut[0].after)
    if any(margins):
        x = F.pad(x, (0, 0, *margins))
    return x.reshape(2, -1, *x.shape[4:])


def key_blocks(maps: Tensor, cut: Cut) -> Tensor:
    """A view of `whole_maps`: (2, N, y blocks, h, x blocks, key rows, key columns, d)."""
    for dim, axis in ((3, cut[0]), (4, cut[1])):
        whole = axis.count == 1
        maps = maps.unsqueeze(dim).movedim(dim + 1, -1) if whole else maps.unfold(dim, axis.keys, axis.step)
    return maps.permute(0, 1, 3, 2, 4, 6, 7, 5)  # from (2, N, h, y blocks, x blocks, d, key rows, key columns)


def add_bias_(logits: Tensor, bias: Tensor, cut: Cut, first: int) -> Tensor:
    """Add `bias_blocks` to logits (maps, y blocks from `first` on, h, x blocks, queries, keys)."""
    if torch.compiler.is_exporting():  # all blocks at once: an exporter turns each slice into many steps
        kinds = (torch.tensor([i for i, (a, b) in enumerate(axis.kinds) for _ in range(a, b)]) for axis in cut)
        rows, columns = (k.to(bias.device) for k in kinds)
        return logits + bias.index_select(0, rows).index_select(2, columns)
    last = first + logits.shape[1]
    for i, (a, b) in enumerate(cut[0].kinds):
        a, b = max(a, first), min(b, last)
        if a < b:
            for j, (c, d) in enumerate(cut[1].kinds):
                logits[:, a - first : b - first, :, c:d] += bias[i, :, j, None]
    return logits


def reduce_bias(grad: Tensor, total: Tensor, cut: Cut, first: int) -> None:
    """Add the gradient of logits to that of the bias blocks, the reverse of `add_bias_`."""
    last = first + grad.shape[1]
    for i, (a, b) in enumerate(cut[0].kinds):
        a, b = max(a, first), min(b, last)
        if a < b:
            for j, (c, d) in enumerate(cut[1].kinds):
                total[i, :, j] += grad[:, a - first : b - first, :, c:d].sum((0, 1, 3), dtype=total.dtype)


def add_keys_(maps: Tensor, blocks: Tensor, cut: Cut, first: int) -> None:
    """Add key blocks (2, n, y blocks from `first` on, h, x blocks, rows, columns, d) where they lie in `whole_maps`.

    Key blocks overlap, but the same stretch of all blocks, up to the step long, does not: one sum for each stretch.
    """
    rows, columns = (_stretches(axis) for axis in cut)
    n = blocks.shape[2]
    for (a, b), (c, d) in product(rows, columns):
        into = maps[:, :, :, a + first * cut[0].step :, c:].unfold(3, b - a, cut[0].step)[:, :, :, :n]
        into = into.unfold(4, d - c, cut[1].step)[:, :, :, :, : cut[1].count]
        into.permute(0, 1, 3, 2, 4, 6, 7, 5).add_(blocks[..., a:b, c:d, :])


def _stretches(axis: Axis) -> list[tuple[int, int]]:
    width = axis.step if axis.count > 1 else axis.keys
    return [(a, min(a + width, axis.keys)) for a in range(0, axis.keys, width)]


def chunks(queries: Tensor, cut: Cut, inputs: int) -> Iterator[tuple[slice, slice]]:
    """Maps and rows of blocks to take at a time: a few whole maps, or some rows of blocks of one map.

    What a chunk takes is bounded by the size of the inputs (and LEAST_CHUNK), and what the device's cache likes.
    """
    maps, count, heads, across, cells, d = queries.shape
    keys = cut[0].keys * cut[1].keys
    row = heads * across * keys * 2 * (cells + d)  # logits, weights, keys and values of one row of blocks
    most = max(LEAST_CHUNK, min(inputs, CPU_CHUNK if queries.device.type == "cpu" else GPU_CHUNK))
    if torch.compiler.is_exporting():
        most = row * count * maps  # a loop would be written out
    together = max(1, most // (row * count))
    bands = count if row * count <= most else max(1, most // row)
    for i in range(0, maps, together):
        for j in range(0, count, bands):
            yield slice(i, i + together), slice(j, j + bands)


def forward(qkv: Tensor, table: Tensor | None, kernel: int, dilation: int, scale: float) -> Tensor:
    """(B, H, W, 3, h, d), (h, 2k - 1, 2k - 1) -> (B, H, W, h, d)."""
    H, W = qkv.shape[1:3]
    rows = []
    for y in runs(H, dilation):
        row = []
        for x in runs(W, dilation):
            cut = plan(y[2], x[2], kernel)
            part = group(qkv, y, x, dilation)
            queries, maps = query_blocks(part[:, :, :, 0], cut) * scale, whole_maps(part[:, :, :, 1:], cut)
            blocks, bias = key_blocks(maps, cut), bias_blocks(table, cut, kernel, qkv)
            found = []
            for i, j in chunks(queries, cut, qkv.numel()):
                k, v = blocks[:, i, j].flatten(5, 6).unbind(0)
                logits = add_bias_(torch.matmul(queries[i, j], k.transpose(-2, -1)), bias, cut, j.start)
                found.append(torch.matmul(logits.softmax(-1), v))
            out = found[0] if len(found) == 1 else torch.cat([f.flatten(0, 1) for f in found]).reshape(queries.shape)
            out = query_maps(out, cut, (y[1], x[1])).permute(0, 3, 6, 1, 5, 7, 2, 4, 8)
            # (B, y blocks, rows, y groups, x blocks, columns, x groups, h, d): cells of an axis go block, cell, group
            row.append(out.flatten(4, 5).flatten(1, 2))
        rows.append(join(row, 3, W))
    return join(rows, 1, H)


def backward(
    grad: Tensor, qkv: Tensor, table: Tensor | None, kernel: int, dilation: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Gradients of `forward` for its output's gradient: of qkv, and of the table (empty without one)."""
    H, W = qkv.shape[1:3]
    grad_qkv = torch.empty_like(qkv, memory_format=torch.contiguous_format)
    exact = torch.promote_types(qkv.dtype, torch.float32)
    side = 2 * kernel - 1
    grad_table = None if table is None else qkv.new_zeros(table.shape[0], side * side + 1, dtype=exact)
    for y, x in product(runs(H, dilation), runs(W, dilation)):
        cut = plan(y[2], x[2], kernel)
        part, into = group(qkv, y, x, dilation), group(grad_qkv, y, x, dilation)
        queries, maps = query_blocks(part[:, :, :, 0], cut) * scale, whole_maps(part[:, :, :, 1:], cut)
        grads = query_blocks(group(grad[:, :, :, None], y, x, dilation)[:, :, :, 0], cut)
        blocks, bias = key_blocks(maps, cut), bias_blocks(table, cut, kernel, qkv)
        grad_queries, grad_maps = torch.empty_like(queries), torch.zeros_like(maps)
        grad_bias = None if table is None else torch.zeros_like(bias, dtype=exact)
        for i, j in chunks(queries, cut, qkv.numel()):
            q, g = queries[i, j], grads[i, j]
            k, v = blocks[:, i, j].flatten(5, 6).unbind(0)
            weights = add_bias_(torch.matmul(q, k.transpose(-2, -1)), bias, cut, j.start).softmax(-1)
            slope = torch.matmul(g, v.transpose(-2, -1))
            slope = torch._softmax_backward_data(slope, weights, -1, slope.dtype)
            grad_queries[i, j] = torch.matmul(slope, k)
            for n, value in enumerate((torch.matmul(slope.transpose(-2, -1), q), torch.matmul(weights.mT, g))):
                value = value.unflatten(-2, (cut[0].keys, cut[1].keys))[None]
                add_keys_(grad_maps[n : n + 1, i], value, cut, j.start)
            if grad_bias is not None:
                reduce_bias(slope, grad_bias, cut, j.start)
        out = query_maps(grad_queries * scale, cut, (y[1], x[1])).permute(0, 1, 2, 4, 3, 6, 5, 7, 8)
        into[:, :, :, 0].copy_(out.flatten(6, 7).flatten(4, 5)[..., : y[2], : x[2], :])
        inner = grad_maps[..., cut[0].before :, cut[1].before :, :][..., : y[2], : x[2], :]
        into[:, :, :, 1:].copy_(inner.unflatten(1, (-1, y[1], x[1])).movedim(0, 3))
        if grad_table is not None and grad_bias is not None:
            values = grad_bias.transpose(0, 1).flatten(1)
            grad_table.scatter_add_(1, bias_index(cut, kernel, qkv.device).expand_as(values), values)
    if grad_table is None or table is None:
        return grad_qkv, qkv.new_empty(0)
    return grad_qkv, grad_table[:, :-1].reshape(table.shape).to(table.dtype).contiguous()
