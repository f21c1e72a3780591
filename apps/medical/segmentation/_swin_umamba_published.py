"""The authors' arguments, parameter names and ImageNet loading of Swin-UMamba and Swin-UMamba-D."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from apps.medical.segmentation._swin_umamba import SwinUMambaConfig, SwinUMambaDConfig
from core.backbones import vmamba
from core.weights import KeyMap

ENCODER = "vssm_encoder."

Shapes = Mapping[str, Sequence[int]]


def base(build: Mapping[str, Any], names: Shapes, config: SwinUMambaConfig) -> SwinUMambaConfig:
    """Configuration of the base form: shapes decide what they can, arguments the rest."""
    encoder = _encoder(names)
    skips = tuple(names[f"encoder{i}.layer.conv1.conv.weight"][0] for i in range(1, 6))
    return replace(
        config,
        in_channels=names["stem.0.weight"][1],
        classes=names["out_layers.0.conv.conv.weight"][0],
        deep_supervision=build.get("deep_supervision", config.deep_supervision),
        widths=skips,
        dims=encoder.dims,
        depths=encoder.depths,
        state=encoder.state,
        drop_path=build.get("drop_path_rate", config.drop_path),
    )


def small(build: Mapping[str, Any], names: Shapes, config: SwinUMambaDConfig) -> SwinUMambaDConfig:
    """Configuration of the D form."""
    encoder = _encoder(names)
    given, decoder = build.get("vss_args", {}), build.get("decoder_args", {})
    blocks = {n.split(".")[4] for n in names if n.startswith("decoder.stages.0.blocks.")}
    return replace(
        config,
        in_channels=encoder.in_channels,
        classes=names["decoder.seg_layers.3.weight"][0],
        deep_supervision=decoder.get("deep_supervision", config.deep_supervision),
        patch=encoder.patch,
        dims=encoder.dims,
        depths=encoder.depths,
        state=encoder.state,
        decoder_depth=len(blocks),
        decoder_state=names["decoder.stages.0.blocks.0.self_attention.A_logs"][1],
        drop_path=given.get("drop_path_rate", config.drop_path),
        decoder_drop_path=decoder.get("drop_path_rate", config.decoder_drop_path),
    )


def _encoder(names: Shapes) -> vmamba.VMambaConfig:
    if "vssm_encoder.patch_embed.proj.weight" not in names:
        raise KeyError("vssm_encoder.patch_embed.proj.weight")
    return vmamba.from_published({}, {n.removeprefix(ENCODER): s for n, s in names.items() if n.startswith(ENCODER)})


# VMamba's own renaming, behind the prefix; what has no "^" serves the decoder's blocks, too.
_RENAME = [
    (rf"^{ENCODER}{p[1:]}" if p.startswith("^") else p, r.replace("backbone.", "encoder."))
    for p, r in vmamba.PUBLISHED[0].rename
]

PUBLISHED = {
    "swin_umamba": KeyMap(
        when=r"^encoder1\.layer\.",
        rename=[
            *_RENAME,
            *((rf"^encoder{i + 1}\.layer\.", f"skips.{i}.") for i in range(5)),
            *((rf"^decoder{6 - i}\.", f"ups.{i}.") for i in range(5)),
            (r"^decoder1\.layer\.", "last."),
            (r"\.transp_conv\.conv\.", ".up."),
            (r"\.conv_block\.", ".block."),
            (r"\.conv3\.conv\.", ".shortcut."),
            (r"\.(conv[12])\.conv\.", r".\1."),
            (r"^out_layers\.(\d)\.conv\.conv\.", r"heads.\1."),
        ],
    ),
    "swin_umamba_d": KeyMap(
        when=r"^decoder\.expand_layers\.",
        rename=[
            *_RENAME,
            (r"^decoder\.expand_layers\.3\.", "last."),
            (r"^decoder\.expand_layers\.", "expands."),
            (r"^decoder\.concat_back_dim\.", "joins."),
            (r"^decoder\.stages\.(\d)\.blocks\.", r"blocks.\1."),
            *((rf"^decoder\.seg_layers\.{3 - i}\.", f"heads.{i}.") for i in range(4)),
        ],
    ),
}
