"""Scores of captions: the packages' own numbers, corpus BLEU from counts, intervals over patients."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from apps.medical.pathology_caption import metrics
from apps.medical.pathology_caption.data import Bag
from core.errors import InputError

KNOWN = [
    "Moderately differentiated tubular adenocarcinoma, with mucin.",
    "Poorly differentiated adenocarcinoma.",
    "Well differentiated tubular adenocarcinoma in the biopsy.",
    "No malignancy is seen in these four pieces.",
]
SAID = ["moderately differentiated adenocarcinoma with mucin", KNOWN[1], "", "malignancy is seen in four pieces"]


def bags(groups: str = "ppqr") -> list[Bag]:
    return [Bag(f"b{i}", g, (Path("x.png"),), c) for i, (g, c) in enumerate(zip(groups, KNOWN, strict=True))]


def said(captions: list[str] = SAID) -> dict[str, str]:
    return {f"b{i}": c for i, c in enumerate(captions)}


def words(captions: list[str]) -> dict[str, list[str]]:
    return {f"b{i}": [w] for i, w in enumerate(metrics._words(captions))}


def test_bleu_is_the_packages() -> None:
    from pycocoevalcap.bleu.bleu import Bleu

    found = metrics.report(metrics.score(said(), bags()), draws=10)
    own, _ = Bleu(4).compute_score(words(KNOWN), words(SAID))
    for name, value in zip(metrics.METRICS[:4], own, strict=True):
        assert found.value(name) == pytest.approx(100 * value, rel=1e-9)
    assert 0 < found.value("bleu4") < found.value("bleu1") < 100


def test_the_others_are_means_of_the_packages_values() -> None:
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    found = metrics.report(metrics.score(said(), bags()), draws=10)
    for name, scorer in (("rouge_l", Rouge()), ("cider", Cider())):
        value, _ = scorer.compute_score(words(KNOWN), words(SAID))
        assert found.value(name) == pytest.approx(100 * float(value))


def test_words_are_cut_and_cleaned() -> None:
    assert metrics._words(["Well-differentiated, (tubular): it's."]) == ["well-differentiated tubular it 's"]


def test_meteor_takes_stems_and_no_synonyms() -> None:
    pairs = {"a": ["glands"], "b": ["tumour"]}, {"a": ["gland"], "b": ["neoplasm"]}
    stem, synonym = metrics._meteor(*pairs)
    assert stem > 0.4
    assert synonym == 0


def test_perfect_and_empty_captions() -> None:
    perfect = metrics.report(metrics.score(said(KNOWN), bags()), draws=10)
    for name in ("bleu1", "bleu2", "bleu3", "rouge_l"):
        assert perfect.value(name) == pytest.approx(100, abs=1e-4)
    empty = metrics.report(metrics.score(said([""] * 4), bags()), draws=10)
    assert all(empty.value(name) == pytest.approx(0, abs=1e-6) for name in metrics.METRICS)


def test_intervals_draw_patients_whole() -> None:
    one = metrics.report(metrics.score(said(), bags("pppp")), draws=50)
    assert all(s.low is None for s in one.scores)
    captions = metrics.score(said(), bags("ppqr"))
    times = metrics._times(captions.groups, 200, 0)
    assert (times[:, 0] == times[:, 1]).all()  # of one patient
    assert (times[:, [0, 2, 3]].sum(1) == 3).all()
    found = metrics.report(captions, draws=500)
    for s in found.scores:
        assert s.low is not None
        assert s.high is not None
        assert s.low <= s.value <= s.high


def test_drawn_bleu_is_that_of_the_drawn_corpus() -> None:
    captions = metrics.score(said(), bags())
    twice = captions.values(np.array([[2.0, 0, 0, 1]]))["bleu2"][0]
    from pycocoevalcap.bleu.bleu import Bleu

    chosen = [0, 0, 3]
    own, _ = Bleu(4).compute_score(words([KNOWN[i] for i in chosen]), words([SAID[i] for i in chosen]))
    assert twice == pytest.approx(100 * own[1])


def test_paired_differences() -> None:
    a, b = metrics.score(said(KNOWN), bags()), metrics.score(said(), bags())
    rows = {r["metric"]: r for r in metrics.paired(a, b, draws=200)}
    assert rows["rouge_l"]["difference"] > 0
    assert rows["rouge_l"]["difference"] == pytest.approx(rows["rouge_l"]["a"] - rows["rouge_l"]["b"])
    same = metrics.paired(a, a, draws=50)
    assert all(r["difference"] == r["low"] == r["high"] == 0 for r in same)
    with pytest.raises(InputError, match="other bags"):
        metrics.paired(a, metrics.score(said(), bags("pqrs")))


def test_what_cannot_be_scored() -> None:
    with pytest.raises(InputError, match="nothing to score"):
        metrics.score({}, bags())
    with pytest.raises(InputError, match="nothing to score"):
        metrics.score(said(), [Bag("b0", "p", (), "")])


def test_java_is_asked_for_where_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(InputError, match="--java needs the command java"):
        metrics.score(said(), bags(), java=True)


@pytest.mark.slow
def test_java_counts_synonyms() -> None:
    assert shutil.which("java"), "install a Java runtime for this test"
    ours = metrics.score(said(), bags(), java=True)
    assert ours.each["meteor"][1] == pytest.approx(100, abs=0.1)
    assert "METEOR 1.5" in metrics.report(ours, draws=10).definitions["meteor"]


def test_definitions_name_packages_and_tokenisers() -> None:
    told = metrics.report(metrics.score(said(), bags()), draws=10).text()
    for word in ("pycocoevalcap 1.2", "TreebankWordTokenizer of nltk", "no synonyms", "brevity penalty", "patients"):
        assert word in told
