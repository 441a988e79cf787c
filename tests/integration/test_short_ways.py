"""One hard delete goes a short way through the package, and looks the engine up once a step."""

import os
import sys
from collections.abc import Callable
from types import FrameType

import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy

import flask_mythic_clients
from tests.hosts import KeyValue, mounting

PACKAGE = f"{os.path.dirname(flask_mythic_clients.__file__)}{os.sep}"
FRAMES = 77
STEPS = 3  # whether both can be taken at once is the first
# What goes past SQLAlchemy's execution, which has many more frames, goes through more of ours.
STATEMENTS = {"sqlite": 52, "mariadb": 18, "postgresql": 34}


def test_a_hard_delete_goes_through_few_frames_and_looks_the_engine_up_at_most_once_a_step(
    database_url: str, empty_kv: Callable[[str], KeyValue]
) -> None:
    called: list[str] = []
    looked_up: list[SQLAlchemy] = []

    class Host(SQLAlchemy):
        @property
        def engines(self) -> object:
            looked_up.append(self)
            return super().engines

    def profile(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            called.append(frame.f_code.co_qualname)

    with mounting(database_url, empty_kv("either").store) as mount:
        host = mount(db=Host())
        for id in ("the-first", "the-second", "acme"):  # the first is planned, the second made ready
            host.add(id=id)
            called.clear()
            looked_up.clear()
            sys.setprofile(profile)
            answer = host.delete(f"{id}?hard=true")
            sys.setprofile(None)
            assert answer.status_code == 200
        assert len(called) <= FRAMES + STATEMENTS[sa.make_url(database_url).get_backend_name()], called
        assert len(looked_up) <= STEPS
