"""Where a corpus comes from: img2dataset's shards, a folder of pictures, or package registries (the demo).

Each source leaves the same thing: a folder of shards as emu_data/shards.py reads them, with corpus.json that
says which source made it from what.
"""

import json
from pathlib import Path
from typing import Any

from emu_data.files import fingerprint, write_json
from emu_data.shards import list_shards

CORPUS_FILE = "corpus.json"


def check_target(out: Path, source: str) -> None:
    """Raise ValueError if `out` holds shards that `source` did not make: it is going to be replaced as a
    whole.
    """
    marker = Path(out) / CORPUS_FILE
    ours = marker.is_file() and json.loads(marker.read_text()).get("source") == source
    if list_shards(out) and not ours:
        raise ValueError(f"{out} holds shards of another corpus: give this one a folder of its own")


def write_origin(folder: Path, source: str, config: Any) -> None:
    """Write corpus.json: the source's name and the fingerprint of what it was made from."""
    write_json(folder / CORPUS_FILE, {"source": source, "config": fingerprint(config)})
