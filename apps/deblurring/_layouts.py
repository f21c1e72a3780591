"""The layouts of pairs on disk: each reader gives the pairs that it finds, or None where the folder is not its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from core.errors import FileError

ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
_PARTS = ("train", "val", "test")
_PLAIN = (("blur", "sharp"), ("input", "target"), ("blurred", "sharp"), ("blur", "gt"))
Entry = tuple[str, Path, Path | None, Path | None, str]  # id, blurred, sharp, mask, group


@dataclass
class Parts:
    """What a layout's reader found.

    Attributes:
        found: part -> entries.
        missing: arguments of a FileError for each picture without its partner.
        name: of the layout, where it is more than the reader's.
    """

    found: dict[str, list[Entry]] = field(default_factory=dict)
    missing: list[tuple[Path, str, str]] = field(default_factory=list)
    name: str = ""

    def add(self, part: str, id: str, blurred: Path, sharp: Path, mask: Path | None, group: str) -> None:
        """An entry, if its sharp partner is there."""
        if sharp.is_file():
            self.found.setdefault(part, []).append((id, blurred, sharp, mask, group))
        else:
            self.missing.append((blurred, f"has no sharp partner {sharp.parent.name}/{sharp.name}", "add it"))

    def lonely(self, sharp: Iterator[Path], taken: set[Path], right: str) -> None:
        """Sharp pictures that no blurred one asked for."""
        self.missing += [(p, "has no blurred partner", right) for p in sharp if p not in taken]


def reloblur(folder: Path) -> Parts | None:
    """Pairs in a folder each, masks in a tree of their own."""
    root = folder / "dataset" if (folder / "dataset").is_dir() else folder
    parts, seen = Parts(), False
    for part in _PARTS:
        for place in sorted((root / part).glob("*/*/")):
            blurred = [p for p in pictures(place) if p.stem.endswith("_blur")]
            sharp = {p.stem.removesuffix("_sharp"): p for p in pictures(place) if p.stem.endswith("_sharp")}
            seen = seen or bool(blurred or sharp)
            for path in blurred:
                name = path.stem.removesuffix("_blur")
                inner = place.relative_to(root / part)
                masks = folder / "masks" / part / inner
                mask = partner(masks, name)
                want = sharp.pop(name, path.with_name(f"{name}_sharp{path.suffix}"))
                scene = f"{part}/{inner.parts[0]}"
                parts.add(part, f"{part}/{inner.as_posix()}", path, want, mask, scene)
            parts.missing += [(p, "has no blurred partner", "add NN_blur.png") for p in sharp.values()]
    return parts if seen else None


def gopro(folder: Path) -> Parts | None:
    """Scenes of frames; the pictures without gamma correction are taken."""
    parts, seen = Parts(), False
    for part in _PARTS:
        for scene in sorted(p for p in (folder / part).glob("*/") if (p / "blur").is_dir() and (p / "sharp").is_dir()):
            seen = True
            _equal_names(parts, part, scene / "blur", scene / "sharp", None, f"{part}/{scene.name}", by_scene=True)
    return parts if seen else None


def hide(folder: Path) -> Parts | None:
    """Blurred pictures by part, all sharp ones in GT/; a picture is its own scene, since the names do not say more."""
    sharp = folder / "GT"
    if not sharp.is_dir():
        return None
    parts = Parts()
    places = [("train", folder / "train"), *(("test", p) for p in sorted((folder / "test").glob("test-*/")))]
    if not any(place.is_dir() for _, place in places):
        return None
    for part, place in places:
        for path in pictures(place):
            name = f"{place.name}/{path.stem}"
            parts.add(part, name, path, partner(sharp, path.stem) or sharp / path.name, None, name)
    return parts


def realblur(folder: Path) -> Parts | None:
    """Parts by the lists that come with the pictures: a line names the sharp and the blurred one."""
    for kind in "JR":
        lists = {part: folder / f"RealBlur_{kind}_{part}_list.txt" for part in ("train", "test")}
        if not any(path.is_file() for path in lists.values()):
            continue
        parts = Parts(name=f"RealBlur-{kind}")
        for part, path in lists.items():
            lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
            for number, line in enumerate(filter(str.strip, lines), 1):
                words = line.split()
                if len(words) < 2:
                    raise FileError(path, f"line {number} names one file", "each names the sharp and the blurred one")
                sharp, blurred = (_inside(folder, word, path) for word in words[:2])
                if not blurred.is_file():
                    parts.missing.append((path, f"line {number} names {words[1]}, which does not exist", "add it"))
                    continue
                scene = blurred.parent.parent.name
                parts.add(part, f"{scene}/{blurred.stem}", blurred, sharp, None, scene)
        return parts
    return None


def plain(folder: Path) -> Parts | None:
    """blur/ + sharp/ (+ masks/) with equal names."""
    parts, seen = Parts(), False
    for part, place in _places(folder):
        for first, second in _PLAIN:
            if (place / first).is_dir() and (place / second).is_dir():
                seen = True
                _equal_names(parts, part, place / first, place / second, place / "masks", "", by_scene=False)
                break
    return parts if seen else None


def npy(folder: Path) -> Parts | None:
    """LMD-ViT's evaluation files; which scene one is of is not said."""
    parts = Parts()
    for part, place in _places(folder):
        for path in sorted(place.glob("*.npy")):
            name = path.stem if place == folder else f"{part}/{path.stem}"
            parts.found.setdefault(part if place != folder else "test", []).append((name, path, path, path, name))
    return parts if parts.found else None


def photographs(folder: Path) -> Parts | None:
    """Pictures that have no sharp partner."""
    alone = pictures(folder)
    entries: list[Entry] = [(p.stem, p, None, None, p.stem) for p in alone]
    return Parts({"test": entries}) if entries else None


LAYOUTS: dict[str, Callable[[Path], Parts | None]] = {
    "ReLoBlur": reloblur,
    "GoPro": gopro,
    "HIDE": hide,
    "RealBlur": realblur,
    "blur + sharp": plain,
    "LMD-ViT's files": npy,
    "photographs alone": photographs,
}


def pictures(folder: Path) -> list[Path]:
    """The pictures of a folder by name; none where there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in ENDINGS and p.name[0] != "." and p.is_file())


def partner(folder: Path, stem: str) -> Path | None:
    """The picture of that name in a folder, whatever its ending."""
    return next((path for e in ENDINGS if (path := folder / f"{stem}{e}").is_file()), None)


def _places(folder: Path) -> list[tuple[str, Path]]:
    """Part and folder: by name; without one for training, what lies at the top is."""
    top = folder / "train" if (folder / "train").is_dir() else folder
    return [("train", top), *((part, folder / part) for part in _PARTS[1:])]


def _equal_names(
    parts: Parts, part: str, blurred: Path, sharp: Path, masks: Path | None, group: str, *, by_scene: bool
) -> None:
    taken = set()
    for path in pictures(blurred):
        want = partner(sharp, path.stem) or sharp / path.name
        mask = None if masks is None else partner(masks, path.stem)
        name = f"{group or part}/{path.stem}"
        parts.add(part, name, path, want, mask, group if by_scene else name)
        taken.add(want)
    parts.lonely(iter(pictures(sharp)), taken, f"add one to {blurred.name}/")


def _inside(folder: Path, name: str, where: Path) -> Path:
    """A path that a list names, which may not lead out of the folder."""
    pure = PurePosixPath(name)
    full = folder / pure
    if pure.is_absolute() or ".." in pure.parts or not full.resolve().is_relative_to(folder.resolve()):
        raise FileError(where, f"names {name!r}", "paths in it stay inside its own folder")
    return full
