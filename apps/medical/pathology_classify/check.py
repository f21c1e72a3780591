"""What is wrong with a set of labelled tiles, all of it at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from apps.medical import labelled, slides
from apps.medical.pathology_classify import inputs
from apps.medical.pathology_classify.data import find
from core.commands import Checked
from core.errors import InputError

_GLASS = 240  # of 255: a tile whose darkest tenth is lighter shows no tissue
_APART = 1.05  # ratio of micrometres to a pixel from which on tiles are of different scales


def check(
    folder: Path,
    *,
    groups: Path | None = None,
    magnification: int | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Checked:
    """Open every tile of a data set: files, duplicates, labels, patients, sizes and scales, tiles of glass alone.

    Raises FileError where there is none of a known layout.
    """
    found = find(folder, groups=groups, magnification=magnification)
    whole = [p for p in found.pictures if slides.recognised(p.path)]
    tiles = replace(found, pictures=tuple(p for p in found.pictures if p not in whole))
    general = labelled.check(tiles) if tiles.pictures else Checked({"layout": found.layout}, [], list(found.notes))
    facts, problems, remarks = dict(general.facts), list(general.problems), list(general.remarks)
    known = " ".join(problems)
    sizes, scales, empty, colourless = [], [], [], 0
    for picture in whole:
        progress(picture.id)
        try:
            slides.open_slide(picture.path)
        except InputError as error:
            problems.append(str(error))
    if whole:
        facts["slides"] = f"{len(whole)} of {len({p.group for p in whole})} patients"
    for picture in tiles.pictures:
        progress(picture.id)
        try:
            tile, um = inputs.picture(picture.path), inputs.spacing(picture.path)
        except InputError as error:
            if str(picture.path) not in known:
                problems.append(str(error))
            continue
        sizes.append(tile.shape[:2])
        if um is not None:
            scales.append(um)
        if np.percentile(tile.min(axis=-1), 10) >= _GLASS:
            empty.append(picture.id)
        elif (np.ptp(tile, axis=-1) <= 2).all():
            colourless += 1
    if sizes:
        rows, columns = np.array(sizes).T
        facts["size"] = f"{columns.min()}-{columns.max()} x {rows.min()}-{rows.max()} pixels"
    if scales:
        facts["micrometres to a pixel"] = f"{min(scales):.3g}-{max(scales):.3g} ({len(scales)} of {len(sizes)} say)"
        if max(scales) > _APART * min(scales):
            remarks.append("tiles are of different scales; train with --um, so that they are brought to one")
    if empty:
        shown = ", ".join(empty[:3]) + (" ..." if len(empty) > 3 else "")
        remarks.append(f"{len(empty)} tiles show glass and no tissue ({shown})")
    if colourless:
        remarks.append(f"{colourless} tiles have no colour: grey pictures of stained tissue")
    return replace(general, facts=facts, problems=problems, remarks=remarks)
