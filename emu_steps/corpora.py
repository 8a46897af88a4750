"""Writes the raw corpus from the source that params.yaml names, and lets `emu ingest` name it there."""

import json
import re
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from emu_data.addresses import Store, check_options
from emu_data.files import atomic_file
from emu_data.guarded import decode_guarded
from emu_data.refs import Digest, digest_files
from emu_data.shards import iter_samples
from emu_data.sources import folder, img2dataset, table
from emu_data.sources.damage import check_truth, write_truth
from emu_data.sources.damage_shares import DamageShares
from emu_data.sources.detect import Corpus
from emu_data.sources.packages import DemoCorpusConfig, build_demo_corpus, read_subjects
from emu_data.sources.standing import new_in
from emu_steps.layout import Layout
from emu_steps.params import RawCorpus, read_params


def read_corpus(section: RawCorpus, layout: Layout, digest: Digest = digest_files) -> None:
    """Write data/raw from the source, and data/damage.parquet: the rows that were damaged on purpose, none unless the
    corpus is the demo's.

    digest: of the user's files that are referred to; one that uses DVC's cache need not read unchanged files again.
    Complete shards that a user put into data/raw stay there as long as the source is the same (sources/standing.py).

    Raises ValueError, and changes nothing, if files that no source wrote would be lost.
    """
    if section.source == "packages":
        _build_demo(section, layout)
        return
    # Nothing was damaged on purpose, so the gates cannot be measured; DVC still needs the file, an out of the stage.
    nothing = pd.DataFrame({"key": pd.Series(dtype="string")})
    check_truth(layout.damage, nothing)
    _register(section, layout, digest)
    write_truth(layout.damage, nothing)


def check_source(section: RawCorpus) -> None:
    """Raise ValueError if the source is on this machine and holds nothing, as its listing shows; others would have to
    be asked over a network, which `emu ingest` has done.
    """
    if section.source == "packages":
        return
    store = _store_of(section)
    if not store.is_local:
        return
    if not Path(store.address).exists():
        raise ValueError(f"raw_corpus.path: there is no {store}; name the corpus with emu ingest")
    match section.source:
        case "folder":
            found = any(one.pictures or one.metadata or one.downloads for one in folder.list_folders(store))
            kind = "pictures (.png, .jpg and so on)"
        case "img2dataset":
            found = any(".tar" in parts for parts in img2dataset.list_source(store).values())
            kind = "shards (tars, as img2dataset and webdataset write them)"
        case _:
            found, kind = bool(table.list_tables(store)), f"table ({', '.join(table.SUFFIXES)})"
    if not found:
        raise ValueError(f"raw_corpus.path: {store} holds no {kind}")


def new_in_source(section: RawCorpus, layout: Layout, digest: Digest = digest_files) -> list[str]:
    """Return what the source did not hold when data/raw was last written: names of img2dataset's files, addresses of
    tables, the folder if its listing has changed, and changed files to which data/raw refers. Empty if params.yaml now
    names another source.
    """
    store = Store(section.path or "", section.storage_options)
    match section.source:
        case "img2dataset":
            return new_in(layout.raw, img2dataset.SOURCE, store.address, img2dataset.inspect_source(store), digest)
        case "folder":
            config = folder.describe(store, section.caption_column)
            return new_in(layout.raw, folder.SOURCE, config, folder.inspect_source(store), digest)
        case "table":
            config = table.describe(store, section.image_column, section.caption_column, section.base)
            return new_in(layout.raw, table.SOURCE, config, table.inspect_source(store), digest)
        case "packages":
            return []  # they are pinned by their digests


def first_images(raw: Path, num: int, size: int) -> tuple[np.ndarray, list[str]]:
    """Return the first pictures of the corpus that can be decoded, uint8 (N, size, size, 3) with N at most `num`, and
    their captions. (The ledger will report those that cannot be read.)
    """
    found = list(islice(decode_guarded(iter_samples(raw), size), num))
    images = np.stack([image for _, image in found]) if found else np.zeros((0, size, size, 3), np.uint8)
    return images, [sample.caption for sample, _ in found]


def ingest(root: Path, corpus: Corpus, copy: bool, options: Mapping[str, Any]) -> None:
    """Make `corpus` the raw_corpus of the project's params.yaml; comments and all other entries stay."""
    path = root / "params.yaml"
    read_params(path)  # raises before anything is changed
    entries: dict[str, Any] = {"source": corpus.source, "path": corpus.path, "copy": copy}
    entries |= {"image_column": None, "caption_column": None, "base": None} | corpus.settings
    entries["storage_options"] = dict(options)
    text = set_entries(path.read_text(encoding="utf-8"), "raw_corpus", entries)
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


# A value on one line: quoted in either way, or plain up to a comment.
_YAML_VALUE = r"""\"(?:[^\"\\]|\\.)*\"|'(?:[^']|'')*'|[^\s\"'#].*?|"""


def set_entries(text: str, section: str, entries: Mapping[str, Any]) -> str:
    """Set entries of a top-level section in a YAML text, line by line, so that comments stay; return the new text.

    A missing entry is added below the section's first line, unless its value is null, false or empty. Raises ValueError
    if the section's entries are not each on one line.
    """
    lines = text.split("\n")
    start = next((i for i, line in enumerate(lines) if re.match(rf"{section}:\s*(#.*)?$", line)), None)
    if start is None:
        raise ValueError(f"params.yaml has no line `{section}:`; add one")
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
        raise ValueError(f"params.yaml: each entry of {section} must be on its own line; set these by hand: {kept}")
    return result


def _scalar(value: Any) -> str:
    """Write a value as YAML on one line: plain if it reads back as the same text, otherwise JSON, which is also
    YAML."""
    is_plain = isinstance(value, str) and re.fullmatch(r"[\w./][\w./:~+@-]*", value, re.ASCII)
    try:
        if is_plain and yaml.safe_load(f"x: {value}") == {"x": value}:
            return value
    except yaml.YAMLError:
        pass
    return json.dumps(value)


def _build_demo(section: RawCorpus, layout: Layout) -> None:
    if section.damage is None:
        raise ValueError("raw_corpus.damage is missing in params.yaml; the demo corpus needs it")
    config = DemoCorpusConfig(
        subjects=read_subjects(section.subjects, section.num_subjects_per_concept),
        styles=tuple(section.styles),
        size=section.image_size,
        samples_per_shard=section.samples_per_shard,
        damage=DamageShares(**section.damage.model_dump()),
        seed=section.seed,
    )
    build_demo_corpus(layout.raw, layout.damage, config, layout.cache / "packages")


def _register(section: RawCorpus, layout: Layout, digest: Digest) -> None:
    copy, size = section.copy_files, section.samples_per_shard
    store = _store_of(section)
    match section.source:
        case "folder":
            folder.register_folder(store, layout.raw, copy, size, caption_column=section.caption_column, digest=digest)
        case "img2dataset":
            img2dataset.register_shards(store, layout.raw, copy, digest=digest)
        case _:
            columns = (section.image_column, section.caption_column, section.base)
            table.register_table(store, layout.raw, *columns, copy, size, digest=digest)


def _store_of(section: RawCorpus) -> Store:
    check_options(section.storage_options)
    if not section.path:
        raise ValueError(f"raw_corpus.path is missing in params.yaml; source {section.source} reads from it")
    return Store(section.path, section.storage_options)
