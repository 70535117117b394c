"""`soak`: what a long run keeps while it goes on: windows of equal length, and rows in files that end."""

from __future__ import annotations

import msgspec

from tokenswarm.profile.typed_yaml import Seconds

WINDOW_S = 300.0
"""What a window lasts where the user does not say: the unit in which drift is looked for."""

ROTATE_MIB_MIN, ROTATE_MIB_MAX = 1, 4096


class Soak(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    window: Seconds | None = None  # of each window; None: five minutes
    rotate_mib: int | None = None  # rows of a file, before it is compressed; None: all rows are in one, after the load

    def __post_init__(self) -> None:
        if self.window is not None and self.window < 1:
            raise ValueError(f"`soak.window: {self.window:g}` must be 1s or more; five minutes are usual")
        if self.rotate_mib is not None and not ROTATE_MIB_MIN <= self.rotate_mib <= ROTATE_MIB_MAX:
            raise ValueError(
                f"`soak.rotate_mib: {self.rotate_mib}` must be between {ROTATE_MIB_MIN} and {ROTATE_MIB_MAX} MiB of "
                "rows (about 1000 rows each MiB); leave it out for one file"
            )

    @property
    def window_s(self) -> float:
        return self.window or WINDOW_S

    @property
    def rotate_bytes(self) -> int | None:
        return None if self.rotate_mib is None else self.rotate_mib << 20
