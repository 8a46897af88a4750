"""Who is shown what next in one round: in memory, since it is asked at every picture, and rebuilt from the database.

One process serves a round; its threads share this queue. What matters outlives it: votes, and leases, so that after a
restart everybody goes on with what was on their screen.
"""

import hashlib
import threading
import time
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sqlalchemy import bindparam, delete, insert, select, tuple_
from sqlalchemy.orm import Session

from emu_data.votes.pairs import is_repeated
from emu_data.votes.vote import ABSTENTIONS, UNSURE, WITHDRAWN
from emu_studio.apart import keep_apart
from emu_studio.database import Caption, CastVote, Database, Item, Lease, Round
from emu_studio.harvesting import Harvester, read_embeddings
from emu_studio.people import Person
from emu_studio.plan import CHOOSING
from emu_studio.rounds import OpenRound

BLOCK = 4096  # items of the order that are looked through at once; chosen here
CAPTIONED = "captioned"  # takes the place of a decision where a caption was saved
REPEAT_AFTER = 10  # pairs between a pair and its repeat, so that it is not remembered; chosen here
HOLD_ROUND = select(Round.id).where(Round.id == bindparam("round")).with_for_update()
END_LEASES = delete(Lease).where(
    Lease.item_id.in_(bindparam("items", expanding=True)),  # for the index; the next line alone reads all leases
    tuple_(Lease.item_id, Lease.rater_id, Lease.is_repeat).in_(bindparam("leases", expanding=True)),
)


def end_leases(session: Session, leases: Sequence[tuple[int, int, bool]]) -> None:
    """Remove leases, each (item, rater, whether it is a repeat), from the database."""
    session.execute(END_LEASES, {"items": list({item for item, _, _ in leases}), "leases": leases})


@dataclass(frozen=True)
class Turn:
    """An item that is somebody's now. place: its place in the round."""

    item_id: int
    place: int
    is_repeat: bool = False


class RaterState:
    """What the queue knows of one rater, per place: whether they need not be asked again, whether their word counts
    and keeps it, whether they are unsure; and which pairs they are to see once more (after so many decisions, place).
    last: the place of their newest decision, None before the first.
    """

    def __init__(self, num_items: int) -> None:
        self.is_done = np.zeros(num_items, bool)
        self.counts = np.zeros(num_items, bool)
        self.keeps = np.zeros(num_items, bool)
        self.is_unsure = np.zeros(num_items, bool)
        self.due: list[tuple[int, int]] = []
        self.num_decided = 0
        self.last: int | None = None


class Queue:
    """The queue of one round.

    Where pictures are chosen, a harvest decides in which order all see them (harvesting.py); pairs have a seeded order
    of each rater's own, in which those of prompts that others began come first. embeddings: a folder with ROUND.npy,
    which the probe learns from. clock: seconds, for tests.
    """

    def __init__(
        self,
        database: Database,
        round_: OpenRound,
        clock: Callable[[], float] = time.time,
        embeddings: Path | None = None,
    ) -> None:
        self.database, self.round, self.plan, self._clock = database, round_, round_.plan, clock
        self._lock = threading.RLock()
        with database.read() as session:
            columns = (Item.id, Item.place, Item.key, Item.caption, Item.is_control, Item.stratum)
            rows = session.execute(select(*columns).where(Item.round_id == round_.id).order_by(Item.place)).all()
            self.ids = np.array([row.id for row in rows])
            self.keys = [row.key for row in rows]
            self.captions = [row.caption for row in rows]
            self.strata = [row.stratum for row in rows]
            names = [stratum or f"\0{place}" for place, stratum in enumerate(self.strata)]  # none is like no other
            first = {name: place for place, name in reversed(list(enumerate(names)))}
            self.prompts = np.array([first[name] for name in names], np.int64)  # the same for pairs of a prompt
            self.is_control = np.array([row.is_control for row in rows], bool)
            self._place = {int(item): place for place, item in enumerate(self.ids)}
            self.num_votes = np.zeros(len(rows), np.int32)
            self.num_keeps = np.zeros(len(rows), np.int32)
            self._num_labels = 0  # items with a vote
            self.num_leased = np.zeros(len(rows), np.int32)
            self._raters: dict[int, RaterState] = {}
            self._leases: dict[tuple[int, int, bool], float] = {}  # (rater, place, repeat) -> expires
            last: dict[tuple[int, int, bool], str] = {}
            newest: dict[int, int] = {}
            votes = select(CastVote.rater_id, CastVote.item_id, CastVote.decision, CastVote.is_repeat)
            votes = votes.where(CastVote.round_id == round_.id, ~CastVote.is_adjudication)
            for row in session.execute(votes.order_by(CastVote.index)):
                last[row.rater_id, row.item_id, row.is_repeat] = row.decision
                if row.decision != WITHDRAWN:
                    newest[row.rater_id] = self._place[row.item_id]
            for (rater, item, is_repeat), decision in last.items():
                self._note(rater, self._place[item], decision, is_repeat)
            for rater, place in newest.items():
                self._state(rater).last = place
            captions = select(Caption.rater_id, Caption.item_id).where(Caption.round_id == round_.id).distinct()
            for row in session.execute(captions):
                self._note(row.rater_id, self._place[row.item_id], CAPTIONED, False)
            for lease in session.scalars(select(Lease).where(Lease.round_id == round_.id)):
                self._leases[lease.rater_id, self._place[lease.item_id], lease.is_repeat] = lease.expires
                self.num_leased[self._place[lease.item_id]] += not lease.is_repeat
        self.harvester: Harvester | None = None
        if self.plan.question in CHOOSING:
            found = read_embeddings(embeddings and embeddings / f"{round_.name}.npy", len(rows))
            self.harvester = Harvester(database, round_, self.keys, self.strata, found, self.labels)
            self.order = np.array(self.harvester.shown, np.int64)
        else:
            self.order = seeded_order(self.keys, f"{self.plan.seed}")
        self._shows_one = self.plan.is_pairs or self.plan.question == "specialist"
        self._front = 0  # of the order: all before it has its votes
        self._own_orders: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.ids)

    def labels(self) -> dict[int, bool]:
        """Return place -> whether it is kept, of all items that somebody decided on: by one vote in the generalists'
        round, by most votes in the specialists'."""
        with self._lock:
            places = np.flatnonzero(self.num_votes)
            keeps, votes = self.num_keeps[places], self.num_votes[places]
            kept = keeps >= 1 if self.plan.question == "generalist" else 2 * keeps > votes
            return dict(zip(places.tolist(), kept.tolist(), strict=True))

    def place_of(self, item_id: int) -> int:
        """Return the place of an item. Raises LookupError if it is of another round."""
        if item_id not in self._place:
            raise LookupError(f"item {item_id} is not of the round {self.round.name}")
        return self._place[item_id]

    def take(self, person: Person, num: int) -> list[Turn]:
        """Lease up to `num` items to somebody and return them, those first that they hold already; fewer where nothing
        is left for them. The database knows of the leases when this returns."""
        with self._lock:
            now = self._clock()
            self._expire(now)
            state = self._state(person.id)
            held = [lease for lease in self._leases if lease[0] == person.id]
            turns = [Turn(int(self.ids[place]), place, is_repeat) for _, place, is_repeat in held][:num]
            if self.plan.is_pairs:
                turns += self._pairs(person, state, num - len(turns), turns)
            else:
                turns += self._fresh(person, state, num - len(turns), {turn.place for turn in turns})
            if len(turns) < num:
                taken = {turn.place for turn in turns}
                unsure = [int(place) for place in np.flatnonzero(state.is_unsure) if int(place) not in taken]
                turns += [Turn(int(self.ids[place]), place) for place in unsure[: num - len(turns)]]
            self._lease(person, turns, now + 60 * self.plan.lease_minutes)
            return turns

    def note(self, person: Person, item_id: int, decision: str, is_repeat: bool) -> None:
        """Take note of a vote or a caption that the database has: its lease ends. Where one item is shown at a time,
        one whose vote is withdrawn is on the rater's screen again, so it is theirs before all that they hold."""
        with self._lock:
            place = self.place_of(item_id)
            if self._leases.pop((person.id, place, is_repeat), None) is not None and not is_repeat:
                self.num_leased[place] -= 1
            is_taken_back = decision == WITHDRAWN and self._shows_one and self._state(person.id).is_done[place]
            self._note(person.id, place, decision, is_repeat)
            if is_taken_back:  # the database knows of it when they next take items
                lease = (person.id, place, is_repeat)
                self._leases = {lease: self._clock() + 60 * self.plan.lease_minutes, **self._leases}
                self.num_leased[place] += not is_repeat
        if self.harvester is not None:
            self.harvester.learn(self._num_labels)

    def release(self, rater_id: int) -> int:
        """Free all that somebody holds and return how many items that were."""
        with self._lock:
            held = [lease for lease in self._leases if lease[0] == rater_id]
            with self.database.write() as session:
                session.execute(delete(Lease).where(Lease.round_id == self.round.id, Lease.rater_id == rater_id))
            for lease in held:
                self._forget(lease)
            return len(held)

    def leases(self) -> dict[int, int]:
        """Return how many items each rater holds: rater id -> number."""
        with self._lock:
            self._expire(self._clock())
            found: dict[int, int] = {}
            for rater, _, _ in self._leases:
                found[rater] = found.get(rater, 0) + 1
            return found

    def num_left(self, person: Person) -> int:
        """Return how many items somebody may still be asked about, their unsure ones among them."""
        with self._lock:
            state = self._state(person.id)
            wanted = (self.num_votes < self.plan.raters_per_item) & ~state.is_done
            return int(wanted.sum() + state.is_unsure.sum())

    def num_decided(self, person: Person) -> int:
        """Return on how many items somebody's word counts."""
        with self._lock:
            return int(self._state(person.id).counts.sum())

    def stands(self, person: Person, item_id: int) -> bool:
        """Whether somebody's word on an item counts."""
        with self._lock:
            return bool(self._state(person.id).counts[self.place_of(item_id)])

    @property
    def num_finished(self) -> int:
        """How many items have all their votes."""
        return int((self.num_votes >= self.plan.raters_per_item).sum())

    def _state(self, rater: int) -> RaterState:
        return self._raters.setdefault(rater, RaterState(len(self.ids)))

    def _note(self, rater: int, place: int, decision: str, is_repeat: bool) -> None:
        state = self._state(rater)
        if decision != WITHDRAWN:
            state.last = place
        if is_repeat or decision == WITHDRAWN:
            state.due = [one for one in state.due if one[1] != place]
        if is_repeat:
            return
        # A saved caption stays, whatever is said of its picture later.
        has_caption = self.plan.question == "captions" and bool(state.counts[place])
        counts = decision not in ABSTENTIONS or has_caption
        before = int(self.num_votes[place])
        self.num_votes[place] += int(counts) - int(state.counts[place])
        self._num_labels += bool(self.num_votes[place]) - bool(before)
        self.num_keeps[place] += int(decision == "keep") - int(state.keeps[place])
        state.keeps[place] = decision == "keep"
        is_first = counts and not state.is_done[place]
        state.counts[place], state.is_done[place] = counts, decision != WITHDRAWN
        state.is_unsure[place] = decision == UNSURE
        state.num_decided += counts
        if is_first and self.plan.is_pairs:
            state.due.append((state.num_decided + REPEAT_AFTER, place))
        if not counts:
            self._front = 0

    def _pairs(self, person: Person, state: RaterState, num: int, held: Sequence[Turn]) -> list[Turn]:
        """Up to `num` pairs to follow those that somebody holds, or the one that they decided on last."""
        first = {turn.place for turn in held if not turn.is_repeat}
        again = {turn.place for turn in held if turn.is_repeat}
        repeats = [place for place in self._due(person, state) if place not in again]
        asked = self.num_votes + self.num_leased
        is_open = (asked < self.plan.raters_per_item) & ~state.is_done
        is_open[list(first)] = False
        order = self._own_order(person)
        order = order[is_open[order]]
        # First what others began, so that prompts are finished early and not all at the end; what the rater alone began
        # is not preferred, since more of the same prompt should come as late as their own order has it.
        by_others = asked - state.counts
        by_others[list(first)] -= 1
        is_begun = np.zeros(len(self), bool)
        is_begun[self.prompts[by_others > 0]] = True
        is_begun = is_begun[self.prompts]
        fresh = [*order[is_begun[order]].tolist(), *order[~is_begun[order]].tolist()][:BLOCK]
        before = held[-1].place if held else state.last
        prompts = self.prompts.tolist()
        found = keep_apart(fresh, repeats, prompts, None if before is None else prompts[before], num)
        return [Turn(int(self.ids[place]), place, is_repeat) for place, is_repeat in found]

    def _due(self, person: Person, state: RaterState) -> list[int]:
        """The places of the pairs that somebody is to see again now."""
        seed, share = self.plan.seed, self.plan.repeat_share
        due = [place for after, place in state.due if after <= state.num_decided]
        return [place for place in due if is_repeated(seed, person.pseudonym, self.keys[place], share)]

    def _fresh(self, person: Person, state: RaterState, num: int, taken: Container[int]) -> list[Turn]:
        found: list[int] = []
        if num > 0:
            self._walk(self._front, state, num, taken, found)
        while self.harvester is not None and len(found) < num:
            more = self.harvester.extend(num - len(found))
            if not more:
                break
            first = len(self.order)
            self.order = np.concatenate([self.order, np.array(more, np.int64)])
            self._walk(first, state, num, taken, found)
        return [Turn(int(self.ids[place]), place) for place in found]

    def _walk(self, start: int, state: RaterState, num: int, taken: Container[int], found: list[int]) -> None:
        """Add to `found` the places from `start` of the order on that a rater may be shown, until there are `num`."""
        is_open = self.num_votes + self.num_leased < self.plan.raters_per_item
        is_front = start == self._front
        for at in range(start, len(self.order), BLOCK):
            block = self.order[at : at + BLOCK]
            if is_front and len(block) == BLOCK and (self.num_votes[block] >= self.plan.raters_per_item).all():
                self._front = at + BLOCK
                continue
            is_front = False
            for place in block[is_open[block] & ~state.is_done[block]].tolist():
                if place not in taken:
                    found.append(place)
                    if len(found) == num:
                        return

    def _own_order(self, person: Person) -> np.ndarray:
        if person.id not in self._own_orders:
            self._own_orders[person.id] = seeded_order(self.keys, f"{self.plan.seed}\0{person.pseudonym}")
        return self._own_orders[person.id]

    def _lease(self, person: Person, turns: Sequence[Turn], expires: float) -> None:
        whose = {"rater_id": person.id, "round_id": self.round.id, "expires": expires}
        rows = [{"item_id": turn.item_id, "is_repeat": turn.is_repeat, **whose} for turn in turns]
        keys = [(turn.item_id, person.id, turn.is_repeat) for turn in turns]
        with self.database.write() as session:
            session.execute(HOLD_ROUND, {"round": self.round.id})  # first, as the clerk does: no deadlock
            end_leases(session, keys)
            if rows:
                session.execute(insert(Lease), rows)
        for turn in turns:
            lease = (person.id, turn.place, turn.is_repeat)
            if lease not in self._leases and not turn.is_repeat:
                self.num_leased[turn.place] += 1
            self._leases[lease] = expires

    def _expire(self, now: float) -> None:
        gone = [lease for lease, expires in self._leases.items() if expires <= now]
        if gone:
            with self.database.write() as session:
                session.execute(delete(Lease).where(Lease.round_id == self.round.id, Lease.expires <= now))
            for lease in gone:
                self._forget(lease)

    def _forget(self, lease: tuple[int, int, bool]) -> None:
        del self._leases[lease]
        if not lease[2]:
            self.num_leased[lease[1]] -= 1
        self._front = 0


def seeded_order(keys: Sequence[str], seed: str) -> np.ndarray:
    """Return the places of keys in an order that depends on the seed and the keys alone, int64 (N,)."""
    digests = [hashlib.blake2b(f"{seed}\0{key}".encode(), digest_size=8).digest() for key in keys]
    return np.array(sorted(range(len(keys)), key=lambda place: (digests[place], place)), np.int64)
