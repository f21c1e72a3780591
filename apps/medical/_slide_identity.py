"""What a slide's header says of a person, a case or a day, and names for results that hold none of it."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from apps.medical._nifti import stem
from apps.medical._scan import quiet
from apps.medical._slide_levels import opened
from core.errors import InputError

# Fields of headers that name a person, a case or a day; of names each word counts, of the others the whole.
_NAMES = re.compile(r"patient|first ?name|last ?name|user ?name|operator|experimenter|physician", re.I)
_NUMBERS = re.compile(r"accession|barcode|mrn|case ?id|case ?number|birth|\bdob\b|date|\buser\b", re.I)
_SHORTEST = 3  # a shorter word of a header is found in many names


def safe_id(path: Path) -> str:
    """The file's name, or a hash in its place where it repeats what the header says of a person."""
    name = stem(path)
    low = f" {_plain(name)} "
    if any(f" {word} " in low for word in identifiers(path)):
        return "slide-" + hashlib.sha256(f"slide {name}".encode()).hexdigest()[:10]
    return name


def identifiers(path: str | Path) -> list[str]:
    """What a slide's header says of persons, cases and days: words that must not leave.

    In small letters, with a blank in place of every other sign than letters and digits.
    """
    try:
        with opened(Path(path)) as file, quiet():
            text = "|".join(str(page.aspage().tags.valueof(270, default="")) for page in list(file.pages)[:16])
    except InputError:
        return []
    found: set[str] = set()
    for key, value in re.findall(r"([A-Za-z][\w .]*?)\s*=\s*\"?([^|\"\r\n<>]+)", text):
        plain = _plain(value)
        if _NAMES.search(key):
            found |= {plain, *plain.split()}
        elif _NUMBERS.search(key):
            found.add(plain)
    return sorted(w for w in found if len(w) >= _SHORTEST)


def _plain(words: str) -> str:
    return re.sub(r"[^0-9a-z]+", " ", words.casefold()).strip()
