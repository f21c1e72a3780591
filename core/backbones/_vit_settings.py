"""What the authors' arguments, parameter names and shapes tell about a plain ViT."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from core.backbones._vit_published import CLIP, EMBED, FLAX, GLSIM, GMM_MASK, HUGGING_FACE, PUBLISHED
from core.weights import KeyMap, choose


def _structure(keymap: KeyMap, names: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """What published names and shapes say of a plain ViT, as settings; also `inner`, the width of all heads, and the
    `rows` of the position table, if learned.
    """
    ours: dict[str, Sequence[int]] = {}
    for name, shape in names.items():
        value = torch.empty(tuple(shape), device="meta")
        for pattern, change in keymap.transform.items():
            if re.search(pattern, name):
                value = change(value)
        if (renamed := keymap.name(name)) is not None:
            ours[renamed] = tuple(value.shape)
    conv = ours.get(EMBED + "patches.conv.weight")
    if conv is None:
        return {}
    block = "backbone.stages.0.blocks."
    first = block + "0."
    found: dict[str, Any] = {
        "in_channels": conv[1],
        "dim": conv[0],
        "patch": conv[2] if conv[2] == conv[3] else (conv[2], conv[3]),
        "depth": 1 + max((int(n.split(".")[4]) for n in ours if n.startswith(block)), default=-1),
        "inner": ours[first + "token_mixer.proj.weight"][1],
        "mlp_ratio": _ratio(ours[first + "channel_mixer.fc1.weight"][0], conv[0]),
        "class_token": EMBED + "class_token" in ours,
        "distillation_token": EMBED + "distillation_token" in ours,
        "registers": ours.get(EMBED + "registers", (1, 0, 0))[1],
        "relative": first + "token_mixer.bias_table" in ours,
        "patch_bias": EMBED + "patches.conv.bias" in ours,
        "norm_pre": EMBED + "norm.weight" in ours,
        "norm": "backbone.norm.weight" in ours,
        "layer_scale": 1.0 if first + "scale1.scale" in ours else None,
    }
    joint = any(n.startswith(first + "token_mixer.qkv.bias") for n in ours)
    found["qkv_bias"] = "full" if joint else "qv" if first + "token_mixer.q_bias" in ours else "none"
    if not found["class_token"] or "head.norm.weight" in ours:
        found["pool"] = "mean_tokens"
    if EMBED + "learned" in ours:
        found |= {"rows": ours[EMBED + "learned"][1], "positions": "learned"}
    return found


def _ratio(hidden: int, dim: int) -> float:
    """Such that int(dim * ratio) is `hidden` again: the plain quotient may fall short by one."""
    ratio = hidden / dim
    return ratio if int(dim * ratio) == hidden else math.nextafter(ratio, math.inf)


def _habits(keymap: KeyMap, found: Mapping[str, Any]) -> dict[str, Any]:
    """What no shape shows, but the authors who name parameters so all do."""
    if keymap is FLAX:
        return {"activation": "gelu_tanh", "resize": "linear", "eps": 1e-6}
    if keymap is GLSIM:
        return {"eps": 1e-12}
    if keymap is GMM_MASK:
        return {"eps": 1e-5, "resize": "refuse"}
    if keymap is HUGGING_FACE:  # its ViT and DeiT, and its DINOv2
        return {"eps": 1e-6, "resize": "exact"} if found.get("layer_scale") else {"eps": 1e-12}
    if keymap is CLIP:
        return {"eps": 1e-5, "activation": "quick_gelu"}
    return {"eps": 1e-5} if found.get("norm_pre") else {}


_ARGUMENTS = {  # the authors' constructor arguments and our settings
    "img_size": "image_size", "image_size": "image_size", "audio_size": "image_size", "img": "image_size",
    "num_heads": "heads", "heads": "heads", "num_attention_heads": "heads", "dim_head": "head_dim",
    "layer_norm_eps": "eps", "ln_eps": "eps", "drop_path_rate": "drop_path", "stochastic_depth": "drop_path",
}  # fmt: skip
_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1152: 16, 1280: 16, 1408: 16, 1664: 16}  # usual ones by width


def settings(build: Mapping[str, Any], names: Mapping[str, Sequence[int]], base: Any) -> dict[str, Any]:
    """Settings of a plain ViT that differ from `base`, from the authors' arguments, parameter names and shapes."""
    keymap = choose(PUBLISHED, names)
    found = _structure(keymap, names)
    rows = found.pop("rows", None)
    if not found:
        return found
    given = {ours: build[theirs] for theirs, ours in _ARGUMENTS.items() if theirs in build}
    if isinstance(given.get("image_size"), list | tuple):
        sides = tuple(given["image_size"])
        given["image_size"] = sides[0] if len(sides) == 1 else sides
    if "drop_path" in given:
        given["drop_path"] = float(given["drop_path"])
        if "stochastic_depth" in build:  # the same in every block
            given["drop_path"] = (given["drop_path"],) * found["depth"]
    if "tanh" in str(build.get("gelu", "")):
        given |= {"activation": "gelu_tanh", "resize": "linear"}
    if found["dim"] != base.dim and "heads" not in given:
        given["heads"] = _HEADS.get(found["dim"], max(1, found["dim"] // 64))
    inner, heads = found.pop("inner"), given.get("heads", base.heads)
    if inner != found["dim"] and "head_dim" not in given:
        given["head_dim"] = inner // heads
    if rows is None and base.positions == "learned":
        found["positions"] = "none"
    new = found | _habits(keymap, found) | given
    return new if rows is None else new | _table(new, rows, new.get("image_size", base.image_size))


def _table(new: Mapping[str, Any], rows: int, image_size: int | tuple[int, int]) -> dict[str, Any]:
    """Image size and prefix of a table of positions with `rows` rows: the size stated, where it fits, else a square."""
    patch = new["patch"]
    h, w = patch if isinstance(patch, tuple) else (patch, patch)
    H, W = image_size if isinstance(image_size, tuple) else (image_size, image_size)
    prefix = int(new["class_token"]) + int(new["distillation_token"])
    built = (H // h) * (W // w)
    if rows not in (built, built + prefix):
        side = next((math.isqrt(n) for n in (rows - prefix, rows) if math.isqrt(n) ** 2 == n), None)
        if side is not None and h == w:
            image_size, built = side * h, side * side
    return {"image_size": image_size, "prefix_positions": rows != built or not prefix}
