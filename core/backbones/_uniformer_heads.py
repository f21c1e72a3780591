"""UniFormer's other heads: of token labelling, of human pose."""

from __future__ import annotations

from torch import Tensor, nn

Box = tuple[int, int, int, int]  # top, left, bottom, right in cells, the last two outside


def _last(dim: int, classes: int) -> nn.Linear:
    fc = nn.Linear(dim, classes)
    nn.init.trunc_normal_(fc.weight, std=0.02)
    nn.init.zeros_(fc.bias)
    return fc


class TokenLabelHead(nn.Module):
    """Pyramid -> logits (B, classes): of the mean, plus half of each class's largest over the positions.

    The head of token labelling (arXiv 2104.10858), whose dense part learns from a label for each position.
    """

    takes = "pyramid"

    def __init__(self, dim: int, classes: int, strides: tuple[int, ...]) -> None:
        super().__init__()
        self.shrink = strides[-1] // strides[0]
        self.norm, self.fc, self.fc_dense = nn.BatchNorm2d(dim), _last(dim, classes), _last(dim, classes)

    def both(self, pyramid: list[Tensor], box: Box | None = None) -> tuple[Tensor, Tensor]:
        """Logits (B, classes) of the mean and (B, h * w, classes) of every position.

        Args:
            pyramid: of the backbone.
            box: what MixToken swapped in the cells of the first level; the dense logits are swapped back there.
        """
        x = self.norm(pyramid[-1]).permute(0, 2, 3, 1)  # (B, h, w, C)
        dense = self.fc_dense(x)
        if box is not None:
            top, left, bottom, right = (side // self.shrink for side in box)
            dense = swapped(dense, (top, left, bottom, right))
        return self.fc(x.mean((1, 2))), dense.flatten(1, 2)

    def forward(self, pyramid: list[Tensor]) -> Tensor:
        logits, dense = self.both(pyramid)
        return logits + 0.5 * dense.amax(1)


def swapped(x: Tensor, box: Box) -> Tensor:
    """A map (B, H, W, C) with a box taken from the batch in reverse order (MixToken, arXiv 2104.10858, 3.3)."""
    top, left, bottom, right = box
    x, other = x.clone(), x.flip(0)
    x[:, top:bottom, left:right] = other[:, top:bottom, left:right]
    return x


class KeypointHead(nn.Module):
    """Last level (B, C, h, w) -> heatmaps (B, joints, 8h, 8w): three transposed convolutions (arXiv 1804.06208).

    Args:
        dim: channels of the level.
        joints: heatmaps.
        width: channels of each transposed convolution.
        doublings: their number.
    """

    takes = "pyramid"

    def __init__(self, dim: int, joints: int, *, width: int = 256, doublings: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i in range(doublings):
            up = nn.ConvTranspose2d(width if i else dim, width, 4, stride=2, padding=1, bias=False)
            nn.init.normal_(up.weight, std=0.001)
            layers += [up, nn.BatchNorm2d(width), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.last = nn.Conv2d(width, joints, 1)
        nn.init.normal_(self.last.weight, std=0.001)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    def forward(self, pyramid: list[Tensor]) -> Tensor:
        return self.last(self.layers(pyramid[-1]))
