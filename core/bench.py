"""The one benchmark: alternating pairs in one process, against the machine's own matrix-product rate."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from core import bench_report, memory, registry
from core.errors import SettingError, UnknownNameError, WeightsError
from core.measure import CLASSES, macs, on_meta, parameters, total
from core.weights import choose, convert

SIDE = 2048  # of the matrices of the machine's rate
_SAMPLE = 0.05  # seconds: a timing shorter than this repeats the pass


@dataclass(frozen=True)
class Spread:
    """Median and quartiles."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Median, lower and upper quartile.

    >>> spread([4.0, 1.0, 2.0, 3.0, 5.0])
    Spread(median=3.0, low=2.0, high=4.0)
    """
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high)


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        size: rows and columns in pixels, of clips frames before them.
        train: time forward and backward in training mode instead of inference; no optimiser step.
        rounds: timed pairs after warm-up.
    """

    size: tuple[int, ...] = (224, 224)
    dtype: Literal["float32", "bfloat16"] = "float32"
    threads: int = 2
    rounds: int = 15
    train: bool = False
    compile: bool = False
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("threads", "rounds"):
            if getattr(self, name) < 1:
                raise SettingError(f"{name} is at least 1, got {getattr(self, name)}")
        if min(self.size) < 1:
            raise SettingError(f"size is at least 1 pixel, got {' x '.join(map(str, self.size))}")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise SettingError("device cuda: this machine, or this build of torch, has no CUDA device")
        if self.device not in ("cpu", "cuda"):
            raise SettingError(f"device is cpu or cuda, got {self.device!r}")


@dataclass
class Contender:
    """A network to time.

    Attributes:
        macs: of one image, 0 where they cannot be counted.
        run: its compiled form, or itself.
    """

    name: str
    model: Any
    parameters: int
    macs: int
    run: Callable[[Tensor], Any]


@dataclass(frozen=True)
class Pair:
    """The networks of one benchmark and how their weights came about.

    Attributes:
        weights: "one network", "same", or "random: <why they could not be copied>".
        difference: largest one of their answers in float32, relative to the spread; None where weights differ.
    """

    contenders: tuple[Contender, ...]
    weights: str
    difference: float | None


def pair(name: str, against: str | None, settings: Settings) -> Pair:
    """Build "family/variant" and its opponent, another of ours or "timm:NAME", with the same weights where they fit."""
    _, config = registry.lookup(name)
    channels = getattr(config, "in_channels", 3)
    published = against is not None and against.startswith("timm:")
    theirs: nn.Module | None = None
    torch.manual_seed(0)
    if published:
        theirs = _timm(str(against), channels, settings.size)
    elif against is not None:
        _, other = registry.lookup(against)
        theirs = registry.create(against, classes=_classes(against), **_built_for(other, settings.size)).eval()
    ours = registry.create(name, classes=_classes(name), **_built_for(config, settings.size)).eval()
    image = torch.randn(1, channels, *settings.size, generator=torch.Generator().manual_seed(0))
    if theirs is None or against is None:
        return Pair((_contender(name, ours, image.shape, settings),), "one network", None)
    _stir(theirs)
    note, difference = _same_weights(name, ours, theirs, published=published), None
    if note == "same":
        with torch.no_grad():
            a, b = ours(image), theirs(image)
        difference = float((a - b).abs().max() / a.std())
    made = tuple(_contender(n, m, image.shape, settings) for n, m in ((name, ours), (against, theirs)))
    return Pair(made, note, difference)


def _classes(name: str) -> int | None:
    """Of the classifier around a backbone, as the tables count it; a network of an app has its own."""
    return None if registry.is_network(name) else registry.lookup(name)[0].FACTS.classes


def _built_for(config: Any, size: tuple[int, ...]) -> dict[str, Any]:
    """The image size as an override, where the variant is built for another one."""
    built = getattr(config, "image_size", None)
    if built is None or tuple(size) == ((built, built) if isinstance(built, int) else tuple(built)):
        return {}
    return {"image_size": size[0] if size[0] == size[1] else tuple(size)}


def _timm(against: str, channels: int, size: tuple[int, ...]) -> nn.Module:
    import timm

    name = against.removeprefix("timm:")
    if not timm.is_model(name):
        raise UnknownNameError("timm model", name, timm.list_models())
    arguments: dict[str, Any] = {"num_classes": CLASSES, "in_chans": channels}
    try:
        return timm.create_model(name, img_size=size, **arguments).eval()
    except TypeError:  # convolutional families take any size and have no such argument
        return timm.create_model(name, **arguments).eval()


def _stir(model: nn.Module) -> None:
    """Small noise on every parameter: heads, biases and layer scales start at 0, where any two networks agree."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)


def _same_weights(name: str, ours: nn.Module, theirs: nn.Module, *, published: bool) -> str:
    """Give ours the weights of theirs; "same", or why not."""
    state = theirs.state_dict()
    try:
        if published:
            module, _ = registry.lookup(name)
            state = convert(state, choose(module.PUBLISHED, state), ours, resize=False)
        elif {n: v.shape for n, v in state.items()} != {n: v.shape for n, v in ours.state_dict().items()}:
            return "random: the two networks differ in names or shapes"
    except (WeightsError, KeyError, ValueError, RuntimeError, IndexError) as error:
        return f"random: {str(error).splitlines()[0].partition(':')[0]}"
    ours.load_state_dict(state)
    return "same"


def _contender(name: str, model: nn.Module, shape: Sequence[int], settings: Settings) -> Contender:
    try:
        counted = macs(on_meta(lambda: _like(model)), shape, train=settings.train)
    except (NotImplementedError, RuntimeError):
        counted = macs(model, shape, train=settings.train)
    model = model.to(device=settings.device, dtype=getattr(torch, settings.dtype)).train(settings.train)
    run: Any = torch.compile(model) if settings.compile else model
    return Contender(name, model, parameters(model), counted, run)


def _like(model: nn.Module) -> nn.Module:
    import copy

    return copy.deepcopy(model).to("meta")


def measure(both: Pair, batch: int, settings: Settings, *, warm_up: int = 3) -> dict[str, Any]:
    """Time the contenders on images or clips (batch, C, *size) and return plain numbers.

    Each round times every contender once, in an order that turns from round to round, and then the machine's matrix
    product in the same dtype. Latency is of one pass over the batch in seconds; ratio is the opponent's time over ours
    in the same round, so more than 1 means ours is faster; share is the network's rate over the machine's.
    """
    dtype = getattr(torch, settings.dtype)
    first = both.contenders[0]
    channels = getattr(getattr(getattr(first.model, "backbone", first.model), "config", None), "in_channels", 3)
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(batch, channels, *settings.size, generator=generator).to(settings.device, dtype)
    a, b = (torch.randn(SIDE, SIDE, generator=generator).to(settings.device, dtype) for _ in range(2))
    matrix = _Timed(lambda: torch.mm(a, b), settings)
    passes = [_Timed(_passing(c, image, settings), settings) for c in both.contenders]
    with torch.set_grad_enabled(settings.train):
        peaks = []
        for timed in passes:
            for _ in range(warm_up):
                timed.once()
            peaks.append(memory.growth(timed.once, settings.device))
            timed.calibrate()
        matrix.once()
        matrix.calibrate()
        for i in range(settings.rounds):
            for timed in passes if i % 2 == 0 else reversed(passes):
                timed.sample()
            matrix.sample()
    rate = 2 * SIDE**3 / statistics.median(matrix.seconds)
    result: dict[str, Any] = {"batch": batch, "matrix_product_flops": rate, "networks": []}
    for contender, timed, peak in zip(both.contenders, passes, peaks, strict=True):
        latency = spread(timed.seconds)
        shares = [2 * contender.macs * batch / t / (2 * SIDE**3 / m) for t, m in zip(timed.seconds, matrix.seconds)]
        result["networks"].append(
            {
                "name": contender.name,
                "parameters": contender.parameters,
                "macs": contender.macs,
                "latency": asdict(latency),
                "throughput": batch / latency.median,
                "peak_memory": peak,
                "share": statistics.median(shares),
                "repeats": timed.repeats,
            }
        )
    if len(passes) == 2:
        ratios = [theirs / ours for ours, theirs in zip(passes[0].seconds, passes[1].seconds, strict=True)]
        result["ratio"] = asdict(spread(ratios))
    return result


def _passing(contender: Contender, image: Tensor, settings: Settings) -> Callable[[], Any]:
    if not settings.train:
        return lambda: contender.run(image)

    def forward_backward() -> None:
        total(contender.run(image)).backward()
        contender.model.zero_grad(set_to_none=True)

    return forward_backward


class _Timed:
    """Timings of one thing in seconds, each the mean of as many repeats as make it long enough to time."""

    def __init__(self, call: Callable[[], Any], settings: Settings) -> None:
        self.call, self.repeats, self.seconds = call, 1, list[float]()
        self.wait: Callable[[], Any] = torch.cuda.synchronize if settings.device == "cuda" else lambda: None

    def once(self) -> None:
        self.call()
        self.wait()

    def _time(self) -> float:
        self.wait()
        start = time.perf_counter()
        for _ in range(self.repeats):
            self.call()
        self.wait()
        return (time.perf_counter() - start) / self.repeats

    def calibrate(self) -> None:
        self.repeats = max(1, math.ceil(_SAMPLE / self._time()))

    def sample(self) -> None:
        self.seconds.append(self._time())


def benchmark(name: str, against: str | None, batches: Sequence[int], settings: Settings) -> dict[str, Any]:
    """Build, measure at each batch size and describe the machine: the document that the command writes."""
    for batch in batches:
        if batch < 1:
            raise SettingError(f"batch is at least 1, got {batch}")
    before = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    collecting = gc.isenabled()
    try:
        both = pair(name, against, settings)
        gc.disable()
        results = [measure(both, batch, settings) for batch in batches]
    finally:
        torch.set_num_threads(before)
        if collecting:
            gc.enable()
    return {
        "format": 1,
        "name": name,
        "against": against,
        "weights": both.weights,
        "difference": both.difference,
        **asdict(settings),
        "results": results,
        **bench_report.machine(settings.device),
    }
