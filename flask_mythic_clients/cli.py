"""`flask mythic-clients …`: each command takes, calls one method of the service, and prints.

Data goes to stdout, messages to stderr. Exit codes: 0 done · 1 refused, or something is to be looked at ·
2 wrong usage · 3 a store did not answer.
"""

import dataclasses
import getpass
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import IO, Any

import click
from flask.cli import AppGroup

from .auth import create_key, digest
from .config import check_name, commands, setting
from .errors import ConfigurationError, MythicClientsError, StoreError
from .model import Health, Outcome, Result, SoftDeleteEntries, is_text
from .printing import (
    Counted,
    keys,
    preview_told,
    print_json,
    print_preview,
    print_rows,
    text,
)
from .service import DeletionService

_REFUSED = 1


class _Duration(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic since click 8.2
    """A number and its unit, such as 30d, 2h, 5m or 90s."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """Return a timedelta."""
        found = re.fullmatch(r"([0-9]{1,5})([dhms])", f"{value}")
        if found is None:
            self.fail(f"{value!r} is no duration: write a number and d, h, m or s, such as 2h.", param, ctx)
        return timedelta(**{_UNITS[found[2]]: int(found[1])})


class _Line(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # as above
    """A text that the ledger takes."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return it."""
        if not is_text(value):
            self.fail("write one line, of 1 to 500 characters.", param, ctx)
        return str(value)


_UNITS = {"d": "days", "h": "hours", "m": "minutes", "s": "seconds"}


_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_show_keys = click.option(
    "--show-keys", is_flag=True, help="Print the keys of entries in full: some are secrets."
)
_actor = click.option("--actor", type=_Line(), help="Who does it, for the ledger; else cli:USER.")
_reason = click.option("--reason", type=_Line(), help="Why, for the ledger.")
_client_ids = click.argument("client_ids", metavar="ID...", nargs=-1, required=True)
_older_than = click.option("--older-than", type=_Duration(), required=True, help="How long ago, such as 30d.")


def create_group(kind: str, service: DeletionService) -> AppGroup:
    """Return the commands for one app's service of a kind of client."""
    words = kind.replace("_", " ")
    group = AppGroup(commands(kind), help=f"Delete, restore and reconcile {words}.")
    click.version_option(package_name="flask-mythic-clients", message="%(package)s %(version)s")(group)
    _add_create_key(group, kind)
    _add_delete(group, service)
    _add_restore(group, service)
    _add_purge(group, service)
    _add_reconcile(group, service)
    _add_status(group, service)
    _add_check(group, service)
    _add_reading(group, service)
    return group


def _add_create_key(group: AppGroup, kind: str) -> None:
    @group.command("create-key", with_appcontext=False)
    @click.argument("name")
    @_as_json
    def create_key_command(name: str, as_json: bool) -> None:
        """Make an admin key for NAME; print it once, with its entry for the configuration."""
        try:
            check_name(name)
        except ConfigurationError as error:
            raise click.UsageError(str(error)) from error
        key = create_key()
        if as_json:
            print_json({"name": name, "key": key, "digest": digest(key)})
            return
        click.echo("The key, shown this once; the service keeps only its digest:", err=True)
        click.echo(key)
        click.echo("The entry for the configuration; several are joined with commas:", err=True)
        click.echo(f"{setting(kind, 'admin_keys')}={name}={digest(key)}")


def _add_delete(group: AppGroup, service: DeletionService) -> None:
    @group.command("delete")
    @click.argument("client_ids", metavar="ID...", nargs=-1)
    @click.option(
        "--from-file",
        type=click.File(),
        help="Delete those of a file, many at once: an id a line; - is stdin.",
    )
    @click.option("--hard", is_flag=True, help="Remove for good, from both stores.")
    @click.option("--yes", is_flag=True, help="Do not ask for the id to be typed before --hard.")
    @click.option("--dry-run", is_flag=True, help="Do it in the database, tell what came of it, and undo it.")
    @click.option("--show-row", is_flag=True, help="With --dry-run, print the row: it may hold secrets.")
    @_show_keys
    @_actor
    @_reason
    @_as_json
    def delete_command(
        client_ids: tuple[str, ...],
        from_file: IO[str] | None,
        hard: bool,
        yes: bool,
        dry_run: bool,
        show_row: bool,
        show_keys: bool,
        actor: str | None,
        reason: str | None,
        as_json: bool,
    ) -> None:
        """Soft-delete clients, or remove them for good. --json goes with --dry-run and --from-file.

        A dry run exits with 1 where a client would be refused.
        """
        by = actor or _user()
        if bool(client_ids) is (from_file is not None):
            raise click.UsageError("Write the ids of clients, or --from-file FILE.")
        if from_file is not None:
            client_ids = tuple(filter(None, map(str.strip, from_file)))

        def soft_delete(client_id: str) -> None:
            service.soft_delete(client_id, actor=by, reason=reason)
            click.echo(f"{client_id}: soft-deleted; `restore` takes it back.", err=True)

        def hard_delete(client_id: str) -> None:
            if not yes:
                _confirm(client_id)
            service.hard_delete(client_id, actor=by, reason=reason)
            click.echo(f"{client_id}: removed for good, from both stores.", err=True)

        def preview(client_id: str) -> None:
            removes = hard or service.soft_delete_entries is SoftDeleteEntries.REMOVE
            preview = service.preview(client_id, hard=hard, actor=by)
            told = preview_told(preview, hard, show_row=show_row, show_keys=show_keys)
            if as_json:
                print_json(told)
            else:
                print_preview(told, on_entry="removed" if removes else "rewritten where its value is known")
            if preview.refused is not None:
                raise _ToldError("")

        if from_file is not None and not dry_run:
            if hard and not yes:
                raise click.UsageError("--hard with --from-file takes --yes: nobody types so many ids.")
            outcomes = service.delete_each(client_ids, hard=hard, actor=by, reason=reason)
            _delete_each(outcomes, len(client_ids), as_json)
            return
        if not dry_run and (as_json or show_row):
            raise click.UsageError("--json and --show-row go with --dry-run.")
        _for_each(client_ids, preview if dry_run else hard_delete if hard else soft_delete)


def _add_restore(group: AppGroup, service: DeletionService) -> None:
    @group.command("restore")
    @_client_ids
    @_actor
    @_reason
    def restore_command(client_ids: tuple[str, ...], actor: str | None, reason: str | None) -> None:
        """Take soft deletes back."""

        def restore(client_id: str) -> None:
            service.restore(client_id, actor=actor or _user(), reason=reason)
            click.echo(f"{client_id}: active.", err=True)

        _for_each(client_ids, restore)


def _add_purge(group: AppGroup, service: DeletionService) -> None:
    @group.command("purge")
    @_older_than
    @click.option("--limit", type=click.IntRange(min=1), help="Try so many at the most.")
    @click.option(
        "--include-unrecorded", is_flag=True, help="Take those, too, that something else has made inactive."
    )
    @click.option("--dry-run", is_flag=True, help="Print the ids of those that would be removed.")
    @_actor
    @_reason
    @_as_json
    def purge_command(
        older_than: timedelta,
        limit: int | None,
        include_unrecorded: bool,
        dry_run: bool,
        actor: str | None,
        reason: str | None,
        as_json: bool,
    ) -> None:
        """Remove for good the clients that were soft-deleted long ago.

        One that cannot go is named with its cause, and the rest goes on; the exit code is 1 then. It may be
        stopped, and run again, at any time, and on several machines at once.
        """
        chosen: Any = {"limit": limit, "include_unrecorded": include_unrecorded}
        if dry_run:
            purged = Counted(service.would_purge(older_than=older_than, **chosen))
        else:
            purged = Counted(
                service.purge(older_than=older_than, actor=actor or _user(), reason=reason, **chosen)
            )
        with _summed_up(lambda: purged.counts("would_remove" if dry_run else "removed"), as_json):
            for outcome in purged:
                if outcome.result is Result.FAILED:
                    click.echo(f"{outcome.client_id}: {outcome.cause}", err=True)
                elif dry_run and outcome.result is Result.DONE and not as_json:
                    click.echo(outcome.client_id)
        _fail_if(purged.failed)


def _delete_each(outcomes: Iterable[Outcome], length: int, as_json: bool) -> None:
    counted, told = Counted(outcomes, length), list[dict[str, Any]]()
    with _summed_up(lambda: {**counted.counts("done"), **({"results": told} if as_json else {})}, as_json):
        for outcome in counted:
            if as_json:
                told.append(dataclasses.asdict(outcome))
            else:
                click.echo("\t".join(text(each) for each in dataclasses.astuple(outcome) if each is not None))
    _fail_if(counted.failed)


@contextmanager
def _summed_up(summary: Callable[[], Mapping[str, Any]], as_json: bool) -> Iterator[None]:
    """Print the summary at the end; also where it is stopped, by hand or by a store that is away."""
    try:
        with _exit_codes():
            yield
    except KeyboardInterrupt:
        click.echo("Stopped. The same again goes on, and `reconcile` finishes what is pending.", err=True)
        raise click.exceptions.Exit(_REFUSED) from None
    finally:
        if as_json:
            print_json(summary())
        else:
            counts = ", ".join(f"{name.replace('_', ' ')} {number}" for name, number in summary().items())
            click.echo(counts, err=True)


def _fail_if(failed: bool) -> None:
    if failed:
        raise click.exceptions.Exit(_REFUSED)


def _add_reconcile(group: AppGroup, service: DeletionService) -> None:
    @group.command("reconcile")
    @click.option(
        "--since",
        type=_Duration(),
        help="Do again what was done in this time, such as 2h: for a key-value store that has lost it, and "
        "keeps no mark by which that is found out.",
    )
    @_as_json
    @click.pass_context
    def reconcile_command(context: click.Context, since: timedelta | None, as_json: bool) -> None:
        """Settle all that is pending, verify all that is due. To be run every minute."""
        with _exit_codes():
            done = service.reconcile(since=since)
        if as_json:
            print_json(dataclasses.asdict(done))
        else:
            click.echo(f"settled {done.settled}, verified {done.verified}, failed {done.failed}")
        if done.blind:
            click.echo(
                "The key-value store has lost more than the ledger has keys of. It needs an audit: look in "
                "it for entries of clients that are gone.",
                err=True,
            )
        context.exit(_REFUSED if done.failed or done.blind else 0)


def _add_status(group: AppGroup, service: DeletionService) -> None:
    @group.command("status")
    @_as_json
    @click.pass_context
    def status_command(context: click.Context, as_json: bool) -> None:
        """Tell how it stands; exit with 1 if something is pending, failed, overdue or away. For monitors."""
        with _exit_codes():
            health = service.health()
        if as_json:
            print_json(_health(health))
        else:
            shown = {name: value for name, value in _health(health).items() if not isinstance(value, bool)}
            click.echo(", ".join(f"{name.replace('_', ' ')} {text(value)}" for name, value in shown.items()))
        for line in _repairs(health, f"flask {group.name}"):
            click.echo(line, err=True)
        context.exit(0 if health.ok else _REFUSED)


def _add_check(group: AppGroup, service: DeletionService) -> None:
    @group.command("check")
    @_as_json
    @click.pass_context
    def check_command(context: click.Context, as_json: bool) -> None:
        """Tell what could break a deletion here, and what mends it; exit with 1 if something could.

        To be run at deployment. It asks both stores, and changes nothing.
        """
        with _exit_codes():
            found = service.check()
        if as_json:
            print_json([dataclasses.asdict(finding) for finding in found])
        for finding in () if as_json else found:
            weight = "error" if finding.breaks else "note"
            click.echo(f"{weight}: {text(finding.subject)}: {text(f'{finding.problem} {finding.fix}')}")
        if not found:
            click.echo("Nothing was found that could break a deletion.", err=True)
        context.exit(_REFUSED if any(finding.breaks for finding in found) else 0)


def _add_reading(group: AppGroup, service: DeletionService) -> None:
    @group.command("list")
    @click.option("--inactive", is_flag=True, help="Print those alone that are not active.")
    @_as_json
    def list_command(inactive: bool, as_json: bool) -> None:
        """Print the clients and their status."""
        with _exit_codes():
            clients = (client for client in service.clients() if not (inactive and client.active))
            print_rows(({"id": client.id, "status": client.active} for client in clients), as_json)

    @group.command("history")
    @click.argument("client_id", metavar="ID")
    @_show_keys
    @_as_json
    def history_command(client_id: str, show_keys: bool, as_json: bool) -> None:
        """Print the deletion records of a client, also of one that is gone."""
        with _exit_codes():
            records = service.history(client_id)
        if not records:
            click.echo(f"{text(client_id)}: no records.", err=True)
        shown = (replace(record, kv_keys=keys(record.kv_keys, show_keys)) for record in records)
        print_rows(map(dataclasses.asdict, shown), as_json)


class _NoAnswerError(click.ClickException):
    exit_code = 3


class _ToldError(click.ClickException):
    """A refusal that is printed already."""

    def show(self, file: IO[Any] | None = None) -> None:
        """Print nothing."""


def _user() -> str:
    try:
        return f"cli:{getpass.getuser()}"
    except (KeyError, OSError):  # a container's user may have no name
        return "cli"


def _confirm(client_id: str) -> None:
    typed = click.prompt(f"To remove {client_id} for good, type its id", err=True)
    if typed != client_id:
        raise click.ClickException(f"{client_id}: not removed, for another id was typed.")


@contextmanager
def _exit_codes() -> Iterator[None]:
    try:
        yield
    except MythicClientsError as error:
        raise _failure(str(error), error) from error


def _for_each(client_ids: Iterable[str], act: Callable[[str], None]) -> None:
    """Act on every id, also after one that was refused; then fail with the worst exit code."""
    worst: click.ClickException | None = None
    for client_id in client_ids:
        try:
            act(client_id)
        except (MythicClientsError, click.ClickException) as error:
            failure = (
                error
                if isinstance(error, click.ClickException)
                else _failure(f"{text(client_id)}: {error}", error)
            )
            failure.show()
            if worst is None or failure.exit_code > worst.exit_code:
                worst = failure
    if worst is not None:
        raise click.exceptions.Exit(worst.exit_code)


def _failure(message: str, error: MythicClientsError) -> click.ClickException:
    if not isinstance(error, StoreError):
        return click.ClickException(message)
    cause = f" ({error.cause})" if error.cause else ""
    return _NoAnswerError(
        f"{message}{cause} The same command again, or `reconcile`, finishes what was begun."
    )


def _health(health: Health) -> dict[str, Any]:
    backlog = health.backlog
    counts = {
        name: getattr(backlog, name, None) for name in ("pending", "oldest", "due", "overdue", "failed")
    }
    found = {"ok": health.ok, **counts, "last_reconcile": health.last_reconcile}
    ages = {
        name: round(value.total_seconds()) for name, value in found.items() if isinstance(value, timedelta)
    }
    return {**found, **ages, "database": health.database_away is None, "kv": health.kv_away is None}


def _repairs(health: Health, commands: str) -> Iterator[str]:
    """Tell what is wrong, and the line that repairs it."""
    backlog = health.backlog
    if health.database_away is not None:
        yield f"The database is away: {health.database_away} When it is back: {commands} reconcile"
    if health.kv_away is not None:
        yield f"The key-value store is away: {health.kv_away} When it is back: {commands} reconcile"
    if backlog and backlog.failed:
        yield (
            f"Failed: mend what they met last, which stands in `{commands} history ID` and in the log of "
            f"reconcile. Then: {commands} reconcile"
        )
    if backlog and (backlog.pending or backlog.overdue):
        yield f"To repair, and to be run every minute: {commands} reconcile"
