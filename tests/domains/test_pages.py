"""The pages in a real browser, as a visitor uses them."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from test_colorization_predict import made as colorization_bundle
from test_colorization_predict import scene
from test_deblurring_predict import made as deblurring_bundle
from test_medical_segment import OBLIQUE, volume
from test_medical_segment import made as segmentation_bundle

from core import serving
from core._serving_visits import Root
from core.errors import FileError, InputError

BROWSERS, DRIVERS = ("chromium", "chromium-browser", "google-chrome"), ("chromedriver",)
LIMITS = serving.Limits(megabytes=1, pixels=200_000)
SECONDS = 90  # that a page may take for anything, on a busy machine
QUIET = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1280,1000",
    "--no-first-run", "--no-proxy-server", "--disable-background-networking", "--disable-component-update",
    "--disable-default-apps", "--disable-sync", "--force-device-scale-factor=1", "--lang=en",
)  # fmt: skip


def _program(names: tuple[str, ...]) -> str:
    found = next((path for name in names if (path := shutil.which(name))), "")
    if not found:
        why = f"no {names[0]} here (Debian: apt-get install chromium chromium-driver)"
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(f"{why}, and CI is to have it")
        pytest.skip(why)
    return found


class Tab:
    """A browser of its own: one visitor."""

    def __init__(self, downloads: Path) -> None:
        from selenium import webdriver
        from selenium.webdriver.chrome.options import Options
        from selenium.webdriver.chrome.service import Service

        options = Options()
        options.binary_location = _program(BROWSERS)
        for word in QUIET:
            options.add_argument(word)
        options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})  # type: ignore[no-untyped-call]
        options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
        self.driver = webdriver.Chrome(options=options, service=Service(executable_path=_program(DRIVERS)))
        self.downloads = downloads
        self.asked: list[str] = []

    def all(self, css: str) -> list[Any]:
        return list(self.driver.find_elements("css selector", css))

    def one(self, css: str) -> Any:
        return self.until(lambda: self.all(css), css)[0]

    def until(self, ready: Callable[[], Any], what: object = "") -> Any:
        end = time.monotonic() + SECONDS
        while not (found := ready()):
            assert time.monotonic() < end, f"waited in vain for {what}; the page says {self.driver.page_source[-2000:]}"
            time.sleep(0.03)
        return found

    def run(self, script: str, *values: object) -> Any:
        return self.driver.execute_script(script, *values)  # type: ignore[no-untyped-call]

    def open(self, address: str, ready: str) -> None:
        self.driver.get(address)
        self.one(ready)

    def give(self, css: str, path: Path) -> None:
        self.one(css).send_keys(str(path))

    def downloaded(self, name: str, press: str) -> Path:
        """What a button gives."""
        path = self.downloads / name
        path.unlink(missing_ok=True)
        self.one(press).click()
        self.until(path.is_file, name)
        return path

    def toast(self) -> str:
        """What the page complains of."""
        text: str = self.until(lambda: " ".join(e.text for e in self.all(".toast-body")), "a complaint")
        return text

    def requests(self) -> list[str]:
        """Every address that this browser asked for since it was started."""
        for entry in self.driver.get_log("performance"):  # type: ignore[no-untyped-call]
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                self.asked.append(message["params"]["request"]["url"])
            if message["method"] == "Network.webSocketCreated":
                self.asked.append(message["params"]["url"])
        return self.asked

    def shot(self, path: Path) -> NDArray[np.uint8]:
        self.driver.save_screenshot(str(path))
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGB"))


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def tab(downloads: Path) -> Iterator[Tab]:
    found = Tab(downloads)
    yield found
    found.driver.quit()


@pytest.fixture(scope="module")
def colorization(tmp_path_factory: pytest.TempPathFactory) -> Iterator[serving.Running]:
    from apps.colorization import serve
    from apps.colorization.pipeline import Pipeline

    pipeline = Pipeline.load(colorization_bundle(tmp_path_factory.mktemp("bundle") / "b"), device="cpu")
    with serving.run(serve.page(pipeline), limits=LIMITS) as running:
        yield running


@pytest.fixture(scope="module")
def deblurring(tmp_path_factory: pytest.TempPathFactory) -> Iterator[serving.Running]:
    from apps.deblurring import serve
    from apps.deblurring.pipeline import Pipeline

    pipeline = Pipeline.load(deblurring_bundle(tmp_path_factory.mktemp("bundle") / "b"), device="cpu")
    with serving.run(serve.page(pipeline), limits=LIMITS) as running:
        yield running


@pytest.fixture(scope="module")
def segmentation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[serving.Running]:
    from apps.medical.segmentation import serve
    from apps.medical.segmentation.pipeline import Pipeline

    folder = segmentation_bundle(tmp_path_factory.mktemp("bundle") / "b", spacing=(1.2, 1.2), plane="axial")
    with serving.run(serve.page(Pipeline.load(folder, device="cpu")), limits=LIMITS) as running:
        yield running


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    path = tmp_path / "street.png"
    Image.fromarray(scene(120, 160).mean(2).astype(np.uint8)).save(path)
    return path


class Board:
    """The page of colorization in a tab."""

    def __init__(self, tab: Tab, address: str) -> None:
        self.tab = tab
        tab.open(address, ".board .open")

    def open(self, path: Path) -> None:
        self.tab.give(".board .open", path)
        self.tab.until(lambda: self.said.startswith(f"{path.stem}: "), path.name)

    @property
    def said(self) -> str:
        return str(self.tab.one(".board .said").text)

    @property
    def picture(self) -> NDArray[np.uint8]:
        source = self.tab.one(".board .picture").get_attribute("src")
        assert source.startswith("data:image/jpeg;base64,")
        with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as picture:
            return np.asarray(picture)

    @property
    def hints(self) -> list[list[str]]:
        """x, y and colour of each line of the table."""
        found: list[list[str]] = self.tab.run(
            "return [...document.querySelectorAll('.board tbody tr')].map(r => [r.cells[2].textContent,"
            " r.cells[3].textContent, r.cells[0].firstChild.title])"
        )
        return found

    def colours(self, css: str) -> list[str]:
        found: list[str] = self.tab.run(
            "return [...document.querySelectorAll(arguments[0] + ' .swatch')].map(s => s.dataset.colour)", css
        )
        return found

    def click(self, x: int, y: int, size: tuple[int, int] = (160, 120)) -> None:
        """On a pixel of the photograph."""
        from selenium.webdriver.common.action_chains import ActionChains

        box = self.tab.one(".board .picture").rect
        dx = round((x + 0.5) / size[0] * box["width"] - box["width"] / 2)
        dy = round((y + 0.5) / size[1] * box["height"] - box["height"] / 2)
        place = self.tab.one(".board .picture")
        turn = self.turn
        ActionChains(self.tab.driver).move_to_element_with_offset(place, dx, dy).click().perform()
        self.answered(turn)
        assert "choose its colour" in self.where

    @property
    def where(self) -> str:
        return str(self.tab.one(".board .where").text)

    def colour(self, number: int) -> str:
        """Choose one of the offered colours."""
        colour = self.colours(".board .offered")[number]
        self.press(f".board .offered [data-colour='{colour}']")
        return colour

    def press(self, css: str) -> None:
        turn = self.turn
        self.tab.one(css).click()
        self.answered(turn)

    @property
    def turn(self) -> object:
        """Another one after each answer."""
        return self.tab.one(".board .stage").get_attribute("data-turn")

    def answered(self, turn: object) -> None:
        self.tab.until(lambda: self.turn != turn, "an answer")


@pytest.fixture
def board(tab: Tab, colorization: serving.Running, photograph: Path) -> Board:
    found = Board(tab, colorization.address)
    found.open(photograph)
    return found


def test_a_click_and_a_colour_change_the_picture_there(board: Board, tmp_path: Path) -> None:
    before = board.picture
    board.click(40, 30)
    offered = board.colours(".board .offered")
    assert len(offered) == len(set(offered)) >= 12
    light = [_luminance(colour) for colour in offered]
    assert max(light) - min(light) < 2  # all as bright as the pixel
    assert abs(np.mean(light) - _luminance("#" + "".join(f"{v:02x}" for v in before[30, 40]))) < 4
    colour = board.colour(20)
    x, y, shown = board.hints[0]
    assert abs(int(x) - 40) <= 1
    assert abs(int(y) - 30) <= 1
    assert shown == colour
    change = np.abs(board.picture.astype(int) - before).max(2)
    assert change[26:35, 36:45].mean() > 4
    seen = board.tab.shot(tmp_path / "colorization.png")
    assert len(np.unique(seen.reshape(-1, 3), axis=0)) > 500
    assert board.tab.all(".board .mark")
    assert [e for e in board.tab.driver.get_log("browser") if e["level"] == "SEVERE"] == []  # type: ignore[no-untyped-call]


def test_undo_remove_and_palette(board: Board) -> None:
    first = board.picture
    board.click(40, 30)
    one = board.colour(3)
    board.click(120, 90)
    other = board.colour(12)
    both = board.picture
    assert [h[2] for h in board.hints] == [one, other]
    assert board.colours(".board .used") == [one, other]
    board.press(".board tbody tr:first-child .away")
    assert [h[2] for h in board.hints] == [other]
    board.press(".board .undo")
    assert [h[2] for h in board.hints] == [one, other]
    assert np.array_equal(board.picture, both)
    board.press(".board .used .swatch")  # the used colour goes to the chosen point
    assert [h[2] for h in board.hints] == [one, one]
    board.press(".board .clear")
    assert board.hints == []
    assert np.array_equal(board.picture, first)
    for left in (3, 2, 1, 0):
        board.press(".board .undo")
        assert len(board.hints) == [0, 1, 2, 2][left]
    assert not board.tab.one(".board .undo").is_enabled()


def test_hints_and_picture_are_saved_and_hints_load_again(board: Board, photograph: Path) -> None:
    board.click(40, 30)
    board.colour(5)
    board.click(100, 80)
    board.colour(9)
    kept, picture = board.hints, board.picture
    file = board.tab.downloaded("street-hints.csv", ".board .savehints")
    assert file.read_text().splitlines()[0] == "x,y,r,g,b"
    with Image.open(board.tab.downloaded("street-coloured.png", ".board .save")) as saved:
        assert saved.size == (160, 120)
        assert np.abs(np.asarray(saved).astype(int) - picture).mean() < 10  # a JPEG of noise
    board.press(".board .clear")
    board.tab.give(".board .load", file)
    board.tab.until(lambda: board.hints == kept, "the hints")
    assert np.array_equal(board.picture, picture)
    file.write_text("x,y,r,g,b\n5,6,7,8,900\n")
    board.tab.give(".board .load", file)
    board.tab.until(lambda: "line 2, column b: 900 is no colour" in board.said, "the sentence")
    assert board.said.startswith("street-hints.csv: ")
    assert board.hints == kept
    file.unlink()


def test_keyboard_alone(board: Board) -> None:
    from selenium.webdriver.common.keys import Keys

    frame = board.tab.one(".board .frame")
    frame.send_keys(Keys.ARROW_LEFT * 10 + Keys.ARROW_DOWN * 5 + Keys.ENTER)
    board.tab.until(lambda: board.where.startswith("x 50, y 75:"), "the point")
    board.tab.one(".board .offered .swatch").send_keys(Keys.ENTER)
    board.tab.until(lambda: board.hints, "a hint")
    board.tab.one(".board .frame").send_keys(Keys.CONTROL + "z")
    board.tab.until(lambda: not board.hints, "undone")
    unnamed = board.tab.run(
        "return [...document.querySelectorAll('.board button, .board input, .board select')].filter("
        "e => !e.getAttribute('aria-label') && !e.textContent.trim()).map(e => e.className)"
    )
    assert unnamed == []


def test_two_visitors_do_not_see_each_other(
    board: Board, colorization: serving.Running, photograph: Path, tmp_path: Path
) -> None:
    board.click(40, 30)
    mine = board.colour(3)
    other = Tab(tmp_path)
    try:
        second = Board(other, colorization.address)
        assert "Open a photograph first" in second.where
        second.open(photograph)
        assert second.hints == []
        second.click(120, 90)
        theirs = second.colour(15)
        assert [h[2] for h in second.hints] == [theirs]
        board.click(60, 60)
        again = board.colour(7)
        assert [h[2] for h in board.hints] == [mine, again]
        assert not {r for r in other.requests() if not _local(r, colorization.address)}
    finally:
        other.driver.quit()


def test_what_cannot_be_taken_is_a_sentence(tab: Tab, colorization: serving.Running, tmp_path: Path) -> None:
    board = Board(tab, colorization.address)
    bomb, large, text = tmp_path / "bomb.png", tmp_path / "large.png", tmp_path / "letter.jpg"
    Image.new("1", (12_000, 12_000)).save(bomb)
    assert bomb.stat().st_size < 1e6
    large.write_bytes(b"\x89PNG" * 400_000)
    text.write_text("Dear Sir")
    for path, words in (
        (bomb, "bomb.png: has 144 million pixels, and at most 0.2 million pixels are taken here; give a smaller one"),
        (large, "large.png: is larger than the 1 MB taken here; give a smaller one"),
        (text, "letter.jpg: is not a picture that can be read; give a JPEG, PNG or TIFF file"),
    ):
        tab.give(".board .open", path)
        tab.until(lambda words=words: board.said == words, words)  # type: ignore[misc]
        assert tab.one(".board .empty").is_displayed()
    left = [p for p in colorization.folder.rglob("*") if p.is_file()]
    assert left == []


def test_a_fault_of_ours_is_said_and_the_page_goes_on(
    board: Board, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from apps.colorization._work import Work

    def broken(*_: object) -> None:
        raise KeyError("Jane Doe")

    board.click(40, 30)
    with monkeypatch.context() as patch:
        patch.setattr(Work, "_colour", broken)
        board.press(".board .offered .swatch")
        board.tab.until(lambda: board.said == "That failed; what you see is from before.", "the sentence")
    assert "Jane" not in capfd.readouterr().err
    board.colour(3)
    assert len(board.hints) == 1
    assert board.said == ""


def test_a_visit_leaves_nothing(board: Board, colorization: serving.Running) -> None:
    board.click(40, 30)
    board.colour(3)
    board.tab.downloaded("street-hints.csv", ".board .savehints")
    assert [p.name for p in colorization.folder.rglob("*.csv")] == ["street-hints.csv"]
    board.tab.driver.get("about:blank")
    board.tab.until(lambda: not [p for p in colorization.folder.rglob("*") if p.is_file()], "files to go")


def test_deblurring(tab: Tab, deblurring: serving.Running, tmp_path: Path) -> None:
    tab.open(deblurring.address, "#given input[type=file]")
    photo = tmp_path / "car.png"
    Image.fromarray((scene(100, 130).astype(np.uint16) * 257)[..., 0]).save(photo)  # 16 bits
    tab.give("#given input[type=file]", photo)
    tab.until(lambda: len([i for i in tab.all("#slider img") if i.is_displayed()]) >= 2, "before and after")
    assert "car: 130 x 100 pixels, uint16" in tab.one("#said").text
    assert tab.one("#mask img").is_displayed()
    tab.until(lambda: tab.run("return [...document.querySelectorAll('#slider img')].every(i => i.naturalWidth > 0)"))
    tab.shot(tmp_path / "deblurring.png")
    with Image.open(tab.downloaded("car-deblurred.png", "#whole")) as saved:
        assert saved.mode.startswith("I;16")
        assert saved.size == (130, 100)
    with Image.open(tab.downloaded("car-blur.png", "#found")) as saved:
        assert saved.mode == "L"
    wrong = tmp_path / "car.jpg"
    wrong.write_text("no picture")
    tab.give("#given input[type=file]", wrong)
    assert "car.jpg: is not a picture that can be read" in tab.toast()
    tab.until(lambda: "Nothing is open yet" in tab.one("#said").text, "the empty page")
    assert {r for r in tab.requests() if not _local(r, "http://127.0.0.1:")} == set()


def test_segmentation(tab: Tab, segmentation: serving.Running, tmp_path: Path) -> None:
    tab.open(segmentation.address, "#given input[type=file]")
    assert "Research use, not a medical device" in tab.one(".page-foot").text
    scan = tmp_path / "Jane Doe 1970-01-01.nii.gz"
    nib.save(nib.Nifti1Image(volume(), OBLIQUE), scan)
    tab.give("#given input[type=file]", scan)
    before = tab.one("#slice img").get_attribute("src")
    assert "40 x 36 x 5" in tab.one("#said").text or "36 x 40 x 5" in tab.one("#said").text
    tab.shot(tmp_path / "segmentation.png")
    assert "Jane" not in tab.driver.page_source
    found = {"liver", "spleen"}  # last of what an upload changes on the page: then the visitor may go on
    tab.until(lambda: {c.text for c in tab.all("#volumes tbody td:first-child")} == found, "the volumes")
    number = tab.one("#number input[type=number]")
    now = int(number.get_attribute("value"))
    number.send_keys("\ue003" * 2 + str(1 if now > 1 else 2) + "\ue007")
    tab.until(lambda: tab.one("#slice img").get_attribute("src") != before, "another slice")
    mask = nib.load(tab.downloaded("mask.nii.gz", "#mask"))
    assert mask.shape == (40, 36, 5)
    assert np.allclose(mask.affine, OBLIQUE, atol=1e-4)
    wrong = tmp_path / "John Smith.nii"
    wrong.write_text("no scan")
    tab.give("#given input[type=file]", wrong)
    said = tab.toast()
    assert "not a kind of file that is read here" in said
    assert "Smith" not in said
    assert {r for r in tab.requests() if not _local(r, "http://127.0.0.1:")} == set()


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[serving.Desk]:
    root = Root()
    yield serving.Desk(None, serving.Limits(megabytes=0.5, pixels=100_000), root)
    root.end()


def archive(desk: serving.Desk, entries: dict[str, bytes]) -> str:
    path = desk._root.new() / "Jane Doe.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for name, content in entries.items():
            out.writestr(name, content)
    return str(path)


def test_a_zipped_scan_is_found_and_its_names_are_not_kept(desk: serving.Desk, tmp_path: Path) -> None:
    from apps.medical.segmentation import serve
    from apps.medical.segmentation.pipeline import Pipeline

    nib.save(nib.Nifti1Image(volume(), OBLIQUE), tmp_path / "s.nii.gz")
    entries = {"__MACOSX/._s": b"x", "Doe/.hidden": b"x", "../Doe^Jane.NII.GZ": (tmp_path / "s.nii.gz").read_bytes()}
    folder = serve.gathered([archive(desk, entries)], desk._root.new(), desk)
    assert [p.name for p in folder.iterdir()] == ["file-1.nii.gz"]
    bundle = segmentation_bundle(tmp_path / "b", spacing=(1.2, 1.2), plane="axial")
    result = serve.segmented(Pipeline.load(bundle, device="cpu"), folder, desk.limits)
    assert result.mask.shape == (5, 36, 40)
    assert serve.ending(result) == ".nii.gz"
    assert result.mask[serve.first(result)].astype(bool).sum() == result.mask.astype(bool).sum((1, 2)).max()
    small = serving.Limits(megabytes=1, pixels=100)
    with pytest.raises(FileError, match=r"the scan: has 0\.0072 million samples"):
        serve.segmented(Pipeline.load(bundle, device="cpu"), folder, small)
    shutil.copy(folder / "file-1.nii.gz", folder / "file-2.nii.gz")
    with pytest.raises(InputError, match="these are 2 scans"):
        serve.segmented(Pipeline.load(bundle, device="cpu"), folder, desk.limits)


def test_spacing_can_be_given_where_a_file_has_none(desk: serving.Desk, tmp_path: Path) -> None:
    from apps.medical.segmentation import serve
    from apps.medical.segmentation.pipeline import Pipeline

    pipeline = Pipeline.load(segmentation_bundle(tmp_path / "b", spacing=(1.2, 1.2), plane="axial"), device="cpu")
    (tmp_path / "scan").mkdir()
    Image.fromarray(volume()[..., 0].astype(np.uint8)).save(tmp_path / "scan" / "file-1.png")
    for words, told in (
        ("", "write it into its field and open the file again"),
        ("1 2 3", "the spacing is 2 positive numbers for this scan"),
        ("one", "the spacing is numbers in mm, as in 0.5 0.5, got 'one'"),
    ):
        with pytest.raises(InputError, match=re.escape(told)):
            serve.segmented(pipeline, tmp_path / "scan", desk.limits, words)
    assert serve.segmented(pipeline, tmp_path / "scan", desk.limits, "0.6 x 0.6").mask.shape == (40, 36)


def test_archives_are_bounded_by_what_comes_out(desk: serving.Desk) -> None:
    from apps.medical.segmentation import serve

    bomb = archive(desk, {"a": bytes(5_000_000)})
    assert Path(bomb).stat().st_size < 10_000
    into = desk._root.new()
    with pytest.raises(FileError, match="the archive: unpacks to more than is taken here"):
        serve.gathered([bomb], into, desk)
    assert sum(p.stat().st_size for p in into.rglob("*") if p.is_file()) <= 2_000_000
    with pytest.raises(FileError, match="holds 5001 files"):
        serve.gathered([archive(desk, {str(i): b"" for i in range(5001)})], desk._root.new(), desk)
    with pytest.raises(InputError, match="the archive holds no file"):
        serve.gathered([archive(desk, {"__MACOSX/a": b""})], desk._root.new(), desk)
    broken = Path(archive(desk, {"a": b"some words" * 50}))
    content = bytearray(broken.read_bytes())
    content[40] ^= 255
    broken.write_bytes(content)
    with pytest.raises(FileError, match="the archive: cannot be unpacked"):
        serve.gathered([str(broken)], desk._root.new(), desk)


def _local(address: str, page: str) -> bool:
    return address.startswith((page, "data:", "blob:", "about:", "chrome"))


def _luminance(colour: str) -> float:
    from skimage import color

    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return float(color.rgb2lab(rgb[None, None])[0, 0, 0])
