"""A causal language model of the `transformers` library from a local folder, in place of the small decoder.

The folder holds config.json, the weights as safetensors, and the model's own tokenizer. Nothing is downloaded and no
code of the folder is run. A bundle keeps everything but the weights, which are among its own, in LANGUAGE.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import shutil
import warnings
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from core.errors import FileError, MissingExtraError, SettingError, WeightsError

LANGUAGE = "language"  # folder inside a bundle
EXTRA = "language"  # of the package, that brings transformers
_ROOM = 1 << 20  # positions of a model without a limit
# What makes a model and its tokenizer; a bundle takes no other file over.
_FILES = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model",
)  # fmt: skip


class HostedWords:
    """The words of a folder's own tokenizer; begin is its token for that or, without one, its end."""

    def __init__(self, tokenizer: Any, size: int, where: Path) -> None:
        end = tokenizer.eos_token_id
        if end is None:
            raise FileError(
                where, "its tokenizer has no end-of-text token", "captions could not end; use another model"
            )
        self.tokenizer, self.size = tokenizer, size
        self.end = int(end)
        self.begin = self.end if tokenizer.bos_token_id is None else int(tokenizer.bos_token_id)
        self.words: Mapping[str, int] = tokenizer.get_vocab()

    def __len__(self) -> int:
        return self.size

    @property
    def banned(self) -> tuple[int, ...]:
        """Special tokens but the end, and numbers that no word has."""
        known = set(self.words.values()) - (set(self.tokenizer.all_special_ids) - {self.end})
        return tuple(i for i in range(self.size) if i not in known)

    def encode(self, caption: str) -> list[int]:
        return list(self.tokenizer.encode(caption, add_special_tokens=False))

    def text(self, numbers: Iterable[int]) -> str:
        found = list(numbers)
        kept = found[: found.index(self.end)] if self.end in found else found
        return str(self.tokenizer.decode(kept, skip_special_tokens=True)).strip()


class Hosted(nn.Module):
    """The model as `decoder.Language`: input embeddings (B, T, d) behind a cache -> logits (B, T, words), the cache.

    Args:
        model: a causal language model of transformers.
        words: of its tokenizer.
    """

    def __init__(self, model: Any, words: HostedWords) -> None:
        super().__init__()
        self.model, self._words = model, words
        self.dim = int(model.get_input_embeddings().embedding_dim)
        self.room = int(getattr(model.config, "max_position_embeddings", None) or _ROOM)
        self.banned = words.banned
        self.shared = _shared(model)  # second names of one tensor: written once, and put back when read
        self.register_state_dict_post_hook(_without_shared)
        self.register_load_state_dict_pre_hook(_with_shared)

    @property
    def vocabulary(self) -> HostedWords:
        return self._words

    def embed(self, tokens: Tensor) -> Tensor:
        """Tokens (B, T) -> inputs (B, T, d); what is below 0 (no token) is embedded as word 0."""
        embedded: Tensor = self.model.get_input_embeddings()(tokens.clamp(min=0))
        return embedded

    def forward(self, inputs: Tensor, cache: Any = None) -> tuple[Tensor, Any]:
        answer = self.model(inputs_embeds=inputs, past_key_values=cache, use_cache=not self.training)
        return answer.logits, answer.past_key_values

    def reorder(self, cache: Any, rows: Tensor) -> Any:
        """The cache of other rows of the batch, (R,) numbers; it is changed in place."""
        cache.batch_select_indices(rows)
        return cache


def _shared(model: nn.Module) -> dict[str, str]:
    first: dict[int, str] = {}
    found = {}
    for name, value in model.named_parameters(remove_duplicate=False):
        kept = first.setdefault(id(value), name)
        if kept != name:
            found[name] = kept
    return found


def _without_shared(module: Any, state: dict[str, Any], prefix: str, _: Any) -> None:
    for name in module.shared:
        state.pop(f"{prefix}model.{name}", None)


def _with_shared(module: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for name, kept in module.shared.items():
        if f"{prefix}model.{kept}" in state:
            state[f"{prefix}model.{name}"] = state[f"{prefix}model.{kept}"]


def read(folder: str | Path, *, weights: bool = True) -> Hosted:
    """The model of a folder.

    Args:
        folder: of a model, or LANGUAGE of a bundle.
        weights: take the folder's weights; else the model is built without, to be filled.

    Raises:
        MissingExtraError: transformers is not installed.
        FileError: no such folder, a file missing or damaged, a model that needs code of the folder, that is no causal
            language model, weights that are not safetensors or do not fit it.
    """
    folder = Path(folder)
    _checked(folder, weights)
    try:
        transformers: Any = importlib.import_module("transformers")
    except ImportError:
        raise MissingExtraError("transformers", EXTRA) from None
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    way = "give a folder with a causal language model, its tokenizer and its weights as safetensors"
    with _silent(transformers):
        try:
            config = transformers.AutoConfig.from_pretrained(folder, **local)
            if config.is_encoder_decoder:
                raise FileError(folder, f"holds a {config.model_type}, an encoder and a decoder", way)
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **local)
            if weights:
                model, told = transformers.AutoModelForCausalLM.from_pretrained(
                    folder, config=config, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **local
                )
                _fits(folder, told)
            else:
                model = transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False).float()
        except FileError:
            raise
        except Exception as error:  # the library raises whatever its parts do
            said = " ".join(str(error).split())[:200]
            raise FileError(folder, f"transformers cannot read it ({type(error).__name__}: {said})", way) from None
    size = int(model.get_output_embeddings().weight.shape[0])
    if len(tokenizer) > size:
        raise FileError(folder, f"its tokenizer has {len(tokenizer)} words, its model {size}", way)
    return Hosted(model, HostedWords(tokenizer, size, folder))


def _checked(folder: Path, weights: bool) -> None:
    if not folder.is_dir():
        raise FileError(folder, "no such folder", "a language model is given by the path of its folder")
    file = folder / "config.json"
    if not file.is_file():
        raise FileError(folder, "has no config.json", "give the folder of a transformers model")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise FileError(file, f"not JSON ({error})") from None
    if not isinstance(config, dict) or "auto_map" in config:
        raise FileError(file, "asks for code of its own folder", "only models that transformers itself has are taken")
    if weights and not any(folder.glob("*.safetensors")):
        right = "save the model again with save_pretrained(..., safe_serialization=True)"
        raise FileError(folder, "has no weights as .safetensors", right)


def _fits(folder: Path, told: Mapping[str, Any]) -> None:
    for what in ("missing_keys", "mismatched_keys"):
        if found := sorted(str(key) for key in told.get(what, ())):
            more = f" and {len(found) - 3} more" if len(found) > 3 else ""
            raise FileError(folder, f"its weights do not fill the model: {', '.join(found[:3])}{more}")


@contextmanager
def _silent(transformers: Any) -> Any:
    """The library's remarks and bars are held back inside."""
    log = transformers.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()


def files(folder: str | Path) -> dict[str, str]:
    """Name -> SHA-256 of what makes a folder's model and tokenizer, without the weights."""
    found = (Path(folder) / name for name in _FILES)
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in found if p.is_file()}


def keep(source: str | Path, bundle: str | Path) -> None:
    """Copy what makes the model and the tokenizer into a bundle's folder."""
    target = Path(bundle) / LANGUAGE
    target.mkdir(parents=True, exist_ok=True)
    for name in files(source):
        if (Path(source) / name).resolve() != (target / name).resolve():
            shutil.copyfile(Path(source) / name, target / name)


def same(folder: str | Path, known: Mapping[str, str]) -> None:
    """Raise WeightsError where a bundle's folder does not hold the files that it was written with."""
    folder = Path(folder)
    if not known:
        raise SettingError(f"{folder}: the settings name no files of a language model")
    found = files(folder)
    changed = sorted(name for name in {*known, *found} if known.get(name) != found.get(name))
    if changed:
        raise WeightsError(f"{folder / changed[0]}: missing, or altered after the bundle was written; copy it again")
