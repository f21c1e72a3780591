"""Scores against hand-made cases, and against numbers of other tools on the same arrays."""

import json

import numpy as np
import pytest
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from scipy import stats
from scipy.optimize import linear_sum_assignment
from torch import from_numpy

from apps.medical.segmentation import _surfaces, baselines, metrics
from apps.medical.segmentation.metrics import PROTOCOLS, CaseScore, Protocol, components, match, paired, report, score
from core.errors import InputError, SettingError, ShapeError, UnknownNameError


def ellipsoid(shape, centre, radii):
    return sum(((i - c) / r) ** 2 for i, c, r in zip(np.indices(shape), centre, radii, strict=True)) <= 1


A, B = (ellipsoid((14, 24, 20), c, r) for c, r in (((6, 12, 10), (4, 7, 6)), ((7, 13, 10), (4, 6, 7))))
FLAT_A, FLAT_B = (ellipsoid((40, 50), c, r) for c, r in (((20, 25), (12, 9)), ((22, 26), (10, 12))))


def one(truth, prediction, spacing=None, **options):
    name = options.pop("name", "lesion")
    result = score(truth.astype(np.uint8), prediction.astype(np.uint8), {name: 1}, spacing=spacing, **options)
    return result.values[name]


# surface-distance 0.1 (DeepMind): compute_surface_dice_at_tolerance(compute_surface_distances(A, B, spacing), mm)
@pytest.mark.parametrize(
    ("spacing", "tolerance", "expected"),
    [
        ((3, 1, 1), 1, 0.7775264947596976),
        ((3, 1, 1), 2, 0.9073468289352135),
        ((5, 1.2, 0.7), 2, 0.8926068485977059),
        ((5, 1.2, 0.7), 3, 0.961786652735516),
    ],
)
def test_nsd_equals_the_surface_distance_package(spacing, tolerance, expected):
    assert one(A, B, spacing, by=Protocol("own", tolerance=tolerance))["nsd"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("shape", [(9, 17, 13), (21, 15), (1, 12, 12), (3, 60, 50)])
@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")
def test_surfaces_equal_monai(shape, monkeypatch):
    monkeypatch.setattr(_surfaces, "SLAB", 1000)  # many slabs
    draw = np.random.default_rng(len(shape))
    spacing = [2.5, 0.7, 1.1][-len(shape) :]
    for share in (0.02, 0.5):
        truth, prediction = (draw.random(shape) < share for _ in range(2))
        truth.flat[0] = prediction.flat[-1] = True
        pair = [from_numpy(m)[None, None] for m in (prediction, truth)]
        options = {"include_background": True, "spacing": spacing}
        theirs = compute_surface_dice(*pair, class_thresholds=[1.1], use_subvoxels=True, **options).item()
        found = one(truth, prediction, spacing, by=Protocol("own", tolerance=1.1))
        assert found["nsd"] == pytest.approx(theirs, abs=1e-5)
        assert found["hd95"] == pytest.approx(
            compute_hausdorff_distance(*pair, percentile=95, **options).item(), abs=1e-5
        )
        assert found["dice"] == pytest.approx(2 * (truth & prediction).sum() / (truth.sum() + prediction.sum()))


def test_nsd_in_two_dimensions_and_as_a_slab():
    # the package on (A, B, (0.8, 0.5)) at 0.9, and on A[..., None], B[..., None], (1, 1, 1) at 2
    flat = one(FLAT_A, FLAT_B, (0.8, 0.5), by=Protocol("own", tolerance=0.9))
    assert flat["nsd"] == pytest.approx(0.40107478103695393, abs=1e-6)
    slab = one(FLAT_A, FLAT_B, (9.0, 9.0), by="endoscopy")
    assert slab["nsd"] == pytest.approx(0.9544746662050456, abs=1e-6)
    assert slab["dice"] == pytest.approx(0.8068181818181818, abs=1e-6)


def test_nsd_of_shifted_boxes_by_hand():
    truth = np.zeros((30, 30), bool)
    truth[10:18, 10:18] = True
    assert one(truth, truth, (1, 1))["nsd"] == 1
    far = np.roll(truth, 12, axis=1)
    assert one(truth, far, (1, 1))["nsd"] == 0
    near = np.roll(truth, 2, axis=1)
    assert one(truth, near, (1, 1))["nsd"] == 1  # every place of either contour is within 2
    assert one(truth, near, (1, 1.01))["nsd"] < 1  # 2 samples are now 2.02 mm
    assert one(truth, near, None)["nsd"] == 1


def test_hd95_and_dice_by_hand():
    truth, prediction = np.zeros((20, 20), bool), np.zeros((20, 20), bool)
    truth[5, 5:10], prediction[5, 8:13] = True, True
    found = one(truth, prediction, (2.0, 0.5))
    assert found["dice"] == pytest.approx(2 * 2 / 10)
    # distances of each side: 1.5, 1, 0.5, 0, 0 mm; the 95th percentile by linear interpolation
    assert found["hd95"] == pytest.approx(np.percentile([1.5, 1.0, 0.5, 0, 0], 95))


@pytest.mark.parametrize(
    ("empty", "both", "only_truth", "only_prediction"),
    [("card", 1, 0, 0), ("nan", None, 0, 0), ("skip", None, 0, None)],
)
def test_absent_structures(empty, both, only_truth, only_prediction):
    there, nothing = np.ones((4, 5, 5), bool), np.zeros((4, 5, 5), bool)
    rule = Protocol("own", empty=empty)
    for (truth, prediction), expected in zip(
        [(nothing, nothing), (there, nothing), (nothing, there)], (both, only_truth, only_prediction), strict=True
    ):
        found = one(truth, prediction, (1, 1, 1), by=rule)
        for metric in ("dice", "nsd"):
            assert np.isnan(found[metric]) if expected is None else found[metric] == expected
        assert np.isnan(found["hd95"])  # neither 0 nor infinite


def test_hd95_is_left_out_and_counted():
    there, nothing = np.zeros((6, 9, 9), np.uint8), np.zeros((6, 9, 9), np.uint8)
    there[2:4, 3:6, 3:6] = 1
    cases = [score(there, p, {"x": 1}, spacing=(1, 1, 1), id=str(i)) for i, p in enumerate([there, nothing, there])]
    cases.append(score(nothing, nothing, {"x": 1}, spacing=(1, 1, 1), id="3"))
    found = report(cases).classes["x"]
    assert (found["hd95"].mean, found["hd95"].n) == (0.0, 2)
    assert found["hd95"].left_out == {"absent from the prediction": 1, "absent from both": 1}
    assert (found["dice"].mean, found["dice"].n) == (0.75, 4)


def test_abdomen_tolerances_and_bounds():
    truth = np.zeros((12, 16, 24), np.uint8)
    truth[3:9, 4:12, 4:12] = 1
    prediction = truth.copy()
    prediction[8] = 0  # the last labelled slice
    prediction[9:] = 1  # beyond it
    prediction[:3] = 1
    for name, bounded in (("aorta", True), ("Postcava", True), ("esophagus", True), ("liver", False)):
        found = score(truth, prediction, {name: 1}, spacing=(5, 1, 1), by="abdomen_mr").values[name]
        assert (found["dice"] == 1) is bounded  # slice 8 is not scored, as the upper bound is exclusive
        assert set(found) == {"dice", "nsd"}
    single = np.zeros_like(truth)
    single[5, 4:12, 4:12] = 1
    lone = score(single, single, {"aorta": 1}, spacing=(5, 1, 1), by="abdomen_mr")
    assert np.isnan(lone.values["aorta"]["dice"])
    assert "one slice" in lone.left_out["aorta"]["dice"]
    # A shift of 4 mm is inside the liver's tolerance of 5, outside the spleen's 3, and of 6 inside the duodenum's 7.
    for name, moved, perfect in (
        ("liver", 4, True),
        ("spleen", 4, False),
        ("duodenum", 6, True),
        ("stomach", 6, False),
    ):
        found = score(truth, np.roll(truth, moved, 2), {name: 1}, spacing=(5, 1, 1), by="abdomen_mr").values[name]
        assert (found["nsd"] == 1) is perfect, name


def test_published_tolerances_are_those_of_the_card():
    names = {"liver": 5, "RK": 3, "LK": 3, "spleen": 3, "pancreas": 5, "aorta": 2, "IVC": 2, "RAG": 2, "LAG": 2}
    names |= {"gallbladder": 2, "esophagus": 3, "stomach": 5, "duodenum": 7}
    assert {n: metrics.structure(n).tolerance for n in names} == names
    words = report(
        [score(A.astype(np.uint8), B.astype(np.uint8), {"liver": 1, "odd": 2}, spacing=(1, 1, 1))]
    ).definitions
    assert "liver 5, others 2" in words["nsd"]
    assert "MONAI 1." in words["dice"]


def test_endoscopy_means_over_what_occurs_in_an_image_first():
    first, second = np.zeros((2, 10, 10), np.uint8)
    first[2:4, 2:8] = 1
    second[5:8, 5:8] = 2
    wrong = second.copy()
    wrong[0:2, 0:2] = 1
    classes = {"forceps": 1, "scissors": 2, "probe": 3}
    cases = [
        score(first, first, classes, by="endoscopy", id="a"),
        score(second, wrong, classes, by="endoscopy", id="b"),
    ]
    cases.append(score(second, second, classes, by="endoscopy", id="c"))
    found = report(cases)
    assert [c.mean("dice") for c in cases] == [1, 0.5, 1]
    assert found.mean["dice"].mean == pytest.approx(2.5 / 3)  # the mean over classes would be 0.75
    assert found.mean["dice"].n == 3
    assert found.never_scored == ("probe",)


def brute(truth, prediction, threshold):
    """The matching as the card states it, over all instances at once."""
    t, p = np.unique(truth[truth > 0]), np.unique(prediction[prediction > 0])
    both = np.array([[((truth == i) & (prediction == j)).sum() for j in p] for i in t])
    iou = both / np.array([[((truth == i) | (prediction == j)).sum() for j in p] for i in t])
    rows, columns = linear_sum_assignment(-(iou >= threshold).astype(float) - iou / (2 * min(len(t), len(p))))
    return int((iou[rows, columns] >= threshold).sum()), len(t), len(p)


@pytest.mark.parametrize("threshold", [0.5, 0.2, 0.05])
def test_instances_match_as_over_the_whole_matrix(threshold):
    draw = np.random.default_rng(3)
    truth = np.kron(draw.permutation(64).reshape(8, 8), np.ones((4, 4), int))
    prediction = np.roll(truth, (1, 1), (0, 1)) // 2  # displaced, and joined in twos
    prediction[:16] = np.where(draw.random((16, 32)) < 0.8, truth[:16], 0)
    matched, n_truth, n_prediction = brute(truth, prediction, threshold)
    found = match(truth, prediction, threshold=threshold, border=0)
    assert (found.matched, found.truth, found.prediction) == (matched, n_truth, n_prediction)
    assert found.f1 == pytest.approx(2 * matched / (n_truth + n_prediction))


def test_instances_need_the_best_assignment():
    # IoU 0.6 of the first two, 0.25 of either with the other's neighbour: two pairs, though one alone has more overlap.
    truth, prediction = np.zeros((1, 40), int), np.zeros((1, 40), int)
    truth[0, :16], truth[0, 16:20] = 1, 2
    prediction[0, 4:20], prediction[0, :4] = 1, 2
    assert match(truth, prediction, threshold=0.2, border=0).matched == 2
    assert match(truth, prediction, threshold=0.3, border=0).matched == 1


def test_cells_at_the_border_are_taken_out():
    mask = np.zeros((40, 40), np.uint8)
    for y, x in ((1, 10), (2, 20), (20, 20), (30, 37)):
        mask[y : y + 3, x : x + 3] = 1  # from rows 1 and to column 39: reach within 2 px; row 2 does not
    found = score(mask, mask, {"interior": 1, "boundary": 2}, by="microscopy")
    assert found.counts == {"truth": 2, "prediction": 2, "matched": 2}
    assert found.values["interior"]["f1"] == 1
    assert match(components(mask == 1), np.zeros_like(mask)).f1 == 0
    diagonal = np.eye(9, dtype=bool)
    assert components(diagonal).max() == 1  # corners join
    numbered = components(mask == 1)
    assert score(numbered, mask, {"interior": 1}, by="microscopy", instances=True).counts["matched"] == 2
    with pytest.raises(SettingError):
        match(numbered, numbered, threshold=0)


def test_large_pictures_are_scored_in_tiles():
    mask = np.zeros((50, 70), bool)
    mask[8:12, 8:12] = mask[18:22, 30:34] = mask[44:47, 64:67] = True  # second one lies across tiles of 20
    whole = match(components(mask), components(mask), tile=20, large=10**9)
    tiles = match(components(mask), components(mask), tile=20, large=3500)
    assert whole.truth == 3
    assert (tiles.truth, tiles.matched) == (2, 2)  # its halves touch tile borders


def test_ignored_and_invalid_samples_count_for_neither():
    truth, prediction = np.zeros((2, 12, 12), np.uint8)
    truth[2:6, 2:6] = prediction[2:6, 2:6] = 1
    truth[8:, :] = 9
    prediction[8:, 3:6] = 1  # on the ignored part
    prediction[0, 0] = 1
    valid = np.ones_like(truth, bool)
    valid[0, 0] = False
    assert score(truth, prediction, {"x": 1, "void": 9}, ignore=9, valid=valid).values["x"]["dice"] == 1
    assert score(truth, prediction, {"x": 1, "void": 9}, ignore=9).values["x"]["dice"] < 1
    with pytest.raises(InputError, match="the truth holds the ids 9"):
        score(truth, prediction, {"x": 1})
    with pytest.raises(ShapeError):
        score(truth, prediction[1:], {"x": 1})
    with pytest.raises(UnknownNameError, match="endoscopy"):
        score(truth, prediction, {"x": 1}, by="endoscopie")


def made(values, groups=None, protocol=PROTOCOLS["house"], names=("x",)):
    """Cases with given Dice, one row per case."""
    nan = float("nan")
    rows = np.reshape(values, (len(values), -1))
    return [
        CaseScore(
            f"c{i}",
            groups[i] if groups else "",
            protocol,
            "mm",
            {n: {"dice": float(v), "nsd": nan, "hd95": nan} for n, v in zip(names, row, strict=True)},
        )
        for i, row in enumerate(rows)
    ]


def test_interval_agrees_with_scipy_where_each_case_is_its_own_group():
    values = np.random.default_rng(0).beta(8, 2, 40)
    ours = report(made(values), repeats=20000).classes["x"]["dice"]
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20000, method="percentile", rng=1).confidence_interval
    assert ours.low == pytest.approx(theirs.low, abs=2e-3)
    assert ours.high == pytest.approx(theirs.high, abs=2e-3)


def test_interval_is_over_patients_not_slices():
    values = np.repeat(np.random.default_rng(0).beta(8, 2, 8), 25)
    patients = [f"p{i // 25}" for i in range(200)]
    apart, together = report(made(values)), report(made(values, patients))
    assert (apart.groups, together.groups) == (200, 8)
    width = [r.classes["x"]["dice"].high - r.classes["x"]["dice"].low for r in (apart, together)]
    assert width[1] > 3 * width[0]
    lone = report(made([0.5, 0.6], ["p", "p"])).classes["x"]["dice"]
    assert (lone.low, lone.high, lone.n) == (None, None, 2)


def test_mean_over_classes_leaves_out_what_was_never_scored():
    nan = float("nan")
    found = report(made([[1.0, 0.5, nan], [0.5, nan, nan]], names=("a", "b", "c")))
    assert found.mean["dice"].mean == pytest.approx((0.75 + 0.5) / 2)  # not (0.75 + 0.5) / 3
    assert found.never_scored == ("c",)
    assert found.classes["c"]["dice"].mean is None
    assert json.loads(json.dumps(found.as_dict()))["classes"]["b"]["dice"]["n"] == 1
    assert {r["class"] for r in found.rows()} == {"a", "b", "c", "mean"}


def test_reports_refuse_what_does_not_belong_together():
    there = np.ones((3, 4, 4), np.uint8)
    with pytest.raises(InputError, match="unit"):
        report([score(there, there, {"x": 1}, spacing=s, id=i) for i, s in (("a", (1, 1, 1)), ("b", None))])
    with pytest.raises(InputError, match="a was scored twice"):
        report([score(there, there, {"x": 1}, id="a") for _ in range(2)])
    with pytest.raises(InputError, match="no case"):
        report([])


def test_paired_differences():
    draw = np.random.default_rng(0)
    a = draw.beta(8, 2, 12)
    b = a - draw.normal(0.03, 0.02, 12)
    found = paired(made(a), [*made(b)[1:], *made(np.r_[b, 0.5])[12:]])
    (row,) = [r for r in found.rows if (r["class"], r["metric"]) == ("x", "dice")]
    assert (found.only_a, found.only_b) == (("c0",), ("c12",))
    assert row["n"] == 11
    assert row["difference"] == pytest.approx((a - b)[1:].mean())
    assert row["p"] == pytest.approx(stats.wilcoxon(a[1:], b[1:]).pvalue)
    assert row["low"] < row["difference"] < row["high"]
    grouped = paired(made(a, list("aabbccddeeff")), made(b, list("aabbccddeeff"))).rows[0]
    assert grouped["p"] == pytest.approx(stats.wilcoxon((a - b).reshape(6, 2).mean(1)).pvalue)
    same = paired(made(a), made(a)).rows[0]
    assert (same["difference"], same["p"]) == (0, 1)
    with pytest.raises(InputError, match="without an id"):
        paired([score(A * 1, B * 1, {"x": 1})], made(a))
    with pytest.raises(InputError, match="no item in common"):
        paired(made(a)[:2], made(a)[2:])


def test_baselines_do_what_they_are_named_for():
    draw = np.random.default_rng(0)
    masks = [ellipsoid((8, 20 + s, 20), (4, 10 + s / 2, 10), (3, 6, 6)).astype(np.uint8) for s in (0, 4, 2)]
    train = [(m * 50 + draw.normal(0, 4, m.shape), m) for m in masks]
    by_intensity = baselines.kmeans_baseline(train, [train[0][0] * 3 + 100])[0]
    assert one(masks[0] == 1, by_intensity == 1)["dice"] > 0.97
    dark = baselines.kmeans_baseline(train, [-train[0][0]])[0]
    assert one(masks[0] == 1, dark == 1)["dice"] < 0.2  # it looks at brightness, not at place
    # Bright background makes the bright cluster mostly background, whose Dice with all background is still small.
    bright = ellipsoid((8, 22, 20), (4, 3, 10), (4, 5, 10)) & (masks[2] == 0)
    image = (masks[2] | bright) * 50 + draw.normal(0, 4, bright.shape)
    assert bright.sum() > masks[2].sum()
    assert baselines.kmeans_baseline([(image, masks[2])], [image])[0][masks[2] == 1].mean() > 0.9
    (mean, again) = baselines.atlas_baseline(train, [np.zeros((8, 22, 20)), np.zeros((16, 44, 40))])
    assert one(masks[2] == 1, mean == 1)["dice"] > 0.95
    assert mean.shape == (8, 22, 20)
    assert one(masks[2].repeat(2, 0).repeat(2, 1).repeat(2, 2) == 1, again == 1)["dice"] > 0.9
    with pytest.raises(InputError, match="at least one"):
        baselines.atlas_baseline([], [])
