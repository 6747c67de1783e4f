"""Keep freed memory: training allocates the same large tensors in every step."""

import ctypes
import sys

_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1  # malloc.h
_KEEP_BELOW_BYTES = 1 << 30


def keep_freed_memory() -> None:
    """Let glibc reuse large blocks instead of handing them back to the system after every tensor.

    Fetching them again costs a page fault for each 4 KiB: 15 to 25% of a training step on a CPU (docs/experiments.md).
    It holds for the whole process, so only the packer asks for it. Elsewhere than on glibc it does nothing.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _KEEP_BELOW_BYTES)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
