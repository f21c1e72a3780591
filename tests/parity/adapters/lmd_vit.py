"""LMD-ViT: the network with its decisions from the authors' names and arguments, and the losses and scores."""

from __future__ import annotations

from typing import Any

import torch
from run import Fixture
from torch import Tensor, nn

from apps.deblurring import metrics
from apps.deblurring import model as networks
from apps.deblurring._losses import Reconstruction, ssim_map
from core.weights import choose, convert

BASE = networks.NETWORKS["lmd_vit"]


def model(fixture: Fixture, dtype: torch.dtype) -> nn.Module | None:
    """The network that the arguments and shapes describe, filled by the fixture's recipe; none for losses."""
    state = fixture.state_dict()
    if not state:
        return None
    shapes = {n: tuple(v.shape) for n, v in state.items()}
    network = networks.build(networks.from_published(fixture.build, shapes, BASE))
    network.load_state_dict(convert(state, choose(networks.PUBLISHED, shapes), network))
    return network.to(dtype).eval()


def answers(network: Any, fixture: Fixture, dtype: torch.dtype) -> dict[str, Tensor]:
    if network is None:
        return losses(fixture, dtype)
    found: dict[str, Tensor] = {}
    handles = [
        stage.register_forward_hook(lambda _m, _x, y, n=name: found.update({n: y[0].permute(0, 3, 1, 2)}))
        for name, stage in _stages(network)
    ]
    restored = network(fixture.input().to(dtype))
    for handle in handles:
        handle.remove()
    found |= {"restored": restored.image, "gate": restored.gate}
    found |= {f"score{i:02}": score for i, score in enumerate(restored.scores)}
    found |= {f"keep{i:02}": keep for i, keep in enumerate(restored.keeps)}
    return {name: value for name, value in found.items() if name in fixture.outputs}


def _stages(network: Any) -> list[tuple[str, nn.Module]]:
    names = [f"encoderlayer_{i}" for i in range(network.levels)] + ["conv"]
    names += [f"decoderlayer_{i}" for i in range(network.levels)]
    return list(zip(names, network.stages(), strict=True))


def losses(fixture: Fixture, dtype: torch.dtype) -> dict[str, Tensor]:
    """Reconstruction losses with the nine shifts and without, and scores of each picture."""
    sharp = torch.sigmoid(fixture.input("pred"))
    restored = torch.sigmoid(fixture.input("pred") + 0.3 * fixture.input("noise")).roll((1, -1), (2, 3))
    mask = (fixture.input("maskn") > 0).to(dtype)
    sharp, restored = sharp.to(dtype), restored.to(dtype)
    given = fixture.build
    weights = {name: given[f"lambda_{name}"] for name in ("l1", "ssim", "fft")}
    both = [Reconstruction(shifted=shifted, **weights) for shifted in (True, False)]
    terms = [loss.terms(restored, sharp) for loss in both]
    pairs = [[x.permute(1, 2, 0).numpy() for x in pair] for pair in zip(restored, sharp, strict=True)]
    masks = [m[0].numpy() for m in mask]
    found: dict[str, Tensor | list[float]] = {
        "l1_ssim": torch.stack([term[name] for name in ("l1", "ssim") for term in terms]),
        "fft": torch.stack([term["fft"] for term in terms]),
        "total": torch.stack([loss(restored, sharp) for loss in both]),
        "psnr": [metrics.psnr(a, b) for a, b in pairs],
        "ssim": [_ssim(a, b, None) for a, b in zip(restored, sharp, strict=True)],
    }
    found["psnr"] += [metrics.weighted_psnr(a, b, m) for (a, b), m in zip(pairs, masks, strict=True)]
    found["ssim"] += [_ssim(a, b, m) for a, b, m in zip(restored, sharp, mask, strict=True)]
    return {name: torch.as_tensor(value) for name, value in found.items()}


def _ssim(restored: Tensor, sharp: Tensor, mask: Tensor | None) -> float:
    """With the loss's window, which is float32's as the authors'; metrics.ssim takes an exact one (4e-7 apart)."""
    found = ssim_map(restored[None], sharp[None])[0]
    if mask is None:
        return float(found.mean())
    weights = mask[:, 5:-5, 5:-5].expand_as(found)
    return float((found * weights).sum() / weights.sum())
