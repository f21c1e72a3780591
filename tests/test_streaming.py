"""Invariants of the tiler: what goes through an identity model comes back, however it is cut."""

import itertools

import numpy as np
import pytest
import torch

from core.errors import SettingError, ShapeError
from core.streaming.arrays import ArraySink, ArraySource
from core.streaming.blend import argmax, image
from core.streaming.run import run
from core.streaming.tiles import cut, grid, weights, windows

SIZES = {1: (101,), 2: (53, 41), 3: (23, 17, 19)}
TILES = {1: 16, 2: (16, 12), 3: (8, 6, 7)}


def identity(tiles, valid):
    return tiles


def field(size, kind, dtype):
    """(1, *size): constant, or linear from 0 to about the type's top (floats: 0 to 1)."""
    ramp = sum(np.linspace(0, 1, n).reshape([-1 if a == i else 1 for a in range(len(size))]) / len(size)
               for i, n in enumerate(size))  # fmt: skip
    values = ramp if kind == "linear" else np.full(size, 0.7)
    dtype = np.dtype(dtype)
    return (values * (np.iinfo(dtype).max if dtype.kind in "iu" else 1)).astype(dtype)[None]


def holes(size):
    valid = np.ones(size, np.bool_)
    valid[tuple(slice(n // 3, n // 2) for n in size)] = False
    valid[: size[0] // 8] = False
    valid[(slice(-3, None),) * len(size)] = False
    return valid


def stream(array, tile, overlap, *, valid=None, model=identity, finish=None, scale=1, batch=3, sink=None, bands=None):
    source = ArraySource(array, valid)
    sink = sink or ArraySink([n * scale for n in source.shape], finish_type(finish, array), bands=bands or len(array))
    run(source, model, sink, tile=tile, overlap=overlap, finish=finish or image(array.dtype), scale=scale, batch=batch)
    return sink.array


def finish_type(finish, array):
    return array.dtype if finish is None else np.uint8


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float32", "float64"])
@pytest.mark.parametrize("overlap", [0, 0.25, 0.5])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_constant_and_linear_fields_come_back(axes, overlap, dtype):
    for kind, valid in itertools.product(["constant", "linear"], [None, holes(SIZES[axes])]):
        array = field(SIZES[axes], kind, dtype)
        want = array[0] if valid is None else np.where(valid, array[0], 0)
        got = stream(array, TILES[axes], overlap, valid=valid)
        if np.dtype(dtype).kind in "iu" or overlap == 0:
            assert np.array_equal(got, want)
        else:
            assert np.abs(got - want).max() <= 1e-6


@pytest.mark.parametrize("overlap", [0.3, 0.7, 0.9, (0.0, 0.5)])
def test_any_overlap_and_mixed_ones(overlap):
    array = np.random.default_rng(0).integers(0, 65536, (2, 37, 45)).astype(np.uint16)
    assert np.array_equal(stream(array, (11, 13), overlap), array)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_one_tile_is_one_pass_bit_for_bit(axes):
    torch.manual_seed(0)
    layer = [torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d][axes - 1](2, 3, 3, padding=1)
    size, tile = (9, 7, 6)[:axes], (12, 10, 6)[:axes]
    array = np.random.default_rng(1).normal(size=(2, *size)).astype(np.float32)
    got = stream(array, tile, 0.5, model=lambda t, v: layer(t), finish=image("float32"), bands=3,
                 sink=ArraySink(size, "float32", bands=3))  # fmt: skip
    padded = np.zeros((1, 2, *tile), np.float32)
    padded[(0, slice(None), *map(slice, size))] = array
    with torch.inference_mode():
        want = layer(torch.from_numpy(padded))[(0, slice(None), *map(slice, size))].numpy()
    assert np.array_equal(got, want)


def test_weights_sum_to_exactly_one():
    for length, tile, overlap in [(100, 16, 0.25), (101, 16, 0.5), (64, 16, 0.9), (33, 16, 0.06), (17, 16, 0.5)]:
        axis = cut(length, tile, overlap)
        assert axis.starts[-1] == length - tile
        total = np.zeros(length, np.float32)
        for start, w in zip(axis.starts, axis.weights, strict=True):
            assert (w >= 0).all()
            total[start : start + tile] += w
        assert (total == 1).all()
    w = weights((16, 32), (0.5, 0.25))
    assert w.shape == (16, 32)
    assert np.array_equal(w[:8] + w[8:], np.broadcast_to(w[:8] + w[8:], (8, 32)))
    assert ((w[:8] + w[8:])[:, 8:24] == 1).all()


def test_weights_are_smooth():
    w = weights([64], 0.25)
    assert w[0] < 0.01
    assert np.abs(np.diff(w)).max() < 0.12


def test_seams_of_two_answers_are_blended():
    """Tiles that answer differently meet without a step at overlap 0.5, with one at 0."""
    calls = itertools.count()

    def model(tiles, valid):
        return torch.stack([torch.full(t.shape, float(next(calls) % 2)) for t in tiles])

    array = np.zeros((1, 128), np.float32)
    assert np.abs(np.diff(stream(array, 32, 0.0, model=model))).max() == 1
    assert np.abs(np.diff(stream(array, 32, 0.5, model=model))).max() < 0.2


def test_model_sees_tiles_and_validity():
    seen = []

    def model(tiles, valid):
        seen.append((tiles.shape, valid.clone(), tiles.clone()))
        assert torch.is_inference_mode_enabled()
        return tiles.float()

    array = np.full((2, 20, 9), 7, np.uint16)
    valid = np.ones((20, 9), np.bool_)
    valid[8:16] = False
    got = stream(array, (8, 16), 0, valid=valid, model=model, batch=2, finish=image("uint16"),
                 sink=ArraySink((20, 9), "uint16", bands=2))  # fmt: skip
    assert [s for s, _, _ in seen] == [(1, 2, 8, 16), (1, 2, 8, 16)]  # the middle one has nothing valid
    assert seen[0][1][0, :, :9].all()
    assert not seen[0][1][0, :, 9:].any()
    assert seen[0][2].dtype == torch.int32
    assert (seen[1][2][0, :, :4] == 0).all()  # shifted back over the hole
    assert (got[:, valid] == 7).all()
    assert (got[:, ~valid] == 0).all()


def test_batches_do_not_change_the_answer():
    array = np.random.default_rng(2).integers(0, 255, (1, 40, 40)).astype(np.uint8)
    assert all(np.array_equal(stream(array, 16, 0.25, batch=b), array[0]) for b in (1, 2, 5, 100))
    line = array.reshape(1, -1)
    assert np.array_equal(stream(line, 16, 0.25, batch=7), line[0])


def test_batches_are_full_along_one_axis():
    sizes = []

    def model(tiles, valid):
        sizes.append(len(tiles))
        return tiles

    stream(np.ones((1, 160), np.float32), 16, 0, model=model, batch=4)
    assert sizes == [4, 4, 2]


def test_nothing_valid_at_all():
    calls = []

    def model(tiles, valid):
        calls.append(len(tiles))
        return torch.full((len(tiles), 3, *tiles.shape[2:]), 5.0)

    scores = []

    def finish(s, valid):
        scores.append(s.copy())
        return argmax()(s, valid)

    got = stream(np.ones((1, 40, 12)), 8, 0.5, valid=np.zeros((40, 12), np.bool_), model=model, finish=finish)
    assert (got == 255).all()
    assert calls == [1]  # asked once, for the number of scores
    assert all((s == 0).all() and s.shape[0] == 3 for s in scores)


@pytest.mark.parametrize("overlap", [0, 0.25])
@pytest.mark.parametrize("scale", [2, 3])
def test_scale(scale, overlap):
    def model(tiles, valid):
        return tiles.repeat_interleave(scale, 2).repeat_interleave(scale, 3)

    array = np.random.default_rng(3).integers(0, 255, (1, 29, 31)).astype(np.uint8)
    valid = holes((29, 31))
    got = stream(array, 8, overlap, model=model, scale=scale, valid=valid)
    want = np.where(valid, array[0], 0).repeat(scale, 0).repeat(scale, 1)
    assert np.array_equal(got, want)


class Interrupted(ArraySink):
    """Fails at a row, keeps what it has."""

    def __init__(self, *args, fail):
        super().__init__(*args)
        self.fail = fail

    def write(self, start, strip):
        if start + strip.shape[1] > self.fail:
            keep = self.fail - start  # a sink may hold rows that are no strip's end
            if keep > 0:
                super().write(start, strip[:, :keep])
            self.fail = 10**9
            raise OSError("stopped")
        super().write(start, strip)


@pytest.mark.parametrize(
    ("size", "tile", "scale"), [((97,), 16, 1), ((61, 30), 16, 1), ((30, 20), 8, 3), ((19, 9, 8), 5, 1)]
)
@pytest.mark.parametrize("overlap", [0, 0.25, 0.5])
def test_resumed_is_bit_equal(size, tile, scale, overlap):
    torch.manual_seed(0)
    axes = len(size)
    layer = [torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d][axes - 1](1, 1, 3, padding=1)

    def model(tiles, valid):
        out = layer(tiles)
        for axis in range(2, out.ndim):
            out = out.repeat_interleave(scale, axis)
        return out

    array = np.random.default_rng(4).normal(size=(1, *size)).astype(np.float32)
    valid = holes(size)
    shape = [n * scale for n in size]
    want = stream(array, tile, overlap, valid=valid, model=model, scale=scale, sink=ArraySink(shape, "float32"))
    for fail in (1, shape[0] // 3, shape[0] // 2 + 1, shape[0] - 1):
        sink = Interrupted(shape, "float32", fail=fail)
        with pytest.raises(OSError, match="stopped"):
            stream(array, tile, overlap, valid=valid, model=model, scale=scale, sink=sink)
        assert sink.written == fail
        got = stream(array, tile, overlap, valid=valid, model=model, scale=scale, sink=sink)
        assert np.array_equal(got, want)


def test_errors_of_model_source_and_sizes():
    array = np.zeros((1, 40, 40), np.float32)

    def broken(tiles, valid):
        raise RuntimeError("the model's own")

    with pytest.raises(RuntimeError, match="the model's own"):
        stream(array, 8, 0.25, model=broken)
    with pytest.raises(ShapeError, match="the model gave scores"):
        stream(array, 8, 0.25, model=lambda t, v: t[..., :4])

    class Unreadable(ArraySource):
        def read(self, start, stop):
            if stop[0] > 30:
                raise OSError("unreadable")
            return super().read(start, stop)

    with pytest.raises(OSError, match="unreadable"):
        run(Unreadable(array), identity, ArraySink((40, 40), "float32"), tile=8, overlap=0, finish=image())
    for wrong in ({"tile": 0}, {"tile": (8,)}, {"overlap": 1.0}, {"overlap": -0.1}, {"batch": 0}, {"scale": 0}):
        settings = {"tile": 8, "overlap": 0.25, "finish": image(), **wrong}
        with pytest.raises(SettingError):
            run(ArraySource(array), identity, ArraySink((40, 40), "float32"), **settings)


def test_progress_and_memory_of_a_long_scene():
    """Each row is read once and strips are short, however long the scene is."""
    reads, rows = [], []

    class Long:
        shape, channels, dtype = (5000, 8), ("0",), np.dtype(np.uint8)
        meta = ArraySource(np.zeros((1, 2))).meta

        def read(self, start, stop):
            reads.append((start[0], stop[0]))
            size = [b - a for a, b in zip(start, stop, strict=True)]
            return np.ones((1, *size), np.uint8), np.ones(size, np.bool_)

    sink = ArraySink((5000, 8), "uint8")
    run(
        Long(),
        identity,
        sink,
        tile=(20, 8),
        overlap=0.25,
        finish=image("uint8"),
        progress=lambda a, b: rows.append((a, b)),
    )
    assert max(b - a for a, b in reads) == 20
    assert sum(b - a for a, b in reads) == 5000
    assert rows[-1] == (5000, 5000)
    assert rows == sorted(rows)


def test_finish_argmax():
    scores = np.array([[[0.0, 2.0, 1.0]], [[1.0, 2.0, 0.0]]])
    assert argmax()(scores, np.array([[True, True, False]])).tolist() == [[1, 0, 255]]
    assert argmax("uint16", 9)(scores, np.ones((1, 3), np.bool_)).dtype == np.uint16
    with pytest.raises(SettingError, match="do not fit"):
        argmax()(np.zeros((257, 1)), np.ones(1, np.bool_))
    with pytest.raises(SettingError, match="do not fit"):
        argmax("uint8", 1)(scores, np.zeros((1, 3), np.bool_))


def test_finish_image_rounds_and_limits():
    all_valid = np.ones(4, np.bool_)
    scores = np.array([[0.5, 1.5, 3e9, -3e9]], np.float32)
    assert image("uint8")(scores, all_valid).tolist() == [[0, 2, 255, 0]]
    assert image("int32")(scores, all_valid).tolist() == [[0, 2, 2**31 - 128, -(2**31)]]
    assert image("int16")(np.array([[70000, -70000, 1, 2]]), all_valid).tolist() == [[32767, -32768, 1, 2]]
    assert image("float32", invalid=np.nan)(scores, np.array([True, False, True, True]))[0].tolist()[1] != 0


def test_windows_and_sources_pad():
    array = np.arange(20, dtype=np.float32).reshape(1, 4, 5)
    array[0, 1, 1] = np.nan
    found = list(windows(ArraySource(array), (3, 4), 0.0))
    assert [start for start, _, _ in found] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert found[0][1][0, 1, 1] == 0
    assert not found[0][2][1, 1]
    values, valid = ArraySource(array).read((-1, 3), (2, 7))
    assert values.shape == (1, 3, 4)
    assert values[0, 1].tolist() == [3, 4, 0, 0]
    assert valid.tolist() == [[False] * 4, [True, True, False, False], [True, True, False, False]]
    values, valid = ArraySource(array).read((10, 10), (12, 12))
    assert not valid.any()
    assert grid((3,), 8, 0.5)[0].starts == (0,)


def test_array_sink_refuses_what_does_not_follow():
    sink = ArraySink((4, 2), "uint8")
    sink.write(0, np.zeros((2, 2), np.uint8))
    with pytest.raises(SettingError):
        sink.write(3, np.zeros((1, 2), np.uint8))
    with pytest.raises(SettingError):
        sink.write(2, np.zeros((1, 3), np.uint8))
    with pytest.raises(SettingError, match="2 of 4 rows"):
        sink.close()
