"""Run the example server; its stores are embedded where the environment names none."""

import argparse
import os
import signal
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from flask import Flask
from werkzeug.serving import make_server

from flask_mythic_clients.auth import create_key, digest
from flask_mythic_clients.backends.memory import MemoryStore

from . import KEYS_FILE, create_app, stores


def main() -> None:
    """Serve until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m example_app", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(0))
    bare = Flask(__package__)
    # The port first: the address is what is told first, and a port in use ends it before a key is made.
    server = make_server(arguments.host, arguments.port, bare, threaded=True)
    url = f"http://{arguments.host}:{server.port}"
    print(f"The console: {url}", flush=True)
    print(f"The API page: {url}/docs", flush=True)
    instance = Path(bare.instance_path)
    instance.mkdir(parents=True, exist_ok=True)
    with _key_value_store(instance) as valkey:
        memory = None if os.environ.get("REDIS_URL") or stores.has_valkey() else MemoryStore()
        key = _key_of_first_start(instance)
        server.app = create_app(memory, valkey=valkey if stores.are_ours() else None)
        _greet(url, key, memory)
        server.serve_forever()


def _key_value_store(instance: Path) -> AbstractContextManager[stores.EmbeddedValkey | None]:
    if os.environ.get("REDIS_URL") or not stores.has_valkey():
        return nullcontext()
    return stores.embedded_valkey(instance)


def _key_of_first_start(instance: Path) -> str | None:
    """Make an admin key if there is none yet; its digest is kept, the key is not."""
    file = instance / KEYS_FILE
    if "MYTHIC_CLIENTS_ADMIN_KEYS" in os.environ or file.exists():
        return None
    key = create_key()
    with file.open("x") as new:
        new.write(f"admin={digest(key)}\n")
    print(f"\nThe admin key, shown this once:\n\n  {key}\n")
    return key


def _greet(url: str, key: str | None, memory: MemoryStore | None) -> None:
    if memory is not None:
        print("No wheel of Valkey for this machine: the entries are in memory, for this process alone.")
    if not key:
        print("\nThe admin key was shown at the first start; put it in ADMIN_KEY.")
        print(f"Lost it? Delete instance/{KEYS_FILE} and start again.\n")
    print("Soft-delete a demo client (with ?hard=true: for good), and look at it:\n")
    print(
        f"  curl -X DELETE '{url}/api/v1/clients/demo-1' "
        f'-H "Authorization: Bearer {key or "$ADMIN_KEY"}" -H "Content-Type: application/json"'
    )
    print(f"  curl -i '{url}/api/v1/clients/demo-1'\n")
    print("More, beside this server: flask --app example_app mythic-clients --help\n")
    print(f"Serving on {url}; Ctrl-C ends it.", flush=True)


if __name__ == "__main__":
    main()
