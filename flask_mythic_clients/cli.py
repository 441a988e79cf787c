"""`flask mythic-clients …`: each command takes, calls one method of the service, and prints.

Data goes to stdout, messages to stderr. Exit codes: 0 done · 1 refused, or something is to be looked at ·
2 wrong usage · 3 a store did not answer.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import IO, Any
from uuid import UUID

import click
from flask import current_app
from flask.cli import AppGroup

from .auth import create_key, digest
from .cli_many import add_many, delete_each
from .config import check_name, check_rights, commands, setting
from .errors import ConfigurationError, MythicClientsError
from .exposition import exposition
from .model import Action, DeletionRecord, Finding, Health, SoftDeleteEntries
from .options import (
    REFUSED,
    TEXT_FILE,
    Duration,
    actor_option,
    as_json_option,
    client_ids_argument,
    exit_codes,
    failure,
    reason_option,
    seldom_collected,
    show_keys_option,
    user,
)
from .printing import (
    keys,
    preview_told,
    print_json,
    print_preview,
    print_rows,
    text,
)
from .repair import LOST, NEEDS_AUDIT
from .rights import Right
from .service import DeletionService


def create_group(kind: str, service: DeletionService) -> AppGroup:
    """Return the commands for one app's service of a kind of client."""
    words = kind.replace("_", " ")
    group = AppGroup(commands(kind), help=f"Delete, restore and reconcile {words}.")
    click.version_option(package_name="flask-mythic-clients", message="%(package)s %(version)s")(group)
    _add_create_key(group, kind)
    _add_delete(group, service)
    _add_restore(group, service)
    add_many(group, service)
    _add_reconcile(group, service)
    _add_status(group, kind, service)
    _add_check(group, kind, service)
    _add_reading(group, service)
    return group


def _add_create_key(group: AppGroup, kind: str) -> None:
    @group.command("create-key", with_appcontext=False)
    @click.argument("name")
    @click.option("--may", help="What it may do, such as soft+restore; without this, everything.")
    @as_json_option
    def create_key_command(name: str, may: str | None, as_json: bool) -> None:
        """Make an admin key for NAME; print it once, with its entry for the configuration."""
        try:
            check_name(name)
            rights = None if may is None else check_rights(may.split("+"))
        except ConfigurationError as error:
            raise click.UsageError(str(error)) from error
        key = create_key()
        entry = f"{name}={digest(key)}"
        made: dict[str, Any] = {"name": name, "key": key, "digest": digest(key)}
        if rights is not None:
            names = [right.value for right in Right if right in rights]
            made["may"] = names
            entry = f"'{entry};may={'+'.join(names)}'"  # a shell would end its command at the bare `;`
        if as_json:
            print_json(made)
            return
        click.echo("The key, shown this once; the service keeps only its digest:", err=True)
        click.echo(key)
        click.echo("The entry for the configuration; several are joined with commas:", err=True)
        click.echo(f"{setting(kind, 'admin_keys')}={entry}")


def _add_delete(group: AppGroup, service: DeletionService) -> None:
    @group.command("delete")
    @click.argument("client_ids", metavar="ID...", nargs=-1)
    @click.option(
        "--from-file",
        type=TEXT_FILE,
        help="Delete those of a file, many at once: an id a line; - is stdin.",
    )
    @click.option("--hard", is_flag=True, help="Remove for good, from both stores.")
    @click.option("--yes", is_flag=True, help="Do not ask for the id to be typed before --hard.")
    @click.option("--dry-run", is_flag=True, help="Do it in the database, tell what came of it, and undo it.")
    @click.option("--show-row", is_flag=True, help="With --dry-run, print the row: it may hold secrets.")
    @show_keys_option
    @actor_option
    @reason_option
    @as_json_option
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
        by = actor or user()
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
            delete_each(outcomes, len(client_ids), as_json)
            return
        if not dry_run and (as_json or show_row):
            raise click.UsageError("--json and --show-row go with --dry-run.")
        _for_each(client_ids, preview if dry_run else hard_delete if hard else soft_delete)


def _add_restore(group: AppGroup, service: DeletionService) -> None:
    @group.command("restore")
    @client_ids_argument
    @actor_option
    @reason_option
    def restore_command(client_ids: tuple[str, ...], actor: str | None, reason: str | None) -> None:
        """Take soft deletes back."""

        def restore(client_id: str) -> None:
            service.restore(client_id, actor=actor or user(), reason=reason)
            click.echo(f"{client_id}: active.", err=True)

        _for_each(client_ids, restore)


def _add_reconcile(group: AppGroup, service: DeletionService) -> None:
    @group.command("reconcile")
    @click.option(
        "--since",
        type=Duration(),
        help="Do again what was done in this time, such as 2h: for a key-value store that has lost it, and "
        "keeps no mark by which that is found out.",
    )
    @click.option(
        "--audited",
        is_flag=True,
        help="Say that the key-value store was audited, once it had lost more than the ledger has keys of.",
    )
    @as_json_option
    @click.pass_context
    def reconcile_command(
        context: click.Context, since: timedelta | None, audited: bool, as_json: bool
    ) -> None:
        """Settle all that is pending, verify all that is due. To be run every minute."""
        with exit_codes(), seldom_collected():
            done = service.reconcile(since=since, audited=audited)
        if as_json:
            print_json(dataclasses.asdict(done))
        else:
            click.echo(f"settled {done.settled}, verified {done.verified}, failed {done.failed}")
        if done.blind:
            click.echo(f"The key-value store {LOST} It {NEEDS_AUDIT}", err=True)
        context.exit(REFUSED if done.failed or done.blind else 0)


def _add_status(group: AppGroup, kind: str, service: DeletionService) -> None:
    @group.command("status")
    @click.option(
        "--prometheus", is_flag=True, help="Print it for node-exporter's textfile collector; exit with 0."
    )
    @as_json_option
    @click.pass_context
    def status_command(context: click.Context, prometheus: bool, as_json: bool) -> None:
        """Report the status; exit with 1 if something is to be looked at. For monitors.

        That is what is pending, failed, overdue or away, and a key-value store that needs an audit.
        """
        with exit_codes():
            health = service.health()
        if prometheus:
            click.echo(exposition(kind, health), nl=False)
            return
        if as_json:
            print_json(_health(health))
        else:
            shown = {name: value for name, value in _health(health).items() if not isinstance(value, bool)}
            click.echo(", ".join(f"{name.replace('_', ' ')} {text(value)}" for name, value in shown.items()))
        for line in _repairs(health, f"flask {group.name}"):
            click.echo(line, err=True)
        context.exit(0 if health.ok else REFUSED)


def _covered(kind: str) -> Iterator[Finding]:
    """Yield routes of ours that another one of the app answers in place of, for some ids."""
    routes = current_app.url_map.bind("localhost")
    for rule in current_app.url_map.iter_rules():
        if not rule.endpoint.startswith(f"mythic_{kind}.") or rule.methods is None:
            continue
        method = min(rule.methods - {"OPTIONS", "HEAD"})
        for client_id in ("7", "acme", f"{UUID(int=7)}"):
            path = rule.rule.replace("<client_id>", client_id)
            with suppress(Exception):  # no such route for that id; or a converter of the app's fails
                endpoint, _ = routes.match(path, method=method)
                if endpoint != rule.endpoint:
                    yield Finding(
                        f"{method} {rule}",
                        f"{endpoint} of your app answers {path} in its place.",
                        "Remove that route, or mount this package under a url_prefix of its own.",
                    )
                    break


def _add_check(group: AppGroup, kind: str, service: DeletionService) -> None:
    @group.command("check")
    @as_json_option
    @click.pass_context
    def check_command(context: click.Context, as_json: bool) -> None:
        """Tell what could break a deletion here, and what mends it; exit with 1 if something could.

        To be run at deployment. It asks both stores, and changes nothing.
        """
        with exit_codes():
            found = [*service.check(), *_covered(kind)]
        if as_json:
            print_json([dataclasses.asdict(finding) for finding in found])
        for finding in () if as_json else found:
            weight = "error" if finding.breaks else "note"
            click.echo(f"{weight}: {text(finding.subject)}: {text(f'{finding.problem} {finding.fix}')}")
        if not found:
            click.echo("Nothing was found that could break a deletion.", err=True)
        context.exit(REFUSED if any(finding.breaks for finding in found) else 0)


def _add_reading(group: AppGroup, service: DeletionService) -> None:
    @group.command("list")
    @click.option("--inactive", is_flag=True, help="Print those alone that are not active.")
    @as_json_option
    def list_command(inactive: bool, as_json: bool) -> None:
        """Print the clients and their status."""
        with exit_codes():
            clients = (client for client in service.clients() if not (inactive and client.active))
            print_rows(({"id": client.id, "status": client.active} for client in clients), as_json)

    @group.command("show")
    @click.argument("client_id", metavar="ID")
    @show_keys_option
    @as_json_option
    @click.pass_context
    def show_command(context: click.Context, client_id: str, show_keys: bool, as_json: bool) -> None:
        """Print what is known of a client, also of one that is gone: its status, entries and records."""
        with exit_codes():
            shown = service.show(client_id)
        begins = None if show_keys else service.keys_begin
        keys_shown = keys((entry.key for entry in shown.entries), begins)
        entries = [
            {"key": key, "there": entry.there, "in_line": entry.in_line}
            for key, entry in zip(keys_shown, shown.entries, strict=True)
        ]
        records = [replace(each, kv_keys=keys(each.kv_keys, begins)) for each in shown.records]
        told = {
            "id": client_id,
            "status": shown.client and shown.client.active,
            "entries": entries,
            "records": list(map(dataclasses.asdict, records)),
        }
        if as_json:
            print_json(told)
        else:
            _print_shown(told)
        context.exit(0 if shown.client or records else REFUSED)

    @group.command("pending")
    @click.option(
        "--failed", is_flag=True, help="Print those that reconcile tried in vain, the unverified too."
    )
    @as_json_option
    def pending_command(failed: bool, as_json: bool) -> None:
        """Print what the key-value store has not confirmed yet: of which clients, since when, and why not."""
        names = ("action", "requested_at", "settled_at", "attempts", "last_error")
        with exit_codes():
            records = service.failed() if failed else service.pending()
            told = (
                {"id": record.client_id, **{name: getattr(record, name) for name in names}}
                for record in records
            )
            print_rows(told, as_json)

    @group.command("history")
    @click.argument("client_id", metavar="ID")
    @click.option("--receipt", is_flag=True, help="Print what can be proven of each removal for good.")
    @show_keys_option
    @as_json_option
    def history_command(client_id: str, receipt: bool, show_keys: bool, as_json: bool) -> None:
        """Print the deletion records of a client, also of one that is gone."""
        with exit_codes():
            records = service.history(client_id)
        if receipt:
            _print_receipts(
                client_id, [record for record in records if record.action is Action.HARD], as_json
            )
            return
        if not records:
            click.echo(f"{text(client_id)}: no records.", err=True)
        begins = None if show_keys else service.keys_begin
        shown = (replace(record, kv_keys=keys(record.kv_keys, begins)) for record in records)
        print_rows(map(dataclasses.asdict, shown), as_json)


class _ToldError(click.ClickException):
    """A refusal that is printed already."""

    def show(self, file: IO[Any] | None = None) -> None:
        """Print nothing."""


def _print_shown(told: Mapping[str, Any]) -> None:
    status = {None: "has no row", True: "active", False: "inactive"}[told["status"]]
    click.echo(f"client {text(told['id'])}: {status}")
    there = {None: "nobody can tell", True: "there", False: "not there"}
    in_line = {None: "", True: ", in line", False: ", NOT in line with the row"}
    for entry in told["entries"]:
        click.echo(f"  entry {text(entry['key'])}: {there[entry['there']]}{in_line[entry['in_line']]}")
    click.echo(f"records: {len(told['records'])}")
    print_rows(told["records"], as_json=False)


def _print_receipts(client_id: str, records: Sequence[DeletionRecord], as_json: bool) -> None:
    """Print what a removal's record proves, without keys; fail where there is none that is settled."""
    told = []
    for record in records:
        told.append(
            {
                "client": record.client_id,
                "removed_by": record.actor,
                "reason": record.reason,
                "asked_for": record.requested_at,
                "confirmed_by_both_stores": record.settled_at,
                "verified": record.verified_at,
                "entries": len(record.digests),
                "sha256_of_their_names": record.digests,
            }
        )
    if as_json:
        print_json(told)
    for receipt in () if as_json else told:
        for name, value in receipt.items():
            click.echo(f"{name.replace('_', ' ')}: {text(value)}")
        click.echo()
    if not any(record.settled_at for record in records):
        raise click.ClickException(
            f"{text(client_id)}: no removal for good is on record that both stores confirmed."
        )


def _confirm(client_id: str) -> None:
    typed = click.prompt(f"To remove {client_id} for good, type its id", err=True)
    if typed != client_id:
        raise click.ClickException(f"{client_id}: not removed, for another id was typed.")


def _for_each(client_ids: Iterable[str], act: Callable[[str], None]) -> None:
    """Act on every id, also after one that was refused; then fail with the worst exit code."""
    worst: click.ClickException | None = None
    for client_id in client_ids:
        try:
            act(client_id)
        except (MythicClientsError, click.ClickException) as error:
            told = (
                error
                if isinstance(error, click.ClickException)
                else failure(f"{text(client_id)}: {error}", error)
            )
            told.show()
            if worst is None or told.exit_code > worst.exit_code:
                worst = told
    if worst is not None:
        raise click.exceptions.Exit(worst.exit_code)


def _health(health: Health) -> dict[str, Any]:
    backlog = health.backlog
    counts = {
        name: getattr(backlog, name, None) for name in ("pending", "oldest", "due", "overdue", "failed")
    }
    found = {"ok": health.ok, **counts, "last_reconcile": health.last_reconcile}
    ages = {
        name: round(value.total_seconds()) for name, value in found.items() if isinstance(value, timedelta)
    }
    stores = {"database": health.database_away is None, "kv": health.kv_away is None}
    return {**found, **ages, **stores, "needs_audit": health.needs_audit}


def _repairs(health: Health, commands: str) -> Iterator[str]:
    """Tell what is wrong, and the line that repairs it."""
    backlog = health.backlog
    if health.database_away is not None:
        yield f"The database is away: {health.database_away} When it is back: {commands} reconcile"
    if health.kv_away is not None:
        yield f"The key-value store is away: {health.kv_away} When it is back: {commands} reconcile"
    if health.needs_audit:
        yield f"The key-value store {LOST} It {NEEDS_AUDIT}"
    if backlog and backlog.failed:
        yield (
            f"Failed: mend what they met last, which stands in `{commands} pending --failed` and in the log "
            f"of reconcile. Then: {commands} reconcile"
        )
    if backlog and (backlog.pending or backlog.overdue):
        yield f"To repair, and to be run every minute: {commands} reconcile"
