"""The machine and what runs on it, named so that figures can be compared; no path, and no name of a host."""

import os
import platform
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = (
    *("flask-mythic-clients", "flask", "flask-sqlalchemy", "flask-httpauth", "sqlalchemy", "psycopg"),
    *("pymysql", "redis", "gunicorn", "fastapi", "uvicorn", "uvloop", "httptools", "asyncpg"),
)


def describe() -> dict[str, Any]:
    """Return processor, memory, system, Python, and the packages that take part."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "file_system": file_system(tempfile.gettempdir()),
        "python": platform.python_version(),
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
        "load_before": os.getloadavg()[0],
    }


def file_system(folder: str) -> str:
    """Return the kind of file system a folder lies on: on tmpfs nobody waits for a disk."""
    found, kind = "", "unknown"
    for line in Path("/proc/mounts").read_text().splitlines():
        mounted, of_kind = line.split()[1:3]
        if len(mounted) > len(found) and Path(folder).resolve().is_relative_to(mounted):
            found, kind = mounted, of_kind
    return kind


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
