"""How much memory this process has taken, on every system that says it, and how to give back what is free."""

from __future__ import annotations

import ctypes
import gc
import sys

FEW_KERNELS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "24"}
"""Environment of whatever computes for long, read with torch's first operation.

oneDNN keeps the kernels of 1,024 shapes, and every batch of another number of tokens has its own: hundreds of megabytes
over a large file. A forward needs a dozen at a time, and making them anew cost a fit nothing that could be measured.
"""


def peak_memory() -> float | None:
    """The most memory (MB) that this process has had at a time; None where the system does not say.

    `ru_maxrss` is in KiB on Linux and in bytes on macOS. Windows has no such count in the standard library: there it
    is asked for through the system's own PSAPI.
    """
    if sys.platform == "win32":
        found = _windows_peak()
        return None if found is None else round(found / 2**20, 1)
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20, 1)


def release_memory() -> None:
    """Free what nobody refers to any more, and give the system its memory back.

    To be called between two fits. Python finds objects that refer to each other (a trainer and its callbacks, with the
    optimiser's states) only now and then, whatever their tensors take; and glibc keeps what was freed between pieces
    that are still in use, more of it the more the fits differ. Other systems' allocators return it by themselves.
    """
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's: musl has none
        if trim is not None:
            trim(0)


def _windows_peak() -> int | None:
    """PeakWorkingSetSize (bytes) of GetProcessMemoryInfo."""

    class Counters(ctypes.Structure):
        _fields_ = [("size", ctypes.c_uint32), ("faults", ctypes.c_uint32), ("peak", ctypes.c_size_t)] + [
            (f"other{index}", ctypes.c_size_t) for index in range(7)
        ]

    library = getattr(ctypes, "windll", None)
    if library is None:
        return None
    counters = Counters()
    counters.size = ctypes.sizeof(counters)
    library.kernel32.GetCurrentProcess.restype = ctypes.c_void_p
    process = ctypes.c_void_p(library.kernel32.GetCurrentProcess())
    read = library.psapi.GetProcessMemoryInfo
    return counters.peak if read(process, ctypes.byref(counters), counters.size) else None
