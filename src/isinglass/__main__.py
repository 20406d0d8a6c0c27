"""`isinglass`, and `python -m isinglass`: the command line."""

from __future__ import annotations

import sys


def main() -> None:
    """Import the command line and run it, so that Ctrl-C gives the exit code of an interruption meanwhile, too."""
    try:
        from isinglass.cli import main as run
    except KeyboardInterrupt:
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
