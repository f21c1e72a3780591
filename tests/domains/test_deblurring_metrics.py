"""Deblurring's losses against loops, its numbers against scikit-image, its baselines."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from apps.deblurring import baselines, metrics
from apps.deblurring._losses import SHIFTS, Reconstruction, pruning, shifted, ssim_map
from core.errors import SettingError, ShapeError


def pictures(side: int = 24, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    draw = np.random.default_rng(seed)
    sharp = draw.random((side, side + 5, 3)).astype(np.float32)
    return np.clip(sharp + draw.normal(0, 0.1, sharp.shape), 0, 1).astype(np.float32), sharp


def tensors(batch: int = 2, side: int = 20, seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    sharp = torch.rand(batch, 3, side, side + 3, generator=draw, dtype=torch.float64)
    return sharp + 0.1 * torch.randn(sharp.shape, generator=draw, dtype=torch.float64), sharp


def scalar(values: dict[str, Tensor], name: str) -> float:
    return float(values[name])


# ---- losses


def moved(x: NDArray[np.float64], dy: int, dx: int) -> NDArray[np.float64]:
    """Pixel by pixel: what comes in from outside is mirrored without the border itself."""
    out = np.empty_like(x)
    H, W = x.shape[1:]
    for i in range(H):
        for j in range(W):
            y, z = abs(i + dy), abs(j + dx)
            out[:, i, j] = x[:, y if y < H else 2 * H - 2 - y, z if z < W else 2 * W - 2 - z]
    return out


def plain_terms(a: NDArray[np.float64], b: NDArray[np.float64]) -> dict[str, float]:
    c, h, w = a.shape
    steps = np.arange(11) - 5
    g = np.exp(-(steps**2) / 4.5)
    window = np.outer(g / g.sum(), g / g.sum())
    total = 0.0
    for k in range(c):
        for i in range(h - 10):
            for j in range(w - 10):
                p, q = a[k, i : i + 11, j : j + 11], b[k, i : i + 11, j : j + 11]
                m, n = (window * p).sum(), (window * q).sum()
                s, t, both = (window * p * p).sum(), (window * q * q).sum(), (window * p * q).sum()
                top = (2 * m * n + 1e-4) * (2 * (both - m * n) + 9e-4)
                total += top / ((m * m + n * n + 1e-4) * (s - m * m + t - n * n + 9e-4))
    spectrum = np.abs(np.fft.rfft2(a) - np.fft.rfft2(b))
    return {"l1": np.abs(a - b).mean(), "ssim": -total / (c * (h - 10) * (w - 10)), "fft": spectrum.mean()}


def test_reconstruction_equals_loops() -> None:
    restored, sharp = tensors(2, 13)
    found = {s: Reconstruction(shifted=s).terms(restored, sharp) for s in (True, False)}
    pairs = [(a.numpy(), b.numpy()) for a, b in zip(restored, sharp, strict=True)]
    plain = [plain_terms(a, b) for a, b in pairs]
    each = [[plain_terms(a, moved(b, dy, dx)) for dy, dx in SHIFTS] for a, b in pairs]
    for name in ("l1", "ssim", "fft"):
        assert scalar(found[False], name) == pytest.approx(np.mean([p[name] for p in plain]), abs=1e-6)
        want = np.mean([min(p[name] for p in shifts) for shifts in each])
        assert scalar(found[True], name) == pytest.approx(want, abs=1e-6)
    total = Reconstruction(shifted=False)(restored, sharp)
    parts = found[False]
    assert float(total) == pytest.approx(float(parts["l1"] + parts["ssim"] + 0.1 * parts["fft"]))


@pytest.mark.parametrize("step", [(1, -1), (0, 1), (-1, 0)])
def test_a_pair_one_pixel_apart_costs_little(step: tuple[int, int]) -> None:
    _, sharp = tensors(1, 24)
    near = sharp.roll(step, (2, 3))
    assert scalar(Reconstruction().terms(near, sharp), "l1") < 0.2 * scalar(
        Reconstruction(shifted=False).terms(near, sharp), "l1"
    )


def test_each_picture_has_its_own_shift() -> None:
    _, sharp = tensors(2, 16)
    moves = shifted(sharp)
    mixed = torch.stack([moves[0][0], moves[7][1]])
    terms = Reconstruction().terms(mixed, sharp)
    assert scalar(terms, "l1") == 0
    assert scalar(terms, "ssim") == pytest.approx(-1)
    assert len(moves) == 9
    assert torch.equal(moves[4], sharp)


def test_the_gradient_is_that_of_the_best_shift() -> None:
    restored, sharp = tensors(1, 14)
    x = restored.clone().requires_grad_()
    Reconstruction(l1=0, fft=0)(x, sharp).backward()
    best = min(shifted(sharp), key=lambda one: float(Reconstruction(l1=0, fft=0, shifted=False)(restored, one)))
    y = restored.clone().requires_grad_()
    Reconstruction(l1=0, fft=0, shifted=False)(y, best).backward()
    assert x.grad is not None
    assert y.grad is not None
    torch.testing.assert_close(x.grad, y.grad)


def test_float32_windows_agree_with_float64() -> None:
    restored, sharp = tensors()
    torch.testing.assert_close(ssim_map(restored.float(), sharp.float()).double(), ssim_map(restored, sharp), atol=1e-4,
                               rtol=0)  # fmt: skip
    with pytest.raises(ShapeError, match="sides of 11"):
        ssim_map(restored[..., :10], sharp[..., :10])


def test_pruning_equals_a_loop() -> None:
    draw = torch.Generator().manual_seed(0)
    scores = [torch.randn(2, 2, n, n, generator=draw, dtype=torch.float64) for n in (4, 8)]
    mask = (torch.rand(2, 1, 16, 16, generator=draw, dtype=torch.float64) < 0.3).double()
    losses = []
    for score in scores:
        n, total = score.shape[-1], 0.0
        for b in range(2):
            for i in range(n):
                for j in range(n):
                    step = 16 // n
                    share = mask[b, 0, i * step : i * step + step, j * step : j * step + step].mean()
                    log = score[b, :, i, j].log_softmax(0)
                    total -= float(share * log[0] + (1 - share) * log[1])
        losses.append(total / (2 * n * n))
    assert float(pruning(scores, mask)) == pytest.approx(np.mean(losses))


def test_pruning_wants_blurred_windows_kept() -> None:
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    right = torch.stack([mask[0] * 10, (1 - mask[0]) * 10], 1)
    assert float(pruning([right], mask)) < 0.01 < float(pruning([-right], mask))


# ---- numbers


def test_psnr_and_ssim_are_scikit_images() -> None:
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    a, b = pictures()
    assert metrics.psnr(a, b) == pytest.approx(peak_signal_noise_ratio(b, a, data_range=1), abs=1e-5)
    how = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    want = structural_similarity(a.astype(float), b.astype(float), channel_axis=2, **how)  # type: ignore[arg-type]
    assert metrics.ssim(a, b) == pytest.approx(want, abs=1e-9)
    ours = ssim_map(*(torch.from_numpy(x).double().permute(2, 0, 1)[None] for x in (a, b))).mean()
    assert metrics.ssim(a, b) == pytest.approx(float(ours), abs=1e-5)
    assert metrics.psnr(b, b) == float("inf")
    assert metrics.ssim(b, b) == pytest.approx(1)
    assert np.isnan(metrics.ssim(a[:10], b[:10]))


def test_weights_count_what_is_blurred() -> None:
    a, b = pictures()
    ones = np.ones(a.shape[:2], np.float32)
    assert metrics.weighted_psnr(a, b, ones) == pytest.approx(metrics.psnr(a, b))
    assert metrics.weighted_ssim(a, b, ones) == pytest.approx(metrics.ssim(a, b))
    mask = np.zeros_like(ones)
    mask[6:12, 7:15] = 1
    mask[0, 0] = 0.5
    error = ((a.astype(float) - b) ** 2).mean(2)
    assert metrics.weighted_psnr(a, b, mask) == pytest.approx(-10 * np.log10((error * mask).sum() / mask.sum()))
    spoiled = a.copy()
    spoiled[20:] = 0
    assert metrics.weighted_psnr(spoiled, b, mask) == metrics.weighted_psnr(a, b, mask)
    assert metrics.weighted_ssim(spoiled, b, mask) == pytest.approx(metrics.weighted_ssim(a, b, mask), abs=0.02)
    assert np.isnan(metrics.weighted_psnr(a, b, 0 * ones))
    border = np.zeros_like(ones)
    border[:5] = 1
    assert np.isnan(metrics.weighted_ssim(a, b, border))
    with pytest.raises(ShapeError, match="mask has shape"):
        metrics.weighted_psnr(a, b, ones[1:])
    with pytest.raises(ShapeError, match="one shape"):
        metrics.psnr(a, b[1:])


def test_alignment_forgives_a_shift() -> None:
    from scipy.ndimage import gaussian_filter, shift

    sharp = gaussian_filter(np.random.default_rng(0).random((64, 80, 3)), (2, 2, 0)).astype(np.float32)
    off = np.clip(shift(sharp, (2.5, -1.25, 0), order=3, mode="nearest"), 0, 1).astype(np.float32)
    assert metrics.aligned_psnr(off, sharp) > metrics.psnr(off, sharp) + 15
    a, b = pictures()
    assert metrics.aligned_psnr(a, b) >= metrics.psnr(a, b)
    flat = np.full_like(a, 0.5)
    assert metrics.aligned_psnr(flat, b) == metrics.psnr(flat, b)


def test_blur_effect_is_scikit_images() -> None:
    from scipy.ndimage import gaussian_filter
    from skimage.measure import blur_effect

    _, sharp = pictures(40)
    blurred = gaussian_filter(sharp, (2, 2, 0))
    assert metrics.blur_effect(sharp) == pytest.approx(blur_effect(sharp.astype(float), channel_axis=2))
    assert metrics.blur_effect(blurred) > metrics.blur_effect(sharp)
    assert np.isnan(metrics.blur_effect(np.zeros((40, 40, 3))))
    assert np.isnan(metrics.blur_effect(sharp[:8]))


def test_agreement_counts_pixels() -> None:
    found, mask = np.array([[0.5, 0.9, 0.4, 0.0]]), np.array([[0.1, 0.0, 1.0, 0.0]])
    assert metrics.agreement(found, mask) == metrics.Agreement(precision=0.5, recall=0.5, accuracy=0.5)
    nothing = metrics.agreement(0 * found, 0 * mask)
    assert np.isnan(nothing.precision)
    assert np.isnan(nothing.recall)
    assert nothing.accuracy == 1
    with pytest.raises(ShapeError):
        metrics.agreement(found, mask[:, 1:])


# ---- baselines


def test_baselines_answer_pictures() -> None:
    picture, _ = pictures(30)
    for name, answer in baselines.BASELINES.items():
        found = answer(picture)
        assert found.shape == picture.shape, name
        assert found.dtype == np.float32, name
        assert 0 <= found.min() <= found.max() <= 1, name
        assert answer(picture[..., :1]).shape == (30, 35, 1), name


@pytest.mark.parametrize("angle", [0.0, 30.0, 90.0])
def test_deconvolution_undoes_its_own_kernel(angle: float) -> None:
    from scipy.ndimage import convolve, gaussian_filter

    sharp = gaussian_filter(np.random.default_rng(0).random((64, 64, 1)), (1, 1, 0))
    sharp = ((sharp - sharp.min()) / np.ptp(sharp)).astype(np.float32)
    kernel = baselines.line(5, angle)
    assert kernel.sum() == pytest.approx(1)
    blurred = convolve(sharp[..., 0], kernel, mode="reflect")[..., None].astype(np.float32)
    own = metrics.psnr(blurred, sharp)
    assert metrics.psnr(baselines.richardson_lucy(blurred, kernel=kernel), sharp) > own + 2
    assert metrics.psnr(baselines.wiener(blurred, kernel=kernel, balance=0.001), sharp) > own + 0.5
    wrong = baselines.line(9, angle + 90)
    assert metrics.psnr(baselines.wiener(blurred, kernel=wrong, balance=0.001), sharp) < own


def test_a_line_has_a_length() -> None:
    assert baselines.line(1).tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0]] or baselines.line(1).max() == 1
    assert (baselines.line(9) > 0).sum(1).max() == 9
    with pytest.raises(SettingError, match="at least 1 pixel"):
        baselines.line(0)
