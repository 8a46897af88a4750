"""Out: the votes of a round as tables, as Label Studio's tasks, and as preference pairs to train on.

The CSV and the parquet have all words in their order, with the columns of `Vote` and `counts`, whether that word counts
now. Label Studio's JSON has a task per picture or pair with what stands; its project needs a control
`<Choices name="decision" toName="image">` with the round's decisions (toName="image_a" for pairs).

Preference pairs have the columns of Pick-a-Pic (Kirstain et al. 2023, arXiv 2305.01569; as its data set `pickapic_v2`
lists them, less pandas' index). A test that a model was trained on is no test: a round that measures models gives none,
and neither does a prompt that any such round has.
"""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
from sqlalchemy import select

from emu_data.files import atomic_file
from emu_data.votes.log import votes_to_table
from emu_data.votes.vote import VOTE_COLUMNS, Vote, counted, counted_of_raters, counted_repeats
from emu_studio.database import Database, Item
from emu_studio.pictures import original
from emu_studio.records import Record, evaluation_prompts, fold_prompt

ROWS_AT_ONCE = 64  # of preference pairs in memory: some 50 MB of pictures; chosen here
# A cell that a spreadsheet would run as a formula is written with a quote before it (OWASP, "CSV injection").
FORMULA = re.compile(r"'*[=+\-@\t\r]")
PICK_A_PIC = pa.schema(
    [
        ("are_different", pa.bool_()),
        ("best_image_uid", pa.string()),
        ("caption", pa.string()),
        ("created_at", pa.timestamp("ns")),
        ("has_label", pa.bool_()),
        ("image_0_uid", pa.string()),
        ("image_0_url", pa.string()),
        ("image_1_uid", pa.string()),
        ("image_1_url", pa.string()),
        ("jpg_0", pa.binary()),
        ("jpg_1", pa.binary()),
        ("label_0", pa.float64()),
        ("label_1", pa.float64()),
        ("model_0", pa.string()),
        ("model_1", pa.string()),
        ("ranking_id", pa.int64()),
        ("user_id", pa.int64()),
        ("num_example_per_prompt", pa.int64()),
    ]
)


class NotGiven(ValueError):
    """A round does not give what was asked for; the message says why."""


def to_parquet(record: Record) -> bytes:
    """Return all words as a parquet file; the head of their chain is in its metadata."""
    table = votes_to_table(record.votes, record.head)
    buffer = io.BytesIO()
    pq.write_table(table.append_column("counts", pa.array(_counts(record), pa.bool_())), buffer)
    return buffer.getvalue()


def to_csv(record: Record) -> str:
    """Return all words as CSV with a header; read_csv of emu_studio.imports reads it."""
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow([*VOTE_COLUMNS, "counts"])
    for vote, counts in zip(record.votes, _counts(record), strict=True):
        writer.writerow([_to_cell(getattr(vote, name)) for name in VOTE_COLUMNS] + [_to_cell(counts)])
    return stream.getvalue()


def _counts(record: Record) -> list[bool]:
    standing = {id(vote) for vote in counted(record.votes, record.shown)}
    return [id(vote) in standing for vote in record.votes]


def _to_cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"'{value}" if FORMULA.match(value) else value
    return repr(value)


def to_label_studio(record: Record, database: Database) -> str:
    """Return Label Studio's JSON: a task per picture, or pair, with an annotation per rater whose word stands.

    Label Studio refuses annotations of users that it does not know, so none is named as `completed_by`; the whole vote
    is in the `meta` of the result, where it keeps it.
    """
    standing: dict[str, list[Vote]] = {}
    votes, shown = record.votes, record.shown
    adjudications = [vote for vote in counted(votes, shown) if vote.is_adjudication]
    for vote in [*counted_of_raters(votes, shown), *counted_repeats(votes, shown), *adjudications]:
        standing.setdefault(vote.key, []).append(vote)
    tasks = []
    for item in _items(database, record.round.id):
        if record.round.plan.is_pairs:
            a, b = (_address(picture) for picture in item.pictures)
            data = {"key": item.key, "seen": item.seen, "image_a": a, "image_b": b, "caption": item.caption}
            tasks.append(_task(data, "image_a", standing.get(item.key, [])))
            continue
        for picture in item.pictures:
            address = _address(picture)
            data = {"key": picture["key"], "seen": picture["digest"], "image": address, "caption": item.caption}
            tasks.append(_task(data, "image", standing.get(picture["key"], [])))
    return json.dumps(tasks, ensure_ascii=False, indent=1)


def _task(data: dict[str, str], shown_as: str, votes: Sequence[Vote]) -> dict[str, Any]:
    annotations = [
        {
            "result": [
                {
                    "from_name": "decision",
                    "to_name": shown_as,
                    "type": "choices",
                    "value": {"choices": [vote.decision]},
                    "meta": {"vote": dict(vars(vote))},
                }
            ],
            "was_cancelled": False,
            "lead_time": vote.seconds,
            "created_at": vote.time,
        }
        for vote in votes
    ]
    return {"data": data, "annotations": annotations}


def _address(picture: dict[str, Any]) -> str:
    """Where a picture is: a file in the form of Label Studio's local storage, else its place in a tar."""
    if picture["size"]:
        return f"{picture['path']}#offset={picture['offset']}&size={picture['size']}"
    return f"/data/local-files/?d={quote(picture['path'].lstrip('/'))}"


@dataclass(frozen=True)
class Given:
    """How many preference pairs were written, and how many were not, since an evaluation has their prompts."""

    num_pairs: int
    num_withheld: int


def count_preferences(record: Record, database: Database) -> Given:
    """Return what write_preferences would write. Raises NotGiven where it does."""
    chosen, num_withheld = _preferences(record, database)
    return Given(len(chosen), num_withheld)


def write_preferences(record: Record, database: Database, file: Path) -> Given:
    """Write the votes that count as preference pairs, a row per vote, with the pictures; 0 is what stood on the left.

    A tie, both and neither are labels of one half, for which best_image_uid is "tie" (what Pick-a-Pic writes there
    could not be looked up). user_id counts the raters, ranking_id the votes. Raises NotGiven for a round that is no
    comparison or measures models, OSError or ValueError for a picture that can no longer be read.
    """
    chosen, num_withheld = _preferences(record, database)
    items = {item.key: item for item in _items(database, record.round.id)}
    num_of = Counter(items[vote.key].stratum for vote in chosen)
    users = {rater: number for number, rater in enumerate(sorted({vote.rater for vote in chosen}))}
    with atomic_file(file) as partial, pq.ParquetWriter(partial, PICK_A_PIC) as writer:
        for start in range(0, len(chosen), ROWS_AT_ONCE):
            rows = []
            for number, vote in enumerate(chosen[start : start + ROWS_AT_ONCE], start):
                item = items[vote.key]
                numbers = {"ranking_id": number, "user_id": users[vote.rater]}
                rows.append({**_preference(vote, item), **numbers, "num_example_per_prompt": num_of[item.stratum]})
            writer.write_table(pa.Table.from_pylist(rows, PICK_A_PIC))
    return Given(len(chosen), num_withheld)


def _preferences(record: Record, database: Database) -> tuple[list[Vote], int]:
    """The votes that may become preference pairs, and how many may not."""
    plan = record.round.plan
    if not plan.is_pairs:
        raise NotGiven("only a comparison gives preference pairs")
    if plan.is_evaluation:
        raise NotGiven(f"{plan.name} measures models: what is trained on its votes can no longer be measured by it")
    measured = evaluation_prompts(database)
    prompt_of = {item.keys[0]: item.prompt for item in record.items}
    votes = counted(record.votes, record.shown)
    chosen = [vote for vote in votes if fold_prompt(prompt_of[vote.key]) not in measured]
    return chosen, len(votes) - len(chosen)


def _preference(vote: Vote, item: Item) -> dict[str, Any]:
    left, right = ("AB".index(side) for side in vote.side_order)
    pictures = (item.pictures[left], item.pictures[right])
    uids = [picture["digest"] for picture in pictures]
    is_tie = vote.decision not in ("A", "B")
    label = 0.5 if is_tie else float(vote.decision == vote.side_order[0])
    return {
        "are_different": uids[0] != uids[1],
        "best_image_uid": "tie" if is_tie else uids[0 if label else 1],
        "caption": item.stratum,
        "created_at": datetime.fromisoformat(vote.time).replace(tzinfo=None) if vote.time else None,
        "has_label": True,
        **{f"image_{side}_uid": uid for side, uid in enumerate(uids)},
        "image_0_url": "",
        "image_1_url": "",
        **{f"jpg_{side}": original(picture)[0] for side, picture in enumerate(pictures)},
        "label_0": label,
        "label_1": 1 - label,
        "model_0": vote.side_order[0],
        "model_1": vote.side_order[1],
    }


def _items(database: Database, round_id: int) -> Iterator[Item]:
    items = select(Item).where(Item.round_id == round_id).order_by(Item.place)
    with database.read() as session:
        yield from session.scalars(items.execution_options(yield_per=1000))
