"""What every app has in common, found by itself: commands, help, files, the result's and the pipeline's form."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import apps
from apps.__main__ import demos, domains, main

HERE = Path(apps.__file__).parent
VERBS = {"inspect", "check", "train", "import", "evaluate", "compare", "predict", "export", "serve", "demo"}
FILES = {"__init__", "cli", "data", "metrics", "model", "pipeline", "results", "train", "demo"}
COMMANDS = demos()


def folder(command: tuple[str, ...]) -> Path:
    """Of an app with a command path."""
    found = [p.parent for p in HERE.glob("*/**/demo.py") if _task(p.parent) == command]
    assert len(found) == 1
    return found[0]


def _task(path: Path) -> tuple[str, ...]:
    domain, *inner = path.relative_to(HERE).parts
    module = import_module(".".join(("apps", domain, *inner)))
    return (domain.replace("_", "-"), *(module.TASK.split() if inner else ()))


def test_there_are_apps() -> None:
    assert COMMANDS
    assert {c[0] for c in COMMANDS} <= {d.name for d in domains()}


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_verbs_are_the_same_everywhere(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--help"]) == 0
    told = capsys.readouterr().out
    assert {w for w in VERBS if f" {w} " in told} == VERBS
    for verb in VERBS:
        assert main([*command, verb, "--help"]) == 0
        help = capsys.readouterr().out
        if verb in ("train", "evaluate", "compare", "predict"):
            assert "--device" in help
        if verb in ("evaluate", "compare", "predict"):
            assert "--precision" in help


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_files_are_the_same_everywhere(command: tuple[str, ...]) -> None:
    home = folder(command)
    assert {p.stem for p in home.glob("*.py")} >= FILES
    assert (home / "README.md").is_file()
    for path in home.glob("*.py"):
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), f"{path.name} says nothing of itself"


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_pipeline_and_result_have_the_contracts_form(command: tuple[str, ...]) -> None:
    module = import_module(".".join(("apps", *folder(command).relative_to(HERE).parts)))
    for name in ("load", "__call__", "many", "fit", "evaluate", "export"):
        assert callable(getattr(module.Pipeline, name))
    results = import_module(f"{module.__name__}.results")
    kinds = [k for k in vars(results).values() if isinstance(k, type) and k.__module__ == results.__name__]
    assert any(all(hasattr(k, n) for n in ("save", "draw", "as_dict")) for k in kinds)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_imports_nothing_heavy(command: tuple[str, ...]) -> None:
    code = (
        "import sys; from apps.__main__ import main; "
        f"main([*{command!r}, 'train', '--help']); "
        "heavy = {'torch', 'lightning', 'monai', 'nibabel', 'pydicom', 'rasterio', 'scipy'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_missing_file_is_one_sentence(
    command: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "inspect", str(tmp_path / "none.bin")]) == 2
    told = capsys.readouterr().err.strip()
    assert "none.bin" in told
    assert "\n" not in told
