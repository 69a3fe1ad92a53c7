"""The real command in a real terminal, in the middle and at the end: wide, narrow, without colours, dumb, piped."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence

import pytest

from tests.terminal.conftest import Stage
from tests.terminal.staged_agent import CHECKING, CHINESE, DISKS, FAILS, GOES_ON, MEMORY, POST_COPY

# What a line is to be but for its figures: <h> is a host, <a> the end of its address or what fits of that, <b> a bar,
# <n> a number, <s> a size, <t> a time, <r> whatever figures there are already: a rate takes two seconds.
_PATTERNS = {
    "<h>": r"127\.[0-9.]+ *", "<a>": r"\.[0-9]+…?", "<b>": "━+╸?─*", "<n>": r"[0-9]+",
    "<s>": r" *[0-9.]+ (?:B|[KMG]iB)", "<t>": r"(?: *[0-9.]+ s|[0-9:]+ min)", "<r>": ".*"}

BEFORE = [
    "HELLO                  <h>ok <t>  node1, libvirt not answering",
    "HELLO                  <h>ok <t>  node1, libvirt not answering",
    "CHECK_SOURCE           <h>ok <t>  0 checks, nothing in the way",
    "CHECK_DESTINATION      <h>ok <t>  0 checks, nothing in the way",
    "CHECK_LINK             <h>ok <t>  0 checks, nothing in the way",
    "MEASURE_LINK           <h>ok <t>  sent; the guest writes 0",
    "                       MiB/s of memory meanwhile",
    "MEASURE_LINK           <h>ok <t>  nothing arrived that was",
    "                       counted",
    "PREPARE_DESTINATION    <h>ok <t>  empty qcow2 of 8192 MiB",
    "COPY_DISK_FILE         <h>ok <t>  nothing to send beforehand",
]
AFTER = [
    "LIVE_MIGRATION         <h>ok <t>  downtime 87 ms",
    "EXTRACT_CONFIGURE_FILE <h>ok <t>  /etc/libvirt/qemu/VM1.xml",
    "                       (libvirt's own)",
    "DEFINE_VIRTUAL_MACHINE <h>ok <t>  persistent, autostart on",
    "FINISH                 <h>ok <t>  shut off here, its disk kept",
    "FINISH                 <h>ok <t>  shut off here, its disk kept",
]
RESULT = [
    "VM1 runs on <h> now.",
    "total <t>, moved 2.29 GiB (disk 2.00 GiB, memory 300 MiB), downtime 87 ms",
]
NARROW_BEFORE = [
    "ok HELLO .<n> <t>", "   node1, libvirt not answering",
    "ok HELLO .<n> <t>", "   node1, libvirt not answering",
    "ok CHECK_SOURCE .<n> <t>", "   0 checks, nothing in the way",
    "ok CHECK_DESTINATION .<n> <t>", "   0 checks, nothing in the way",
    "ok CHECK_LINK .<n> <t>", "   0 checks, nothing in the way",
    "ok MEASURE_LINK .<n> <t>", "   sent; the guest writes 0 MiB/s of m…",
    "ok MEASURE_LINK .<n> <t>", "   nothing arrived that was counted",
    "ok PREPARE_DESTINATION .<n> <t>", "   empty qcow2 of 8192 MiB",
    "ok COPY_DISK_FILE .<n> <t>", "   nothing to send beforehand",
]
NARROW_AFTER = [
    "ok LIVE_MIGRATION .<n> <t>", "   downtime 87 ms",
    "ok EXTRACT_CONFIGURE_FILE .<n> <t>", "   /etc/libvirt/qemu/VM1.xml (libvirt'…",
    "ok DEFINE_VIRTUAL_MACHINE .<n> <t>", "   persistent, autostart on",
    "ok FINISH .<n> <t>", "   shut off here, its disk kept",
    "ok FINISH .<n> <t>", "   shut off here, its disk kept",
]
# It is as long as it is: the terminal breaks it.
NARROW_RESULT = [
    "VM1 runs on <h> now.",
    "total <t>, moved 2.29 GiB (disk 2.00 G", "iB, memory 300 MiB), downtime 87 ms",
]
DISKS_BLOCK = [
    " LIVE_MIGRATION        <h> *<t>  copying the disk",
    "  <b>  <n> %  <s> of <s>  <s>/s  <t> left",
    "  vda <b>  <n> %  <s> of <s>  <s>/s",
    "  vdb <b>  <n> %  <s> of <s>  <s>/s",
]
NARROW_DISKS_BLOCK = [
    " LIVE_MIGRATION .<n> <t>", " copying the disk", " <b>  <n> %  <t> left", " <s>/s  <s> of <s>",
    " vda <b>  <n> %  <s>/s", " vdb <b>  <n> %  <s>/s",
]
DISKS_SOON = [
    " LIVE_MIGRATION        <h> *<t>  copying the disk", "  <b>  <n> %  <r>", "  vda <b>  <n> %  <r>",
    "  vdb <b>  <n> %  <r>",
]
NARROW_DISKS_SOON = [
    " LIVE_MIGRATION .<n> <t>", " copying the disk", " <b>  <n> %<r>", " <r>", " vda <b>  <n> %<r>",
    " vdb <b>  <n> %<r>",
]
MEMORY_BLOCK = [
    " LIVE_MIGRATION        <h> *<t>", "  copying memory, pass 5, downtime raised to 675 ms",
    "  <b>  <n> %  <s> of <s>  <t> left",
    "  pass 5  40 MiB left  60 MiB/s  guest writes 20 MiB/s  downtime limit 675 ms",
]
NARROW_MEMORY_BLOCK = [
    " LIVE_MIGRATION .<n> <t>", " copying memory, pass 5, downtime", " raised to 675 ms", " <b>  <n> %  <t> left",
    " <s> of <s>", " pass 5  40 MiB left  60 MiB/s", " guest writes 20 MiB/s",
]


def pattern(expected: str) -> str:
    """The regular expression of a line."""
    parts = re.split("(<.>| [*])", expected)
    return "".join(_PATTERNS.get(part, " *" if part == " *" else re.escape(part)) for part in parts)


def matches(lines: Sequence[str], expected: Sequence[str]) -> bool:
    """Whether the lines are these, in this order."""
    return len(lines) == len(expected) and all(
        re.fullmatch(pattern(words), line) for line, words in zip(lines, expected))


def by_step(lines: Sequence[str]) -> list[list[str]]:
    """The lines of each step, of which only the first begins at the left."""
    steps: list[list[str]] = []
    for line in lines:
        if line.startswith("   ") and steps:
            steps[-1].append(line)
        else:
            steps.append([line])
    return steps


def is_seen(lines: Sequence[str], typed: str, steps: Sequence[str], rest: Sequence[str]) -> bool:
    """Whether just this is seen: the command, steps that are done, whichever was first, and the rest."""
    if lines[0] != f"$ {typed}" or not matches(lines[len(lines) - len(rest):], rest):
        return False
    left = by_step(lines[1:len(lines) - len(rest)])
    for step in by_step(steps):
        found = next((each for each in left if matches(each, step)), None)
        if found is None:
            return False
        left.remove(found)
    return not left


@pytest.mark.parametrize(("width", "before", "disks", "memory", "after", "result"), [
    (80, BEFORE, DISKS_BLOCK, MEMORY_BLOCK, AFTER, RESULT),
    (40, NARROW_BEFORE, NARROW_DISKS_BLOCK, NARROW_MEMORY_BLOCK, NARROW_AFTER, NARROW_RESULT),
])
def test_a_run_from_its_first_step_to_its_last(
    stage: Stage, width: int, before: list[str], disks: list[str], memory: list[str], after: list[str],
    result: list[str],
) -> None:
    stage.set(DISKS)
    pane = stage.pane(width)
    pane.type("go", "Enter")
    pane.wait("the disks", lambda lines: is_seen(lines, "go", before, disks))
    stage.set(MEMORY)
    pane.wait("the memory", lambda lines: is_seen(lines, "go", before, memory))
    stage.set(GOES_ON)
    lines = pane.wait_for_end()
    assert is_seen(lines, "go", [*before, *after], result), "\n".join(lines)


def test_checks_that_run_side_by_side_are_both_shown(stage: Stage) -> None:
    stage.set(CHECKING)
    pane = stage.pane()
    pane.type("go -n", "Enter")
    pane.wait("both", lambda lines: is_seen(lines, "go -n", BEFORE[:2], [
        " CHECK_SOURCE          <h> *<t>", " CHECK_LINK            <h> *<t>"]))
    stage.set(GOES_ON)
    lines = pane.wait_for_end()
    assert lines[-1] == "A real run would start."
    assert not [line for line in lines if line.startswith(" CHECK")], "\n".join(lines)


def test_long_phases_stand_in_lines_of_their_own_and_chinese_takes_two_columns(stage: Stage) -> None:
    stage.set(POST_COPY)
    pane = stage.pane(40)
    pane.type("go", "Enter")
    pane.wait("post-copy", lambda lines: is_seen(lines, "go", NARROW_BEFORE, [
        " LIVE_MIGRATION .<n> <t>", " post-copy: the guest runs on the",
        " destination, the rest of its memory", " follows", " <b>  <n> %<r>", " <r>",
        " post-copy  40 MiB left  60 MiB/s"]))
    stage.set(CHINESE)
    text = "正在复制虚拟机的内存" * 4
    pane.wait("Chinese", lambda lines: is_seen(lines, "go", NARROW_BEFORE, [
        " LIVE_MIGRATION .<n> <t>", " " + text[:19], " " + text[19:38], " " + text[38:],
        " <b>  <n> %<r>", " <r>"]))


def test_a_step_that_fails_and_why_stand_below_each_other(stage: Stage) -> None:
    stage.set(DISKS)
    pane = stage.pane()
    pane.type("go", "Enter")
    pane.wait_for("vdb")
    stage.set(FAILS)
    lines = pane.wait_for_end()
    steps = [
        *BEFORE, "LIVE_MIGRATION         <h>FAILED <t>  migration-failed",
        "ROLL_BACK              <h>ok <t>  VM running here",
        "ROLL_BACK              <h>ok <t>  VM absent here, removed",
        "                       /srv/vm/node.qcow2",
    ]
    place = next(number for number, line in enumerate(lines) if line.startswith("vmmigration.py: "))
    assert is_seen(lines[:place], "go", steps, []), "\n".join(lines)
    assert lines[-1].startswith("Rolled back: VM1 runs on ")
    assert "\x1b[31mFAILED\x1b[39m" in pane.colours()


# Colours.


def test_colours_are_few_and_mean_something(stage: Stage) -> None:
    stage.set(DISKS)
    pane = stage.pane()
    pane.type("go", "Enter")
    pane.wait_for("vdb")
    seen = pane.colours()
    assert "\x1b[32mok\x1b[39m" in seen
    assert set(re.findall("\x1b\\[([^m]*)m", seen)) <= {"32", "36", "2", "0", "39", "49"}
    assert "\x1b[36m━" in seen


def test_no_color_takes_all_colours_away_and_nothing_else(stage: Stage) -> None:
    stage.set(DISKS)
    pane = stage.pane(NO_COLOR="1")
    pane.type("go", "Enter")
    pane.wait("the disks", lambda lines: is_seen(lines, "go", BEFORE, DISKS_SOON))
    assert "\x1b" not in pane.colours()
    stage.set(GOES_ON)
    assert is_seen(pane.wait_for_end(), "go", [*BEFORE, *AFTER], RESULT)
    assert "\x1b" not in pane.colours()


def plain_run(stage: Stage, **environment: str) -> bytes:
    """All bytes that a run writes to a terminal."""
    leader, follower = os.openpty()
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "TERM")}
    with subprocess.Popen(
            [stage.directory / "go"], stdin=follower, stdout=follower, stderr=follower,
            env={**kept, **environment}, start_new_session=True) as running:
        os.close(follower)
        found = b""
        try:
            while chunk := os.read(leader, 65536):
                found += chunk
        except OSError:
            # The kernel's way to tell that nobody has the other side open any more.
            pass
        assert running.wait(30.0) == 0
    os.close(leader)
    return found


def test_a_dumb_terminal_gets_lines_and_no_sequence_at_all(stage: Stage) -> None:
    for environment in ({"TERM": "dumb"}, {"TERM": ""}, {}):
        written = plain_run(stage, **environment)
        assert b"\x1b" not in written
        assert written.count(b"\r") == written.count(b"\r\n"), "nothing is written over"
        lines = written.decode().splitlines()
        assert re.fullmatch(r"LIVE_MIGRATION          127\.[0-9.]+ +ok +0\.[0-9]{2} s  downtime 87 ms", lines[9])
        assert lines[-2].startswith("VM1 runs on ")
    assert b"\x1b[?7l" in plain_run(stage, TERM="xterm"), "others get them"


def test_a_pipe_gets_the_lines_of_the_readme(stage: Stage) -> None:
    pane = stage.pane()
    pane.type("go 2>&1 | cat", "Enter")
    lines = pane.wait_for_end()
    assert re.fullmatch(r"HELLO                   127\.[0-9.]+ +ok +0\.[0-9]{2} s  node1, libvirt not an", lines[1])
    assert "\x1b" not in pane.colours()


def test_what_goes_into_a_file_does_not_change_what_is_seen(stage: Stage) -> None:
    stage.set(DISKS)
    pane = stage.pane(40)
    pane.type("go >result", "Enter")
    pane.wait("the disks", lambda lines: matches(lines[-6:], NARROW_DISKS_SOON))
    stage.set(GOES_ON)
    assert is_seen(pane.wait_for_end(), "go >result", [*NARROW_BEFORE, *NARROW_AFTER], [])


# Whoever sits in front of it.


def test_a_window_that_is_made_narrower_and_wider_shows_everything_once(stage: Stage) -> None:
    stage.set(DISKS)
    pane = stage.pane()
    pane.type("go", "Enter")
    pane.wait("the disks", lambda lines: is_seen(lines, "go", BEFORE, DISKS_SOON))
    pane.resize(40, 24)
    pane.wait("narrow", lambda lines: matches(lines[-6:], NARROW_DISKS_SOON))
    pane.resize(30, 10)
    pane.wait("tiny", lambda lines: matches(lines[-6:], [
        " LIVE_MIGRATION .<n> <t>", " copying the disk", " <b>  <n> %  <t> left", " <s>/s", " vda <b>  <n> %  <s>/s",
        " vdb <b>  <n> %  <s>/s"]))
    pane.resize(80, 24)
    lines = pane.wait("wide", lambda lines: matches(lines[-4:], DISKS_SOON))
    assert is_seen(lines, "go", BEFORE, DISKS_SOON), "\n".join(lines)
    stage.set(GOES_ON)
    assert is_seen(pane.wait_for_end(), "go", [*BEFORE, *AFTER], RESULT)


def test_lines_that_were_written_while_it_was_narrow_stay_apart_when_it_is_wide_again(stage: Stage) -> None:
    stage.set(DISKS)
    pane = stage.pane()
    pane.type("go", "Enter")
    pane.wait("the disks", lambda lines: is_seen(lines, "go", BEFORE, DISKS_SOON))
    pane.resize(30, 24)
    stage.set(GOES_ON)
    pane.wait_for_end()
    pane.resize(80, 24)
    lines = pane.wait_for_end()
    assert is_seen(lines, "go", [
        *BEFORE, "ok LIVE_MIGRATION .<n> <t>", "   downtime 87 ms", "ok EXTRACT_CONFIGURE_FILE <a>",
        "   /etc/libvirt/qemu/VM1.xml…", "ok DEFINE_VIRTUAL_MACHINE <a>", "   persistent, autostart on",
        "ok FINISH .<n> <t>", "   shut off here, its disk k…", "ok FINISH .<n> <t>",
        "   shut off here, its disk k…"], RESULT), "\n".join(lines)


def test_log_lines_leave_nothing_of_what_runs(stage: Stage) -> None:
    stage.set(DISKS)
    pane = stage.pane()
    pane.type("go -v", "Enter")
    pane.wait_for("left")
    stage.set(GOES_ON)
    pane.wait_for_end()
    lines = pane.whole_lines()[:-3]
    commands = {line.split()[0] for line in [*BEFORE, *AFTER] if not line.startswith(" ")}
    begun = ("$ go -v", "2", "vmmigration.py: ", " " * 23, *commands)
    assert [line for line in lines if not line.startswith(begun)] == []
    assert [line for line in lines if "━" in line] == []


def test_what_is_typed_meanwhile_leaves_nothing(stage: Stage) -> None:
    stage.set(DISKS)
    pane = stage.pane()
    pane.type("go", "Enter")
    pane.wait_for("vdb")
    for _each in range(3):
        pane.type("Enter", "x", "Enter")
    pane.wait("the disks", lambda lines: is_seen(lines, "go", BEFORE, DISKS_SOON))
    # What Ctrl-C leaves, the shell does not read.
    pane.type("C-c")
    lines = pane.wait_for_end()
    place = lines.index("Leaving: the running step goes on. Ctrl-C once more within 2 s cancels the job.")
    assert is_seen(lines[:place], "go", BEFORE, [])
    pane.type("echo seen", "Enter")
    pane.wait_for_last("$ echo seen", "seen", "$")


def test_a_second_ctrl_c_cancels(stage: Stage) -> None:
    stage.set(DISKS)
    pane = stage.pane()
    pane.type("go", "Enter")
    pane.wait_for("vdb")
    pane.type("C-c")
    pane.wait_for("Leaving: the running step goes on.")
    pane.type("C-c")
    lines = pane.wait_for_end()
    assert any(line.startswith("Cancelling: the VM stays where it is if it has not moved yet.") for line in lines)
    assert "copying the disk" not in "\n".join(lines)
    assert lines[-1].startswith("Rolled back: VM1 runs on ")


def test_ctrl_z_leaves_the_shell_its_terminal_and_fg_brings_the_screen_back(stage: Stage) -> None:
    stage.set(DISKS)
    pane = stage.pane()
    pane.type("go", "Enter")
    pane.wait_for("vdb")
    for word in ("once", "twice"):
        pane.type("C-z")
        pane.wait("stopped", lambda lines: "Stopped" in lines[-2])
        pane.type(f"echo {word}", "Enter")
        lines = pane.wait_for_last(f"$ echo {word}", word, "$")
        assert "copying the disk" not in "\n".join(lines)
        pane.type("fg", "Enter")
        pane.wait("the disks", lambda lines: matches(lines[-6:], ["$ fg", "go", *DISKS_SOON]))
    stage.set(GOES_ON)
    assert matches(pane.wait_for_end()[-9:], ["go", *AFTER, *RESULT])


def test_status_shows_what_another_one_drives(stage: Stage) -> None:
    stage.set(DISKS)
    driving, looking = stage.pane(), stage.pane()
    driving.type("go", "Enter")
    driving.wait_for("vdb")
    looking.type("vm status VM1", "Enter")
    looking.wait("the disks", lambda lines: matches(lines[-4:], DISKS_SOON))
    stage.set(GOES_ON)
    driving.wait_for_end()
    lines = looking.wait_for_end()
    assert not [line for line in lines if line.startswith(" LIVE_MIGRATION")], "\n".join(lines)
