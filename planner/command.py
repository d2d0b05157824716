"""Runs a click command as a program: one sentence per error, exit codes 0 (done), 1 (nothing fits, a check failed), 2 (bad input)."""

from __future__ import annotations

import io
import os
import sys
from typing import NoReturn

import click

from ..scenarios.errors import CheckFailed, RoofplanError

OK, FAILED, BAD = 0, 1, 2


def run(command: click.Command, name: str, args: list[str] | None = None) -> NoReturn:
    """Run ``command`` and leave the process with its exit code; set ROOFPLAN_DEBUG=1 to see a traceback of a defect."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file's name need not be text, nor a terminal know every letter
    try:
        code = command.main(args=args, prog_name=name, standalone_mode=False)
        sys.stdout.flush()
        sys.exit(code if isinstance(code, int) else OK)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.ClickException as error:
        _fail(error.format_message(), BAD)
    except (click.Abort, KeyboardInterrupt):
        _fail("interrupted", FAILED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has gone: nothing more to say
        sys.exit(OK)
    except CheckFailed as error:
        _fail(str(error), FAILED)
    except RoofplanError as error:
        _fail(str(error), BAD)
    except Exception as error:  # the last resort: a defect, said in one sentence
        if os.environ.get("ROOFPLAN_DEBUG"):
            raise
        _fail(f"this is a defect of roofplan ({type(error).__name__}: {error}); please report it with the command you ran", BAD)


def _fail(sentence: str, code: int) -> NoReturn:
    print(f"error: {' '.join(sentence.split())}", file=sys.stderr)
    sys.exit(code)
