"""UniFormer: pose vectors hold the last level and the heatmaps of the keypoint head behind it."""

from __future__ import annotations

from typing import Any

import torch
from run import Fixture, filled, pyramid_answers
from torch import Tensor, nn

from core.backbones._uniformer_heads import KeypointHead
from core.backbones.uniformer import PUBLISHED
from core.weights import convert


class Pose(nn.Module):
    """A dense backbone under the keypoint head."""

    def __init__(self, backbone: Any, fixture: Fixture) -> None:
        super().__init__()
        self.backbone, last = backbone, fixture.state["keypoint_head.final_layer.weight"]
        self.head = KeypointHead(backbone.channels[-1], last[0], width=last[1])


def model(fixture: Fixture, dtype: torch.dtype) -> nn.Module:
    network = filled("uniformer", fixture, dtype)
    if "keypoint_head.final_layer.weight" in fixture.state:
        network = Pose(network, fixture)
        network.load_state_dict(convert(fixture.state_dict(), PUBLISHED[0], network))
    return network.to(dtype).eval()


def answers(model: Any, fixture: Fixture, dtype: torch.dtype) -> dict[str, Tensor]:
    if not isinstance(model, Pose):
        return pyramid_answers(model, fixture, dtype)
    pyramid = model.backbone(fixture.input().to(dtype))
    found = {f"stage{i}": level for i, level in enumerate(pyramid, 1)} | {"heatmap": model.head(pyramid)}
    return {name: value for name, value in found.items() if name in fixture.outputs}
