"""Words of captions as numbers: a tokeniser made from the training captions, kept as plain words.

A caption is cut into words (letters and digits, joined by hyphens or apostrophes), numbers with a decimal point, and
single signs. Upper and lower case are one word; it is written as the training captions write it inside a sentence.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

from core.errors import InputError, SettingError

PADDING, BEGIN, END, UNKNOWN = range(4)
SPECIAL = ("<padding>", "<begin>", "<end>", "<unknown>")
_TOKEN = re.compile(r"\d+(?:[.,]\d+)+|[^\W_]+(?:[-'\u2019][^\W_]+)*|\S")
_CLOSES, _OPENS, _JOINS = frozenset(".,;:!?)]}%"), frozenset("([{"), frozenset("/")
_ENDS = frozenset(".!?")


def tokens(caption: str) -> list[str]:
    """The words and signs of a caption, as written.

    >>> tokens("Well-differentiated, 0.5 mm (tub1/tub2).")
    ['Well-differentiated', ',', '0.5', 'mm', '(', 'tub1', '/', 'tub2', ')', '.']
    """
    return _TOKEN.findall(unicodedata.normalize("NFC", caption))


class Vocabulary:
    """The words that captions are made of; `words` without the special ones, whose numbers are 0 to 3.

    Raises SettingError for words that occur twice (case aside), or that `tokens` would cut.
    """

    begin, end, unknown = BEGIN, END, UNKNOWN

    def __init__(self, words: Sequence[str]) -> None:
        self.words = tuple(words)
        self._number = {word.casefold(): i for i, word in enumerate(self.words, len(SPECIAL))}
        if len(self._number) != len(self.words):
            folded = [w.casefold() for w in self.words]
            raise SettingError(f"the vocabulary holds {next(w for w in folded if folded.count(w) > 1)!r} twice")
        cut = next((w for w in self.words if tokens(w) != [w]), None)
        if cut is not None:
            raise SettingError(f"the vocabulary holds {cut!r}, which is not one word")

    @classmethod
    def build(cls, captions: Iterable[str], *, least: int = 1) -> Vocabulary:
        """From captions: every word that occurs `least` times, the commonest first.

        Raises InputError where no word is left.
        """
        count: Counter[str] = Counter()
        inside: dict[str, Counter[str]] = {}
        for caption in captions:
            first = True
            for word in tokens(caption):
                key = word.casefold()
                count[key] += 1
                if first and word[1:] == word[1:].lower():
                    word = word[:1].lower() + word[1:]  # a capital that the place asks for
                    inside.setdefault(key, Counter())[word] += 0
                else:
                    inside.setdefault(key, Counter())[word] += 1
                first = word in _ENDS
        kept = sorted((w for w, n in count.items() if n >= least), key=lambda w: (-count[w], w))
        if not kept:
            raise InputError(f"no word occurs {least} times in the training captions; captions are needed")
        return cls([min(inside[w].items(), key=lambda pair: (-pair[1], pair[0]))[0] for w in kept])

    def __len__(self) -> int:
        return len(SPECIAL) + len(self.words)

    def encode(self, caption: str) -> list[int]:
        """Numbers of a caption's words, without begin and end; 3 for a word that is not known.

        >>> Vocabulary(["gland", "."]).encode("Gland tumour.")
        [4, 3, 5]
        """
        return [self._number.get(word.casefold(), UNKNOWN) for word in tokens(caption)]

    def text(self, numbers: Iterable[int]) -> str:
        """The caption of numbers up to the end; sentences begin with a capital, signs stand without needless spaces.

        >>> Vocabulary(["gland", "(", "tub1", ")", "."]).text([4, 5, 6, 7, 8, 4, 2, 4])
        'Gland (tub1). Gland'
        """
        written, glued, starts = "", True, True
        for number in numbers:
            if number == END:
                break
            if number in (PADDING, BEGIN):
                continue
            word = SPECIAL[UNKNOWN] if number == UNKNOWN else self.words[number - len(SPECIAL)]
            if not glued and word not in _CLOSES and word not in _JOINS:
                written += " "
            written += word[:1].upper() + word[1:] if starts else word
            glued, starts = word in _OPENS or word in _JOINS, word in _ENDS
        return written
