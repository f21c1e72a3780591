"""The selective scan and SS2D against plain loops, published vectors, torch.compile and torch.export."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from parity import Fixture
from torch import Tensor

from core.mixers import _scan_kernels as kernels
from core.mixers.scan import grouped_scan, selective_scan
from core.mixers.ss2d import SS2D, cross_orders

VECTORS = Path(__file__).parent / "parity"
NAMES = ("u", "delta", "A", "B", "C", "D", "delta_bias", "z")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small operations on all cores of a busy machine would wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def plain_loop(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, *,
               delta_bias: Tensor | None = None, delta_softplus: bool = False,
               z: Tensor | None = None) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The card's five steps, one position at a time."""
    if delta_bias is not None:
        delta = delta + delta_bias[:, None]
    if delta_softplus:
        delta = F.softplus(delta)
    B, C = (t[:, None] if t.dim() == 3 else t for t in (B, C))
    B, C = (t.repeat_interleave(u.shape[1] // t.shape[1], 1) for t in (B, C))
    x, out = u.new_zeros(*u.shape[:2], A.shape[1]), []
    for i in range(u.shape[-1]):
        x = torch.exp(delta[..., i, None] * A) * x + (delta * u)[..., i, None] * B[..., i]
        out.append((x * C[..., i]).sum(-1))
    y = torch.stack(out, -1)
    if D is not None:
        y = y + u * D[:, None]
    return (y if z is None else y * F.silu(z)), x


def made(batch: int, groups: int | None, channels: int, state: int, length: int, dtype: torch.dtype = torch.float64,
         seed: int = 0) -> dict[str, Tensor]:  # fmt: skip
    """Inputs that want gradients; with `groups` None, B and C are (B, N, L)."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=dtype)

    maps = (batch, state, length) if groups is None else (batch, groups, state, length)
    point = (batch, channels, length)
    values = (normal(*point), normal(*point), -normal(channels, state).exp(), normal(*maps), normal(*maps),
              normal(channels), normal(channels), normal(*point))  # fmt: skip
    return {name: value.requires_grad_() for name, value in zip(NAMES, values, strict=True)}


def spread_error(got: Tensor, want: Tensor) -> float:
    assert got.shape == want.shape
    scale = want.std() if want.numel() > 1 else want.abs().max()
    return float(((got - want).abs().max() / scale.clamp(min=1e-30)).detach())


def compare(inputs: dict[str, Tensor], tolerance: float, **how: Any) -> None:
    """Outputs, last state and every gradient against the loop."""
    y, last = selective_scan(**inputs, **how, return_last_state=True)
    want_y, want_last = plain_loop(**inputs, **how)
    errors = {"y": spread_error(y, want_y), "last": spread_error(last, want_last)}
    generator = torch.Generator().manual_seed(99)
    grad_y, grad_last = (torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in (y, last))
    got = torch.autograd.grad([y, last], list(inputs.values()), [grad_y, grad_last], materialize_grads=True)
    want = torch.autograd.grad([want_y, want_last], list(inputs.values()), [grad_y, grad_last])
    errors |= {name: spread_error(g, w) for name, g, w in zip(inputs, got, want, strict=True)}
    assert max(errors.values()) < tolerance, errors


@pytest.mark.parametrize("length", [1, 2, 5, 63, 64, 65, 257, 300])
@pytest.mark.parametrize("groups", [None, 1, 3])
def test_equals_the_loop(length: int, groups: int | None) -> None:
    compare(made(2, groups, 6, 3, length), 1e-9, delta_softplus=True)


@pytest.mark.parametrize("softplus", [False, True])
@pytest.mark.parametrize("absent", [(), ("D",), ("delta_bias",), ("z",), ("D", "delta_bias", "z")])
def test_every_option(absent: tuple[str, ...], softplus: bool) -> None:
    inputs = made(2, 2, 4, 3, 70)
    if not softplus:
        with torch.no_grad():
            inputs["delta"].abs_().mul_(0.3)
            inputs["delta_bias"].abs_().mul_(0.3)
    compare({n: t for n, t in inputs.items() if n not in absent}, 1e-9, delta_softplus=softplus)


@pytest.mark.parametrize("width", [3, 8, 40, 10**6])
def test_any_cut_into_tiles(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setattr(kernels, "WIDTH", width)
    monkeypatch.setattr(kernels, "NARROW", 20)  # the widest tile steps one by one, the others in folded pairs
    compare(made(3, 2, 10, 4, 131), 1e-9, delta_softplus=True)


@pytest.mark.parametrize("folds", [0, 1, 2])
def test_any_fold(monkeypatch: pytest.MonkeyPatch, folds: int) -> None:
    monkeypatch.setattr(kernels, "FOLDS", folds)
    compare(made(1, 2, 4, 3, 75), 1e-9, delta_softplus=True)


def test_float32_at_length() -> None:
    inputs = made(1, 4, 4 * 48, 16, 900, torch.float32)
    with torch.no_grad():
        inputs["delta"] -= 3
        inputs["A"].copy_(-torch.arange(1.0, 17).expand(4 * 48, 16))
    compare(inputs, 1e-4, delta_softplus=True)


def test_threads_change_nothing() -> None:
    inputs = made(1, 2, 2 * 700, 16, 70, torch.float32)
    one = selective_scan(**inputs, delta_softplus=True)
    torch.set_num_threads(2)
    two = selective_scan(**inputs, delta_softplus=True)
    torch.testing.assert_close(two, one)
    grads = [torch.autograd.grad(y.sum(), list(inputs.values())) for y in (one, two)]
    for g, w in zip(*grads, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("sizes", [(3, 2, 4), (1, 3, 4), (1, 1, 9), (2, 1, 5)])
@pytest.mark.parametrize("threads", [2, 4])
def test_any_cut_into_threads(monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, int, int], threads: int) -> None:
    monkeypatch.setattr(kernels, "SHARE", 1)
    monkeypatch.setattr(kernels, "MAPS", 2)
    monkeypatch.setattr(kernels, "WIDTH", 12)
    torch.set_num_threads(threads)
    batch, groups, channels = sizes
    shares = kernels._shares(sizes, 3, threads)
    assert 1 < len(shares) <= threads
    seen = torch.zeros(sizes)
    for share in shares:
        seen[share] += 1
    assert bool((seen == 1).all())
    compare(made(batch, groups, groups * channels, 3, 131), 1e-9, delta_softplus=True)
    assert torch.get_num_threads() == threads


def test_threads_give_the_same_bits_each_time() -> None:
    torch.set_num_threads(2)
    runs = []
    for _ in range(3):
        inputs = made(1, 1, 512, 16, 130, torch.float32)
        y = selective_scan(**inputs, delta_softplus=True)
        assert isinstance(y, Tensor)
        runs.append([y, *torch.autograd.grad(y.sum(), list(inputs.values()))])
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


def test_threads_raise_in_the_caller_once_all_have_ended() -> None:
    torch.set_num_threads(2)
    ended: list[int] = []

    def fails() -> None:
        raise RuntimeError("from a thread")

    with pytest.raises(RuntimeError, match="from a thread"):
        kernels._in_threads([fails, lambda: ended.append(torch.get_num_threads())])
    assert ended == [1]  # a thread of ours uses one core
    assert torch.get_num_threads() == 2


FORKED = """
import os, torch
from core.mixers.scan import selective_scan
torch.set_num_threads(2)
def scan():
    generator = torch.Generator().manual_seed(0)
    u, d = (torch.rand(1, 512, 70, generator=generator) for _ in range(2))
    B, C = (torch.rand(1, 16, 70, generator=generator) for _ in range(2))
    return selective_scan(u, d, -torch.ones(512, 16), B, C)
want = scan()
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(scan(), want) else 3)
assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_has_threads_of_its_own() -> None:
    root = Path(__file__).resolve().parents[1]
    subprocess.run([sys.executable, "-c", FORKED], cwd=root, check=True, timeout=120)


@pytest.mark.parametrize(("groups_b", "groups_c"), [(None, 2), (1, 2), (2, None)])
def test_groups_of_b_and_c_may_differ(groups_b: int | None, groups_c: int | None) -> None:
    inputs = made(2, groups_b, 4, 3, 9) | {"C": made(2, groups_c, 4, 3, 9, seed=1)["C"]}
    compare(inputs, 1e-9, delta_softplus=True)


def test_gradcheck() -> None:
    inputs = made(1, 2, 4, 2, 5)
    assert torch.autograd.gradcheck(
        lambda *t: selective_scan(*t[:6], delta_bias=t[6], z=t[7], delta_softplus=True, return_last_state=True),
        list(inputs.values()),
    )


def test_each_output_alone_has_gradients() -> None:
    inputs = made(1, 2, 4, 2, 9)
    leaves = [inputs[n] for n in NAMES[:5]]
    for i in range(2):
        got = torch.autograd.grad(selective_scan(*leaves, return_last_state=True)[i].sum(), leaves, allow_unused=True)
        want = torch.autograd.grad(plain_loop(*leaves)[i].sum(), leaves, allow_unused=True)
        for g, w in zip(got, want, strict=True):
            torch.testing.assert_close(torch.zeros(()) if g is None else g.sum().float(),
                                       torch.zeros(()) if w is None else w.sum().float())  # fmt: skip


def test_second_derivatives_are_refused() -> None:
    inputs = made(1, 1, 2, 2, 4)
    (grad,) = torch.autograd.grad(selective_scan(**inputs).square().sum(), inputs["u"], create_graph=True)
    with pytest.raises(RuntimeError, match="selective_scan_backward"):
        torch.autograd.grad(grad.sum(), inputs["u"])


def test_no_gradient_wanted_keeps_nothing() -> None:
    inputs = made(1, 1, 2, 2, 300)
    with torch.no_grad():
        quiet = selective_scan(**inputs)
    assert not quiet.requires_grad
    assert torch.equal(quiet, selective_scan(**inputs))


def test_inputs_are_left_alone_and_any_strides_will_do() -> None:
    inputs = {n: t.detach() for n, t in made(2, 2, 6, 3, 70).items()}
    before = {n: t.clone() for n, t in inputs.items()}
    want = selective_scan(**inputs, delta_softplus=True)
    assert all(torch.equal(inputs[n], before[n]) for n in inputs)
    turned = {n: t.transpose(0, -1).contiguous().transpose(0, -1) for n, t in inputs.items()}
    torch.testing.assert_close(selective_scan(**turned, delta_softplus=True), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_finite_for_any_step(scale: float) -> None:
    inputs = made(1, 2, 8, 4, 200, torch.float32)
    with torch.no_grad():
        inputs["delta"].abs_().mul_(scale)
        inputs["A"].mul_(100)
    for n in ("D", "delta_bias", "z"):
        del inputs[n]
    compare(inputs, 1e-4)


def test_numbers_of_half_precision() -> None:
    inputs = {n: t.detach() for n, t in made(1, 2, 4, 3, 40, torch.float32).items()}
    half = {n: t.bfloat16() if n in ("u", "delta", "B", "C", "z") else t for n, t in inputs.items()}
    y, last = selective_scan(**half, delta_softplus=True, return_last_state=True)
    want, want_last = plain_loop(**{n: t.float() for n, t in half.items()}, delta_softplus=True)
    assert (y.dtype, last.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(last, want_last, rtol=1e-5, atol=1e-5)  # computed in float32
    torch.testing.assert_close(y, want.bfloat16())
    half["u"].requires_grad_()
    selective_scan(**half, delta_softplus=True).sum().backward()
    assert half["u"].grad is not None
    assert half["u"].grad.dtype == torch.bfloat16


def test_float32_under_autocast() -> None:
    inputs = made(1, 2, 4, 3, 80, torch.float32)
    want = selective_scan(**inputs, delta_softplus=True)
    want_grads = torch.autograd.grad(want.sum(), list(inputs.values()))
    with torch.autocast("cpu", torch.bfloat16):
        got = selective_scan(**inputs, delta_softplus=True)
        grads = torch.autograd.grad(got.sum(), list(inputs.values()))
    assert torch.equal(got, want)
    assert all(torch.equal(g, w) for g, w in zip(grads, want_grads, strict=True))


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"u": (2, 4)}, r"expected u \(B, D, L\)"),
        ({"delta": (1, 4, 6)}, r"expected delta of shape \(1, 4, 5\), got \(1, 4, 6\)"),
        ({"A": (3, 2)}, r"expected A of shape \(4, 2\), got \(3, 2\)"),
        ({"B": (1, 3, 2, 5), "C": (1, 3, 2, 5)}, "divide the 4 channels"),
        ({"C": (1, 2, 3, 5)}, r"expected C of shape \(1, 2, 2, 5\), got \(1, 2, 3, 5\)"),
        ({"D": (3,)}, r"expected D of shape \(4,\)"),
        ({"delta_bias": (4, 1)}, r"expected delta_bias of shape \(4,\)"),
        ({"z": (1, 4, 1)}, r"expected z of shape \(1, 4, 5\)"),
    ],
)
def test_wrong_shapes(changed: dict[str, tuple[int, ...]], sentence: str) -> None:
    inputs = made(1, 2, 4, 2, 5) | {n: torch.zeros(s, dtype=torch.float64) for n, s in changed.items()}
    with pytest.raises(ValueError, match=sentence):
        selective_scan(**inputs)


def test_wrong_types_and_nothing_to_scan() -> None:
    inputs = {n: t.detach() for n, t in made(1, 2, 4, 2, 5).items()}
    with pytest.raises(ValueError, match=r"floating-point A on cpu, got torch.complex128"):
        selective_scan(**inputs | {"A": inputs["A"].to(torch.complex128)})
    with pytest.raises(ValueError, match="L >= 1"):
        selective_scan(**{n: t[..., :0] if t.dim() > 2 else t for n, t in inputs.items()})
    with pytest.raises(ValueError, match="expected u"):
        grouped_scan(*(inputs[n] for n in NAMES[:5]))
    assert selective_scan(**{n: t[:0] if t.dim() > 2 else t for n, t in inputs.items()}).shape == (0, 4, 5)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's account of memory")
@pytest.mark.parametrize("what", ["forward", "backward"])
def test_memory_is_under_a_quarter_of_the_state_tensor(what: str) -> None:
    script = Path(__file__).parent / "benchmarks" / "scan.py"
    command = [sys.executable, str(script), "--threads", "1", "--peak", what]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 0 < float(done.stdout) < 0.25


def test_published_scan() -> None:
    vector = Fixture.read(VECTORS / "swin-umamba--selective-scan.json")
    given = {name: vector.input(name).to(vector.dtype) for name in vector.inputs}
    A = -given.pop("A_log").exp()
    D, bias, z = (given.pop(name) for name in ("D", "delta_bias", "z"))
    how = {"delta_bias": bias, "delta_softplus": True}
    y, last = selective_scan(**given, A=A, D=D, **how, return_last_state=True)
    vector.compare("y", y)
    vector.compare("last_state", last)
    vector.compare("y_z", selective_scan(**given, A=A, D=D, **how, z=z))
    vector.compare("y_plain", selective_scan(**given | {"delta": 0.1 * given["delta"].abs()}, A=A))


OURS = {
    "x_proj_weight": "x_proj", "dt_projs_weight": "dt_proj", "dt_projs_bias": "dt_bias", "A_logs": "A_log",
    "Ds": "skip", "conv2d.weight": "conv.weight", "conv2d.bias": "conv.bias",
}  # fmt: skip


def test_published_ss2d() -> None:
    vector = Fixture.read(VECTORS / "swin-umamba--ss2d.json")
    mixer = SS2D(24).to(vector.dtype)
    assert sum(p.numel() for p in mixer.parameters()) == vector.params
    mixer.load_state_dict({OURS.get(name, name): value for name, value in vector.state_dict().items()})
    image = vector.input().to(vector.dtype)
    act, scans = mixer.directions(mixer.in_proj(image).chunk(2, -1)[0])
    vector.compare("conv_act", act)
    for name, scan in zip(("rows", "columns", "rows_reversed", "columns_reversed"), scans, strict=True):
        vector.compare(f"scan_{name}", scan)
    vector.compare("out", mixer(image))


def diagonal_orders(height: int, width: int) -> Tensor:
    """By anti-diagonals from the first corner, and reversed."""
    cells = sorted(range(height * width), key=lambda c: (c // width + c % width, c))
    return torch.tensor([cells, cells[::-1]])


def naive_ss2d(mixer: SS2D, x: Tensor) -> Tensor:
    """Direction by direction, with the plain loop."""
    height, width = x.shape[1:3]
    inner, gate = mixer.in_proj(x).chunk(2, -1)
    act = F.silu(mixer.conv(inner.permute(0, 3, 1, 2))).flatten(2)
    D, N, R = act.shape[1], mixer.state, mixer.rank
    total = torch.zeros_like(act)
    for k, order in enumerate(mixer.orders(height, width)):
        u = act[:, :, order]
        dt, B, C = (mixer.x_proj[k] @ u).split([R, N, N], 1)
        rows = slice(k * D, (k + 1) * D)
        y, _ = plain_loop(u, mixer.dt_proj[k] @ dt, -mixer.A_log[rows].exp(), B, C, mixer.skip[rows],
                          delta_bias=mixer.dt_bias[k], delta_softplus=True)  # fmt: skip
        total = total + torch.zeros_like(y).index_copy(2, order, y)
    y = mixer.out_norm(total.transpose(1, 2).unflatten(1, (height, width)))
    return mixer.out_proj(y * F.silu(gate))


@pytest.mark.parametrize("orders", [cross_orders, diagonal_orders, lambda h, w: cross_orders(h, w)[[3, 1, 2]]])
@pytest.mark.parametrize("size", [(3, 5), (5, 3), (1, 1), (1, 7), (9, 8)])
def test_ss2d_in_any_order(orders: Any, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    mixer = SS2D(6, state=3, dt_rank=2, orders=orders).double()
    with torch.no_grad():
        mixer.skip.normal_()
        mixer.A_log.normal_()
    x = torch.randn(2, *size, 6, dtype=torch.float64, requires_grad=True)
    got, want = mixer(x), naive_ss2d(mixer, x)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    leaves = [x, *mixer.parameters()]
    weight = torch.randn_like(got)
    pairs = zip(*(torch.autograd.grad((y * weight).sum(), leaves) for y in (got, want)), strict=True)
    for g, w in pairs:
        torch.testing.assert_close(g, w, rtol=1e-8, atol=1e-8)


def test_ss2d_orders_must_visit_every_cell() -> None:
    mixer = SS2D(4, orders=lambda h, w: torch.zeros(2, h * w, dtype=torch.long))
    with pytest.raises(ValueError, match="visit each of the 6 cells of a 2 x 3 map once"):
        mixer(torch.zeros(1, 2, 3, 4))


def test_ss2d_tables_are_built_once_and_are_no_state() -> None:
    calls: list[tuple[int, int]] = []

    def counted(height: int, width: int) -> Tensor:
        calls.append((height, width))
        return cross_orders(height, width)

    mixer = SS2D(4, orders=counted)
    names = set(mixer.state_dict())
    calls.clear()
    with torch.inference_mode():
        mixer(torch.zeros(1, 3, 4, 4))
    mixer(torch.zeros(2, 3, 4, 4)).sum().backward()  # tables made in inference mode serve training
    assert calls == [(3, 4)]
    assert set(mixer.state_dict()) == names


def test_ss2d_initialisation() -> None:
    torch.manual_seed(0)
    mixer = SS2D(40)
    assert mixer.rank == 3
    step = F.softplus(mixer.dt_bias)
    assert 1e-3 * 0.999 < step.min() < 1.5e-3
    assert 0.07 < step.max() < 0.1001
    torch.testing.assert_close(step.log().mean(), torch.tensor(1e-2).log(), rtol=0.05, atol=0)
    torch.testing.assert_close(mixer.A_log.exp(), torch.arange(1.0, 17).expand(320, 16))
    assert mixer.skip.eq(1).all()
    assert 0.55 < mixer.dt_proj.abs().max() <= 3**-0.5
    assert 0.105 < mixer.x_proj.abs().max() <= 80**-0.5
    for layer in (mixer.in_proj, mixer.out_proj):
        assert layer.bias is None
        assert 0.019 < layer.weight.std() < 0.021


def test_ss2d_scan_is_float32_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    mixer, x = SS2D(16), torch.randn(1, 6, 7, 16)
    with torch.autocast("cpu", torch.bfloat16):
        _, scans = mixer.directions(mixer.in_proj(x).chunk(2, -1)[0])
        assert mixer(x).dtype == torch.bfloat16
    assert scans[0].dtype == torch.float32
    with pytest.raises(ValueError, match="odd kernel"):
        SS2D(4, kernel=2)


def test_ss2d_on_meta() -> None:
    mixer = SS2D(8).to("meta")
    assert mixer(torch.empty(2, 5, 6, 8, device="meta")).shape == (2, 5, 6, 8)


@pytest.mark.parametrize("size", [(3, 5), (9, 33)])  # one chunk, and two levels of them
@pytest.mark.parametrize("orders", [cross_orders, diagonal_orders])
def test_export_has_standard_operators_only(orders: Any, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    mixer, x = SS2D(8, state=4, orders=orders).eval(), torch.randn(1, *size, 8)
    program = torch.export.export(mixer, (torch.zeros_like(x),))
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert all(name.startswith("aten.") or "getitem" in name for name in called), called
    torch.testing.assert_close(program.module()(x), mixer(x), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("length", [1, 15, 16, 17, 300])
def test_exported_form_equals_the_loop(monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    compare(made(2, 2, 4, 3, length), 1e-9, delta_softplus=True)


@pytest.mark.slow
def test_onnx_file_agrees(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    mixer, x = SS2D(8).eval(), torch.randn(1, 9, 11, 8)
    path = tmp_path / "ss2d.onnx"
    torch.onnx.export(mixer, (x,), path, dynamo=True)
    session = onnxruntime.InferenceSession(path)
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), mixer(x).detach(), rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_compiles_whole_forward_and_backward() -> None:
    inputs = made(1, 2, 8, 4, 150, torch.float32)

    def loss(**t: Tensor) -> Tensor:
        y, last = selective_scan(**t, delta_softplus=True, return_last_state=True)
        return (y * 2).square().mean() + last.mean()

    got = torch.compile(loss, fullgraph=True)(**inputs)
    want = loss(**inputs)
    torch.testing.assert_close(got, want)
    for g, w in zip(*(torch.autograd.grad(v, list(inputs.values())) for v in (got, want)), strict=True):
        torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("orders", [cross_orders, lambda h, w: cross_orders(h, w)[[2, 1]]])
def test_ss2d_compiles_whole(orders: Any) -> None:
    torch.manual_seed(0)
    mixer = SS2D(8, orders=orders)
    # With sizes left open, Inductor's own channels-last pass cannot order the strides of 4-d tensors behind a
    # convolution (torch 2.11: "cannot determine truth value of Relational"), so it is off here.
    compiled = torch.compile(mixer, fullgraph=True, options={"layout_optimization": False})
    for size in ((5, 6), (7, 4), (9, 11)):  # the second size is traced with sizes left open
        x = torch.randn(2, *size, 8, requires_grad=True)
        got, want = compiled(x), mixer(x)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)
        leaves = [x, *mixer.parameters()]
        for g, w in zip(*(torch.autograd.grad(v.sum(), leaves) for v in (got, want)), strict=True):
            torch.testing.assert_close(g, w, rtol=1e-3, atol=1e-5)


def test_operator_registrations() -> None:
    inputs = made(1, 2, 4, 3, 70, torch.float32)
    split = {n: t.unflatten(0 if t.dim() < 3 else 1, (2, 2)) if n not in ("B", "C") else t for n, t in inputs.items()}
    torch.library.opcheck(
        torch.ops.glocal.selective_scan.default, (*(t.detach().requires_grad_() for t in split.values()), True, True)
    )
