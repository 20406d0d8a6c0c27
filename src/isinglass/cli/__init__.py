"""The command line: one function a command. `--help` answers without importing torch; work is imported when it starts.

What machines read goes to stdout with --json, one object a pair; what people read goes to stderr then. Exit codes:
0 = all done (no match is a result too), 1 = some image or pair could not be processed, 2 = wrong usage,
3 = weights or an extra are missing, or a licence has not been accepted, 130 = interrupted.
"""

from __future__ import annotations

import logging
import sys

import click

from isinglass.cli.app import app, live
from isinglass.cli.common import NOT_AVAILABLE, OK, SOME_FAILED, WRONG_USAGE, complain
from isinglass.cli.evaluation import calibrate, compare, evaluate, report, tune
from isinglass.cli.inspection import inspect
from isinglass.cli.localize import localize
from isinglass.cli.maps import export, make
from isinglass.cli.matching import doctor, extract, match, models
from isinglass.cli.pairs import pairs
from isinglass.cli.sequences import track, view
from isinglass.cli.stores import match_many
from isinglass.cli.training import recipes, train
from isinglass.errors import IsinglassError, MissingExtra, WeightsError


def main() -> None:
    """The entry point: errors of ours become one line on stderr and an exit code."""
    _show_log()
    try:
        code = cli.main(standalone_mode=False)
    except (WeightsError, MissingExtra) as error:
        code = complain(error, NOT_AVAILABLE)
    except IsinglassError as error:
        code = complain(error, SOME_FAILED)
    except click.exceptions.Abort:
        code = complain("interrupted; what was finished is kept, and the same command goes on from there", 130)
    except click.ClickException as error:
        error.show()
        code = WRONG_USAGE
    except OSError as error:
        code = complain(error, SOME_FAILED)
    sys.exit(code or OK)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
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
    """What the library logs (weights being fetched) goes to stderr."""
    logger = logging.getLogger("isinglass")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("isinglass: %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
