"""The command `glocal`: networks and data sets of core, and the verbs of every domain found in this folder.

A domain is a folder with `__init__.py`, whose docstring's first line says what it is, and `cli.py` with a cyclopts
`app` named as the folder (with "-" for "_"). Only the domain that is called is imported; overview and help read the
files instead.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cyclopts import App, CycloptsError
from cyclopts.exceptions import UnknownCommandError, UnusedCliTokensError

import core
from core import table
from core.data import cards
from core.errors import InputError, UnknownNameError
from core.files import DiskFullError

HERE = Path(__file__).resolve().parent
DEBUG = "--debug"


@dataclass(frozen=True)
class Domain:
    """A folder of apps, as its files say without being imported."""

    module: str  # of its commands
    name: str  # as a command
    summary: str
    commands: tuple[str, ...]


def domains(folder: Path = HERE, package: str = "apps") -> list[Domain]:
    """The domains in a folder, by name."""
    found = []
    for path in sorted(folder.iterdir()):
        if (path / "__init__.py").is_file() and (path / "cli.py").is_file():
            docstring = ast.get_docstring(ast.parse((path / "__init__.py").read_text(encoding="utf-8"))) or ""
            summary = docstring.splitlines()[0] if docstring else ""
            module = f"{package}.{path.name}.cli"
            commands = _commands(ast.parse((path / "cli.py").read_text(encoding="utf-8")))
            found.append(Domain(module, _dashed(path.name), summary, commands))
    return found


def _commands(tree: ast.Module) -> tuple[str, ...]:
    """Names of the commands that `app` gets in a source file: decorated functions and joined groups."""
    names = []
    groups: dict[str, str] = {}  # variable -> name of the App in it
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            marks = [m for m in node.decorator_list if _is_command(m.func if isinstance(m, ast.Call) else m)]
            names += [_keyword(m, "name") or _dashed(node.name) for m in marks]
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            groups[node.targets[0].id] = _keyword(node.value, "name")
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and _is_command(node.value.func):
            first = node.value.args[0] if node.value.args else None
            group = groups.get(first.id, "") if isinstance(first, ast.Name) else ""
            names.append(_keyword(node.value, "name") or group)
    return tuple(n for n in names if n)


def _is_command(node: ast.expr) -> bool:
    """Whether this is `app.command`."""
    return (
        isinstance(node, ast.Attribute)
        and node.attr == "command"
        and isinstance(node.value, ast.Name)
        and node.value.id == "app"
    )


def _keyword(node: ast.expr, name: str) -> str:
    for keyword in node.keywords if isinstance(node, ast.Call) else ():
        if keyword.arg == name and isinstance(keyword.value, ast.Constant) and isinstance(keyword.value.value, str):
            return keyword.value.value
    return ""


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def build(folder: Path = HERE, package: str = "apps") -> App:
    """The root command with every domain of a folder, none of them imported; `glocal models` knows their networks."""
    facts = folder / "models.json"
    table.SOURCES[:] = [facts] if facts.exists() else []
    app = App(
        name="glocal",
        help="Local-global vision models for every field.",
        help_epilogue="--debug anywhere shows the traceback of an error.",
        version=core.__version__,
        help_format="plaintext",  # Markdown costs a third of the time of --help
    )
    app.command("core.cli:models", name="models", help="Networks: list, info, bench, export.")
    app.command("core.cli:datasets", name="datasets", help="Data sets: list, info, verify, sample.")
    found = domains(folder, package)
    for domain in found:
        app.command(f"{domain.module}:app", name=domain.name, help=domain.summary)

    @app.command(name="demo")
    def demo(*, out: Path = Path("demo"), full: bool = False) -> int:
        """Run every app once on its sample set and write a page of pictures, curves and numbers.

        Args:
            out: folder of index.html.
            full: train each for some minutes instead of one.
        """
        return demonstrate(out, full=full)

    @app.default
    def overview() -> None:
        """Show domains, networks and data sets."""
        rows = table.load()
        families = {r.name.partition("/")[0] for r in rows}
        print("glocal: local-global vision models for every field\n")
        print("domains" if found else "domains   none yet")
        width = max((len(d.name) for d in found), default=0)
        for domain in found:
            print(f"  {domain.name.ljust(width)}  {domain.summary}")
            print(f"  {'':{width}}  {' '.join(domain.commands)}")
        known = cards.names()
        counted = f"{len(rows)} (families: {len(families)})"
        print(f"models    {counted.ljust(20)}  glocal models list")
        networks = [r.name for r in table.known() if r.module]
        if networks:
            print(f"networks  {str(len(networks)).ljust(20)}  of the domains, in the same list")
        print(f"datasets  {str(len(known)).ljust(20)}  {'glocal datasets list' if known else 'no cards found'}")
        print("\nglocal --help, glocal models --help and so on say what each command takes.")

    return app


def demos(folder: Path = HERE) -> list[tuple[str, ...]]:
    """The commands, without `demo`, of every app that has a demonstration (a file demo.py): ("medical", "segment")."""
    found = []
    for path in sorted(folder.glob("*/**/demo.py")):
        domain, *inner = path.parent.relative_to(folder).parts
        init = ast.parse((path.parent / "__init__.py").read_text(encoding="utf-8"))
        task = next((_text(n) for n in init.body if isinstance(n, ast.Assign) and _target(n) == "TASK"), "")
        found.append((_dashed(domain), *((task.split() or [_dashed(p) for p in inner]) if inner else ())))
    return found


def _target(node: ast.Assign) -> str:
    return node.targets[0].id if isinstance(node.targets[0], ast.Name) else ""


def _text(node: ast.Assign) -> str:
    return node.value.value if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str) else ""


def demonstrate(out: Path, *, full: bool) -> int:
    """Run every app's demonstration and the networks' part, each in a process of its own; the exit code."""
    code = 0
    for command in demos():
        print(f"glocal {' '.join(command)} demo", flush=True)
        tokens = [*command, "demo", "--out", str(out), *(["--full"] if full else [])]
        code |= subprocess.run([sys.executable, "-m", "apps", *tokens], check=False).returncode != 0
    code |= subprocess.run([sys.executable, "-m", "core.reach", "--out", str(out)], check=False).returncode != 0
    return code


def run(app: App, tokens: Sequence[str]) -> int:
    """Run one command and return the exit code: 0, 1 for a failure, 2 for a user's mistake, 130 for Ctrl-C."""
    debug, given = _without_debug(tokens)
    with warnings.catch_warnings():
        if not debug:
            warnings.showwarning = _warn
        try:
            result = app(given, exit_on_error=False, print_error=False, result_action="return_value")
            sys.stdout.flush()
        except KeyboardInterrupt:
            return 130
        except BrokenPipeError:  # the reader (head, less) has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        except SystemExit as stop:
            return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except Exception as caught:
            if debug:
                import traceback

                traceback.print_exc()
            # cyclopts wraps what a domain's import raises; the cause is what the user should know
            error = caught.__cause__ if isinstance(caught, ImportError) and caught.__cause__ else caught
            print(f"glocal: {sentence(error)}", file=sys.stderr)
            users = isinstance(error, InputError | CycloptsError) and not isinstance(error, DiskFullError)
            return 2 if users else 1
    return result if isinstance(result, int) and not isinstance(result, bool) else 0


def _without_debug(tokens: Sequence[str]) -> tuple[bool, list[str]]:
    """Take `--debug` out, wherever it stands before a bare "--"."""
    end = tokens.index("--") if "--" in tokens else len(tokens)
    kept = [t for t in tokens[:end] if t != DEBUG]
    return len(kept) < end, [*kept, *tokens[end:]]


def sentence(error: BaseException) -> str:
    """What to say of an error, on one line."""
    if isinstance(error, UnknownCommandError | UnusedCliTokensError) and error.app is not None and error.unused_tokens:
        first = error.unused_tokens[0]
        known = [name for name in error.app if not name.startswith("-")]
        return str(UnknownNameError("command", first, known)) if known else f"{first!r} is one argument too many"
    if isinstance(error, CycloptsError):
        error.verbose = False
        words = " ".join(str(error).split()).rstrip(".")
        words = re.sub(r"[.:] ([A-Z])", lambda m: "; " + m[1].lower(), words)  # one sentence of several
        return words[:1].lower() + words[1:]
    words = " ".join(str(error).split())
    if isinstance(error, InputError):
        return words
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror[:1].lower()}{error.strerror[1:]}"
    kind = type(error).__name__
    told = f"{kind}: {words}" if words else kind
    return f"{told} (the traceback: again with {DEBUG})"


def _warn(message: Warning | str, category: type[Warning], filename: str, *_: Any, **__: Any) -> None:
    """Our own warnings as one line; those of packages below us are for developers, who run with --debug."""
    path = Path(filename).resolve()
    if path.is_relative_to(HERE) or path.is_relative_to(Path(core.__file__).resolve().parent):
        print(f"glocal: {message}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: `glocal ...` or `python -m apps ...`."""
    return run(build(), list(sys.argv[1:] if arguments is None else arguments))


def domain() -> int:
    """`glocal-medical ...`: the domain's commands under its own name."""
    return main([Path(sys.argv[0]).stem.removeprefix("glocal-"), *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
