"""`phases` and `timeouts`: what is not measured around the windows, and how long one answer may take."""

from __future__ import annotations

import msgspec

from tokenswarm.profile.typed_yaml import Seconds


class Phases(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    warmup: Seconds = Seconds(5.0)  # before the first stage's window
    settle: Seconds = Seconds(2.0)  # after each later change of users
    drain: Seconds = Seconds(60.0)  # how long open streams may run on after the last window


class Timeouts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    connect: Seconds = Seconds(5.0)
    first_token: Seconds = Seconds(120.0)
    idle_token: Seconds = Seconds(60.0)
    total: Seconds = Seconds(600.0)
    ready: Seconds = Seconds(60.0)  # before the load, for a server that still loads its model; 0: don't wait

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            if getattr(self, name) <= 0:
                raise ValueError(f"`{name}`: time-outs must be longer than 0s")
