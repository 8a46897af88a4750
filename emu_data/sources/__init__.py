"""Where a corpus comes from: img2dataset's shards, a folder of pictures, a table that names them, or package registries
(the demo). The first three at any fsspec address (addresses.py).

Each source leaves the same thing: a folder of shards as emu_data/shards.py reads them, with corpus.json that
says which source made it from what. Pictures are not copied unless asked; rows are.
"""

from pathlib import Path
from typing import Any

from emu_data.files import fingerprint, write_json
from emu_data.shards import list_shards

CORPUS_FILE = "corpus.json"


def check_target(out: Path) -> None:
    """Raise ValueError if `out` holds shards that no source made: it is going to be replaced as a whole."""
    if list_shards(out) and not (Path(out) / CORPUS_FILE).is_file():
        raise ValueError(f"{out} holds shards that were not registered here: move them away, then register them")


def write_origin(folder: Path, source: str, config: Any) -> None:
    """Write corpus.json: the source's name and the fingerprint of what it was made from."""
    write_json(folder / CORPUS_FILE, {"source": source, "config": fingerprint(config)})
