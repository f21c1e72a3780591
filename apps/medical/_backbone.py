"""Any backbone of core with the classifier that its family publishes: what a network is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from core import registry
from core.heads.classify import MapHead


@dataclass(frozen=True)
class BackboneConfig:
    in_channels: int = 3
    classes: int = 2
    size: int = 224  # side of the image in pixels
    backbone: str = "swin/tiny"  # family/variant
    overrides: Mapping[str, Any] = field(default_factory=dict)  # of the backbone's settings


class BackboneClassifier(nn.Module):
    """Image (B, C, size, size) -> logits (B, classes): pooled features under one linear layer.

    `encoder` is the backbone.
    """

    mixes = False

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        c = self.config = config
        self.size = c.size
        _, base = registry.lookup(c.backbone)
        given: dict[str, Any] = {"in_channels": c.in_channels}
        if hasattr(base, "image_size"):
            given["image_size"] = c.size
        classifier = registry.create(c.backbone, classes=c.classes, **{**given, **c.overrides})
        self.encoder, self.head, self.takes_tokens = classifier.backbone, classifier.head, classifier.takes_tokens

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(image))
        return logits

    def features(self, image: Tensor) -> Any:
        """What the head reads: the pyramid, or the tokens of a token family."""
        return self.encoder.tokens(image) if self.takes_tokens else self.encoder(image)

    def explained(self, image: Tensor) -> tuple[Tensor, list[Tensor] | None]:
        """Logits, and what of the answered class each place holds, (B, h, w) of the last level, adding up to 1.

        The parts below zero are cut off (class activation map, arXiv 1512.04150). None for heads that do not pool a
        map under a LayerNorm and one linear layer.
        """
        found = self.features(image)
        logits: Tensor = self.head(found)
        head = self.head
        if not isinstance(head, MapHead) or head.per_map or not isinstance(head.hidden, nn.Identity):
            return logits, None
        x = head.norm(found[-1].permute(0, 2, 3, 1)).float()  # (B, h, w, C)
        weight = head.fc.weight[logits.argmax(1)].float()  # (B, C)
        held = (x * weight[:, None, None]).sum(-1).clamp(min=0)
        total = held.sum((1, 2), keepdim=True)
        even = held.new_full(held.shape, 1 / held[0].numel())
        return logits, [held.div(total.clamp(min=1e-12)).where(total > 1e-12, even)]

    def scales(self, image: Tensor) -> list[Tensor]:
        """The backbone's pyramid, for core.facts_table."""
        levels: list[Tensor] = self.encoder(image)
        return levels

    def freeze_encoder(self, frozen: bool = True) -> None:
        """Stop, or let again, the training of the backbone."""
        self.encoder.requires_grad_(not frozen)
