"""GC ViT beyond its vectors: the query map, sizes, windows, tables, checkpoints in the authors' form."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from parity import Fixture, fill_, filled
from torch import Tensor

from core import registry
from core.backbones import gcvit
from core.errors import SettingError, ShapeError, WeightsError
from core.mixers.global_query import GlobalQueryAttention
from core.weights import load, load_published, save

COUNTS = {  # the card's measured ones, 1000 classes
    "xxtiny": 11_995_428, "xtiny": 19_981_294, "tiny": 28_221_974, "tiny2": 34_535_654, "small": 51_092_173,
    "small2": 68_615_197, "base": 90_320_836, "large": 202_075_570, "large_384": 202_860_610, "large_512": 203_795_362,
}  # fmt: skip
PARITY = Path(__file__).parent / "parity"


def little(**more: Any) -> Any:
    """Two blocks a level, 16 channels, windows of 3, 3, 6, 3 (for 96 pixels)."""
    settings = {"dim": 16, "depths": (2, 2, 2, 2), "heads": (1, 2, 4, 8), "window": (3, 3, 6, 3)} | more
    return registry.create("gcvit/xxtiny", **settings)


def test_parameter_counts() -> None:
    assert set(COUNTS) == set(registry.family("gcvit").VARIANTS)
    for name, count in COUNTS.items():
        with torch.device("meta"):
            model = registry.create(f"gcvit/{name}", classes=1000)
        assert sum(p.numel() for p in model.parameters()) == count, name


def loop_attention(layer: GlobalQueryAttention, x: Tensor, query: Tensor) -> Tensor:
    """One cell at a time, from the card: zeros after the norm, keys and values of the window, queries of the image."""
    B, H, W, C = x.shape
    M, d = layer.window[0], C // layer.heads
    Hp, Wp = -(-H // M) * M, -(-W // M) * M
    padded = torch.zeros(B, Hp, Wp, C, dtype=x.dtype)
    padded[:, :H, :W] = x
    kv = layer.kv(padded).reshape(B, Hp, Wp, 2, layer.heads, d)
    out = torch.zeros(B, Hp, Wp, layer.heads, d, dtype=x.dtype)
    for b in range(B):
        for y in range(Hp):
            for z in range(Wp):
                for h in range(layer.heads):
                    q = query[b, y % M, z % M, h * d : (h + 1) * d] * d**-0.5
                    scores, values = [], []
                    for i in range(M):
                        for j in range(M):
                            k, v = kv[b, y // M * M + i, z // M * M + j, :, h]
                            row = (y % M - i + M - 1) * (2 * M - 1) + z % M - j + M - 1
                            scores.append(q @ k + layer.bias_table[row, h])
                            values.append(v)
                    out[b, y, z, h] = torch.stack(scores).softmax(0) @ torch.stack(values)
    return layer.proj(out[:, :H, :W].flatten(3))


@pytest.mark.parametrize("size", [(3, 3), (6, 3), (5, 7)])
@pytest.mark.parametrize("grad", [False, True])
def test_global_query_attention_equals_a_loop(size: tuple[int, int], grad: bool) -> None:
    torch.manual_seed(0)
    layer = GlobalQueryAttention(8, 2, window=3).double()
    x, query = torch.randn(2, *size, 8, dtype=torch.float64), torch.randn(2, 3, 3, 8, dtype=torch.float64)
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(layer(x, query), loop_attention(layer, x, query))


def test_query_of_another_size_is_refused() -> None:
    layer = GlobalQueryAttention(8, 2, window=3)
    with pytest.raises(ShapeError, match=r"B=2 h=3 w=3 C=8\), got \(1, 3, 3, 8\)"):
        layer(torch.randn(2, 3, 3, 8), torch.randn(1, 3, 3, 8))


@pytest.mark.parametrize(
    ("level", "window", "dense", "pools"),
    [(0, 7, False, 3), (1, 7, False, 2), (2, 14, False, 0), (3, 7, False, 0), (2, 24, False, 0),
     (2, 24, True, 1), (2, 14, True, 0), (3, 24, True, 0)],
)  # fmt: skip
def test_query_map(level: int, window: int, dense: bool, pools: int) -> None:
    """Units, each with its residual before its pool; resized to the window where it has another size."""
    torch.manual_seed(0)
    windows = tuple(window if i == level else 7 for i in range(4))
    config = registry.changed(gcvit.XXTINY, {"dense": dense, "window": windows}, "gcvit")
    chain = gcvit.GlobalQuery(8, window, *gcvit.query_chain(config, level)).double()
    assert (len(chain.units), chain.pools) == ((3, 2, 1, 1)[level], pools)
    x = torch.randn(2, 37, 26, 8, dtype=torch.float64)
    want = x.permute(0, 3, 1, 2)
    for unit in chain.units:
        y = F.gelu(F.conv2d(want, unit.depthwise.weight, padding=1, groups=8))
        gate = F.gelu(y.mean((2, 3)) @ unit.se.fc1.weight.T) @ unit.se.fc2.weight.T
        want = want + F.conv2d(y * gate.sigmoid()[:, :, None, None], unit.pointwise.weight[:, :, None, None])
        if pools:
            want = F.max_pool2d(want, 3, stride=2, padding=1)
    want = F.interpolate(want, (window, window), mode="bicubic", align_corners=False)
    torch.testing.assert_close(chain(x), want.permute(0, 2, 3, 1))


@pytest.mark.parametrize("grad", [False, True])
def test_each_image_has_its_own_query(grad: bool) -> None:
    """The classic fault: queries tiled window by window, which one image cannot show."""
    model = fill_(little().double())
    images = torch.randn(2, 3, 80, 70, dtype=torch.float64)
    with torch.set_grad_enabled(grad):
        together = model(images)
        for i, image in enumerate(images):
            for joint, single in zip(together, model(image[None]), strict=True):
                torch.testing.assert_close(joint[i], single[0])


@pytest.mark.parametrize("dense", [False, True])
def test_any_size(dense: bool) -> None:
    model = fill_(little(dense=dense))
    with torch.no_grad():
        pyramid = model(torch.randn(1, 3, 101, 67))
    assert [tuple(p.shape[2:]) for p in pyramid] == [(26, 17), (13, 9), (7, 5), (4, 3)]
    assert all(torch.isfinite(p).all() for p in pyramid)
    assert [isinstance(n, torch.nn.LayerNorm) for n in model.norms] == [dense] * 4


def test_queries_come_from_the_whole_image() -> None:
    """A pixel reaches cells that no window joins to it, through the query alone."""
    model = fill_(little(depths=(2,), heads=(1,), window=(3,)).double())
    a = torch.randn(1, 3, 96, 96, dtype=torch.float64)
    b = a.clone()
    b[..., 80:, 80:] += 1
    with torch.no_grad():
        assert (model(a)[0] - model(b)[0])[..., 0, 0].abs().max() > 1e-6
        model.stages[0].blocks = model.stages[0].blocks[:1]  # the local block reaches nothing beyond its window
        stem = model.stages[0].merge
        whole = stem(a)
        stem.forward = lambda image: whole if image is a else torch.cat([whole[:, :, :18], whole[:, :, 18:] + 1], 2)
        local = (model(a)[0] - model(b)[0])[0].abs().amax(0)
        assert local[:, :18].max() == 0
        assert local[:, 18:].min() > 0


@pytest.mark.parametrize("layer_scale", [None, 1e-5])
def test_one_training_step(layer_scale: float | None) -> None:
    torch.manual_seed(0)
    model = registry.classifier(little(layer_scale=layer_scale, drop_path=0.1), 5).train()
    F.cross_entropy(model(torch.randn(2, 3, 64, 96)), torch.tensor([1, 4])).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()] == []


def test_state_round_trip(tmp_path: Path) -> None:
    model, fresh = fill_(little(dense=True)), little(dense=True).eval()
    save(model, tmp_path / "w.safetensors")
    load(fresh, tmp_path / "w.safetensors")
    image = torch.randn(1, 3, 50, 41)
    with torch.no_grad():
        for a, b in zip(model(image), fresh(image), strict=True):
            assert torch.equal(a, b)
    assert not [n for n in model.state_dict() if "index" in n]


def test_half_precision_and_both_paths() -> None:
    model = fill_(little())
    image = torch.randn(1, 3, 48, 48)
    with torch.no_grad():
        without = model.double()(image.double())
        half = model.to(torch.bfloat16)(image.bfloat16())
    for a, b in zip(model.double()(image.double()), half, strict=True):
        assert torch.isfinite(b).all()
        assert b.dtype == torch.bfloat16
        assert a.dtype == torch.float64
    model = fill_(little().double())
    for a, b in zip(model(image.double()), without, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_initialisation() -> None:
    torch.manual_seed(0)
    model = registry.create("gcvit/small", depths=(2, 2, 6, 2))
    stage = model.stages[3]
    local, across = stage.blocks
    assert abs(local.channel_mixer.fc1.weight.std().item() - 0.02) < 5e-4
    assert abs(stage.query.units[0].se.fc1.weight.std().item() - 0.02) < 5e-4
    assert not across.token_mixer.kv.bias.any()
    assert abs(across.token_mixer.bias_table.std().item() - 0.02) < 2e-3
    assert stage.query.units[0].pointwise.weight.std().item() == pytest.approx((3 * 768) ** -0.5, rel=0.02)
    assert across.scale2.scale.tolist() == pytest.approx([1e-5] * 768)
    rates = [b.drop_path.p for s in model.stages for b in s.blocks]
    assert rates == pytest.approx([0.3 * i / 11 for i in range(12)])
    dense = registry.create("gcvit/xxtiny", dense=True).stages[3].blocks[0].token_mixer.qkv
    assert dense.weight.std().item() == pytest.approx((3 * 512) ** -0.5, rel=0.02)
    assert dense.bias.any()


def test_lists_of_one_length() -> None:
    with pytest.raises(SettingError, match="3 depths, 4 heads and 4 windows"):
        registry.create("gcvit/tiny", depths=(1, 1, 1))


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Fixture]:
    """A file as the authors save it: .pth.tar, the state under "state_dict", derived buffers beside the weights."""
    fixture = Fixture.read(PARITY / "gcvit--xxtiny.json")
    state = fixture.state_dict()
    state["levels.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49, dtype=torch.long)
    path = tmp_path_factory.mktemp("gcvit") / "gcvit_xxtiny.pth.tar"
    torch.save({"state_dict": state, "epoch": 309, "arch": "gc_vit_xxtiny"}, path)
    return path, fixture


def test_published_checkpoint(published: tuple[Path, Fixture]) -> None:
    path, fixture = published
    model = load_published("gcvit/xxtiny", path)
    with torch.no_grad():
        fixture.compare("logits", model(fixture.input()), 1e-3)


def test_published_checkpoint_in_timms_names(published: tuple[Path, Fixture], tmp_path: Path) -> None:
    path, fixture = published
    state = {}
    for name, value in fixture.state_dict().items():
        for pattern, replacement in (
            (r"^patch_embed\.proj", "stem.conv1"), (r"^patch_embed\.conv_down", "stem.down"),
            (r"^levels\.(\d)\.downsample", lambda m: f"stages.{int(m[1]) + 1}.downsample"),
            (r"to_q_global\.(\d)\.", lambda m: f"to_q_global.conv{int(m[1]) + 1}."),
            (r"q_global_gen\.to_q_global\.(conv\d)\.conv\.", r"global_block.blocks.\1."),
            (r"(down|downsample)\.conv\.", r"\1.conv_block."),
            (r"(conv\d|conv_block)\.0\.", r"\1.conv_dw."), (r"(conv\d|conv_block)\.3\.", r"\1.conv_pw."),
            (r"2\.fc\.0\.", "se.fc1."), (r"2\.fc\.2\.", "se.fc2."), (r"^levels\.", "stages."),
            (r"relative_pos", "rel_pos.relative_pos"), (r"^norm\.", "stages.3.norm."), (r"^head\.", "head.fc."),
        ):  # fmt: skip
            name = re.sub(pattern, replacement, name)
        state[name] = value[:, :, None, None] if ".se.fc" in name else value
    torch.save(state, tmp_path / "timm.pth")
    ours = load_published("gcvit/xxtiny", path).state_dict()
    theirs = load_published("gcvit/xxtiny", tmp_path / "timm.pth").state_dict()
    assert [n for n, value in ours.items() if not torch.equal(value, theirs[n])] == []


def test_other_windows_resize_the_tables(published: tuple[Path, Fixture]) -> None:
    path, _ = published
    with pytest.warns(UserWarning, match=r"bias_table and 11 more resized to the size that gcvit/xxtiny asks for"):
        model = load_published("gcvit/xxtiny", path, window=(8, 8, 16, 8))
    table = filled("levels.0.blocks.1.attn.relative_position_bias_table", (169, 2))
    want = F.interpolate(table.T.reshape(1, 2, 13, 13), (15, 15), mode="bicubic").reshape(2, 225).T
    torch.testing.assert_close(model.backbone.stages[0].blocks[1].token_mixer.bias_table, want)
    with torch.no_grad():
        assert torch.isfinite(model(torch.randn(1, 3, 256, 256))).all()
    with pytest.raises(WeightsError, match=r"bias_table: \(169, 2\) in the file, \(225, 2\) in the network"):
        load_published("gcvit/xxtiny", path, window=(8, 8, 16, 8), resize=False)


def test_classification_weights_in_the_dense_form(published: tuple[Path, Fixture]) -> None:
    """Windows of 24 and the dense query chain on classification weights; their file has no norms for the levels."""
    path, _ = published
    with pytest.warns(UserWarning, match="resized"):
        model = load_published("gcvit/xxtiny", path, window=(24,) * 4, dense=True, norms=())
    assert [s.query.pools for s in model.backbone.stages] == [3, 2, 1, 0]
    with torch.no_grad():
        assert [tuple(p.shape[2:]) for p in model.backbone(torch.randn(1, 3, 50, 34))] == [
            (13, 9), (7, 5), (4, 3), (2, 2),
        ]  # fmt: skip


def test_dense_file_gives_the_backbone(tmp_path: Path) -> None:
    fixture = Fixture.read(PARITY / "gcvit--xxtiny-dense.json")
    torch.save({"state_dict": {f"backbone.{n}": v for n, v in fixture.state_dict().items()}}, tmp_path / "dense.pth")
    model = load_published("gcvit/xxtiny", tmp_path / "dense.pth", prefix="backbone.")
    assert model.config.dense
    assert model.config.window == (24, 24, 24, 24)
    with torch.no_grad():
        fixture.compare("stage4", model(fixture.input())[3], 1e-3)


def test_layer_scale_has_its_names(published: tuple[Path, Fixture], tmp_path: Path) -> None:
    path, fixture = published
    state = torch.load(path)["state_dict"]
    for name, shape in fixture.state.items():
        if name.endswith("norm1.weight") and ".blocks." in name:
            for i in "12":
                gamma = name.replace("norm1.weight", f"gamma{i}")
                state[gamma] = filled(gamma, tuple(shape))
    torch.save({"state_dict": state}, tmp_path / "scaled.pth.tar")
    model = load_published("gcvit/xxtiny", tmp_path / "scaled.pth.tar", layer_scale=1e-5)
    assert torch.equal(model.backbone.stages[2].blocks[3].scale2.scale, filled("levels.2.blocks.3.gamma2", (256,)))
    seen = gcvit.from_published({"drop_path_rate": 0.1}, {n: tuple(v.shape) for n, v in state.items()})
    assert seen.layer_scale == 1e-5
    assert seen.drop_path == 0.1
    assert gcvit.from_published({"dim": 64}, fixture.state).layer_scale is None


def test_arguments_and_shapes_give_the_settings() -> None:
    """What the authors' arguments leave out is in the shapes; what they say stands."""
    names = {n: tuple(s) for n, s in Fixture.read(PARITY / "gcvit--xxtiny-dense.json").state.items()}
    by_shapes = gcvit.from_published({"in_chans": 3}, names, gcvit.LARGE)
    assert by_shapes == registry.changed(
        gcvit.LARGE,
        {"dim": 64, "depths": (2, 2, 6, 2), "heads": (2, 4, 8, 16), "window": (24,) * 4, "mlp_ratio": 3.0,
         "layer_scale": None, "dense": True},
        "gcvit",
    )  # fmt: skip
    some = {n: s for n, s in names.items() if not n.startswith(("norm0", "norm2"))}
    assert gcvit.from_published({"drop_path_rate": 0.1}, some).norms == (1, 3)


@pytest.mark.slow
@pytest.mark.parametrize("dense", [False, True])
def test_compiles_whole(dense: bool) -> None:
    torch._dynamo.reset()
    model = fill_(little(dense=dense))
    image = torch.randn(2, 3, 96, 70)
    with torch.no_grad():
        for a, b in zip(torch.compile(model, fullgraph=True)(image), model(image), strict=True):
            torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)
