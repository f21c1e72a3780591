"""What goes into the networks, as a bundle says it and as a pipeline checks it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apps.colorization.options import TASK
from core import bundle
from core.bundle import Bundle, BundleError, Input, Settings, Tile

# The network's values are (L - 50) / 100, a / 110 and b / 110 of CIE Lab under D65 (the iColoriT card).
CHANNELS, MEAN, STD, RANGE = ("L", "a", "b"), (50.0, 0.0, 0.0), (100.0, 110.0, 110.0), (0.0, 100.0)


def settings(name: str, config: Mapping[str, Any], size: int) -> Settings:
    """The settings of a bundle.

    Args:
        name: of the network, in `model.NETWORKS`.
        config: all its settings as a table.
        size: rows and columns that it sees; photographs are brought to this and the colours back to their own size.
    """
    contract = Input(channels=CHANNELS, range=RANGE, normalise="fixed", mean=MEAN, std=STD)
    return Settings(TASK, bundle.Network(name, config), contract, tile=Tile((size, size), 0.0))


def checked(found: Bundle, size: int) -> Bundle:
    """The bundle, if its contract is the one that the pipeline feeds.

    Args:
        found: as loaded.
        size: that its network was built for.

    Raises BundleError where channels, range, mean, spread or size are others.
    """
    given, tile = found.settings.input, tuple(found.settings.tile.size)
    for what, have, want in (
        ("channels", given.channels, CHANNELS),
        ("range of L", given.range, RANGE),
        ("means", given.mean, MEAN),
        ("spreads", given.std, STD),
        ("size", tile, (size, size)),
    ):
        if have is None or tuple(have) != want:
            raise BundleError(
                f"{found.folder / bundle.SETTINGS}: states the {what} {have}, and photographs come as {want}; "
                "train or import the network again"
            )
    return found
