"""Classifiers around a backbone, as each family publishes them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

Pool = Literal["mean", "token", "mean_tokens", "distilled_mean"]


@dataclass(frozen=True)
class ClassifierHead:
    """What a family puts on its backbone.

    Attributes:
        norm: norm layer of the head (LayerNorm over channels, BatchNorm2d, of clips BatchNorm3d ...); None where the
            backbone has it.
        eps: its epsilon.
        pool: "mean" of the last level's map; of a token family the first "token", the "mean_tokens" of its patches,
            or "distilled_mean", the mean of two linear heads on the first two tokens.
        norm_first: norm every position and then pool, or pool and then norm.
        hidden: activation between a square Linear and the last one; None for no hidden layer.
    """

    norm: Callable[..., nn.Module] | None = nn.LayerNorm
    eps: float = 1e-5
    pool: Pool = "mean"
    norm_first: bool = True
    hidden: Callable[[], nn.Module] | None = None

    def __call__(self, backbone: Any, classes: int) -> nn.Module:
        if self.pool == "mean":
            return MapHead(backbone.channels[-1], classes, self)
        return TokenHead(backbone.channels[-1], classes, self, backbone.prefix)


def _norm(head: ClassifierHead, dim: int) -> nn.Module:
    return nn.Identity() if head.norm is None else head.norm(dim, eps=head.eps)


def _last(dim: int, classes: int) -> nn.Linear:
    fc = nn.Linear(dim, classes)
    nn.init.trunc_normal_(fc.weight, std=0.02)
    nn.init.zeros_(fc.bias)
    return fc


def _hidden(head: ClassifierHead, dim: int) -> nn.Module:
    return nn.Identity() if head.hidden is None else nn.Sequential(nn.Linear(dim, dim), head.hidden())


class MapHead(nn.Module):
    """Last level (B, C, H, W), of a clip (B, C, T, H, W) -> logits (B, classes)."""

    takes = "pyramid"
    fusable = (("norm", "hidden", "fc"),)  # for core.compression.fold: a batch norm and the mean over the map commute

    def __init__(self, dim: int, classes: int, head: ClassifierHead) -> None:
        super().__init__()
        self.norm_first = head.norm_first
        self.norm, self.hidden, self.fc = _norm(head, dim), _hidden(head, dim), _last(dim, classes)
        self.per_map = isinstance(self.norm, nn.BatchNorm2d | nn.BatchNorm3d)  # batch norm wants channels first

    def forward(self, pyramid: list[Tensor]) -> Tensor:
        x = pyramid[-1]
        axes = tuple(range(2, x.ndim))
        if self.norm_first:
            x = self.norm(x).mean(axes) if self.per_map else self.norm(x.movedim(1, -1)).mean([a - 1 for a in axes])
        elif self.per_map:
            x = self.norm(x.mean(axes, keepdim=True)).flatten(1)
        else:
            x = self.norm(x.mean(axes))
        return self.fc(self.hidden(x))


class TokenHead(nn.Module):
    """Tokens (B, N, C) -> logits (B, classes)."""

    takes = "tokens"

    def __init__(self, dim: int, classes: int, head: ClassifierHead, prefix: int) -> None:
        super().__init__()
        self.pool, self.prefix, self.norm_first = head.pool, prefix, head.norm_first
        self.norm, self.hidden, self.fc = _norm(head, dim), _hidden(head, dim), _last(dim, classes)
        self.fc_distilled = _last(dim, classes) if head.pool == "distilled_mean" else None

    def both(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The two logits of a distilled network, (B, classes) each: of the class and of the distillation token."""
        assert self.fc_distilled is not None
        x = self.norm(tokens[:, :2])
        return self.fc(self.hidden(x[:, 0])), self.fc_distilled(self.hidden(x[:, 1]))

    def forward(self, tokens: Tensor) -> Tensor:
        if self.pool == "distilled_mean":
            first, second = self.both(tokens)
            return (first + second) / 2
        if self.pool == "token":
            x = self.norm(tokens[:, 0])
        else:
            x = tokens[:, self.prefix :]
            x = self.norm(x).mean(1) if self.norm_first else self.norm(x.mean(1))
        return self.fc(self.hidden(x))


class LightHead(nn.Module):
    """Class token and patches (B, 1 + N, C) -> logits (B, classes): of the patches' mean after a batch norm.

    The head of UniFormer's light models. In training the mean of the two heads' logits, so that both learn; the
    published loss is the mean of two losses, one on each of `both`.
    """

    takes = "tokens"
    fusable = (("norm", "fc"),)  # the mean between them commutes

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.norm, self.fc = nn.BatchNorm1d(dim), _last(dim, classes)
        self.norm_class, self.fc_class = nn.LayerNorm(dim), _last(dim, classes)

    def both(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, classes) of the patches and of the class token."""
        return self._patches(tokens), self.fc_class(self.norm_class(tokens[:, 0]))

    def _patches(self, tokens: Tensor) -> Tensor:
        return self.fc(self.norm(tokens[:, 1:].transpose(1, 2)).mean(2))

    def forward(self, tokens: Tensor) -> Tensor:
        if not self.training:
            return self._patches(tokens)
        first, second = self.both(tokens)
        return (first + second) / 2


class Classifier(nn.Module):
    """Image (B, C, H, W) -> logits (B, classes): a backbone under the head that its family states.

    The family is the module in which the backbone's class lives; it has `HEAD`, or a function `head` in its place.
    """

    def __init__(self, backbone: Any, classes: int) -> None:
        super().__init__()
        module: Any = sys.modules[type(backbone).__module__]
        make = module.head if hasattr(module, "head") else module.HEAD
        self.backbone = backbone
        self.head: Any = make(backbone, classes)
        self.takes_tokens = self.head.takes == "tokens"

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.head(self.backbone.tokens(image) if self.takes_tokens else self.backbone(image))
        return logits
