"""Padding policies and cuts of the window helper, against their definitions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from core.errors import ShapeError
from core.layers import windows
from core.layers.positions import resize_grid, sincos_1d, sincos_2d

ROW = torch.arange(1.0, 6)  # five cells, windows of four: three more are needed


@pytest.mark.parametrize(
    ("policy", "want"),
    [
        ("end", [1, 2, 3, 4, 5, 0, 0, 0]),
        ("start", [0, 0, 0, 1, 2, 3, 4, 5]),
        ("centre", [0, 1, 2, 3, 4, 5, 0, 0]),  # the odd one at the right
        ("reflect", [1, 2, 3, 4, 5, 4, 3, 2]),  # mirrored without the edge
    ],
)
@pytest.mark.parametrize("axis", [1, 2])
def test_policies(policy: windows.Policy, want: list[float], axis: int) -> None:
    x = ROW.reshape(1, 5, 1, 1).expand(2, 5, 4, 3) if axis == 1 else ROW.reshape(1, 1, 5, 1).expand(2, 4, 5, 3)
    padded, where = windows.pad(x, (4, 4), policy)
    assert padded.shape == ((2, 8, 4, 3) if axis == 1 else (2, 4, 8, 3))
    assert (padded[0, :, 1, 2] if axis == 1 else padded[1, 2, :, 0]).tolist() == want
    assert torch.equal(windows.crop(padded, where), x)


def test_a_map_that_divides_is_left_alone() -> None:
    x = torch.randn(1, 8, 4, 2)
    for policy in ("end", "start", "centre", "reflect", "refuse"):
        padded, where = windows.pad(x, (4, 2), policy)  # type: ignore[arg-type]
        assert padded is x
        assert windows.crop(x, where) is x


def test_refusals() -> None:
    with pytest.raises(ShapeError, match="a map of 5 x 4 does not divide into windows of 4 x 4"):
        windows.pad(torch.zeros(1, 5, 4, 1), (4, 4), "refuse")
    with pytest.raises(ShapeError, match="a map of 2 x 4 is too small to be mirrored to whole windows of 7 x 4"):
        windows.pad(torch.zeros(1, 2, 4, 1), (7, 4), "reflect")


def test_cuts_and_joins() -> None:
    x = torch.randn(2, 6, 8, 3)
    cut = windows.partition(x, (3, 4))
    assert torch.equal(cut[5], x[1, 0:3, 4:8].reshape(12, 3))  # second image, first row of windows, second column
    assert torch.equal(windows.join(cut, (3, 4), (6, 8)), x)
    cut = windows.grid_partition(x, (3, 4))
    assert torch.equal(cut[4 + 3], x[1, 1::2, 1::2].reshape(12, 3))  # one cell of each 2 x 2 tile
    assert torch.equal(windows.grid_join(cut, (3, 4), (6, 8)), x)


def test_shift_masks_equal_the_published_labels() -> None:
    """The 3 x 3 regions of the card, labelled on the rolled map, against the four kinds of windows."""
    H, W, M, s = 12, 9, 3, 2
    label = torch.zeros(1, H, W, 1)
    for i, rows in enumerate((slice(0, H - M), slice(H - M, H - s), slice(H - s, H))):
        for j, columns in enumerate((slice(0, W - M), slice(W - M, W - s), slice(W - s, W))):
            label[:, rows, columns] = 3 * i + j
    region = windows.partition(label, (M, M))[..., 0]
    want = (region[:, :, None] != region[:, None, :]) * -100.0
    masks = windows.shift_mask((M, M), (s, s))
    assert torch.equal(windows.full_shift_mask((4, 3), masks)[:, 0], want)
    logits = torch.randn(2 * 12, 5, 9, 9)
    added = windows.add_shift_mask_(logits.clone(), (4, 3), masks)
    torch.testing.assert_close(added, logits + want.repeat(2, 1, 1)[:, None])


def test_position_resizing() -> None:
    grid = torch.randn(1, 7, 7, 4)
    image = grid.permute(0, 3, 1, 2)
    offset = F.interpolate(image, scale_factor=(9.1 / 7, 5.1 / 7), mode="bicubic").permute(0, 2, 3, 1)
    exact = F.interpolate(image, size=(9, 5), mode="bicubic").permute(0, 2, 3, 1)
    assert torch.equal(resize_grid(grid, (9, 5), "offset"), offset)
    assert torch.equal(resize_grid(grid, (9, 5), "exact"), exact)
    assert not torch.allclose(offset, exact, atol=1e-3)
    with pytest.raises(ShapeError, match="built for 7 x 7 patches, the image has 9 x 5"):
        resize_grid(grid, (9, 5), "refuse")
    with pytest.raises(ShapeError, match="between squares only"):
        resize_grid(grid, (9, 5), "linear")


def test_sine_cosine_tables() -> None:
    table = sincos_1d(5, 6)
    assert table[3, 4].item() == pytest.approx(torch.sin(torch.tensor(3 / 10000 ** (4 / 6))).item())
    assert table[3, 5].item() == pytest.approx(torch.cos(torch.tensor(3 / 10000 ** (4 / 6))).item())
    flat = sincos_2d((2, 3), 8)  # cell (row 1, column 2) is the last
    want = [
        f(p * w) for p in (2.0, 1.0) for f in (torch.sin, torch.cos) for w in (torch.tensor(1.0), torch.tensor(0.01))
    ]
    torch.testing.assert_close(flat[5], torch.stack(want).double(), atol=1e-6, rtol=1e-6)
    with pytest.raises(ShapeError, match="that 4 divides, got 6"):
        sincos_2d((2, 2), 6)
