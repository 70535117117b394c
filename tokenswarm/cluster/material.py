"""What a worker sends: its data set and trace, read in slices, so that heartbeats go on meanwhile."""

from __future__ import annotations

from collections.abc import Callable

import gevent

from tokenswarm.clock import NS_PER_S, monotonic_ns
from tokenswarm.cluster.lane import Traced
from tokenswarm.load.trace import trace_of
from tokenswarm.profile.dataset import Dataset
from tokenswarm.profile.environment import cache_folder
from tokenswarm.profile.profile import Profile
from tokenswarm.prompts.from_profile import data_settings
from tokenswarm.prompts.library import Library, open_steps
from tokenswarm.prompts.traced import FromConversations, TracedPrompts, generated


def load_library(dataset: Dataset, progress: Callable[[str], None]) -> Library:
    """Index the data set; `progress` gets a sentence each second."""
    steps = open_steps(data_settings(dataset, cache_folder()))
    told_ns = monotonic_ns()
    while True:
        try:
            step = next(steps)
        except StopIteration as end:
            library: Library = end.value
            return library
        gevent.sleep(0)
        if monotonic_ns() - told_ns > NS_PER_S:
            told_ns = monotonic_ns()
            progress(f"reading the data set, {step.bytes_done / max(step.bytes_total, 1):.0%}")


def traced(profile: Profile, library: Library) -> Traced | None:
    """The trace, in slices as well, and texts for it: generated where the data set is. None where there is no trace."""
    if profile.load.kind != "trace":
        return None
    dataset = profile.dataset
    text = generated if dataset.format == "synthetic" else FromConversations(library.conversation, len(library))
    trace = trace_of(profile.load, lambda: gevent.sleep(0))
    return Traced(trace, TracedPrompts(text, dataset.shuffle_seed, trace.block_tokens))
