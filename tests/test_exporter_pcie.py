"""PCIe bytes from 32-bit counters that turn over many times a second: what is counted is true, the rest is left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from exporters.gpu.nvml import Json, NvmlError
from exporters.gpu.pcie import LANE_BYTES_PER_S, TURN_BYTES, PcieWatch, Traffic
from tokenswarm.clock import NS_PER_S, FakeClock

FULL_SPEED = LANE_BYTES_PER_S[5] * 16


class Card:
    """A session with one GPU whose counters grow by the clock: tx at `tx` bytes a second, rx at a tenth of it."""

    backend = "card"

    def __init__(self, clock: FakeClock, tx: float, link: Json = None) -> None:
        self.clock = clock
        self.tx = tx
        self.began_at = 4_000_000_000  # near the end of the first turn
        self.link = link
        self.error = ""
        self.asked = 0

    def open(self) -> int:
        return 1

    def close(self) -> None:
        return None

    def sent(self) -> float:
        return self.tx * self.clock.now_ns / NS_PER_S

    def ask(self, gpu: int, call: str) -> Json:
        if call == "pcie_link_max" and self.link is None:
            raise NvmlError("NOT_SUPPORTED")
        return {"uuid": f"GPU-{gpu}", "pcie_link_max": self.link}[call]

    def fields(self, _gpu: int, ids: Sequence[int]) -> Mapping[int, float | NvmlError]:
        self.asked += 1
        if self.error:
            raise NvmlError(self.error)
        self.clock.advance(0.0005)
        sent = {197: self.sent(), 198: self.sent() / 10}
        return {number: int(self.began_at + sent[number]) % TURN_BYTES for number in ids}

    def event(self, _wait_s: float) -> tuple[int, int] | None:
        return None


def watched(tx: float, **options: Json) -> tuple[Card, PcieWatch]:
    card = Card(FakeClock(1), tx, **options)
    watch = PcieWatch(card, clock=card.clock)
    watch.attach(1)
    return card, watch


def looked(card: Card, watch: PcieWatch, looks: int, every_s: float) -> Traffic:
    for _ in range(looks):
        watch.look()
        card.clock.advance(every_s)
    traffic = watch.traffic("GPU-0")
    assert traffic is not None
    return traffic


@pytest.mark.parametrize("tx", [0.0, 1e6, 4e9, 25e9, 0.95 * FULL_SPEED])
def test_every_byte_is_counted_up_to_the_speed_of_the_link(tx: float) -> None:
    card, watch = watched(tx)
    traffic = looked(card, watch, 400, watch.tick_s)
    seconds = traffic.observed_ns / NS_PER_S
    assert seconds == pytest.approx(399 * (watch.tick_s + 0.0005))
    assert traffic.bytes["tx"] == pytest.approx(tx * seconds, abs=2)
    assert traffic.bytes["rx"] == pytest.approx(tx / 10 * seconds, abs=2)


def test_looks_come_at_least_twice_a_turn_of_the_fastest_link() -> None:
    turns = {}
    for generation, width in ((3, 16), (5, 16), (6, 16), (4, 1)):
        _, watch = watched(0, link={"generation": generation, "width": width})
        turns[generation, width] = TURN_BYTES / (LANE_BYTES_PER_S[generation] * width) / watch.tick_s
    assert all(turn >= 2 for turn in turns.values())
    assert watched(0)[1].tick_s == watched(0, link={"generation": 5, "width": 16})[1].tick_s, "unknown: as PCIe 5 x16"
    assert watched(0, link={"generation": 9, "width": 16})[1].tick_s == pytest.approx(
        watched(0, link={"generation": 6, "width": 16})[1].tick_s
    ), "a newer one than is known here: as the newest"


def test_a_piece_that_may_be_more_than_a_turn_is_left_out_of_bytes_and_time() -> None:
    tx = 50e9
    card, watch = watched(tx)
    before = looked(card, watch, 100, watch.tick_s)
    counted, seconds = dict(before.bytes), before.observed_ns / NS_PER_S
    card.clock.advance(0.2)  # the thread was late: 10 GB, more than two turns
    after = looked(card, watch, 2, watch.tick_s)
    assert after.observed_ns / NS_PER_S - seconds == pytest.approx(watch.tick_s + 0.0005)
    assert after.bytes["tx"] - counted["tx"] == pytest.approx(tx * (watch.tick_s + 0.0005), rel=1e-6)


def test_a_counter_that_begins_again_adds_nothing() -> None:
    card, watch = watched(1e6)
    before = looked(card, watch, 50, watch.tick_s)
    counted, seconds = dict(before.bytes), before.observed_ns
    card.began_at -= 2_000_000_000  # as after a reset of the card: more "bytes" than can have passed
    after = looked(card, watch, 1, watch.tick_s)
    assert (after.bytes, after.observed_ns) == (counted, seconds)
    after = looked(card, watch, 2, watch.tick_s)
    assert after.observed_ns > seconds


@pytest.mark.parametrize("error", ["NOT_SUPPORTED", "GPU_IS_LOST", "UNINITIALIZED", "NO_PERMISSION"])
def test_a_card_that_can_not_say_is_not_asked_again_until_the_session_is_opened_again(error: str) -> None:
    card, watch = watched(1e9)
    counted = dict(looked(card, watch, 10, watch.tick_s).bytes)
    card.error = error
    looked(card, watch, 20, watch.tick_s)
    assert card.asked == 11
    card.error = ""
    watch.attach(1)
    after = looked(card, watch, 10, watch.tick_s)
    assert after.bytes["tx"] > counted["tx"], "what was counted before stays"


def test_a_hiccup_costs_one_piece() -> None:
    card, watch = watched(1e9)
    looked(card, watch, 10, watch.tick_s)
    card.error = "UNKNOWN"
    looked(card, watch, 1, watch.tick_s)
    card.error = ""
    traffic = looked(card, watch, 10, watch.tick_s)
    assert traffic.observed_ns / NS_PER_S == pytest.approx(18 * (watch.tick_s + 0.0005))


def test_a_card_without_such_counters_has_no_series() -> None:
    card, watch = watched(1e9)
    card.error = "NOT_SUPPORTED"
    watch.look()
    assert watch.traffic("GPU-0") is None
