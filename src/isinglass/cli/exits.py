"""Exit codes of the command line: the one table, and the one place that turns an exception into a line and a code."""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Callable

import click

from isinglass.errors import InputError, IsinglassError, MissingExtra, WeightsError, WriteError

OK, SOME_FAILED, WRONG_USAGE, NOT_AVAILABLE, NOT_WRITTEN = 0, 1, 2, 3, 4
FAULT, INTERRUPTED, CLOSED = 70, 130, 141
EXIT_CODES = {  # docs/conventions.md has the same table (a test holds them equal)
    OK: "All done. Finding no match is a result, too.",
    SOME_FAILED: "The run finished, but an image, pair or query could not be used, or there is no model or pose.",
    WRONG_USAGE: "The command cannot be carried out as given: unknown option, missing file, bad value or list.",
    NOT_AVAILABLE: "Weights, an accepted licence or an optional package are missing.",
    NOT_WRITTEN: "A result cannot be written, or the work broke off: full disk, out of memory, failed training.",
    FAULT: "A fault of Isinglass. Please report it; ISINGLASS_DEBUG=1 shows where it happened.",
    INTERRUPTED: "Interrupted. What was finished is kept.",
    CLOSED: "Nobody reads the output any more, as after `| head`.",
}


def run(command: Callable[[], int | None]) -> int:
    """Run a command and return its exit code. An exception becomes one line on stderr, whatever it is."""
    warnings.formatwarning = lambda message, *_, **__: f"isinglass: warning: {_one_line(message)}\n"
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files may hold bytes that are no text
            stream.reconfigure(errors="backslashreplace")
    try:
        code = command() or OK
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except (BrokenPipeError, SystemExit) as stop:
        if isinstance(stop, SystemExit) and not type(sys.stdout).__name__.endswith(
            "PacifyFlushWrapper"
        ):  # click's sign of it
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python flushes stdout once more as it ends
        return CLOSED
    except (Exception, KeyboardInterrupt) as error:
        if os.environ.get("ISINGLASS_DEBUG") == "1":
            import traceback

            traceback.print_exc()
        return _explain(error)


def complain(problem: object, code: int) -> int:
    """Print one line on stderr and return the exit code."""
    click.echo(f"isinglass: {_one_line(problem)}", err=True)
    return code


def _explain(error: BaseException) -> int:
    """Print what went wrong and return its exit code."""
    if type(error).__name__ == "NoArgsIsHelpError" and isinstance(error, click.ClickException):
        error.show()
        return WRONG_USAGE
    if isinstance(error, click.ClickException):
        context = getattr(error, "ctx", None)
        told = f" See `{context.command_path} --help`" if context is not None else ""
        return complain(f"{error.format_message().rstrip('.')}.{told}", WRONG_USAGE)
    if isinstance(error, click.exceptions.Abort | KeyboardInterrupt):
        return complain("interrupted; what was finished is kept, and the same command goes on from there", INTERRUPTED)
    code = exit_code(error)
    if code != FAULT:
        return complain(error, code)
    if _is_out_of_memory(error):
        return complain(
            "there is not enough memory. Choose a smaller --max-keypoints or --resize, or set --memory-mb "
            f"({_one_line(error) or type(error).__name__})",
            NOT_WRITTEN,
        )
    return complain(
        f"unexpected {type(error).__name__}: {error}. This is a fault of Isinglass: please report it with the command, "
        "and with what ISINGLASS_DEBUG=1 shows",
        FAULT,
    )


def exit_code(error: BaseException) -> int:
    """Return the exit code of an exception; that of a fault for one that no command should raise."""
    if isinstance(error, WeightsError | MissingExtra):
        return NOT_AVAILABLE
    if isinstance(error, InputError) and not isinstance(error, WriteError):
        return WRONG_USAGE
    if isinstance(error, IsinglassError | OSError):
        return NOT_WRITTEN
    return FAULT


def _is_out_of_memory(error: BaseException) -> bool:
    return (
        isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "allocate memory" in str(error)
    )


def _one_line(text: object) -> str:
    return " ".join(line.strip() for line in str(text).splitlines() if line.strip())
