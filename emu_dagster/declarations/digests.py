"""Digests of files that no asset made: weights and checkpoints that were brought along, often gigabytes."""

import json
from pathlib import Path

from emu_dagster.resources.dvc import hash_path, look_at
from emu_data.files import write_json
from emu_steps.layout import Layout


def digest_of(path: Path, layout: Layout) -> str:
    """The md5 that DVC gives a file or folder. It is read again only when its size, number or times have changed."""
    remembered = layout.cache / "digests.json"
    known = json.loads(remembered.read_text()) if remembered.is_file() else {}
    look = look_at(path)
    found = known.get(str(path))
    if not found or found["look"] != look:
        found = {"look": look, "md5": hash_path(path, [])}
        write_json(remembered, known | {str(path): found})
    return found["md5"]
