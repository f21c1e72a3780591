"""Motion blur made on sharp pictures, held against frames added up one by one."""

import numpy as np
import pytest

pytest.importorskip("skimage")
from scipy import ndimage

from core.data import _moving, motion_blur
from core.errors import SettingError, ShapeError

RNG = np.random.default_rng(0)


def textured(height, width, channels=3):
    noise = RNG.uniform(0, 1, (height, width, channels))
    return np.clip(ndimage.gaussian_filter(noise, (2, 2, 0)) * 4 - 1.5, 0, 1).astype(np.float32)


def disc(height, width, radius):
    y, x = np.ogrid[:height, :width]
    return np.clip(radius + 0.5 - np.hypot(y - height / 2, x - width / 2), 0, 1).astype(np.float32)


@pytest.mark.parametrize("radius", [9, 60])
def test_exposure_is_the_mean_of_the_frames(radius):
    """A thing inside the picture, and one larger than it, whose border is mirrored."""
    light, background, alpha = textured(40, 52), textured(40, 52), disc(40, 52, radius)
    path = motion_blur.trajectory(np.random.default_rng(3), 11.0, bend=1.0)
    exposed, swept = motion_blur.expose(light, alpha, background, path)
    frames, covers = [], []
    for x, y in path:
        cover = ndimage.shift(alpha.astype(float), (y, x), order=1, mode="reflect")
        thing = ndimage.shift((light * alpha[..., None]).astype(float), (y, x, 0), order=1, mode="reflect")
        frames.append(thing + (1 - cover[..., None]) * background)
        covers.append(ndimage.shift(alpha, np.rint((y, x)), order=0, mode="reflect"))
    np.testing.assert_allclose(exposed, np.mean(frames, axis=0), atol=1e-5)
    np.testing.assert_array_equal(swept, np.max(covers, axis=0))


def test_light_is_added_and_not_its_encoding():
    """Half of the time white and half of the time black is 0.5 of the light, which sRGB writes as 0.735."""
    light, alpha = np.ones((32, 48, 1), np.float32), np.zeros((32, 48), np.float32)
    alpha[:, 10:20] = 1
    path = np.stack([np.repeat([0, 10], 8), np.zeros(16)], axis=1).astype(float)
    exposed, swept = motion_blur.expose(light, alpha, np.zeros_like(light), path)
    np.testing.assert_allclose(motion_blur.from_light(exposed)[16, 10:30, 0], 0.73536, atol=1e-4)
    assert exposed[:, 30:].max() < 1e-6
    assert (swept[:, 10:30] == 1).all()
    assert not swept[:, 30:].any()
    values = np.linspace(0, 1, 1001)
    np.testing.assert_allclose(motion_blur.from_light(motion_blur.to_light(values)), values, atol=1e-6)
    assert motion_blur.to_light(np.array(0.5)) == pytest.approx(0.2140411, abs=1e-6)


@pytest.mark.parametrize("shape", [(32, 32, 3), (33, 57, 1), (96, 64, 3)])
@pytest.mark.parametrize("segment", ["region", "blob"])
def test_a_pair_of_any_size(shape, segment):
    sharp = textured(*shape)
    pair = motion_blur.local_blur(sharp, 5, length=(6, 9), segment=segment)
    again = motion_blur.local_blur(sharp, 5, length=(6, 9), segment=segment)
    other = motion_blur.local_blur(sharp, 6, length=(6, 9), segment=segment)
    assert pair.blurred.shape == pair.sharp.shape == shape
    assert pair.blurred.dtype == pair.mask.dtype == np.float32
    assert np.array_equal(pair.blurred, again.blurred)
    assert np.array_equal(pair.mask, again.mask)
    assert not np.array_equal(pair.mask, other.mask)
    assert np.array_equal(pair.sharp, sharp)
    assert 0 <= pair.blurred.min() <= pair.blurred.max() <= 1
    assert pair.mask.min() == 0
    assert pair.mask.max() > 0.9
    still = pair.mask == 0
    assert np.array_equal(pair.blurred[still], sharp[still])
    assert np.abs(pair.blurred - sharp)[pair.mask > 0.5].mean() > 0.02
    walked = np.linalg.norm(np.diff(pair.path, axis=0), axis=1).sum()
    assert 6 <= walked <= 9


def test_shares_and_lengths_are_met():
    sharp = textured(120, 160)
    for seed in range(6):
        pair = motion_blur.local_blur(sharp, seed, length=(4, 4), area=(0.1, 0.1), segment="blob")
        assert 0.09 < (pair.mask > 0.5).mean() < 0.2  # swept: the thing and what it ran over
        wide = motion_blur.local_blur(sharp, seed, length=(4, 4), area=(0.3, 0.3), segment="region")
        assert 0.27 < (wide.mask > 0.5).mean() < 0.45
    long = motion_blur.local_blur(textured(40, 60), 0, length=(300, 400))
    assert np.linalg.norm(np.diff(long.path, axis=0), axis=1).sum() == pytest.approx(20)  # half of the shorter side


@pytest.mark.parametrize("bend", [0.5, 2.0])
def test_a_path_is_smooth_and_its_middle_is_the_sharp_moment(bend):
    for seed in range(20):
        path = motion_blur.trajectory(np.random.default_rng(seed), 20.0, bend=bend)
        steps = np.diff(path, axis=0)
        assert np.array_equal(path[len(path) // 2], [0, 0])
        assert np.linalg.norm(steps, axis=1).sum() == pytest.approx(20)
        assert np.linalg.norm(steps, axis=1).max() < 0.5  # pixels between two moments
        turns = np.diff(np.unwrap(np.arctan2(steps[:, 1], steps[:, 0])))
        assert np.abs(turns).max() < 0.35 * bend


def test_a_thing_with_texture_is_found():
    """A disc of fine squares on a plain wall: what moves is the disc."""
    inside = disc(120, 160, 30) > 0.5
    squares = (np.indices((120, 160)) // 3).sum(0) % 2
    sharp = np.where(inside, 0.3 + 0.5 * squares, 0.5).astype(np.float32)[..., None].repeat(3, 2)
    found = [_moving.region(sharp, float(inside.mean()) * 0.8, np.random.default_rng(seed)) > 0.5 for seed in range(8)]
    assert np.mean([(f & inside).sum() / f.sum() for f in found]) > 0.55  # by chance: 0.15


def test_what_is_behind_comes_from_outside():
    light = np.zeros((48, 64, 3), np.float32)
    light[..., 2] = np.linspace(0.2, 0.8, 64)  # blue, rising to the right
    alpha = disc(48, 64, 12)
    light[alpha > 0] = (1, 0, 0)
    behind = _moving.behind(light, alpha)
    assert behind[..., 0].max() == 0
    assert np.array_equal(behind[alpha == 0], light[alpha == 0])
    edge = int(np.flatnonzero(alpha[24])[0])
    for deep in (4, 7):  # as far outside on the left, where the wall is darker
        assert behind[24, edge + deep, 2] == pytest.approx(light[24, edge - deep - 2, 2], abs=0.035)
    assert np.array_equal(_moving.behind(light, np.ones((48, 64), np.float32)), light)


def test_a_shaken_camera():
    sharp = textured(64, 80)
    pair = motion_blur.global_blur(sharp, 1, length=(10, 12))
    assert (pair.mask == 1).all()
    assert np.array_equal(pair.blurred, motion_blur.global_blur(sharp, 1, length=(10, 12)).blurred)
    assert pair.blurred[16:-16, 16:-16].std() < 0.8 * sharp[16:-16, 16:-16].std()
    flat = np.full((40, 50, 3), 0.3, np.float32)
    np.testing.assert_allclose(motion_blur.global_blur(flat, 2).blurred, 0.3, atol=1e-5)
    np.testing.assert_allclose(motion_blur.local_blur(flat, 2).blurred, 0.3, atol=1e-5)


@pytest.mark.parametrize(
    ("sharp", "options", "says"),
    [
        (np.zeros((31, 40, 3), np.float32), {}, "at least 32 x 32 pixels"),
        (np.zeros((40, 40), np.float32), {}, r"floats \(H, W, C\)"),
        (np.zeros((40, 40, 3), np.uint8), {}, "got uint8"),
        (np.zeros((40, 40, 3), np.float32), {"length": (9, 3)}, "length is two numbers"),
        (np.zeros((40, 40, 3), np.float32), {"area": (0.0, 0.3)}, "area is two shares"),
        (np.zeros((40, 40, 3), np.float32), {"segment": "car"}, "segment is one of any, region, blob, got 'car'"),
    ],
)
def test_what_cannot_be_blurred(sharp, options, says):
    with pytest.raises((ShapeError, SettingError), match=says):
        motion_blur.local_blur(sharp, 0, **options)
