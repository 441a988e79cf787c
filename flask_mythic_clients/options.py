"""What the commands have in common: options, types of values, exit codes."""

import gc
import getpass
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import click

from .errors import MythicClientsError, StoreError
from .model import is_text

REFUSED = 1


class Time(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic since click 8.2
    """A time in ISO 8601; in UTC where it has no zone."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Return it, aware."""
        try:
            time = datetime.fromisoformat(f"{value}")
        except ValueError:
            self.fail(f"{value!r} is no time: write one in UTC, such as 2026-01-31T23:59.", param, ctx)
        return time if time.tzinfo else time.replace(tzinfo=UTC)


class Duration(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic since click 8.2
    """A number and its unit, such as 30d, 2h, 5m or 90s."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """Return a timedelta."""
        found = re.fullmatch(r"([0-9]{1,5})([dhms])", f"{value}")
        if found is None:
            self.fail(f"{value!r} is no duration: write a number and d, h, m or s, such as 2h.", param, ctx)
        return timedelta(**{_UNITS[found[2]]: int(found[1])})


class Line(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # as above
    """A text that the ledger takes."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return it."""
        if not is_text(value):
            self.fail("write one line, of 1 to 500 characters.", param, ctx)
        return str(value)


TEXT_FILE = click.File(encoding="utf-8-sig", errors="surrogateescape")
"""A file of lines; what is no UTF-8 in it is refused with the line that it is in."""

_UNITS = {"d": "days", "h": "hours", "m": "minutes", "s": "seconds"}


as_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
show_keys_option = click.option(
    "--show-keys", is_flag=True, help="Print the keys of entries in full: some are secrets."
)
actor_option = click.option("--actor", type=Line(), help="Who does it, for the ledger; else cli:USER.")
reason_option = click.option("--reason", type=Line(), help="Why, for the ledger.")
client_ids_argument = click.argument("client_ids", metavar="ID...", nargs=-1, required=True)
older_than_option = click.option(
    "--older-than", type=Duration(), required=True, help="How long ago, such as 30d."
)


class NoAnswerError(click.ClickException):
    """A store did not answer."""

    exit_code = 3


def user() -> str:
    """Return who is at the keyboard, as the ledger names them."""
    try:
        return f"cli:{getpass.getuser()}"
    except (KeyError, OSError):  # a container's user may have no name
        return "cli"


@contextmanager
def seldom_collected() -> Iterator[None]:
    """Let the garbage collector look through all of the app less often, as for a command of long work.

    It takes a quarter of the time else, and finds nothing: what a page was is freed when the next is read.
    """
    young, middle, whole = gc.get_threshold()
    gc.set_threshold(young, middle, 10 * whole)
    try:
        yield
    finally:
        gc.set_threshold(young, middle, whole)


@contextmanager
def exit_codes() -> Iterator[None]:
    """Make an error of ours the command's."""
    try:
        yield
    except MythicClientsError as error:
        raise failure(str(error), error) from error


def failure(message: str, error: MythicClientsError) -> click.ClickException:
    """Return the error of a command for one of ours."""
    if not isinstance(error, StoreError):
        return click.ClickException(message)
    cause = f" ({error.cause})" if error.cause else ""
    return NoAnswerError(f"{message}{cause} The same command again, or `reconcile`, finishes what was begun.")
