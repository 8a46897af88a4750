"""Captions of the demo's pictures, made by a rule from their bare names ("red apple" -> "a red apple").

The rule only adds the article that English needs. Captions of other corpora are never changed, down to the curated
set.
"""

import re


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Nouns that take no article although they are not plural. Chosen here from the demo's names.
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
    """Return the caption of a picture called `name`: in lower case, with an article if it needs one, without a full
    stop.

    "evergreen tree" -> "an evergreen tree", "french fries" -> "french fries", "slice of pizza" -> "a slice
    of pizza". A name that already begins with an article or a possessive is kept. Raises ValueError for an
    empty name.
    """
    words = name.lower().replace("_", " ").split()
    if not words:
        raise ValueError("a picture without a name cannot be captioned")
    text = " ".join(words)
    if words[0] in ("a", "an", "the", "some", "one", "two", "three", "my", "your"):
        return text
    head = _head_noun(words)
    if head in _MASS or _is_plural(head):
        return text
    return f"{_article(words[0])} {text}"


def _head_noun(words: list[str]) -> str:
    """Return the noun that the other words describe: the one before the first preposition or participle."""
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
