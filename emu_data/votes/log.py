"""An append-only, hash-chained JSONL log of votes (votes.py).

Each line of the log is `{"index", "previous", "vote", "hash"}`: `hash` is the SHA-256 of the other three,
`previous` the hash of the line before. An edited, removed or reordered line breaks the chain. Lines cut from
the end would leave a shorter but sound chain, so `LOG.head.json` beside the log holds the count and hash of
what was acknowledged. The chain has no key: somebody who rewrites the log *and* its head can forge both, so
reports print the head hash and `verify(expected_head=...)` checks a log against one that was printed.
Nothing is changed in place: who corrects a decision votes again, who takes it back appends a withdrawal, and
`votes.counted` keeps the last word. Lines are hashed as they stand in the file, so that a log written before
`Vote` had some field is still whole.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

from emu_data.files import atomic_file
from emu_data.votes.vote import VOTE_COLUMNS, Vote

GENESIS = "0" * 64  # `previous` of the first line
LOCK_TIMEOUT_SECONDS = 60.0  # chosen here: an append takes milliseconds, a recording seconds; a minute is a hung holder
_HEAD_NAME = b"vote_log_head"


class VoteLogError(ValueError):
    """The log is not what was written: the message says at which line and what to do."""


class TruncatedVoteLog(VoteLogError):
    """The last line is incomplete (a crash while appending). `VoteLog.recover` sets it aside."""


@dataclass(frozen=True)
class Verification:
    """What `VoteLog.verify` found. `problems` is empty for a sound log."""

    num_votes: int
    head: str
    problems: tuple[str, ...]
    num_truncated_bytes: int = 0

    @property
    def is_sound(self) -> bool:
        return not self.problems


_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _canonical(value: Any) -> bytes:
    return _ENCODER.encode(value).encode()


def _hash_line(index: int, previous: str, vote: dict[str, Any]) -> str:
    return hashlib.sha256(_canonical({"index": index, "previous": previous, "vote": vote})).hexdigest()


def now_utc() -> str:
    """The present time as ISO 8601 in UTC with milliseconds, as the log stores it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class VoteLog:
    """An append-only log of votes at `path` (JSONL), safe for several processes at once and after a crash."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.head_path = self.path.with_name(self.path.name + ".head.json")
        self._lock = FileLock(str(self.path) + ".lock", timeout=LOCK_TIMEOUT_SECONDS)

    def append(self, votes: Iterable[Vote]) -> str:
        """Write the votes at the end of the log, flushed to disk, and return the new head hash.

        People's votes without a time get the present one. Raises TruncatedVoteLog if an earlier append was
        interrupted (call `recover` first) and VoteLogError if acknowledged lines are missing from the end.
        """
        with self.held():
            index, previous = self._end_of_chain()
            lines = []
            stamp = now_utc()
            for vote in votes:
                record = dict(vars(vote))
                record["time"] = record["time"] or (stamp if vote.rater_kind == "person" else "")
                line_hash = _hash_line(index, previous, record)
                lines.append(_canonical({"index": index, "previous": previous, "vote": record, "hash": line_hash}))
                index, previous = index + 1, line_hash
            if lines:
                self._detach()
                with open(self.path, "ab") as stream:
                    stream.write(b"\n".join(lines) + b"\n")
                    stream.flush()
                    os.fsync(stream.fileno())
            if self._read_head() != (index, previous):  # also after a crash between the lines and their head
                self._write_head(index, previous)
            return previous

    @contextmanager
    def held(self) -> Iterator[None]:
        """Nobody else appends meanwhile; whoever holds the log may append. For a record of the log's bytes."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._lock:
            yield

    def read(self, until: str | None = None) -> list[Vote]:
        """All votes in order, or those up to the line whose hash is `until` (GENESIS: none).

        Raises VoteLogError if the log is not sound, or has no such line. An incomplete last line matters only
        where everything is read.
        """
        with self._reading():
            found, votes, hashes = self._check(until)
        *problems, truncation = [*found.problems, ""] if not found.num_truncated_bytes else found.problems
        if problems:
            raise VoteLogError(problems[0])
        if truncation and until is None:
            raise TruncatedVoteLog(truncation)
        if until is None:
            return votes
        return votes[: hashes.index(until) + 1] if until != GENESIS else []

    def head(self) -> str:
        """The hash of the last line, GENESIS for an empty log; only that line is read, and nothing is checked."""
        return self._end_of_chain()[1]

    def verify(self, expected_head: str | None = None) -> Verification:
        """Check every line, the chain, and the end; never raises for a damaged log.

        `expected_head` is a head hash printed in a report: it must be somewhere in the chain.
        """
        with self._reading():
            return self._check(expected_head)[0]

    def num_since(self, head: str) -> int | None:
        """How many votes were appended after the line whose hash is `head`; None where the log has no such line."""
        with self._reading():
            hashes = self._check()[2]
        if head == GENESIS:
            return len(hashes)
        return len(hashes) - 1 - hashes.index(head) if head in hashes else None

    def recover(self) -> Path | None:
        """Set an incomplete last line aside, in a file beside the log, and cut it from the log.

        Returns that file, or None if there was nothing to do. Only the incomplete line goes: its append never
        returned, so nobody was told that this vote had been taken. Whole lines before it stay.
        """
        if not self.path.exists():
            return None
        with self._lock:
            data = self.path.read_bytes()
            end = data.rfind(b"\n") + 1
            if end == len(data):
                return None
            aside = self.path.with_name(f"{self.path.name}.truncated-at-{end}")
            with atomic_file(aside) as temporary:
                temporary.write_bytes(data[end:])
            os.truncate(self.path, end)
            return aside

    def _detach(self) -> None:
        """Make the log a file of its own where it is a link into a store (DVC's cache), which an append would alter."""
        if self.path.is_symlink() or (self.path.exists() and self.path.stat().st_nlink > 1):
            with atomic_file(self.path) as own:
                shutil.copyfile(self.path, own)

    def _reading(self) -> AbstractContextManager[object]:
        """The lock, so that no half-written line is read; a log in a read-only folder has no writers."""
        can_lock = self.path.exists() and os.access(self.path.parent, os.W_OK)
        return self._lock if can_lock else nullcontext()

    def _write_head(self, num_votes: int, head: str) -> None:
        with atomic_file(self.head_path) as temporary:
            temporary.write_bytes(_canonical({"num_votes": num_votes, "head": head}) + b"\n")

    def _read_head(self) -> tuple[int, str]:
        if not self.head_path.exists():
            return 0, GENESIS
        try:
            record = json.loads(self.head_path.read_bytes())
            return int(record["num_votes"]), str(record["head"])
        except (ValueError, KeyError, TypeError) as error:
            raise VoteLogError(f"{self.head_path} is not readable ({error}); restore it with its log") from error

    def _end_of_chain(self) -> tuple[int, str]:
        """Index of the next line and hash of the last one, from the end of the file alone."""
        num_acknowledged, _ = self._read_head()
        last = b""
        if self.path.exists() and self.path.stat().st_size:
            with open(self.path, "rb") as stream:
                last = _last_line(stream)
            if not last.endswith(b"\n"):
                raise TruncatedVoteLog(_truncation_message(self.path, len(last)))
        if not last:
            index, previous = 0, GENESIS
        else:
            try:
                record = json.loads(last)
                index, previous = int(record["index"]) + 1, str(record["hash"])
            except (ValueError, KeyError, TypeError) as error:
                raise VoteLogError(f"{self.path}: the last line is no vote ({error}); call verify()") from error
        if index < num_acknowledged:
            raise VoteLogError(
                f"{self.path} ends after {index} votes but {num_acknowledged} were acknowledged: lines were "
                "removed from the end. Restore the log from a copy; nothing was appended."
            )
        return index, previous

    def _check(self, expected_head: str | None = None) -> tuple[Verification, list[Vote], list[str]]:
        """What is wrong, the votes, and the hash of each line."""
        problems: list[str] = []
        votes: list[Vote] = []
        hashes: list[str] = []
        data = self.path.read_bytes() if self.path.exists() else b""
        end = data.rfind(b"\n") + 1
        previous = GENESIS
        for index, line in enumerate(data[:end].splitlines()):
            try:
                record = json.loads(line)
                vote, line_hash = record["vote"], record["hash"]
                votes.append(Vote(**vote))
                is_intact = line_hash == _hash_line(record["index"], record["previous"], vote)
            except (ValueError, KeyError, TypeError) as error:
                problems.append(f"{self.path}, line {index + 1}: no readable vote ({error})")
                break
            if not is_intact:
                problems.append(f"{self.path}, line {index + 1}: the line was edited (its hash does not fit)")
            elif record["index"] != index or record["previous"] != previous:
                problems.append(
                    f"{self.path}, line {index + 1}: does not follow the line before (removed, inserted or reordered)"
                )
            previous = line_hash
            hashes.append(line_hash)
        if not problems:
            problems.extend(self._compare_head(hashes))
            if expected_head not in (None, GENESIS) and expected_head not in hashes:
                problems.append(
                    f"{self.path}: the head {expected_head} that was recorded earlier is not in this log; restore the "
                    "log from a copy (dvc checkout brings back what DVC recorded)"
                )
        if end < len(data):
            problems.append(_truncation_message(self.path, len(data) - end))
        return Verification(len(hashes), previous, tuple(problems), len(data) - end), votes, hashes

    def _compare_head(self, hashes: Sequence[str]) -> list[str]:
        """Problems between a sound chain and the head that was acknowledged."""
        try:
            num_acknowledged, head = self._read_head()
        except VoteLogError as error:
            return [str(error)]
        if len(hashes) < num_acknowledged:
            num_missing = num_acknowledged - len(hashes)
            return [
                f"{self.path}: {num_missing} of {num_acknowledged} acknowledged votes are missing from the "
                "end; restore the log from a copy"
            ]
        if num_acknowledged and hashes[num_acknowledged - 1] != head:
            return [f"{self.path}: does not fit {self.head_path.name}; one of the two was replaced"]
        return []


def _truncation_message(path: Path, num_bytes: int) -> str:
    return (
        f"{path}: the last line is incomplete ({num_bytes} bytes; an append was interrupted). All votes "
        "before it are intact. VoteLog(path).recover() sets the piece aside, then the log can be used again."
    )


def _last_line(stream: Any, block: int = 4096) -> bytes:
    """The last line of an open binary file with its newline, if it has one, without reading the rest."""
    size = stream.seek(0, os.SEEK_END)
    tail = b""
    while len(tail) < size:
        start = max(0, size - len(tail) - block)
        stream.seek(start)
        tail = stream.read(size - len(tail) - start) + tail
        cut = tail.rfind(b"\n", 0, len(tail) - 1)
        if cut >= 0:
            return tail[cut + 1 :]
    return tail


def export_parquet(log: VoteLog, path: Path) -> tuple[list[Vote], str]:
    """Write the sound log's votes to a parquet file (all of them, in order); return them, and their head hash.

    The head goes into the file's schema metadata: `exported_head` reads it. Raises VoteLogError for a
    damaged log.
    """
    with log.held():
        votes, head = log.read(), log.head()
    text, number = pa.string(), pa.float64()
    types = {"score": number, "seconds": number, "is_repeat": pa.bool_()}
    schema = pa.schema([(name, types.get(name, text)) for name in VOTE_COLUMNS], metadata={_HEAD_NAME: head})
    table = pa.table({name: [getattr(vote, name) for vote in votes] for name in VOTE_COLUMNS}, schema=schema)
    with atomic_file(path) as temporary:
        pq.write_table(table, temporary)
    return votes, head


def exported_head(path: Path) -> str | None:
    """The head hash of the log that `export_parquet` wrote to `path`; None where there is no such file."""
    if not path.is_file():
        return None
    return (pq.read_schema(path).metadata or {}).get(_HEAD_NAME, b"").decode() or None
