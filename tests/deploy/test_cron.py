"""Each line of the documented crontab is one, and its command does its work as cron runs it."""

import re

import pytest

from ..documents import GUIDE, OPERATING, SCHEDULERS, blocks
from .conftest import Deployed

LINE = re.compile(r"((?:\S+ +){5}) *(\S.*)")
RANGES = [(0, 59), (0, 23), (1, 31), (1, 12), (0, 7)]
LINES = [text for text in blocks(SCHEDULERS, "text")[0].splitlines() if text]
COMMANDS = [re.search(r"mythic-clients (\w+)", line)[1] for line in LINES]  # type: ignore[index]


def parsed(line: str) -> tuple[list[str], str]:
    """Return the five fields of a line and its command, as crontab(5) has them; fail where it is none."""
    found = LINE.fullmatch(line)
    assert found is not None, line
    fields = found[1].split()
    for field, (least, most) in zip(fields, RANGES, strict=True):
        number = re.fullmatch(r"(?:\*/)?([0-9]+)|\*", field)
        assert number is not None, line
        assert number[1] is None or least <= int(number[1]) <= most, line
    assert "%" not in found[2], "To cron a % is the end of the line."
    return fields, found[2]


@pytest.mark.parametrize("line", LINES, ids=COMMANDS)
def test_a_line_of_the_crontab_does_its_work(line: str, deployed: Deployed) -> None:
    _, command = parsed(line)
    name = COMMANDS[LINES.index(line)]
    assert not deployed.did(name)
    ran = deployed.run("/bin/sh", "-c", deployed.placed(command))
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", ""), ran
    assert deployed.did(name)


def test_the_lines_of_the_other_pages_are_among_them() -> None:
    every = [blocks(page, language) for page in (GUIDE, OPERATING) for language in ("text", "")]
    shown = [line for texts in every for text in texts for line in text.splitlines()]
    lines = [line for line in shown if "&& . ./env" in line and "--prometheus" not in line]
    assert len(lines) == 3
    assert [parsed(line) for line in lines if parsed(line) not in map(parsed, LINES)] == []


@pytest.mark.parametrize("line", ["* * * * true", "60 * * * * true", "* * * 0 * true", "* * * * * date +%s"])
def test_what_is_no_line_is_found(line: str) -> None:
    with pytest.raises(AssertionError):
        parsed(line)
