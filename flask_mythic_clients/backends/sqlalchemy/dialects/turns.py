"""Those who write to one client through this process come one by one."""

import threading
from contextlib import ExitStack
from weakref import WeakValueDictionary

from ....errors import BusyError

# A little longer than a row is waited for, in seconds: whoever waits here holds no connection.
_TURN_SECONDS = 1.5


class Turns:
    """Keeps a crowd at one client from taking all connections of the host's pool, to wait there."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        # Those that somebody has or waits for.
        self._locks: WeakValueDictionary[str, threading.Lock] = WeakValueDictionary()

    def take(self, name: str, until: ExitStack) -> None:
        """Wait for the turn, and have it until the stack is left.

        Raises BusyError where it does not come.
        """
        with self._guard:
            # By its name there: gevent may have replaced it since this module was loaded.
            lock = self._locks.setdefault(name, threading.Lock())
        if not lock.acquire(timeout=_TURN_SECONDS):
            raise BusyError("Others were before this one at the database, for too long.")
        until.callback(lock.release)
