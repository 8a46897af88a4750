"""A round of votes: its log is an input, to which people's votes come at any time and a panel's where nobody voted.

`FOLDER/votes.jsonl` with its head file is the log (vote_log.py), `FOLDER/votes.parquet` what was last recorded of
it, for whoever would rather read a table. What reads a round reads it as recorded, from the log up to the head that
the export names: votes that came since show as new and wait for the next recording.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from emu_data.votes.log import VoteLog, export_parquet, exported_head
from emu_data.votes.vote import WITHDRAWN, Vote, counted, counted_repeats

LOG_NAME = "votes.jsonl"
EXPORT_NAME = "votes.parquet"


@dataclass(frozen=True)
class Recorded:
    """A round as recorded: every vote of its log in order, and the log's head hash."""

    votes: list[Vote]
    head: str


def open_log(folder: Path) -> VoteLog:
    """The log of the round in `folder`, which need not exist yet."""
    return VoteLog(folder / LOG_NAME)


@contextmanager
def record_round(folder: Path, panel: Sequence[Vote], items: Mapping[str, str], older: Path) -> Iterator[Recorded]:
    """Append the panel's votes where no person voted, export the log, and hold it until the block is left.

    items: see `votes.counted`. older: a log that a previous version kept elsewhere, whose votes of people are
    taken over first. An incomplete last line is set aside. What the block records of the folder is what
    the yielded head names, since nobody appends meanwhile. Raises VoteLogError for a log that is damaged, or
    that does not hold the head it was last recorded with.
    """
    log = open_log(folder)
    with log.held():
        log.recover()
        if (known := exported_head(folder / EXPORT_NAME)) is not None:
            log.read(until=known)
        take_over(log, older)
        append_panel(log, panel, items)
        yield Recorded(*export_parquet(log, folder / EXPORT_NAME))


def read_round(folder: Path, older: Path) -> Recorded:
    """The round as last recorded. Raises ValueError where it never was, or where `older` (see `record_round`) holds
    votes of people that were not taken over, and VoteLogError for a damaged log.
    """
    head = exported_head(folder / EXPORT_NAME)
    if head is None:
        raise ValueError(f"nothing was recorded of the round in {folder}: materialise {folder.name}_votes first")
    log = open_log(folder)
    if num := len(missing_votes(log, older)):
        raise ValueError(f"{older} holds {num} votes of people: materialise {folder.name}_votes, which takes them over")
    return Recorded(log.read(until=head), head)


def missing_votes(log: VoteLog, older: Path) -> list[Vote]:
    """People's votes in the log `older` that `log` lacks, as they were given; none where there is no such log."""
    if not older.is_file():
        return []
    present = set(log.read())
    return [vote for vote in VoteLog(older).read() if vote.rater_kind == "person" and vote not in present]


def take_over(log: VoteLog, older: Path) -> None:
    """Append `missing_votes`, and after them what the same raters have said of the same items since, so that the
    last word stays the last.
    """
    if votes := missing_votes(log, older):
        about = {(vote.rater, vote.key) for vote in votes}
        since = [vote for vote in log.read() if vote.rater_kind == "person" and (vote.rater, vote.key) in about]
        log.append([*votes, *since])


def append_panel(log: VoteLog, panel: Sequence[Vote], items: Mapping[str, str]) -> None:
    """Append what a panel says now, so that of its votes just these count, and only where no person voted.

    A vote that is its rater's last word already is not appended again; what the panel said before and does not
    say now (another seed, fewer raters) is withdrawn. So a panel that sits again appends nothing, and one that
    was interrupted goes on where it stopped. panel: votes on the keys of `items`.
    """
    with log.held():
        votes = log.read()
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
    """How many votes the log has beyond the recorded head; None where the log does not hold that head.

    Reads one line where there is nothing new.
    """
    log = open_log(folder)
    return 0 if log.head() == recorded_head else log.num_since(recorded_head)


def check_log(folder: Path) -> list[str]:
    """What is wrong with the log in `folder`, and whether it holds what was recorded of it; empty if all is well."""
    return list(open_log(folder).verify(expected_head=exported_head(folder / EXPORT_NAME)).problems)


def _showing(vote: Vote) -> tuple[str, str, bool]:
    return vote.rater, vote.key, vote.is_repeat
