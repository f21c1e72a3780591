"""The made abdominal cases and the blocks of the real picture."""

import hashlib
import json

import numpy as np
import pytest

nib = pytest.importorskip("nibabel")
pytest.importorskip("skimage")
from PIL import Image

from core.data import _nuclei, _phantom, splits


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantom")
    _phantom.write(folder, train=2, test=1)
    return folder


def digests(folder):
    return {p.relative_to(folder): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}


def test_the_same_bytes_every_time(written, tmp_path):
    _phantom.write(tmp_path / "again", train=2, test=1)
    assert digests(tmp_path / "again") == digests(written)


def test_the_layout_is_nnu_net_s(written):
    about = json.loads((written / "dataset.json").read_text())
    assert about["numTraining"] == 2
    assert about["channel_names"] == {"0": "MR"}
    assert about["file_ending"] == ".nii.gz"
    assert about["labels"]["background"] == 0
    for part, names in (("Tr", ["MR_001", "MR_002"]), ("Ts", ["MR_003"])):
        assert sorted(p.name for p in (written / f"images{part}").iterdir()) == [f"{n}_0000.nii.gz" for n in names]
        assert sorted(p.name for p in (written / f"labels{part}").iterdir()) == [f"{n}.nii.gz" for n in names]


def test_truth_lies_on_the_image_s_oblique_grid(written):
    affines = []
    for image in (nib.load(p) for p in sorted(written.glob("images*/*.gz"))):
        name = image.get_filename().replace("images", "labels").replace("_0000", "")
        label = nib.load(name)
        assert np.array_equal(image.affine, label.affine)
        assert image.shape == label.shape
        spacing = image.header.get_zooms()
        assert spacing[2] > 1.7 * spacing[0]
        directions = image.affine[:3, :3] / np.linalg.norm(image.affine[:3, :3], axis=0)
        assert 0.01 < np.abs(directions - np.diag(np.diag(directions))).max() < 0.3  # oblique, none swapped
        affines.append(image.affine)
        numbers = np.unique(label.dataobj)
        assert list(numbers) == list(range(len(_phantom.LABELS)))
        assert min(np.bincount(np.asarray(label.dataobj).ravel())) > 200
    assert not np.array_equal(affines[0], affines[1])


def test_the_patient_s_right_is_right():
    """The liver and the right kidney lie at positive x of RAS, spleen and left kidney at negative."""
    for number in range(2):
        patient = _phantom.case(number, "train")
        _, label = _phantom.made(patient)
        x = {k: (patient.affine @ [*np.argwhere(label == v).mean(axis=0), 1])[:3] for k, v in _phantom.LABELS.items()}
        assert x["liver"][0] > 20 > -20 > x["spleen"][0]
        assert x["right kidney"][0] > 20 > -20 > x["left kidney"][0]
        assert x["liver"][1] > x["right kidney"][1]  # in front of it


def test_test_cases_lie_beyond_training_cases():
    train, test = ([_phantom.case(i, part) for i in range(12)] for part in ("train", "test"))
    for name, middle in (("scale", 1), ("gamma", 1), ("shift", 0)):
        reach = [max(np.abs(np.subtract(getattr(c, name), middle)).max() for c in cases) for cases in (train,)]
        least = min(np.abs(np.subtract(getattr(c, name), middle)).min() for c in test)
        assert least > reach[0], name
    assert min(c.bias for c in test) > max(c.bias for c in train)


def test_grey_values_do_not_name_an_organ():
    """Each organ's middle half of grey values is mostly shared with what is something else."""
    image, label = _phantom.made(_phantom.case(0, "train"))
    for number in range(1, 6):
        low, high = np.percentile(image[label == number], [25, 75])
        among = (image >= low) & (image <= high)
        assert (label[among] == number).mean() < 0.6


def test_air_is_rician():
    patient = _phantom.case(1, "train")
    image, _ = _phantom.made(patient)
    corner = image[:6, :6].astype(float)
    sigma = 1000 * patient.noise
    assert corner.mean() == pytest.approx(sigma * np.sqrt(np.pi / 2), rel=0.1)  # mean of a Rayleigh distribution
    assert (image >= 0).all()


def test_blocks_share_no_pixel():
    place = np.arange(512 * 512).reshape(512, 512)
    blocks = _nuclei.blocks(place)
    seen = np.concatenate([b.ravel() for _, b in blocks.values()])
    assert len(np.unique(seen)) == seen.size == place.size
    parts = {name: part for name, (part, _) in blocks.items()}
    assert list(parts.values()).count("test") == 4
    columns = {
        part: {int(v) % 512 for n, (p, b) in blocks.items() if p == part for v in b[0]} for part in ("train", "test")
    }
    assert max(columns["train"]) < min(columns["test"])
    assert (
        splits.leaks({p: [i for i, q in enumerate(parts.values()) if q == p] for p in ("train", "test")}, list(parts))
        == []
    )


def test_nuclei_are_blue_and_many(tmp_path):
    _nuclei.write(tmp_path)
    images = sorted(tmp_path.glob("*/images/*.png"))
    assert len(images) == 16
    for path in images:
        picture = np.asarray(Image.open(path)).astype(int)
        mask = np.asarray(Image.open(path.parent.parent / "masks" / path.name))
        assert picture.shape == (128, 128, 3)
        assert set(np.unique(mask)) == {0, 1}
        blue = picture[..., 2] - picture[..., 0]
        assert blue[mask == 1].mean() > blue[mask == 0].mean() + 5
        assert 0.05 < mask.mean() < 0.5
