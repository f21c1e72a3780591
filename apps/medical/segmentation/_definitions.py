"""What each number means, in words that go into the report beside it."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING

from apps.medical.segmentation._anatomy import structure

if TYPE_CHECKING:
    from apps.medical.segmentation.metrics import Protocol

_EMPTY = {
    "card": "A structure absent from truth and prediction scores 1 in Dice and NSD, one that only one of them has 0.",
    "nan": "A structure absent from truth and prediction is left out, one that only one of them has scores 0.",
    "skip": "A structure absent from the truth is left out, even if predicted; one that only the truth has scores 0.",
}


def definitions(rule: Protocol, unit: str, classes: Sequence[str], repeats: int) -> dict[str, str]:
    """A sentence or two for each metric of the protocol, and for "empty", "mean", "interval" and "ignored"."""
    words: dict[str, str] = {}
    if "dice" in rule.metrics:
        words["dice"] = f"2 |T and P| / (|T| + |P|); monai.metrics.compute_dice, MONAI {version('monai')}."
    if "nsd" in rule.metrics:
        words["nsd"] = (
            f"Normalised surface Dice at a tolerance in {unit} ({_tolerances(rule, classes)}): the part of both "
            "surfaces that lies within the tolerance of the other, elements weighted by area (length in 2-D) as "
            "in DeepMind's surface-distance package; monai.metrics.utils.get_mask_edges and scipy.spatial.KDTree, "
            "equal to monai.metrics.compute_surface_dice with use_subvoxels=True "
            f"(MONAI {version('monai')}, SciPy {version('scipy')}). MONAI's default counts boundary voxels and gives "
            "other numbers."
        )
        if rule.slab:
            words["nsd"] += (
                " Pictures are volumes of one slice, whose faces count as surface, as in the published figures."
            )
    if "hd95" in rule.metrics:
        words["hd95"] = (
            f"95th percentile Hausdorff distance in {unit}: per direction over boundary voxels, each counting "
            "once, then the larger; scipy.ndimage.binary_erosion and scipy.spatial.KDTree, equal to "
            "monai.metrics.compute_hausdorff_distance with percentile=95 "
            f"(MONAI {version('monai')}, SciPy {version('scipy')}). The surface-distance package weights by area "
            "and gives other numbers. Undefined, and left out, where truth or prediction lack the structure."
        )
    if "f1" in rule.metrics:
        words["f1"] = (
            "2 matched / (true + predicted) instances of an image. Instances are connected parts (8 neighbours) of "
            f"class {rule.instances}; those within 2 px of the border are taken out of both; pairs by the Hungarian "
            "method on -(IoU >= 0.5) - IoU / (2 n_min), counted where IoU >= 0.5; images of 25 Mpx or more in tiles of "
            f"2000 px; 0 where nothing matches; scipy.optimize.linear_sum_assignment, SciPy {version('scipy')}."
        )
        words["precision"], words["recall"] = "Matched over predicted instances.", "Matched over true instances."
    else:
        words["empty"] = f'{_EMPTY[rule.empty]} (empty="{rule.empty}")'
    held = [name for name in classes if rule.between and (organ := structure(name)) is not None and organ.between]
    if held:
        words["between"] = (
            f"{', '.join(held)}: scored from the first labelled slice up to, without, the last one (as published)."
        )
    words["mean"] = (
        "Over the classes of an image, then over images."
        if rule.average == "images"
        else "Over cases for each class, then over the classes that have a case that counts."
    )
    words["ignored"] = "Samples with the ignore label or without a measurement are background in both masks."
    words["interval"] = (
        f"95 %, percentile bootstrap of {repeats} draws of whole groups (patients); a case without a group is its own; "
        "none with fewer than two groups."
    )
    return words


def _tolerances(rule: Protocol, classes: Sequence[str]) -> str:
    own = []
    for name in classes:
        organ = structure(name) if rule.anatomy else None
        if organ is not None and organ.tolerance is not None:
            own.append(f"{name} {organ.tolerance:g}")
    if not own:
        return f"{rule.tolerance:g}"
    return ", ".join(own) + ("" if len(own) == len(classes) else f", others {rule.tolerance:g}")
