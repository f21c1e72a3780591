"""What the commands of every app share: types of flags, and the printing of `inspect` and `check`.

Nothing heavy is imported here: modules that hold commands read this at their top.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from core.errors import InputError

Device = Annotated[str, Parameter(help="auto, cpu, cuda, cuda:1 or mps.")]
Precision = Literal["32", "bf16", "16"]
Many = Parameter(consume_multiple=True)  # a list flag that takes several words


@dataclass(frozen=True)
class Checked:
    """A data set's state.

    Attributes:
        facts: name -> value, for people.
        problems: what must be mended before training, a sentence each.
        remarks: what is worth knowing.
    """

    facts: dict[str, str]
    problems: list[str]
    remarks: list[str]

    @property
    def good(self) -> bool:
        return not self.problems


def show(title: str, values: Mapping[str, object]) -> None:
    """Print a table of names and values under a title; what is None or empty is left out."""
    print(title)
    width = max(map(len, values), default=0)
    for key, value in values.items():
        if value not in (None, "", (), []):
            text = "; ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            print(f"  {key.ljust(width)}  {text}")


def inspect(files: Sequence[Path], read: Callable[[Path], Mapping[str, Any]]) -> int:
    """Show what each file holds; of several, the bad ones are listed at the end. Returns the exit code.

    Raises InputError where no file is named, and whatever `read` raises for a single one.
    """
    from core import batch

    if not files:
        raise InputError("name a file to inspect")
    if len(files) == 1:
        show(str(files[0]), read(files[0]))
        return 0
    with batch.Log(len(files), None) as log:
        for answer in batch.each(files, lambda: read):
            if isinstance(answer, batch.Done):
                show(answer.item, answer.result)
            log.add(answer)
    return log.code


def checked(data: Path, found: Checked) -> int:
    """Print a data set's state. Returns the exit code: 1 where something must be mended."""
    show(str(data), found.facts)
    for line in found.remarks:
        print(f"note: {line}")
    for line in found.problems:
        print(f"problem: {line}")
    count = len(found.problems)
    print("ready to train" if found.good else f"{count} problem{'s' if count > 1 else ''}")
    return 0 if found.good else 1
