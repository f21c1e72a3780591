"""Batches in an order that depends on the seed and the epoch alone, so that a run can be gone on with anywhere."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence, Sized
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from core.errors import SettingError
from core.training.recipe import Recipe


class Order(DistributedSampler[Any]):
    """Item numbers of one epoch: each pass in a new random order, dealt out over the devices.

    Args:
        size: items of the data set.
        seed: with the epoch it fixes the order.
        shuffle: else 0, 1, 2 ...
        length: numbers an epoch on each device; past the data's end the next pass begins. By default one pass.
        shared: deal the numbers out over the devices; else each has all of them.
        weights: draw with replacement, an item as often as its weight says (above 0), instead of passes.
    """

    def __init__(
        self, size: int, seed: int = 0, *, shuffle: bool = True, length: int | None = None, shared: bool = True,
        weights: Sequence[float] | None = None,
    ) -> None:  # fmt: skip
        live = shared and dist.is_available() and dist.is_initialized()
        world, rank = (dist.get_world_size(), dist.get_rank()) if live else (1, 0)
        super().__init__(range(size), world, rank, shuffle=shuffle, seed=seed)  # type: ignore[arg-type]
        self.size = size
        self.length = length if length is not None else -(-size // world)
        self.weights = None if weights is None else torch.tensor(weights, dtype=torch.float64)
        if self.weights is not None and (len(self.weights) != size or not bool((self.weights > 0).all())):
            raise SettingError(f"weights of drawing are {size} numbers above 0, got {len(self.weights)}")
        self.start = 0  # numbers of the next epoch to pass over: they were seen before the run was ended

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        start, self.start = self.start, 0
        total = self.length * self.num_replicas
        generator = torch.Generator().manual_seed(mixed(self.seed, self.epoch))
        passes: list[int] = []
        if self.weights is not None:
            passes = torch.multinomial(self.weights, total, replacement=True, generator=generator).tolist()
        while len(passes) < total:
            passes += torch.randperm(self.size, generator=generator).tolist() if self.shuffle else range(self.size)
        return iter(passes[:total][self.rank :: self.num_replicas][start:])


class Loader(DataLoader[Any]):
    """A DataLoader over an `Order` that knows which batch of the epoch it is at and can go on from there.

    Its `state_dict` and `load_state_dict` are what Lightning asks for. It draws nothing from torch's global generator.
    """

    _given = 0  # batches of this epoch

    def __iter__(self) -> Any:
        order = self.sampler
        if isinstance(order, Order):
            self._given = order.start // (self.batch_size or 1)
            assert isinstance(self.generator, torch.Generator)
            self.generator.manual_seed(mixed(order.seed, order.epoch, self._given, order.rank))  # of the workers
        for batch in super().__iter__():
            self._given += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Batches given in this epoch."""
        return {"batches": self._given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """The next epoch begins after so many batches."""
        if isinstance(self.sampler, Order):
            self.sampler.start = state["batches"] * (self.batch_size or 1)


def loader(
    data: Dataset[Any], recipe: Recipe, *, train: bool = True, collate: Callable[[list[Any]], Any] | None = None,
    weights: Sequence[float] | None = None,
) -> DataLoader[Any]:  # fmt: skip
    """Batches of `data` as the recipe asks.

    For training: shuffled by seed and epoch, `steps_per_epoch` batches where the recipe names them (passes over the
    data follow one another then), shared between devices, no incomplete batch unless the data has only that. Else: in
    order, every item once, on every device the same, so that scores are exact.

    Args:
        data: a sized data set.
        recipe: batch, seed, steps_per_epoch, workers.
        train: which of the two.
        collate: makes a batch of a list of items; torch's by default.
        weights: for training, how often each item is drawn (see Order).

    Raises:
        SettingError: no items.
    """
    assert isinstance(data, Sized)
    size = len(data)
    if size == 0:
        raise SettingError(f"no items to {'train' if train else 'validate'} on")
    more: dict[str, Any] = {
        "num_workers": recipe.workers,
        "collate_fn": collate,
        "pin_memory": torch.cuda.is_available(),
        "worker_init_fn": leave_interrupts if recipe.workers else None,
        "generator": torch.Generator().manual_seed(recipe.seed),
    }
    if not train:
        return DataLoader(data, recipe.batch, sampler=Order(size, shuffle=False, shared=False), **more)
    steps = recipe.steps_per_epoch
    order = Order(size, recipe.seed, length=None if steps is None else steps * recipe.batch, weights=weights)
    return Loader(data, recipe.batch, sampler=order, drop_last=len(order) >= recipe.batch, **more)


def leave_interrupts(_: int) -> None:
    """Ctrl-C reaches every process of the terminal; workers, which inherit our handlers, leave it to the first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def mixed(*numbers: int) -> int:
    """One seed of several numbers, neighbours far apart: (0, 1) and (1, 0) differ.

    >>> mixed(0, 1) != mixed(1, 0)
    True
    """
    import numpy as np

    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
