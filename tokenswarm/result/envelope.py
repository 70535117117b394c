"""What a run pushes to the load exporter each second: what it is, where it stands, and its counts so far.

Everything is cumulative, so a lost push costs nothing and an exporter that was restarted knows all after the next one.
The counts travel as parts, each an encoded `Merged`: a part that did not change since the last push is the same bytes,
which saves both sides the work. Timestamps are seconds since 1970 (they only name a moment).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec

from tokenswarm.measure import snapshot
from tokenswarm.measure.snapshot import Block, Count, Merged, SnapshotError
from tokenswarm.profile.bars import Bars
from tokenswarm.result.summary import StagePlan

SCHEMA_VERSION = 1
BYTES_MAX = snapshot.BYTES_MAX
CONTENT_TYPE = "application/msgpack"
PATH = "/push/v1"
RUN_ID = r"^[a-z0-9][a-z0-9-]{0,63}$"

PHASES = ("warmup", "steady", "drain")
WORKER_STATES = ("ready", "running", "done", "missing")
STATUSES = ("VALID", "DEGRADED", "INVALID")

TARGET_ROLES = ("engine", "host", "gpu")
"""Addresses (host:port) of engines and of GPU exporters, as a scrape's label `instance` has them; UUIDs of GPUs."""

INFO_LABELS = ("engine_version", "dataset", "arrival", "config_hash", "git_revision", "version")
"""The labels that a run may add to its info metric; others are refused, since labels leak secrets and cardinality."""

Text = Annotated[str, msgspec.Meta(max_length=512)]
Timestamp = Annotated[float, msgspec.Meta(ge=0, le=1e11)]
Amount = Annotated[float, msgspec.Meta(ge=0, le=1e18)]


class EnvelopeError(ValueError):
    """A push that can't be used; str() says why in one sentence. `reason` is a bounded word for counting."""

    def __init__(self, reason: Literal["malformed", "oversized", "schema_version"], sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason


class Judgement(msgspec.Struct, frozen=True):
    """The verdict without its prose: the status, and the severity of each doubt by its code."""

    status: Literal["VALID", "DEGRADED", "INVALID"]
    doubts: dict[Annotated[str, msgspec.Meta(max_length=64)], Annotated[str, msgspec.Meta(max_length=16)]] = {}


class KvState(msgspec.Struct, frozen=True, kw_only=True):
    """The KV-cache now, all replicas: telemetry/kv.py. None: nobody tells."""

    predicted_bytes_per_token: Amount | None = None
    engine_bytes_per_token: Amount | None = None
    predicted_bytes: Amount | None = None
    used_bytes: Amount | None = None
    capacity_bytes: Amount | None = None
    batch_at_full: Amount | None = None


class StageState(msgspec.Struct, frozen=True, kw_only=True):
    """What engine and GPUs told of a stage that is over: telemetry/join.py. None: nobody tells."""

    engine_batch: Amount | None = None
    engine_waiting: Amount | None = None
    power_watts: Amount | None = None


class RunState(msgspec.Struct, kw_only=True):
    """What the run is (constant) and where it stands."""

    run_id: Annotated[str, msgspec.Meta(pattern=RUN_ID)]
    engine: Text
    model: Text
    scenario: Text
    start_timestamp_s: Timestamp
    phase: Literal["starting", "warmup", "steady", "drain", "ended"] = "starting"
    stage: Annotated[int, msgspec.Meta(ge=-1)] = -1  # -1: none has begun
    target_users: Count = 0
    target_rate: Amount | None = None  # requests a second that are due now; None: a closed loop
    stages: Annotated[list[StagePlan], msgspec.Meta(max_length=10_000)] = []  # all that are planned
    stage_starts: Annotated[dict[int, Timestamp], msgspec.Meta(max_length=10_000)] = {}  # of those that have begun
    workers: Annotated[dict[str, Count], msgspec.Meta(max_length=16)] = {}  # by WORKER_STATES
    end_timestamp_s: Timestamp | None = None
    verdict: Judgement | None = None
    info: Annotated[dict[Text, Text], msgspec.Meta(max_length=64)] = {}
    targets: Annotated[dict[Text, list[Text]], msgspec.Meta(max_length=16)] = {}  # by TARGET_ROLES: what it is against
    kv_cache: KvState | None = None
    stage_telemetry: Annotated[dict[int, StageState], msgspec.Meta(max_length=10_000)] = {}
    pushes_dropped: Count = 0  # that never reached an exporter
    bars: Bars = Bars()  # from where on a percentile is withheld, as in the report


class Envelope(msgspec.Struct, kw_only=True):
    """One push. `seq` counts from 1 within a run: a push that was overtaken is not taken for the newest."""

    schema_version: int = SCHEMA_VERSION
    seq: Annotated[int, msgspec.Meta(ge=1)]
    run: RunState
    merged: Annotated[list[bytes], msgspec.Meta(max_length=100_000)]


class _Header(msgspec.Struct):
    schema_version: int


_ENCODER = msgspec.msgpack.Encoder()
_HEADER = msgspec.msgpack.Decoder(_Header)
_DECODER = msgspec.msgpack.Decoder(Envelope)


class Parts:
    """Splits the sum of one run into parts, encoding again only what changed since the last call."""

    def __init__(self) -> None:
        self._encoded: dict[tuple[int, str], tuple[Block, bytes]] = {}

    def of(self, merged: Merged) -> list[bytes]:
        """A part for each block, one for the workers. Blocks are compared by identity, as `Inbox` keeps its sums."""
        kept = {}
        for block in merged.blocks:
            key = (block.stage, block.phase)
            known = self._encoded.get(key)
            if known is None or known[0] is not block:
                known = (block, snapshot.encode(Merged(run_id=merged.run_id, blocks=[block])))
            kept[key] = known
        self._encoded = kept
        return [
            *(data for _, data in kept.values()),
            snapshot.encode(Merged(run_id=merged.run_id, workers=merged.workers)),
        ]


def encode(envelope: Envelope) -> bytes:
    """The push as msgpack."""
    return _ENCODER.encode(envelope)


def decode(data: bytes) -> Envelope:
    """The envelope in `data`, its parts still encoded. Raises EnvelopeError, and nothing else."""
    if len(data) > BYTES_MAX:
        raise EnvelopeError("oversized", f"the push has {len(data)} bytes, more than the {BYTES_MAX} that are read")
    try:
        version = _HEADER.decode(data).schema_version
        if version != SCHEMA_VERSION:
            raise EnvelopeError(
                "schema_version",
                f"the push has schema version {version}, this exporter reads {SCHEMA_VERSION}: run the same version of "
                f"tokenswarm on both sides",
            )
        return _DECODER.decode(data)
    except EnvelopeError:
        raise
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError) as error:
        raise EnvelopeError("malformed", f"the push could not be read: {error}") from error


def join(envelope: Envelope, known: Mapping[bytes, Merged]) -> tuple[Merged, dict[bytes, Merged]]:
    """The sum that the parts of a push make, and the parts by their bytes: `known` for the next push.

    Raises EnvelopeError for a part that can't be read, is another run's, or tells of a block or worker twice.
    """
    parts: dict[bytes, Merged] = {}
    whole = Merged(run_id=envelope.run.run_id)
    for data in envelope.merged:
        part = known.get(data)
        try:
            part = part or snapshot.decode_merged(data)
        except SnapshotError as error:
            raise EnvelopeError("malformed", str(error)) from error
        if part.run_id != whole.run_id:
            raise EnvelopeError("malformed", f"the push of run {whole.run_id} has counts of run {part.run_id[:64]!r}")
        parts[data] = part
        whole.blocks += part.blocks
        whole.workers += part.workers
    if len({(b.stage, b.phase) for b in whole.blocks}) < len(whole.blocks):
        raise EnvelopeError("malformed", "the push tells of a stage and phase twice")
    if len({w.worker for w in whole.workers}) < len(whole.workers):
        raise EnvelopeError("malformed", "the push tells of a worker twice")
    if len({plan.stage for plan in envelope.run.stages}) < len(envelope.run.stages):
        raise EnvelopeError("malformed", "the push plans a stage twice")
    unknown = {block.phase for block in whole.blocks} - set(PHASES)
    if unknown:
        raise EnvelopeError("malformed", f"the push has counts of the phase {min(unknown)[:32]!r}, which there is not")
    whole.blocks.sort(key=lambda block: (block.stage, PHASES.index(block.phase)))
    return whole, parts
