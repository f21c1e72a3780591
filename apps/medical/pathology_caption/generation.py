"""Captions word by word: greedy and beam search behind prefixes, with a key and value cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from apps.medical.pathology_caption.decoder import Language
from core.errors import InputError, SettingError


@dataclass(frozen=True)
class Written:
    """One caption.

    Attributes:
        tokens: its words as numbers, without begin and end.
        log_probability: natural logarithm, of the words and the end.
    """

    tokens: tuple[int, ...]
    log_probability: float


@torch.no_grad()
def write(languages: Sequence[Language], prefixes: Sequence[Tensor], *, longest: int, beams: int = 5) -> list[Written]:
    """The most probable caption behind each prefix, as far as a beam search finds it; 1 beam is the greedy one.

    A caption's score is the sum of its words' and its end's logarithms of probability, without a norm by length. At
    the last place only the end may stand, so that every caption is whole. Several models speak with the mean of their
    probabilities.

    Args:
        languages: one or several models over the same words, in evaluation mode.
        prefixes: of each model, (B, P, d).
        longest: words of a caption at most.
        beams: captions that are followed at once.

    Raises InputError for models over other words, SettingError for no beam or for more words than a model has room for.
    """
    first = languages[0]
    words = len(first.vocabulary)
    room = min(m.room - p.shape[1] - 1 for m, p in zip(languages, prefixes, strict=True))
    if beams < 1 or not 0 < longest <= room:
        raise SettingError(f"beams are at least 1 and words 1 to {room}, got {beams} and {longest}")
    if any(len(m.vocabulary) != words or getattr(m.vocabulary, "words", ()) != getattr(first.vocabulary, "words", ())
           for m in languages[1:]):  # fmt: skip
        raise InputError("these networks write with different words, so their captions cannot be averaged")
    batch, device = prefixes[0].shape[0], prefixes[0].device
    end = first.vocabulary.end
    beams = min(beams, words)
    begin = torch.full((batch, 1), first.vocabulary.begin, device=device)
    caches: list[Any] = [None] * len(languages)
    inputs = [torch.cat([p, m.embed(begin)], dim=1) for m, p in zip(languages, prefixes, strict=True)]
    banned = torch.zeros(words, dtype=torch.bool, device=device)
    banned[list(first.banned)] = True
    score = torch.zeros(batch, 1, device=device, dtype=torch.float64)
    tokens = torch.empty(batch, 1, 0, dtype=torch.long, device=device)
    done = torch.zeros(batch, 1, dtype=torch.bool, device=device)
    width = 1  # rows a slide: one before the first word, `beams` after it
    for place in range(longest + 1):
        answers = [m(x, c) for m, x, c in zip(languages, inputs, caches, strict=True)]
        log = _mean([logits[:, -1] for logits, _ in answers]).view(batch, width, words)
        log = log.masked_fill(banned, -torch.inf)
        if place == longest:
            log = _only(log, end)
        log = torch.where(done.unsqueeze(-1), _only(torch.zeros_like(log), end), log)  # a whole caption stays as it is
        both = (score.unsqueeze(-1) + log).flatten(1)
        score, best = both.topk(min(beams, both.shape[1]), dim=1)
        row, token = best // words, best % words
        tokens = torch.cat([tokens.gather(1, row.unsqueeze(-1).expand(-1, -1, place)), token.unsqueeze(-1)], dim=2)
        done = done.gather(1, row) | (token == end)
        if bool(done.all()):
            break
        rows = (row + width * torch.arange(batch, device=device).unsqueeze(1)).flatten()
        width = row.shape[1]
        caches = [m.reorder(cache, rows) for m, (_, cache) in zip(languages, answers, strict=True)]
        inputs = [m.embed(token.reshape(-1, 1)) for m in languages]
    return [
        Written(_before(tokens[b, 0].tolist(), end), float(score[b, 0])) for b in range(batch)
    ]  # topk sorts: the first is the best


def _mean(logits: Sequence[Tensor]) -> Tensor:
    """Logarithm of the mean probability, in float64."""
    logs = torch.stack([x.double().log_softmax(-1) for x in logits])
    return logs.logsumexp(0) - torch.tensor(float(len(logits)), dtype=torch.float64, device=logs.device).log()


def _only(log: Tensor, token: int) -> Tensor:
    """Nothing but one token."""
    out = torch.full_like(log, -torch.inf)
    out[..., token] = log[..., token]
    return out


def _before(tokens: Sequence[int], end: int) -> tuple[int, ...]:
    return tuple(tokens[: tokens.index(end)] if end in tokens else tokens)
