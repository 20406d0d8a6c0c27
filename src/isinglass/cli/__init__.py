"""The command line: one function per command. `--help` needs no torch; what a command works with is imported late.

What machines read goes to stdout with --json, one object per pair; what people read goes to stderr then. Exit codes are
those of `exits`.
"""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import click

from isinglass.cli.app import app, live
from isinglass.cli.evaluation import calibrate, compare, evaluate, report, tune
from isinglass.cli.exits import EXIT_CODES, run
from isinglass.cli.inspection import inspect
from isinglass.cli.localize import localize
from isinglass.cli.maps import export, make
from isinglass.cli.matching import doctor, extract, match, models
from isinglass.cli.pairs import pairs
from isinglass.cli.sequences import track, view
from isinglass.cli.stores import match_many
from isinglass.cli.training import recipes, train

_CODES = "\n".join(f"  {code:<5}{meaning}" for code, meaning in EXIT_CODES.items())


def main() -> None:
    """Run the command line; ends the process with one of the exit codes."""
    _show_log()
    sys.exit(run(lambda: cli.main(standalone_mode=False)))


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    epilog=f"\b\nExit codes of all commands:\n{_CODES}",
)
@click.version_option(package_name="isinglass")
def cli() -> None:
    """Match sparse local features between images: LightGlue and SuperGlue."""


_MATCHING = (match, extract, models, doctor)
_MEASURING = (evaluate, compare, report, calibrate, tune)
_MAPPING = (make, localize, pairs, match_many, export, track, view)
_LOOKING = (app, live, inspect)
for command in (*_MATCHING, *_MEASURING, *_MAPPING, *_LOOKING, train, recipes):
    cli.add_command(command)


def _show_log() -> None:
    """Send what the library logs (weights being fetched) to stderr."""
    logger = logging.getLogger("isinglass")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("isinglass: %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        plain = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], filename: str, *place: Any, **more: Any) -> None:
            if Path(filename).is_relative_to(Path(__file__).parents[1]):  # one line for what this library warns of
                logger.warning("%s", message)
            else:
                plain(message, category, filename, *place, **more)

        warnings.showwarning = show
