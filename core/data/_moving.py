"""The thing that moves in a photograph: its outline, and what may be behind it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
_SIDE = 192  # pixels of the small picture in which regions are grown
_PIECES = 90  # superpixels
_FAR, _RIM, _TEXTURE = 100.0, 15.0, 20.0  # weights beside a distance in Lab; chosen by eye on seven photographs
_HOLE = 0.05  # of the thing's area: smaller holes are filled
_WAVES = 5  # of a blob's outline


def region(sharp: Floats, share: float, rng: np.random.Generator) -> Floats:
    """Opacity (H, W) of superpixels around one with texture, `share` of the picture.

    Joined is what is near and alike in colour, has texture, too, and does not touch the border: things have these more
    often than what is behind them, and of a plain wall nobody sees that it moved.
    """
    from skimage.color import rgb2lab
    from skimage.segmentation import find_boundaries, slic
    from skimage.transform import resize

    H, W, C = sharp.shape
    scale = min(1.0, _SIDE / max(H, W))
    colour = sharp[..., :3] if C >= 3 else np.repeat(sharp[..., :1], 3, axis=2)
    small = resize(colour, (max(8, round(H * scale)), max(8, round(W * scale))), order=1, anti_aliasing=scale < 1)
    lab = rgb2lab(small)
    for compactness in (8.0, 40.0):  # where colours are wild, loose pieces run together
        pieces = slic(small, n_segments=_PIECES, compactness=compactness, start_label=0, channel_axis=-1)
        sizes = np.bincount(pieces.reshape(-1))
        if sizes.max() < 6 * pieces.size / _PIECES:
            break
    count = len(sizes)

    def means(values: NDArray[np.floating]) -> NDArray[np.float64]:
        return np.bincount(pieces.reshape(-1), values.reshape(-1), count) / np.maximum(sizes, 1)

    inner = ~find_boundaries(pieces, mode="thick")  # the edge between two things is not texture of either
    slope = np.hypot(*np.gradient(lab[..., 0])) * inner
    texture = means(slope) / np.maximum(means(inner), 0.05)
    colours = np.stack([means(lab[..., i]) for i in range(3)], axis=1)
    near = np.zeros((count, count), bool)
    for a, b in ((pieces[1:], pieces[:-1]), (pieces[:, 1:], pieces[:, :-1])):
        near[a, b] = near[b, a] = True
    texture = np.minimum(texture / max(float(texture.mean()), 1e-6), 2.0)
    places = np.stack([means(i / max(small.shape[:2])) for i in np.indices(pieces.shape)], axis=1)
    border = np.zeros(count, bool)
    border[np.concatenate([pieces[0], pieces[-1], pieces[:, 0], pieces[:, -1]])] = True
    chance = (texture**2 + 1e-3) * np.where(border, 0.3, 1.0) * (sizes > 0)
    chosen = np.zeros(count, bool)
    chosen[rng.choice(count, p=chance / chance.sum())] = True
    while sizes[chosen].sum() < share * pieces.size:
        beside = near[chosen].any(axis=0) & ~chosen & (sizes > 0)
        if not beside.any():
            break
        apart = np.linalg.norm(colours - colours[chosen].mean(axis=0), axis=1)
        cost = apart + _FAR * np.linalg.norm(places - places[chosen].mean(axis=0), axis=1)
        cost += _RIM * border - _TEXTURE * texture
        chosen[np.flatnonzero(beside)[np.argmin(cost[beside])]] = True
    return _soft(resize(chosen[pieces].astype(float), (H, W), order=1), max(1.0, 0.7 / scale))


def blob(sharp: Floats, share: float, rng: np.random.Generator) -> Floats:
    """Opacity (H, W) of a star-shaped outline of a few waves, `share` of the picture, its middle inside it."""
    H, W = sharp.shape[:2]
    middle = rng.uniform(0.25, 0.75, 2) * (H, W)
    y, x = np.ogrid[:H, :W]
    stretch = rng.uniform(0.7, 1.4)
    down, right = (y - middle[0]) * stretch, (x - middle[1]) / stretch
    angle = np.arctan2(down, right)
    outline = np.ones((H, W))
    for wave in range(1, _WAVES + 1):
        outline += 0.35 / wave * rng.normal() * np.cos(wave * angle + rng.uniform(0, 2 * np.pi))
    ratio = np.hypot(down, right) / np.maximum(outline, 0.3)
    radius = np.quantile(ratio, share)
    return _soft((ratio < radius).astype(float), 1.0)


def behind(light: Floats, alpha: Floats) -> Floats:
    """(H, W, C): the picture with its outside continued under the thing, mirrored at the thing's outline.

    A point of the thing takes the value as far outside the outline as it lies inside; where that is no place outside,
    the nearest outside. What comes to light there is what a path of that length lays bare.
    """
    from scipy import ndimage

    inside = alpha > 0
    if inside.all():
        return light
    index = ndimage.distance_transform_edt(inside, return_distances=False, return_indices=True)
    at = np.argwhere(inside)
    nearest = index[:, inside].T
    top = np.array(inside.shape) - 1
    beyond = 2 * nearest - at
    beyond = np.where(beyond < 0, -beyond, np.where(beyond > top, 2 * top - beyond, beyond))
    beyond = np.clip(beyond, 0, top)
    good = ~inside[beyond[:, 0], beyond[:, 1]]
    source = np.where(good[:, None], beyond, nearest)
    out = light.copy()
    out[inside] = light[source[:, 0], source[:, 1]]
    smooth = ndimage.gaussian_filter(out, (1.5, 1.5, 0), mode="nearest")  # seams of the mirror
    deep = ndimage.distance_transform_edt(inside)[inside]
    weight = np.clip((deep - 1) / 3, 0, 1)[:, None].astype(np.float32)
    out[inside] = weight * smooth[inside] + (1 - weight) * out[inside]
    return out


def _soft(inside: NDArray[np.float64], sigma: float) -> Floats:
    """An outline without steps and small holes, with an edge of a pixel or two."""
    from scipy import ndimage

    solid = inside > 0.5
    holes, _ = ndimage.label(ndimage.binary_fill_holes(solid) & ~solid)
    sizes = np.bincount(holes.reshape(-1))
    small = sizes < _HOLE * solid.sum()
    small[0] = False
    smooth = ndimage.gaussian_filter(np.where(small[holes], 1.0, inside), sigma, mode="nearest")
    edge = np.clip((smooth - 0.5) * 2.0 * max(1.0, sigma) + 0.5, 0, 1)
    return (edge * edge * (3 - 2 * edge)).astype(np.float32)
