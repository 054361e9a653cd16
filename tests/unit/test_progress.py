"""Signs of life: a line now and then where there is no terminal, bars on one, seconds a stage."""

from __future__ import annotations

import logging
import os
import pty
import re
import subprocess
import sys
import time

import pytest

from virnucpro.progress import Reporter

STAGE = """
import logging, sys, time
from virnucpro.logs import start_logging
from virnucpro.progress import Reporter

start_logging(0)
reporter = Reporter(bars=sys.argv[1] == "bars", heartbeat_seconds=0.15)
with reporter.stage("embed", 40, "rows") as advance:
    for _ in range(4):
        time.sleep(0.1)
        advance(10)
"""

COLOURS = re.compile("\x1b\\[[0-9;]*m")
MOVES = re.compile("\x1b\\[[0-9;?]*[A-HJKhl]")


@pytest.fixture
def lines(caplog, monkeypatch):
    """The texts that were logged, as they come."""
    logger = logging.getLogger("virnucpro")
    monkeypatch.setattr(logger, "propagate", True)
    monkeypatch.setattr(logger, "handlers", [])
    caplog.set_level(logging.INFO, "virnucpro.progress")
    return lambda: [record.getMessage() for record in caplog.records if record.name == "virnucpro.progress"]


def wait_for(lines, number):
    deadline = time.monotonic() + 20
    while len(lines()) < number:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def shown_on_terminal(option):
    """What a stage writes to a terminal."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen([sys.executable, "-c", STAGE, option], stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 65536):
            shown += part
    except OSError:  # a terminal whose other end is closed
        pass
    os.close(ours)
    assert process.wait(timeout=60) == 0
    return shown.decode()


def test_a_stage_in_which_nothing_advances_gives_signs_of_life(lines):
    """A unit that takes an hour still says so now and then."""
    with Reporter(bars=False, heartbeat_seconds=0.02).stage("embed", 1000, "rows"):
        wait_for(lines, 3)
    assert set(lines()) == {"embed: 0 of 1,000 (0/s)"}


def test_a_heartbeat_says_how_far_it_is_and_what_is_left(lines):
    """With what an earlier run has done, the rate, and the seconds left."""
    with Reporter(bars=False, heartbeat_seconds=0.05).stage("embed", 3000, "rows", done=1000) as advance:
        advance(300)
        advance(200)
        wait_for(lines, 1)
    assert re.fullmatch(r"embed: 1,500 of 3,000 \([\d,]+/s, about \d+ s left\)", lines()[0])


def test_a_heartbeat_without_a_total_counts_only(lines):
    """As in extraction, which does not know how long its input is."""
    with Reporter(bars=False, heartbeat_seconds=0.05).stage("extract", None, "sequences") as advance:
        advance(12_345)
        wait_for(lines, 1)
    assert re.fullmatch(r"extract: 12,345 \([\d,]+/s\)", lines()[0])


def test_a_stage_ends_with_its_count_and_rate(lines):
    """One line; none where there was nothing to do."""
    reporter = Reporter(bars=False)
    with reporter.stage("merge", 0, "units"):
        pass
    assert lines() == []
    with reporter.stage("merge", 5, "units") as advance:
        advance(2)
        advance(3)
    (line,) = lines()
    assert re.fullmatch(r"merge: 5 units in \d+\.\d s \([\d,]+/s\)", line)


def test_no_heartbeat_follows_the_end_of_a_stage(lines):
    """Also when the stage raises."""
    with pytest.raises(ValueError, match="stage"), Reporter(bars=False, heartbeat_seconds=0.01).stage("x", 1, "rows"):
        raise ValueError("stage")
    number = len(lines())
    time.sleep(0.1)
    assert len(lines()) == number


def test_seconds_are_summed_by_stage():
    """A stage that comes in waves is one number."""
    reporter = Reporter(bars=False)
    for name, seconds in (("embed", 0.05), ("merge", 0.02), ("embed", 0.05)):
        with reporter.stage(name, None, "rows"):
            time.sleep(seconds)
    assert list(reporter.seconds) == ["embed", "merge"]
    assert reporter.seconds["embed"] >= 0.1
    assert 0.02 <= reporter.seconds["merge"] < reporter.seconds["embed"]


def test_bars_are_drawn_on_a_terminal_only():
    """Asked for without one, as in a batch job, heartbeats come instead."""
    command = [sys.executable, "-c", STAGE, "bars"]
    shown = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=True).stderr
    assert re.search(r"embed: \d+ of 40", shown)
    assert "\x1b" not in shown


def test_a_terminal_shows_a_bar_with_counts():
    """How much of how much, beside the stage, in one place; the line of the stage stays."""
    shown = shown_on_terminal("bars")
    assert MOVES.search(shown)
    text = COLOURS.sub("", shown)
    assert re.search(r"embed .* \d+/40", text)
    assert "40 rows in" in text


def test_nothing_is_drawn_when_bars_are_off():
    """Not on a terminal either: heartbeats and no moving of the cursor."""
    shown = shown_on_terminal("no bars")
    assert not MOVES.search(shown)
    text = COLOURS.sub("", shown)
    assert re.search(r"embed: \d+ of 40", text)
    assert "40 rows in" in text
