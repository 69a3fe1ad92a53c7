"""What a run looks like on terminals of all sizes: golden screens, and that nothing ever is wider or taller."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from console.columns import columns
from console.figures import Running
from console.screen import finished_lines, running_lines, short_host
from console.terminal import Look
from constant import Command
from control.conversation import StepResult
from tests.unit.samples import DESTINATION, PASS, SOURCE
from wire.errors import ErrorCode, MigrationError
from wire.records import DiskProgress, MemoryProgress, Progress

MIB = 1 << 20
HOSTS = (SOURCE, DESTINATION)
WIDE, NARROW, TINY = Look(80, 24), Look(40, 24), Look(20, 24)
LOST = MigrationError(ErrorCode.TUNNEL_LOST, {"host": SOURCE, "destination": DESTINATION, "reason": "it is gone"})

CHECKING = (Running(Command.CHECK_SOURCE, SOURCE, 2.4), Running(Command.CHECK_LINK, SOURCE, 2.4))
DISKS = Running(
    Command.LIVE_MIGRATION, SOURCE, 42.0, percent=54, rate=180 * MIB, disk_rates={"vda": 120 * MIB, "vdb": 60 * MIB},
    progress=Progress(phase="copying the disk", done=1080 * MIB, total=2000 * MIB, disks=(
        DiskProgress("vda", 720 * MIB, 1600 * MIB), DiskProgress("vdb", 360 * MIB, 360 * MIB))))
MEMORY = Running(
    Command.LIVE_MIGRATION, SOURCE, 185.0, percent=98, rate=60 * MIB, progress=Progress(
        phase="copying memory, pass 5, downtime raised to 675 ms", done=1960 * MIB, total=2000 * MIB, memory=PASS))
POST_COPY = Running(
    Command.LIVE_MIGRATION, SOURCE, 3850.0, percent=97, rate=60 * MIB, progress=Progress(
        phase="post-copy: the guest runs on the destination, the rest of its memory follows", done=1940 * MIB,
        total=2000 * MIB, memory=dataclasses.replace(PASS, post_copy=True)))


def block(step: Running, look: Look) -> list[str]:
    """The block of one step."""
    return running_lines((step,), look, HOSTS)


def many_disks(count: int) -> Running:
    """A step that mirrors so many disks, of which the first is there."""
    disks = tuple(DiskProgress(f"vd{letter}", 9 if letter == "a" else 1, 9) for letter in "abcdefghijklmnop"[:count])
    return dataclasses.replace(DISKS, progress=Progress(phase="copying the disk", done=1, total=2, disks=disks))


# Golden screens.


def test_several_disks_on_eighty_columns() -> None:
    assert block(DISKS, WIDE) == [
        " LIVE_MIGRATION        192.0.2.11           42 s  copying the disk",
        "  ━━━━━━━━━━╸─────────  54 %  1.05 GiB of 1.95 GiB  180 MiB/s  5 s left",
        "  vda ━━━━━━━─────────  45 %   720 MiB of 1.56 GiB  120 MiB/s",
        "  vdb ━━━━━━━━━━━━━━━╸  99 %    360 MiB of 360 MiB   60 MiB/s",
    ]


def test_several_disks_on_forty_columns() -> None:
    assert block(DISKS, NARROW) == [
        " LIVE_MIGRATION .11 42 s",
        " copying the disk",
        " ━━━━━━━━╸───────  54 %  5 s left",
        " 180 MiB/s  1.05 GiB of 1.95 GiB",
        " vda ━━━━━───────  45 %  120 MiB/s",
        " vdb ━━━━━━━━━━━╸  99 %  60 MiB/s",
    ]


def test_several_disks_on_twenty_columns() -> None:
    assert block(DISKS, TINY) == [
        " LIVE_MIGRATION 42…", " copying the disk", " ━━━───  54 %", " 5 s left", " vda ━━╸───  45 %",
        " vdb ━━━━━╸  99 %",
    ]


def test_a_pass_over_the_memory() -> None:
    assert block(MEMORY, WIDE) == [
        " LIVE_MIGRATION        192.0.2.11       3:05 min",
        "  copying memory, pass 5, downtime raised to 675 ms",
        "  ━━━━━━━━━━━━━━━━━━━╸  98 %  1.91 GiB of 1.95 GiB",
        "  pass 5  40 MiB left  60 MiB/s  guest writes 120 MiB/s  downtime limit 675 ms",
    ]
    assert block(MEMORY, NARROW)[-2:] == [" pass 5  40 MiB left  60 MiB/s", " guest writes 120 MiB/s"]
    assert block(MEMORY, TINY)[-1:] == [" 40 MiB left"]


def test_post_copy_is_named_and_has_no_downtime_any_more() -> None:
    assert block(POST_COPY, WIDE) == [
        " LIVE_MIGRATION        192.0.2.11      1:04:10 h",
        "  post-copy: the guest runs on the destination, the rest of its memory follows",
        "  ━━━━━━━━━━━━━━━━━━━─  97 %  1.89 GiB of 1.95 GiB  1 s left",
        "  post-copy  40 MiB left  60 MiB/s",
    ]
    assert block(POST_COPY, NARROW) == [
        " LIVE_MIGRATION .11 1:04:10 h", " post-copy: the guest runs on the", " destination, the rest of its memory",
        " follows", " ━━━━━━━━━━━━━━━╸  97 %  1 s left", " 1.89 GiB of 1.95 GiB",
        " post-copy  40 MiB left  60 MiB/s",
    ]


def test_steps_side_by_side_are_all_shown() -> None:
    assert running_lines(CHECKING, WIDE, HOSTS) == [
        " CHECK_SOURCE          192.0.2.11            2 s",
        " CHECK_LINK            192.0.2.11            2 s",
    ]
    assert running_lines(CHECKING, NARROW, HOSTS) == [" CHECK_SOURCE .11 2 s", " CHECK_LINK .11 2 s"]
    assert running_lines((), WIDE, HOSTS) == []


def test_a_chinese_phase_stands_in_its_column_or_below() -> None:
    phase = "正在复制磁盘"
    short = dataclasses.replace(DISKS, progress=Progress(phase=phase, done=0, total=0))
    assert block(short, WIDE) == [" LIVE_MIGRATION        192.0.2.11           42 s  正在复制磁盘"]
    long = dataclasses.replace(DISKS, progress=Progress(phase=phase * 7, done=0, total=0))
    assert block(long, WIDE)[1:] == ["  " + (phase * 7)[:38], "  " + (phase * 7)[38:]]
    assert [columns(line) for line in block(long, NARROW)[1:]] == [39, 39, 9]


def test_steps_that_are_done_on_eighty_columns() -> None:
    steps = (
        StepResult(Command.CHECK_SOURCE, SOURCE, 0.314, "22 checks, nothing in the way"),
        StepResult(Command.CHECK_DESTINATION, DESTINATION, 12.34, "22 checks: 1 obstacle", obstacles=1),
        StepResult(Command.PREPARE_DESTINATION, DESTINATION, 0.03,
                   "empty qcow2 of 1024 MiB at /var/lib/libvirt/images/node.qcow2"),
        StepResult(Command.LIVE_MIGRATION, SOURCE, 3600.0, "", LOST))
    assert [line for step in steps for line in finished_lines(step, WIDE, HOSTS)] == [
        "CHECK_SOURCE           192.0.2.11      ok 0.31 s  22 checks, nothing in the way",
        "CHECK_DESTINATION      192.0.2.12      BLOCKED 12.3 s  22 checks: 1 obstacle",
        "PREPARE_DESTINATION    192.0.2.12      ok 0.03 s  empty qcow2 of 1024 MiB at",
        "                       /var/lib/libvirt/images/node.qcow2",
        "LIVE_MIGRATION         192.0.2.11      FAILED 1:00:00 h  tunnel-lost",
    ]


def test_steps_that_are_done_on_forty_columns() -> None:
    steps = (
        StepResult(Command.LIVE_MIGRATION, SOURCE, 9.996, "87 ms"),
        StepResult(Command.CHECK_DESTINATION, DESTINATION, 12.34, "22 checks: 1 obstacle", obstacles=1),
        StepResult(Command.PREPARE_DESTINATION, DESTINATION, 0.03,
                   "empty qcow2 of 1024 MiB at /var/lib/libvirt/images/node.qcow2"),
        StepResult(Command.FINISH, DESTINATION, 0.0, ""))
    assert [line for step in steps for line in finished_lines(step, NARROW, HOSTS)] == [
        "ok LIVE_MIGRATION .11 10.0 s 87 ms",
        "BLOCKED CHECK_DESTINATION .12 12.3 s", "   22 checks: 1 obstacle",
        "ok PREPARE_DESTINATION .12 0.03 s", "   empty qcow2 of 1024 MiB at /var/lib…",
        "ok FINISH .12 0.00 s",
    ]
    assert finished_lines(steps[0], TINY, HOSTS) == ["ok LIVE_MIGRATION …", "   87 ms"]


# Figures.


def test_what_has_no_size_yet_has_no_bar() -> None:
    opening = Running(Command.LIVE_MIGRATION, SOURCE, 1.0, Progress(phase="opening the SSH tunnel", done=0, total=0))
    assert block(opening, WIDE) == [" LIVE_MIGRATION        192.0.2.11            1 s  opening the SSH tunnel"]


def test_it_is_said_that_nothing_moves_and_that_nothing_is_heard() -> None:
    assert block(dataclasses.replace(DISKS, stalled=True), WIDE)[1].endswith("1.05 GiB of 1.95 GiB  nothing is moving")
    assert "no news" not in block(dataclasses.replace(DISKS, silent=4.9), WIDE)[1]
    silent = block(dataclasses.replace(DISKS, silent=75.0), WIDE)[1]
    assert silent.endswith("54 %  1.05 GiB of 1.95 GiB  no news for 1:15 min")
    assert "no news for 1:15 min" in "\n".join(block(dataclasses.replace(DISKS, silent=75.0), NARROW))


def test_a_guest_that_writes_faster_than_it_is_copied_has_no_time_left() -> None:
    def left(dirty_rate: int | None) -> float | None:
        memory = dataclasses.replace(PASS, dirty_rate=dirty_rate)
        assert MEMORY.progress is not None
        return dataclasses.replace(MEMORY, progress=dataclasses.replace(MEMORY.progress, memory=memory)).seconds_left

    assert [left(rate) for rate in (None, 0, 20 * MIB, 60 * MIB)] == [40 / 60, 40 / 60, 1.0, None]
    assert POST_COPY.seconds_left == 1.0


def test_what_libvirt_does_not_tell_of_a_pass_is_left_out() -> None:
    memory = MemoryProgress(passes=1, left=40 * MIB, rate=None, dirty_rate=None, downtime_limit=300)
    step = dataclasses.replace(MEMORY, progress=Progress(phase="x", done=1 * MIB, total=2 * MIB, memory=memory))
    assert block(step, WIDE)[1:] == [
        "  ━━━━━━━━━━━━━━━━━━━╸  98 %  1 MiB of 2 MiB  60 MiB/s  0 s left",
        "  pass 1  40 MiB left  downtime limit 300 ms"]


@pytest.mark.parametrize(("percent", "bar"), [
    (0, "──────"), (8, "──────"), (9, "╸─────"), (50, "━━━───"), (99, "━━━━━╸")])
def test_a_bar_grows_by_halves_and_is_not_full_before_the_end(percent: int, bar: str) -> None:
    assert block(dataclasses.replace(DISKS, percent=percent), TINY)[2] == f" {bar}  {percent:>2} %"


def test_ascii_is_enough() -> None:
    look = dataclasses.replace(WIDE, unicode=False)
    assert block(DISKS, look)[1].startswith("  ##########----------  54 %  ")
    shown = [*block(DISKS, look), *block(MEMORY, Look(10, 24, unicode=False)),
             *finished_lines(StepResult(Command.FINISH, SOURCE, 0.0, "x" * 99), Look(40, 24, unicode=False), HOSTS)]
    assert all(line.isascii() for line in shown)


# Colours.


def test_colours_are_few_and_there_are_none_unless_wanted() -> None:
    look = dataclasses.replace(WIDE, coloured=True)
    fine, blocked, failed = (
        finished_lines(StepResult(Command.FINISH, SOURCE, 0.0, "done", error, obstacles), look, HOSTS)[0]
        for error, obstacles in ((None, 0), (None, 1), (LOST, 0)))
    assert re.findall("\x1b[^m]*m[A-Za-z]*", fine) == ["\x1b[32mok", "\x1b[0m"]
    assert re.findall("\x1b[^m]*m[A-Za-z]*", blocked) == ["\x1b[31mBLOCKED", "\x1b[0m"]
    assert re.findall("\x1b[^m]*m[A-Za-z]*", failed) == ["\x1b[31mFAILED", "\x1b[0m"]
    assert re.findall("\x1b[^m]*m[━─]?", block(DISKS, look)[1]) == ["\x1b[36m━", "\x1b[0m", "\x1b[2m─", "\x1b[0m"]
    for colour in (look, WIDE):
        plain = [re.sub("\x1b[^m]*m", "", line) for line in block(POST_COPY, colour)]
        assert plain == block(POST_COPY, WIDE)
    assert "\x1b" not in "".join([*block(DISKS, WIDE), *block(POST_COPY, WIDE)])


# Hosts.


@pytest.mark.parametrize(("host", "others", "short"), [
    ("192.168.111.130", ["192.168.111.132"], ".130"), ("10.0.1.5", ["10.0.2.5"], ".1.5"), ("10.0.1.5", [], ".5"),
    ("10.0.1.5", ["10.0.1.5"], ".5"), ("2001:db8::1", ["2001:db8::2"], ":1"), ("10.1.1.5", ["2001:db8::5"], ".5"),
    ("10.1.1.5", ["11.1.1.5"], "10.1.1.5"), ("node1", ["node2"], "node1"),
])
def test_a_short_address_still_tells_two_hosts_apart(host: str, others: list[str], short: str) -> None:
    assert short_host(host, others) == short


def test_a_long_address_is_shortened_where_columns_would_break() -> None:
    host = "2001:db8:1111:2222:3333:4444:5555:6666"
    line, = finished_lines(StepResult(Command.FINISH, host, 0.0, "done"), WIDE, [host, "2001:db8::2"])
    assert line == "FINISH                 :6666           ok 0.00 s  done"


# Room.


def test_of_many_disks_on_few_rows_those_are_shown_that_are_not_there_yet() -> None:
    shown = running_lines((many_disks(16),), Look(80, 10), HOSTS)
    assert len(shown) == 9
    assert [line.split()[0] for line in shown[2:]] == ["vdb", "vdc", "vdd", "vde", "vdf", "vdg", "and"]
    assert shown[-1] == "  and 10 more disks"
    assert len(running_lines((many_disks(16),), WIDE, HOSTS)) == 18


def test_what_matters_least_goes_first_where_rows_are_few() -> None:
    rows = [block(MEMORY, Look(80, height)) for height in (5, 4, 3, 2, 1)]
    whole = block(MEMORY, WIDE)
    assert rows == [whole, whole[:3], [whole[0], whole[2]], whole[:1], whole[:1]]


def test_what_a_host_says_cannot_steer_the_terminal() -> None:
    evil = Progress(phase="\x1b[2Jgone\n", done=1, total=2, disks=(DiskProgress("v\rda", 1, 2),))
    shown = block(Running(Command.LIVE_MIGRATION, "192.0.2.1\x07", 1.0, evil), WIDE) + finished_lines(
        StepResult(Command.FINISH, SOURCE, 0.0, "\x1b[31mok"), WIDE, HOSTS)
    assert all(line.isprintable() for line in shown)


COUNTS = st.integers(0, 2**63 - 1)
PHASES = st.text(max_size=100)
MEMORIES = st.builds(
    MemoryProgress, passes=COUNTS, left=COUNTS, rate=st.none() | COUNTS, dirty_rate=st.none() | COUNTS,
    downtime_limit=COUNTS, post_copy=st.booleans())
TARGETS = st.from_regex(r"[a-z][a-z0-9]{1,15}", fullmatch=True)
PROGRESSES = st.builds(Progress, phase=PHASES, done=COUNTS, total=COUNTS, memory=st.none() | MEMORIES) | st.builds(
    Progress, phase=PHASES, done=COUNTS, total=COUNTS, disks=st.lists(
        st.builds(DiskProgress, TARGETS, COUNTS, COUNTS), max_size=16).map(lambda disks: tuple(disks[:10])))
STEPS = st.builds(
    Running, command=st.sampled_from(Command), host=st.sampled_from([SOURCE, "2001:db8:1:2:3:4:5:6"]),
    seconds=st.floats(0, 1e7), progress=st.none() | PROGRESSES, percent=st.integers(0, 99), rate=st.floats(0, 1e15),
    stalled=st.booleans(), silent=st.floats(0, 1e5))
LOOKS = st.builds(Look, st.integers(1, 200), st.integers(1, 60), unicode=st.booleans())


def assert_fits(lines: Sequence[str], look: Look) -> None:
    """No line reaches the last column, or is anything but one line."""
    assert max(map(columns, lines), default=0) <= max(1, look.width - 1)
    assert all(line.isprintable() for line in lines)


@given(st.lists(STEPS, max_size=4), LOOKS)
def test_no_block_is_wider_or_taller_than_its_terminal(steps: list[Running], look: Look) -> None:
    lines = running_lines(steps, look, [step.host for step in steps])
    assert_fits(lines, look)
    assert len(lines) <= max(1, look.height - 1)
    assert len(lines) >= min(len(steps), max(1, look.height - 1))


@given(st.builds(StepResult, st.sampled_from(Command), st.just(SOURCE), st.floats(0, 1e7), PHASES), LOOKS)
def test_no_line_that_stays_is_wider_than_its_terminal(step: StepResult, look: Look) -> None:
    lines = finished_lines(step, look, HOSTS)
    assert lines
    assert_fits(lines, look)
