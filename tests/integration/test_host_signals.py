"""Who hears of a deletion that is settled."""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any
from unittest.mock import Mock

import pytest
from flask import Flask

from flask_mythic_clients import client_hard_deleted, client_restored, client_soft_deleted
from flask_mythic_clients.backends.memory import MemoryStore
from flask_mythic_clients.errors import ForeignError
from flask_mythic_clients.model import DeletionRecord

from ..hosts import Gate, Host, make_host

Heard = list[tuple[Any, str, DeletionRecord]]


@pytest.fixture
def gate() -> Gate:
    return Gate(MemoryStore())


@pytest.fixture
def host(empty_database: Callable[[str], str], gate: Gate) -> Iterator[Host]:
    with closing(make_host(empty_database("sqlite"), gate)) as host:
        host.add(id="acme")
        yield host


@pytest.fixture
def heard() -> Iterator[Heard]:
    """What was sent, by any app."""
    heard: Heard = []
    with ExitStack() as stack:
        for signal in (client_soft_deleted, client_hard_deleted, client_restored):

            def hear(sender: Any, record: DeletionRecord, name: str = signal.name) -> None:
                heard.append((sender, name.rpartition("-client-")[2], record))

            stack.enter_context(signal.connected_to(hear))
        yield heard


def test_one_is_sent_for_each_settled_action_and_carries_its_record(host: Host, heard: Heard) -> None:
    assert host.delete("acme").status_code == 200
    with host.flask.app_context():
        host.clients.service.restore("acme", actor="a job")
    assert host.delete("acme?hard=true").status_code == 200
    assert [name for _, name, _ in heard] == ["soft-deleted", "restored", "hard-deleted"]
    assert all(sender is host.flask for sender, _, _ in heard)
    assert [record for _, _, record in heard] == list(host.records("acme"))
    assert all(record.settled_at for _, _, record in heard)


def test_none_is_sent_where_nothing_was_done(host: Host, heard: Heard) -> None:
    assert host.delete("acme").status_code == 200
    heard.clear()
    for path in ("acme", "absent", "absent?hard=true", "a.b", "acme?hard=1"):
        host.delete(path)
    host.delete("acme?hard=true", key="wrong")
    assert heard == []


def test_it_is_sent_when_settled_and_not_before(host: Host, heard: Heard, gate: Gate) -> None:
    gate.closed = True
    for path in ("acme", "acme", "acme?hard=true"):
        assert host.delete(path).status_code == 503
    assert heard == []
    gate.closed = False
    with host.flask.app_context():
        assert host.clients.service.reconcile().settled == 2
        assert host.clients.service.reconcile().settled == 0
    assert [name for _, name, _ in heard] == ["soft-deleted", "hard-deleted"]
    assert all(sender is host.flask for sender, _, _ in heard)


def test_it_is_sent_after_the_commit(host: Host) -> None:
    seen: list[Any] = []

    def look(sender: Any, record: DeletionRecord) -> None:
        seen.append((host.rows(), [found.settled_at is None for found in host.records("acme")]))

    with client_hard_deleted.connected_to(look, sender=host.flask):
        assert host.delete("acme?hard=true").status_code == 200
    assert seen == [([], [False])]


def test_a_receiver_that_fails_is_logged_and_fails_nobody_else(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    fail, others = Mock(side_effect=LookupError), [Mock() for _ in range(5)]  # called in any order
    with caplog.at_level(logging.ERROR, "flask_mythic_clients"), ExitStack() as stack:
        for receiver in (*others, fail):
            stack.enter_context(client_soft_deleted.connected_to(receiver))
        answer = host.delete("acme")
    assert (answer.status_code, answer.json["deleted"]) == (200, True)
    assert [other.call_count for other in others] == [1] * 5
    # Its class, and not its text: that may hold what the record has.
    told = [record.exc_info[1] for record in caplog.records if record.exc_info]
    assert [(type(error), error.kind) for error in told] == [(ForeignError, LookupError)]


def test_a_receiver_of_another_app_hears_nothing(host: Host) -> None:
    receiver = Mock()
    with client_soft_deleted.connected_to(receiver, sender=Flask("other")):
        assert host.delete("acme").status_code == 200
    assert not receiver.called


def test_a_muted_signal_is_not_sent(host: Host, heard: Heard) -> None:
    with client_soft_deleted.muted():
        assert host.delete("acme").status_code == 200
    assert heard == []


def test_the_sender_is_the_app_that_settles(host: Host, heard: Heard, gate: Gate) -> None:
    job = make_host(host.flask.config["SQLALCHEMY_DATABASE_URI"], MemoryStore())
    gate.closed = True
    assert host.delete("acme").status_code == 503
    with closing(job), job.flask.app_context():
        assert job.clients.service.reconcile().settled == 1
    assert [(sender is job.flask, name) for sender, name, _ in heard] == [(True, "soft-deleted")]
