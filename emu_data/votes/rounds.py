"""A round of votes. Its log is an input: people may vote at any time, and a panel votes on items that nobody voted on.

`FOLDER/votes.jsonl` with its head file is the log (log.py); `FOLDER/votes.parquet` is the export of the last recording,
as a table; `FOLDER/plan.json` holds the plans by which people voted (plans.py). A round is read as recorded: the log up
to the head that the export names. Later votes count as new until the next recording.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from emu_data.votes.log import VoteLog, export_parquet, exported_head
from emu_data.votes.plans import ensure_plans
from emu_data.votes.vote import WITHDRAWN, Vote, counted, counted_repeats

LOG_NAME = "votes.jsonl"
EXPORT_NAME = "votes.parquet"


@dataclass(frozen=True)
class RecordedRound:
    """A round as recorded: every vote of its log in order, and the log's head hash."""

    votes: list[Vote]
    head: str


def open_log(folder: Path) -> VoteLog:
    """Return the log of the round in `folder`, which need not exist yet."""
    return VoteLog(folder / LOG_NAME)


@contextmanager
def record_round(
    folder: Path, panel: Sequence[Vote], items: Mapping[str, str], older: Path, beside_people: bool = False
) -> Iterator[RecordedRound]:
    """Append the panel's votes on items that no person voted on, export the log, and hold it until the block ends.

    items: see `vote.counted`. older: a log that an earlier version kept elsewhere; people's votes in it are copied
    first. beside_people: see append_panel. An incomplete last line is moved aside. Since nobody can append meanwhile,
    the block sees the folder as of the yielded head. Raises VoteLogError if the log is damaged, or lacks the head with
    which it was last recorded.
    """
    log = open_log(folder)
    with log.held():
        log.recover()
        if (known := exported_head(folder / EXPORT_NAME)) is not None:
            log.read(until=known)
        take_over(log, older)
        append_panel(log, panel, items, beside_people)
        ensure_plans(folder)
        yield RecordedRound(*export_parquet(log, folder / EXPORT_NAME))


def read_round(folder: Path, older: Path) -> RecordedRound:
    """Return the round as last recorded. Raises ValueError if it never was, or if `older` (see `record_round`) holds
    people's votes that were not copied yet, and VoteLogError for a damaged log.
    """
    head = exported_head(folder / EXPORT_NAME)
    if head is None:
        raise ValueError(f"the round in {folder} was never recorded: materialise {folder.name}_votes first")
    log = open_log(folder)
    if num := len(missing_votes(log, older)):
        raise ValueError(f"{older} holds {num} votes of people: materialise {folder.name}_votes, which copies them")
    return RecordedRound(log.read(until=head), head)


def missing_votes(log: VoteLog, older: Path) -> list[Vote]:
    """Return people's votes in the log `older` that `log` lacks, in order; none if there is no such log."""
    if not older.is_file():
        return []
    present = set(log.read())
    return [vote for vote in VoteLog(older).read() if vote.rater_kind == "person" and vote not in present]


def take_over(log: VoteLog, older: Path) -> None:
    """Append `missing_votes`, and again after them the same raters' later votes on the same items, so that the last
    vote stays the last.
    """
    if votes := missing_votes(log, older):
        about = {(vote.rater, vote.key) for vote in votes}
        since = [vote for vote in log.read() if vote.rater_kind == "person" and (vote.rater, vote.key) in about]
        log.append([*votes, *since])


def append_panel(log: VoteLog, panel: Sequence[Vote], items: Mapping[str, str], beside_people: bool = False) -> None:
    """Append a panel's present votes, so that exactly these count, and only on items that no person voted on;
    beside_people: also on the others, for readers who leave people's votes out.

    A vote that already is its rater's last one is not appended again; earlier votes that the panel does not repeat
    (another seed, fewer raters) are withdrawn. So a panel that votes again appends nothing, and one that was
    interrupted continues where it stopped. panel: votes on the keys of `items`.
    """
    with log.held():
        votes = log.read()
        if beside_people:
            votes = [vote for vote in votes if vote.rater_kind == "rubric"]
        standing = [*counted(votes, items), *counted_repeats(votes, items)]
        by_people = {vote.key for vote in standing if vote.rater_kind == "person" and not vote.is_repeat}
        before = {_showing(vote): vote for vote in standing if vote.rater_kind == "rubric"}
        wanted = {_showing(vote): replace(vote, seen=items[vote.key]) for vote in panel if vote.key not in by_people}
        new = [vote for showing, vote in wanted.items() if before.get(showing) != vote]
        gone = [
            replace(vote, decision=WITHDRAWN, reason="", score=None)
            for showing, vote in before.items()
            if showing not in wanted
        ]
        log.append([*new, *gone])


def num_new(folder: Path, recorded_head: str) -> int | None:
    """Return how many votes the log has beyond the recorded head; None if the log does not hold that head.

    If nothing is new, only one line is read.
    """
    log = open_log(folder)
    return 0 if log.head() == recorded_head else log.num_since(recorded_head)


def check_log(folder: Path) -> list[str]:
    """Return what is wrong with the log in `folder`, including a missing recorded head; empty if it is sound."""
    return list(open_log(folder).verify(expected_head=exported_head(folder / EXPORT_NAME)).problems)


def _showing(vote: Vote) -> tuple[str, str, bool]:
    return vote.rater, vote.key, vote.is_repeat
