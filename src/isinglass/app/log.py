"""One line of log for each refusal and each failure: what was asked, and what became of it."""

from __future__ import annotations

import logging
import os
import secrets
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from isinglass.errors import IsinglassError

_log = logging.getLogger("isinglass.app")
_MOST_PATH, _MOST_TEXT = 80, 240


def log_refusal(scope: Mapping[str, Any], what: str) -> None:
    """Log that a request was refused or broken off."""
    _log.warning("%s: %s", _asked(scope), shown(what, _MOST_TEXT))


def log_failure(problem: BaseException, where: str | Mapping[str, Any]) -> None:
    """Log a mistake of ours under its id: one line, with the traceback only where ISINGLASS_DEBUG=1.

    where  the scope of the request, or in words what was done
    """
    place = "nowhere"
    if frames := traceback.extract_tb(problem.__traceback__):
        place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}"
    _log.error(
        "%s: failure %s, %s at %s: %s",
        where if isinstance(where, str) else _asked(where),
        failure_id(problem),
        type(problem).__name__,
        place,
        shown(str(problem), _MOST_TEXT),
        exc_info=problem if _is_debugged() else None,
    )


def failure_id(problem: BaseException) -> str:
    """Return the id of an error that is no `IsinglassError`: the same in the log and in the answer."""
    found = getattr(problem, "_failure_id", None)
    if found is None:
        found = secrets.token_hex(4)
        setattr(problem, "_failure_id", found)  # noqa: B010 (an attribute of no type)
    return found


def message_of(problem: BaseException) -> str:
    """Return what people are shown of an error: ours as they are, of others only the kind and the id in the log."""
    if isinstance(problem, IsinglassError):
        return str(problem)
    return (
        f"the server failed ({type(problem).__name__}), which is a mistake of Isinglass; its log has more under "
        f"{failure_id(problem)}"
    )


class OneLine(logging.Filter):
    """What other libraries log becomes one line: a traceback is cut to its error, except where ISINGLASS_DEBUG=1."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Change the record, and let it pass."""
        if record.exc_info and not _is_debugged():
            record.msg = f"{shown(record.getMessage(), _MOST_TEXT)} ({record.exc_info[1]!r})"
            record.args, record.exc_info = (), None
        return True


def shown(text: str, most: int) -> str:
    """Return the text as one line of at most `most` letters, without what cannot be shown."""
    kept = "".join(letter if letter.isprintable() else "?" for letter in text[: most + 1])
    return kept if len(kept) <= most else f"{kept[: most - 3]}..."


def _is_debugged() -> bool:
    return os.environ.get("ISINGLASS_DEBUG") == "1"


def _asked(scope: Mapping[str, Any]) -> str:
    client = scope.get("client") or ("-",)
    return f"{client[0]} {shown(scope.get('method', 'WebSocket'), 20)} {shown(scope['path'], _MOST_PATH)}"
