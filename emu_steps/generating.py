"""`emu generate`: draws pictures of one prompt and writes each at once, without overwriting files."""

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from emu_steps.layout import project_root
from emu_steps.params import REGISTERED

BATCH = 32  # pictures at a time, as in the evaluation; chosen here
STEM_LENGTH = 40  # characters of the prompt in a file's name; chosen here


def folder_on_disk(model: str) -> Path | None:
    """Return the folder that a model's address names, relative to the current folder or to the project; None for a
    registered model."""
    if model.startswith(REGISTERED):
        return None
    path = Path(model)
    return path if path.is_absolute() or path.exists() else project_root() / path


def check_folder(out: Path) -> None:
    """Raise ValueError if pictures cannot be written to `out`; called before a model is loaded."""
    if not str(out).strip():
        raise ValueError(f"--out {str(out)!r} is blank; give a folder")
    for folder in (out, *out.parents):
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"--out {out}: {folder} is a file; give a folder")


def write_pictures(
    pipeline: Any, prompt: str, num: int, seed: int, out: Path, num_inference_steps: int, guidance_scale: float
) -> Iterator[Path]:
    """Draw `num` pictures, with seeds from `seed` on, into PNGs in `out`; yield each path as it is written.

    An existing file is not overwritten: another name is used. Prints a note on stderr if the model reads only the
    beginning of the prompt.
    """
    from emu_models.drawing import draw

    if note := describe_cut(pipeline, prompt):
        print(f"emu: {note}", file=sys.stderr)
    out.mkdir(parents=True, exist_ok=True)
    stem = "".join(c if c.isalnum() else "-" for c in prompt.lower()).strip("-")[:STEM_LENGTH] or "picture"
    starts = [0, *range(1, num, BATCH), num]  # the first picture alone, so that it appears soon
    for start, end in itertools.pairwise(starts):
        seeds = [seed + i for i in range(start, end)]
        images = draw(pipeline, [prompt] * len(seeds), seeds, num_inference_steps, guidance_scale)
        for number, image in zip(seeds, images, strict=True):
            path = free_path(out, f"{stem}-{number}")
            image.save(path)
            yield path


def free_path(folder: Path, stem: str) -> Path:
    """Return the path of STEM.png or, if that file exists, of STEM-2.png and so on."""
    path, number = folder / f"{stem}.png", 2
    while path.exists():
        path, number = folder / f"{stem}-{number}.png", number + 1
    return path


def describe_cut(pipeline: Any, prompt: str) -> str:
    """Say which part of a prompt a pipeline reads, if the prompt is too long for all its text encoders; otherwise
    return "".
    """
    from emu_models.checkpoints import PipelineCaptions, captions_of

    captions = captions_of(pipeline)
    most = getattr(pipeline.config, "num_text_tokens", None)  # only ours has it; others' encoders have their own limit
    limits = captions.limits if isinstance(captions, PipelineCaptions) else [most] * len(captions.tokenizers)
    read: dict[int, tuple[int, str]] = {}  # an encoder's limit in tokens -> (tokens of the prompt, the part it reads)
    for tokenizer, limit in zip(captions.tokenizers, limits, strict=True):
        length = min(limit or tokenizer.model_max_length, tokenizer.model_max_length)
        tokens = tokenizer(prompt, truncation=False, verbose=False)["input_ids"]
        cut = tokenizer(prompt, truncation=True, max_length=length)["input_ids"]
        read[length] = len(tokens), str(tokenizer.decode(cut, skip_special_tokens=True))
    length = max(read)
    num, begin = read[length]
    if num <= length:
        return ""
    return f"the prompt has {num} tokens and this model reads the first {length}: {begin!r}"
