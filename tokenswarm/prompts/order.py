"""The seeded order of rows, and each worker's share of it.

All workers walk ONE endless sequence: the rows in a seeded order, then again in a new one, and so on. Worker i of n
takes positions i, i + n, i + 2n, ...: together exactly the sequence, never one position twice, for any n. Where one has
more users than another, it takes as many more: the positions are dealt out to the users, and these to the workers.
"""

from __future__ import annotations

import itertools
import random
from array import array
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class SeededOrder:
    """A permutation of `identity`, settled from the front as far as it is asked for.

    Forward Fisher-Yates: step i swaps a random later row into place i and is then final. So an epoch begins without a
    pause (shuffling 94,145 rows at once would stop the event loop for 20 ms). Only `random()` is used: the one
    method whose sequence Python promises to keep between versions, and never `hash()`.
    """

    def __init__(self, identity: array[int], seed: int, epoch: int) -> None:
        self._rows = identity[:]
        self._random = random.Random(f"tokenswarm order {seed} {epoch}").random
        self._settled = 0

    def at(self, rank: int) -> int:
        """The row at `rank` (0 .. rows - 1). O(1) amortised over ranks that grow."""
        rows, draw = self._rows, self._random
        count = len(rows)
        for i in range(self._settled, rank + 1):
            j = i + int(draw() * (count - i))
            rows[i], rows[j] = rows[j], rows[i]
        self._settled = max(self._settled, rank + 1)
        return rows[rank]


class Shard(Generic[T], Iterator[T]):
    """Every `count`-th item of the endless sequence, from `index` on. Keep one a worker: it holds 4 bytes a row.

    `seed` None: file order, each time. `wraps`: how many times the whole data set was used up before the last item.
    `users`: of all workers; user k is on worker k % count, and takes position k of each `users`. None: one a worker.
    """

    def __init__(
        self, read: Callable[[int], T], rows: int, index: int, count: int, seed: int | None, users: int | None = None
    ) -> None:
        if rows < 1 or count < 1 or not 0 <= index < count:
            raise ValueError(f"shard {index} of {count} over {rows} rows: need 0 <= index < count and a row")
        self._read = read
        self._row_count = rows
        self._positions = _dealt(index, count, users)
        self._seed = seed
        self._identity = array("I", range(rows)) if seed is not None else array("I")
        self._order: SeededOrder | None = None
        self.wraps = 0

    def __next__(self) -> T:
        return self._read(self.next_row())

    def next_row(self) -> int:
        """The index of the next row, without reading it."""
        epoch, rank = divmod(next(self._positions), self._row_count)
        if self._seed is None:
            self.wraps = epoch
            return rank
        if self._order is None or epoch != self.wraps:
            self._order = SeededOrder(self._identity, self._seed, epoch)
        self.wraps = epoch
        return self._order.at(rank)


def _dealt(index: int, count: int, users: int | None) -> Iterator[int]:
    """The positions of a worker. One without a user has those that it would have if each had one."""
    every = count if users is None or users <= index else users
    return (begin + own for begin in itertools.count(0, every) for own in range(index, every, count))
