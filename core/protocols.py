"""What the parts of the house ask of one another. Structural types: nothing inherits from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from core.data.sample import Meta
    from core.facts import Facts
    from core.weights import KeyMap


@runtime_checkable
class Backbone(Protocol):
    """A network that gives a pyramid.

    `forward(image (B, C, H, W))` returns one (B, channels[i], h_i, w_i) per level, fine to coarse. Sizes round as the
    system's card says, so consumers use the actual ones. `stages[i]` makes level i from level i - 1 (level 0 from the
    image), merging included. Of clips: (B, C, T, H, W), levels (B, channels[i], t_i, h_i, w_i), strides as triples.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...] | tuple[tuple[int, int, int], ...]
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
    shapes, and the rest is taken from `base`. A family that adapts the network of another one names that family in
    HOST; its `build(config, host)` is handed the module (core.registry.build does).
    """

    FACTS: Facts
    VARIANTS: Mapping[str, Any]
    PUBLISHED: Sequence[KeyMap]

    def build(self, config: Any) -> nn.Module: ...

    def from_published(self, build: Mapping[str, Any], names: Mapping[str, Sequence[int]], base: Any = ...) -> Any: ...


class Source(Protocol):
    """Something too large to load that can be read by the window.

    `shape` has 1 (audio), 2 or 3 spatial axes. `read(start, stop)` gives values (C, *size) and valid (*size) bool of
    the window start <= index < stop, which may reach outside. Where valid is False, values are zero. A source may say
    what tells it from others by an attribute `identity: str` (else its file's size and time do).
    """

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def channels(self) -> tuple[str, ...]: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def meta(self) -> Meta: ...

    def read(self, start: Sequence[int], stop: Sequence[int]) -> tuple[NDArray[Any], NDArray[np.bool_]]: ...


class Sink(Protocol):
    """Takes a result strip by strip along axis 0, in order; what is `written` survives kill -9.

    One that goes on with what an earlier run wrote is a core.streaming.journal.Resumable, too.
    """

    @property
    def written(self) -> int: ...

    def write(self, start: int, strip: NDArray[Any]) -> None: ...

    def close(self) -> None: ...


class Model(Protocol):
    """Tiles (N, C, *tile) and valid (N, *tile) -> scores (N, K, *tile * scale)."""

    def __call__(self, tiles: Tensor, valid: Tensor) -> Tensor: ...


class Result(Protocol):
    """What a pipeline answers for one item; frozen."""

    def save(self, path: Any) -> None: ...
    def draw(self) -> NDArray[np.uint8]: ...
    def as_dict(self) -> dict[str, Any]: ...
