"""timeline.py: stamps, gaps and merged reads, tokens an event, judgement; every rule with the case that shaped it."""

from __future__ import annotations

import sys
from array import array
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenswarm.engines import Delta, Usage
from tokenswarm.measure.timeline import Timeline
from tokenswarm.record import EngineTimes, Outcome, RequestRecord, TokenSource

MS = 1_000_000
STOP = Delta(finished=((0, "stop"),))
ROLE = Delta()
DONE = Delta(sentinel=True)


def marked(*marks: tuple[int, Delta], choices: int = 1, keep_text: bool = False) -> Timeline:
    timeline = Timeline(choices=choices, keep_text=keep_text)
    timeline.intended_ns, timeline.sent_ns, timeline.done_ns = 1 * MS, 2 * MS, 500 * MS
    for at_ms, delta in marks:
        timeline.mark(at_ms * MS, delta)
    return timeline


def frozen(timeline: Timeline, outcome: Outcome = Outcome.OK, **more: str) -> RequestRecord:
    return timeline.finish(outcome, id="r", stage=2, phase="steady", conversation="c", turn=3, **more)


def record(*marks: tuple[int, Delta], choices: int = 1, keep_text: bool = False) -> RequestRecord:
    return frozen(marked(*marks, choices=choices, keep_text=keep_text))


# --- stamps and gaps -------------------------------------------------------------------------------------------------


def test_only_content_reasoning_and_tool_arguments_are_tokens() -> None:
    got = record(
        (10, ROLE),
        (20, Delta(tool=True)),  # a tool's name
        (30, Delta(reasoning="hm")),
        (50, Delta(content="a")),
        (60, Delta(content='{"x"', tool=True)),
        (70, STOP),
        (80, Delta(usage=Usage(5, 3))),
        (90, DONE),
    )
    assert got.token_stamps_ns == (30 * MS, 50 * MS, 60 * MS)
    assert (got.first_ns, got.first_answer_ns, got.last_ns) == (30 * MS, 50 * MS, 60 * MS)
    assert got.gaps_ns == (20 * MS, 10 * MS)
    assert (got.ttft_ns, got.ttfat_ns, got.events, got.merged_events) == (28 * MS, 48 * MS, 3, 0)
    assert got.gap_tokens == ()


def test_events_of_one_read_are_merged_and_no_gap_is_invented() -> None:
    a = Delta(content="a")
    got = record((10, a), (10, a), (30, a), (30, a), (30, a), (70, a), (71, STOP))
    assert got.gaps_ns == (20 * MS, 40 * MS)
    assert (got.events, got.merged_events) == (6, 3)
    assert got.token_stamps_ns == tuple(at * MS for at in (10, 10, 30, 30, 30, 70))
    assert len(got.gaps_ns) + got.merged_events + 1 == got.events
    assert got.stall_ns == 40 * MS


def test_a_stamp_that_runs_backwards_is_the_same_read_and_never_a_negative_gap() -> None:
    timeline = Timeline()
    for at in (1000, 2000, 1990, 2010, 3000):
        timeline.mark(at, Delta(content="a"))
    got = frozen(timeline)
    assert (got.gaps_ns, got.merged_events) == ((1000, 10, 990), 1)


def test_each_choice_has_its_own_clock() -> None:
    first, second = Delta(content="a"), Delta(content="b", choice=1)
    got = record((10, first), (12, second), (20, first), (32, second), (32, second), (40, first), choices=2)
    assert sorted(got.gaps_ns) == [10 * MS, 20 * MS, 20 * MS]
    assert (got.events, got.merged_events) == (6, 1)
    # Two choices of one engine step share the read: that is no merge, each has its own gap.
    got = record((10, first), (10, second), (30, first), (30, second), choices=2)
    assert (got.gaps_ns, got.merged_events) == ((20 * MS, 20 * MS), 0)
    assert got.token_stamps_ns == (10 * MS, 10 * MS, 30 * MS, 30 * MS)


def test_choices_within_one_event_are_all_marked() -> None:
    both = Delta(content="a", more=(Delta(content="b", choice=1, finished=((1, "stop"),)),))
    timeline = marked((10, both), (30, both), (31, STOP), choices=2)
    assert timeline.judge() == (Outcome.OK, "")
    got = frozen(timeline)
    assert (got.events, got.gaps_ns, got.finish_reason) == (4, (20 * MS, 20 * MS), "stop,stop")


def test_who_asks_for_one_choice_gets_one_whatever_its_index() -> None:
    """Some servers number the events there, or count from 1."""
    marks = [(10 * (i + 1), Delta(content="a", choice=i, tokens=1 + i % 2)) for i in range(5)]
    timeline = marked(*marks, (51, Delta(choice=5, finished=((5, "stop"),))), keep_text=True)
    assert timeline.judge() == (Outcome.OK, "")
    got = frozen(timeline)
    assert (got.gaps_ns, got.gap_tokens) == ((10 * MS,) * 4, (2, 1, 2, 1))
    assert (got.finish_reason, got.text) == ("stop", "aaaaa")
    one_based = marked((10, Delta(content="a", choice=1)), (20, Delta(finished=((1, "stop"),))))
    assert one_based.judge() == (Outcome.OK, "")


def test_choices_that_never_began_are_named_and_not_called_a_cut() -> None:
    timeline = marked((10, Delta(content="a")), (20, STOP), choices=3)
    assert timeline.choices_missing == 2
    assert timeline.judge() == (
        Outcome.TRUNCATED,
        "1 of 3 choices came: the server may not know `n` (engine.choices)",
    )
    cut = marked((10, Delta(content="a")), (11, Delta(content="b", choice=1)), (20, STOP), choices=2)
    assert cut.choices_missing == 0
    assert cut.judge()[1] == "the answer ended without a finish reason, after 2 content events"
    assert marked((10, Delta(content="a")), choices=2).choices_missing == 0


# --- tokens an event -------------------------------------------------------------------------------------------------


def test_token_ids_say_how_many_tokens_share_a_gap() -> None:
    got = record((10, Delta("a", tokens=1)), (20, Delta("b", tokens=3)), (30, Delta("c", tokens=1)))
    assert (got.gaps_ns, got.gap_tokens) == ((10 * MS, 10 * MS), (3, 1))
    got = record((10, Delta("a", tokens=1)), (20, Delta("b", tokens=1)))
    assert got.gap_tokens == ()  # one each is the rule, not news
    # The text of the token at 20 came with the next one (UTF-8 cut in two): that gap holds two.
    got = record((10, Delta("a", tokens=1)), (20, Delta(tokens=1)), (30, Delta("é", tokens=1)))
    assert (got.gaps_ns, got.gap_tokens) == ((20 * MS,), (2,))


def test_token_ids_of_choices_do_not_mix() -> None:
    got = record(
        (10, Delta("a")),
        (11, Delta("b", choice=1)),
        (15, Delta(tokens=1)),
        (20, Delta("b", choice=1, tokens=1)),
        (30, Delta("a", tokens=1)),
        choices=2,
    )
    assert dict(zip(got.gaps_ns, got.gap_tokens, strict=True)) == {20 * MS: 2, 9 * MS: 1}


def test_continuous_usage_says_how_many_tokens_share_a_gap() -> None:
    got = record(
        (5, Delta(usage=Usage(9, 0))),
        (10, Delta("a", usage=Usage(9, 1))),
        (20, Delta("b", usage=Usage(9, 4))),
        (25, Delta(usage=Usage(9, 5))),
        (30, Delta("c", usage=Usage(9, 6))),
        (31, Delta(finished=((0, "stop"),), usage=Usage(9, 6))),
    )
    assert (got.gaps_ns, got.gap_tokens, got.output_tokens) == ((10 * MS, 10 * MS), (3, 2), 6)


@pytest.mark.parametrize(
    "usages",
    [
        [None, None, 9],  # only the last event carries usage: that counts the whole answer, not the event
        [0, 0, 9],  # Ollama's /v1/completions: zeroed until the end
        [1, None, 9],
        [5, 3, 2],  # runs backwards
    ],
)
def test_a_usage_that_is_not_continuous_says_nothing_about_one_event(usages: list[int | None]) -> None:
    marks = [(10 * i, Delta("a", usage=None if n is None else Usage(4, n))) for i, n in enumerate(usages, 1)]
    assert record(*marks).gap_tokens == ()


def test_usage_of_several_choices_says_nothing_about_one_event() -> None:
    marks = [(10 * i, Delta("a", choice=i % 2, usage=Usage(4, 3 * i))) for i in range(1, 7)]
    assert record(*marks, choices=2).gap_tokens == ()


def test_of_a_merged_read_the_first_event_ends_the_gap_and_has_its_tokens() -> None:
    got = record(
        (10, Delta("a", tokens=1)), (20, Delta("b", tokens=2)), (20, Delta("c", tokens=5)), (40, Delta("d", tokens=1))
    )
    assert (got.gaps_ns, got.gap_tokens, got.merged_events) == ((10 * MS, 20 * MS), (2, 1), 1)


# --- the count of the answer -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("usage", "tokens", "source"),
    [
        (Usage(9, 7), 7, TokenSource.SERVER),
        (Usage(9, 1), 1, TokenSource.SERVER),  # fewer than events: not ours to mend, the verdict compares them
        (Usage(9, None), 2, TokenSource.EVENTS),  # negative or absurd counts are None by now
        (Usage(9, 0), 2, TokenSource.EVENTS),  # no answer with content has 0 tokens
        (None, 2, TokenSource.EVENTS),
    ],
)
def test_output_tokens(usage: Usage | None, tokens: int, source: TokenSource) -> None:
    got = record((10, Delta("a")), (20, Delta("b")), (21, STOP), (22, Delta(usage=usage)))
    assert (got.output_tokens, got.token_source) == (tokens, source)


def test_the_last_usage_counts_with_all_its_details() -> None:
    got = record((10, Delta("a", usage=Usage(0, 0))), (11, STOP), (12, Delta(usage=Usage(9, 7, 3, 4))))
    assert (got.prompt_tokens, got.output_tokens, got.reasoning_tokens, got.cached_tokens) == (9, 7, 3, 4)


def test_a_part_of_the_usage_of_several_choices_is_no_count() -> None:
    # vLLM's continuous usage counts one choice; only the last one counts all.
    parts = [(10, Delta("a", usage=Usage(9, 1))), (11, Delta("b", choice=1, usage=Usage(9, 1)))]
    got = record(*parts, choices=2)
    assert (got.output_tokens, got.token_source) == (2, TokenSource.EVENTS)
    ends = Delta(finished=((0, "stop"), (1, "stop")), usage=Usage(9, 5))
    got = record(*parts, (12, ends), choices=2)
    assert (got.output_tokens, got.token_source) == (5, TokenSource.SERVER)


def test_an_empty_answer_has_no_tokens() -> None:
    assert record((10, STOP), (11, Delta(usage=Usage(4, 0)))).output_tokens == 0


# --- judgement -------------------------------------------------------------------------------------------------------

A = Delta(content="a")
JUDGED = {
    "stopped": ([A, STOP, DONE], 1, Outcome.OK),
    "without [DONE]": ([A, STOP], 1, Outcome.OK),
    "finish with the last content": ([ROLE, A, Delta("b", finished=((0, "length"),))], 1, Outcome.OK),
    "reasoning only": ([Delta(reasoning="hm", finished=((0, "length"),))], 1, Outcome.OK),
    "tool arguments only": ([Delta('{"x":1}', tool=True), Delta(finished=((0, "tool_calls"),))], 1, Outcome.OK),
    "two choices": (
        [Delta(content="a", finished=((0, "stop"),)), Delta("b", choice=1, finished=((1, "stop"),))],
        2,
        Outcome.OK,
    ),
    "one choice is silent": ([A, STOP, Delta(choice=1, finished=((1, "stop"),))], 2, Outcome.OK),
    "[DONE] is not enough": ([A, DONE], 1, Outcome.TRUNCATED),
    "clean end without finish": ([A, A], 1, Outcome.TRUNCATED),
    "usage is no end": ([A, Delta(usage=Usage(4, 1)), DONE], 1, Outcome.TRUNCATED),
    "one of two choices": ([A, STOP, DONE], 2, Outcome.TRUNCATED),
    "role and no more": ([ROLE], 1, Outcome.TRUNCATED),
    "an error": ([A, Delta(error="engine died"), DONE], 1, Outcome.ERROR_OBJECT),
    "an error and nothing else": ([Delta(error="engine died")], 1, Outcome.ERROR_OBJECT),
    "an error after the finish": ([A, STOP, Delta(error="late")], 1, Outcome.ERROR_OBJECT),
    "aborted": ([A, Delta(finished=((0, "abort"),))], 1, Outcome.ERROR_OBJECT),
    "finish reason error": ([A, Delta(finished=((0, "error"),))], 1, Outcome.ERROR_OBJECT),
    "nothing": ([], 1, Outcome.EMPTY),
    "only [DONE]": ([DONE], 1, Outcome.EMPTY),
    "finish without content": ([ROLE, STOP, DONE], 1, Outcome.EMPTY),
    "model loaded": ([Delta(finished=((0, "load"),))], 1, Outcome.EMPTY),
}


@pytest.mark.parametrize(("deltas", "choices", "outcome"), JUDGED.values(), ids=JUDGED)
def test_judgement(deltas: list[Delta], choices: int, outcome: Outcome) -> None:
    timeline = marked(*((10 * i, delta) for i, delta in enumerate(deltas, 1)), choices=choices)
    judged, sentence = timeline.judge()
    assert judged is outcome
    assert bool(sentence) == (outcome is not Outcome.OK)
    assert "\n" not in sentence
    got = frozen(timeline, judged, error=sentence)
    assert got.ok == (outcome is Outcome.OK)
    assert (got.error, got.error_kind) == (sentence, "" if got.ok else outcome.value)


# --- the record ------------------------------------------------------------------------------------------------------


def test_everything_the_exchange_knows_is_in_the_record() -> None:
    timeline = marked((10, A), (20, STOP))
    timeline.connect_ns, timeline.headers_ns, timeline.status = 3, 4, 200
    timeline.reads, timeline.bytes_received, timeline.rx_lag_ns_max = 5, 6, 7
    timeline.reconnected, timeline.stamp = True, "kernel"
    timeline.mark(21 * MS, Delta(times=EngineTimes(total_ns=8)))
    got = frozen(timeline)
    assert got == RequestRecord(
        id="r",
        outcome=Outcome.OK,
        stage=2,
        phase="steady",
        intended_ns=1 * MS,
        sent_ns=2 * MS,
        headers_ns=4,
        first_ns=10 * MS,
        first_answer_ns=10 * MS,
        last_ns=10 * MS,
        first_event_ns=10 * MS,
        last_event_ns=20 * MS,
        done_ns=500 * MS,
        connect_ns=3,
        status=200,
        finish_reason="stop",
        conversation="c",
        turn=3,
        output_tokens=1,
        events=1,
        reads=5,
        bytes_received=6,
        token_stamps_ns=(10 * MS,),
        rx_lag_max_ns=7,
        reconnected=True,
        stamp="kernel",
        engine=EngineTimes(total_ns=8),
    )


def test_each_mark_stands_in_the_record_under_its_own_name() -> None:
    """The record is built by place, and many of its fields are numbers."""
    computed = {"first_low_ns", "unsure"}
    marks = (set(Timeline.__slots__) & set(RequestRecord.__struct_fields__)) - computed
    values: dict[str, object] = {}
    for number, name in enumerate(sorted(marks), 1_000):
        before = getattr(Timeline(), name)
        values[name] = f"text {number}" if isinstance(before, str) else number
    counts = {"prompt_tokens": 11, "output_tokens": 12, "reasoning_tokens": 3, "cached_tokens": 4}
    counts |= {"draft_tokens": 5, "accepted_tokens": 6}
    timeline = marked((10, A), (20, Delta(usage=Usage(**counts))))
    for name, value in values.items():
        setattr(timeline, name, value)
    got = frozen(timeline, Outcome.RESET, error="why", error_kind="kind")
    assert len(values) > 15
    assert {name: getattr(got, name) for name in values} == values
    assert {name: getattr(got, name) for name in counts} == counts
    assert (got.id, got.outcome, got.error, got.error_kind) == ("r", Outcome.RESET, "why", "kind")


def test_errors_are_short_clean_and_only_on_failures() -> None:
    timeline = marked((10, Delta("a", error="first")), (11, Delta(error="second")))
    assert frozen(timeline, Outcome.ERROR_OBJECT).error == "first"
    got = frozen(timeline, Outcome.RESET, error="x\x1b[31m\n" * 200, error_kind="ConnectionResetError")
    assert (len(got.error), got.error_kind) == (200, "ConnectionResetError")
    assert got.error.isprintable()
    got = frozen(timeline, Outcome.OK, error="x", error_kind="y")
    assert (got.error, got.error_kind) == ("", "")


def test_finish_reasons_are_joined_by_choice_and_bounded() -> None:
    got = record(
        (10, Delta("b", choice=1, finished=((1, "length"),))), (20, Delta("a", finished=((0, "stop"),))), choices=2
    )
    assert got.finish_reason == "stop,length"
    long = record((10, Delta("a", finished=((0, "x\n" * 1000),))))
    assert len(long.finish_reason) <= 64
    assert long.finish_reason.isprintable()
    two = tuple((10, Delta("a", choice=n, finished=((n, "x" * 1000),))) for n in (0, 1))
    assert len(record(*two, choices=2).finish_reason) <= 64


def test_text_is_the_answer_of_the_first_choice_and_only_on_demand() -> None:
    marks = [(10, Delta("a", "hm")), (11, Delta("b", choice=1)), (12, Delta(reasoning="x")), (13, Delta("c"))]
    timeline = marked(*marks, choices=2, keep_text=True)
    assert timeline.text() == "ac"
    assert frozen(timeline).text == "ac"
    assert marked(*marks).text() == ""
    assert record(*marks).text is None
    assert record(keep_text=True).text == ""


def test_live_values_for_timeouts_and_counters() -> None:
    timeline = Timeline()
    assert (timeline.last_token_ns, timeline.events) == (0, 0)
    timeline.mark(5, ROLE)
    assert (timeline.last_token_ns, timeline.events) == (0, 0)  # a role, a ping or a comment keeps no stream alive
    timeline.mark(7, A)
    timeline.mark(9, DONE)
    assert (timeline.last_token_ns, timeline.events) == (7, 1)


@pytest.mark.parametrize(
    ("delta", "bytes_max"), [(A, 9), (Delta("a", tokens=2), 14), (Delta("a", choice=1, tokens=2), 16)]
)
def test_memory_of_a_long_stream(delta: Delta, bytes_max: int) -> None:
    timeline = Timeline(choices=delta.choice + 1)
    for i in range(20_000):
        timeline.mark(i + 1, delta)
    held = sum(sys.getsizeof(getattr(timeline, name)) for name in ("_stamps", "_tokens", "_of_choice"))
    assert held <= 20_000 * bytes_max * 1.13 + 500  # arrays grow by an eighth


# --- any stream ------------------------------------------------------------------------------------------------------

deltas = st.builds(
    Delta,
    content=st.sampled_from(["", "a"]),
    reasoning=st.sampled_from(["", "", "r"]),
    choice=st.integers(0, 2),
    tokens=st.none() | st.integers(0, 5),
    finished=st.sampled_from([(), (), ((0, "stop"),), ((1, "length"),)]),
    usage=st.none() | st.builds(Usage, prompt_tokens=st.none(), output_tokens=st.none() | st.integers(0, 10**9)),
)


@settings(max_examples=300)
@given(
    events=st.lists(st.tuples(st.integers(0, 3), deltas), max_size=25),
    choices=st.integers(1, 3),
    keep_text=st.booleans(),
)
def test_any_stream_adds_up(events: list[tuple[int, Delta]], choices: int, keep_text: bool) -> None:
    timeline = Timeline(choices=choices, keep_text=keep_text)
    now, content = 1, []
    for step, delta in events:
        now += step
        timeline.mark(now, delta)
        if delta.content or delta.reasoning:
            content.append((now, delta.choice if choices != 1 else 0))
    got = frozen(timeline, timeline.judge()[0])
    begun = {choice for _, choice in content}
    assert got.events == len(content) == len(got.gaps_ns) + got.merged_events + len(begun)
    assert got.token_stamps_ns == tuple(at for at, _ in content)
    expected = []
    for choice in sorted(begun):
        stamps = sorted({at for at, other in content if other == choice})
        expected += [b - a for a, b in pairwise(stamps)]
    assert list(got.gaps_ns) == expected
    assert all(gap > 0 for gap in got.gaps_ns)
    assert len(got.gap_tokens) in (0, len(got.gaps_ns))
    assert all(count >= 1 for count in got.gap_tokens)
    assert got.output_tokens >= min(1, got.events)


def test_the_first_and_last_event_of_a_choice_are_noted_whether_or_not_they_hold_content() -> None:
    """What other tools call the first token: a role-only event counts for them, a usage event does not."""
    timeline = Timeline()
    timeline.mark(10, Delta())
    timeline.mark(20, Delta(content="a"))
    timeline.mark(30, Delta(finished=((0, "stop"),)))
    timeline.mark(40, Delta(usage=Usage(output_tokens=1)))
    timeline.mark(50, Delta(sentinel=True))
    record = timeline.finish(Outcome.OK, id="r", stage=0, phase="steady", conversation="c", turn=0)

    assert (record.first_event_ns, record.first_ns, record.last_ns, record.last_event_ns) == (10, 20, 20, 30)


@settings(max_examples=300)
@given(
    events=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4), deltas), max_size=12),
    choices=st.integers(1, 3),
    keep_text=st.booleans(),
)
def test_events_in_bulk_are_the_events_one_by_one(
    events: list[tuple[int, int, Delta]], choices: int, keep_text: bool
) -> None:
    one_by_one, in_bulk = (Timeline(choices=choices, keep_text=keep_text) for _ in range(2))
    now = 1
    for step, times, delta in events:
        stamps = array("q", range(now + step, now + (step + 1) * times + 1, step + 1)[:times])
        now = stamps[-1]
        for stamp in stamps:
            one_by_one.mark(stamp, delta)
        in_bulk.extend(stamps, delta)
    assert {name: getattr(one_by_one, name, None) for name in Timeline.__slots__} == {
        name: getattr(in_bulk, name, None) for name in Timeline.__slots__
    }
    assert frozen(one_by_one) == frozen(in_bulk)
