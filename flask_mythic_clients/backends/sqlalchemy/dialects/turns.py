"""Those who write to one client through this process come one by one."""

from contextlib import ExitStack
from threading import Lock
from weakref import WeakValueDictionary

from ....errors import BusyError

# A little longer than a row is waited for, in seconds: whoever waits here holds no connection.
_TURN_SECONDS = 1.5


class Turns:
    """Keeps a crowd at one client from taking all connections of the host's pool, to wait there."""

    def __init__(self) -> None:
        self._guard = Lock()
        self._locks: WeakValueDictionary[str, Lock] = WeakValueDictionary()  # those somebody has or waits for

    def take(self, name: str, until: ExitStack) -> None:
        """Wait for the turn, and have it until the stack is left.

        Raises BusyError where it does not come.
        """
        with self._guard:
            lock = self._locks.setdefault(name, Lock())
        if not lock.acquire(timeout=_TURN_SECONDS):
            raise BusyError("Others were before this one at the database, for too long.")
        until.callback(lock.release)
