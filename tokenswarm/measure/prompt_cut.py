"""Did the server read the whole prompt? Its own counts of prompt tokens, laid beside the bytes that were sent.

A server whose context is full may drop the oldest messages, or keep a half of the text, and answer with 200 as if
nothing were. Three signs, each only where the text needs more tokens than any answer of this run has shown:
a conversation whose prompt shrinks from one turn to the next; a count below half of what the run's tokens a byte say;
one count again and again for texts of very different lengths. Memory is bounded; one watch a worker.
"""

from __future__ import annotations

from collections import OrderedDict

from tokenswarm.measure.sketch import Sketch
from tokenswarm.record import RequestRecord

CONVERSATIONS_MAX = 4096  # the last turns that are remembered; then the oldest is forgotten
VALUES_MAX = 256  # counts that are remembered
LEARNED = 20  # prompts before the run's tokens a byte are known
BYTES_MIN = 400  # of a prompt whose tokens a byte mean something: a chat template alone is 5 to 60 tokens
SHRINKS_TO = 0.9  # of the turn before; templates differ by a few tokens
SHRINKS_BY = 16  # tokens
FAR_BELOW = 0.5  # of what the text needs; Chinese beside English is 0.6
UNIFORM = (0.7, 1.4)  # quartiles of tokens a byte around their median, or they don't tell what a text needs
SAME_N, SAME_SHARE, SAME_SPAN, SAME_MIN = 5, 0.1, 2.0, 64  # one count: how often, how large, over which lengths
NEW, NEW_MORE = (0.8, 1.25), 64  # of the tokens that are new in a turn; a cache holds whole blocks
BEYOND = 1.02  # what is needed against what was seen: estimates


class _Turn:
    __slots__ = ("nbytes", "needed", "turn")

    def __init__(self, turn: int, nbytes: int, needed: float) -> None:
        self.turn, self.nbytes, self.needed = turn, nbytes, needed


class PromptWatch:
    """`needed(record)` of each request that ended, in any order. `counts_cached`: the engine is known to count them."""

    def __init__(self, *, counts_cached: bool = False) -> None:
        self._counts_cached = counts_cached
        self._apart = False  # cached tokens stand beside the prompt's, not in them
        self._largest = 0
        self._n = 0
        self._ratio = Sketch()  # tokens a byte
        self._turns: OrderedDict[str, _Turn] = OrderedDict()
        self._values: OrderedDict[int, list[int]] = OrderedDict()  # count -> [n, fewest bytes, most bytes]

    def needed(self, record: RequestRecord) -> int:
        """The tokens that the prompt needs where the server read clearly fewer; 0 where nothing is wrong, or known."""
        nbytes, stated = record.prompt_bytes, record.prompt_tokens
        if not record.ok or not stated or not nbytes:
            return 0
        cached = record.cached_tokens or 0
        self._apart = self._apart or cached > stated
        tokens = stated + cached if self._apart else stated
        self._n += 1
        held = self._held_before(record, tokens)
        if held and not self._counts_cached and self._only_new(record, tokens, held):
            self._remember(record, held)
            return 0
        wants = max(held, self._far_below(tokens, nbytes), self._same_again(tokens, nbytes))
        if wants <= self._largest * BEYOND:
            wants = 0.0  # it has read as many at another time
            self._largest = max(self._largest, tokens)
            if nbytes >= BYTES_MIN:
                self._ratio.add(tokens / nbytes)
        self._remember(record, max(wants, tokens))
        return round(wants)

    def _remember(self, record: RequestRecord, needed: float) -> None:
        if record.conversation:
            self._turns[record.conversation] = _Turn(record.turn, record.prompt_bytes, needed)
            self._turns.move_to_end(record.conversation)
            if len(self._turns) > CONVERSATIONS_MAX:
                self._turns.popitem(last=False)

    def _per_byte(self) -> float | None:
        """The run's tokens a byte, where its prompts agree about it."""
        if self._ratio.n < LEARNED:
            return None
        low, middle, high = (value or 0.0 for value in self._ratio.quantiles((0.25, 0.5, 0.75)))
        return middle if low >= UNIFORM[0] * middle and high <= UNIFORM[1] * middle else None

    def _held_before(self, record: RequestRecord, tokens: int) -> float:
        """What a later turn needs, as it holds the one before; 0 where it has that many tokens, or nothing is known."""
        before = self._turns.get(record.conversation) if record.turn else None
        if before is None or record.turn != before.turn + 1 or record.prompt_bytes <= before.nbytes:
            return 0.0
        needs = before.needed * record.prompt_bytes / before.nbytes
        return needs if tokens < SHRINKS_TO * before.needed and before.needed - tokens >= SHRINKS_BY else 0.0

    def _only_new(self, record: RequestRecord, tokens: int, held: float) -> bool:
        """Whether a server that leaves cached tokens out would say so: just what is new, not fewer and hardly more."""
        new = held - self._turns[record.conversation].needed
        return NEW[0] * new <= tokens <= NEW[1] * new + NEW_MORE

    def _far_below(self, tokens: int, nbytes: int) -> float:
        near = tokens >= FAR_BELOW * self._ratio.max * nbytes  # whatever the median is
        per_byte = self._per_byte() if nbytes >= BYTES_MIN and not near else None
        return per_byte * nbytes if per_byte is not None and tokens < FAR_BELOW * per_byte * nbytes else 0.0

    def _same_again(self, tokens: int, nbytes: int) -> float:
        """One count for many texts, the longest of which is twice the shortest."""
        found = self._values.setdefault(tokens, [0, nbytes, nbytes])
        self._values.move_to_end(tokens)
        if len(self._values) > VALUES_MAX:
            rare = next((value for value, (n, _, _) in self._values.items() if n < SAME_N), next(iter(self._values)))
            del self._values[rare]
        found[:] = found[0] + 1, min(found[1], nbytes), max(found[2], nbytes)
        often = found[0] >= max(SAME_N, SAME_SHARE * self._n) and tokens >= SAME_MIN
        return tokens * nbytes / found[1] if often and found[2] >= SAME_SPAN * found[1] else 0.0
