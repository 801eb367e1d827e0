"""The wall clock, where the system vouches for it."""

from __future__ import annotations

import ctypes
import functools
import time

_TIMEX_BYTES = 512  # more than struct timex has on any platform
_UNSYNCHRONISED = 0x40  # STA_UNSYNC
_TIME_ERROR = 5


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def synchronised_time() -> int | None:
    """Return Unix seconds if the kernel says that its clock is disciplined by a time service, else None.

    A Raspberry Pi without network starts at the time of its last shutdown or in 1970, and nothing but this tells
    (adjtimex(2): what it returns, and the status bit STA_UNSYNC).
    """
    timex = ctypes.create_string_buffer(_TIMEX_BYTES)  # modes = 0: read only
    try:
        state = _libc().adjtimex(timex)
    except (OSError, AttributeError):  # no such call here
        return None
    status = ctypes.c_int.from_buffer(timex, 5 * ctypes.sizeof(ctypes.c_long)).value
    if state < 0 or state == _TIME_ERROR or status & _UNSYNCHRONISED:
        return None
    return int(time.time())
