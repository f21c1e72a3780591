"""Hints: reading, writing, and the cells that they fill."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from apps.colorization import _items, hints, lab
from apps.colorization._fidelity import span
from apps.colorization.hints import Hint
from core.data import photos
from core.errors import FileError, InputError

RED, BLUE = Hint(3, 2, 200, 30, 40), Hint(10, 0, 0, 0, 255)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_columns_in_any_order_and_others_passed_over(tmp_path: Path) -> None:
    path = write(tmp_path / "h.csv", "\ufeffB,note,g,r,y,x\n40,a,30,200,2,3\n\n255,,0,0,0,10\n")
    assert hints.read(path) == (RED, BLUE)
    assert hints.read(path)[1].source.endswith("h.csv: line 4")


@pytest.mark.parametrize("name", ["h.csv", "h.json"])
def test_what_is_written_is_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    hints.write(path, [RED, BLUE], [{"got_r": 1}, {"got_r": 2}])
    assert hints.read(path) == (RED, BLUE)
    assert "got_r" in path.read_text()
    named = [Hint(1, 2, 3, 4, 5, file="a.jpg")]
    hints.write(path, named)
    assert hints.read(path)[0].file == "a.jpg"
    hints.write(tmp_path / "none.csv", [])
    assert hints.read(tmp_path / "none.csv") == ()
    with pytest.raises(FileError, match=r"are not written as \.xml"):
        hints.write(tmp_path / "h.xml", [RED])


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("h.csv", "", "is empty"),
        ("h.csv", "x,y,r,g\n1,2,3,4\n", "line 1: the header has no column b"),
        ("h.csv", "x,y,r,g,b\n1,2,3,4,5\n1,two,3,4,5\n", r"line 3, column 2 \(y\): 'two' is not a number"),
        ("h.csv", "x,y,r,g,b\n1,2,3,4\n", "line 2: 4 fields"),
        ("h.csv", "x,y,r,g,b\n1,2,3,4,256\n", "line 2, column b: 256 is no colour"),
        ("h.csv", "x,y,r,g,b\n1,2,-1,4,5\n", "line 2, column r: -1 is no colour"),
        ("h.csv", "x,y,r,g,b\n1,2,3,0.5,5\n", "line 2, column g: 0.5 is no colour"),
        ("h.csv", "x,y,r,g,b\n1,nan,3,4,5\n", r"line 2, column 2 \(y\)"),
        ("h.json", "[{]", "line 1, column 3: is not JSON"),
        ("h.json", '[{"x": 1, "y": 2, "r": 3, "g": 4}]', "point 1: b is missing"),
        ("h.json", "7", "holds no points"),
        ("h.png", "", "hints are not read from .png"),
    ],
)
def test_malformed_files_are_one_sentence(tmp_path: Path, name: str, text: str, words: str) -> None:
    with pytest.raises(FileError, match=words) as caught:
        hints.read(write(tmp_path / name, text))
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_file_a_folder_and_no_text(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no such file"):
        hints.read(tmp_path / "h.csv")
    with pytest.raises(FileError, match="is a folder"):
        hints.read(tmp_path)
    (tmp_path / "h.csv").write_bytes(b"x,y,r,g,b\n\xff\xfe,2,3,4,5\n")
    with pytest.raises(FileError, match="line 2: is not text in UTF-8"):
        hints.read(tmp_path / "h.csv")


def test_published_places_take_the_true_colours(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "0 223\n112 5\n")  # row, column of the 224 x 224 picture
    truth = np.zeros((448, 100, 3), np.uint16)
    truth[1, 99], truth[225, 2] = (65535, 0, 0), (0, 257 * 7, 0)
    assert hints.read(path, truth=truth) == (Hint(99, 1, 255, 0, 0), Hint(2, 225, 0, 7, 0))
    with pytest.raises(FileError, match="places without colours"):
        hints.read(path)
    with pytest.raises(FileError, match="line 1: has 3 words"):
        hints.positions(write(path, "1 2 3\n"))
    with pytest.raises(FileError, match=r"line 2, column 2 \(column\): is '224'"):
        hints.positions(write(path, "1 2\n3 224\n"))


def test_cells_of_a_picture() -> None:
    placed = hints.cells([Hint(0, 0, 255, 0, 0), Hint(447, 223, 0, 255, 0), Hint(200, 100, 9, 9, 200)], (224, 448), 112)
    assert list(zip(placed.rows, placed.columns, strict=True)) == [(0, 0), (111, 111), (50, 50)]
    assert not placed.said
    mask = placed.mask.reshape(112, 112)
    assert (~mask).sum() == 3
    assert not mask[50, 50]
    want = lab.to_lab(torch.tensor([9, 9, 200]).float().reshape(1, 3, 1, 1) / 255)[0, 1:, 0, 0]
    assert np.allclose(placed.planes[:, 50, 50], want, atol=1e-6)
    assert np.abs(placed.planes[:, mask]).max() == 0
    small = hints.cells([Hint(0, 1, 9, 9, 9), Hint(2, 4, 9, 9, 9)], (5, 3), 112)  # the cell at the pixel's middle
    assert list(zip(small.rows, small.columns, strict=True)) == [(33, 18), (100, 93)]


def test_of_two_hints_in_a_cell_the_last_counts_and_it_is_said() -> None:
    placed = hints.cells([Hint(0, 0, 255, 0, 0), Hint(100, 100, 1, 2, 3), Hint(1, 1, 0, 0, 255)], (224, 224), 112)
    assert placed.hints == (Hint(1, 1, 0, 0, 255), Hint(100, 100, 1, 2, 3))
    assert placed.said == ("2 hints lie in one cell (x 0 y 0, x 1 y 1), the last one counts",)
    assert placed.planes[1, 0, 0] < -0.5  # blue, not red


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (
            Hint(-1, 0, 0, 0, 0),
            "column x: -1 lies outside the photograph, which is 20 pixels wide .x goes from 0 to 19",
        ),
        (Hint(20, 0, 0, 0, 0), "column x: 20 lies outside"),
        (Hint(0, 10, 0, 0, 0, source="a.csv: line 7"), "a.csv: line 7, column y: 10 lies outside .* 10 pixels high"),
        (Hint(0, 0, 0, 300, 0), "column g: 300 is no colour"),
    ],
)
def test_hints_outside_are_refused(hint: Hint, words: str) -> None:
    with pytest.raises(InputError, match=words):
        hints.cells([hint], (10, 20), 112)


@pytest.mark.parametrize("pixels", [1, 3, 100, 112, 113, 224, 300, 20000])
def test_every_pixel_lies_in_the_span_of_its_cell(pixels: int) -> None:
    for pixel in {0, 1, pixels // 3, pixels // 2, pixels - 1} & set(range(pixels)):
        cell = (2 * pixel + 1) * 112 // (2 * pixels)
        first, last = span(cell, pixels, 112)
        assert first <= pixel < last <= pixels
    spans = [span(k, pixels, 112) for k in range(112)]
    if pixels >= 112:
        assert [a for a, _ in spans[1:]] == [b for _, b in spans[:-1]]


def pictures(folder: Path, *names: str) -> list[Path]:
    for name in names:
        photos.save(folder / name, np.zeros((8, 8, 3), np.uint8))
    return [folder / n for n in names]


def test_one_list_for_several_photographs(tmp_path: Path) -> None:
    files = pictures(tmp_path, "a.png", "b.png", "c.png")
    path = write(tmp_path / "h.csv", "file,x,y,r,g,b\na.png,1,2,3,4,5\nb,5,6,7,8,9\nd.png,1,1,1,1,1\n")
    items, said = _items.items(files, path)
    assert [i.given for i in items] == [(Hint(1, 2, 3, 4, 5),), (Hint(5, 6, 7, 8, 9),), ()]
    assert any("no hints for c.png" in s for s in said)
    assert any("names d.png" in s for s in said)
    assert items[0].key != items[1].key
    write(path, "x,y,r,g,b\n1,2,3,4,5\n")
    with pytest.raises(FileError, match="does not say to which of 3 photographs line 2 belongs"):
        _items.items(files, path)


def test_a_folder_of_hints(tmp_path: Path) -> None:
    files = pictures(tmp_path, "a.png", "b.png", "c.png")
    folder = tmp_path / "hints"
    folder.mkdir()
    write(folder / "a.csv", "x,y,r,g,b\n1,2,3,4,5\n")
    (folder / "b.json").write_text(json.dumps([{"x": 1, "y": 1, "r": 1, "g": 1, "b": 1}]))
    items, said = _items.items(files, folder)
    photo = photos.read(files[0])
    assert items[0].hints(photo) == (Hint(1, 2, 3, 4, 5),)
    assert items[1].hints(photo) == (Hint(1, 1, 1, 1, 1),)
    assert items[2].hints(photo) == ()
    assert folder / "a.csv" in items[0].paths  # a change of it is seen
    assert said == ["no hints for c.png: coloured without any"]
    with pytest.raises(FileError, match=r"has no hints for a\.png"):
        _items.items(files[:1], tmp_path)


def test_a_list_that_names_other_photographs(tmp_path: Path) -> None:
    files = pictures(tmp_path, "a.png")
    path = write(tmp_path / "h.csv", "file,x,y,r,g,b\nz.png,1,2,3,4,5\n")
    items, _ = _items.items(files, path)
    with pytest.raises(FileError, match=r"has no line for a\.png"):
        items[0].hints(photos.read(files[0]))
