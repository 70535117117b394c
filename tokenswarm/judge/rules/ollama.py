"""Rules about what only Ollama does: its scheduler and its slots, ends without a word, lines that are no tokens."""

from __future__ import annotations

from tokenswarm.judge.rules.evidence import Evidence, Rule, doubt, steady
from tokenswarm.result.summary import Doubt, Summary

RELOADED_SHARE = 0.01  # a note up to here
QUEUE_S = 0.05  # below this it is no queue: 3 to 5 ms are in it always
BUSY = "maximum pending requests exceeded"


def silent_ends(_evidence: Evidence, summary: Summary) -> Doubt | None:
    ended = summary.requests.by_error.get("silent end", 0)
    if not ended:
        return None
    said = summary.requests.error_says.get("silent end", "")
    return doubt(
        "silent-ends",
        "note",
        f"The server itself ended {ended} answers without their end, and told no error ({said}). No proxy is to blame: "
        f"look at the server's log; against repeated text, ask for other text or a repeat penalty.",
        answers=ended,
        example=said,
    )


def model_reloaded(evidence: Evidence, summary: Summary) -> Doubt | None:
    """Answers that waited for their model although it had answered before; `cold-start` tells how long."""
    block, ok = steady(evidence), summary.requests_steady.ok
    again, passed = (block.seldom.get(kind, 0) for kind in ("again", "overtaken by"))
    if not again:
        return None
    return doubt(
        "model-reloaded",
        "degraded" if again > RELOADED_SHARE * ok else "note",
        f"{again} of {ok} answers waited for their model, or for the scheduler, after it had answered, overtaken "
        f"by {passed} later ones: it was loaded anew for a request with other options (num_ctx, num_batch, num_thread, "
        f"num_gpu, shift), or made way for another model. Keep these equal in all requests, or leave them out.",
        again=again,
        overtaken_by=passed,
        ok=ok,
    )


def slots_busy(evidence: Evidence, summary: Summary) -> Doubt | None:
    block = steady(evidence)
    queue, decode, ttft = (sketch.quantile(0.5) for sketch in (block.engine_queue, block.engine_decode, block.ttft))
    if evidence.profile.engine.kind != "ollama" or queue is None or decode is None or ttft is None:
        return None
    if queue < QUEUE_S or queue < decode:
        return None
    return doubt(
        "slots-busy",
        "note",
        f"Half of the answers waited {queue:.3g} s or longer for a slot of the engine, of a TTFT of {ttft:.3g} s, and "
        f"took {decode:.3g} s to generate: there are more users than slots (OLLAMA_NUM_PARALLEL, 1 by default), so "
        f"TTFT measures the queue. Use fewer users, or more slots.",
        queue_p50_s=queue,
        decode_p50_s=decode,
        ttft_p50_s=ttft,
        ok=summary.requests_steady.ok,
    )


def refused_while_cold(_evidence: Evidence, summary: Summary) -> Doubt | None:
    refused = summary.requests.by_error.get("http 503", 0)
    if BUSY not in summary.requests.error_says.get("http 503", "").lower():
        return None
    return doubt(
        "refused-while-cold",
        "note",
        f"Ollama refused {refused} requests as busy (HTTP 503). Its scheduler does so while the model is not loaded, "
        f"or for other options or another model; in memory it queues without a bound. Load it with one request before "
        f"the crowd (`engine.probe` does), or raise OLLAMA_MAX_QUEUE.",
        refused=refused,
    )


def lines_and_tokens(evidence: Evidence, summary: Summary) -> Doubt | None:
    """A line is not always a token there: tags and control tokens have none, pieces are held back; `format` answers
    of a model that thinks are counted without their thoughts.
    """
    block, ok = steady(evidence), summary.requests_steady.ok
    if evidence.profile.engine.kind != "ollama" or summary.tokens.source != "server":
        return None
    lacking = block.output_tokens - block.events
    if -ok <= lacking <= ok:  # the end of text is a token without a line
        return None
    said = (
        f"{lacking} of {block.output_tokens} tokens had no line of their own (tags, control tokens, pieces that were "
        f"held back): `itl_s` is the gap between lines, `tpot_s` that between tokens"
        if lacking > 0
        else f"The answers have {-lacking} lines more than the server counts tokens ({block.output_tokens}): it counts "
        f"a part of the answer only (`format` with a model that thinks), so TPOT and throughput are not told truly"
    )
    return doubt("lines-and-tokens", "note", f"{said}.", tokens=block.output_tokens, events=block.events, ok=ok)


def answers_at_once(evidence: Evidence, summary: Summary) -> Doubt | None:
    n, ok = steady(evidence).seldom.get("at once", 0), summary.requests_steady.ok
    if not n:
        return None
    return doubt(
        "answers-at-once",
        "note",
        f"{n} of {ok} answers of several tokens came in one event (tool calls that stand on the last line, or answers "
        f"that are not streamed): their TTFT is the whole time, and they have no ITL and no TPOT.",
        answers=n,
        ok=ok,
    )


RULES: tuple[Rule, ...] = (
    silent_ends,
    model_reloaded,
    slots_busy,
    refused_while_cold,
    lines_and_tokens,
    answers_at_once,
)
