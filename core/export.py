"""Networks as ONNX files of a fixed size, with a side file that says what goes in and what comes out."""

from __future__ import annotations

import copy
import json
import shutil
import warnings
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import core
from core import registry, weights
from core.checkpoints import read_checkpoint
from core.compression.fold import fold
from core.data.contract import published
from core.errors import InputError, MissingExtraError

BOUND = 1e-3  # of the output's spread: what onnxruntime may differ from torch
_EMBEDDED = 1_900_000_000  # bytes of weights that fit inside the file; past it they lie beside it (a limit of protobuf)


class ExportError(RuntimeError):
    """The exported file does not answer as the network does, or could not be made."""


@dataclass(frozen=True)
class Exported:
    """What `export` wrote.

    Attributes:
        path: the ONNX file.
        side: the JSON file beside it.
        exporter: "dynamo" or "torchscript".
        difference: largest one between onnxruntime and torch on a random input, relative to the output's spread.
    """

    path: Path
    side: Path
    exporter: str
    difference: float


def network(
    name: str, *, weights_file: Path | None = None, classes: int | None = None, size: tuple[int, ...] | None = None
) -> nn.Module:
    """The network to export, in evaluation mode.

    Args:
        name: "family/variant".
        weights_file: the authors' file or one of ours (core.weights.save); random weights without it.
        classes: of the classifier; by default the file's own, and without a file the bare backbone.
        size: rows and columns, where the variant is built for an image size.
    """
    _, config = registry.lookup(name)
    settings: dict[str, Any] = {}
    if size is not None and hasattr(config, "image_size") and size != _sides(config.image_size):
        settings["image_size"] = size if size[0] != size[1] else size[0]
    if weights_file is None:
        return registry.create(name, classes=classes, **settings).eval()
    if registry.is_network(name):
        return weights.load_published(name, weights_file, classes=classes, **settings)
    state = read_checkpoint(weights_file)
    ours = [registry.create(name, **settings)]
    if "head.fc.weight" in state:
        ours.append(registry.classifier(ours[0], state["head.fc.weight"].shape[0]))
    for model in ours:
        if state.keys() == model.state_dict().keys():
            have = None if model is ours[0] else int(state["head.fc.weight"].shape[0])
            if classes not in (None, have):
                raise InputError(f"{weights_file}: has {have or 'no'} classes, {classes} were asked for")
            weights.load(model, weights_file)
            return model.eval()
    return weights.load_published(name, weights_file, classes=classes, **settings)


def _sides(size: int | Sequence[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def ready(path: Path) -> None:
    """Raise what would stop an export to `path`, before anything is built."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if find_spec(package) is None:
            raise MissingExtraError(package, "export")
    if path.suffix != ".onnx":
        raise InputError(f"{path}: the file's name must end in .onnx")
    if not path.parent.is_dir():
        raise InputError(f"{path}: no such folder as {path.parent}")


def export(
    model: nn.Module,
    path: str | Path,
    size: tuple[int, ...],
    *,
    name: str,
    batch: int = 1,
    bound: float = BOUND,
    contract: Mapping[str, Any] | None = None,
    output: str = "logits",
    meaning: str = "",
) -> Exported:
    """Write `model` as ONNX for images or clips (batch, C, *size), float32, and `<path>.json` beside it.

    Args:
        model: a backbone or a Classifier; exported in evaluation mode on the CPU.
        path: ends in .onnx; written aside, compared with torch by onnxruntime, then renamed.
        size: rows and columns in pixels, of clips frames before them.
        name: "family/variant", which decides the input contract.
        batch: images at once.
        bound: largest difference accepted, relative to the spread of the output.
        contract: what the side file says of the input, with the channels' names as `channels`; by default what is
            published for `name`.
        output: name of a network's only answer; a pyramid's are level0, level1 ...
        meaning: what the side file says of the output.

    Raises:
        MissingExtraError: onnx, onnxscript or onnxruntime is not installed.
        InputError: a path that cannot be written.
        ExportError: no exporter takes the network, or the file answers otherwise; nothing is left behind.
    """
    path = Path(path)
    ready(path)
    if contract is None:
        backbone: Any = getattr(model, "backbone", model)
        contract = published(name, getattr(backbone.config, "in_channels", 3), size).as_dict()
    image = torch.randn(batch, len(contract["channels"]), *size, generator=torch.Generator().manual_seed(0))
    model = copy.deepcopy(model).float().cpu().eval()  # the caller's stays as it is
    with torch.no_grad():
        answer = model(image)
    model = fold(model)  # batch norms into the convolutions beside them; compared with the answer from before
    answers = list(answer) if isinstance(answer, list | tuple) else [answer]
    outputs = [output] if isinstance(answer, Tensor) else [f"level{i}" for i in range(len(answers))]
    aside = path.with_name(path.name + ".part")  # a folder: large weights lie in a second file that the first names
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    side = path.with_suffix(".json")
    try:
        exporter = _write(model, image, aside / path.name, outputs)
        difference = _difference(aside / path.name, image, answers)
        if not difference <= bound:
            raise ExportError(
                f"{path}: not written, onnxruntime's answer differs from torch's by {difference:.2g} of its spread "
                f"(at most {bound:.0e} is accepted)"
            )
        about = _about(name, contract, meaning, image, outputs, answers, exporter, difference)
        (aside / side.name).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        for file in sorted(aside.iterdir(), key=lambda f: f.name == path.name):  # the network itself comes last
            file.replace(path.with_name(file.name))
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return Exported(path, side, exporter, difference)


def _write(model: nn.Module, image: Tensor, path: Path, outputs: list[str]) -> str:
    """Export by torch's current exporter, else by the one over TorchScript; says by which."""
    large = sum(p.numel() * p.element_size() for p in model.state_dict().values()) > _EMBEDDED
    names: dict[str, Any] = {"input_names": ["image"], "output_names": outputs, "external_data": large}
    reasons = []
    for exporter, dynamo in (("dynamo", True), ("torchscript", False)):
        quiet = StringIO()  # both print their progress
        try:
            with warnings.catch_warnings(), torch.no_grad(), redirect_stdout(quiet), redirect_stderr(quiet):
                warnings.simplefilter("ignore")
                torch.onnx.export(model, (image,), path, dynamo=dynamo, verbose=False, **names)
            return exporter
        except Exception as error:  # exporters raise nearly anything
            reasons.append(f"{exporter}: {_first(error)}")
    raise ExportError(f"{path.name}: no exporter takes this network ({'; '.join(reasons)})")


def _first(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _difference(path: Path, image: Tensor, answers: list[Tensor]) -> float:
    """Largest difference of any output, relative to the output's spread (a constant output: to its size)."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    worst = 0.0
    for got, want in zip(session.run(None, {"image": image.numpy()}), answers, strict=True):
        spread = float(want.std()) or float(want.abs().max()) or 1.0
        error = float((torch.from_numpy(got) - want).abs().max()) / spread
        worst = max(worst, error if error == error else float("inf"))
    return worst


def _about(
    name: str, contract: Mapping[str, Any], meaning: str, image: Tensor, outputs: list[str], answers: list[Tensor],
    exporter: str, difference: float,
) -> dict[str, Any]:  # fmt: skip
    import onnx
    import onnxruntime

    usual = "one logit per class; softmax gives probabilities" if outputs == ["logits"] else "level of the pyramid"
    return {
        "format": 1,
        "name": name,
        "input": {"name": "image", "shape": list(image.shape), "dtype": "float32", **contract},
        "output": [
            {"name": n, "shape": list(a.shape), "dtype": "float32", "meaning": meaning or usual}
            | ({"classes": a.shape[1]} if n == "logits" else {})
            for n, a in zip(outputs, answers, strict=True)
        ],
        "check": {"difference": difference, "of": "spread of the output on a random input, onnxruntime against torch"},
        "made_by": {
            "glocal": core.__version__,
            "torch": torch.__version__,
            "exporter": exporter,
            "onnx": onnx.__version__,
            "onnxruntime": onnxruntime.__version__,
        },
    }
