"""The commands for many clients, and for the ledger as a whole."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import IO, Any

import click
from flask.cli import AppGroup

from .config import commands
from .model import Action, DeletionRecord, Outcome, Result, is_actor, is_client_id, is_request_id, is_text
from .options import (
    REFUSED,
    TEXT_FILE,
    Duration,
    Time,
    actor_option,
    as_json_option,
    exit_codes,
    older_than_option,
    reason_option,
    seldom_collected,
    show_keys_option,
    user,
)
from .printing import Audited, Counted, keys, print_json, text
from .service import DeletionService


def add_many(group: AppGroup, service: DeletionService) -> None:
    """Add the commands."""
    _add_purge(group, service)
    _add_audit(group, service)
    _add_export(group, service)
    _add_replay(group, service)
    _add_forget(group, service)


def _add_purge(group: AppGroup, service: DeletionService) -> None:
    @group.command("purge")
    @older_than_option
    @click.option("--limit", type=click.IntRange(min=1), help="Try so many at the most.")
    @click.option(
        "--include-unrecorded", is_flag=True, help="Take those, too, that something else has made inactive."
    )
    @click.option(
        "--dry-run", is_flag=True, help="Print the ids of those that would be removed; with --json how many."
    )
    @actor_option
    @reason_option
    @as_json_option
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
                service.purge(older_than=older_than, actor=actor or user(), reason=reason, **chosen)
            )
        done = "would_remove" if dry_run else "removed"
        with _summed_up(lambda: purged.counts(done), as_json, beside_data=dry_run):
            for outcome in purged:
                if outcome.result is Result.FAILED:
                    click.echo(f"{outcome.client_id}: {outcome.cause}", err=True)
                elif dry_run and outcome.result is Result.DONE and not as_json:
                    click.echo(outcome.client_id)
        _fail_if(purged.failed)


def _add_audit(group: AppGroup, service: DeletionService) -> None:
    @group.command("audit")
    @click.option("--sample", type=click.IntRange(min=1), help="Look at so many alone, chosen at random.")
    @click.option("--repair", is_flag=True, help="Bring in line what is not, and remove what is nobody's.")
    @click.option(
        "--min-age",
        type=Duration(),
        default="5m",
        show_default=True,
        help="How long to wait before a second look at what seems wrong.",
    )
    @show_keys_option
    @as_json_option
    def audit_command(
        sample: int | None, repair: bool, min_age: timedelta, show_keys: bool, as_json: bool
    ) -> None:
        """Compare the key-value store with the rows, both ways; exit with 1 if something is out of line.

        Entries are compared with what the rows know of them; and of each key that a template could have made
        the row is looked for. Look at what it prints before --repair: what another part of your service keeps
        under such a key seems to be nobody's, too.
        """
        audited = Audited(service.audit(sample=sample, repair=repair, min_age=min_age))
        told = list[dict[str, Any]]()
        with _summed_up(
            lambda: audited.summary(told if as_json else None),
            as_json,
            beside_data=not as_json,
            stopped="The same again begins anew.",
        ):
            for looked in audited:
                if looked.note is not None:
                    click.echo(text(looked.note), err=True)
                if looked.again:
                    click.echo(f"{looked.again} seem wrong: looking again in {min_age}.", err=True)
                for found in looked.found:
                    begins = None if show_keys else service.keys_begin
                    (key,) = keys((found.key,), begins) if found.key is not None else (None,)
                    line = {**dataclasses.asdict(found), "key": key}
                    if as_json:
                        told.append(line)
                        continue
                    after = [found.cause, "repaired" if found.repaired else None]
                    cells = (found.client_id, key, "; ".join([found.wrong, *filter(None, after)]))
                    click.echo("\t".join(map(text, cells)))
        if sample is not None and not as_json:
            for bound in audited.bounds(sample):
                click.echo(bound)
        _fail_if(audited.out_of_line > audited.repaired)


def delete_each(outcomes: Iterable[Outcome], length: int, as_json: bool) -> None:
    """Print what comes of each, and how many; fail where one has failed."""
    counted, told = Counted(outcomes, length), list[dict[str, Any]]()
    results = {"results": told} if as_json else {}
    with _summed_up(lambda: {**counted.counts("done"), **results}, as_json, beside_data=True):
        for outcome in counted:
            if as_json:
                told.append(dataclasses.asdict(outcome))
            else:
                told_of = (outcome.client_id, outcome.result, outcome.cause)
                click.echo("\t".join(text(each) for each in told_of if each is not None))
    _fail_if(counted.failed)


@contextmanager
def _summed_up(
    summary: Callable[[], Mapping[str, Any]],
    as_json: bool,
    *,
    beside_data: bool = False,
    stopped: str = "The same again goes on, and `reconcile` finishes what is pending.",
) -> Iterator[None]:
    """Print the summary at the end; also where it is stopped, by hand or by a store that is away.

    It goes to stdout, unless that has other data.
    """
    try:
        with exit_codes(), seldom_collected():
            yield
    except KeyboardInterrupt:
        click.echo(f"Stopped. {stopped}", err=True)
        raise click.exceptions.Exit(REFUSED) from None
    finally:
        if as_json:
            print_json(summary())
        else:
            told = dict(summary())
            alone = told.pop("one_by_one", 0)
            counts = ", ".join(f"{name.replace('_', ' ')} {number}" for name, number in told.items())
            why = (
                f"; {alone} one by one, for the mapping, a hook or a trigger has more to do" if alone else ""
            )
            click.echo(counts + why, err=beside_data)


def _fail_if(failed: bool) -> None:
    if failed:
        raise click.exceptions.Exit(REFUSED)


def _add_export(group: AppGroup, service: DeletionService) -> None:
    @group.command("export")
    @click.option("--since", type=Time(), help="Leave out what was asked for before that time.")
    def export_command(since: datetime | None) -> None:
        """Print the deletion records, a JSON object a line, to be kept outside of the database.

        In place of the keys of entries they have digests. After a backup was restored, `replay` takes them.
        """
        with exit_codes(), seldom_collected():
            for record in service.records(since=since):
                click.echo(json.dumps(_exported(record)))


def _add_replay(group: AppGroup, service: DeletionService) -> None:
    @group.command("replay")
    @click.argument("file", type=TEXT_FILE)
    @as_json_option
    def replay_command(file: IO[str], as_json: bool) -> None:
        """Take again, after a backup was restored, the deletions of FILE that the ledger lacks.

        FILE is what `export` has printed, - is stdin. A second run changes nothing.
        """
        if file.seekable():
            for _ in _imported(file, group.name or ""):
                pass  # so that nothing is done by half of a file that is broken
            file.seek(0)
        replayed = Counted(service.replay(_imported(file, group.name or "")))
        with _summed_up(lambda: replayed.counts("replayed"), as_json):
            for outcome in replayed:
                if outcome.result is not Result.DONE:
                    click.echo(f"{outcome.client_id}: {outcome.cause or outcome.result}", err=True)
        _fail_if(not replayed.all_done)


def _add_forget(group: AppGroup, service: DeletionService) -> None:
    @group.command("forget")
    @older_than_option
    @as_json_option
    def forget_command(older_than: timedelta, as_json: bool) -> None:
        """Delete the deletion records that were verified long ago.

        The newest one of a client that has a row stays, and what the key-value store may have forgotten.
        """
        number = 0
        with _summed_up(lambda: {"forgotten": number}, as_json):
            for deleted in service.forget(older_than=older_than):
                number += deleted


def _exported(record: DeletionRecord) -> dict[str, Any]:
    told = dataclasses.asdict(record)
    for name in ("id", "kv_keys", "attempts", "last_error"):
        del told[name]
    times = {name: value.isoformat() for name, value in told.items() if isinstance(value, datetime)}
    return {**told, **times, "kv_digests": list(record.digests)}


def _imported(lines: Iterable[str], commands: str) -> Iterator[DeletionRecord]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield _record(json.loads(line), commands)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            wrong = (
                f"{error}"
                if isinstance(error, _OtherKindError)
                else "it is no record that `export` has printed."
            )
            raise click.UsageError(f"Line {number}: {wrong}") from error


class _OtherKindError(ValueError):
    """It is of another kind of client."""


def _record(told: Mapping[str, Any], group: str) -> DeletionRecord:
    if commands(told["kind"]) != group:
        raise _OtherKindError(f"it is of {told['kind']}: give it to `flask {commands(told['kind'])} replay`.")
    at = datetime.fromisoformat(told["requested_at"])
    if not is_client_id(told["client_id"]) or at.tzinfo is None or not is_actor(told["actor"]):
        raise ValueError
    reason, request_id = told.get("reason"), told.get("request_id")
    if not (reason is None or is_text(reason)) or not (request_id is None or is_request_id(request_id)):
        raise ValueError
    of_caller: Any = {"reason": reason, "request_id": request_id}
    return DeletionRecord(0, told["client_id"], Action(told["action"]), told["actor"], (), at, **of_caller)
