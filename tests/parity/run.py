"""Checks every golden vector in a folder against the house.

    python tests/parity/run.py [DIR] [--dtype float64|float32] [--only PATTERN] [--table FILE]

For each `system--variant.json` it builds our network from the authors' arguments and parameter names, fills it by the
vector's recipe, and prints parameters (ours/published) and the largest error of each output relative to its spread.
Writes TABLE.md into DIR (or FILE), and exits with 1 if a vector fails or nobody claims it.

A system is claimed by `adapters/<system>.py` or, without one, by the family `core/backbones/<system>.py`. An adapter
may define
    model(fixture, dtype) -> nn.Module | None           default: the family's network, filled
    answers(model, fixture, dtype) -> {output: Tensor}  default: stageN, featN and logits
    check(document) -> {output: error}                  for files of another form (no "state")
    LATER = {regex of output: why it is not served yet} outputs that are reported as open, not as failures
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import sys
import traceback
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from parity import Fixture

from core import registry
from core.weights import choose, convert, head_classes

RTOL = {torch.float64: 1e-4, torch.float32: 1e-3}


@dataclass
class Outcome:
    """What one vector gave."""

    path: Path
    system: str
    variant: str
    ours: int | None = None
    published: int | None = None
    errors: dict[str, float] = field(default_factory=dict)
    later: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return not self.failures

    @property
    def worst(self) -> float:
        return max(self.errors.values(), default=float("nan"))


def adapter(system: str) -> ModuleType | None:
    """The module that claims a system, None where nobody wrote one."""
    path = HERE / "adapters" / f"{system.replace('-', '_')}.py"
    if not path.exists():
        return None
    spec = importlib.util.spec_from_file_location(f"parity_adapter_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def filled(family: str, fixture: Fixture, dtype: torch.dtype, *, prefix: str = "", classes: int | None = None,
           **config: Any) -> nn.Module:  # fmt: skip
    """Our network of `family` from a fixture's arguments and parameter names, filled by its recipe.

    Args:
        family: a file of core/backbones.
        fixture: the vector.
        dtype: of the network.
        prefix: take the published names that start so, and cut it off (a tower inside a larger network).
        classes: build the classifier; by default where the state has a head and no prefix is given. 0 for none.
        config: settings over those read from the fixture.
    """
    from dataclasses import replace

    module = registry.family(family)
    state = {n.removeprefix(prefix): v for n, v in fixture.state_dict().items() if n.startswith(prefix)}
    shapes = {n: tuple(v.shape) for n, v in state.items()}
    backbone = registry.build(module, replace(module.from_published(fixture.build, shapes), **config))
    keymap = choose(module.PUBLISHED, shapes)
    if classes is None and not prefix:
        classes = head_classes(state, keymap)
    model = registry.classifier(backbone, classes) if classes else backbone
    model.load_state_dict(convert(state, keymap, model, part="" if classes else "backbone."))
    return model.to(dtype).eval()


def pyramid_answers(model: Any, fixture: Fixture, dtype: torch.dtype) -> dict[str, Tensor]:
    """stageN and featN from the pyramid, logits from the classifier; grad_image and grad:NAME of their mean square."""
    image = fixture.input(next(iter(fixture.inputs))).to(dtype)
    if any(name.startswith("grad") for name in fixture.outputs):
        return _gradients(model, fixture, image.requires_grad_())
    backbone = getattr(model, "backbone", model)
    levels = backbone(image)
    found = {f"{kind}{i}": level for i, level in enumerate(levels, 1) for kind in ("stage", "feat")}
    if backbone is not model:
        found["logits"] = model(image)
    return {name: value for name, value in found.items() if name in fixture.outputs}


def _gradients(model: Any, fixture: Fixture, image: Tensor) -> dict[str, Tensor]:
    """Of the mean squared logit, with respect to the image and to parameters by their published names."""
    logits = model(image)
    logits.square().mean().backward()
    assert image.grad is not None
    found = {"logits": logits, "grad_image": image.grad}
    module = registry.family(fixture.system.replace("-", "_"))
    ours, keymap = dict(model.named_parameters()), choose(module.PUBLISHED, fixture.state)
    for output in fixture.outputs:
        published = output.removeprefix("grad:")
        if published in fixture.state:
            gradient = ours[keymap.name(published)].grad
            assert gradient is not None
            found[output] = gradient.reshape(fixture.state[published])  # a 1x1 convolution may be a matrix here
    return found


def check(path: Path, dtype: torch.dtype | None = None) -> Outcome:
    """Run one vector."""
    document = json.loads(path.read_text())
    system = document.get("system") or path.name.split("--")[0]
    outcome = Outcome(path, system, document.get("variant") or path.stem.split("--")[-1])
    claim = adapter(system)
    if claim is None and system.replace("-", "_") not in registry.families():
        outcome.failures.append(f"nobody claims {system}: no tests/parity/adapters/{system.replace('-', '_')}.py")
        return outcome
    try:
        if claim is not None and not document.get("state") and hasattr(claim, "check"):
            outcome.errors.update(claim.check(document))
            return outcome
        fixture = Fixture(**document)
        kind = dtype or fixture.dtype
        _compare(outcome, fixture, claim, kind)
    except Exception as error:  # one broken vector must not hide the others
        outcome.failures.append(f"{type(error).__name__}: {error}")
        outcome.failures.append(traceback.format_exc(limit=-3))
    return outcome


def _compare(outcome: Outcome, fixture: Fixture, claim: ModuleType | None, dtype: torch.dtype) -> None:
    make = getattr(claim, "model", None) or (lambda f, d: filled(f.system.replace("-", "_"), f, d))
    answer = getattr(claim, "answers", None) or pyramid_answers
    model = make(fixture, dtype)
    grad = any(name.startswith("grad") for name in fixture.outputs)
    with torch.set_grad_enabled(grad):
        values = answer(model, fixture, dtype)
    if model is not None:
        outcome.ours = sum(p.numel() for p in model.parameters())
    outcome.published = fixture.params
    later: dict[str, str] = getattr(claim, "LATER", {})
    for name in fixture.outputs:
        if name in values:
            try:
                outcome.errors[name] = fixture.compare(name, values[name], RTOL[dtype])
            except AssertionError as error:
                outcome.failures.append(str(error))
        elif why := next((w for pattern, w in later.items() if re.fullmatch(pattern, name)), None):
            outcome.later[name] = why
        else:
            outcome.failures.append(f"{fixture.variant}.{name}: no answer")
    if not outcome.errors and not outcome.failures:
        outcome.failures.append("no output is served")
    # Where every output is served the network is the whole published one, and its size must be, too.
    if not outcome.later and outcome.ours is not None and outcome.published not in (None, 0, outcome.ours):
        outcome.failures.append(f"{outcome.ours:,} parameters, published {outcome.published:,}")


def table(outcomes: list[Outcome]) -> str:
    """A Markdown table of all outcomes."""
    head = ["system", "vector", "parameters ours / published", "outputs", "largest error", ""]
    rows = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for o in outcomes:
        counts = f"{o.ours or 0:,} / {o.published or 0:,}"
        served = f"{len(o.errors)} of {len(o.errors) + len(o.later)}" if o.later else str(len(o.errors))
        verdict = "pass" if o.passed and not o.later else "pass, part" if o.passed else "FAIL"
        rows.append(f"| {o.system} | {o.variant} | {counts} | {served} | {o.worst:.1e} | {verdict} |")
    return "\n".join(rows) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=HERE, metavar="DIR")
    parser.add_argument("--dtype", choices=["float64", "float32"], help="by default what each vector asks for")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="file names to take, as in 'swin--*'")
    parser.add_argument("--table", type=Path, metavar="FILE", help="where the table goes (default DIR/TABLE.md)")
    given = parser.parse_args(argv)
    found = sorted(given.folder.glob("*.json"))
    paths = [p for p in found if fnmatch(p.name, given.only) or fnmatch(p.stem, given.only)]
    if not paths:
        print(f"{given.folder}: no vector matches {given.only!r}", file=sys.stderr)
        return 1
    outcomes = []
    for path in paths:
        outcome = check(path, getattr(torch, given.dtype) if given.dtype else None)
        outcomes.append(outcome)
        status = "ok  " if outcome.passed else "FAIL"
        print(f"{status} {outcome.system} {outcome.variant}  parameters {outcome.ours}/{outcome.published}", flush=True)
        for name, error in outcome.errors.items():
            print(f"       {name:<32} {error:.2e}")
        if outcome.later:
            why = "; ".join(sorted(set(outcome.later.values())))
            print(f"       not served yet: {len(outcome.later)} of {len(outcome.later) + len(outcome.errors)} ({why})")
        for failure in outcome.failures:
            print(f"       {failure}")
    target = given.table or given.folder / "TABLE.md"
    try:
        target.write_text(table(outcomes))
    except OSError as error:
        print(f"{target}: table not written ({error.strerror}); --table FILE puts it elsewhere", file=sys.stderr)
    failed = [o for o in outcomes if not o.passed]
    print(f"{len(outcomes) - len(failed)} passed, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
