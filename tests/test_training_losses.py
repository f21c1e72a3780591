"""Losses against MONAI and by hand, ignored and invalid pixels included."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from core.errors import ShapeError
from core.training.losses import DeepSupervision, DiceCE, nearest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))


@pytest.mark.parametrize("batch", [True, False])
@pytest.mark.parametrize("background", [True, False])
def test_dice_and_cross_entropy_are_monais(batch: bool, background: bool) -> None:
    losses = pytest.importorskip("monai.losses")
    torch.manual_seed(0)
    logits = torch.randn(3, 4, 9, 7, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 4, (3, 9, 7))
    target[1] = 0  # an image without organs
    theirs = losses.DiceCELoss(
        include_background=background, to_onehot_y=True, softmax=True, batch=batch, smooth_nr=1e-5, smooth_dr=1e-5
    )(logits, target[:, None])  # fmt: skip
    (wanted,) = torch.autograd.grad(theirs, logits)
    ours = DiceCE(4, batch_dice=batch, include_background=background)(logits, target)
    (got,) = torch.autograd.grad(ours, logits)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    assert torch.allclose(got, wanted, atol=1e-7)


@pytest.mark.parametrize("batch", [True, False])
def test_pixels_that_do_not_count_do_not(batch: bool) -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(2, 3, 4, 8, requires_grad=True), torch.randint(0, 3, (2, 4, 8))
    valid = torch.ones(2, 4, 8, dtype=torch.bool)
    target[..., 4:6], valid[..., 6:] = 255, False
    loss = DiceCE(3, ignore=255, batch_dice=batch)
    whole = loss(logits, target, valid)
    assert whole.item() == pytest.approx(loss(logits[..., :4], target[..., :4]).item(), rel=1e-6)
    whole.backward()
    assert logits.grad is not None
    assert float(logits.grad[..., 4:].abs().max()) == 0
    assert float(logits.grad[..., :4].abs().min()) > 0
    broken = logits.detach().clone()
    broken[..., 4:] = float("nan")
    broken.requires_grad_()
    again = loss(broken, target, valid)
    again.backward()
    assert again.item() == pytest.approx(whole.item())
    assert torch.isfinite(broken.grad).all()  # type: ignore[arg-type]


def test_dice_by_hand() -> None:
    # one image, two classes, 4 pixels; p(1) = sigmoid(2) everywhere, truth 1 in two of them
    p = float(torch.sigmoid(torch.tensor(2.0)))
    logits = torch.zeros(1, 2, 1, 4)
    logits[:, 1] = 2.0
    target = torch.tensor([[[1, 1, 0, 0]]])
    dice = (2 * 2 * p + 1e-5) / (4 * p + 2 + 1e-5)
    entropy = float(-(torch.tensor([p, 1 - p]).log()).mean())
    assert float(DiceCE(2)(logits, target)) == pytest.approx(1 - dice + entropy, rel=1e-6)


@pytest.mark.parametrize("batch", [True, False])
def test_a_batch_without_a_valid_pixel(batch: bool) -> None:
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = DeepSupervision(DiceCE(3, ignore=9, batch_dice=batch))([logits] * 4, torch.full((2, 4, 4), 9))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert float(logits.grad.abs().max()) == 0
    # an image without a valid pixel does not thin the others
    target = torch.randint(0, 3, (2, 4, 4))
    target[1] = 9
    one = DiceCE(3, ignore=9)
    assert one(logits, target).item() == pytest.approx(one(logits[:1], target[:1]).item(), rel=1e-6)


def test_deep_supervision_weights_and_sizes() -> None:
    torch.manual_seed(0)
    target = torch.randint(0, 2, (2, 8, 12))
    levels = [torch.randn(2, 2, 8 // s, 12 // s) for s in (1, 2, 4, 4)]
    single = DiceCE(2)
    wanted = sum(
        w * single(x, nearest(target, x.shape[2:])) for w, x in zip((4 / 7, 2 / 7, 1 / 7), levels, strict=False)
    )
    assert float(DeepSupervision(single)(levels, target)) == pytest.approx(float(wanted), rel=1e-6)
    assert float(DeepSupervision(single)(levels[0], target)) == pytest.approx(float(single(levels[0], target)))
    small = F.interpolate(target[:, None].float(), (3, 5), mode="nearest")[:, 0].long()
    assert torch.equal(nearest(target, (3, 5)), small)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="4 weights, the network gives 2 levels"):
        DeepSupervision(single)(levels[:2], target)
    with pytest.raises(ShapeError, match="need a target of shape"):
        single(levels[0], target[:, :4])
