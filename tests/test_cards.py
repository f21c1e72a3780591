"""Dataset cards, the check of a folder against one, and the samples."""

import hashlib
import pickle
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest

from core.data import cards, cifar, samples, verify
from core.errors import InputError, MissingExtraError, UnknownNameError

HOME = Path(__file__).resolve().parent.parent / "datasets"
GOOD = """+++
name = "toy"
title = "Toy"
task = "classification"
licence = "CC0"
source = "made"
citation = "none"
samples = 3
classes = 2
size = "4 x 4"
units = "bytes"
channels = ["red", "green", "blue"]
mean = [0.5, 0.5, 0.5]
std = [1, 1, 1]

[[splits]]
name = "train"
samples = 3

[[layout]]
pattern = "train/*/*.txt"
count = 3

[[layout]]
pattern = "train/*/"
count = 2
+++
Prose.
"""


@pytest.fixture(autouse=True)
def _house_cards(monkeypatch):
    monkeypatch.setenv(cards.VARIABLE, str(HOME))


def card(folder: Path, text: str = GOOD) -> cards.Card:
    path = folder / "toy" / "card.md"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return cards.read(path)


@pytest.mark.parametrize("name", [p.parent.name for p in HOME.glob("*/card.md")])
def test_every_card_of_the_house(name):
    found = cards.find(name)
    assert len(found.text) > 200, "say what it shows, its faults and what not to use it for"
    for part in found.layout:
        assert part.format in ("", *verify.FORMATS)
    if name in samples.SAMPLERS:
        assert {a.picture for a in found.attribution} == set(samples.SHOWN[name])
        assert "not" in found.made


def test_datasets_holds_no_code():
    assert not [p for p in HOME.rglob("*") if p.suffix in (".py", ".pyc", ".sh")]


def test_the_tail_is_what_its_rule_gives():
    found = cards.find("cifar-100-lt")
    assert found.splits[0].samples == sum(int(500 * 0.01 ** (i / 99)) for i in range(100))
    assert "12,608" in found.text
    assert sum(int(500 * 0.02 ** (i / 99)) for i in range(100)) == 12_608


def test_a_card_is_read(tmp_path):
    found = card(tmp_path)
    assert (found.name, found.samples, found.std, found.text) == ("toy", 3, (1.0, 1.0, 1.0), "Prose.")
    assert found.layout[0] == cards.Layout("train/*/*.txt", 3)
    assert card(tmp_path, GOOD.replace("\n", "\r\n")).text == "Prose."


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("+++\nname", "name", "a card starts with TOML between two lines of"),
        ('licence = "CC0"\n', "", "has no 'licence'"),
        ('licence = "CC0"', 'licence = " "', "entry 'licence' is empty"),
        ("licence =", "license =", "no entry of a card named 'license'; did you mean licence"),
        ("samples = 3\nclasses", 'samples = "3"\nclasses', "entry 'samples' is int, got '3'"),
        ("samples = 3\nclasses", "samples = 4\nclasses", "samples is 4, but the splits have 3"),
        ("mean = [0.5, 0.5, 0.5]", "mean = [0.5]", "3 channels, but 1 values of mean and 3 of std"),
        ('name = "toy"', 'name = "tow"', "is named 'tow', but its folder 'toy'"),
        ("classes = 2", "classes = ", "the front matter is not TOML"),
        ('"train/*/"', '"../*/"', "'../*/' is not a path inside the data set's folder"),
        ("[[splits]]", "[splits]", "entry 'splits' is a list of tables"),
        ("count = 2", "cuont = 2", "no entry of [[layout]] named 'cuont'; did you mean count"),
        (
            "+++\nProse",
            '[[files]]\npath = "a"\nsha256 = "12"\n+++\n',
            "sha256 of 'a' is 64 hexadecimal digits, got '12'",
        ),
        ("+++\nProse", '[[attribution]]\npicture = "a"\n+++\n', "each [[attribution]] has picture, author, licence"),
    ],
)
def test_a_wrong_card_is_one_sentence(tmp_path, old, new, message):
    assert old in GOOD
    with pytest.raises(cards.CardError, match=r"card\.md: .*" + re.escape(message)) as caught:
        card(tmp_path, GOOD.replace(old, new, 1))
    assert "\n" not in str(caught.value)


def test_where_cards_are_looked_for(tmp_path, monkeypatch):
    card(tmp_path)
    monkeypatch.setenv(cards.VARIABLE, str(tmp_path))
    assert cards.names() == ["toy"]
    with pytest.raises(UnknownNameError, match="no data set named 'tpy'; did you mean toy"):
        cards.find("tpy")
    monkeypatch.setenv(cards.VARIABLE, str(tmp_path / "none"))
    assert cards.names() == []
    with pytest.raises(InputError, match=r"no data set cards .* in .*none; set GLOCAL_DATASETS to the folder"):
        cards.find("toy")
    monkeypatch.delenv(cards.VARIABLE)
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "datasets").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path / "work")
    assert cards.names() == ["toy"]  # ./datasets before the checkout's
    monkeypatch.chdir(tmp_path)
    assert cards.folder() == HOME


def filled(folder: Path) -> Path:
    data = folder / "data"
    for name in ("train/a/1.txt", "train/a/2.txt", "train/b/3.txt"):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_text(name)
    return data


def test_verify_a_whole_set(tmp_path):
    report = verify.verify(card(tmp_path), filled(tmp_path))
    assert report.good
    assert (report.files, report.counts) == (3, {"train/*/*.txt": 3, "train/*/": 2})


def test_verify_says_what_is_wrong(tmp_path):
    data = filled(tmp_path)
    (data / "train/a/1.txt").unlink()
    (data / "train/a/notes.doc").write_text("x")
    report = verify.verify(card(tmp_path), data)
    assert report.missing == ["train/*/*.txt: 3 expected, 2 found"]
    assert report.unexpected == ["train/a/notes.doc"]
    assert not report.good
    with pytest.raises(InputError, match="nowhere: no such folder"):
        verify.verify(card(tmp_path), tmp_path / "nowhere")


def test_verify_checksums(tmp_path):
    data = filled(tmp_path)
    digest = hashlib.sha256(b"train/a/1.txt").hexdigest()
    files = f"""[[files]]
path = "train/a/1.txt"
bytes = 13
sha256 = "{digest}"
[[files]]
path = "train/a/2.txt"
md5 = "{"0" * 32}"
[[files]]
path = "train/b/3.txt"
bytes = 1
[[files]]
path = "list.txt"
[[files]]
path = "all.zip"
optional = true
"""
    report = verify.verify(card(tmp_path, GOOD.replace("+++\nProse", files + "+++\n")), data)
    assert report.missing == ["list.txt: not there"]
    assert re.fullmatch(r"train/a/2.txt: md5 is \w{12}\.\.\., 0{12}\.\.\. expected", report.unreadable[0])
    assert report.unreadable[1:] == ["train/b/3.txt: 13 bytes, 1 expected"]


@pytest.mark.parametrize("name", sorted(samples.SAMPLERS))
def test_a_sample_is_in_the_published_layout(name, tmp_path):
    pytest.importorskip("skimage")
    found, folder = cards.find(name), tmp_path / "new" / "sample"
    count = samples.sample(found, folder)
    report = verify.verify(found, folder)
    assert report.good, report
    assert report.files == count
    assert "not" in report.made
    assert all(report.counts.values())
    assert not (tmp_path / "new" / "sample.part").exists()
    about = tomllib.loads((folder / verify.MARK).read_text(encoding="utf-8"))
    assert len(about["files"]) == count
    assert len(about.get("attribution", [])) == len(samples.SHOWN[name])
    with pytest.raises(InputError, match="sample: exists and is not an empty folder; name a new one"):
        samples.sample(found, folder)
    victim = folder / about["files"][0]["path"]
    victim.write_bytes(victim.read_bytes()[:-10])
    assert re.search(r"bytes, .* expected", verify.verify(found, folder).unreadable[0])
    other = next(c for c in cards.names() if c != name)
    with pytest.raises(InputError, match=f"a sample of '{name}', not of '{other}'"):
        verify.verify(cards.find(other), folder)


def test_without_its_mark_a_sample_is_not_the_data_set(tmp_path):
    """Counts are those of the real set, and a cut-off picture is found by opening it."""
    pytest.importorskip("skimage")
    found, folder = cards.find("imagenet-1k"), tmp_path / "sample"
    samples.sample(found, folder)
    (folder / verify.MARK).unlink()
    victim = next(folder.glob("train/*/*.JPEG"))
    victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
    report = verify.verify(found, folder)
    assert "train/n????????/n????????_*.JPEG: 1,281,167 expected, 48 found" in report.missing
    assert [u.split(":")[0] for u in report.unreadable] == [victim.relative_to(folder).as_posix()]
    victim.write_bytes(b"no picture")
    assert verify.verify(found, folder).unreadable[0].endswith("not a picture that can be read")


def test_crops_of_two_splits_share_no_pixel():
    picture = np.arange(300 * 451, dtype=np.uint32).reshape(300, 451, 1).repeat(3, 2)
    train, val = ({int(v) for c in samples.crops(picture, part, 6) for v in c.flat} for part in ("train", "val"))
    assert train.isdisjoint(val)


def test_no_sampler(tmp_path):
    known = ", ".join(sorted(samples.SAMPLERS))
    assert "breakhis, busi, cifar-100-lt" in known
    with pytest.raises(InputError, match=re.escape(f"there is no sample of toy (samples: {known})")):
        samples.sample(card(tmp_path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_scikit_image_nothing_is_left(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "skimage.data", None)
    monkeypatch.setitem(__import__("sys").modules, "skimage", None)
    with pytest.raises(MissingExtraError, match=r"scikit-image is not installed; .* 'glocal\[dense\]'"):
        samples.sample(cards.find("imagenet-1k"), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_cifar_files_read_as_published_ones(tmp_path):
    """As torchvision reads them, and with byte strings under encoding="bytes", as Python 2 wrote them."""
    path = tmp_path / "train"
    data = np.arange(2 * 3072, dtype=np.uint8).reshape(2, 3072)
    cifar.write(path, {"data": data, "fine_labels": [3, 300], "filenames": ["a" * 300, "b"]})
    with path.open("rb") as file:
        loaded = pickle.load(file, encoding="latin1")
    assert (loaded["data"] == data).all()
    assert (loaded["fine_labels"], loaded["filenames"]) == ([3, 300], ["a" * 300, "b"])
    with path.open("rb") as file:
        assert set(pickle.load(file, encoding="bytes")) == {b"data", b"fine_labels", b"filenames"}
    assert b"numpy.core.multiarray" in path.read_bytes()
    cifar.check(path)


class Evil:
    def __reduce__(self):
        return Path.touch, (Path("run"),)


def test_a_cifar_file_with_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "train"
    path.write_bytes(pickle.dumps({"data": Evil()}))
    with pytest.raises(InputError, match=r"not a CIFAR file .*asks for"):
        cifar.read(path)
    assert not (tmp_path / "run").exists()
    cifar.write(path, {"data": np.zeros((2, 3072), np.uint8), "fine_labels": [0]})
    with pytest.raises(InputError, match="2 pictures, but 1 labels"):
        cifar.check(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="cut off, or not a CIFAR file"):
        cifar.check(path)
    cifar.write(path, {"data": np.zeros((2, 30), np.uint8), "fine_labels": [0, 1]})
    with pytest.raises(InputError, match="not an array of 3072 bytes a picture"):
        cifar.check(path)
    cifar.write(path, {"other": 1})
    with pytest.raises(InputError, match="neither pictures"):
        cifar.check(path)


def test_cut_off_nifti_is_found(tmp_path: Path) -> None:
    samples.sample(cards.find("abdomen-mr"), tmp_path / "d")
    card = cards.find("abdomen-mr")
    assert verify.verify(card, tmp_path / "d").good
    path = tmp_path / "d" / "imagesTr" / "MR_001_0000.nii.gz"
    path.write_bytes(path.read_bytes()[:-100])
    assert "not a NIfTI file that can be read to its end" in verify._problem(path, verify.FORMATS["nifti"])
    assert not verify.verify(card, tmp_path / "d").good
