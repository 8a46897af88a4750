"""In which order a rater sees pairs, so that no prompt comes twice in a row: the second picture of the same text would
be judged by the memory of the first.
"""

from collections import Counter
from collections.abc import Sequence


def keep_apart(
    fresh: Sequence[int], repeats: Sequence[int], prompts: Sequence[int], before: int | None, num: int
) -> list[tuple[int, bool]]:
    """Return up to `num` pairs to be shown after each other: (place, whether it is a repeat).

    fresh, repeats: places that may be shown for the first and the second time, those that are wanted sooner first.
    prompts: place -> number of its prompt. before: the prompt that is shown before them, None for none.

    Two of a prompt follow each other only where no order of the fresh ones avoids it. Repeats come first, but never
    after their own prompt, and never where they would make that necessary.
    """
    fresh, repeats = list(fresh), list(repeats)
    left = Counter(prompts[place] for place in fresh)
    found: list[tuple[int, bool]] = []
    while len(found) < num:
        fits = (p for p in repeats if prompts[p] != before and 2 * left[prompts[p]] <= len(fresh))
        place = next(fits, None)
        if place is not None:
            repeats.remove(place)
            found.append((place, True))
        elif fresh:
            place = _pick(fresh, left, prompts, before)
            fresh.remove(place)
            left[prompts[place]] -= 1
            found.append((place, False))
        else:
            break
        before = prompts[place]
    return found


def _pick(fresh: Sequence[int], left: Counter[int], prompts: Sequence[int], before: int | None) -> int:
    """The first place of another prompt; of the prompt that more than half of them have, where there is one, since
    these could not be kept apart later."""
    often, num = left.most_common(1)[0]
    if 2 * num > len(fresh) and often != before:
        return next(place for place in fresh if prompts[place] == often)
    return next((place for place in fresh if prompts[place] != before), fresh[0])
