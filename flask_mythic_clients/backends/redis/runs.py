"""How far the servers remember, and the keys of a reconcile that finds it out."""

import secrets
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeAlias

from ...entries import Value
from ...errors import EntriesRefusedError, KeyValueStoreError
from ...model import Mark
from .nodes import Command, Node, Nodes, has_moved, told

_Apply: TypeAlias = Callable[[Collection[str], Mapping[str, Value], Mapping[Node, Command]], set[str]]

_LIFE = 86_400  # seconds after which the key of a run that has died is gone

# Not INCR, which would make the key anew on a server that has been set back to before the run.
_COUNT = """
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3]) end
return 1
"""
_CLOSE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[2], ARGV[2])
return 1
"""


def read_mark(nodes: Nodes, name: str) -> Mark | None:
    """Return the oldest of the servers' marks; None where one has none.

    Raises KeyValueStoreError where a server does not answer.
    """
    return _oldest([_ask(nodes, node, ("GET", _mark_key(nodes, node, name))) for node in nodes.every()])


class RedisRun:
    """Fulfils `ports.Run`: each server counts for itself, and one that is away keeps the mark that it has."""

    def __init__(self, nodes: Nodes, name: str, apply: _Apply) -> None:
        """Read the marks, and leave a key on each server; raises KeyValueStoreError where none answers."""
        self._nodes, self._apply = nodes, apply
        token = secrets.token_hex(8)
        self._pages = 0
        # Named once: one that has moved to another server meanwhile is not counted there.
        self._keys = {node: nodes.key_on(node, f"{name}:run:{token}") for node in nodes.every()}
        self._marks = {node: _mark_key(nodes, node, name) for node in self._keys}
        self._counting: list[Node] = []
        marks, away = [], None
        for node, key in self._keys.items():
            try:
                # The key first: where the server is set back in between, that is gone.
                _ask(nodes, node, ("SET", key, 0, "EX", _LIFE))
                marks.append(_ask(nodes, node, ("GET", self._marks[node])))
                self._counting.append(node)
            except KeyValueStoreError as error:
                away = error
        if not self._counting and away is not None:
            raise away
        self.mark = _oldest(marks)

    def apply(self, *, remove: Collection[str], overwrite: Mapping[str, Value]) -> set[str]:
        """Fulfil `Run.apply`."""
        seals: dict[Node, Command] = {}
        for node in self._counting:
            seals[node] = ("EVAL", _COUNT, 1, self._keys[node], self._pages, self._pages + 1, _LIFE)
        self._pages += 1
        try:
            return self._apply(remove, overwrite, seals)
        except EntriesRefusedError as error:
            without = {self._nodes.of(key) for key in error.keys}
            self._counting = [node for node in self._counting if node not in without]
            raise

    def close(self, mark: Mark) -> bool:
        """Fulfil `Run.close`."""
        done = len(self._counting) == len(self._keys)
        failed: KeyValueStoreError | None = None
        for node in self._counting:
            command = ("EVAL", _CLOSE, 2, self._keys[node], self._marks[node], self._pages, f"{mark}")
            try:
                done &= bool(_ask(self._nodes, node, command))
            except KeyValueStoreError as error:
                failed = error
        if failed is not None:
            raise failed
        return done


def _mark_key(nodes: Nodes, node: Node, name: str) -> str:
    return nodes.key_on(node, f"{name}:mark")


def _oldest(marks: Collection[Any]) -> Mark | None:
    return Mark.oldest(None if mark is None else Mark.read(mark) for mark in marks)


def _ask(nodes: Nodes, node: Node, command: Command) -> Any:
    try:
        (reply,) = node.send([("", command)])
    except KeyValueStoreError:
        nodes.failed(node)
        raise
    if isinstance(reply, Exception):
        if has_moved(reply):
            nodes.failed(node)  # so that it is looked who has it now
        raise KeyValueStoreError from told(reply)
    return reply
