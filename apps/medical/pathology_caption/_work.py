"""What training fits: losses over bags, what an epoch counts, and which score decides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning
import torch
import torch.nn.functional as F
from torch import Tensor

from apps.medical.pathology_caption import clustering, inputs
from apps.medical.pathology_caption._gnn_vitcap import GNNViTCap, Slide
from apps.medical.pathology_caption.decoder import NOTHING
from apps.medical.pathology_caption.options import LANGUAGE_RATE, Options
from core.training.optimizers import groups
from core.training.recipe import Recipe


class Captioner(lightning.LightningModule):
    """A network with its losses: cross-entropy of the class, of the caption's words, or both, plus lambda times DEC's.

    `val/score` is the mean, over what it learns, of the balanced accuracy and of the words' probability (their
    geometric mean, each with the right words before it), both 0 to 1.

    Args:
        network: whose values are embeddings (a frozen encoder) or pixels.
        options: lambda and target of the clustering.
        counts: f (K,) of the training patches at the start.
        frozen: whether the patch encoder stays as it is.
    """

    counts: Tensor
    counting: Tensor
    epoch: Tensor

    def __init__(self, network: GNNViTCap, options: Options, counts: Tensor, *, frozen: bool) -> None:
        super().__init__()
        self.network, self.options, self.frozen = network, options, frozen
        # Of the epoch before and of this one, and which this one is: part of a checkpoint, not of the network.
        self.register_buffer("counts", counts.detach().float().cpu().clone())
        self.register_buffer("counting", torch.zeros_like(self.counts))
        self.register_buffer("epoch", torch.zeros((), dtype=torch.long))
        self._seen: list[tuple[Tensor, Tensor]] = []  # logits and labels of this validation
        self._told = torch.zeros(2, dtype=torch.float64)  # its words' loss, and how many they are
        if frozen:
            network.encoder.requires_grad_(False)

    def freeze_encoder(self, frozen: bool = True) -> None:
        self.network.encoder.requires_grad_(not (frozen or self.frozen))

    def parameter_groups(self, recipe: Recipe) -> list[dict[str, Any]]:
        """A language model that was trained before has LANGUAGE_RATE of the rate; all else as core does it."""
        found = groups(self, recipe)
        if self.network.config.language != "hosted":
            return found
        hosted = {id(p) for p in self.network.language.parameters()}
        parts = []
        for group in found:
            inside = [p for p in group["params"] if id(p) in hosted]
            outside = [p for p in group["params"] if id(p) not in hosted]
            parts += [{**group, "params": outside}] if outside else []
            parts += [{**group, "params": inside, "lr": recipe.lr * LANGUAGE_RATE}] if inside else []
        return parts

    def slide(self, batch: Mapping[str, Tensor]) -> Slide:
        """The network's answer for a batch as `collate` makes it."""
        values = batch["values"]
        if values.ndim == 4:
            values = inputs.normalised(values.permute(0, 3, 1, 2).float())
        answer: Slide = self.network(values, batch["mask"])
        return answer

    def training_step(self, batch: Mapping[str, Tensor], _: int) -> Tensor:
        slide = self.slide(batch)
        loss = torch.zeros((), device=self.device)
        known = batch["label"] != NOTHING
        if self.network.head is not None:
            each = F.cross_entropy(slide.logits.float(), batch["label"], ignore_index=NOTHING, reduction="sum")
            loss = loss + each / known.sum().clamp(min=1)
        if self.network.language is not None:
            told, count = self.network.caption_loss(slide.embedding, batch["tokens"])
            loss = loss + told / count.clamp(min=1)
        if self.options.clustering:
            loss = loss + self.options.clustering * self._dec(slide)
        return loss

    def _dec(self, slide: Slide) -> Tensor:
        if self.options.target == "batch":
            return clustering.dec_loss(slide.assignment, mask=slide.mask)
        if int(self.epoch) != self.current_epoch:  # what the epoch before counted is the target of this one
            self.counts.copy_(self.trainer.strategy.reduce(self.counting.clone(), reduce_op="sum"))
            self.counting.zero_()
            self.epoch.fill_(self.current_epoch)
        self.counting.add_(clustering.frequency(slide.assignment.detach(), slide.mask))
        return clustering.dec_loss(slide.assignment, self.counts, slide.mask)

    def on_validation_epoch_start(self) -> None:
        self._seen, self._told = [], torch.zeros(2, dtype=torch.float64)

    def validation_step(self, batch: Mapping[str, Tensor], _: int) -> None:
        slide = self.slide(batch)
        if self.network.head is not None:
            known = batch["label"] != NOTHING
            self._seen.append((slide.logits[known].float().cpu(), batch["label"][known].cpu()))
        if self.network.language is not None:
            told, count = self.network.caption_loss(slide.embedding, batch["tokens"])
            self._told += torch.stack([told.double().cpu(), count.double().cpu()])

    def on_validation_epoch_end(self) -> None:
        scores = []
        if self._told[1] > 0:
            words = (-self._told[0] / self._told[1]).exp()
            self.log("val/words", float(words))
            scores.append(words)
        labels = torch.cat([y for _, y in self._seen]) if self._seen else torch.empty(0)
        if len(labels):
            accuracy = balanced(torch.cat([x for x, _ in self._seen]).argmax(1), labels)
            self.log("val/balanced accuracy", float(accuracy))
            scores.append(accuracy)
        if scores:
            self.log("val/score", float(torch.stack(scores).mean()), prog_bar=True)


def balanced(answers: Tensor, labels: Tensor) -> Tensor:
    """The mean, over the classes that occur, of the part of a class that was found; float64.

    >>> float(balanced(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1])))
    0.75
    """
    right = (answers == labels).double()
    return torch.stack([right[labels == k].mean() for k in labels.unique()]).mean()
