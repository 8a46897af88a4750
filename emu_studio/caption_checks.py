"""What is looked at before a caption is saved. A finding is a remark: whoever wrote the caption may save it all the
same, which is kept with it.

Short: one phrase of 3 to 12 words. Long: one to three sentences (our guideline; the Emu paper, sec. 3.3, has captions
written by hand and says no more of their length). Numbers without another source are chosen here.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher, get_close_matches

import numpy as np

SHORT_WORDS = (3, 12)
LONG_SENTENCES = (1, 3)
ALIKE = 0.9  # of the words of two captions, in order, that make them near-duplicates
TAKEN_OVER = 5  # words in a row from the old caption that are a leftover of it; a shorter one's whole, from 3 words on

_WORD = re.compile(r"[^\W_]+(?:['’\-][^\W_]+)*")
_SENTENCE_END = re.compile(r"[.!?…]+[\"'”’)»]*(?:\s+|$)|[。！？]+")
_NOUN = r"(?:image|picture|photo(?:graph)?|pic)s?"
_BOILERPLATE = re.compile(
    rf"\b(?:{_NOUN} (?:of|shows?|showing|depicts?|depicting|features?|featuring)|in (?:this|the) {_NOUN}"
    rf"|stock (?:{_NOUN}|vectors?|illustrations?|photography|footage)|royalty[- ]free|all rights reserved|click here"
    r"|free download|hd wallpaper|high[- ]resolution|shutterstock|getty ?images|istock(?:photo)?|alamy|dreamstime"
    r"|depositphotos|adobe ?stock)\b",
    re.IGNORECASE,
)
# What is no word of a description: file names, addresses, tags, numbers of a catalogue.
_NO_WORD = re.compile(
    r"\S*(?:[_@#©]|://|www\.)\S*|\S+\.(?:jpe?g|png|gif|webp|tiff?|bmp)\b|\b[a-z]+-?\d{3,}\b|\b\d{3,}x\d{3,}\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Finding:
    """A remark on one of the two captions. field: "short" or "long". code: "length", "boilerplate", "duplicate",
    "leftover" or "draft". told: what the writer reads."""

    field: str
    code: str
    told: str


def check_captions(
    short: str, long: str, old: str = "", others: Sequence[tuple[str, str]] = (), draft: tuple[str, str] | None = None
) -> list[Finding]:
    """Return what is to be said of a short and a long caption. old: the corpus's caption. others: (short, long) of
    other pictures. draft: what the writer began with, None if they began with nothing."""
    found = [*_check_length(short, long)]
    for number, (field, text) in enumerate((("short", short), ("long", long))):
        told = [
            ("boilerplate", _find_boilerplate(text)),
            ("duplicate", _find_duplicate(text, [other[number] for other in others])),
            ("leftover", _find_leftover(text, old)),
            ("draft", "This is the model's draft as it was." if draft and text == draft[number] else ""),
        ]
        found += [Finding(field, code, one) for code, one in told if one]
    return found


def count_words(text: str) -> int:
    """How many words a text has."""
    return len(_words(text))


def count_sentences(text: str) -> int:
    """How many sentences a text has: parts that end with a mark or with the text."""
    return sum(bool(_WORD.search(part)) for part in _SENTENCE_END.split(text))


def edit_distance(first: str, second: str) -> int:
    """Levenshtein's distance: the least number of characters that are inserted, removed or replaced."""
    codes = np.array([ord(character) for character in second])
    places = np.arange(len(second) + 1)
    row = places
    for number, character in enumerate(first, start=1):
        replaced_or_removed = np.minimum(row[:-1] + (codes != ord(character)), row[1:] + 1)
        row = np.concatenate([[number], replaced_or_removed])
        row = np.minimum.accumulate(row - places) + places  # insertions, each one more than the place before
    return int(row[-1])


def _check_length(short: str, long: str) -> list[Finding]:
    found, (fewest, most) = [], SHORT_WORDS
    if not fewest <= (num := count_words(short)) <= most:
        found.append(
            Finding("short", "length", f"{num} word{'s' * (num != 1)}; a short caption has {fewest} to {most}.")
        )
    fewest, most = LONG_SENTENCES
    if not fewest <= (num := count_sentences(long)) <= most:
        found.append(
            Finding("long", "length", f"{num} sentence{'s' * (num != 1)}; a long caption has {fewest} to {most}.")
        )
    elif _words(long) == _words(short):
        found.append(Finding("long", "length", "It says no more than the short one."))
    return found


def _find_boilerplate(text: str) -> str:
    found = _BOILERPLATE.search(text)
    return f"“{found[0]}” is no description: say what is in it." if found else ""


def _find_duplicate(text: str, others: Sequence[str]) -> str:
    words = tuple(_words(text))
    if not words:
        return ""
    # 2 M / (a + b) >= ALIKE, with M words of a matched by b >= M, leaves so many of a without a match. Of one word more
    # than that at least one is in every near-duplicate: looking for long ones spares comparing with nearly all others.
    num_unmatched = int(len(words) * (1 - ALIKE / (2 - ALIKE)))
    looked_for = sorted(set(words), key=len, reverse=True)[: num_unmatched + 1]
    by_words = {}
    for other in others:
        lowered = other.lower()
        if any(word in lowered for word in looked_for):
            by_words[tuple(_words(other))] = other
    found = get_close_matches(words, list(by_words), n=1, cutoff=ALIKE)
    return f"Nearly the caption of another picture: “{by_words[tuple(found[0])]}”" if found else ""


def _find_leftover(text: str, old: str) -> str:
    for found in _NO_WORD.finditer(text):
        if found[0].lower() in old.lower():
            return f"“{found[0]}” is left over from the old caption."
    words, before = _words(text), _words(old)
    run = SequenceMatcher(None, before, words, autojunk=False).find_longest_match()
    if run.size >= max(3, min(TAKEN_OVER, len(before))):
        return f"“{' '.join(words[run.b : run.b + run.size])}” is taken over from the old caption."
    return ""


def _words(text: str) -> list[str]:
    return [found.lower() for found in _WORD.findall(text)]
