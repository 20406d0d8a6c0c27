"""Runs commands that cannot be carried out, one after the other in one process: argv, exit code, stderr, and torch."""

import io
import json
import sys
from contextlib import redirect_stderr

from isinglass import cli

for line in sys.stdin:
    arguments = json.loads(line)
    sys.argv = ["isinglass", *arguments]
    errors, code = io.StringIO(), None
    with redirect_stderr(errors):
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code
    sys.stdout.write(json.dumps([code, errors.getvalue(), "torch" in sys.modules]) + "\n")
