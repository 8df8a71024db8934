"""The command `handful`: its verbs, and the one place where every error ends.

Data goes to stdout, talk and progress to stderr. Exit codes: 0 done; 1 failed (data, model, folder, or a crash of
handful itself); 2 wrong usage (an unknown verb or option, a wrong method or setting: every `ConfigError`); 130 stopped
by Ctrl-C. With HANDFUL_DEBUG=1 in the environment every error shows its traceback.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any

from handful.cli.interrupt import EXIT_INTERRUPTED, HINT, STOPPED, Interrupts

EXIT_FAILED, EXIT_USAGE = 1, 2


def main() -> None:
    """Run the command line of this process and exit."""
    interrupts = Interrupts(run.__code__)
    interrupts.install()
    code = run(sys.argv[1:], interrupts)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # we are ending: another one would break that off
    if interrupts.pressed:  # whatever a library has made of it
        # Threads of torch and onnxruntime may be at work: to take the interpreter down around them ends in C++'s abort.
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(EXIT_INTERRUPTED)
    sys.exit(code)


def run(arguments: Sequence[str], interrupts: Interrupts | None = None) -> int:
    """Run one command line; returns its exit code, whatever happens."""
    try:
        from handful.runs.memory import FEW_KERNELS

        for name, value in FEW_KERNELS.items():
            os.environ.setdefault(name, value)
        from handful.cli.app import app  # here, so that Ctrl-C while it is imported is handled too

        _speak_in_any_encoding()
        with warnings.catch_warnings(), _one_voice():
            _quieten_libraries()
            code = app(list(arguments), prog_name="handful", standalone_mode=False)
            sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - nothing is above to handle it
        return report(KeyboardInterrupt() if interrupts and interrupts.pressed else error)
    return report(KeyboardInterrupt()) if code == EXIT_INTERRUPTED else int(code or 0)


def report(error: BaseException) -> int:
    """Say on stderr what went wrong and what to do; returns the exit code."""
    from handful.errors import ConfigError, HandfulError
    from handful.neutral import printable

    if os.environ.get("HANDFUL_DEBUG") == "1":
        print(printable("".join(traceback.format_exception(error))), file=sys.stderr)
    if isinstance(error, KeyboardInterrupt):
        _complain(STOPPED, HINT)
        return EXIT_INTERRUPTED
    if isinstance(error, BrokenPipeError):  # the reader of stdout, such as `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    if isinstance(error, HandfulError):
        _complain(f"error: {error.message}", error.hint)
        return EXIT_USAGE if isinstance(error, ConfigError) else EXIT_FAILED
    if isinstance(error, OSError) and error.strerror:  # a path that cannot be had, wherever it is met
        where = f"{error.filename}: " if error.filename else ""
        _complain(f"error: {where}{error.strerror}", "check the path, its permissions, and the space there is")
        return EXIT_FAILED
    if hasattr(error, "format_message"):  # what typer raises for a wrong command line, in all its versions
        return _report_usage(error)
    _complain(
        f"error: handful itself failed: {type(error).__name__}: {error}",
        "run it again with HANDFUL_DEBUG=1 in the environment, and report what that prints",
    )
    return EXIT_FAILED


def _report_usage(error: Any) -> int:
    """A wrong command line, with the nearest verb or option."""
    message = error.format_message().partition(" (Possible option")[0].rstrip(".")
    if not message:  # `handful` alone, whose help typer has printed
        return EXIT_USAGE
    command = error.ctx.command_path if getattr(error, "ctx", None) else "handful"
    message, _, guess = message.partition(". Did you mean ")
    guess = guess.rstrip("?").replace("', '", "' or '") or " or ".join(getattr(error, "possibilities", None) or ())
    hint = f"did you mean {guess}?" if guess else f"`{command} --help` says how it is used"
    _complain(f"error: {message[0].lower()}{message[1:]}", hint)
    return EXIT_USAGE


def _complain(message: str, hint: str | None) -> None:
    from handful.neutral import printable

    print(printable(message), file=sys.stderr)
    if hint:
        print(f"hint: {printable(hint)}", file=sys.stderr)


@contextmanager
def _one_voice() -> Iterator[None]:
    """Of the processes of `accelerate launch` only the main one speaks; an error is told by whoever has it."""
    if all(os.environ.get(name, "0") == "0" for name in ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK")):
        yield
        return
    with open(os.devnull, "w") as silence, redirect_stdout(silence), redirect_stderr(silence):
        yield


def _speak_in_any_encoding() -> None:
    """What the encoding of stdout lacks is written as an escape, and ends nothing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _quieten_libraries() -> None:
    """No progress bars and no advice of other libraries on our stderr; what they warn of takes one line."""
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "TRANSFORMERS_NO_ADVISORY_WARNINGS"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    for category in (FutureWarning, DeprecationWarning, PendingDeprecationWarning):
        warnings.simplefilter("ignore", category)
    warnings.showwarning = lambda message, *_, **__: _complain(f"warning: {message}", None)
