"""Scores of class probabilities against torchmetrics and scikit-learn, their intervals, thresholds and reasons."""

import json
import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")
metrics = pytest.importorskip("torchmetrics.functional.classification")
sk = pytest.importorskip("sklearn.metrics")

from apps.medical import _class_weighted as weighted
from apps.medical import classes
from apps.medical.classes import Answer
from core.errors import InputError, SettingError

TWO, FOUR = ["benign", "malignant"], list("abcd")


def made(n=240, k=2, seed=0, ties=False, of=3):
    """Answers that are right more often than not; `of` pictures a patient."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(k), n)
    if ties:
        p = np.round(p * 8) + 1
        p /= p.sum(axis=1, keepdims=True)
    y = [int(rng.choice(k, p=(q + 0.3) / (q + 0.3).sum())) for q in p]
    return [Answer(f"i{i}", f"g{i // of}", y[i], tuple(p[i].tolist())) for i in range(n)]


def arrays(answers):
    return np.array([a.probabilities for a in answers]), np.array([a.target for a in answers])


@pytest.mark.parametrize("ties", [False, True])
def test_two_classes_are_what_torchmetrics_and_scikit_learn_say(ties):
    answers = made(ties=ties)
    p, y = arrays(answers)
    score, called = p[:, 1], p[:, 1] >= 0.4
    found = classes.report(answers, TWO, positive="malignant", threshold=0.4, draws=50)
    want = {
        "auroc": sk.roc_auc_score(y, score),
        "auprc": sk.average_precision_score(y, score),
        "sensitivity": sk.recall_score(y, called),
        "specificity": sk.recall_score(y, called, pos_label=0),
        "balanced_accuracy": sk.balanced_accuracy_score(y, called),
        "f1": sk.f1_score(y, called),
        "accuracy": sk.accuracy_score(y, called),
        "brier": sk.brier_score_loss(y, score),
        "ece": float(metrics.binary_calibration_error(torch.tensor(score), torch.tensor(y), n_bins=15)),
    }
    assert {s.metric for s in found.scores} == set(want)
    for metric, value in want.items():
        assert found.value(metric) == pytest.approx(value, abs=1e-6), metric
    assert found.threshold == 0.4
    assert found.positive == "malignant"
    assert set(found.definitions) == {*want, "interval"}


def test_the_other_class_may_be_the_one_looked_for():
    answers = made()
    p, y = arrays(answers)
    found = classes.report(answers, TWO, positive="benign", draws=10)
    assert found.value("auprc") == pytest.approx(sk.average_precision_score(y == 0, p[:, 0]), abs=1e-6)
    assert found.value("sensitivity") == pytest.approx(sk.recall_score(y == 0, p[:, 0] >= 0.5))


@pytest.mark.parametrize("ties", [False, True])
def test_four_classes_are_what_torchmetrics_and_scikit_learn_say(ties):
    answers = made(k=4, ties=ties)
    p, y = arrays(answers)
    tp, ty, called = torch.tensor(p), torch.tensor(y), p.argmax(1)
    found = classes.report(answers, FOUR, draws=20)
    want = {
        "auroc": sk.roc_auc_score(y, p, multi_class="ovr"),
        "auprc": float(metrics.multiclass_average_precision(tp, ty, 4)),
        "balanced_accuracy": sk.balanced_accuracy_score(y, called),
        "f1_macro": sk.f1_score(y, called, average="macro"),
        "f1_weighted": sk.f1_score(y, called, average="weighted"),
        "accuracy": sk.accuracy_score(y, called),
        "ece": float(metrics.multiclass_calibration_error(tp, ty, 4, n_bins=15)),
        "brier": sk.brier_score_loss(y, p, scale_by_half=False),
    }
    for metric, value in want.items():
        assert found.value(metric) == pytest.approx(value, abs=1e-6), metric
    for k, name in enumerate(FOUR):
        assert found.value("auroc", name) == pytest.approx(sk.roc_auc_score(y == k, p[:, k]), abs=1e-6)
        assert found.value("sensitivity", name) == pytest.approx(sk.recall_score(y == k, called == k))
        assert found.value("specificity", name) == pytest.approx(sk.recall_score(y != k, called != k))
    assert found.positive is None
    assert found.threshold is None


@pytest.mark.parametrize("ties", [False, True])
def test_weights_count_a_picture_so_many_times(ties):
    """The bootstrap's numbers equal the package's on the pictures drawn, repeated as often as drawn."""
    p, y = arrays(made(60, ties=ties, seed=4))
    score, truth = p[:, 1], y == 1
    rng = np.random.default_rng(1)
    weights = rng.integers(0, 4, (5, 60)).astype(float)
    for row, w in enumerate(weights.astype(int)):
        s, t = np.repeat(score, w), np.repeat(truth, w)
        c = s >= 0.5
        pairs = {
            "auroc": (weighted.auroc(score, truth, weights), sk.roc_auc_score(t, s)),
            "auprc": (weighted.auprc(score, truth, weights), sk.average_precision_score(t, s)),
            "f1": (weighted.f1(truth, score >= 0.5, weights), sk.f1_score(t, c)),
            "recall": (weighted.share(score >= 0.5, truth, weights), sk.recall_score(t, c)),
            "ece": (
                weighted.ece(score, truth, weights, 15),
                float(metrics.binary_calibration_error(torch.tensor(s), torch.tensor(t).int(), n_bins=15)),
            ),
        }
        for name, (ours, theirs) in pairs.items():
            assert ours[row] == pytest.approx(theirs, abs=1e-6), name


def test_a_probability_of_exactly_one_is_counted():
    answers = [Answer(str(i), "", i % 2, (0.0, 1.0) if i % 3 else (1.0, 0.0)) for i in range(12)]
    p, y = arrays(answers)
    want = float(metrics.binary_calibration_error(torch.tensor(p[:, 1]), torch.tensor(y), n_bins=15))
    assert classes.report(answers, TWO, draws=5).value("ece") == pytest.approx(want)


def test_a_probability_on_a_border_is_in_the_bin_above():
    values = [0.2, 0.19, 0.21, 0.6, 0.59, 0.61, 0.0, 0.8]
    answers = [Answer(str(i), "", i % 2, (1 - v, v)) for i, v in enumerate(values)]
    p, y = arrays(answers)
    want = float(metrics.binary_calibration_error(torch.tensor(p[:, 1]), torch.tensor(y), n_bins=15))
    ours = weighted.ece(p[:, 1], y == 1, np.ones((1, len(y))), 15)[0]
    assert ours == pytest.approx(want, abs=1e-6)


def test_rounding_above_one_is_not_taken_for_a_logit():
    answers = [Answer(str(i), "", i % 2, (-0.0, 1.0000002) if i % 2 else (0.6, 0.4)) for i in range(8)]
    found = classes.report(answers, TWO, draws=5)
    assert found.value("auroc") == 1.0
    assert found.value("accuracy") == 1.0
    assert found.value("ece") == pytest.approx(0.2)


def interval(answers, metric="auroc"):
    score = next(s for s in classes.report(answers, TWO).scores if s.metric == metric)
    return score.low, score.high


def test_intervals_are_over_patients():
    """Copies of a picture in one patient add nothing; as patients of their own they would."""
    alone = [Answer(f"{i}", f"g{i}", a.target, a.probabilities) for i, a in enumerate(made(60, seed=2))]
    copies = [Answer(f"{a.id}/{k}", a.group, a.target, a.probabilities) for a in alone for k in range(6)]
    apart = [Answer(a.id, a.id, a.target, a.probabilities) for a in copies]
    wide, same, narrow = (np.diff(interval(x))[0] for x in (alone, copies, apart))
    assert same == pytest.approx(wide, rel=1e-6)
    assert narrow < 0.6 * wide


def test_an_interval_agrees_with_drawing_by_hand():
    answers = made(90, seed=3)
    groups = sorted({a.group for a in answers})
    rng = np.random.default_rng(9)
    by = {g: [a for a in answers if a.group == g] for g in groups}
    drawn = []
    for _ in range(600):
        picked = [a for g in rng.choice(groups, len(groups)) for a in by[g]]
        p, y = arrays(picked)
        drawn.append(sk.roc_auc_score(y, p[:, 1]))
    assert interval(answers) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.02)


def test_without_groups_each_picture_stands_alone():
    answers = [Answer(a.id, "", a.target, a.probabilities) for a in made(40)]
    assert classes.report(answers, TWO, draws=10).groups == 40
    one = [Answer(a.id, "one", a.target, a.probabilities) for a in answers]
    assert {(s.low, s.high) for s in classes.report(one, TWO, draws=10).scores} == {(None, None)}


def test_one_class_only_leaves_out_with_reasons():
    answers = [Answer(a.id, a.group, 0, a.probabilities) for a in made(30)]
    found = classes.report(answers, TWO, draws=10)
    assert found.left_out["auroc"] == "no picture is of malignant"
    assert set(found.left_out) == {"auroc", "auprc", "sensitivity", "balanced_accuracy"}
    assert all(math.isfinite(s.value) for s in found.scores)
    assert found.value("auroc") is None
    assert "auroc: left out, no picture is of malignant" in found.text()
    flipped = [Answer(a.id, a.group, 1, a.probabilities) for a in made(30)]
    assert classes.report(flipped, TWO, draws=10).left_out["specificity"] == "every picture is of malignant"


def test_an_absent_class_of_four_is_not_in_the_means():
    answers = [a for a in made(300, k=4, seed=5) if a.target != 2]
    p, y = arrays(answers)
    found = classes.report(answers, FOUR, draws=10)
    there = [0, 1, 3]
    assert found.value("auroc") == pytest.approx(np.mean([sk.roc_auc_score(y == k, p[:, k]) for k in there]), abs=1e-6)
    assert found.value("balanced_accuracy") == pytest.approx(
        np.mean([(p[y == k].argmax(1) == k).mean() for k in there])
    )
    assert found.left_out["auroc of c"] == found.left_out["sensitivity of c"] == "no picture is of c"
    assert "specificity of c" not in found.left_out
    assert all(math.isfinite(s.value) for s in found.scores)


def test_a_rare_class_survives_draws_without_it():
    answers = [Answer(str(i), f"g{i}", int(i == 0), (0.5, 0.5) if i else (0.1, 0.9)) for i in range(20)]
    low, high = interval(answers)
    assert (low, high) == (1.0, 1.0)


def test_unknown_pictures_are_counted_not_scored():
    answers = [*made(40), Answer("x", "gx", None, (0.5, 0.5))]
    found = classes.report(answers, TWO, draws=10)
    assert (found.pictures, found.unknown) == (40, 1)
    assert "1 more without a known class" in found.text()


def test_a_report_is_plain():
    found = classes.report(made(), TWO, draws=10)
    document = json.loads(json.dumps(found.as_dict()))
    assert document["scores"] == found.rows()
    assert found.rows()[0].keys() == {"class", "metric", "value", "low", "high", "n"}
    assert "auroc" in found.text()


@pytest.mark.parametrize(
    ("answers", "names", "message"),
    [
        ([], TWO, "nothing to score"),
        ([Answer("a", "", None, (0.5, 0.5))], TWO, "no picture has a known class"),
        ([Answer("a", "", 0, (0.5, 0.5)), Answer("a", "", 1, (0.5, 0.5))], TWO, "a: was answered twice"),
        ([Answer("a", "", 0, (0.5, 0.2, 0.3))], TWO, "3 probabilities for 2 classes"),
        ([Answer("a", "", 0, (2.5, -1.5))], TWO, "no probabilities"),
        ([Answer("a", "", 0, (float("nan"), 0.5))], TWO, "no probabilities"),
        ([Answer("a", "", 2, (0.5, 0.5))], TWO, "class number 2, but there are 2"),
        ([Answer("a", "", 0, (1.0,))], ["benign"], "only one class"),
    ],
)
def test_what_is_no_answer_is_one_sentence(answers, names, message):
    with pytest.raises(InputError, match=message):
        classes.report(answers, names)


def test_an_unknown_positive_class():
    with pytest.raises(InputError, match="no class is named 'hcc'; the classes are benign, malignant"):
        classes.report(made(), TWO, positive="hcc")


# thresholds


def test_a_threshold_maximises_youden():
    answers = made(seed=6)
    p, y = arrays(answers)
    chosen = classes.choose_threshold(answers, 1)
    fpr, tpr, _ = sk.roc_curve(y, p[:, 1], drop_intermediate=False)
    called = p[:, 1] >= chosen
    gain = sk.recall_score(y, called) + sk.recall_score(y, called, pos_label=0) - 1
    assert gain == pytest.approx((tpr - fpr).max())


@pytest.mark.parametrize("wanted", [0.8, 0.9, 1.0])
def test_a_threshold_reaches_what_is_asked_and_no_more(wanted):
    answers = made(seed=7)
    p, y = arrays(answers)

    def both(t):
        called = p[:, 1] >= t
        return called[y == 1].mean(), 1 - called[y == 0].mean()

    chosen = classes.choose_threshold(answers, 1, aim=f"sensitivity={wanted}")
    assert both(chosen)[0] >= wanted
    higher = np.unique(p[:, 1])[np.unique(p[:, 1]) > chosen]
    assert all(both(h + 1e-12)[0] < wanted for h in higher)
    chosen = classes.choose_threshold(answers, 1, aim=f"specificity={wanted}")
    assert both(chosen)[1] >= wanted
    lower = np.unique(p[:, 1])[np.unique(p[:, 1]) < chosen]
    assert all(both(v)[1] < wanted for v in lower[:-1])


def test_a_threshold_lies_between_scores():
    answers = [Answer(str(i), "", int(i > 4), (1 - i / 10, i / 10)) for i in range(10)]
    assert classes.choose_threshold(answers, 1) == pytest.approx(0.45)


def test_no_threshold():
    with pytest.raises(InputError, match="of both classes"):
        classes.choose_threshold([Answer("a", "", 1, (0.5, 0.5))], 1)
    for aim in ("best", "youden=1", "sensitivity", "sensitivity=2", "specificity=x"):
        with pytest.raises(SettingError, match="a threshold aims at youden"):
            classes.choose_threshold(made(), 1, aim=aim)


# two models


def test_a_model_against_itself_differs_by_nothing():
    answers = made()
    for row in classes.paired(answers, answers, TWO, draws=50):
        assert row["difference"] == row["low"] == row["high"] == 0


def test_a_better_model_is_better_with_an_interval_above_zero():
    rng = np.random.default_rng(0)
    good, bad = [], []
    for i in range(150):
        y = i % 2
        for answers, gap in ((good, 1.2), (bad, 0.2)):
            q = 1 / (1 + math.exp(-rng.normal((2 * y - 1) * gap)))
            answers.append(Answer(str(i), f"g{i // 3}", y, (1 - q, q)))
    rows = {r["metric"]: r for r in classes.paired(good, bad, TWO, draws=500)}
    row = rows["auroc"]
    assert 0 < row["low"] < row["difference"] < row["high"]
    assert row["difference"] == pytest.approx(row["a"] - row["b"])
    mirrored = {r["metric"]: r for r in classes.paired(bad, good, TWO, draws=500)}["auroc"]
    assert mirrored["low"] == pytest.approx(-row["high"])
    assert "A - B" in classes.compared(list(rows.values()))


def test_pairs_are_drawn_together():
    """The interval of a difference is far narrower than those of two models that err on the same pictures."""
    a = made(120, seed=8)
    rng = np.random.default_rng(0)
    b = []
    for x in a:
        q = min(max(x.probabilities[1] + rng.normal(0, 0.01), 0), 1)
        b.append(Answer(x.id, x.group, x.target, (1 - q, q)))
    row = next(r for r in classes.paired(a, b, TWO) if r["metric"] == "auroc")
    assert row["high"] - row["low"] < 0.2 * np.diff(interval(a))[0]


def test_only_shared_pictures_are_compared():
    a, b = made(80)[:60], made(80)
    assert {r["n"] for r in classes.paired(a, b, TWO, draws=5) if r["metric"] == "auroc"} == {60}
    with pytest.raises(InputError, match="no picture in common"):
        classes.paired(a, [Answer(f"z{x.id}", "", x.target, x.probabilities) for x in b], TWO)
    other = [Answer(x.id, x.group, 1 - x.target, x.probabilities) for x in a]
    with pytest.raises(InputError, match="class or patient differs"):
        classes.paired(a, other, TWO)


def test_each_model_has_its_own_threshold():
    answers = made()
    row = next(
        r for r in classes.paired(answers, answers, TWO, thresholds=(0.0, 1.1), draws=5) if r["metric"] == "sensitivity"
    )
    assert (row["a"], row["b"]) == (1.0, 0.0)


# calibration


def test_reliability_is_by_bins():
    answers = [Answer(str(i), "", int(i % 4 == 0), (0.68, 0.32)) for i in range(8)]
    answers += [Answer(f"h{i}", "", 1, (0.0, 1.0)) for i in range(3)]
    found = classes.reliability(answers, bins=10, positive=1)
    assert found["n"] == [8, 3]
    assert found["probability"] == pytest.approx([0.32, 1.0])
    assert found["share"] == pytest.approx([0.25, 1.0])
    top = classes.reliability(answers, bins=10)
    assert top["probability"] == pytest.approx([0.68, 1.0])
    assert top["share"] == pytest.approx([0.75, 1.0])


def test_ece_is_what_the_plot_shows():
    answers = made(seed=11)
    found = classes.reliability(answers, positive=1)
    gap = np.abs(np.array(found["probability"]) - found["share"]) * found["n"]
    assert gap.sum() / len(answers) == pytest.approx(classes.report(answers, TWO, draws=5).value("ece"), abs=1e-6)


def test_the_calibration_plot_is_a_picture(tmp_path):
    from PIL import Image

    classes.reliability_figure(made(), tmp_path / "calibration.png", positive=1)
    with Image.open(tmp_path / "calibration.png") as picture:
        assert picture.format == "PNG"
        assert min(picture.size) >= 300
