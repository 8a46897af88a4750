"""The demo corpus: drawings of the same subjects in three styles, from npm packages, damaged on purpose (damage.py).

The styles are in styles.py.
"""

import hashlib
import io
import json
import sys
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from emu_data.samples import (
    RAW_COLUMNS,
    STATUS_FAILED,
    STATUS_SUCCESS,
    Sample,
    decode_rgb,
    make_key,
)
from emu_data.shards import write_shard
from emu_data.sources.damage import Draft, check_truth, damage_drafts, write_truth
from emu_data.sources.damage_shares import DamageShares
from emu_data.sources.naming import write_caption
from emu_data.sources.npm import fetch_package
from emu_data.sources.standing import write_corpus
from emu_data.sources.styles import NAMES_PACKAGE, NAMES_PATH, STYLES, Style

SOURCE = "packages"


@dataclass(frozen=True)
class Subject:
    """What is drawn: emoji.json's `short_name`, and a caption if emoji.json's own name is not what people say."""

    name: str
    concept: str
    caption: str | None = None


@dataclass(frozen=True)
class DemoCorpusConfig:
    """Which pictures, how large, and how damaged. The same config gives the same bytes."""

    subjects: tuple[Subject, ...]
    styles: tuple[str, ...] = ("google", "twitter", "fluent3d")
    size: int = 128  # px, the side of an undamaged picture
    samples_per_shard: int = 64
    damage: DamageShares = field(default_factory=DamageShares)
    seed: int = 0


@dataclass(frozen=True)
class CorpusStats:
    """What was written: rows, pictures (without failed rows) and shards."""

    num_rows: int
    num_images: int
    num_shards: int


def read_subjects(
    concepts: Mapping[str, Sequence[str | Mapping[str, Any]]],
    num_per_concept: int | None = None,
) -> tuple[Subject, ...]:
    """Return the subjects of params. concepts: concept -> list of short_names or {name, caption}; num_per_concept: take
    only the first few of each, None for all.
    """
    subjects = []
    for concept, entries in concepts.items():
        for entry in list(entries)[:num_per_concept]:
            given = {"name": entry} if isinstance(entry, str) else entry
            subjects.append(Subject(str(given["name"]), concept, given.get("caption")))
    return tuple(subjects)


def build_demo_corpus(
    out: Path,
    damage_path: Path,
    config: DemoCorpusConfig,
    cache: Path,
    progress: bool = True,
) -> CorpusStats:
    """Write the demo corpus as shards into `out`, and the truth about its damage to `damage_path`.

    Args:
        out: see write_corpus.
        damage_path: a parquet with a row for every raw row: key, damage, detail, duplicate_of, concept, subject,
            style, true_caption. Gates never read it.
        cache: folder of package tarballs; missing ones are fetched with npm.
    Raises PackageUnavailable if a package cannot be fetched, ValueError if a subject is not in the packages.
    """
    unknown = sorted(set(config.styles) - STYLES.keys())
    if unknown or not config.styles or not config.subjects:
        raise ValueError(f"the demo corpus needs subjects, and styles from {sorted(STYLES)}; unknown styles: {unknown}")
    styles = [STYLES[name] for name in config.styles]
    packages = {style.package.spec: style.package for style in styles} | {NAMES_PACKAGE.spec: NAMES_PACKAGE}
    bar = {"desc": "demo packages", "unit": "package", "disable": not progress, "file": sys.stderr}
    with tqdm(packages.values(), **bar) as waiting:  # closed before an error is printed
        tarballs = {package.spec: fetch_package(package, cache) for package in waiting}

    drafts = _read_drafts(config, styles, tarballs)
    rng = np.random.default_rng([config.seed, 1])
    damage_drafts(drafts, config.damage, rng)
    order = rng.permutation(len(drafts))
    place = {int(draft): position for position, draft in enumerate(order)}
    keys = [make_key(*divmod(place[i], config.samples_per_shard)) for i in range(len(drafts))]
    rows, truth, samples = _tabulate(drafts, keys, rng)

    check_truth(damage_path, truth)
    with write_corpus(out, SOURCE, config, {}) as folder:
        for shard in range(-(-len(rows) // config.samples_per_shard)):
            part = rows.iloc[shard * config.samples_per_shard : (shard + 1) * config.samples_per_shard]
            write_shard(
                folder,
                shard,
                [samples[key] for key in part["key"] if key in samples],
                part,
            )
    write_truth(damage_path, truth)
    return CorpusStats(
        num_rows=len(rows),
        num_images=len(samples),
        num_shards=-(-len(rows) // config.samples_per_shard),
    )


def _read_members(tarball: Path, wanted: Iterable[str]) -> dict[str, bytes]:
    """Return path in the package -> bytes, for those of `wanted` that exist."""
    names = set(wanted)
    found = {}
    with tarfile.open(tarball, "r|gz") as tar:  # streamed: the tarballs hold thousands of files
        for member in tar:
            name = member.name.partition("/")[2]  # npm puts everything under one folder
            if name in names and member.isfile():
                file = tar.extractfile(member)
                assert file is not None
                found[name] = file.read()
    return found


def _read_drafts(config: DemoCorpusConfig, styles: Sequence[Style], tarballs: Mapping[str, Path]) -> list[Draft]:
    listed = json.loads(_read_members(tarballs[NAMES_PACKAGE.spec], [NAMES_PATH])[NAMES_PATH])
    by_name = {entry["short_name"]: entry for entry in listed}
    missing = [subject.name for subject in config.subjects if subject.name not in by_name]
    if missing:
        raise ValueError(f"{NAMES_PACKAGE.spec}/{NAMES_PATH} lacks the short_names {missing}; remove those subjects")
    drafts = []
    for style in styles:
        # Packages differ in whether a name keeps the variation selector fe0f.
        paths = {}
        for subject in config.subjects:
            code = by_name[subject.name]["image"].removesuffix(".png")
            codes = (code, code.replace("-fe0f", ""), f"{code}-fe0f")
            paths[subject] = [style.path.replace("HEX", spelling) for spelling in codes]
        found = _read_members(
            tarballs[style.package.spec],
            [path for group in paths.values() for path in group],
        )
        for subject, group in paths.items():
            path = next((path for path in group if path in found), None)
            if path is None:
                raise ValueError(
                    f"{style.package.spec} has no picture of {subject.name!r}; remove it from the subjects"
                )
            picture = decode_rgb(found[path])
            original_size = picture.size
            if picture.size != (config.size, config.size):
                picture = picture.resize((config.size, config.size), Image.Resampling.LANCZOS)
            caption = write_caption(subject.caption or clean_name(by_name[subject.name]["name"]))
            drafts.append(
                Draft(
                    f"npm:{style.package.spec}/{path}",
                    caption,
                    subject.concept,
                    subject.name,
                    style.name,
                    picture,
                    original_size,
                )
            )
    return drafts


def clean_name(name: str) -> str:
    """Return an emoji's name in lower case, with single spaces between words."""
    return " ".join(name.lower().replace("_", " ").split())


def _tabulate(
    drafts: list[Draft], keys: list[str], rng: np.random.Generator
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Sample]]:
    """Return the rows of the parquets (in key order), the truth, and key -> sample."""
    rows, truth, samples = [], [], {}
    for key, draft in zip(keys, drafts, strict=True):
        failed = draft.damage == "failed"
        width, height = (None, None) if failed else Image.open(io.BytesIO(draft.data)).size
        row: dict[str, Any] = {
            "url": draft.url,
            "caption": draft.caption,
            "key": key,
            "status": STATUS_FAILED if failed else STATUS_SUCCESS,
            "error_message": draft.detail if failed else None,
            "width": width,
            "height": height,
            "original_width": None if failed else draft.original_size[0],
            "original_height": None if failed else draft.original_size[1],
            "exif": None if failed else "{}",
            "sha256": None if failed else hashlib.sha256(draft.data).hexdigest(),
            # LAION's name for the probability of unsafe content; here drawn at random, not detected.
            "punsafe": round(
                float(rng.uniform(0.9, 1.0) if draft.damage == "unsafe" else rng.beta(1, 12)),
                4,
            ),
            "likes": int(rng.lognormal(3.0, 1.5)),
        }
        assert tuple(row)[: len(RAW_COLUMNS)] == RAW_COLUMNS
        rows.append(row)
        truth.append(
            {
                "key": key,
                "damage": draft.damage,
                "detail": draft.detail,
                "duplicate_of": "" if draft.copy_of is None else keys[draft.copy_of],
                "concept": draft.concept,
                "subject": draft.subject,
                "style": draft.style,
                "true_caption": draft.true_caption,
            }
        )
        if not failed:
            samples[key] = Sample(key, draft.data, draft.caption, row)
    text = ["url", "caption", "key", "status", "error_message", "exif", "sha256"]
    counts = ["width", "height", "original_width", "original_height", "likes"]
    frame = pd.DataFrame(rows).astype({**dict.fromkeys(text, "string"), **dict.fromkeys(counts, "Int64")})
    return (
        frame.sort_values("key", ignore_index=True),
        pd.DataFrame(truth).sort_values("key", ignore_index=True),
        samples,
    )
