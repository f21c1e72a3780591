"""How far networks see: the part of the demonstration page that needs no trained weights.

    python -m core.reach --out demo

For every family it builds the first variant, runs a sample picture through it and draws how far one cell of each level
reaches: the magnitude of the gradient of that cell with respect to every pixel, averaged over starts. Local mixers show
a spot, windows a square, stripes a cross, global ones the whole picture.
"""

from __future__ import annotations

import argparse
import html
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core import page, pictures, registry


@dataclass(frozen=True)
class Row:
    """One family on the page."""

    name: str
    title: str
    parameters: int
    seconds: float
    reach: list[NDArray[np.uint8]]


def reach(model: torch.nn.Module, image: Tensor) -> list[NDArray[np.floating]]:
    """How much each pixel moves the middle cell of each level: one (H, W) map of gradient magnitudes per level.

    Args:
        model: a backbone, in evaluation mode.
        image: (1, C, H, W), or a clip (1, C, T, H, W), whose frames are taken together.
    """
    image = image.clone().requires_grad_(True)
    found = []
    levels = model(image)
    for level in levels:
        cell = level[(0, slice(None), *(n // 2 for n in level.shape[2:]))]
        torch.manual_seed(0)
        # The sum over channels cancels in normed outputs; random signs do not.
        signs = torch.randint(0, 2, cell.shape).to(cell.dtype) * 2 - 1
        (gradient,) = torch.autograd.grad((cell * signs).sum(), image, retain_graph=level is not levels[-1])
        found.append(gradient[0].flatten(0, -3).norm(dim=0).numpy())  # over channels, and over frames
    return found


def decades(values: NDArray[np.floating], down: float = 5.0) -> NDArray[np.floating]:
    """Magnitudes on a logarithmic scale, 0 at the largest, cut off `down` decades below it."""
    top = values.max() or 1.0
    return np.log10(np.maximum(values / top, 10.0**-down))


def sample(size: int = 224, frames: Sequence[int] = ()) -> Tensor:
    """scikit-image's astronaut (NASA, public domain) as (1, 3, size, size), ImageNet-normalised.

    With the number of frames, one in a sequence, a clip in which nothing moves: (1, 3, frames, size, size).
    """
    from skimage import data, transform

    picture = transform.resize(data.astronaut(), (size, size), anti_aliasing=True)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    image = torch.from_numpy(((picture - mean) / std).transpose(2, 0, 1)[None]).float()
    return image[:, :, None].repeat(1, 1, frames[0], 1, 1) if frames else image


def rows() -> list[Row]:
    """Every family's first variant with fresh weights, the same seed for each, on the sample picture at its size."""
    found = []
    for family in registry.families():
        module = registry.family(family)
        variant = next(iter(module.VARIANTS))
        *frames, _, side = module.FACTS.axes(variant)
        name, image = f"{family}/{variant}", sample(side, frames)
        torch.manual_seed(0)
        model = registry.create(name).eval()
        with torch.no_grad():
            model(image)
            start = time.perf_counter()
            model(image)
            seconds = time.perf_counter() - start
        maps = [pictures.heat(decades(m)) for m in reach(model, image)]
        count = sum(p.numel() for p in model.parameters())
        print(f"  {name:<28} {count / 1e6:6.1f} M  {seconds * 1e3:6.0f} ms", flush=True)
        found.append(Row(name, module.FACTS.title, count, seconds, maps))
    return found


def section(found: list[Row], image: Tensor) -> str:
    """The page's part on networks; pictures are inside it."""
    shown = image[0].permute(1, 2, 0).numpy()
    shown = np.clip((shown * [0.229, 0.224, 0.225] + [0.485, 0.456, 0.406]) * 255, 0, 255).round().astype(np.uint8)
    body = [
        "<h2>Networks</h2>",
        f'<p class="note">{len(registry.names())} networks in {len(found)} families. Their weights are fresh here, so '
        "this says how a network looks at a picture, not what it knows.</p>",
        f'<p><img class="small" src="{pictures.inline(shown)}" alt="the sample picture, an astronaut"></p>',
        "<p>Reach: how strongly every pixel moves the middle cell of each level, fine to coarse; each "
        "colour step is a power of ten, black is a hundred-thousandth of the strongest or nothing. Networks for video "
        "see a clip of the one picture.</p>",
        "<table><tr><th>network</th><th>parameters</th><th>one input at its size</th><th>reach by level</th></tr>",
    ]
    for row in found:
        maps = "".join(
            f'<td><img class="small" src="{pictures.inline(m)}" alt="{html.escape(row.name)}, level {i}"></td>'
            for i, m in enumerate(row.reach, 1)
        )
        body.append(
            f"<tr><td><b>{html.escape(row.title)}</b><br><code>{html.escape(row.name)}</code></td>"
            f'<td class="n">{row.parameters / 1e6:.1f} M</td><td class="n">{row.seconds * 1e3:.0f} ms</td>'
            f"<td><table><tr>{maps}</tr></table></td></tr>"
        )
    return "".join([*body, "</table>\n"])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write the networks' part of the demonstration page.")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for index.html")
    out: Path = parser.parse_args(argv).out
    image = sample()
    print("running every family once:", flush=True)
    page.add_html(out, "zz-networks", section(rows(), image))  # last on the page
    print(f"look at {page.assemble(out)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
