"""Points as CSV and GeoJSON, and what is said of files that are not sound."""

import json

import pytest

from core.data import geojson, points
from core.data.points import Point, Points
from core.errors import FileError, SettingError


def given(folder, content, name="hints.csv"):
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_csv_is_read_with_what_spreadsheets_do(tmp_path):
    content = '\ufeffR,x,Y,label\r\n\r\n 255 ,3,4.5,sky\r\n0,1e1,2,"a, b"\r\n'
    found = points.read(given(tmp_path, content))
    assert found.items == (Point(3.0, 4.5, "sky", (255.0,)), Point(10.0, 2.0, "a, b", (0.0,)))
    assert (found.names, found.places) == (("r",), ("line 3", "line 4"))
    named = points.read_csv(given(tmp_path, "g,x,y,r\n7,1,2,9\n"), names=("r", "g"))
    assert named.items[0].value == (9.0, 7.0)
    assert len(points.read_csv(given(tmp_path, "x,y\n"))) == 0


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "is empty"),
        ("x;y;r\n1;2;3\n", "line 1: the columns are separated by semicolons; separate them by commas"),
        ("x\ty\tr\n", "line 1: the columns are separated by tabs"),
        ("1,2,3\n", "line 1, column 1: no column is called '1'; the header is x,y,r"),
        ("x,r\n1,2\n", "line 1: the header has no column y"),
        ("x,y\n1,2\n", "line 1: the header has no column r"),
        ("x,y,r,x\n", "line 1, column 4: column 'x' is there twice"),
        ("x,y,r,\n", "line 1, column 4: a column has no name"),
        ("x,y,r,g\n", "line 1, column 4: no column is called 'g'"),
        ("x,y,r\n1,2,3\n4,red,6\n", "line 3, column 2 (y): 'red' is not a number"),
        ("r,x,y\n1,2,\n", "line 2, column 3 (y): '' is not a number"),
        ("x,y,r\n1,2,nan\n", "line 2, column 3 (r): 'nan' is not a number"),
        ("x,y,r\n1,2,1_0\n", "line 2, column 3 (r): '1_0' is not a number"),
        ("x,y,r\n1,2\n", "line 2: 2 fields, but the header has 3; fill in every column"),
        ("x,y,r\n1,5,2,3\n", "line 2: 4 fields, but the header has 3; a decimal has a dot"),
        ('x,y,r\n1,2,"3\n', "line 2: is not CSV"),
        (b"x,y,r\n1,2,3\n1,2,\xff\n", "line 3: is not text in UTF-8"),
    ],
)
def test_a_wrong_csv_is_one_sentence_with_its_place(tmp_path, content, says):
    path = given(tmp_path, content)
    with pytest.raises(FileError) as refused:
        points.read_csv(path, names=("r",))
    assert str(refused.value).startswith(f"{path}: {says}")
    assert "\n" not in str(refused.value)


def test_sizes_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(points, "MAX_POINTS", 2)
    with pytest.raises(FileError, match="line 4: more than 2 points"):
        points.read(given(tmp_path, "x,y\n1,1\n2,2\n3,3\n"))
    monkeypatch.setattr(geojson, "MAX_POINTS", 2)
    with pytest.raises(FileError, match="has more than 2 points"):
        points.read(given(tmp_path, '[{"x": 1, "y": 1}, {"x": 1, "y": 1}, {"x": 1, "y": 1}]', "a.json"))
    monkeypatch.setattr(points, "MAX_BYTES", 8)
    with pytest.raises(FileError, match="has more than 0 MiB"):
        points.read(given(tmp_path, "x,y\n1,1\n2,2\n"))
    with pytest.raises(FileError, match="no such file"):
        points.read(tmp_path / "none.csv")


@pytest.mark.parametrize("ending", ["csv", "geojson"])
def test_what_is_written_is_read_again(tmp_path, ending):
    items = (Point(0.1 + 0.2, -1, "leaf", (255, 0.5)), Point(7, 8, "", (0, 1)))
    given_points = Points(items, ("r", "g"))
    (points.write_csv if ending == "csv" else geojson.write)(tmp_path / f"a.{ending}", given_points)
    found = points.read(tmp_path / f"a.{ending}", names=("r", "g"))
    assert found.items == items
    assert found.names == ("r", "g")
    assert [p.name for p in tmp_path.iterdir()] == [f"a.{ending}"]
    short = Points((Point(1, 2),), ("r",))
    for write in (points.write_csv, geojson.write):
        with pytest.raises(SettingError, match="point 1 has not 1 finite values"):
            write(tmp_path / "b.csv", short)
    assert not (tmp_path / "b.csv").exists()


def test_geojson_of_other_programs(tmp_path):
    feature = {"type": "Feature", "geometry": {"type": "Point", "coordinates": [3, 4, 0]}, "properties": {"R": 5}}
    path = given(tmp_path, json.dumps(feature), "a.geojson")
    assert points.read(path).items == (Point(3.0, 4.0, "", (5.0,)),)
    feature["properties"] = None
    path = given(tmp_path, json.dumps({"type": "FeatureCollection", "features": [feature]}), "a.geojson")
    assert points.read(path).items == (Point(3.0, 4.0),)
    assert points.read(given(tmp_path, '[{"x": 1, "Y": 2, "label": 7}]', "a.json")).items == (Point(1.0, 2.0, "7"),)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('[{"x": 1,\n "y": }]', "line 2, column 7: is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ('[{"x": 1' + "0" * 400 + "}]", "point 1: x is '1000"),
        ("[" + "1" * 5000 + "]", "is not JSON of points"),
        ('{"a": 1}', "holds no points"),
        ("[3]", "point 1: is '3'"),
        ('[{"x": 1, "y": 2, "r": 3}, {"x": 1, "y": "2", "r": 1}]', "point 2: y is '2'"),
        ('[{"x": 1, "y": 2}]', "point 1: r is missing"),
        ('[{"x": 1, "y": 2, "r": true}]', "point 1: r is 'True'"),
        ('[{"x": 1, "y": 2, "r": NaN}]', "point 1: r is 'nan'"),
        ('[{"x": 1, "y": 2, "r": 1, "gren": 2}]', "point 1: 'gren' is not one of its entries"),
        ('[{"x": 1, "y": 2, "r": 1, "label": [1]}]', "point 1: the label is '[1]'"),
        ('[{"type": "Feature", "geometry": {"type": "Polygon"}}]', "feature 1: its geometry is 'Polygon'"),
        ('[{"type": "Feature", "geometry": null}]', "feature 1: its geometry is None"),
        ('[{"type": "Feature", "geometry": {"type": "Point", "coordinates": [1]}}]', "feature 1: its coordinates"),
    ],
)
def test_wrong_json_is_one_sentence(tmp_path, content, says):
    path = given(tmp_path, content, "a.json")
    with pytest.raises(FileError) as refused:
        points.read(path, names=("r",))
    assert str(refused.value).startswith(f"{path}: {says}")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "File,x,y,R,got_r,note,\na.png,1,2,3,n/a,4,\n"),
        ("a.json", '[{"file": "a.png", "x": 1, "y": 2, "r": 3, "got_r": null}]'),
    ],
)
def test_another_label_and_columns_passed_over(tmp_path, name, content):
    path = given(tmp_path, content, name)
    found = points.read(path, names=("r",), label="file", further=True)
    assert found.items == (Point(1.0, 2.0, "a.png", (3.0,)),)
    with pytest.raises(FileError, match="got_r"):
        points.read(path, names=("r",), label="file")


def test_points_outside_a_picture(tmp_path):
    found = points.read(given(tmp_path, "x,y\n0,0\n9.4,4.4\n9.5,0\n0,5\n-0.6,0\n"))
    assert found.outside(5, 10) == [2, 3, 4]
    assert found.place(2) == "line 4"
    assert Points((Point(1, 2),)).place(0) == "point 1"
