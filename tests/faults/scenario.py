"""One run: a guest, the admin's command, a fault at a seeded moment of a step, what is done then, and the checks."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from constant import ExitCode
from tests.faults import invariants
from tests.faults.faults import FAULTS, MOMENTS, Fault, Moment
from tests.faults.ground import CANARY, CANARY_IMAGE, FILLER, Ground
from tests.faults.invariants import DESTINATION, SOURCE, RunRecord
from tests.faults.observer import Observer
from tests.lab import GuestSpec, Host, LabError, Witness, start_guest
from tests.lab.conftest import IMAGES, MEBIBYTE, job_leftovers, virsh
from tests.lab.guest import FILE_SYSTEM_BYTES
from tests.lab.witness import GuestKernelCrashError, Tick, missing_records

EVIDENCE_ROOT = Path("/tmp/vmmigration-faults")  # noqa: S108 - for a person to look into
# Two steps that each wait 90 s for a silent agent, and what they waited for before.
COMMAND_SECONDS = 420.0
# An agent that nobody asks settles its jobs after 90 s, and needs a minute for it at most.
ALONE_SECONDS = 150.0
# Of the witness: half as busy as usual, so that several labs fit on a small machine.
TICK_SECONDS = 0.015
# So long the guest stands still when it switches over, at least: its ticks usually come every 20 ms.
STILL_SECONDS = 0.08
# How a Linux kernel tells that it has come to grief, or only that it did not get the processor for long.
_TRACES = ("</TASK>", "BUG: ", "Kernel panic", "Oops: ")
# Programs that run for a moment: an agent looks at the other host, libvirt probes.
_PASSING_SECONDS = 10.0
# Prints of sshd's children: those of a peer that has vanished without a word stay until TCP gives it up.
_SESSIONS = "sshd: "


@dataclass(frozen=True)
class Plan:
    """All that a seed decides."""

    seed: int
    fault: Fault
    moment: Moment
    delay: float
    bandwidth: int
    layered: bool
    resumes: bool
    """Whether the admin does what the message says, or leaves the job to the agents."""
    goes_again: bool
    """Whether a VM that stayed is moved again afterwards, by a plain run."""

    @property
    def variant(self) -> str:
        """For the record."""
        return f"bandwidth {self.bandwidth}" + (", layered" if self.layered else "")


def plan(seed: int, fault: Optional[str] = None, moment: Optional[str] = None) -> Plan:
    """What the seed decides, with a given fault or step."""
    rng = random.Random(seed)  # noqa: S311 - to be repeatable
    chosen = FAULTS[fault or rng.choice(sorted(FAULTS))]
    # As often as not where most of the time goes, and where most can go wrong.
    likely = [name for name in ("LIVE_MIGRATION", "SWITCHOVER") if name in chosen.moments]
    names = sorted(chosen.moments)
    at = MOMENTS[moment or rng.choice(likely if likely and rng.random() < 0.5 else names)]
    layered = at.name == "COPY_DISK_FILE" or rng.random() < 0.15
    # Where most of it is in a layer, the mirror has less to do.
    usual = at.usual_seconds * (0.7 if layered else 1.0)
    return Plan(
        seed, chosen, at, delay=rng.uniform(0, usual), bandwidth=rng.choice((20, 25, 30)), layered=layered,
        resumes=rng.random() < 2 / 3, goes_again=rng.random() < 0.5)


class Command:
    """The admin's command while it runs: its events, and all that it writes."""

    def __init__(self, ground: Ground, *words: str) -> None:
        self.process = ground.boss.popen(
            ground.command(*words, "--json", "--progress", "json"), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, start_new_session=True)
        self.stdout, self.stderr = "", ""
        self.events: list[dict[str, Any]] = []
        self._threads = [threading.Thread(target=target, daemon=True) for target in (self._read, self._listen)]
        for thread in self._threads:
            thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.stdout = self.process.stdout.read()

    def _listen(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.stderr += line
            with contextlib.suppress(ValueError):
                event = json.loads(line)
                if isinstance(event, dict):
                    self.events.append(event)

    def began(self, command: str, address: str) -> bool:
        """Whether that step has begun on that host."""
        return any(event.get("event") == "step-began" and event["command"] == command and event["host"] == address
                   for event in list(self.events))

    def copies_memory(self) -> bool:
        """Whether the migration is past the disks."""
        return any(event.get("event") == "progress" and event.get("memory") for event in list(self.events))

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.process.poll() is not None

    def end(self) -> None:
        """Have all of what it wrote."""
        for thread in self._threads:
            thread.join(5)

    def result(self) -> Mapping[str, Any]:
        """Its JSON result; empty if there is none."""
        with contextlib.suppress(ValueError):
            found = json.loads(self.stdout)
            return found if isinstance(found, dict) else {}
        return {}

    @property
    def said_state(self) -> str:
        """How it said that the VM is."""
        return str(self.result().get("state", "running"))

    @property
    def text(self) -> str:
        """All that the admin read, without the progress."""
        errors = "\n".join(line for line in self.stderr.splitlines() if not line.startswith('{"event": "progress"'))
        return f"exit {self.process.returncode}\n{self.stdout}\n{errors}\n"


@dataclass
class Scenario:
    """One run on a ground."""

    ground: Ground
    plan: Plan
    keep: bool = False
    """Whether the evidence is kept whatever comes of it."""
    violations: list[str] = field(default_factory=list)
    stories: list[tuple[str, str]] = field(default_factory=list)
    _before: dict[str, dict[str, str]] = field(default_factory=dict)
    _offsets: dict[Path, int] = field(default_factory=dict)
    _fault_at: float = math.inf
    _healed: bool = True
    _killed: bool = False
    _vm_died: bool = False
    _died_on: str = ""
    witness: Witness = field(init=False)

    @property
    def name(self) -> str:
        """The guest's name."""
        return f"vm{self.plan.seed}"

    # The run.

    def run(self) -> RunRecord:
        """Do it all. Raises GuestKernelCrashError, and LabError where the lab itself fails."""
        plan, ground = self.plan, self.ground
        began = ground.began = time.monotonic()
        ground.notes.clear()
        ground.missed = False
        ground.guest, ground.controller = self.name, None
        ground.rng = random.Random(f"{plan.seed}-ground")  # noqa: S311 - to be repeatable
        record = RunRecord(plan.seed, plan.fault.name, plan.moment.name, delay=plan.delay, variant=plan.variant)
        self._prepare()
        try:
            with Observer(self.ground.lab.nodes, self.name) as observer:
                try:
                    record = self._drive(record, observer)
                finally:
                    samples = observer.samples()
            record = dataclasses.replace(record, seconds=time.monotonic() - began, violations=tuple(self.violations))
            if self.violations or self.keep:
                self.stories.append(("samples", "\n".join(
                    f"{sample.at - began:8.2f} {sample.until - began:8.2f} {sample.host} {sample.state}"
                    f"{' locked' if sample.locked else ''}" for sample in samples)))
                record = dataclasses.replace(record, evidence=str(self.keep_evidence(record)))
            return record
        finally:
            self._clean_up()

    def _prepare(self) -> None:
        plan, ground = self.plan, self.ground
        ground.start_agents(fake_clock=plan.fault.fake_clock)
        if plan.fault.small_disk:
            ground.mount_small_disk()
            ground.make_canaries()
        for node in ground.lab.nodes:
            self._before[node.name] = self._look_at(node)
            for path in self._logs(node):
                self._offsets[path] = path.stat().st_size if path.exists() else 0
        spec = GuestSpec(
            self.name, disk_bytes=256 * MEBIBYTE, data_bytes=64 * MEBIBYTE, memory_mib=128,
            tick_seconds=TICK_SECONDS, prepare=self._layer if plan.layered else None)
        self.witness = start_guest(ground.lab, ground.source, spec)
        self.witness.wait_for_ticks(20)

    def _layer(self, host: Host) -> None:
        """Most of the disk is in a layer below it, which COPY_DISK_FILE sends.

        The witness's records have their clusters in the top layer from the start: QEMU keeps the table of new ones in
        memory until the guest flushes, which each record does not.
        """
        top, base = f"{IMAGES}/{self.name}.qcow2", f"{IMAGES}/{self.name}-base.qcow2"
        front = f"/tmp/{self.name}.raw"  # noqa: S108 - the host's own /tmp
        host.run(["mv", top, base])
        host.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", Path(base).name, "-F", "qcow2", top])
        count = FILE_SYSTEM_BYTES // MEBIBYTE
        host.run(["qemu-img", "dd", "-O", "raw", "bs=1M", f"count={count}", f"if={base}", f"of={front}"])
        host.run(["qemu-io", "-f", "qcow2", "-c", f"write -s {front} 0 {count}M", top])
        host.run(["rm", front])
        host.run(["chmod", "600", top, base])

    def _drive(self, record: RunRecord, observer: Observer) -> RunRecord:
        plan, ground = self.plan, self.ground
        source, destination = ground.source, ground.destination
        command = Command(
            ground, source.address, destination.address, "kvm", self.name, "--bandwidth", str(plan.bandwidth))
        ground.controller = command.process
        ground.note("command started")
        reached = self._break(command)
        self._wait(command)
        ended = time.monotonic()
        code = None if self._killed else command.process.returncode
        ground.note(f"command ended with {code}")
        self.stories.append(("controller", command.text))
        self.violations += invariants.of_exit(code, command.stderr)
        states = self._states_now()
        ground.note(f"right after it: {states}")
        if not self._vm_died:
            self.violations += invariants.of_claim(code, states, command.said_state)
        elif code is not None and ended - self._fault_at > 5.0 and code in (ExitCode.MOVED, ExitCode.ROLLED_BACK):
            self._judge_claim_on_dead(command, states)
        if math.isinf(plan.fault.seconds):
            self._heal()
        # Another fault takes as long as it takes, and a host that comes up too.
        ground.do_what_is_due(everything=True)
        self._see_who_died(states)
        recovery, final_code = self._recover(code)
        settled = self._wait_until_settled()
        home = self._home()
        stuck = invariants.longest_stuck(observer.samples(), self._fault_at) if reached else 0.0
        ticks = self.witness.ticks()
        ground.note(f"the VM's host is {home or 'not known'}; stuck {stuck:.1f} s, settled {settled:.1f} s")
        self.violations += invariants.of_stuck(stuck, judged=not plan.fault.name.startswith("reboot"))
        self.violations += invariants.of_samples(observer.samples())
        self._check_end(home, settled)
        gaps = [after.seconds - before.seconds for before, after in zip(ticks, ticks[1:])] if not self._vm_died else []
        if plan.goes_again and home == SOURCE and not self.violations:
            self._go_again()
        return dataclasses.replace(
            record, reached=reached and not ground.missed, exit_code=code, recovery=recovery,
            final_exit_code=final_code, home=home, stuck_seconds=stuck, settled_seconds=settled,
            longest_gap_ms=max(gaps, default=0.0) * 1000)

    def _break(self, command: Command) -> bool:
        """Wait for the moment and inject the fault. False if the moment never comes."""
        plan, ground = self.plan, self.ground
        address = ground.lab.host(plan.moment.host).address
        if plan.moment.name == "ROLL_BACK":
            if not self._wait_for(command, lambda: command.began("LIVE_MIGRATION", ground.source.address)):
                return False
            time.sleep(ground.rng.uniform(0.5, 3.0))
            # Twice: the first leaves the job to itself, the second cancels it.
            for _ in range(2):
                command.process.send_signal(signal.SIGINT)
                time.sleep(0.3)
            ground.note("the admin cancels")
        if not self._wait_for(command, lambda: command.began(plan.moment.command, address)):
            return False
        if plan.moment.name == "SWITCHOVER" and not (
                self._wait_for(command, command.copies_memory) and self._wait_for(command, self._stands_still)):
            return False
        time.sleep(plan.delay)
        ground.note(f"fault {plan.fault.name}, {plan.delay:.2f} s after the beginning of {plan.moment.name}")
        self._fault_at = time.monotonic()
        # Whether that ends the VM too is seen by where it ran until then.
        self._killed = plan.fault.name == "kill-controller" and not command.over
        where = self._last_tick_host()
        self._healed = False
        plan.fault.inject(ground)
        self._vm_died = plan.fault.ends != "" and plan.fault.ends in (where, self._last_tick_host())
        if plan.fault.seconds == 0:
            self._healed = True
        elif math.isfinite(plan.fault.seconds):
            ground.later(plan.fault.seconds - (time.monotonic() - self._fault_at), "the fault is over", self._heal)
        ground.note("fault injected" + (", which ends the VM" if self._vm_died else ""))
        return True

    def _wait_for(self, command: Command, condition: Any) -> bool:
        deadline = time.monotonic() + COMMAND_SECONDS
        while not condition():
            if command.over or time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True

    def _stands_still(self) -> bool:
        seen = self.witness.ticks()
        return not seen or time.monotonic() - seen[-1].seconds > STILL_SECONDS

    def _last_tick_host(self) -> str:
        seen = self.witness.ticks()
        return seen[-1].host if seen else ""

    def _heal(self) -> None:
        if not self._healed:
            self.ground.note("healing")
            if self.plan.fault.breaks_disk:
                there = self._last_tick_host() == DESTINATION
                self._vm_died = self._vm_died or (there and self.plan.fault.name == "read-only")
            self.plan.fault.heal(self.ground)
            self._healed = True

    def _wait(self, command: Command) -> None:
        """Wait for its end, and do meanwhile what is due."""
        deadline = time.monotonic() + COMMAND_SECONDS
        while not command.over:
            self.ground.do_what_is_due()
            if time.monotonic() > deadline:
                self.violations.append(f"the command did not end within {COMMAND_SECONDS:.0f} s")
                command.process.kill()
                break
            time.sleep(0.05)
        command.process.wait(10)
        command.end()

    def _judge_claim_on_dead(self, command: Command, states: Mapping[str, str]) -> None:
        """Long after the VM had ended with its host, nobody may say that it runs."""
        result = command.result()
        runs_on = {node.address: node.name for node in self.ground.lab.nodes}.get(str(result.get("runs_on")), "")
        if result.get("state") == "running" and states.get(runs_on) not in ("running", "unknown"):
            self.violations.append(
                f"it said that the VM runs on {runs_on}, where it is {states.get(runs_on)} since "
                f"{time.monotonic() - self._fault_at:.0f} s")

    # What is done about it.

    def _recover(self, code: Optional[int]) -> tuple[str, Optional[int]]:
        """What the admin does after an end that leaves something open."""
        if code is not None and code not in (ExitCode.UNKNOWN, ExitCode.DETACHED):
            return "", None
        job = self._job()
        if job is None or job["outcome"] is not None:
            return "", None
        if not self.plan.resumes:
            return "alone", None
        command = Command(self.ground, "resume", str(job["job_id"]))
        self.ground.note(f"resume {job['job_id']}")
        self._wait(command)
        found = command.process.returncode
        self.ground.note(f"resume ended with {found}")
        self.stories.append(("resume", command.text))
        self.violations += invariants.of_exit(found, command.stderr)
        self.violations += invariants.of_recovery("resume", found, healed=self._healed)
        if not self._vm_died:
            self.violations += invariants.of_claim(found, self._states_now(), command.said_state)
        return "resume", found

    def _job(self) -> Optional[Mapping[str, Any]]:
        """What the agents tell of the VM's newest job; None if they know of none."""
        run = self.ground.boss.run(self.ground.command("list", "--json"), check=False, timeout=120)
        try:
            told = json.loads(run.stdout)
        except ValueError:
            self.violations.append(f"list ended with {run.returncode}: {run.stderr[-200:]}")
            return None
        if told.get("errors"):
            self.violations.append(f"list: {told['errors'][0].get('message')}")
        jobs = [job for job in told.get("jobs", ()) if job["domain"] == self.name]
        return jobs[0] if jobs else None

    def _wait_until_settled(self) -> float:
        """How long it takes until nothing of the job is left: what one side could not do, its agent does alone."""
        began = time.monotonic()
        while self._leftovers() or self._unfinished():
            if time.monotonic() - began > ALONE_SECONDS:
                break
            time.sleep(1.0)
        return time.monotonic() - began

    def _unfinished(self) -> bool:
        """Whether an agent's own account has the job as not ended, or the VM is on its way."""
        states = self._states_now()
        if "paused" in states.values() or (not self._vm_died and "running" not in states.values()):
            return True
        for node in self.ground.lab.nodes:
            for path in node.path("/var/lib/vmmigration/history").glob("*.json"):
                with contextlib.suppress(OSError, ValueError):
                    text = path.read_text()
                    if f'"{self.name}"' in text and json.loads(text).get("outcome") is None:
                        return True
        return False

    def _leftovers(self) -> list[str]:
        found = []
        comes_to_nothing = self._states_now()[DESTINATION] in ("absent", "paused")
        for node in self.ground.lab.nodes:
            found += [f"{node.name}: {text}" for text in job_leftovers(node)]
            for path in self.ground.through(node, IMAGES).iterdir():
                if ".vmmigration-" in path.name or path.name.endswith(".part"):
                    found.append(f"{node.name}: {path.name}")
                elif node.name == DESTINATION and path.name.startswith(self.name) and comes_to_nothing:
                    found.append(f"{node.name}: {path.name}, without the VM")
        return found

    # What is checked.

    def _states_now(self) -> dict[str, str]:
        """How libvirt says the VM is, on both hosts."""
        states = {}
        for node in self.ground.lab.nodes:
            listed = node.run(["virsh", "-q", "-c", "qemu:///system", "list", "--all"], check=False)
            found = re.search(rf"^\s*\S+\s+{re.escape(self.name)}\s+(.+?)\s*$", listed.stdout, re.MULTILINE)
            states[node.name] = "unknown" if listed.returncode else found.group(1) if found else "absent"
            if states[node.name] in ("in shutdown", "idle"):
                states[node.name] = "running"
        return states

    def _see_who_died(self, before: Mapping[str, str]) -> None:
        """Whether the fault has ended the VM although the guest had not come to tick where that happened."""
        ends, states = self.plan.fault.ends, self._states_now()
        if ends and states[ends] == "shut off" and not {"running", "paused"} & set(states.values()):
            self.ground.note(f"the VM ended with {ends}: {before}, then {states}")
            self._vm_died = True
            self._died_on = ends

    def _home(self) -> str:
        """The host that has the VM: that which runs it, or on which it ran last."""
        running = [host for host, state in self._states_now().items() if state == "running"]
        if len(running) == 1:
            return running[0]
        return self._died_on or self._last_tick_host()

    def _check_end(self, home: str, settled: float) -> None:
        ground = self.ground
        states = self._states_now()
        if self._vm_died and "running" not in states.values() and home:
            # As after any power failure: an admin starts it where it was.
            ground.note(f"starting it on {home}: {states}")
            started = ground.lab.host(home).run(
                ["virsh", "-q", "-c", "qemu:///system", "start", self.name], check=False)
            if started.returncode != 0:
                self.violations.append(f"it cannot be started on {home}: {started.stderr.strip()}")
            states = self._states_now()
        self.violations += invariants.exactly_one(states)
        self.violations += [f"left after {settled:.0f} s: {text}" for text in self._leftovers()]
        self._check_guest(home)
        job = self._job()
        if job is not None:
            self.violations += invariants.of_job(job["outcome"], home, began=True)
        for node in ground.lab.nodes:
            after, before = self._look_at(node), self._before[node.name]
            self.violations += [f"{node.name}: {text}" for text in invariants.of_files(
                {path: value for path, value in before.items() if path.startswith("canary")}, after)]
            self.violations += invariants.of_rules(node.name, before["rules"], after["rules"])
            names = {path.name for path in ground.through(node, IMAGES).iterdir()}
            names -= {Path(CANARY_IMAGE).name, Path(FILLER).name, "lost+found"}
            self.violations += invariants.of_images(node.name, names, self.name, home=home)
            self.violations += [
                f"{node.name}: process left: {words}" for words in self._left_processes(node, before["processes"])]
            if ground.agents[node.name].process.poll() is not None:
                self.violations.append(f"the agent on {node.name} has ended by itself")

    def _check_guest(self, home: str) -> None:
        """It ticks, and what it acknowledged is there. Raises GuestKernelCrashError if its kernel says why not."""
        if not home:
            return
        found = self._of_guest(home)
        # The emulator also has a migrated guest stand still that has lost nothing. One that does so each time is told.
        hangs = len(found) == 1 and found[0].startswith("the guest does not tick") and (
            not self.plan.fault.breaks_disk and self._states_now()[home] == "running")
        if hangs or (found and any(trace in self._serial_output() for trace in _TRACES)):
            raise GuestKernelCrashError(f"{self.name}: the guest's kernel has crashed: {'; '.join(found)}")
        self.violations += found

    def _of_guest(self, home: str) -> list[str]:
        found = []
        try:
            self.witness.wait_for_ticks(20, 30)
        except LabError as error:
            found.append(f"the guest does not tick: {str(error)[-300:]}")
        seen = self.witness.ticks()
        found += invariants.of_ticks(seen)
        host = self.ground.lab.host(home)
        listing = virsh(host, "domblklist", self.name)
        image = next((line.split(None, 1)[1].strip() for line in listing.splitlines()
                      if line.split()[:1] == ["vda"]), "")
        try:
            missing = missing_records(self.ground.through(host, image), [tick.number for tick in seen])
        except LabError as error:
            return [*found, f"the records on the disk cannot be read: {error}"]
        if missing:
            self._tell_of_missing(seen, missing)
        report = dataclasses.replace(
            self.witness.report(disk=False), image=f"{home}:{image}", missing_records=len(missing),
            first_missing=missing[0] if missing else None)
        return [*found, *invariants.of_witness(report, disk_was_broken=self.plan.fault.breaks_disk)]

    def _tell_of_missing(self, seen: Sequence[Tick], missing: Sequence[int]) -> None:
        """What else is known of lost records: where and when they were acknowledged, and which images have them."""
        lines = []
        where = {tick.number: tick for tick in seen}
        for node in self.ground.lab.nodes:
            for path in sorted(self.ground.through(node, IMAGES).glob(f"{self.name}*")):
                # Read once more, and not what the page cache has.
                with contextlib.suppress(OSError), path.open("rb") as stream:
                    os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                try:
                    still = missing_records(path, missing)
                    lines.append(f"{node.name}:{path.name}: lacks {len(still)} of them: {still[:3]} to {still[-3:]}")
                except LabError as error:
                    lines.append(f"{node.name}:{path.name}: {error}")
        for number in missing:
            tick = where[number]
            lines.append(f"{number} acknowledged on {tick.host} at {tick.seconds - self.ground.began:.3f}")
        self.stories.append(("missing-records", "\n".join(lines)))
        self.stories.append(("ticks", "\n".join(
            f"{tick.seconds - self.ground.began:.3f} {tick.host} {tick.number}" for tick in seen)))

    def _serial_output(self) -> str:
        texts = []
        for node in self.ground.lab.nodes:
            with contextlib.suppress(OSError):
                log = node.path(f"/var/log/libvirt/qemu/{self.name}-serial.log")
                texts.append(re.sub(r"t \d{10}\r?\n", "", log.read_text(errors="replace")))
        return "\n".join(texts)

    def _go_again(self) -> None:
        """After a run that left the VM where it was, a second one just works."""
        ground = self.ground
        command = Command(ground, ground.source.address, ground.destination.address, "kvm", self.name)
        ground.note("a second run")
        self._wait(command)
        self.stories.append(("second-run", command.text))
        ground.note(f"it ended with {command.process.returncode}")
        if command.process.returncode != 0:
            self.violations.append(f"a second, plain run ended with {command.process.returncode}")
            return
        self._check_guest(DESTINATION)
        states = self._states_now()
        if states[DESTINATION] != "running" or states[SOURCE] == "running":
            self.violations.append(f"after a second run: {states}")

    def _look_at(self, node: Host) -> dict[str, str]:
        """What must not change on a node."""
        image = self.ground.through(node, CANARY_IMAGE)
        seen = {
            "rules": node.run(["nft", "list", "ruleset"]).stdout,
            "processes": "\n".join(sorted(self._processes(node)))}
        if image.exists():
            status = image.stat()
            digest = hashlib.sha256(image.read_bytes()).hexdigest()
            seen["canary image"] = f"{status.st_ino} {status.st_mode:o} {status.st_uid} {digest}"
        defined = node.run(["virsh", "-q", "-c", "qemu:///system", "dumpxml", CANARY, "--inactive"], check=False)
        if defined.returncode == 0:
            seen["canary definition"] = defined.stdout
        return seen

    def _left_processes(self, node: Host, before: str) -> list[str]:
        """What runs that did not before, and goes on running."""
        vanishes = self.plan.fault.name.startswith(("reboot", "cable", "link", "loss"))
        began = time.monotonic()
        while True:
            extra = self._processes(node) - set(before.splitlines())
            if vanishes:
                extra = {words for words in extra if not words.startswith(_SESSIONS)}
            if not extra or time.monotonic() - began > _PASSING_SECONDS:
                return sorted(extra)
            time.sleep(0.5)

    def _processes(self, node: Host) -> set[str]:
        """What runs on a node besides its services and the guest."""
        found = set()
        for _pid, words in list(node.inner_pids()):
            usual = ("libvirtd", "virtlogd", "sshd: /usr/sbin/sshd", "/usr/sbin/sshd", "/usr/bin/tini", "tini", "ps ",
                     "virsh ", "/usr/bin/python3 -I -S")
            if words and not words.startswith(usual) and "sleep infinity" not in words and (
                    "vmmigration-agent" not in words and f"guest={self.name}," not in words):
                found.add(words)
        return found

    # Evidence, and the end.

    def _logs(self, node: Host) -> list[Path]:
        return [node.path(path) for path in (
            "/var/log/vmmigration-agent.log", "/var/log/libvirt/libvirtd.log", "/var/log/sshd.log")]

    def keep_evidence(self, record: RunRecord) -> Path:
        """Put all that was logged in the run into a directory, and return that."""
        directory = EVIDENCE_ROOT / f"{self.ground.lab.prefix}-{record.seed}-{record.fault}-{record.moment}"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        (directory / "violations").write_text("\n".join(self.violations) + "\n")
        (directory / "record.json").write_text(json.dumps(record.as_json(), indent=2))
        (directory / "harness").write_text("\n".join(self.ground.notes) + "\n")
        for index, (name, text) in enumerate(self.stories):
            (directory / f"{index}-{name}").write_text(text)
        for node in self.ground.lab.nodes:
            for path in [*self._logs(node), node.path(f"/var/log/libvirt/qemu/{self.name}.log")]:
                with contextlib.suppress(OSError), path.open("rb") as stream:
                    stream.seek(min(self._offsets.get(path, 0), path.stat().st_size))
                    (directory / f"{node.name}-{path.name}").write_bytes(stream.read())
            for path in node.path("/var/lib/vmmigration/history").glob("*.json"):
                with contextlib.suppress(OSError):
                    if f'"{self.name}"' in path.read_text():
                        shutil.copy(path, directory / f"{node.name}-history-{path.name}")
        with contextlib.suppress(OSError):
            (directory / "serial").write_text(self._serial_output()[-20000:])
        return directory

    def _clean_up(self) -> None:
        ground = self.ground
        controller = ground.controller
        if controller is not None and controller.poll() is None:
            controller.kill()
        with contextlib.suppress(LabError):
            self._heal()
        ground.do_what_is_due(everything=True)
        ground.remove_guest()
        if self.plan.fault.small_disk:
            ground.unmount_small_disk()


def run(ground: Ground, chosen: Plan, *, keep: bool = False, attempts: int = 4) -> RunRecord:
    """One run, repeated where the emulator has crashed the guest's kernel: the busier the machine, the more often."""
    for attempt in range(attempts):
        try:
            return dataclasses.replace(Scenario(ground, chosen, keep).run(), crashes=attempt)
        except GuestKernelCrashError:
            if attempt == attempts - 1:
                raise
    raise AssertionError("at least one attempt")
