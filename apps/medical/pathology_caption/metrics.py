"""Scores of captions: BLEU, METEOR, ROUGE-L and CIDEr by packages that have them, with intervals over patients.

By default nothing but Python runs: words by nltk's TreebankWordTokenizer, METEOR by nltk without synonyms. With `java`
words and METEOR 1.5 come from the programs that pycocoevalcap ships, as in most papers. The two are not the same
numbers, so every report says which was taken. All values are times 100.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.medical.classes import DRAWS, LEVEL, Score, aligned
from apps.medical.pathology_caption.data import Bag
from core.errors import InputError, MissingExtraError

METRICS = ("bleu1", "bleu2", "bleu3", "bleu4", "meteor", "rouge_l", "cider")
_BLEU = METRICS[:4]
_PUNCTUATION = set("'' `` ` ' ( ) [ ] { } . ? ! , : - -- ... ; \"".split())  # noqa: SIM905
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Captions:
    """What was written of bags whose caption is known, as numbers.

    Attributes:
        ids, groups: of the bags.
        written, known: id -> caption.
        each: metric -> a value for each bag, times 100; of BLEU the bag's own.
        counts: (bags, 10) of BLEU: words written, words known, then n-grams written and right, for n of 1 to 4.
        java: whether words and METEOR come from Java's programs.
    """

    ids: tuple[str, ...]
    groups: tuple[str, ...]
    written: Mapping[str, str]
    known: Mapping[str, str]
    each: Mapping[str, Floats]
    counts: Floats
    java: bool

    def values(self, times: Floats) -> dict[str, Floats]:
        """Metric -> its value in each draw; `times` (draws, bags) says how often a bag was drawn."""
        total = times.sum(1)
        found = {m: times @ self.each[m] / total for m in METRICS if m not in _BLEU}
        return {**dict(zip(_BLEU, 100 * bleu(times @ self.counts).T, strict=True)), **found}

    def cases(self) -> list[dict[str, Any]]:
        """A row for each bag."""
        return [
            {"id": name, "written": self.written[name], "known": self.known[name]}
            | {m: float(self.each[m][i]) for m in METRICS}
            for i, name in enumerate(self.ids)
        ]


@dataclass(frozen=True)
class Report:
    """Scores of captions over all bags.

    Attributes:
        bags, groups: how many.
        different: captions that were written, each counted once, and that are known.
        scores: a value with its interval each.
        definitions: metric, "words", "interval" -> a sentence.
    """

    bags: int
    groups: int
    different: tuple[int, int]
    scores: tuple[Score, ...]
    definitions: dict[str, str]

    def value(self, metric: str) -> float:
        return next(s.value for s in self.scores if s.metric == metric)

    def as_dict(self) -> dict[str, Any]:
        return vars(self) | {"scores": [vars(s) for s in self.scores]}

    def text(self) -> str:
        """A table, and below it what each number means."""
        rows = [("metric", "value [95 %]", "n")]
        for s in self.scores:
            spread = "" if s.low is None or s.high is None else f" [{s.low:.1f}, {s.high:.1f}]"
            rows.append((s.metric, f"{s.value:.1f}{spread}", str(s.n)))
        lines = [*aligned(rows), "", f"{self.bags} bags of {self.groups} patients; "]
        lines[-1] += f"{self.different[0]} different captions were written, {self.different[1]} are known"
        return "\n".join([*lines, *(f"{k}: {v}" for k, v in self.definitions.items())])


def score(written: Mapping[str, str], bags: Sequence[Bag], *, java: bool = False) -> Captions:
    """Compare captions with the known ones.

    Args:
        written: id of a bag -> caption; those of no bag with a known caption are passed over.
        bags: whose captions are known; one without a caption is passed over.
        java: words and METEOR by Java's programs.

    Raises InputError where no bag has both, or for `java` without that command, MissingExtraError without the packages.
    """
    known = [b for b in bags if b.caption.strip() and b.id in written]
    if not known:
        raise InputError("no bag has both a known caption and a written one, so there is nothing to score")
    if java and shutil.which("java") is None:
        raise InputError("--java needs the command java, which is not here; without the flag words are cut by nltk")
    _import()
    cut = _java_words if java else _words
    said = dict(zip([b.id for b in known], cut([written[b.id] for b in known]), strict=True))
    true = dict(zip([b.id for b in known], cut([b.caption for b in known]), strict=True))
    hypothesis, reference = {i: [t] for i, t in said.items()}, {i: [t] for i, t in true.items()}
    each = {**_coco(hypothesis, reference), "meteor": (_java_meteor if java else _meteor)(hypothesis, reference)}
    return Captions(
        ids=tuple(b.id for b in known),
        groups=tuple(b.group or b.id for b in known),
        written={b.id: written[b.id] for b in known},
        known={b.id: b.caption for b in known},
        each={m: 100 * np.asarray(each[m], np.float64) for m in METRICS},
        counts=_counts(hypothesis, reference),
        java=java,
    )


def report(captions: Captions, *, draws: int = DRAWS, seed: int = 0) -> Report:
    """All metrics with their intervals."""
    found = captions.values(np.ones((1, len(captions.ids))))
    drawn = captions.values(_times(captions.groups, draws, seed))
    several = len(set(captions.groups)) > 1
    scores = []
    for metric in METRICS:
        low, high = _interval(drawn[metric]) if several else (None, None)
        scores.append(Score("", metric, float(found[metric][0]), len(captions.ids), low, high))
    different = len(set(captions.written.values())), len(set(captions.known.values()))
    words = definitions(java=captions.java)
    words["interval"] = (
        f"95 %, percentile bootstrap of {draws} draws of whole groups (patients); the weights of CIDEr's words stay "
        "those of all bags."
    )
    return Report(len(captions.ids), len(set(captions.groups)), different, tuple(scores), words)


def paired(a: Captions, b: Captions, *, draws: int = DRAWS, seed: int = 0) -> list[dict[str, Any]]:
    """Two sets of captions of the same bags, each drawn with the same groups: rows as of `classes.paired`.

    Raises InputError for captions of other bags, and for words that were cut in two ways.
    """
    if a.ids != b.ids or a.groups != b.groups or a.java != b.java:
        raise InputError("the two sets of captions are of other bags, or their words were cut in two ways")
    times = _times(a.groups, draws, seed)
    one = np.ones((1, len(a.ids)))
    first, second, many_a, many_b = a.values(one), b.values(one), a.values(times), b.values(times)
    rows = []
    for metric in METRICS:
        x, y = float(first[metric][0]), float(second[metric][0])
        low, high = _interval(many_a[metric] - many_b[metric]) if len(set(a.groups)) > 1 else (None, None)
        row: dict[str, Any] = {"class": "captions", "metric": metric, "n": len(a.ids), "a": x, "b": y}
        rows.append(row | {"difference": x - y, "low": low, "high": high})
    return rows


def bleu(counts: Floats) -> Floats:
    """BLEU-1 to -4, 0 to 1, of summed counts (..., 10) as in Captions (Papineni et al. 2002, with brevity penalty).

    As pycocoevalcap: no smoothing but what keeps 0 / 0 from being no number.
    """
    written, known, guessed, right = counts[..., :1], counts[..., 1:2], counts[..., 2:6], counts[..., 6:]
    shares = np.cumprod((right + 1e-15) / (guessed + 1e-9), axis=-1) ** (1 / np.arange(1, 5))
    ratio = (written + 1e-15) / (known + 1e-9)
    found: Floats = shares * np.where(ratio < 1, np.exp(1 - 1 / ratio), 1.0)
    return found


def definitions(*, java: bool = False) -> dict[str, str]:
    """Metric and "words" -> how it is computed, by which package."""
    coco = f"pycocoevalcap {version('pycocoevalcap')}"
    nltk = f"nltk {version('nltk')}"
    words = f"Stanford's PTBTokenizer 3.4.1 of {coco}" if java else f"TreebankWordTokenizer of {nltk}"
    meteor = (
        f"METEOR 1.5 of {coco}, with stems, synonyms and paraphrases"
        if java
        else f"meteor_score of {nltk} (alpha 0.9, beta 3, gamma 0.5), equal words and Porter stems, no synonyms"
    )
    return {
        "words": f"{words}; lower case, punctuation dropped.",
        "bleu1": f"BLEU over the corpus, n-grams to 1, with brevity penalty, {coco}; bleu2 to bleu4 likewise.",
        "meteor": f"{meteor}; mean over bags.",
        "rouge_l": f"F of the longest common subsequence, beta 1.2, {coco}; mean over bags.",
        "cider": f"CIDEr (times 10 as there), n-grams to 4, words weighed by the known captions, {coco}; mean.",
        "scale": "all values times 100.",
    }


def _words(captions: Sequence[str]) -> list[str]:
    from nltk.tokenize import TreebankWordTokenizer

    cut: Callable[[str], list[str]] = TreebankWordTokenizer().tokenize
    return [" ".join(w for w in cut(c.lower()) if w not in _PUNCTUATION) for c in captions]


def _java_words(captions: Sequence[str]) -> list[str]:
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    lines = {i: [{"caption": c}] for i, c in enumerate(captions)}
    found = PTBTokenizer().tokenize(lines)
    return [found[i][0] for i in range(len(captions))]


def _coco(hypothesis: Mapping[str, list[str]], reference: Mapping[str, list[str]]) -> dict[str, Any]:
    import contextlib
    import io

    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    with contextlib.redirect_stdout(io.StringIO()):  # Bleu prints its counts
        _, each = Bleu(4).compute_score(reference, hypothesis)
    _, rouge = Rouge().compute_score(reference, hypothesis)
    _, cider = Cider().compute_score(reference, hypothesis)
    return {**dict(zip(_BLEU, each, strict=True)), "rouge_l": rouge, "cider": cider}


def _counts(hypothesis: Mapping[str, list[str]], reference: Mapping[str, list[str]]) -> Floats:
    from pycocoevalcap.bleu.bleu_scorer import cook_refs, cook_test

    rows = []
    for name, (text,) in hypothesis.items():
        found = cook_test(text, cook_refs(reference[name]))
        rows.append([found["testlen"], found["reflen"][0], *found["guess"], *found["correct"]])
    return np.array(rows, np.float64)


class _NoSynonyms:
    """Stands where nltk asks WordNet, whose data are a download."""

    def synsets(self, _: str) -> list[Any]:
        return []


def _meteor(hypothesis: Mapping[str, list[str]], reference: Mapping[str, list[str]]) -> list[float]:
    from nltk.translate.meteor_score import meteor_score

    nothing: Any = _NoSynonyms()
    return [
        meteor_score([reference[name][0].split()], text.split(), wordnet=nothing) if text else 0.0
        for name, (text,) in hypothesis.items()
    ]


def _java_meteor(hypothesis: Mapping[str, list[str]], reference: Mapping[str, list[str]]) -> list[float]:
    from pycocoevalcap.meteor.meteor import Meteor

    _, each = Meteor().compute_score(reference, hypothesis)
    return [float(v) for v in each]


def _times(groups: Sequence[str], draws: int, seed: int) -> Floats:
    """(draws, bags): how often each bag was drawn, with all of its group."""
    order = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    count = len(order)
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws)
    return drawn[:, [order[g] for g in groups]].astype(np.float64)


def _interval(drawn: Floats) -> tuple[float, float]:
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _import() -> None:
    for package in ("pycocoevalcap", "nltk"):
        try:
            __import__(package)
        except ImportError:
            raise MissingExtraError(package, "medical") from None
