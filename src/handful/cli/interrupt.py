"""Ctrl-C: exit code 130, no traceback and no abort, whenever it is pressed and however often.

The first one raises KeyboardInterrupt, so that what is half written is removed on the way out. Three times that is no
way out, and the process ends at once, leaving what the next start clears: a second Ctrl-C, which would break off the
first one's; during an import, where an exception comes out of the start-up code of C++ libraries as an abort; and in a
destructor or callback, which would swallow it.
"""

from __future__ import annotations

import os
import signal
import sys
from types import CodeType, FrameType
from typing import Any, final

EXIT_INTERRUPTED = 130
"""128 + SIGINT, as shells have it."""

STOPPED = "stopped"
HINT = "nothing that was saved is lost; started again, a fit continues from its last checkpoint"

_IMPORT = "<frozen importlib._bootstrap>"
_SHOW_CURSOR = b"\x1b[?25h"


@final
class Interrupts:
    """What SIGINT does while `work`, a function of this program, runs. `pressed`: it has come once."""

    def __init__(self, work: CodeType):
        self.work, self.pressed = work, False

    def install(self) -> None:
        """For the rest of this process, unless who started it said that it is not to be interrupted (a job behind)."""
        if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
            return
        signal.signal(signal.SIGINT, self.handle)
        previous = sys.unraisablehook

        def hook(unraisable: Any) -> None:
            if issubclass(unraisable.exc_type, KeyboardInterrupt):
                leave()
            previous(unraisable)

        sys.unraisablehook = hook

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The handler. Raises: KeyboardInterrupt where that can be caught."""
        working = False
        while frame is not None and not (working := frame.f_code is self.work):
            if frame.f_code.co_filename == _IMPORT:
                break
            frame = frame.f_back
        if self.pressed or not working:
            leave()
        self.pressed = True
        raise KeyboardInterrupt


def leave() -> None:
    """End now, with a word on stderr. Nothing of Python's is used that may be in use at this moment."""
    if os.isatty(2):
        os.write(2, _SHOW_CURSOR)
    os.write(2, f"{STOPPED}\nhint: {HINT}\n".encode())
    os._exit(EXIT_INTERRUPTED)
