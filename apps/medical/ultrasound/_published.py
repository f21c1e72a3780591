"""How the authors' files name HSQformer's parameters, and what these say of the network."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from apps.medical._backbone import BackboneConfig
from apps.medical._class_weights import Parts, System, WithFamilies, sized
from apps.medical.ultrasound._hsqformer import HSQformerConfig
from core import registry
from core.errors import WeightsError

_ORDERS = ("serial", "parallel", "invert_serial")
_KINDS = ("sparse_token", "dense_token", "sparse_expert", "dense_expert", "mlp")
_OURS = "query_positions"  # a name that only our own files have


_ROUTED = [
    (r"\.moe\.(fc\d)\.", r".experts.\1."),  # one MLP in place of the mixture
    (r"\.moe\.topkroute_linear\.", ".experts.router."),
    (r"\.moe\.noise_linear\.", ".experts.spread."),
    (r"\.moe\.experts\.", ".experts.experts."),
]
_PACKED = [
    (r"\.in_proj_(weight|bias)$", r".qkv.\1"),
    (r"\.out_proj\.", ".proj."),
]
PUBLISHED = WithFamilies(
    rename=[
        (r"^query_tokens$", "queries"),
        (r"^pos_embedding_query_tokens$", "query_positions"),
        (r"^pos_embedding\.(\d+)\.weight$", r"positions.\1"),
        (r"^level_embed\.weight$", "levels"),
        (r"^stage_proj\.", "projections."),
        (r"^head_norm\.", "norm."),
        (r"^head\.topkroute_linear\.", "head.router."),
        (r"^head\.noise_linear\.", "head.spread."),
        (r"^sc_att_mlp\.(\d+)\.sclayer\.", r"fusions.\1.attention."),
        (r"^sc_att_mlp\.", "fusions."),
        (r"\.(self|cross)_attention_(swin|conv)\.(?:self_attn|multihead_attn)\.", r".\1_\2."),
        (r"\.(cross|self)_conv\.", r".\1_convnext."),
        (r"\.swin_(pre|self)_norm\.", r".\1_norm_swin."),
        (r"\.conv_(pre|self)_norm\.", r".\1_norm_convnext."),
        (r"\.pre_norm_", ".cross_norm_"),
        (r"^q_cross_stage\.", "blocks."),
        (r"\.cross_pre_norm_query\.", ".norm_query."),
        (r"\.cross_pre_norm_kv\.", ".norm_level."),
        (r"\.self_pre_norm\.", ".norm_self."),
        (r"\.cross_att\.multihead_attn\.", ".cross."),
        (r"\.self_att\.self_attn\.", ".self_attention."),
        (r"^(blocks\..*)\.moe_norm\.", r"\1.norm_experts."),
        (r"^(fusions\..*)\.moe_norm\.", r"\1.norm."),
        *_ROUTED,
        *_PACKED,
    ],
    drop=[r"relative_position_index$", r"attn_mask$"],
    when=r"^sc_att_mlp\.",
    families=[
        ("swintransformer.", "swin.", registry.family("swin").PUBLISHED[-1]),
        ("convnext.", "convnext.", registry.family("convnext").PUBLISHED[0]),
    ],
)
HEADS = r"^head\."  # our names of what depends on the classes


def from_published(build: Mapping[str, Any], names: Mapping[str, Sequence[int]], base: Any) -> Any:
    """See model.from_published."""
    if isinstance(base, BackboneConfig):
        return replace(base, classes=names["head.fc.weight"][0])
    own = _OURS in names
    queries = names["queries" if own else "query_tokens"]
    table = names["positions.0" if own else "pos_embedding.0.weight"]
    levels = names["levels" if own else "level_embed.weight"][0]
    blocks = re.compile(r"^blocks\.(\d+)\.(\d+)\." if own else r"^q_cross_stage\.(\d+)\.(\d+)\.")
    found = {(int(m[1]), int(m[2])) for n in names if (m := blocks.match(n))}
    depths = tuple(sum(level == i for level, _ in found) for i in range(levels))
    heads = tuple(build["q_former_head_num"])[:levels] if "q_former_head_num" in build else base.heads
    given: dict[str, Any] = {
        "queries": queries[1],
        "dim": queries[2],
        "depths": depths,
        "heads": heads,
        "size": round(table[0] ** 0.5) * 4 * 2 ** (4 - levels),
        "in_channels": names["swin.stages.0.merge.patches.conv.weight" if own else _PATCHES][1],
        **_experts(build, names, base, own),
        **_head(names),
    }
    for theirs, ours in (("dropout", "dropout"), ("drop_path_rate", "drop_path")):
        if theirs in build:
            given[ours] = float(build[theirs])
    order = str(build.get("serial_parallel", base.order))
    if order not in _ORDERS:
        raise WeightsError(f"serial_parallel is one of {', '.join(_ORDERS)}, got {order!r}")
    return replace(base, **given, order=order)


_PATCHES = "swintransformer.patch_embed.proj.weight"


def _experts(
    build: Mapping[str, Any], names: Mapping[str, Sequence[int]], base: HSQformerConfig, own: bool
) -> dict[str, Any]:
    """The kind of the experts: whether there is a router shows, which of four kinds it is must be said."""
    part = "fusions.0.experts." if own else "sc_att_mlp.0.moe."
    kind = str(build.get("sparse_dense", base.experts))
    if kind not in _KINDS:
        raise WeightsError(f"sparse_dense is one of {', '.join(_KINDS)}, got {kind!r}")
    router = names.get(part + ("router.weight" if own else "topkroute_linear.weight"))
    if router is None:
        if part + "fc1.weight" not in names:
            raise KeyError(part + "fc1.weight")
        return {"experts": "mlp"}
    if kind == "mlp":
        raise WeightsError("has routed experts, and the setting `experts` asks for one MLP; leave it out")
    # The authors' own settings of these two are not used by their blocks, which have 4 experts and keep 1.
    return {"experts": kind, "count": router[0]}


def _head(names: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    if "head.weight" in names:
        return {"head": "linear", "classes": names["head.weight"][0]}
    if "head.fc2.weight" in names:
        return {"head": "mlp", "classes": names["head.fc2.weight"][0]}
    return {"head": "experts", "classes": names["head.experts.0.fc2.weight"][0]}


def _parts(config: HSQformerConfig) -> Parts:
    return {
        name: (name, family, sized(family, config.size, settings))
        for name, family, settings in (
            ("swin", config.swin, config.swin_settings),
            ("convnext", config.convnext, config.convnext_settings),
        )
    }


SYSTEM = System("hsqformer", PUBLISHED, _OURS, HEADS, _parts, "torch.save({'state_dict': s['state_dict']}, NEW)")
