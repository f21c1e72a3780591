"""The made ultrasound pictures: their physics, their truth, their layouts, and the DICOM files made of them."""

import hashlib

import numpy as np
import pytest

pytest.importorskip("scipy")
from PIL import Image

from apps.medical import labelled, readers
from core.data import _ultrasound as made
from core.data import _ultrasound_dicom, _ultrasound_sets
from core.data._ultrasound_tissue import loss
from core.errors import SettingError


def digests(folder):
    return {p.relative_to(folder): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}


def even(scanner):
    """A patient of nothing but even tissue."""
    return made.Patient(0, made.NORMAL, False, scanner, ())


def scanner(**changes):
    from dataclasses import replace

    plain = made.Scanner(False, 40, 40, (160, 160), 0.15, 0.9, 20, 0.0, 54.0, 0.0, -200.0)
    return replace(plain, **changes)


@pytest.fixture(scope="module")
def liver(tmp_path_factory):
    folder = tmp_path_factory.mktemp("liver")
    _ultrasound_sets.write_liver(folder, patients=6, pictures=2)
    return folder


@pytest.fixture(scope="module")
def busi(tmp_path_factory):
    folder = tmp_path_factory.mktemp("busi")
    _ultrasound_sets.write_busi(folder, patients=13, pictures=1)
    return folder


# physics


def test_speckle_of_even_tissue_is_rayleigh_distributed(monkeypatch):
    from scipy import stats

    from core.data import _ultrasound_tissue as tissue

    monkeypatch.setattr(tissue, "backscatter", lambda who, x, z: np.zeros_like(x))
    monkeypatch.setattr(tissue, "loss", lambda who, x, z: np.zeros_like(x))
    rng = np.random.default_rng(0)
    seen = np.stack([made.echo(even(scanner()), made._noise(rng, (160, 128)), rng) for _ in range(40)])
    power = (seen[:, 4:-4, 8:-8] ** 2).mean(axis=(0, 2))  # at each depth, in the focus and away from it
    assert np.abs(np.convolve(power, np.ones(12) / 12, "valid") - 2).max() < 0.12
    envelope = seen[:12, 10:-10:6, 8:-8:6].ravel()
    assert (envelope**2).mean() == pytest.approx(2, rel=0.06)
    assert envelope.mean() / envelope.std() == pytest.approx(1.91, rel=0.05)  # of every Rayleigh distribution
    assert stats.kstest(envelope / np.sqrt((envelope**2).mean() / 2), stats.rayleigh.cdf).statistic < 0.03


def test_the_pulse_is_wider_across_and_away_from_the_focus():
    rng = np.random.default_rng(1)
    who = even(scanner(focus=10.0))
    envelope = made.echo(who, made._noise(rng, (160, 128)), rng)[:, 20:-20]

    def alike(lines, axis):
        a = np.take(envelope, lines, 0)
        b = np.roll(a, 2, axis=axis)[:, 4:-4]
        return np.corrcoef(a[:, 4:-4].ravel(), b.ravel())[0, 1]

    near, far = range(50, 70), range(130, 150)
    assert alike(far, 1) > alike(near, 1) + 0.1  # broader beams below
    assert alike(near, 1) > alike(near, 0)


def test_log_compression_keeps_its_range():
    s = scanner(range=50.0)
    levels = made._compressed(s, np.sqrt(2) * 10 ** (np.array([0.0, -10.0, 10.0, 60.0, -90.0]) / 20))
    assert levels[0] == pytest.approx(0.45 * 255)
    assert levels[0] - levels[1] == pytest.approx(levels[2] - levels[0]) == pytest.approx(255 * 10 / 50)
    assert list(levels[3:]) == [255, 0]


def lesion(**changes):
    from dataclasses import replace

    plain = made.Lesion(made.BENIGN, (0.0, 18.0), (5.0, 4.0), 0.0, (), -10.0, 0.2, 0.0, 0.0)
    return replace(plain, **changes)


@pytest.mark.parametrize(("taken", "sign"), [(8.0, 1), (-8.0, -1)])
def test_what_a_lesion_takes_is_missing_behind_it(taken, sign):
    """Its whole loss below its middle, none above it and beside it."""
    from dataclasses import replace

    who = replace(even(scanner()), lesions=(lesion(loss=taken),))
    x, z = made.grid(who.scanner)
    gone = loss(who, x, z) - loss(replace(who, lesions=()), x, z)
    middle = np.argmin(np.abs(x[0]))
    assert gone[-1, middle] == pytest.approx(taken, rel=0.05)
    assert np.abs(gone[z[:, 0] < 13]).max() == 0
    assert np.abs(gone[:, np.abs(x[0]) > 5.2]).max() == 0
    assert sign * np.diff(gone[:, middle]).min() >= 0 or sign * np.diff(gone[:, middle]).max() >= 0


def test_a_shadow_and_an_enhancement_are_seen_behind_the_lesion():
    from dataclasses import replace

    def behind(taken):
        rng = np.random.default_rng(3)
        who = replace(even(scanner()), lesions=(lesion(loss=taken),))
        shown, mask = made.rendered(who, made._noise(rng, (160, 128)), rng)
        columns = np.flatnonzero(mask.any(axis=0))[5:-5]
        below = np.flatnonzero(mask.any(axis=1)).max() + 6
        return shown[below:, columns].mean() - shown[below:, : columns[0] - 10].mean()

    dark, plain, bright = behind(9.0), behind(0.0), behind(-9.0)
    assert dark < plain - 15
    assert bright > plain + 15


def test_the_sector_is_black_outside():
    shown, mask = made.picture(made.patient(0, made.BENIGN, breast=False), 0)
    assert not shown[0, :10].any()
    assert not shown[-1, :5].any()
    assert not mask[:, 0].any()
    x, z = made.grid(made.patient(0, made.BENIGN, breast=False).scanner)
    assert np.hypot(x, z + made.CURVATURE).min() > made.CURVATURE


# truth


@pytest.mark.parametrize("breast", [False, True])
def test_the_mask_is_where_the_lesion_is(breast):
    darker = []
    for number in range(12):
        who = made.patient(number, made.MALIGNANT, breast=breast)
        shown, mask = made.picture(who, 1)
        assert shown.shape == mask.shape == who.scanner.shape
        assert 0.004 < mask.mean() < 0.35
        ring = np.zeros_like(mask)
        rows, columns = np.nonzero(mask)
        ring[max(rows.min() - 6, 0) : rows.max() + 6, max(columns.min() - 6, 0) : columns.max() + 6] = True
        around = shown[ring & ~mask].mean()
        darker.append((shown[mask].mean() - around) * np.sign(who.lesions[0].contrast))
    assert np.mean(np.array(darker) > 0) > 0.7


def test_outlines_tell_the_kinds_apart_but_no_number_alone_does():
    def uneven(kind):
        out = []
        for number in range(60):
            (one,) = made.patient(number, kind, breast=False).lesions
            out.append((sum(a for _, a, _ in one.waves), one.contrast, one.radii[0], one.loss))
        return np.array(out)

    good, bad = uneven(made.BENIGN), uneven(made.MALIGNANT)
    assert bad[:, 0].min() > good[:, 0].max()
    for column in (1, 2):  # brightness and size overlap
        assert abs(good[:, column].mean() - bad[:, column].mean()) < 0.5 * good[:, column].std()
    assert 0.3 < (bad[:, 3] <= 0).mean() < 0.8
    assert 0.3 < (good[:, 3] >= 0).mean() < 0.8


def test_pictures_of_a_patient_share_scanner_and_lesion():
    who = made.patient(5, made.MALIGNANT, breast=False)
    first, second = made.picture(who, 0)[0], made.picture(who, 1)[0]
    assert not np.array_equal(first, second)
    assert np.array_equal(first, made.picture(who, 0)[0])
    seen = made.view(who, 1)
    assert seen.scanner.pulse == who.scanner.pulse
    assert [n for n, _, _ in seen.lesions[0].waves] == [n for n, _, _ in who.lesions[0].waves]
    others = {made.patient(i, made.BENIGN, breast=False).scanner for i in range(5)}
    assert len(others) == 5


def test_a_loop_moves_and_changes_slowly():
    frames = made.cine(made.patient(1, made.BENIGN, breast=True), 5)
    assert frames.dtype == np.uint8
    near = np.corrcoef(frames[0].ravel(), frames[1].ravel())[0, 1]
    far = np.corrcoef(frames[0].ravel(), frames[4].ravel())[0, 1]
    assert far < near < 0.999
    assert near > 0.5


# layouts


def test_the_same_bytes_every_time(liver, busi, tmp_path):
    _ultrasound_sets.write_liver(tmp_path / "a", patients=6, pictures=2)
    _ultrasound_sets.write_busi(tmp_path / "b", patients=13, pictures=1)
    assert digests(tmp_path / "a") == digests(liver)
    assert digests(tmp_path / "b") == digests(busi)


def test_the_liver_set_is_read_as_published(liver):
    found = labelled.find(liver)
    assert (found.layout, found.classes, found.conflicts) == ("US-Liver", ("Benign", "Malignant"), ())
    assert len(found.pictures) == 12
    by = {}
    for p in found.pictures:
        by.setdefault(p.group, set()).add(p.label)
    assert len(by) == 6
    assert all(len(labels) == 1 for labels in by.values())
    assert labelled.check(found).good


def test_the_breast_set_is_read_as_published(busi):
    found = labelled.find(busi)
    assert (found.layout, found.classes) == ("BUSI", ("benign", "malignant", "normal"))
    assert labelled.check(found).good
    counts = {name: sum(p.label == name for p in found.pictures) for name in found.classes}
    assert counts == {"benign": 7, "malignant": 5, "normal": 1}
    for p in found.pictures:
        masks = [np.asarray(Image.open(m)) > 0 for m in p.masks]
        assert np.any(masks, axis=0).any() == (p.label != "normal")
    assert {len(p.masks) for p in found.pictures} == {1, 2}


def test_burned_in_marks_are_where_they_are_said_to_be():
    shown, mask = made.picture(made.patient(3, made.MALIGNANT, breast=True), 0)
    plain = np.repeat(shown[..., None], 3, axis=2)
    marked, where = _ultrasound_sets.burned(plain, mask, seed=1)
    assert 30 < where.sum() < 0.1 * where.size
    assert np.array_equal(marked[~where], plain[~where])
    assert len({tuple(c) for c in marked[where].tolist()}) == 1
    again, same = _ultrasound_sets.burned(plain, mask, seed=1)
    assert np.array_equal(again, marked)
    assert np.array_equal(same, where)
    letters, ink = _ultrasound_sets.burned(plain, np.zeros_like(mask), seed=1)
    assert 10 < ink.sum() < where.sum()
    assert not np.array_equal(letters, plain)


# DICOM


@pytest.mark.parametrize("form", _ultrasound_dicom.FORMS)
@pytest.mark.parametrize("loop", [False, True])
def test_dicom_files_are_read_as_they_were_written(form, loop, tmp_path):
    """Also the frames after the first of an uncompressed YBR_FULL_422 loop."""
    pytest.importorskip("pydicom")
    frames = made.cine(made.patient(2, made.MALIGNANT, breast=False), 4)
    path = tmp_path / "x.dcm"
    _ultrasound_dicom.write(
        path, frames if loop else frames[0], form=form, name="Doe^Jane", number="4711", birth="19700131", rate=20
    )
    scan = readers.read(path)
    values, _ = scan.array()
    assert scan.kind == ("frames" if loop else "picture")
    assert len(values) == (1 if form == "grey" else 3)
    want = frames if loop else frames[0]
    gap = np.abs(values.astype(int) - want[None])
    assert gap.max() <= (0 if form != "jpeg" else 30)
    assert gap.mean() < 3
    if loop:
        assert scan.meta.rate == pytest.approx(20)


def test_dicom_in_no_such_form(tmp_path):
    pytest.importorskip("pydicom")
    with pytest.raises(SettingError, match="one of grey, rgb, palette, ybr, jpeg, got 'gif'"):
        _ultrasound_dicom.write(tmp_path / "x.dcm", np.zeros((4, 4), np.uint8), form="gif")
    with pytest.raises(SettingError, match="even number of columns"):
        _ultrasound_dicom.write(tmp_path / "x.dcm", np.zeros((4, 5), np.uint8), form="ybr")
    assert not list(tmp_path.iterdir())
