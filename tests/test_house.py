"""The house's own rules: no side effects, import contracts, every vector claimed, no code among the data."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import run

from core import registry

ROOT = Path(__file__).parent.parent

PROBE = """
import builtins, os, random, sys, warnings
warnings.simplefilter("error")
reads = []
before_env = dict(os.environ)
real_get, real_item = os.environ.__class__.get, os.environ.__class__.__getitem__
import numpy, torch  # what they read and change is theirs
state = (torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(), torch.initial_seed(),
         torch.are_deterministic_algorithms_enabled(), random.getstate(), warnings.filters[:], list(sys.path))
numbers = numpy.random.get_state()[1].tolist()
def note(key):
    frame = sys._getframe(2)
    while frame.f_code.co_filename.endswith("os.py") or frame.f_code.co_filename.startswith("<frozen"):
        frame = frame.f_back
    if "site-packages" not in frame.f_code.co_filename and f"{os.sep}core{os.sep}" in frame.f_code.co_filename:
        reads.append(key)
class Watched(os.environ.__class__):
    def __getitem__(self, key):
        note(key)
        return real_item(self, key)
    def get(self, key, default=None):
        note(key)
        return real_get(self, key, default)
os.environ.__class__ = Watched
import core, core.errors, core.config, core.weights, core.registry, core.protocols
for name in core.registry.families():
    if name not in ("resnet", "convnext"):  # those import another library, with habits of its own
        core.registry.family(name)
os.environ.__class__ = Watched.__mro__[1]
after = (torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(), torch.initial_seed(),
         torch.are_deterministic_algorithms_enabled(), random.getstate(), warnings.filters[:], list(sys.path))
assert after == state, "importing changed the process"
assert numpy.random.get_state()[1].tolist() == numbers
assert dict(os.environ) == before_env
assert reads == [], f"importing read the environment: {reads}"
print("clean")
"""


def test_importing_changes_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, cwd=ROOT / "tests")
    assert done.stdout == "clean\n", done.stderr[-2000:]
    assert done.stderr == ""


def test_importing_core_is_light() -> None:
    code = "import core, core.errors, core.config, core.facts, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_every_vector_is_claimed() -> None:
    for path in run.HERE.glob("*.json"):
        system = json.loads(path.read_text()).get("system") or path.name.split("--")[0]
        claimed = run.adapter(system) is not None or system.replace("-", "_") in registry.families()
        assert claimed, f"{path.name}: nobody claims {system}"


def test_every_adapter_has_a_vector() -> None:
    systems = {p.name.split("--")[0].replace("-", "_") for p in run.HERE.glob("*.json")}
    adapters = {p.stem for p in (run.HERE / "adapters").glob("*.py")}
    assert adapters - systems == set()


@pytest.mark.parametrize("family", registry.families())
def test_family_files_are_in_order(family: str) -> None:
    """A docstring with paper and reference; facts that name only variants that exist."""
    module = registry.family(family)
    text = module.__doc__ or ""
    assert "Paper" in text, f"{family}: the docstring names no paper"
    assert "Reference" in text, f"{family}: the docstring names no reference"
    assert set(module.FACTS.top1) <= set(module.VARIANTS), f"{family}: top-1 of an unknown variant"
    assert set(module.FACTS.size) <= set(module.VARIANTS), f"{family}: size of an unknown variant"
    assert not module.FACTS.reading or "Our reading:" in text


def test_no_code_among_the_data() -> None:
    assert list((ROOT / "datasets").rglob("*.py")) == []


def test_top_level_is_fixed() -> None:
    tracked = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    top = {name.split("/")[0] for name in tracked.stdout.splitlines()}
    allowed = {"pyproject.toml", "core", "apps", "datasets", "tests", "notebooks", "README.md", "Makefile", "LICENSE",
               "CHANGELOG.md"}  # fmt: skip
    assert {name for name in top if not name.startswith(".")} <= allowed
