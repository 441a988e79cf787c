"""The floor of the database: pgbench sends the statements of `bare` alone, without an app and a Redis."""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import sqlalchemy as sa

from . import processes
from .contestants import bare
from .phases import Phase, Sample, new_ids
from .tables import Tables

NAME = "pgbench"
METADATA = bare.METADATA
TOLD = "the statements of bare by pgbench, no app, no Redis; the floor"
_SECONDS = 120
_ID = "((:prefix)::text || '-' || ((:client_id)::int * (:each)::int + (:n)::int - 1)::text)"


class NoPgbenchError(Exception):
    """It is not installed; the message says where it was looked for."""


def program(server: int) -> str:
    """Return the pgbench that lies beside the server's own program, else the one on PATH."""
    beside = Path(os.readlink(f"/proc/{server}/exe")).with_name("pgbench")
    found = f"{beside}" if os.access(beside, os.X_OK) else shutil.which("pgbench")
    if found is None:
        raise NoPgbenchError("neither beside the server's program nor on PATH")
    return found


def measure(
    program: str, tables: Tables, url: sa.URL, phase: Phase, watched: Mapping[str, Sequence[int]]
) -> Sample:
    """Let each connection delete clients of its own; look at what came of it."""
    each = phase.requests // phase.connections
    ids = new_ids(each * phase.connections)
    tables.add(ids)
    hard = phase.scenario == "hard"
    command = [program, "-n", "-M", "prepared", "-c", f"{phase.connections}", "-t", f"{each}"]
    command += ["-D", "n=0", "-D", f"each={each}", "-D", f"prefix={ids[0].rpartition('-')[0]}", "-l"]
    command += ["-h", f"{url.host}", "-p", f"{url.port}", "-U", f"{url.username}"]
    before = processes.cpu_by_name(watched)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        script = Path(folder, "script.sql")
        script.write_text(_script(hard))
        said = _run([*command, "-f", f"{script}", f"{url.database}"], folder)
        latencies = sorted(
            int(line.split()[2]) / 1e6
            for log in Path(folder).glob("pgbench_log.*")
            for line in log.read_text().splitlines()
        )
    per_1000 = {
        name: (used - before[name]) * 1000 / len(ids) for name, used in processes.cpu_by_name(watched).items()
    }
    halves = tables.halves_in_database(ids, hard=hard)
    tables.forget(ids)
    rate = float(re.search(r"tps = ([\d.]+)", said)[1])  # type: ignore[index] # it always says so
    wrong = len(ids) - len(latencies)
    p50, p99 = (latencies[int(len(latencies) * share)] for share in (0.5, 0.99))
    seconds = phase.requests / rate
    return Sample(phase, NAME, seconds, p50, p99, per_1000, 0.0, wrong, 0, len(halves), seen=halves[:3])


def _script(hard: bool) -> str:
    record = bare.step_1(hard, _ID, f"'{NAME}'").strip()
    return f"\\set n :n + 1\n{record} \\gset\n{bare.STAMP.format(record=':id').strip()};\n"


def _run(command: Sequence[str], folder: str) -> str:
    with processes.log_file() as log:
        done = subprocess.run(
            command,
            cwd=folder,
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8"},
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"pgbench has failed:\n{processes.tail(log)}")
    return done.stdout
