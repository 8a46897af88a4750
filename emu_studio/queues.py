"""The queues of all rounds and who takes their votes, each made when it is first asked for."""

import threading
from pathlib import Path

from emu_studio.clerk import Clerk
from emu_studio.database import Database
from emu_studio.queue import Queue
from emu_studio.rounds import OpenRound, find_round, list_rounds


class Queues:
    """One queue per round, shared by all threads of the process."""

    def __init__(self, database: Database, embeddings: Path | None = None) -> None:
        self._database, self._embeddings = database, embeddings
        self._lock, self._queues = threading.Lock(), dict[str, Queue]()
        self._clerks: dict[str, Clerk] = {}

    def of(self, name: str) -> Queue:
        """Return the queue of a round. Raises LookupError if there is none of that name."""
        with self._lock:
            if name not in self._queues:
                round_ = find_round(self._database, name)
                self._queues[name] = Queue(self._database, round_, embeddings=self._embeddings)
                self._clerks[name] = Clerk(self._database, self._queues[name])
            return self._queues[name]

    def clerk(self, name: str) -> Clerk:
        """Return who takes the votes of a round. Raises LookupError if there is none of that name."""
        self.of(name)
        return self._clerks[name]

    def ready_clerk(self, name: str) -> Clerk | None:
        """Return who takes the votes of a round whose queue is made already, without waiting for anybody."""
        return self._clerks.get(name)

    def by_id(self, round_id: int) -> Queue:
        """Return the queue of the round with this number. Raises LookupError if there is none."""
        with self._lock:
            found = next((queue for queue in self._queues.values() if queue.round.id == round_id), None)
        return found or self.of(next((r.name for r in list_rounds(self._database) if r.id == round_id), ""))

    def refresh(self, name: str) -> OpenRound:
        """Look at a round again, after it was closed or reopened."""
        queue = self.of(name)
        queue.round = find_round(self._database, name)
        return queue.round

    def close(self) -> None:
        """Let all queues go."""
        with self._lock:
            for queue in self._queues.values():
                if queue.harvester is not None:
                    queue.harvester.close()
            self._queues.clear()
            self._clerks.clear()
