"""LPIPS by torchmetrics, with the backbone's weights from a file: nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.checkpoints import read_checkpoint
from core.errors import FileError, MissingExtraError

FILE = "vgg16-397923af.pth"  # torchvision's ImageNet weights, on which LPIPS was calibrated
_LAYERS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # convolutions among VGG-16's features


def lpips(weights: str | Path) -> Callable[[Tensor, Tensor], Tensor]:
    """A function of pictures (B, 3, H, W) in 0..1 and their truth -> distances (B,).

    VGG-16 with torchmetrics' own linear layers; values go in as 0..1, not -1..1, as the authors' evaluation does.
    Values outside 0..1 are cut off.

    Args:
        weights: torchvision's vgg16-397923af.pth, or another file with the names of its `features`.

    Raises:
        FileError: the file is missing, or holds no VGG-16.
        MissingExtraError: torchmetrics is not installed.
    """
    path = Path(weights)
    if not path.is_file():
        raise FileError(
            path, "no such file", f"LPIPS needs the ImageNet weights of VGG-16, torchvision's {FILE}, named by its path"
        )
    try:
        from torchmetrics.functional.image.lpips import _NoTrainLpips
    except ImportError:
        raise MissingExtraError("torchmetrics", "colorization") from None
    state = read_checkpoint(path)
    if any(f"features.{n}.weight" not in state for n in _LAYERS):
        raise FileError(path, "holds no VGG-16", f"torchvision's {FILE} has features.0.weight and on")
    network: Any = _NoTrainLpips(net="vgg", pnet_rand=True)
    slices = network.net.state_dict()  # slice2.5.weight is features.5.weight
    try:
        network.net.load_state_dict({n: state["features." + n.split(".", 1)[1]] for n in slices})
    except (KeyError, RuntimeError):
        raise FileError(path, "holds no VGG-16 that torchvision builds", f"its {FILE} is one") from None
    network.eval()

    def distance(rgb: Tensor, truth: Tensor) -> Tensor:
        with torch.no_grad():
            found: Tensor = network.to(rgb.device)(rgb.clamp(0, 1), truth.clamp(0, 1), normalize=False)
        return found.flatten()

    return distance
