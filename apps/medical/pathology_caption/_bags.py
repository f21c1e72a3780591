"""Bags as training and validation items: prepared once on disk, drawn, changed at random, and joined with masks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from apps.medical.pathology_caption import inputs
from apps.medical.pathology_caption.data import Bag
from apps.medical.pathology_caption.decoder import NOTHING
from core.errors import FileError
from core.files import aside

KEPT = 4 << 30  # bytes of prepared patches on the disk; where a set has more, its files are read again each time
STAIN, TINT = 0.2, 0.08  # largest change of a slide's optical densities: of all colours together, and of each


@dataclass(frozen=True)
class Source:
    """A bag's patches: embeddings (N, D) float32 or pixels (N, S, S, 3) bytes, in a file, or read from the pictures."""

    bag: Bag
    file: Path | None
    size: int

    def __len__(self) -> int:
        return len(self.bag.patches)

    def rows(self, chosen: Sequence[int]) -> NDArray[Any]:
        """The chosen patches. Raises FileError for a picture that cannot be read."""
        if self.file is not None:
            stored: NDArray[Any] = np.load(self.file, mmap_mode="r")
            return np.array(stored[list(chosen)])
        return np.stack([inputs.square(self.bag.patches[i], self.size) for i in chosen])


def prepare(
    bags: Sequence[Bag], cache: Path, key: str, make: Callable[[Bag], NDArray[Any]], size: int, *, kept: bool = True
) -> list[Source]:
    """A file for each bag in `cache`, made once.

    Args:
        bags: to prepare.
        cache: folder, of the run.
        key: of everything that the numbers depend on beside the pictures.
        make: a bag's numbers, a row for each patch.
        size: side of a patch in pixels.
        kept: write files at all; else the pictures are read each time.

    Raises FileError for a picture that cannot be read.
    """
    found = []
    for bag in bags:
        if not kept:
            found.append(Source(bag, None, size))
            continue
        file = cache / f"{_digest(key, bag)}.npy"
        if not file.is_file():
            values = make(bag)
            with aside(file) as part, part.open("wb") as stream:
                np.save(stream, values)
        found.append(Source(bag, file, size))
    return found


def _digest(key: str, bag: Bag) -> str:
    """Of the key, and of name, size and time of every picture."""
    files = []
    for path in bag.patches:
        try:
            state = path.stat()
        except OSError as error:
            raise FileError(path, f"cannot be read ({error.strerror})") from None
        files.append([str(path), state.st_size, state.st_mtime_ns])
    return hashlib.sha256(json.dumps([key, bag.id, files]).encode()).hexdigest()[:32]


class Bags(Dataset[dict[str, Any]]):
    """One item a bag: values (n, ...) as `Source` has them, label and tokens.

    Args:
        sources: prepared bags.
        labels: of each its class's number, NOTHING for none.
        tokens: of each begin, words and end; empty for no caption.
        most: patches of an item, drawn anew each time; 0 for all.
        augment: turns, flips and stain-like changes; of pixels only.

    Draws come from torch's generator, which core.training seeds.
    """

    def __init__(
        self, sources: Sequence[Source], labels: Sequence[int], tokens: Sequence[Sequence[int]], *, most: int = 0,
        augment: bool = False,
    ) -> None:  # fmt: skip
        self.sources, self.labels, self.tokens = list(sources), list(labels), [list(t) for t in tokens]
        self.most, self.augment = most, augment

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int) -> dict[str, Any]:
        source = self.sources[index]
        count = len(source)
        chosen = list(range(count))
        if self.most and count > self.most:
            chosen = sorted(torch.randperm(count)[: self.most].tolist())
        values = torch.from_numpy(source.rows(chosen))
        if self.augment and values.ndim == 4:
            values = changed(values)
        return {"values": values, "label": self.labels[index], "tokens": self.tokens[index]}


def changed(patches: Tensor) -> Tensor:
    """Patches (n, S, S, 3) bytes, each turned and flipped at random, all stained a little otherwise.

    A stain's strength is a factor on the optical density -log((v + 1) / 256); colours of one slide change together.
    """
    turned = []
    for patch, turn, flip in zip(
        patches, torch.randint(4, (len(patches),)), torch.randint(2, (len(patches),)), strict=True
    ):
        patch = torch.rot90(patch, int(turn), (0, 1))
        turned.append(patch.flip(1) if flip else patch)
    strength = 1 + STAIN * (2 * torch.rand(()) - 1) + TINT * (2 * torch.rand(3) - 1)
    levels = torch.arange(256, dtype=torch.float32)
    density = -((levels + 1) / 256).log()
    table = (256 * (-density[:, None] * strength).exp() - 1).round().clamp(0, 255).to(torch.uint8)  # (256, 3)
    whole = torch.stack(turned)
    return torch.stack([table[:, c][whole[..., c].long()] for c in range(3)], dim=-1)


def collate(items: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """values: embeddings (B, N, D) with zeros behind a bag's end, or pixels (P, S, S, 3) of all bags one after the
    other; mask (B, N); label (B,); tokens (B, T), NOTHING behind a caption's end.
    """
    counts = [len(item["values"]) for item in items]
    mask = torch.arange(max(counts)) < torch.tensor(counts).unsqueeze(1)
    if items[0]["values"].ndim == 2:
        values = torch.nn.utils.rnn.pad_sequence([item["values"] for item in items], batch_first=True)
    else:
        values = torch.cat([item["values"] for item in items])
    longest = max(1, *(len(item["tokens"]) for item in items))
    tokens = torch.full((len(items), longest), NOTHING)
    for row, item in zip(tokens, items, strict=True):
        row[: len(item["tokens"])] = torch.tensor(item["tokens"], dtype=torch.long)
    return {"values": values, "mask": mask, "label": torch.tensor([i["label"] for i in items]), "tokens": tokens}
