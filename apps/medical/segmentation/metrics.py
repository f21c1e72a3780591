"""Scores of segmentation masks, each defined in one place and printed with its definition.

`score` gives the numbers of one case, `report` the means over cases with n, what was left out, intervals over patients
and the definitions, `paired` compares two models on the same items.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from apps.medical.segmentation import _ids, _instances, _surfaces
from apps.medical.segmentation._anatomy import structure
from apps.medical.segmentation._definitions import definitions
from apps.medical.segmentation._instances import InstanceScore, components, match
from core import scores
from core.errors import InputError, SettingError, ShapeError, UnknownNameError
from core.scores import REPEATS, Comparison, Report, Summary

__all__ = [
    "PROTOCOLS",
    "CaseScore",
    "Comparison",
    "InstanceScore",
    "Protocol",
    "Report",
    "Summary",
    "components",
    "match",
    "paired",
    "report",
    "score",
]

Empty = Literal["card", "nan", "skip"]


@dataclass(frozen=True)
class Protocol:
    """How cases are scored.

    Attributes:
        name: of the protocol.
        metrics: of "dice", "nsd", "hd95", or "f1", "precision", "recall" of instances (these alone).
        empty: structures that are absent. "card": Dice and NSD are 1 where truth and prediction lack it, 0 where one of
            them does. "nan": left out where both lack it, 0 where one does (as nnU-Net). "skip": left out wherever the
            truth lacks it, so false findings cost nothing (as MONAI's ignore_empty). HD95 is left out in all of them.
        average: "classes" means over cases first, then over classes; "images" over the classes of a case first.
        anatomy: organs known by name take the NSD tolerances of the published AbdomenMR evaluation.
        between: aorta, inferior vena cava and oesophagus are scored only from their first labelled slice up to,
            without, the last one (so the published AbdomenMR figures are made).
        tolerance: NSD tolerance of every other class, in millimetres (samples where there is no spacing).
        unit_spacing: distances in samples, whatever the file says.
        slab: a picture is scored as a volume of one slice, whose faces are surface too (so the published Endoscopy
            figures are made: NSD comes out close to Dice).
        instances: the id whose connected parts are the cells of "f1".
    """

    name: str
    metrics: tuple[str, ...] = ("dice", "nsd", "hd95")
    empty: Empty = "card"
    average: Literal["classes", "images"] = "classes"
    anatomy: bool = True
    tolerance: float = 2.0
    unit_spacing: bool = False
    slab: bool = False
    between: bool = False
    instances: int = 1


# The last three are the evaluations of the Swin-UMamba card, "Data".
PROTOCOLS = {
    "house": Protocol("house"),
    "abdomen_mr": Protocol("abdomen_mr", ("dice", "nsd"), between=True),
    "endoscopy": Protocol("endoscopy", ("dice", "nsd"), "nan", "images", anatomy=False, unit_spacing=True, slab=True),
    "microscopy": Protocol("microscopy", ("f1", "precision", "recall"), average="images", anatomy=False),
}


@dataclass(frozen=True)
class CaseScore:
    """What one case scored.

    Attributes:
        id, group: of the case (no person's data); the group is what the intervals resample.
        protocol: that scored it.
        unit: of HD95 and tolerances, "mm" or "samples".
        values: class -> metric -> value; NaN where left out.
        left_out: class -> metric -> why.
        counts: of instances: "truth", "prediction", "matched".
    """

    id: str
    group: str
    protocol: Protocol
    unit: str
    values: Mapping[str, Mapping[str, float]]
    left_out: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)

    def mean(self, metric: str) -> float:
        """Over the classes that count; NaN where none does."""
        known = [row[metric] for row in self.values.values() if not np.isnan(row[metric])]
        return float(np.mean(known)) if known else float("nan")

    def as_dict(self) -> dict[str, Any]:
        """For JSON: null where a value is left out."""
        rows = {c: {m: None if np.isnan(v) else v for m, v in row.items()} for c, row in self.values.items()}
        return {"id": self.id, "group": self.group, "protocol": self.protocol.name, "unit": self.unit} | (
            {"values": rows, "left_out": {c: dict(w) for c, w in self.left_out.items()}, "counts": dict(self.counts)}
        )


def protocol(name: str | Protocol) -> Protocol:
    """The protocol of that name. Raises UnknownNameError."""
    if isinstance(name, Protocol):
        return name
    if name not in PROTOCOLS:
        raise UnknownNameError("scoring protocol", name, PROTOCOLS)
    return PROTOCOLS[name]


def score(
    truth: NDArray[np.integer],
    prediction: NDArray[np.integer],
    classes: Mapping[str, int],
    *,
    spacing: Sequence[float] | None = None,
    valid: NDArray[np.bool_] | None = None,
    ignore: int | None = None,
    by: str | Protocol = "house",
    id: str = "",
    group: str = "",
    instances: bool = False,
) -> CaseScore:
    """Score one case.

    Args:
        truth: ids, (Z, Y, X) with axis 0 growing to the head, or (Y, X).
        prediction: ids, of the same shape.
        classes: name -> id; id 0 and `ignore` are not scored.
        spacing: millimetres along each axis; None: distances are in samples, and the report says so.
        valid: False where there is no measurement; there, and where the truth is `ignore`, both become background.
        ignore: id of the truth that is not scored.
        by: name of a protocol, or one of your own.
        id: of the case.
        group: patient or the like; "" makes the case its own group.
        instances: the truth of an instance protocol numbers the cells already.

    Raises ShapeError for arrays that do not fit, InputError for ids that are not in `classes`.
    """
    rule = protocol(by)
    if truth.shape != prediction.shape or truth.ndim not in (2, 3):
        raise ShapeError(f"{id or 'case'}: the truth has shape {truth.shape}, the prediction {prediction.shape}")
    if (spacing is not None and len(spacing) != truth.ndim) or (valid is not None and valid.shape != truth.shape):
        raise ShapeError(f"{id or 'case'}: spacing {spacing} or validity do not fit masks of shape {truth.shape}")
    scored = {name: i for name, i in classes.items() if i not in (0, ignore)}
    drop = None if valid is None else ~valid
    if ignore is not None and not instances:
        drop = (truth == ignore) if drop is None else drop | (truth == ignore)
    if drop is not None and drop.any():
        truth, prediction = np.where(drop, 0, truth), np.where(drop, 0, prediction)
    for what, mask in (("prediction", prediction), *(() if instances else (("truth", truth),))):
        strange = sorted(_ids.present(mask) - {0, *scored.values()})
        if strange:
            raise InputError(
                f"{id or 'case'}: the {what} holds the ids {', '.join(map(str, strange[:5]))}, "
                f"which are not among the classes ({', '.join(f'{n} = {i}' for n, i in scored.items())})"
            )
    if "f1" in rule.metrics:
        return _cells(truth, prediction, scored, rule, id, group, instances)
    unit = "mm" if spacing is not None and not rule.unit_spacing else "samples"
    steps = [1.0] * truth.ndim if spacing is None or rule.unit_spacing else [float(s) for s in spacing]
    if rule.slab and truth.ndim == 2:
        truth, prediction, steps = truth[None], prediction[None], [1.0, *steps]
    places = _surfaces.boxes(truth, prediction, list(scored.values()))
    values: dict[str, dict[str, float]] = {}
    why: dict[str, dict[str, str]] = {}
    for name, i in scored.items():
        window = places.get(i)
        pair = None if window is None else (truth[window] == i, prediction[window] == i)
        values[name], why[name] = _one(pair, rule, steps, name)
    return CaseScore(id, group, rule, unit, values, {c: w for c, w in why.items() if w})


def report(cases: Sequence[CaseScore], *, repeats: int = REPEATS, seed: int = 0) -> Report:
    """The means of cases that one protocol scored, with these metrics' definitions; errors as of core.scores.report."""
    return scores.report(cases, definitions, repeats=repeats, seed=seed)


def paired(a: Sequence[CaseScore], b: Sequence[CaseScore], *, repeats: int = REPEATS, seed: int = 0) -> Comparison:
    """Two models on the same cases; errors as of core.scores.paired."""
    return scores.paired(a, b, definitions, repeats=repeats, seed=seed)


def _one(
    pair: tuple[NDArray[np.bool_], NDArray[np.bool_]] | None, rule: Protocol, steps: list[float], name: str
) -> tuple[dict[str, float], dict[str, str]]:
    """Values of one class, and why some are NaN."""
    nan = dict.fromkeys(rule.metrics, float("nan"))
    overlaps = {"dice", "nsd"} & set(rule.metrics)
    if pair is None:
        if rule.empty != "card":
            return nan, dict.fromkeys(rule.metrics, "absent from both")
        return nan | dict.fromkeys(overlaps, 1.0), _no_distance(rule, "absent from both")
    truth, prediction = pair
    organ = structure(name) if rule.anatomy else None
    if not truth.any():
        if rule.empty == "skip":
            return nan, dict.fromkeys(rule.metrics, "absent from the truth")
        return nan | dict.fromkeys(overlaps, 0.0), _no_distance(rule, "absent from the truth")
    if rule.between and organ is not None and organ.between and truth.ndim == 3:
        slices = np.flatnonzero(truth.any(axis=(1, 2)))
        truth, prediction = truth[slices[0] : slices[-1]], prediction[slices[0] : slices[-1]]
        if not truth.any():
            return nan, dict.fromkeys(rule.metrics, "labelled in one slice, and the last one is not scored")
    tolerance = rule.tolerance if organ is None or organ.tolerance is None else organ.tolerance
    values: dict[str, float] = {}
    why: dict[str, str] = {}
    for metric in rule.metrics:
        if metric == "dice":
            values[metric] = _surfaces.dice(truth, prediction)
        elif metric == "nsd":
            values[metric] = _surfaces.nsd(truth, prediction, steps, tolerance)
        elif metric != "hd95":
            raise SettingError(f"no metric {metric!r} beside others; dice, nsd and hd95 go together, f1 by itself")
        elif prediction.any():
            values[metric] = _surfaces.hd95(truth, prediction, steps)
        else:
            values[metric], why[metric] = float("nan"), "absent from the prediction"
    return values, why


def _no_distance(rule: Protocol, words: str) -> dict[str, str]:
    return {"hd95": words} if "hd95" in rule.metrics else {}


def _cells(
    truth: NDArray[np.integer],
    prediction: NDArray[np.integer],
    scored: Mapping[str, int],
    rule: Protocol,
    id: str,
    group: str,
    numbered: bool,
) -> CaseScore:
    names = [name for name, i in scored.items() if i == rule.instances]
    if not names:
        raise InputError(
            f"protocol {rule.name} counts the parts of class {rule.instances}, which is none of the classes"
        )
    cells = truth if numbered else components(truth == rule.instances)
    found = _instances.match(cells, components(prediction == rule.instances))
    values = {m: float(getattr(found, m)) for m in rule.metrics}
    counts = {"truth": found.truth, "prediction": found.prediction, "matched": found.matched}
    return CaseScore(id, group, rule, "samples", {names[0]: values}, {}, counts)
