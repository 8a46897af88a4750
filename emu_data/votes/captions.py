"""Captions of the curated set, written out by rule from a picture's name ("red apple" -> "a red apple").

The paper has a caption written by hand for each of its 2 000 pictures (sec. 3.3). Where no person is at hand
this rule stands in: it adds the article that English asks for, and nothing that is not in the name; what is
in the picture beyond its name only a person can say. Everything made by it is labelled CAPTION_LABEL.
"""

import re

CAPTION_LABEL = "captions written by rule, not by people"


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Nouns without an article though their form is not plural. Chosen here from the demo's names.
_MASS = _words(
    """
    bacon bread broccoli butter camping candy confetti cooking corn dango fire fog food garlic ginger
    grass hair ice lightning luggage maize meat milk money music oden paper popcorn rain rice sand snow
    soap spaghetti sushi tofu water weather wood wool yarn
    """
)
# Singular nouns that end in s.
_SINGULAR_S = _words(
    """
    bus cactus circus compass dress glass octopus hibiscus lotus iris lens abacus rhinoceros
    """
)
_PREPOSITIONS = _words("of with in on and without behind at over under from")
# Vowel letters that sound like consonants (a unicorn), and the reverse (an hour).
_CONSONANT_SOUND = re.compile(r"(uni(?!mp|n[fjtv])|use|usu|eu|one\b|ukulele|utensil|utopia)")
_VOWEL_SOUND = re.compile(r"(hour|honest|heir|honou?r|[fhlmnrsx]-)")


def write_caption(name: str) -> str:
    """Return the caption of a picture called `name`: an article where there should be one, lower case, no
    full stop.

    "evergreen tree" -> "an evergreen tree", "french fries" -> "french fries", "slice of pizza" -> "a slice
    of pizza". A name that already opens with an article or a possessive is kept. Raises ValueError for an
    empty name.
    """
    words = name.lower().replace("_", " ").split()
    if not words:
        raise ValueError("a picture without a name cannot be captioned by rule: write its caption by hand")
    text = " ".join(words)
    if words[0] in ("a", "an", "the", "some", "one", "two", "three", "my", "your"):
        return text
    head = _head_noun(words)
    if head in _MASS or _is_plural(head):
        return text
    return f"{_article(words[0])} {text}"


def _head_noun(words: list[str]) -> str:
    """The noun that the others describe: the word before the first preposition or participle."""
    for index, word in enumerate(words[1:], start=1):
        if word in _PREPOSITIONS or word.endswith("ing"):
            return words[index - 1]
    return words[-1]


def _is_plural(noun: str) -> bool:
    return noun.endswith("s") and not noun.endswith(("ss", "us", "is")) and noun not in _SINGULAR_S


def _article(word: str) -> str:
    if _VOWEL_SOUND.match(word):
        return "an"
    return "an" if word[0] in "aeiou" and not _CONSONANT_SOUND.match(word) else "a"
