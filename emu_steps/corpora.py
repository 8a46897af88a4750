"""Where the raw corpus comes from, by params.yaml, and how `emu ingest` writes that there."""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from emu_data.addresses import check_options, full_address
from emu_data.files import atomic_file
from emu_data.records import DecodeError, decode_rgb
from emu_data.shards import list_shards, read_samples, square
from emu_data.sources import folder, img2dataset, table
from emu_data.sources.damage import DamageShares, check_truth, write_truth
from emu_data.sources.detect import Corpus
from emu_data.sources.packages import DemoCorpusConfig, build_demo_corpus, read_subjects
from emu_data.sources.standing import new_in
from emu_steps.layout import Layout
from emu_steps.params import RawCorpus, read_params


def read_corpus(section: RawCorpus, layout: Layout) -> None:
    """Writes data/raw from the source; data/damage.parquet with the truth where the damage was ours, else empty.

    Whole shards that somebody put into data/raw stay there while the source is the same (sources/standing.py).
    ValueError, with nothing touched, where something that is not ours would be lost.
    """
    if section.source == "packages":
        _build_demo(section, layout)
        return
    # no damage of ours, so no truth to hold the gates against; the file is there since a stage's outs must be
    nothing = pd.DataFrame({"key": pd.Series(dtype="string")})
    check_truth(layout.damage, nothing)
    _register(section, layout)
    write_truth(layout.damage, nothing)


def new_in_source(section: RawCorpus, layout: Layout) -> list[str]:
    """What the source holds that it did not when data/raw was last written: names of img2dataset's files, addresses of
    tables, or the folder whose listing changed. From listings alone; none where params name another source by now.
    """
    path, options = section.path or "", section.storage_options
    match section.source:
        case "img2dataset":
            base = full_address(path)
            return new_in(layout.raw, img2dataset.SOURCE, base, img2dataset.look_at_source(base, options))
        case "folder":
            base = full_address(path)
            return new_in(layout.raw, folder.SOURCE, base, folder.look_at_source(base, options))
        case "table":
            config = table.describe(path, section.image_column, section.caption_column, section.base)
            return new_in(layout.raw, table.SOURCE, config, table.look_at_source(full_address(path), options))
    return []  # packages are pinned by their digests


def first_images(raw: Path, num: int, size: int) -> tuple[np.ndarray, list[str]]:
    """The first pictures of the corpus that can be decoded, uint8 (N, size, size, 3), and their captions."""
    images: list[np.ndarray] = []
    captions: list[str] = []
    for shard in list_shards(raw):
        for sample in read_samples(shard, on_error=lambda error: None):  # the ledger will say what cannot be read
            with suppress(DecodeError):
                images.append(square(decode_rgb(sample.image), size))
                captions.append(sample.caption)
            if len(images) == num:
                return np.stack(images), captions
    if not images:
        raise ValueError(f"{raw}: not one picture of the corpus can be read; `emu ingest` looks at the first few")
    return np.stack(images), captions


def ingest(root: Path, corpus: Corpus, copy: bool, options: Mapping[str, Any]) -> None:
    """Makes `corpus` the raw_corpus of the project's params.yaml; comments and all other entries stay."""
    path = root / "params.yaml"
    read_params(path)  # says what is wrong before anything is changed
    entries: dict[str, Any] = {"source": corpus.source, "path": corpus.path, "copy": copy}
    entries |= {"image_column": None, "caption_column": None, "base": None} | corpus.settings
    entries["storage_options"] = dict(options)
    text = set_entries(path.read_text(encoding="utf-8"), "raw_corpus", entries)
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


# A value on one line: quoted in either way, or plain up to a comment.
_YAML_VALUE = r"""\"(?:[^\"\\]|\\.)*\"|'(?:[^']|'')*'|[^\s\"'#].*?|"""


def set_entries(text: str, section: str, entries: Mapping[str, Any]) -> str:
    """Return a YAML text with entries of a top-level section set, line by line, so that comments stay.

    An entry that is not there is added below the section's first line, unless it is null, false or empty, which says
    nothing. Raises ValueError where the text is not laid out so that this can be done, an entry a line.
    """
    lines = text.split("\n")
    start = next((i for i, line in enumerate(lines) if re.match(rf"{section}:\s*(#.*)?$", line)), None)
    if start is None:
        raise ValueError(f"params.yaml has no line `{section}:`")
    end = next((i for i in range(start + 1, len(lines)) if re.match(r"[^\s#]", lines[i])), len(lines))
    indent = next((m[1] for line in lines[start + 1 : end] if (m := re.match(r"(\s+)[^\s#]", line))), "  ")
    added = start + 1
    for name, value in entries.items():
        pattern = re.compile(rf"({indent}{name}:)(\s*)({_YAML_VALUE})(\s+#.*)?\s*$")
        for i in range(start + 1, end):
            if match := pattern.match(lines[i]):
                lines[i] = f"{match[1]}{match[2] or ' '}{_scalar(value)}{match[4] or ''}"
                added = max(added, i + 1) if name in ("source", "path") else added
                break
        else:
            if value:
                lines.insert(added, f"{indent}{name}: {_scalar(value)}")
                added, end = added + 1, end + 1
    result = "\n".join(lines)
    before, after = yaml.safe_load(text), yaml.safe_load(result)
    kept = {name: value for name, value in entries.items() if value or name in (before[section] or {})}
    if after != {**before, section: {**(before[section] or {}), **kept}}:
        raise ValueError(f"params.yaml: the entries of {section} must stand on lines of their own; set by hand: {kept}")
    return result


def _scalar(value: Any) -> str:
    """A value as YAML on one line: plain where that reads as it is, else JSON, which is YAML too."""
    is_plain = isinstance(value, str) and re.fullmatch(r"[\w./][\w./:~+@-]*", value, re.ASCII)
    try:
        if is_plain and yaml.safe_load(f"x: {value}") == {"x": value}:
            return value
    except yaml.YAMLError:
        pass
    return json.dumps(value)


def _build_demo(section: RawCorpus, layout: Layout) -> None:
    if section.damage is None:
        raise ValueError("raw_corpus.damage is missing in params.yaml; the demo corpus needs its shares")
    config = DemoCorpusConfig(
        subjects=read_subjects(section.subjects, section.num_subjects_per_concept),
        styles=tuple(section.styles),
        size=section.image_size,
        samples_per_shard=section.samples_per_shard,
        damage=DamageShares(**section.damage.model_dump()),
        seed=section.seed,
    )
    build_demo_corpus(layout.raw, layout.damage, config, layout.cache / "packages")


def _register(section: RawCorpus, layout: Layout) -> None:
    options, copy, size = section.storage_options, section.copy_files, section.samples_per_shard
    check_options(options)
    if not section.path:
        raise ValueError(f"raw_corpus.path is missing in params.yaml; source {section.source} reads from it")
    match section.source:
        case "folder":
            folder.register_folder(section.path, layout.raw, copy, options, size)
        case "img2dataset":
            img2dataset.register_shards(section.path, layout.raw, copy, options)
        case _:
            columns = (section.image_column, section.caption_column, section.base)
            table.register_table(section.path, layout.raw, *columns, copy, options, size)
