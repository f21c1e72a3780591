"""The demonstration's page: a section from each app, one file that holds its pictures in itself."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from core import pictures
from core.files import write_text

SECTIONS = "sections"
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: #1c1c1c }
h1 { margin-bottom: 0 } h2 { margin-top: 2.5rem; border-top: 1px solid #ccc; padding-top: 1rem }
td, th { padding: .25rem .7rem; text-align: left; vertical-align: middle }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums } tr { border-bottom: 1px solid #ddd }
table { border-collapse: collapse; margin: 1rem 0 } figure { margin: 1rem 0 } figure img { max-width: 100% }
figcaption, .note { color: #555 } code { background: #f2f2f2; padding: .1rem .3rem }
img.small { width: 112px; height: 112px; display: block }
"""


@dataclass(frozen=True)
class Figure:
    picture: NDArray[np.uint8]  # (H, W) or (H, W, 3)
    caption: str


@dataclass(frozen=True)
class Table:
    """Rows of texts and numbers; the first row heads it."""

    rows: Sequence[Sequence[str | float | None]]
    caption: str = ""


@dataclass(frozen=True)
class Section:
    """What one app shows.

    Attributes:
        name: of its file, "medical-segment".
        title: its heading.
        text: paragraphs.
        parts: figures and tables, in order.
        commands: that made what is shown, as a user types them.
    """

    name: str
    title: str
    text: Sequence[str]
    parts: Sequence[Figure | Table]
    commands: Sequence[str] = field(default_factory=tuple)

    def html(self) -> str:
        body = [f"<h2>{html.escape(self.title)}</h2>", *(f"<p>{html.escape(t)}</p>" for t in self.text)]
        body += [_figure(p) if isinstance(p, Figure) else _table(p) for p in self.parts]
        body += [f"<p><code>{html.escape(c)}</code></p>" for c in self.commands]
        return "\n".join(body) + "\n"


def _figure(figure: Figure) -> str:
    words = html.escape(figure.caption)
    return (
        f'<figure><img src="{pictures.inline(figure.picture)}" alt="{words}"><figcaption>{words}</figcaption></figure>'
    )


def _table(table: Table) -> str:
    head, *rows = table.rows
    numbers = [all(isinstance(r[i], float | int) or r[i] is None for r in rows) for i in range(len(head))]
    lines = ["<tr>" + "".join(_cell(c, n, "th") for c, n in zip(head, numbers, strict=True)) + "</tr>"]
    lines += ["<tr>" + "".join(_cell(c, n, "td") for c, n in zip(r, numbers, strict=True)) + "</tr>" for r in rows]
    words = f"<p class='note'>{html.escape(table.caption)}</p>" if table.caption else ""
    return f"<table>{''.join(lines)}</table>{words}"


def _cell(value: str | float | None, number: bool, kind: str) -> str:
    text = "-" if value is None else f"{value:.3f}" if isinstance(value, float) else html.escape(str(value))
    return f"<{kind} class='n'>{text}</{kind}>" if number else f"<{kind}>{text}</{kind}>"


def add(out: Path, section: Section) -> Path:
    """Write a section beside those of other apps and make the page anew from all of them; returns the page's path."""
    add_html(out, section.name, section.html())
    return assemble(out)


def add_html(out: Path, name: str, content: str) -> None:
    """A section that is made of HTML already."""
    write_text(out / SECTIONS / f"{name}.html", content)


def assemble(out: Path) -> Path:
    """index.html out of all sections in `out`."""
    parts = [p.read_text(encoding="utf-8") for p in sorted((out / SECTIONS).glob("*.html"))]
    text = (
        "<!doctype html><html lang='en'><meta charset='utf-8'><title>Glocal</title>"
        f"<style>{STYLE}</style><body><h1>Glocal</h1>"
        "<p class='note'>What each app does with its sample set, trained on this machine just now. Samples are small "
        "and mostly made: they show that everything works, not how good it is on your data.</p>"
        f"{''.join(parts)}<p class='note'>Made by <code>make demo</code>.</p></body></html>\n"
    )
    write_text(out / "index.html", text)
    return out / "index.html"
