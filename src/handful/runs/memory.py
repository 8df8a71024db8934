"""How much memory this process has taken, on every system that says it."""

from __future__ import annotations

import sys


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


def _windows_peak() -> int | None:
    """PeakWorkingSetSize (bytes) of GetProcessMemoryInfo."""
    import ctypes

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
