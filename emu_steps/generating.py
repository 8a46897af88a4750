"""`emu generate`: pictures of one prompt, written as they are drawn, none over another."""

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BATCH = 32  # pictures at a time, as for the evaluation's; chosen here
STEM_LENGTH = 40  # characters of the prompt in a file's name; chosen here


def check_folder(out: Path) -> None:
    """ValueError where pictures cannot be written to `out`: said before a model is loaded."""
    if not str(out).strip():
        raise ValueError(f"--out {str(out)!r} is blank; give a folder")
    for folder in (out, *out.parents):
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"--out {out}: {folder} is a file; give a folder")


def write_pictures(
    pipeline: Any, prompt: str, num: int, seed: int, out: Path, num_inference_steps: int, guidance_scale: float
) -> Iterator[Path]:
    """Draw `num` pictures, of the seeds that follow `seed`, into PNGs in `out`; yields each path as it is written.

    A file that is there is left alone: another name is taken. Says on stderr where the model reads only the beginning
    of the prompt.
    """
    from emu_models.latent.pipeline import draw

    if told := describe_cut(pipeline, prompt):
        print(f"emu: {told}", file=sys.stderr)
    out.mkdir(parents=True, exist_ok=True)
    stem = "".join(c if c.isalnum() else "-" for c in prompt.lower()).strip("-")[:STEM_LENGTH] or "picture"
    starts = [0, *range(1, num, BATCH), num]  # the first is shown while the others are drawn
    for start, end in itertools.pairwise(starts):
        seeds = [seed + i for i in range(start, end)]
        images = draw(pipeline, [prompt] * len(seeds), seeds, num_inference_steps, guidance_scale)
        for number, image in zip(seeds, images, strict=True):
            path = free_path(out, f"{stem}-{number}")
            image.save(path)
            yield path


def free_path(folder: Path, stem: str) -> Path:
    """STEM.png, or STEM-2.png and so on where that is taken."""
    path, number = folder / f"{stem}.png", 2
    while path.exists():
        path, number = folder / f"{stem}-{number}.png", number + 1
    return path


def describe_cut(pipeline: Any, prompt: str) -> str:
    """What of a prompt a pipeline reads, where it is longer than its text encoders take; else empty."""
    from emu_models.latent.checkpoints import captions_of

    most = getattr(pipeline.config, "num_text_tokens", None)  # ours alone; another's encoders have their own limit
    read: dict[int, tuple[int, str]] = {}  # tokens that an encoder takes -> how long the prompt is to it, what is left
    for tokenizer in captions_of(pipeline).tokenizers:
        length = min(most or tokenizer.model_max_length, tokenizer.model_max_length)
        tokens = tokenizer(prompt, truncation=False, verbose=False)["input_ids"]
        cut = tokenizer(prompt, truncation=True, max_length=length)["input_ids"]
        read[length] = len(tokens), str(tokenizer.decode(cut, skip_special_tokens=True))
    length = max(read)
    num, begin = read[length]
    if num <= length:
        return ""
    return f"the prompt has {num} tokens and this model reads the first {length}: {begin!r}"
