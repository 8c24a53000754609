"""What the interpreter and the C library are told before serving. The reasons are measured: benchmarks/overhead.py."""

import ctypes
import gc
import platform
import sys

SWITCH_SECONDS = 0.0005
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of glibc's malloc.h
_KEPT_BYTES = 32 << 20
_MAPPED_BYTES = 8 << 20


def tune() -> None:
    """For threads that hand over often, and bodies of some hundred kilobytes that come and go. Once, when the models
    are there."""
    # The event loop takes the interpreter's lock again after every read and write, and each time waits as long as this
    # for a thread that holds it; the default of 5 ms is what made /health slow under load.
    sys.setswitchinterval(SWITCH_SECONDS)
    _keep_freed_memory()
    gc.collect()
    gc.freeze()  # the modules and the models: they stay, and need not be looked through again and again


def _keep_freed_memory() -> None:
    """glibc gives every freed body back to the kernel, which clears its pages anew for the next one."""
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_MMAP_THRESHOLD, _MAPPED_BYTES)
