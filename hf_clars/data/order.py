"""Which example comes where: a pure function of the seed, the epoch and the position, without any state."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError

LAST_BATCH = ("drop", "carry")
_LANES = 8  # per process, or the next multiple of its workers: 1, 2, 4 or 8 workers give one order

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Window:
    """Part of a lane: its examples in their order, as rows of chunks.

    Attributes:
        chunks, rows: of each example, `[n]` both.
    """

    chunks: Ints
    rows: Ints


@dataclass(frozen=True)
class Order:
    """The order of the examples of a training, for all processes together.

    An epoch takes `U = whole steps × B` examples from a sequence of passes over the data. A pass has the chunks of the
    data (row groups, say) in an order of its own, drawn from `(seed, pass)`. The U examples are cut into `lanes`
    consecutive parts, and each lane into windows whose examples are permuted by `(seed, epoch, lane, window)`. Position
    i of the epoch then belongs to piece `i // piece`, and pieces take turns at the lanes. So whoever reads every n-th
    piece, for an n that divides `lanes`, reads whole lanes, one after the other; but any position can be computed
    without those before it, by any process. With
    `by_example`, for data that a process can hold, a pass is a permutation of examples instead of chunks.

    Steps take consecutive positions. Which examples a step sees therefore depends neither on the number of processes
    nor on the micro-batch, as long as `lanes` and `piece` stay what they are.

    Args:
        sizes: examples of each chunk.
        total_batch_size: B.
        seed: not negative.
        last_batch: what becomes of the `N - U` examples of a pass that do not fill a step: `"drop"` leaves them out of
            that epoch (others every time), `"carry"` begins the next epoch with them.
        limit: examples of an epoch are at most so many; all by default.
        window: examples that are permuted together.
        lanes, piece, by_example: see above.

    Raises:
        UserError: no whole step in an epoch, an unknown `last_batch`, a negative seed, or a window below 1.
    """

    sizes: Ints
    total_batch_size: int
    seed: int = 0
    last_batch: str = "drop"
    limit: int | None = None
    window: int = 1024
    lanes: int = _LANES
    piece: int = 1
    by_example: bool = False
    _starts: Ints = field(init=False, repr=False, compare=False)
    _passes: dict[int, tuple[Ints, Ints]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.last_batch not in LAST_BATCH:
            raise UserError(f"last_batch={self.last_batch!r} is unknown: choose {' or '.join(LAST_BATCH)}")
        if self.seed < 0:
            raise UserError(f"seed={self.seed} must not be negative")
        if self.window < 1:
            raise UserError(f"window={self.window} must be at least 1")
        sizes = np.asarray(self.sizes, np.int64)
        object.__setattr__(self, "sizes", sizes)
        object.__setattr__(self, "_starts", np.concatenate(([0], np.cumsum(sizes))))
        object.__setattr__(self, "_passes", {})
        if self.steps < 1:
            raise UserError(
                f"the split has {self.examples} examples, fewer than one batch of total_batch_size="
                f"{self.total_batch_size}: use a total_batch_size of at most {self.examples}"
            )

    def laid_out(self, *, batch_size: int, world_size: int, workers: int, shuffle_buffer: int) -> Order:
        """The same for a number of processes and workers, each with `shuffle_buffer` examples to draw from."""
        workers = max(1, workers)
        lanes = workers * -(-_LANES // workers)  # of one process
        return replace(self, lanes=lanes * world_size, piece=batch_size, window=-(-shuffle_buffer // lanes))

    @property
    def examples(self) -> int:
        """N, the examples of a pass, or what the user made of it."""
        total = int(self._starts[-1])
        return total if self.limit is None else min(total, self.limit)

    @property
    def steps(self) -> int:
        """Optimizer steps of an epoch."""
        return self.examples // self.total_batch_size

    def __len__(self) -> int:
        """U, the examples of an epoch."""
        return self.steps * self.total_batch_size

    def place(self, position: int) -> tuple[int, int, int]:
        """Lane, window of the lane and place in the window of a position in an epoch."""
        piece, offset = divmod(position, self.piece)
        in_lane = piece // self.lanes * self.piece + offset
        return piece % self.lanes, in_lane // self.window, in_lane % self.window

    def windows(self, lane: int) -> int:
        """How many windows a lane has."""
        return -(-self._extent(lane)[1] // self.window)

    def window_at(self, epoch: int, lane: int, number: int) -> Window:
        """Window `number` of a lane in an epoch."""
        start, length = self._extent(lane)
        size = min(self.window, length - number * self.window)
        # The 1 tells it from the generator of a pass: numpy pads what is shorter with zeros.
        shuffled = np.random.default_rng([self.seed, epoch, lane, number, 1]).permutation(size)
        per_epoch = int(self._starts[-1]) if self.last_batch == "drop" else len(self)
        return self._examples(epoch * per_epoch + start + number * self.window + shuffled)

    def _extent(self, lane: int) -> tuple[int, int]:
        """Where a lane begins among the examples of an epoch, and how many it has."""
        pieces, rest = divmod(len(self), self.piece)
        rounds, more = divmod(pieces, self.lanes)
        length = (rounds + (lane < more)) * self.piece + (rest if lane == more else 0)
        return (rounds * lane + min(lane, more)) * self.piece + (rest if lane > more else 0), length

    def _examples(self, positions: Ints) -> Window:
        """Chunk and row of positions in the endless sequence of passes."""
        total = int(self._starts[-1])
        passes, within = np.divmod(positions, total)
        chunks, rows = np.empty_like(positions), np.empty_like(positions)
        for number in np.unique(passes):
            those = passes == number
            chunks[those], rows[those] = self._in_pass(int(number), within[those])
        return Window(chunks, rows)

    def _in_pass(self, number: int, positions: Ints) -> tuple[Ints, Ints]:
        found = self._passes.get(number)  # a thread that reads ahead asks, too
        if found is None:
            found = self._shuffled(np.random.default_rng([self.seed, number]))
            while len(self._passes) > 1:  # an epoch touches two passes at most
                self._passes.pop(next(iter(self._passes)), None)
            self._passes[number] = found
        order, starts = found
        if self.by_example:
            examples = order[positions]
            chunks = np.searchsorted(starts, examples, side="right") - 1
            return chunks, examples - starts[chunks]
        turns = np.searchsorted(starts, positions, side="right") - 1
        return order[turns], positions - starts[turns]

    def _shuffled(self, rng: np.random.Generator) -> tuple[Ints, Ints]:
        if self.by_example:
            return rng.permutation(int(self._starts[-1])), self._starts
        order = rng.permutation(len(self.sizes))
        return order, np.concatenate(([0], np.cumsum(self.sizes[order])))
