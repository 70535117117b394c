"""Counters and sketches of a run, cumulative, by (stage, phase). Merge is commutative, associative, idempotent."""
