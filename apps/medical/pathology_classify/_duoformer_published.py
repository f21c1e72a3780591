"""How the authors' files name DuoFormer's parameters, and what names and shapes say of the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from apps.medical._backbone import BackboneConfig
from apps.medical._class_weights import Parts, System
from apps.medical.pathology_classify._duoformer import DuoFormerConfig
from core.errors import WeightsError
from core.weights import KeyMap

_SCALES = {6: 2, 22: 3, 86: 4}  # tokens of a patch -> scales

PUBLISHED = KeyMap(
    rename=[
        (r"^resnet_projector\.0\.", "encoder.stages.0.conv."),
        (r"^resnet_projector\.1\.", "encoder.stages.0.norm."),
        *((rf"^resnet_projector\.{i + 4}\.", f"encoder.stages.{i}.blocks.") for i in range(4)),
        *((rf"^projection\.proj_heads{3 - i}\.", f"projections.{i}.") for i in range(4)),
        *((rf"^chann_proj1\.conv{i + 1}\.", f"channel_token.fine.{i}.") for i in range(2)),
        (r"^chann_proj2\.conv1\.", "channel_token.middle."),
        (r"^chann_proj_all\.nConvs\.(\d)\.conv\.", r"channel_token.mix.\1.0."),
        (r"^chann_proj_all\.nConvs\.(\d)\.norm\.", r"channel_token.mix.\1.1."),
        (r"^channel_token$", "scale_token"),
        (r"^vision_transformer\.pos_embed_for_scale$", "scale_positions"),
        (r"^vision_transformer\.pos_embed$", "positions"),
        (r"^vision_transformer\.cls_token$", "class_token"),
        (r"^vision_transformer\.fc_norm\.", "unused_norm."),
        (r"^vision_transformer\.head\.", "head."),
        (r"^vision_transformer\.scaleBlocks\.(\d+)\.attn\.", r"scale_blocks.\1.token_mixer."),
        (r"^vision_transformer\.scaleBlocks\.(\d+)\.mlp\.", r"scale_blocks.\1.channel_mixer."),
        (r"^vision_transformer\.scaleBlocks\.", "scale_blocks."),
        (r"^vision_transformer\.blocks\.(\d+)\.attn\.", r"patch_blocks.\1."),
    ],
    when=r"^vision_transformer\.pos_embed_for_scale$",
)


HEADS = r"^head\."  # our names of what depends on the classes
_OURS = "scale_positions"  # a name that only our own files have


def from_published(build: Mapping[str, Any], names: Mapping[str, Sequence[int]], base: Any) -> Any:
    """See model.from_published."""
    if isinstance(base, BackboneConfig):
        return replace(base, classes=names["head.fc.weight"][0])
    own = _OURS in names
    theirs = "" if own else "vision_transformer."
    tokens = names[_OURS if own else "vision_transformer.pos_embed_for_scale"][2]
    if tokens not in _SCALES:
        raise WeightsError(f"has positions for {tokens} tokens a patch; two, three and four scales have 6, 22 and 86")
    stages = [f"encoder.stages.{i}.blocks." if own else f"resnet_projector.{i + 4}." for i in range(4)]
    depths = tuple(len({n.removeprefix(p).split(".")[0] for n in names if n.startswith(p)}) for p in stages)
    stem = "encoder.stages.0.conv.weight" if own else "resnet_projector.0.weight"
    bottleneck = stages[0] + "0.conv3.weight" in names
    kind = next((k for k, found in _RESNETS.items() if found == (depths, bottleneck)), None)
    blocks = "patch_blocks." if own else "vision_transformer.blocks."
    mlp = "scale_blocks.0.channel_mixer.fc1.weight" if own else "vision_transformer.scaleBlocks.0.mlp.fc1.weight"
    hidden, dim = names[mlp]
    config: DuoFormerConfig = replace(
        base,
        in_channels=names[stem][1] if stem in names or not own else base.in_channels,
        classes=names[f"{theirs}head.weight"][0],
        backbone=base.backbone if kind is None else kind,
        backbone_settings=base.backbone_settings if kind is None else {},
        scales=_SCALES[tokens],
        scale_token="random" if ("scale_token" if own else "channel_token") in names else "channel",
        dim=dim,
        heads=int(build.get("num_heads", base.heads)),
        depth=len({n.removeprefix(blocks).split(".")[0] for n in names if n.startswith(blocks)}),
        mlp_ratio=hidden / dim,
        frozen=bool(build.get("freeze_backbone", base.frozen)),
    )
    return config


_RESNETS = {
    "resnet/18": ((2, 2, 2, 2), False), "resnet/34": ((3, 4, 6, 3), False), "resnet/50": ((3, 4, 6, 3), True),
    "resnet/101": ((3, 4, 23, 3), True),
}  # fmt: skip


def _parts(config: Any) -> Parts:
    return {"backbone": ("encoder", config.backbone, config.backbone_settings)}


SYSTEM = System(
    "duoformer", PUBLISHED, _OURS, HEADS, _parts, "torch.save({'state_dict': s['model'].state_dict()}, NEW)"
)
