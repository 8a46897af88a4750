"""An append-only, hash-chained JSONL log of votes (vote.py).

Each line of the log is `{"index", "previous", "vote", "hash"}`: `hash` is the SHA-256 of the other three, `previous`
the hash of the line before. An edited, removed or reordered line breaks the chain. If lines were cut from the end, the
shorter chain would still be sound, so `LOG.head.json` beside the log holds the count and last hash of acknowledged
votes. The chain has no secret key: somebody who rewrites the log *and* its head can forge both, so reports print the
head hash, and `verify(expected_head=...)` checks a log against a printed one. Nothing is changed in place: to correct
a decision, a rater votes again; to take it back, they append a withdrawal; `vote.counted` keeps the last one. Lines are
hashed as they are in the file, so that a log from before `Vote` had some field is still sound.
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
LOCK_TIMEOUT_SECONDS = 60.0  # chosen here: an append takes milliseconds, a recording seconds; a minute means a hang
_HEAD_NAME = b"vote_log_head"


class VoteLogError(ValueError):
    """The log is not as it was written; the message says at which line, and what to do."""


class TruncatedVoteLog(VoteLogError):
    """The last line is incomplete (a crash during an append). `VoteLog.recover` moves it aside."""


@dataclass(frozen=True)
class Verification:
    """What `VoteLog.verify` found. head: hash of the last line. problems: empty for a sound log."""

    num_votes: int
    head: str
    problems: tuple[str, ...]
    num_truncated_bytes: int = 0

    @property
    def is_sound(self) -> bool:
        """Whether no problem was found in the log."""
        return not self.problems


_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _canonical(value: Any) -> bytes:
    return _ENCODER.encode(value).encode()


def _hash_line(index: int, previous: str, vote: dict[str, Any]) -> str:
    return hashlib.sha256(_canonical({"index": index, "previous": previous, "vote": vote})).hexdigest()


def chain_vote(index: int, previous: str, vote: dict[str, Any]) -> tuple[bytes, str]:
    """Return the line of a vote (fields of `Vote`) that follows the line whose hash is `previous`, without its end, and
    the line's own hash."""
    line_hash = _hash_line(index, previous, vote)
    return _canonical({"index": index, "previous": previous, "vote": vote, "hash": line_hash}), line_hash


def now_utc() -> str:
    """Return the present time as the log stores it: ISO 8601 in UTC, with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class VoteLog:
    """An append-only log of votes at `path` (JSONL), safe for several processes at once and after a crash."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.head_path = self.path.with_name(self.path.name + ".head.json")
        self._lock = FileLock(str(self.path) + ".lock", timeout=LOCK_TIMEOUT_SECONDS)

    def append(self, votes: Iterable[Vote]) -> str:
        """Append the votes to the log, flush it to disk, and return the new head hash. No votes make an empty
        log if there is none.

        People's votes without a time get the present one. Raises TruncatedVoteLog if an earlier append was interrupted
        (call `recover` first), and VoteLogError if acknowledged lines are missing from the end.
        """
        with self.held():
            index, previous = self._end_of_chain()
            lines = []
            stamp = now_utc()
            for vote in votes:
                record = dict(vars(vote))
                record["time"] = record["time"] or (stamp if vote.rater_kind == "person" else "")
                line, previous = chain_vote(index, previous, record)
                lines.append(line)
                index += 1
            if lines or not self.path.exists():
                self._detach()
                with open(self.path, "ab") as stream:
                    stream.writelines(line + b"\n" for line in lines)
                    stream.flush()
                    os.fsync(stream.fileno())
            # it also repairs a crash between the lines and their head
            if not self.head_path.exists() or self._read_head() != (index, previous):
                self._write_head(index, previous)
            return previous

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the log, so that only the holder may append, while its bytes are recorded."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._lock:
            yield

    def read(self, until: str | None = None) -> list[Vote]:
        """Return all votes in order, or those up to the line whose hash is `until` (GENESIS: none).

        Raises VoteLogError if the log is not sound or has no such line. An incomplete last line matters only if
        everything is read.
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
        """Return the hash of the last line, GENESIS for an empty log. Only that line is read, and it is not checked."""
        return self._end_of_chain()[1]

    def verify(self, expected_head: str | None = None) -> Verification:
        """Check every line, the chain and the end; does not raise for a damaged log.

        expected_head: a head hash from a report, which must be somewhere in the chain.
        """
        with self._reading():
            return self._check(expected_head)[0]

    def num_since(self, head: str) -> int | None:
        """Return how many votes were appended after the line whose hash is `head`; None if there is no such line."""
        with self._reading():
            hashes = self._check()[2]
        if head == GENESIS:
            return len(hashes)
        return len(hashes) - 1 - hashes.index(head) if head in hashes else None

    def recover(self) -> Path | None:
        """Move an incomplete last line from the log to a file beside it.

        Returns that file, or None if there was nothing to do. The append of this line never returned, so its vote was
        never acknowledged. All complete lines stay.
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
        """Replace a link into a store (DVC's cache) by a copy, since an append would change the store."""
        if self.path.is_symlink() or (self.path.exists() and self.path.stat().st_nlink > 1):
            with atomic_file(self.path) as own:
                shutil.copyfile(self.path, own)

    def _reading(self) -> AbstractContextManager[object]:
        """Return the lock, so that no half-written line is read; a log in a read-only folder has no writers."""
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
            raise VoteLogError(
                f"{self.head_path} cannot be read ({error}); restore it together with its log from a copy"
            ) from error

    def _end_of_chain(self) -> tuple[int, str]:
        """Return the index of the next line and the hash of the last one; only the end of the file is read."""
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
                raise VoteLogError(f"{self.path}: the last line is not a vote ({error}); call verify()") from error
        if index < num_acknowledged:
            raise VoteLogError(
                f"{self.path} ends after {index} votes, but {num_acknowledged} were acknowledged: lines were "
                "removed from the end. Nothing was appended; restore the log from a copy."
            )
        return index, previous

    def _check(self, expected_head: str | None = None) -> tuple[Verification, list[Vote], list[str]]:
        """Return what is wrong, the votes, and the hash of each line."""
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
                problems.append(f"{self.path}, line {index + 1}: not a readable vote ({error})")
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
        """Return the contradictions between a sound chain and the acknowledged head."""
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
            return [
                f"{self.path}: does not match {self.head_path.name}, so one of the two was replaced; restore both from "
                "a copy"
            ]
        return []


def _truncation_message(path: Path, num_bytes: int) -> str:
    return (
        f"{path}: the last line is incomplete ({num_bytes} bytes; an append was interrupted). All votes "
        "before it are intact. VoteLog(path).recover() moves it aside; then the log can be used again."
    )


def _last_line(stream: Any, block: int = 4096) -> bytes:
    """Return the last line of an open binary file, with its newline if it has one, without reading the rest."""
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
    """Write all of a log's votes, in order, to a parquet file; return them and their head hash.

    The head goes into the file's schema metadata, from which `exported_head` reads it. Raises VoteLogError for a
    damaged log.
    """
    with log.held():
        votes, head = log.read(), log.head()
    with atomic_file(path) as temporary:
        pq.write_table(votes_to_table(votes, head), temporary)
    return votes, head


def votes_to_table(votes: Sequence[Vote], head: str) -> pa.Table:
    """A row for every vote with the columns of `Vote`; `head` in the schema's metadata."""
    text, number, flag = pa.string(), pa.float64(), pa.bool_()
    types = {"score": number, "seconds": number, "is_repeat": flag, "is_adjudication": flag}
    schema = pa.schema([(name, types.get(name, text)) for name in VOTE_COLUMNS], metadata={_HEAD_NAME: head})
    return pa.table({name: [getattr(vote, name) for vote in votes] for name in VOTE_COLUMNS}, schema=schema)


def exported_head(path: Path) -> str | None:
    """Return the head hash of the log that `export_parquet` wrote to `path`; None if there is no such file."""
    if not path.is_file():
        return None
    return (pq.read_schema(path).metadata or {}).get(_HEAD_NAME, b"").decode() or None
