"""Lab, the loss, scores and baselines of colorization against other libraries and plain loops."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage import color
from skimage.metrics import peak_signal_noise_ratio
from torch import Tensor
from torch.nn.functional import huber_loss

from apps.colorization import lab, metrics
from apps.colorization._losses import huber
from apps.colorization.baselines import BASELINES
from core.errors import FileError, InputError, SettingError, ShapeError, UnknownNameError

SIDE = 32


def pictures(count: int = 2, side: int = SIDE, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def channels_last(x: Tensor) -> np.ndarray:
    return x.permute(0, 2, 3, 1).numpy()


# Lab


def test_lab_is_scikit_images() -> None:
    """Its white point and matrix have more digits than the card's."""
    rgb = pictures()
    rgb[0, :, 0, :4] = torch.tensor([[0.0, 1.0, 0.02, 0.0031]]).expand(3, 4)
    found = lab.units(lab.to_lab(rgb))
    np.testing.assert_allclose(channels_last(found), color.rgb2lab(channels_last(rgb)), atol=2e-3)


def test_lab_of_known_colours() -> None:
    corners = torch.tensor([[0.0, 0, 0], [1, 1, 1], [1, 0, 0], [0, 0, 1]]).T.reshape(1, 3, 1, 4)
    found = lab.units(lab.to_lab(corners))[0, :, 0].T
    want = torch.tensor([[0, 0, 0], [100, 0, 0], [53.24, 80.09, 67.20], [32.30, 79.19, -107.86]])
    torch.testing.assert_close(found, want, atol=0.02, rtol=0)
    grey = lab.to_lab(torch.full((1, 3, 1, 1), 0.5))
    assert grey[0, 0, 0, 0] == pytest.approx((53.389 - 50) / 100, abs=1e-4)


def test_there_and_back() -> None:
    rgb = pictures()
    torch.testing.assert_close(lab.to_rgb(lab.to_lab(rgb)), rgb, atol=2e-6, rtol=0)


def test_back_is_scikit_images_inside_srgb() -> None:
    values = lab.to_lab(0.25 + 0.5 * pictures())
    want = color.lab2rgb(channels_last(lab.units(values)))
    np.testing.assert_allclose(channels_last(lab.to_rgb(values)), want, atol=1e-4)


def test_back_is_not_cut_off_above_but_below() -> None:
    strange = torch.tensor([[0.45, 0.9, 0.9], [-0.45, -0.9, 0.9]]).T.reshape(1, 3, 1, 2)
    rgb = lab.to_rgb(strange)
    assert rgb.max() > 1
    assert rgb.min() == 0
    assert rgb.isfinite().all()


def test_gradients_are_finite_at_black() -> None:
    rgb = torch.zeros(1, 3, 2, 2, requires_grad=True)
    lab.to_rgb(lab.to_lab(rgb)).sum().backward()
    assert rgb.grad is not None
    assert rgb.grad.isfinite().all()


def test_lab_wants_three_channels() -> None:
    for function in (lab.to_lab, lab.to_rgb):
        with pytest.raises(ShapeError, match="B, 3, H, W"):
            function(torch.zeros(1, 4, 2, 2))


def test_delta_e_of_a_published_pair() -> None:
    """The first pair of Sharma, Wu and Dalal's test data for CIEDE2000."""
    one, other = np.array([[50.0, 2.6772, -79.7751]]), np.array([[50.0, 0.0, -82.7485]])
    assert lab.delta_e(one, other)[0] == pytest.approx(2.0425, abs=1e-4)
    assert lab.delta_e(one, other, "cie76")[0] == pytest.approx(math.hypot(2.6772, 82.7485 - 79.7751))
    with pytest.raises(ShapeError, match=r"\(\.\.\., 3\)"):
        lab.delta_e(one[:, :2], other[:, :2])


# the loss


def test_huber_is_torchs_summed_over_colours() -> None:
    draw = torch.Generator().manual_seed(0)
    a = torch.randn(2, 2, 8, 8, generator=draw, dtype=torch.float64) * 0.02
    b = torch.zeros_like(a)
    assert huber(a, b) == pytest.approx(float(2 * huber_loss(a, b, delta=0.01)) / 0.01)
    with pytest.raises(ShapeError, match="B, 2, H, W"):
        huber(a, b[:, :1])


# pictures' scores


def test_psnr_is_scikit_images_and_ends_at_50() -> None:
    truth = pictures()
    answer = truth + 0.05 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    want = [peak_signal_noise_ratio(t, a, data_range=1) for t, a in zip(truth.numpy(), answer.numpy(), strict=True)]
    np.testing.assert_allclose(metrics.psnr(answer, truth), want)
    assert metrics.psnr(truth, truth).tolist() == [50, 50]
    assert metrics.psnr(truth + 1e-3, truth)[0] == pytest.approx(50)
    with pytest.raises(ShapeError):
        metrics.psnr(truth[:, :, :8], truth)


def test_b_psnr_looks_at_both_sides_of_inner_borders_only() -> None:
    truth = pictures(1, 48)
    rows = [15, 16, 31, 32]
    mask = torch.zeros(48, 48, dtype=torch.bool)
    for k in rows:
        mask[k], mask[:, k] = True, True
    inside, beside = truth.clone(), truth.clone()
    inside[:, :, mask] += 0.1
    beside[:, :, ~mask] += 0.1
    assert metrics.b_psnr(inside, truth)[0] == pytest.approx(20)
    assert metrics.b_psnr(beside, truth)[0] == 50
    for k in rows:  # each line counts, and as much as the others
        line = truth.clone()
        line[:, :, k] += 0.1
        assert metrics.b_psnr(line, truth)[0] == pytest.approx(20 - 10 * math.log10(48 / int(mask.sum())))
    with pytest.raises(ShapeError, match="no border"):
        metrics.b_psnr(truth[:, :, :16, :16], truth[:, :, :16, :16])


def test_pev_by_hand() -> None:
    truth = torch.full((1, 3, 32, 32), 0.5)
    answer = truth.clone()
    levels = [0.0, 10.0, 20.0, 60.0]
    for n, level in enumerate(levels):
        y, x = 16 * (n // 2), 16 * (n % 2)
        answer[0, :, y : y + 16, x : x + 16] += level / 255
    assert metrics.pev(answer, truth)[0] == pytest.approx(np.var(levels, ddof=1), rel=1e-4)
    one = truth.clone()
    one[0, 0, :16, :16] += 30 / 255  # in one of three channels: the root is taken after the mean over them
    found = metrics.pev(one, truth)[0]
    assert found == pytest.approx(np.var([30 / math.sqrt(3), 0, 0, 0], ddof=1), rel=1e-4)


def test_propagation_range_by_hand() -> None:
    before = torch.zeros(2, 3, 16, 16)
    after = before.clone()
    after[0, 1, 5, 9] = 0.03  # 3.3 in CIE Lab
    after[0, 2, 5, 12] = 0.03
    after[0, 0, 9, 9] = 0.02  # 2.0: not noticed
    mean, spread = metrics.propagation_range(before, after, torch.tensor([[5, 8], [0, 0]]))
    assert mean[0] == pytest.approx(2.5)
    assert spread[0] == pytest.approx(np.std([1, 4], ddof=1))
    assert mean[1].isnan()
    after[1, 1, 3, 4] = 0.5
    mean, spread = metrics.propagation_range(before, after, torch.tensor([[5, 8], [0, 0]]))
    assert mean[1] == 5
    assert spread[1].isnan()


def test_delta_e_at_hints_takes_the_pictures_luminance() -> None:
    answer = torch.tensor([[0.1, 0.2, 0.1], [0.0, 0.0, 0.0]])
    asked = torch.tensor([[-0.4, 0.2, 0.1], [0.0, 0.1, 0.0]])
    found = metrics.hint_delta_e(answer, asked)
    assert found[0] == pytest.approx(0, abs=1e-5)
    assert found[1] == pytest.approx(float(color.deltaE_ciede2000([50, 0, 0], [50, 11, 0])), rel=1e-5)


# LPIPS


def test_lpips_names_the_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"vgg\.pth: no such file.*vgg16-397923af\.pth"):
        metrics.lpips(tmp_path / "vgg.pth")
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "vgg.pth")
    with pytest.raises(FileError, match="holds no VGG-16"):
        metrics.lpips(tmp_path / "vgg.pth")


def test_lpips_takes_the_files_weights_and_values_from_0_to_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchmetrics.functional.image.lpips import _LPIPS
    from torchvision.models.vgg import cfgs, make_layers

    torch.manual_seed(0)
    backbone = make_layers(cfgs["D"])
    torch.save({f"features.{n}": v for n, v in backbone.state_dict().items()}, tmp_path / "vgg.pth")
    one, other = pictures(2).float(), pictures(2, seed=1).float()
    for slow in ("kaiming_normal_", "normal_"):  # 138 million random numbers that the file's take the place of
        monkeypatch.setattr(torch.nn.init, slow, lambda tensor, *_, **__: tensor)
    measure = metrics.lpips(tmp_path / "vgg.pth")
    found = measure(one, other)
    # The definition, layer by layer: unit features of each pixel, squared difference, learned weights, mean.
    lines = _LPIPS(net="vgg", pnet_rand=True).lins
    want = torch.zeros(2)
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    x, y = ((p - shift.view(3, 1, 1)) / scale.view(3, 1, 1) for p in (one, other))
    ends, line = {3, 8, 15, 22, 29}, 0
    with torch.no_grad():
        for i, layer in enumerate(backbone):
            x, y = layer(x), layer(y)
            if i in ends:
                gap = (
                    x / (x.square().sum(1, keepdim=True) + 1e-8).sqrt()
                    - y / (y.square().sum(1, keepdim=True) + 1e-8).sqrt()
                ) ** 2
                want += (gap * lines[line].model[-1].weight.view(1, -1, 1, 1)).sum(1).mean((1, 2))
                line += 1
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-6)
    assert measure(one, one).tolist() == [0, 0]


# a photograph's scores, and their report


def scored(name: str, error: float) -> metrics.CaseScore:
    truth = pictures(1, 48)[0]
    return metrics.score(truth, {5: truth + error, 20: truth + error / 2}, id=name, group=name)


def test_score_and_report() -> None:
    cases = [scored("a", 0.1), scored("b", 0.05), scored("c", 0.02)]
    assert cases[0].values["5 hints"]["psnr"] == pytest.approx(20)
    assert list(cases[0].values) == ["5 hints", "20 hints"]
    report = metrics.report(cases)
    assert report.classes["20 hints"]["psnr"].mean == pytest.approx(
        np.mean([-20 * math.log10(e / 2) for e in (0.1, 0.05, 0.02)])
    )
    assert set(report.definitions) >= {"psnr", "b_psnr", "pev", "mean", "interval", "pictures"}
    assert "50 dB" in report.definitions["psnr"]
    better = metrics.paired(cases, [scored(n, 0.2) for n in "abc"])
    assert all(row["difference"] > 0 for row in better.rows if row["metric"] == "psnr")


def test_saved_pictures_are_rounded_and_cut_off() -> None:
    truth = torch.full((3, 32, 32), 1.0)
    answer = torch.full((3, 32, 32), 1.3)
    assert metrics.score(truth, {0: answer}).values["0 hints"]["psnr"] == pytest.approx(-20 * math.log10(0.3), abs=1e-4)
    assert metrics.score(truth, {0: answer}, by="saved").values["0 hints"]["psnr"] == 50
    assert metrics.score(truth - 0.5, {1: truth - 0.5 + 1e-3}, by="saved").values["1 hint"]["psnr"] == 50


def test_small_pictures_leave_out_what_needs_patches() -> None:
    truth = pictures(1, 16)[0]
    case = metrics.score(truth, {5: truth + 0.1}, id="s")
    assert np.isnan(case.values["5 hints"]["pev"])
    assert "two patches" in case.left_out["5 hints"]["pev"]
    assert case.as_dict()["values"]["5 hints"]["pev"] is None


def test_scores_refuse_what_does_not_fit() -> None:
    truth = pictures(1)[0]
    with pytest.raises(InputError, match="no answer"):
        metrics.score(truth, {})
    with pytest.raises(ShapeError):
        metrics.score(truth, {5: truth[:, :8]})
    with pytest.raises(SettingError, match="lpips"):
        metrics.score(truth, {5: truth}, by=metrics.with_metrics(metrics.protocol("published"), "lpips"))
    with pytest.raises(UnknownNameError, match="published"):
        metrics.protocol("publish")
    case = metrics.score(
        truth, {5: truth}, by=metrics.with_metrics(metrics.protocol("published"), "lpips", "range"),
        perceptual=lambda a, b: (a - b).abs().mean((1, 2, 3)), more={5: {"range": float("nan")}},
    )  # fmt: skip
    assert case.values["5 hints"]["lpips"] == 0
    assert case.left_out["5 hints"]["range"] == "no pixel changed"


# baselines


def test_baselines_by_hand() -> None:
    image = torch.zeros(1, 3, 8, 8)
    image[0, 0, :, 4:] = 0.5  # bright on the right
    image[0, 1, :2, :2], image[0, 2, :2, 6:] = 0.3, -0.6
    mask = torch.ones(1, 16, dtype=torch.bool)
    mask[0, 0] = mask[0, 3] = False
    near = BASELINES["nearest"](image, mask)
    assert near[0, 0, :, :4].allclose(torch.tensor(0.3))
    assert near[0, 1, :, 4:].allclose(torch.tensor(-0.6))
    both = BASELINES["weighted"](image, mask)
    assert both[0, 0, 7, 3] > 0.29  # as far from either hint, but as dark as the first
    assert both[0, 1, 7, 4] < -0.59
    assert not BASELINES["grey"](image, mask).any()
    for rule in BASELINES.values():
        assert not rule(image, torch.ones_like(mask)).any()


def test_weighted_is_its_formula() -> None:
    from apps.colorization.baselines import POWER, REACH

    draw = torch.Generator().manual_seed(0)
    image = torch.randn(1, 3, 12, 12, generator=draw, dtype=torch.float64) * 0.2
    mask = torch.rand(1, 36, generator=draw) < 0.8
    found = BASELINES["weighted"](image, mask)
    for y, x in ((0, 0), (5, 7), (11, 3)):
        total, weights = torch.zeros(2, dtype=torch.float64), 0.0
        for place in (~mask[0]).nonzero().flatten().tolist():
            cy, cx = 2 * (place // 6), 2 * (place % 6)
            mean = image[0, :, cy : cy + 2, cx : cx + 2].mean((1, 2))
            away = (y - cy - 0.5) ** 2 + (x - cx - 0.5) ** 2
            w = math.exp(-abs(float(image[0, 0, y, x] - mean[0])) / REACH) / (away + 1) ** (POWER / 2)
            total, weights = total + w * mean[1:], weights + w
        torch.testing.assert_close(found[0, :, y, x], total / weights)
