"""What writes captions: the tokeniser, the small decoder, greedy and beam search, and models of transformers."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from apps.medical.pathology_caption import hosted, model, vocabulary
from apps.medical.pathology_caption._gnn_vitcap import build
from apps.medical.pathology_caption.decoder import NOTHING, Decoder, DecoderConfig
from apps.medical.pathology_caption.generation import Written, write
from apps.medical.pathology_caption.vocabulary import BEGIN, END, UNKNOWN, Vocabulary
from core import bundle
from core.errors import FileError, InputError, SettingError, ShapeError, WeightsError

WORDS = ("gland", "tumour", ".")


def made(words: tuple[str, ...] = WORDS, room: int = 12, seed: int = 0, **config: Any) -> Decoder:
    torch.manual_seed(seed)
    decoder = Decoder(DecoderConfig(**{"dim": 16, "depth": 2, "heads": 2, **config}), words, room).double().eval()
    with torch.no_grad():
        for p in decoder.parameters():
            p.mul_(6)  # far from even answers
    return decoder


def prefix(batch: int = 1, length: int = 1, seed: int = 5) -> Tensor:
    return torch.randn(batch, length, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# --- words ----------------------------------------------------------------------------------------------------------


def test_the_vocabulary_is_made_of_the_captions() -> None:
    found = Vocabulary.build(["The gland is HER2 positive. The gland.", "Stroma of the gland, 0.5 mm (tub1/tub2)."])
    assert set(found.words) == {
        "the", "gland", "is", "HER2", "positive", ".", "stroma", "of", ",", "0.5", "mm", "(", "tub1", "/", "tub2", ")",
    }  # fmt: skip
    assert found.words[:3] == (".", "gland", "the")
    assert len(found) == 4 + len(found.words)
    for caption in ("The gland is HER2 positive. Stroma of the gland.", "Gland, 0.5 mm (tub1/tub2)."):
        assert found.text(found.encode(caption)) == caption
    assert found.encode("THE nucleus") == [found.encode("the")[0], UNKNOWN]
    assert found.text([END, 5]) == ""
    assert Vocabulary.build(["a b", "a"], least=2).words == ("a",)


def test_words_are_written_as_they_stand_inside_sentences() -> None:
    assert Vocabulary.build(["Gland. Gland", "a Gland gland gland"]).words[0] == "gland"
    assert Vocabulary.build(["McCune", "Tumour"]).words == ("McCune", "tumour")
    assert vocabulary.tokens("well-differentiated  don't\n x_y ß") == [
        "well-differentiated", "don't", "x", "_", "y", "ß",
    ]  # fmt: skip


def test_other_vocabularies_are_refused() -> None:
    with pytest.raises(SettingError, match="'gland' twice"):
        Vocabulary(["gland", "Gland"])
    with pytest.raises(SettingError, match="'a b', which is not one word"):
        Vocabulary(["a b"])
    with pytest.raises(InputError, match="no word occurs 3 times"):
        Vocabulary.build(["a b", "a"], least=3)
    with pytest.raises(InputError, match="captions are needed"):
        Vocabulary.build(["", " "])


# --- decoder --------------------------------------------------------------------------------------------------------


def test_the_decoder_is_causal_and_a_cache_changes_nothing() -> None:
    decoder = made()
    inputs = torch.cat([prefix(2, 2), decoder.embed(torch.tensor([[1, 4, 5, 6], [1, 6, 6, 5]]))], dim=1)
    with torch.no_grad():
        whole, _ = decoder(inputs)
        changed = inputs.clone()
        changed[:, 4:] *= -1
        other, _ = decoder(changed)
        torch.testing.assert_close(other[:, :4], whole[:, :4])
        assert not torch.allclose(other[:, 4], whole[:, 4])
        for cut in (1, 3, 5):
            first, cache = decoder(inputs[:, :cut])
            second, cache = decoder(inputs[:, cut:], cache)
            torch.testing.assert_close(torch.cat([first, second], dim=1), whole)
            assert cache[0][0].shape == (2, 2, 6, 8)
        first, cache = decoder(inputs[:, :3])
        swapped, _ = decoder(inputs[:, 3:].flip(0), decoder.reorder(cache, torch.tensor([1, 0])))
        torch.testing.assert_close(swapped.flip(0), whole[:, 3:])


def test_the_decoder_equals_a_plain_loop() -> None:
    decoder = made(depth=1)
    inputs = prefix(1, 5)
    with torch.no_grad():
        block = decoder.blocks[0]
        x = inputs[0] + decoder.positions[:5]
        normed = torch.nn.functional.layer_norm(x, (16,), block.norm1.weight, block.norm1.bias)
        q, k, v = (normed @ block.attention.qkv.weight.T + block.attention.qkv.bias).split(16, dim=1)
        mixed = torch.zeros_like(x)
        for t, head in itertools.product(range(5), range(2)):
            at = slice(8 * head, 8 * head + 8)
            shares = torch.stack([q[t, at] @ k[s, at] / 8**0.5 for s in range(t + 1)]).softmax(0)
            mixed[t, at] = sum(shares[s] * v[s, at] for s in range(t + 1))
        x = x + mixed @ block.attention.proj.weight.T + block.attention.proj.bias
        normed = torch.nn.functional.layer_norm(x, (16,), block.norm2.weight, block.norm2.bias)
        hidden = torch.nn.functional.gelu(normed @ block.mlp.fc1.weight.T + block.mlp.fc1.bias, approximate="tanh")
        x = x + hidden @ block.mlp.fc2.weight.T + block.mlp.fc2.bias
        x = torch.nn.functional.layer_norm(x, (16,), decoder.norm.weight, decoder.norm.bias)
        torch.testing.assert_close(decoder(inputs)[0][0], x @ decoder.words.weight.T)


def test_the_decoder_has_its_room() -> None:
    with pytest.raises(ShapeError, match="13 positions, the decoder has 12"):
        made()(prefix(1, 13))
    with pytest.raises(SettingError, match="3 heads"):
        made(heads=3)


def test_only_words_and_ends_have_a_loss() -> None:
    torch.manual_seed(0)
    network = model.create(
        "gnn_vitcap", size=16, width=8, clusters=2, overrides={"dim": 16, "depth": 1, "heads": 2, "patch": 8},
        words=WORDS, longest=6, prefix=2, decoder={"dim": 16, "depth": 1, "heads": 2},
    ).double().eval()  # fmt: skip
    slides = torch.randn(2, 8, dtype=torch.float64)
    tokens = torch.tensor([[BEGIN, 4, 5, END], [BEGIN, 6, END, NOTHING]])
    loss, count = network.caption_loss(slides, tokens)
    assert int(count) == 5
    want = 0.0
    for row, words in zip(slides, ([4, 5, END], [6, END]), strict=True):
        before = [BEGIN, *words[:-1]]
        start = network.prefixes(row[None])
        inputs = torch.cat([start, network.writer.embed(torch.tensor([before]))], dim=1)
        logits, _ = network.writer(inputs)
        log = logits[0, start.shape[1] :].detach().log_softmax(-1)  # of the prefix nothing is asked
        want -= float(sum(log[i, w] for i, w in enumerate(words)))
    assert float(loss.detach()) == pytest.approx(want)
    none, count = network.caption_loss(slides, torch.full((2, 1), NOTHING))
    assert (float(none.detach()), int(count)) == (0.0, 0)


# --- search ---------------------------------------------------------------------------------------------------------


def log_probability(decoder: Decoder, start: Tensor, words: tuple[int, ...]) -> float:
    """Of words and their end, in one pass without a cache."""
    with torch.no_grad():
        inputs = torch.cat([start, decoder.embed(torch.tensor([[BEGIN, *words]]))], dim=1)
        log = decoder(inputs)[0][0, start.shape[1] :].log_softmax(-1)
    return float(sum(log[i, w] for i, w in enumerate([*words, END])))


@pytest.mark.parametrize("seed", range(4))
def test_a_wide_beam_search_finds_the_most_probable_caption(seed: int) -> None:
    decoder, start = made(seed=seed), prefix(3, 2, seed)
    found = write([decoder], [start], longest=3, beams=100)
    captions = [c for n in range(4) for c in itertools.product((4, 5, 6), repeat=n)]
    for b in range(3):
        scores = {c: log_probability(decoder, start[b : b + 1], c) for c in captions}
        best = max(scores, key=lambda c: scores[c])
        assert found[b].tokens == best
        assert found[b].log_probability == pytest.approx(scores[best])


@pytest.mark.parametrize("seed", range(4))
def test_one_beam_is_the_greedy_caption(seed: int) -> None:
    decoder, start = made(seed=seed), prefix(2, 1, seed)
    found = write([decoder], [start], longest=6, beams=1)
    for b in range(2):
        words: list[int] = []
        while len(words) < 6:
            with torch.no_grad():
                inputs = torch.cat([start[b : b + 1], decoder.embed(torch.tensor([[BEGIN, *words]]))], dim=1)
                logits = decoder(inputs)[0][0, -1]
            logits[list(decoder.banned)] = -torch.inf
            if int(logits.argmax()) == END:
                break
            words.append(int(logits.argmax()))
        assert found[b].tokens == tuple(words)
        assert found[b].log_probability == pytest.approx(log_probability(decoder, start[b : b + 1], tuple(words)))


def test_more_beams_never_find_less_and_slides_do_not_mix() -> None:
    decoder, start = made(seed=1), prefix(5, 1, 9)
    scores = []
    for beams in (1, 5, 200):
        together = write([decoder], [start], longest=4, beams=beams)
        apart = [write([decoder], [start[b : b + 1]], longest=4, beams=beams)[0] for b in range(5)]
        assert [w.tokens for w in together] == [w.tokens for w in apart]
        scores.append([w.log_probability for w in together])
    assert all(a <= b + 1e-9 for few, many in itertools.pairwise(scores) for a, b in zip(few, many, strict=True))
    assert scores[0] != scores[2]


def test_several_models_write_with_the_mean_of_their_probabilities() -> None:
    models, starts = [made(seed=s) for s in (0, 1)], [prefix(1, 1, 0), prefix(1, 3, 1)]
    (found,) = write(models, starts, longest=3, beams=100)

    def mean(words: tuple[int, ...]) -> float:
        total = 0.0
        for i, w in enumerate([*words, END]):
            parts = []
            for m, start in zip(models, starts, strict=True):
                with torch.no_grad():
                    inputs = torch.cat([start, m.embed(torch.tensor([[BEGIN, *words[:i]]]))], dim=1)
                    parts.append(float(m(inputs)[0][0, -1].softmax(-1)[w]))
            total += math.log(sum(parts) / 2)
        return total

    captions = [c for n in range(4) for c in itertools.product((4, 5, 6), repeat=n)]
    best = max(captions, key=mean)
    assert found.tokens == best
    assert found.log_probability == pytest.approx(mean(best))
    with pytest.raises(InputError, match="different words"):
        write([models[0], made(words=("a", "b", "c"))], starts, longest=3)


def test_searches_that_cannot_be_are_refused() -> None:
    decoder = made(room=6)
    assert isinstance(write([decoder], [prefix()], longest=4)[0], Written)
    for longest, beams in ((5, 1), (0, 1), (3, 0)):
        with pytest.raises(SettingError, match="words 1 to 4"):
            write([decoder], [prefix()], longest=longest, beams=beams)


# --- transformers ---------------------------------------------------------------------------------------------------

CAPTIONS = ["well differentiated tumour", "poorly differentiated tumour of the stomach", "normal gland"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GPT-2 with a word tokenizer of its own, made here."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    where = tmp_path_factory.mktemp("gpt2")
    words = ["<end>", "<unknown>", *dict.fromkeys(" ".join(CAPTIONS).split())]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unknown>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<end>", bos_token="<end>", unk_token="<unknown>"
    )
    wrapped.save_pretrained(where)
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_embd=16, n_layer=2, n_head=2, vocab_size=len(words) + 3, n_positions=24, bos_token_id=0, eos_token_id=0
    )
    gpt = transformers.GPT2LMHeadModel(config)
    with torch.no_grad():
        for p in gpt.parameters():
            p.mul_(4)
    gpt.save_pretrained(where)
    return where


def test_a_hosted_model_writes_as_transformers_does(folder: Path) -> None:
    language = hosted.read(folder).eval()
    assert (language.dim, language.room, len(language.vocabulary)) == (16, 24, 14)
    assert language.banned == (1, 11, 12, 13)
    start = torch.randn(3, 2, 16, generator=torch.Generator().manual_seed(1))
    found = write([language], [start], longest=7, beams=1)
    inputs = torch.cat([start, language.embed(torch.zeros(3, 1, dtype=torch.long))], dim=1)
    outside = language.model.generate(
        inputs_embeds=inputs, max_new_tokens=7, do_sample=False, pad_token_id=0, eos_token_id=0,
        suppress_tokens=list(language.banned), attention_mask=torch.ones(3, 3),
    )  # fmt: skip
    for written, row in zip(found, outside.tolist(), strict=True):
        assert list(written.tokens) == (row[: row.index(0)] if 0 in row else row)
    # A cache changes nothing: the score is that of one pass.
    for b, written in enumerate(found):
        tokens = torch.tensor([[0, *written.tokens]])
        with torch.no_grad():
            logits, _ = language(torch.cat([start[b : b + 1], language.embed(tokens)], dim=1))
        log = logits[0, 2:].double().log_softmax(-1)
        total = sum(float(log[i, w]) for i, w in enumerate([*written.tokens, 0]))
        assert written.log_probability == pytest.approx(total, abs=1e-4)
    beams = write([language], [start], longest=7, beams=4)
    assert all(b.log_probability >= g.log_probability - 1e-4 for b, g in zip(beams, found, strict=True))


def test_hosted_words_are_the_folders_own(folder: Path) -> None:
    words = hosted.read(folder).vocabulary
    numbers = words.encode("poorly differentiated gland")
    assert words.text(numbers) == "poorly differentiated gland"
    assert words.text([*numbers[:2], words.end, *numbers]) == "poorly differentiated"
    assert (words.begin, words.end) == (0, 0)


def hosted_network(folder: Path, *, weights: bool = True) -> Any:
    config = model.configured(
        "gnn_vitcap",
        {
            "size": 16, "width": 8, "clusters": 2, "overrides": {"dim": 16, "depth": 1, "heads": 2, "patch": 8},
            "language": "hosted", "hosted": hosted.files(folder), "longest": 7,
        },
    )  # fmt: skip
    torch.manual_seed(0)
    return build(config, folder=folder, weights=weights)


def test_a_bundle_brings_its_hosted_model_without_the_folder(folder: Path, tmp_path: Path) -> None:
    from core.config import as_table

    network = hosted_network(folder).eval()
    assert [n for n in network.state_dict() if "lm_head" in n] == []  # one tensor, one name
    with torch.no_grad():
        network.language.model.transformer.wte.weight.add_(1)  # trained on
    settings = bundle.Settings("medical pathology caption", bundle.Network("gnn_vitcap", as_table(network.config)))
    hosted.keep(folder, tmp_path / "run")
    bundle.save(tmp_path / "run", network, settings, {})
    assert not list((tmp_path / "run" / hosted.LANGUAGE).glob("*.safetensors"))
    again = model.from_bundle(bundle.load(tmp_path / "run"))
    state = again.state_dict()
    assert all(torch.equal(v, state[n]) for n, v in network.state_dict().items())
    tied = again.language.model
    assert tied.lm_head.weight is tied.transformer.wte.weight
    slide = torch.randn(1, 8)
    with torch.no_grad():
        both = [write([n.writer], [n.prefixes(slide)], longest=7, beams=2) for n in (network, again)]
    assert both[0] == both[1]
    file = tmp_path / "run" / hosted.LANGUAGE / "tokenizer.json"
    file.write_text(file.read_text().replace("gland", "gladn"))
    with pytest.raises(WeightsError, match=r"tokenizer\.json: missing, or altered"):
        model.from_bundle(bundle.load(tmp_path / "run"))


def test_the_loss_of_a_hosted_model_reaches_it_and_the_slide(folder: Path) -> None:
    network = hosted_network(folder).train()
    slides = torch.randn(2, 8, requires_grad=True)
    words = network.writer.vocabulary
    first = [words.begin, *words.encode("normal gland"), words.end]
    tokens = torch.tensor([first, [words.begin, *words.encode("tumour"), words.end, NOTHING]])
    loss, count = network.caption_loss(slides, tokens)
    assert int(count) == 5
    loss.backward()
    assert slides.grad is not None
    assert bool(slides.grad.any())
    assert bool(network.language.model.transformer.wte.weight.grad.any())


def test_folders_that_cannot_be_used_are_refused_in_a_sentence(folder: Path, tmp_path: Path) -> None:
    import shutil

    def refused(name: str, words: str, change: Any) -> None:
        copy = tmp_path / name
        shutil.copytree(folder, copy)
        change(copy)
        with pytest.raises(FileError, match=words) as found:
            hosted.read(copy)
        assert str(copy) in str(found.value)
        assert "\n" not in str(found.value)

    def config(where: Path, **more: Any) -> None:
        file = where / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | more))

    refused("bare", "no weights as .safetensors", lambda c: (c / "model.safetensors").unlink())
    refused(
        "pickled", "no weights as .safetensors", lambda c: (c / "model.safetensors").rename(c / "pytorch_model.bin")
    )
    refused("none", "no config.json", lambda c: (c / "config.json").unlink())
    refused("text", "not JSON", lambda c: (c / "config.json").write_text("{"))
    refused("code", "asks for code", lambda c: config(c, auto_map={"AutoModelForCausalLM": "x.Y"}))
    refused("t5", "transformers cannot read it|an encoder and a decoder", lambda c: config(c, model_type="t5"))
    refused("wide", "do not fill the model|cannot read it", lambda c: config(c, n_layer=3))
    refused("cut", "cannot read it", lambda c: (c / "model.safetensors").write_bytes(b"cut"))
    with pytest.raises(FileError, match="no such folder"):
        hosted.read(tmp_path / "nowhere")
    config_ = model.configured("gnn_vitcap", {"size": 16, "language": "hosted", "hosted": {}, "longest": 60})
    with pytest.raises(SettingError, match="24 positions"):
        build(config_, folder=folder)
