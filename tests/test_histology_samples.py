"""The made histology: tissue as planned, published layouts, captions that say the truth, and slides of any size."""

import csv
import hashlib
import resource

import numpy as np
import pytest

pytest.importorskip("skimage")
from PIL import Image

from apps.medical import breakhis, groups, labelled
from core.data import _histology as made
from core.data import _histology_forms as forms
from core.data import _histology_sets as sets
from core.data import _slide
from core.errors import SettingError


def digests(folder):
    return {p.relative_to(folder): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}


def layout(form, seed=0, **changes):
    tissue = made.Tissue(form, **{"nucleus": 3.5, "spread": 0.1, "gap": 1.1, **changes})
    return forms.laid_out(tissue, (200, 240), 1.0, np.random.default_rng(seed))


def epithelial(found):
    """Nuclei that are neither of fibroblasts nor of lymphocytes."""
    return (found.nuclei.b > 2.35) | (found.nuclei.a < 5.4) & (found.nuclei.b > 1.6) & (found.nuclei.a != 2.4)


# tissue


@pytest.mark.parametrize("form", sorted(set(forms.FORMS) - {"stroma"}))
def test_every_form_has_epithelium_and_nuclei_in_it(form):
    found = layout(form)
    assert len(found.nuclei.x) > 30
    for field in (found.epithelium, found.hollow, found.mucin):
        assert field.min() >= 0
        assert field.max() <= 1.0001
    if form != "files":  # single cells have no epithelium around them
        assert 0.05 < found.epithelium.mean() < 0.98


def test_glands_have_lumens_and_nests_have_none():
    assert layout("tubules").hollow.mean() > 0.05
    assert layout("nests").hollow.mean() == 0
    assert layout("stroma").epithelium.max() == 0


def test_nuclei_of_a_gland_stand_around_its_lumen():
    rng = np.random.default_rng(0)
    field = forms._Field(made.Tissue("tubules", 3.0, 0.05, 1.0), (120, 120), 1.0, rng)
    outline = field.outline((60, 60), (26, 26), 0.0)
    field.around(outline, 0.8)
    x, y = field.found[0][:2]
    away = np.hypot(x - 60, y - 60) / 26
    assert abs(away.mean() - 0.8) < 0.02
    assert away.std() < 0.03
    angle = np.sort(np.arctan2(y - 60, x - 60))
    assert np.diff(angle).max() < 2.5 * 2 * np.pi / len(x)


def test_no_nucleus_lies_in_empty_space():
    found = layout("cysts", empty=0.1)
    rows, columns = found.nuclei.y.astype(int), found.nuclei.x.astype(int)
    inside = (
        (rows >= 0) & (rows < 200) & (columns >= 0) & (columns < 240) & (found.nuclei.y >= 0) & (found.nuclei.x >= 0)
    )
    assert (found.hollow[rows[inside], columns[inside]] <= 0.5).mean() > 0.97


def test_what_is_asked_is_drawn():
    small, large = layout("sheets", nucleus=3.0), layout("sheets", nucleus=5.0)
    assert np.median(large.nuclei.b[epithelial(large)]) > 1.4 * np.median(small.nuclei.b[epithelial(small)])
    even, uneven = layout("sheets", spread=0.05), layout("sheets", spread=0.3)
    size = [np.log(f.nuclei.a * f.nuclei.b)[epithelial(f)].std() for f in (even, uneven)]
    assert size[1] > 2 * size[0]
    assert layout("sheets", gap=1.0).nuclei.x.size > 1.5 * layout("sheets", gap=1.5).nuclei.x.size
    assert layout("tubules", mucin=1.0).mucin.mean() > 0.02
    assert layout("tubules").mucin.max() == 0
    lymphocytes = [(layout("tubules", lymphocytes=n).nuclei.a == np.float32(2.4)).sum() for n in (0.0, 2.0)]
    assert lymphocytes[0] == 0
    assert lymphocytes[1] > 20


def test_a_nucleus_is_painted_where_it_lies():
    """Twice as long as wide, turned by a quarter, at 0.5 micrometres a pixel; cut off at the border."""
    one = np.array([[20.0, 10.0, 6.0, 3.0, np.pi / 2, 0.8], [0.0, 30.0, 3.0, 3.0, 0.0, 0.5]], np.float32).T
    seen = made.painted(forms.Nuclei(*one), (80, 80), 0.5)
    rows, columns = np.nonzero(seen[:40] > 0.2)
    assert (rows.mean(), columns.mean()) == pytest.approx((19.5, 39.5), abs=0.6)
    assert np.ptp(rows) + 1 == pytest.approx(24, abs=1)
    assert np.ptp(columns) + 1 == pytest.approx(12, abs=1)
    rows, columns = np.nonzero(seen[40:] > 0.1)
    assert (rows.mean() + 40, columns.min(), columns.max()) == pytest.approx((59.5, 0, 5), abs=1)
    assert seen.max() <= 0.8 * 1.2


def test_size_is_in_micrometres():
    """Twice the micrometres a pixel show four times the nuclei, each a quarter of the pixels."""
    rng = np.random.default_rng
    tissue = made.Tissue("sheets", 3.5, 0.1, 1.2)
    fine, coarse = (forms.laid_out(tissue, (150, 150), um, rng(1)) for um in (1.0, 2.0))
    assert 3 < len(coarse.nuclei.x) / len(fine.nuclei.x) < 5
    assert np.median(fine.nuclei.b) == pytest.approx(np.median(coarse.nuclei.b), rel=0.1)


def test_stains_follow_beer_and_lambert():
    """More stain squares the light that passes, by its own colours; empty space stays as bright as the lamp."""
    tissue = made.Tissue("cysts", 3.4, 0.1, 1.0, stain=made.Stain())
    plan = forms.laid_out(tissue, (160, 200), 1.0, np.random.default_rng(2))

    def light(strength):
        stain = made.Stain(strength=(strength, strength))
        from dataclasses import replace

        return made.drawn(replace(tissue, stain=stain), plan, 1.0, np.random.default_rng(5)) / np.array(stain.light)

    once, twice = light(1.0), light(2.0)
    dense = (once > 0.3) & (once < 0.95)
    assert np.abs(np.log(twice[dense]) / np.log(once[dense]) - 2).mean() < 0.25
    empty = plan.hollow > 0.89
    assert (once[empty] > 0.85).mean() > 0.95


def test_laboratories_differ():
    stains = [made.stain(np.random.default_rng(i)) for i in range(20)]
    assert len(set(stains)) == 20
    colours = []
    for s in stains:
        tissue = made.Tissue("tubules", 3.4, 0.1, 1.0, stain=s)
        colours.append(made.tile(tissue, (80, 80), 1.5, np.random.default_rng(0)).mean(axis=(0, 1)))
    assert np.std(colours, axis=0).min() > 8


# BreakHis


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    folder = tmp_path_factory.mktemp("breakhis")
    sets.write_breakhis(folder, patients=16, pictures=2)
    return folder


def test_breakhis_is_read_as_published(tree):
    found = labelled.find(tree)
    assert (found.layout, found.classes) == ("BreakHis", ("benign", "malignant"))
    assert len(found.pictures) == 48
    assert len({p.group for p in found.pictures}) == 16
    assert labelled.check(found).good
    for p in found.pictures:
        name = breakhis.parse(p.path.name)
        assert p.path.parent.name == f"{name.magnification}X"
        assert p.path.parents[2].name == breakhis.SUBTYPES[name.subtype]
        assert breakhis.KINDS[name.kind] == p.label
    fine = labelled.find(tree, classes=list(breakhis.SUBTYPES.values()))
    assert {p.label for p in fine.pictures} == set(breakhis.SUBTYPES.values())


def test_breakhis_is_the_same_every_time(tree, tmp_path):
    sets.write_breakhis(tmp_path, patients=16, pictures=2)
    assert digests(tmp_path) == digests(tree)


def test_colours_alone_say_little_of_the_class():
    """Mean colours of benign and malignant patients overlap far more than they differ."""
    means = {"B": [], "M": []}
    for number in range(48):
        who = sets.slide(number)
        shown = made.tile(who.tissue, (80, 120), 1.5, np.random.default_rng(number))
        means[who.kind].append(shown.mean(axis=(0, 1)))
    good, bad = np.array(means["B"]), np.array(means["M"])
    assert len(good) == len(bad) == 24
    assert (np.abs(good.mean(0) - bad.mean(0)) / np.sqrt((good.var(0) + bad.var(0)) / 2)).max() < 1.0


# PatchGastric


@pytest.fixture(scope="module")
def gastric(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gastric")
    sets.write_gastric(folder, slides=8, patches=4)
    return folder


def test_captions_are_in_the_published_layout(gastric, tmp_path):
    with (gastric / "captions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["id", "subtype", "text"]
    assert len({r["id"] for r in rows}) == 8
    patches = sorted((gastric / "patches_captions").glob("*.jpg"))
    assert len(patches) == 32
    assert {p.stem.split("_")[0] for p in patches} == {r["id"] for r in rows}
    assert set(groups.read(gastric / "groups.csv")) == {r["id"] for r in rows}
    with Image.open(patches[0]) as picture:
        assert picture.size == (96, 96)
    sets.write_gastric(tmp_path, slides=8, patches=4)
    assert digests(tmp_path) == digests(gastric)


def test_captions_say_what_is_drawn(gastric):
    with (gastric / "captions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row, (name, _, found, stain) in zip(rows, sets.gastric(8), strict=True):
        assert (row["id"], row["text"], row["subtype"]) == (name, found.text, found.subtype)
        tissue = found.tissue(stain)
        assert ("mucin" in row["text"]) == (tissue.mucin > 0)
        assert ("clusters of lymphocytes" in row["text"]) == (tissue.lymphocytes > 0)
        assert ("dense and fibrous" in row["text"]) == (tissue.fibres > 0.5)
        assert ("enlarged nuclei" in row["text"]) == (tissue.nucleus > 4)
        assert {"Well": "tubules", "Mode": "fused", "Poor": "sheets"}[row["text"][:4]] == tissue.form


def test_every_finding_has_its_own_caption():
    every = sets.findings()
    assert len(every) == len({f.text for f in every}) == 48
    known = [f.text for _, _, f, _ in sets.gastric(160)]
    assert len(set(known)) < len(known)  # captions repeat


def test_patients_with_two_slides_have_one_finding():
    by = {}
    for _, patient, found, _ in sets.gastric(60):
        by.setdefault(patient, []).append(found)
    assert {len(v) for v in by.values()} == {1, 2}
    assert all(len(set(v)) == 1 for v in by.values())


# slides


@pytest.mark.parametrize("form", ["tiff", "svs"])
def test_a_slide_shows_what_its_truth_says(form, tmp_path):
    """Each level's cells have the colours of their class, and the file says its size and micrometres."""
    slides = pytest.importorskip("apps.medical.slides")
    path = tmp_path / f"made.{form}"
    truth = _slide.write(path, (3000, 4100), form=form, factors=(1, 4, 16), seed=3)
    assert set(np.unique(truth.cells)) == {0, 1, 2, 3}
    found = slides.open_slide(path)
    assert found.size == (3000, 4100)
    assert found.um == pytest.approx((0.5, 0.5), rel=1e-3)
    assert [level.size for level in found.levels] == [(3000, 4100), (750, 1025), (188, 257)]
    for number, factor in enumerate(truth.factors):
        source = found.level(number)
        values, _ = source.read((0, 0), source.shape)
        spread = {}
        for kind in range(4):
            row, column = (int(v) for v in np.argwhere(truth.cells[:5, :8] == kind)[0])
            side = _slide.CELL // factor
            cell = values[:, row * side : (row + 1) * side, column * side : (column + 1) * side].astype(float)
            spread[kind] = cell.mean()
        assert spread[0] > max(spread[1], spread[2], spread[3]) + 15  # glass is brightest
    share = truth.share(0, 0, *truth.shape)
    assert sum(share.values()) == pytest.approx(1)


def test_levels_are_means_of_the_finest(tmp_path):
    slides = pytest.importorskip("apps.medical.slides")
    _slide.write(tmp_path / "a.tif", (1120, 1600), factors=(1, 4, 16), quality=95)
    found = slides.open_slide(tmp_path / "a.tif")
    fine, _ = found.level(0).read((0, 0), (1024, 1536))
    for number, factor in ((1, 4), (2, 16)):
        small, _ = found.level(number).read((0, 0), (1024 // factor, 1536 // factor))
        mean = fine.reshape(3, 1024 // factor, factor, 1536 // factor, factor).mean(axis=(2, 4))
        assert np.abs(mean - small).mean() < 3


def test_a_slide_that_does_not_state_its_size(tmp_path):
    slides = pytest.importorskip("apps.medical.slides")
    for form in ("tiff", "svs"):
        _slide.write(tmp_path / f"none.{form}", (600, 700), um=None, form=form)
        assert slides.open_slide(tmp_path / f"none.{form}").um is None


def test_planted_notes_are_in_the_file(tmp_path):
    _slide.write(tmp_path / "a.svs", (600, 700), form="svs", notes="|User = planted|Date = 01/31/70")
    content = (tmp_path / "a.svs").read_bytes()
    assert b"700x600 [0,0 700x600] (512x512) JPEG/RGB|AppMag = 20|MPP = 0.5|User = planted" in content
    assert b"(512x512) -> 175x150 JPEG/RGB" in content


def test_slides_are_the_same_every_time(tmp_path):
    for name in "ab":
        _slide.write(tmp_path / f"{name}.tif", (1100, 900), seed=4, factors=(1,))
    one, other = ((tmp_path / f"{n}.tif").read_bytes() for n in "ab")
    assert one == other
    _slide.write(tmp_path / "c.tif", (1100, 900), seed=5, factors=(1,))
    assert (tmp_path / "c.tif").read_bytes() != one


def test_a_large_slide_takes_little_memory(tmp_path):
    """40,000 x 30,000 pixels are 3.6 GB; the process grows by less than 100 MB over a small slide."""
    _slide.write(tmp_path / "small.tif", (2000, 2000))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    truth = _slide.write(tmp_path / "large.tif", (30_000, 40_000))
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 100
    assert truth.cells.shape == (59, 79)
    assert 2e7 < (tmp_path / "large.tif").stat().st_size < 3e8


def test_wrong_levels(tmp_path):
    for factors in ((), (2, 4), (1, 3), (1, 4, 2), (1, 128)):
        with pytest.raises(SettingError, match="levels of a made slide are 1 and powers of two"):
            _slide.write(tmp_path / "a.tif", (600, 700), factors=factors)
    assert not list(tmp_path.iterdir())
