"""What the parts of the house ask of one another. Structural types: nothing inherits from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor, nn

    from core.facts import Facts
    from core.weights import KeyMap


@runtime_checkable
class Backbone(Protocol):
    """An image network that gives a pyramid.

    `forward(image (B, C, H, W))` returns one (B, channels[i], h_i, w_i) per level, fine to coarse. Sizes round as the
    system's card says, so consumers use the actual ones. `stages[i]` makes level i from level i - 1 (level 0 from the
    image), merging included.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    stages: nn.ModuleList

    def __call__(self, image: Tensor) -> list[Tensor]: ...


@runtime_checkable
class TokenBackbone(Backbone, Protocol):
    """A backbone that also gives tokens (B, N, C); the first `prefix` of them are not patches."""

    prefix: int

    def tokens(self, image: Tensor) -> Tensor: ...


class TokenMixer(Protocol):
    """Moves information between positions: (B, H, W, C) -> (B, H, W, C) for any H and W."""

    def __call__(self, x: Tensor) -> Tensor: ...


class Family(Protocol):
    """A module of core.backbones: one published family.

    `head(backbone, classes)` may stand in place of `HEAD`. `from_published(build, names, base)` turns the authors'
    constructor arguments into our configuration; what they leave open is read from the published parameter names and
    shapes, and the rest is taken from `base`.
    """

    FACTS: Facts
    VARIANTS: Mapping[str, Any]
    PUBLISHED: Sequence[KeyMap]

    def build(self, config: Any) -> nn.Module: ...

    def from_published(self, build: Mapping[str, Any], names: Mapping[str, Sequence[int]], base: Any = ...) -> Any: ...
