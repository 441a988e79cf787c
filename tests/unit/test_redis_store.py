"""What the contract of the key-value stores does not say about Redis: time, secrets and refusals."""

import logging
import socket
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import takewhile

import pytest
import redis
import redis.asyncio

from flask_mythic_clients import ConfigurationError, EntriesRefusedError, KeyValueStoreError
from flask_mythic_clients.backends.redis import RedisStore
from flask_mythic_clients.errors import ForeignError
from tests.hosts import KeyValue

PASSWORD = "s3cret"


@pytest.fixture(params=["redis", "valkey"])
def kv(request: pytest.FixtureRequest, empty_kv: Callable[[str], KeyValue]) -> KeyValue:
    """An empty server of each kind."""
    return empty_kv(request.param)


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    """A socket that accepts and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening


def _url(listening: socket.socket, credentials: str = "") -> str:
    return f"redis://{credentials}127.0.0.1:{listening.getsockname()[1]}/0"


def _caused(error: Exception, by: type[Exception]) -> bool:
    cause = error.__cause__
    return isinstance(cause, ForeignError) and issubclass(cause.kind, by)


def _failure(store: RedisStore) -> KeyValueStoreError:
    with pytest.raises(KeyValueStoreError) as caught:
        store.apply(remove=["a"], overwrite={"b": "c"})
    return caught.value


def _shown(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)) + repr(error.__cause__)


def test_neither_the_store_nor_its_errors_show_the_password(
    listening: socket.socket, kv: KeyValue, caplog: pytest.LogCaptureFixture
) -> None:
    credentials = f"user:{PASSWORD}@"
    caplog.set_level(logging.DEBUG)
    assert kv.url is not None
    for url in (
        _url(listening, credentials),  # hangs
        f"redis://{credentials}127.0.0.1:1/0",  # refuses the connection
        kv.url.replace("redis://", f"redis://{credentials}"),  # refuses the password
        f"redis://{credentials}no-such-host.invalid/0",
    ):
        store = RedisStore.from_url(url, timeout=0.1)
        assert PASSWORD not in f"{store} {store!r}"
        assert PASSWORD not in _shown(_failure(store))
    assert PASSWORD not in caplog.text


@pytest.mark.parametrize("url", [f"redis://:{PASSWORD}#x@localhost/0", f"redis://:{PASSWORD}/x@localhost/0"])
def test_a_url_that_cannot_be_read_is_refused_without_its_password(url: str) -> None:
    """A password with a # or / that was not escaped is read as a port."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 - a host logs whatever it is
        RedisStore.from_url(url).apply(remove=["a"], overwrite={})
    assert PASSWORD not in str(caught.value)


@pytest.mark.timed
@pytest.mark.parametrize("timeout", [0.1, 0.3])
def test_a_hung_server_is_given_the_timeout_once(listening: socket.socket, timeout: float) -> None:
    store = RedisStore.from_url(_url(listening), timeout=timeout)
    began = time.monotonic()
    error = _failure(store)
    took = time.monotonic() - began
    assert _caused(error, redis.TimeoutError)
    assert timeout * 0.9 < took < timeout * 2
    assert _accepted(listening) == 1


@pytest.mark.timed
def test_a_server_that_hangs_later_is_given_the_timeout_once(kv: KeyValue) -> None:
    assert kv.url is not None
    store = RedisStore.from_url(kv.url, timeout=0.3)
    store.apply(remove=["a"], overwrite={})
    kv.raw.client_pause(10_000, all=False)
    try:
        began = time.monotonic()
        error = _failure(store)
        took = time.monotonic() - began
    finally:
        kv.raw.client_unpause()
    assert _caused(error, redis.TimeoutError)
    assert took < 0.6


@pytest.mark.timed
def test_the_default_timeout_is_a_second(listening: socket.socket) -> None:
    began = time.monotonic()
    _failure(RedisStore.from_url(_url(listening)))
    assert 0.9 < time.monotonic() - began < 2


def test_after_a_time_out_the_server_is_left_alone_for_a_second(kv: KeyValue) -> None:
    assert kv.url is not None
    with closing(redis.Redis.from_url(kv.url, socket_timeout=0.3)) as client:
        store = RedisStore(client)
        kv.raw.set("a", "1")
        kv.raw.client_pause(10_000, all=False)
        try:
            assert _caused(_failure(store), redis.TimeoutError)
        finally:
            kv.raw.client_unpause()
        assert _failure(store).__cause__ is None  # not asked
        time.sleep(1)
        for _ in range(2):
            kv.raw.set("a", "1")
            assert store.apply(remove=["a"], overwrite={}) == {"a"}


class _Scripted(redis.Redis):
    """A client whose pipelines fail as told, the first when `go_on` is set."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.asked, self.go_on = threading.Semaphore(0), threading.Event()

    def pipeline(self, *_: object, **__: object) -> "_Scripted":  # type: ignore[override]
        return self

    def execute_command(self, *_: object, **__: object) -> None:
        pass

    def ping(self, **_: object) -> bool:
        raise redis.ConnectionError

    def close(self) -> None:
        pass

    def execute(self, *, raise_on_error: bool) -> list[int]:
        self.asked.release()
        assert self.go_on.wait(10)
        if self.errors:
            raise self.errors.pop(0)
        return [0, 1]  # the lease, the entry


def test_when_the_pause_is_over_one_asks_and_the_others_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flask_mythic_clients.backends.redis.nodes._PAUSE", 0.01)
    client = _Scripted(redis.TimeoutError(), redis.TimeoutError())
    store = RedisStore(client)
    client.go_on.set()
    _failure(store)
    time.sleep(0.02)
    client.go_on.clear()
    with ThreadPoolExecutor(1) as other:
        asking = other.submit(_failure, store)
        assert all(client.asked.acquire(timeout=10) for _ in range(2))
        assert _failure(store).__cause__ is None
        client.go_on.set()
        assert _caused(asking.result(10), redis.TimeoutError)


def test_an_answer_that_is_no_time_out_ends_the_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flask_mythic_clients.backends.redis.nodes._PAUSE", 0.01)
    client = _Scripted(redis.TimeoutError(), redis.ConnectionError(), redis.DataError())
    client.go_on.set()
    store = RedisStore(client)
    _failure(store)
    time.sleep(0.02)
    assert _caused(_failure(store), redis.ConnectionError)
    with pytest.raises(redis.DataError):
        store.apply(remove=["a"], overwrite={})
    assert store.apply(remove=["a"], overwrite={}) == {"a"}


def test_a_server_that_refuses_is_asked_again_at_once() -> None:
    store = RedisStore.from_url("redis://127.0.0.1:1/0")
    for _ in range(3):
        assert _caused(_failure(store), redis.ConnectionError)


def test_a_connection_that_the_server_closed_is_replaced(kv: KeyValue) -> None:
    for _ in range(3):
        kv.store.apply(remove=["a"], overwrite={})
        kv.raw.set("a", "1")
        kv.raw.client_kill_filter(_type="normal", skipme=True)
        assert kv.store.apply(remove=["a"], overwrite={}) == {"a"}


def test_a_server_that_always_closes_is_not_tried_for_long(listening: socket.socket) -> None:
    tried = []

    def close_all() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            tried.append(1)
            connection.close()

    closer = threading.Thread(target=close_all)
    closer.start()
    error = _failure(RedisStore.from_url(_url(listening), timeout=0.5))
    listening.shutdown(socket.SHUT_RDWR)
    closer.join(5)
    assert _caused(error, redis.ConnectionError)
    assert 1 <= len(tried) <= 4  # the commands and a PING, each twice; redis-py before 7 gives up sooner


def test_a_replica_that_may_not_be_written_to_has_not_confirmed(kv: KeyValue) -> None:
    kv.raw.set("a", "1")
    kv.raw.replicaof("127.0.0.1", "1")
    try:
        error = _failure(kv.store)  # type: ignore[arg-type]
    finally:
        kv.raw.replicaof("NO", "ONE")
    assert _caused(error, redis.ReadOnlyError)
    assert kv.raw.get("a") == "1"


def test_a_user_without_the_right_has_not_confirmed(kv: KeyValue) -> None:
    assert kv.url is not None
    kv.raw.acl_setuser(
        "reader", enabled=True, passwords=[f"+{PASSWORD}"], keys=["*"], commands=["+get"], reset=True
    )
    try:
        error = _failure(RedisStore.from_url(kv.url.replace("redis://", f"redis://reader:{PASSWORD}@")))
    finally:
        kv.raw.acl_deluser("reader")
    assert _caused(error, redis.ResponseError)
    assert PASSWORD not in _shown(error)


def test_one_refused_command_of_many_is_a_failure(kv: KeyValue) -> None:
    """The pipeline is no transaction: what was done before the refusal stays done."""
    assert kv.url is not None
    kv.raw.mset({"a": "1", "b": "1"})
    commands = ["+get", "+unlink", "+ping"]
    kv.raw.acl_setuser("remover", enabled=True, nopass=True, keys=["*"], commands=commands, reset=True)
    try:
        _failure(RedisStore.from_url(kv.url.replace("redis://", "redis://remover:x@")))
    finally:
        kv.raw.acl_deluser("remover")
    assert (kv.raw.get("a"), kv.raw.get("b")) == (None, "1")


@pytest.mark.parametrize("value", [{"a": 1}, ["a"], None, object()])
def test_a_value_that_cannot_be_sent_is_the_hosts_mistake_and_no_outage(kv: KeyValue, value: object) -> None:
    with pytest.raises(redis.DataError):
        kv.store.apply(remove=[], overwrite={"a": value})  # type: ignore[dict-item]


def _accepted(listening: socket.socket) -> int:
    """Count the connections that wait to be accepted."""
    listening.setblocking(False)
    count = 0
    while True:
        try:
            connection, _ = listening.accept()
        except BlockingIOError:
            return count
        connection.close()
        count += 1


def test_an_object_that_stands_for_a_client_will_do(kv: KeyValue) -> None:
    """As Flask-Redis has one."""

    class Extension:
        def __getattr__(self, name: str) -> object:
            return getattr(kv.raw, name)

    store = RedisStore(Extension())  # type: ignore[arg-type]
    kv.raw.set("a", "1")
    assert store.apply(remove=["a"], overwrite={}) == {"a"}
    assert store.fetch("b", lambda: "loaded", expire=60) == b"loaded"


def test_a_client_of_asyncio_is_refused() -> None:
    for client in (redis.asyncio.Redis(), redis.asyncio.RedisCluster(host="127.0.0.1")):
        with pytest.raises(ConfigurationError, match=r"none of redis\.asyncio"):
            RedisStore(client)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "reply", [b"%1\r\n+a\r\n+b\r\n", b"*-7\r\n", b"hello\r\n", b"+OK\r\n", b"$5\r\nnever"]
)
def test_a_peer_that_is_no_redis_is_an_outage(listening: socket.socket, reply: bytes) -> None:
    """To each command it gives the same answer, which is none to the command."""

    def answer() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection:
                while connection.recv(4096):
                    connection.sendall(reply)

    peer = threading.Thread(target=answer)
    peer.start()
    error = _failure(RedisStore.from_url(_url(listening), timeout=0.3))
    listening.shutdown(socket.SHUT_RDWR)
    peer.join(5)
    assert error.__cause__ is None or isinstance(error.__cause__, ForeignError)


@pytest.mark.parametrize(
    ("remove", "overwrite", "sent"),
    [
        ([], {}, {}),
        (["a"], {}, {"UNLINK": 2}),
        (["a", "b"], {"c": "1"}, {"EVAL": 1, "SET": 1}),
        ([f"{number}" for number in range(500)], {}, {"EVAL": 1}),
    ],
)
def test_nothing_to_do_is_no_call_and_what_is_removed_is_one_command(
    kv: KeyValue, remove: list[str], overwrite: dict[str, str], sent: dict[str, int]
) -> None:
    for key in remove[::2]:
        kv.raw.set(key, "")
    with kv.raw.monitor() as monitor:
        removed = RedisStore(kv.raw).apply(remove=remove, overwrite=overwrite)
        kv.raw.echo("done")
        # Read as it is: redis-py 5.0's next_command() takes a part of a script for the sender's address.
        lines = map(str, iter(monitor.connection.read_response, None))
        parts = (line.split('"') for line in takewhile(lambda line: '"ECHO"' not in line, lines))
        asked = Counter(command for sender, command, *_ in parts if not sender.endswith("lua] "))
    for greeting in ("HELLO", "CLIENT"):
        asked.pop(greeting, None)
    assert removed == {*remove[::2]}
    assert asked == sent


@pytest.mark.parametrize("forbidden", ["-eval", "resetkeys ~client:* ~mythic:*"])
def test_who_may_not_remove_all_by_one_command_removes_what_he_may(kv: KeyValue, forbidden: str) -> None:
    kv.raw.mset({"client:a": "", "client:b": "", "other": ""})
    kv.raw.execute_command("ACL", "SETUSER", "limited", "on", "nopass", "~*", "+@all", *forbidden.split())
    try:
        with closing(redis.Redis.from_url(f"{kv.url}", username="limited", password="")) as client:
            store, keys = RedisStore(client), ["client:a", "client:absent", "client:b"]
            if forbidden == "-eval":
                assert store.apply(remove=keys, overwrite={}) == {"client:a", "client:b"}
            else:
                with pytest.raises(EntriesRefusedError) as caught:
                    store.apply(remove=[*keys, "other"], overwrite={})
                assert caught.value.keys == {"other"}
                assert caught.value.removed == {"client:a", "client:b"}
    finally:
        kv.raw.acl_deluser("limited")


def test_a_large_set_is_removed_without_holding_the_server_up(kv: KeyValue) -> None:
    for start in range(0, 1_000_000, 50_000):
        kv.raw.sadd("sessions", *range(start, start + 50_000))
    kv.raw.slowlog_reset()
    kv.raw.config_set("slowlog-log-slower-than", 50_000)  # microseconds
    kv.raw.config_set("lazyfree-lazy-user-del", "no")  # as Redis has it; Valkey's DEL is an UNLINK by default
    try:
        assert kv.store.apply(remove=["sessions"], overwrite={}) == {"sessions"}
        assert [entry["command"] for entry in kv.raw.slowlog_get()] == []
    finally:
        kv.raw.config_set("slowlog-log-slower-than", 10_000)
