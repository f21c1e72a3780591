"""Runs that are killed, disks that fill, journals that do not fit."""

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from core.errors import FileError
from core.streaming.arrays import ArraySource
from core.streaming.blend import image
from core.streaming.files import open_sink
from core.streaming.journal import Journal
from core.streaming.run import run

SUFFIXES = {"a.tif": "tifffile", "a.png": "PIL", "a.nii.gz": "nibabel", "geo.tif": "rasterio"}
SIZE = (150, 90)


def sink_of(path, **options):
    pytest.importorskip(SUFFIXES[path.name])
    if path.name == "geo.tif":
        from core.streaming.geotiff import GeoTiffSink

        sink = GeoTiffSink(path, SIZE, "uint8", nodata=0, classes={1: "one"}, **options)
    else:
        sink = open_sink(path, SIZE, "uint8", **options)
    if sink._rows:
        sink._rows = 16  # several rows of blocks on a small scene
    if path.name == "a.tif":
        sink._tile = [16, 96]
    if path.name == "geo.tif":
        sink._profile.update(blockysize=16)
    return sink


def scene():
    return np.random.default_rng(0).integers(1, 255, (1, *SIZE)).astype(np.uint8)


def predict(sink, model=lambda t, v: t, **options):
    settings = {"tile": 24, "overlap": 0.25, "finish": image("uint8"), "batch": 3, **options}
    run(ArraySource(scene()), model, sink, **settings)


class StopError(Exception):
    pass


def failing(after):
    calls = iter(range(10**6))

    def model(tiles, valid):
        if next(calls) == after:
            raise StopError
        return tiles

    return model


@pytest.mark.parametrize("name", SUFFIXES)
def test_a_stopped_run_goes_on(tmp_path, name):
    predict(sink_of(tmp_path / name))
    want = (tmp_path / name).read_bytes()
    (tmp_path / name).unlink()
    for after in (5, 6, 7):
        with pytest.raises(StopError):
            predict(sink_of(tmp_path / name), failing(after))
        assert not (tmp_path / name).exists()
    assert 0 < sink_of(tmp_path / name).written < SIZE[0]
    calls = []
    again = sink_of(tmp_path / name)
    predict(again, lambda t, v: (calls.append(len(t)), t)[1])
    assert sum(calls) < 8 * 5  # of all tiles
    assert (tmp_path / name).read_bytes() == want if not name.endswith("gz") else True
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_what_a_kill_leaves_behind_is_cut_off(tmp_path):
    path = tmp_path / "a.tif"
    predict(sink_of(path))
    want = path.read_bytes()
    with pytest.raises(StopError):
        predict(sink_of(path), failing(9))
    folder = tmp_path / "a.tif.part"
    lines = (folder / "rows.txt").read_bytes()
    assert lines.count(b"\n") >= 3
    with (folder / "blocks.bin").open("ab") as file:
        file.write(b"blocks without a line")
    (folder / "rows.txt").write_bytes(lines + b"150 12")
    predict(sink_of(path))
    assert path.read_bytes() == want
    with pytest.raises(StopError):
        predict(sink_of(path), failing(9))
    with (folder / "blocks.bin").open("r+b") as file:  # lines without their blocks, as after a power cut
        file.truncate(10)
    predict(sink_of(path))
    assert path.read_bytes() == want


def test_all_rows_are_there_but_the_file(tmp_path):
    for name in SUFFIXES:
        path = tmp_path / name
        sink = sink_of(path)
        sink.close = lambda: None
        predict(sink)
        sink.release()
        assert not path.exists()
        predict(sink_of(path), failing(0))  # the model is not asked again
        assert path.exists()


def test_another_setting_starts_again_and_says_so(tmp_path):
    path = tmp_path / "a.tif"
    predict(sink_of(path))
    want = path.read_bytes()

    def stopped(**options):
        with pytest.raises(StopError):
            predict(sink_of(path, **options), failing(9))

    stopped(key="model 1")
    with pytest.warns(UserWarning, match="another key; starting again"):
        predict(sink_of(path, key="model 2"))
    assert path.read_bytes() == want
    stopped()
    with pytest.warns(UserWarning, match="another batch, starts, tile; starting again"):
        predict(sink_of(path), tile=32, batch=2)
    stopped()
    other = ArraySource(255 - scene())
    with pytest.warns(UserWarning, match="another source; starting again"):
        run(other, lambda t, v: t, sink_of(path), tile=24, overlap=0.25, batch=3, finish=image("uint8"))
    stopped()
    (tmp_path / "a.tif.part" / "settings.json").write_text("[")
    predict(sink_of(path))
    assert path.read_bytes() == want


def test_no_name_stands_in_the_journal(tmp_path):
    with pytest.raises(StopError):
        predict(sink_of(tmp_path / "a.tif", key={"patient": "Jane Roe"}), failing(9))
    for file in (tmp_path / "a.tif.part").iterdir():
        assert b"Roe" not in file.read_bytes()
        assert b"patient" not in file.read_bytes()


def test_two_runs_do_not_write_one_result(tmp_path):
    sink = sink_of(tmp_path / "a.tif")
    sink.agree()
    with pytest.raises(FileError, match="another process"):
        predict(sink_of(tmp_path / "a.tif"))
    sink.release()
    predict(sink_of(tmp_path / "a.tif"))


@pytest.mark.parametrize("name", SUFFIXES)
def test_disk_fills_while_strips_are_written(tmp_path, name):
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    path = tmp_path / name
    predict(sink_of(path))
    want = path.read_bytes()
    path.unlink()
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (6000, limits[1]))
        with pytest.raises(FileError, match=rf"{name}: could not be written behind row \d+ .*; make room"):
            predict(sink_of(path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not path.exists()
    assert 0 < sink_of(path).written < SIZE[0]
    predict(sink_of(path))
    assert path.read_bytes() == want or name.endswith("gz")


@pytest.mark.parametrize("name", SUFFIXES)
@pytest.mark.parametrize("room", [60, 3000, 12000])
def test_disk_fills_while_the_file_is_made(tmp_path, name, room):
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    path = tmp_path / name
    sink = sink_of(path)
    close, sink.close = sink.close, lambda: None
    predict(sink)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
        with pytest.raises(FileError, match="could not be written behind row 150"):
            close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not path.exists()
    close()
    assert path.exists()
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_no_space_left(tmp_path, monkeypatch):
    def full(file):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("core.streaming.journal._sync", full)
    with pytest.raises(FileError, match="no space left on device"):
        predict(sink_of(tmp_path / "a.tif"))
    assert not (tmp_path / "a.tif").exists()


def test_journal_by_itself(tmp_path):
    journal = Journal(tmp_path / "x", {"a": 1})
    journal.append(3, [b"one", b"two"])
    journal.append(5, [b"three"])
    journal.release()
    journal = Journal(tmp_path / "x", {"a": 1})
    assert journal.rows == 5
    assert list(journal.read()) == [[b"one", b"two"], [b"three"]]
    journal.remove()
    assert not list(tmp_path.iterdir())


KILLED = """
    import os, random, signal, sys, time
    from pathlib import Path
    import numpy as np
    sys.path.insert(0, sys.argv[2])
    from core.streaming.blend import argmax
    from core.streaming.files import open_source
    from core.streaming.geotiff import GeoTiffSink
    from core.streaming.run import run
    import torch, rasterio
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    values = np.random.default_rng(0).integers(0, 255, (1, 3000, 300)).astype(np.uint8)
    values[:, 700:1300, 50:200] = 0
    with rasterio.open(folder / "in.tif", "w", driver="GTiff", count=1, height=3000, width=300, dtype="uint8", nodata=0,
                       crs="EPSG:32633", transform=rasterio.Affine(10, 0, 5e5, 0, -10, 4e6)) as data:
        data.write(values)

    def go(name, pause):
        def model(tiles, valid):
            time.sleep(pause)
            x = tiles.float()
            return torch.cat([x, 255 - x, 2 * (x - 100).abs()], 1)
        source = open_source(folder / "in.tif")
        sink = GeoTiffSink(folder / name, source.shape, "uint8", meta=source.meta, nodata=255, tags={"made": "here"})
        run(source, model, sink, tile=128, overlap=0.25, batch=2, finish=argmax())

    for n, wait in enumerate([1, 3, 5]):
        child = os.fork()
        if not child:
            go("killed.tif", 0.02)
            os._exit(0)
        lines = folder / "killed.tif.part" / "rows.txt"
        while not lines.exists() or lines.read_bytes().count(b"\\n") < wait:
            time.sleep(0.002)
        time.sleep(random.uniform(0, 0.06))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert not (folder / "killed.tif").exists(), "killed too late"
    go("killed.tif", 0)
    go("whole.tif", 0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_kill_9_at_three_points(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    root = str(__import__("pathlib").Path(__file__).resolve().parents[1])
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path), root],
                          capture_output=True, text=True, timeout=120)  # fmt: skip
    assert done.returncode == 0, done.stderr
    with rasterio.open(tmp_path / "killed.tif") as a, rasterio.open(tmp_path / "whole.tif") as b:
        assert a.profile == b.profile
        assert a.tags() == b.tags()
        assert a.tags()["made"] == "here"
        assert np.array_equal(a.read(), b.read())
        assert set(np.unique(a.read())) == {0, 1, 2, 255}
    assert (tmp_path / "killed.tif").read_bytes() == (tmp_path / "whole.tif").read_bytes()
