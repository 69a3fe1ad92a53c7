"""Checks on the destination about its machine: versions, what QEMU there can run, memory, CPUs, confinement."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from constant import DomainState, Transport
from host import capabilities
from host.hypervisor import Hypervisor
from steps.checks.look import Looks, Saw, fine, stops, warns
from wire.errors import ErrorCode
from wire.facts import DomainFacts, version_text
from wire.findings import Check
from wire.phrase import Phrase, joined
from wire.records import Migration

_MIB = 1024 * 1024
_KVM = "/dev/kvm"
# proc(5), and Documentation/admin-guide/mm/hugetlbpage.rst in Linux.
_MEMORY_INFORMATION = Path("/proc/meminfo")
_HUGE_PAGES = Path("/sys/kernel/mm/hugepages")
# QEMU itself takes memory beside the guest's: measured 40 to 120 MiB with the devices of an ordinary VM.
_QEMU_OVERHEAD = 64 * _MIB
# The first releases of each stable series with "nbd/server: CVE-2024-7409" (qemu-stable, September 2024), as libvirt
# counts; all later series have it.
_NBD_FIXED = {(7, 2): 14, (8, 2): 7, (9, 0): 3}
_NBD_FIXED_SINCE = (9, 1)
# What QEMU takes the page faults of the arriving guest with. Documentation/admin-guide/mm/userfaultfd.rst in Linux: the
# sysctl lets everybody handle those of the kernel too, without it CAP_SYS_PTRACE or the device is needed. QEMU opens
# the device from 8.1 on, and libvirt lets it from 10.1 on (its NEWS.rst).
_USERFAULTFD_SYSCTL = Path("/proc/sys/vm/unprivileged_userfaultfd")
_USERFAULTFD = Path("/dev/userfaultfd")
_USERFAULTFD_SINCE = (10_001_000, 8_001_000)
_QEMU_CONFIGURATION = Path("/etc/libvirt/qemu.conf")
_KEEPS_CAPABILITIES = re.compile(r"^\s*clear_emulator_capabilities\s*=\s*0\s*(#.*)?$", re.MULTILINE)


@dataclass(frozen=True)
class DestinationView:
    """What the checks on the destination look at."""

    host: str
    migration: Migration
    facts: DomainFacts
    hypervisor: Hypervisor
    host_capabilities: str
    """libvirt's XML."""


def versions(view: DestinationView) -> Iterator[Saw]:
    """Neither libvirt nor QEMU is older than what the domain runs on now."""
    libvirt, qemu = view.hypervisor.version(), view.hypervisor.qemu_version()
    for what, here, there in (
        ("libvirt", libvirt, view.facts.libvirt_version), ("QEMU", qemu, view.facts.qemu_version),
    ):
        # A distribution's bug-fix releases go both ways.
        if here // 1000 < there // 1000:
            yield warns(ErrorCode.VERSION_OLDER, what=what, version=version_text(here),
                        source_version=version_text(there))
    yield fine(libvirt=version_text(libvirt), qemu=version_text(qemu))


def virtualization(view: DestinationView) -> Iterator[Saw]:
    """The host runs VMs of this type, kvm or qemu, for this architecture."""
    kind, architecture = view.facts.virtualization, view.facts.architecture
    types = capabilities.domain_types(view.host_capabilities, architecture)
    reason = None
    if not types:
        reason = Phrase("it has no emulator for that architecture")
    elif kind not in types:
        reason = Phrase("libvirt there offers {types}", {"types": joined(types)})
    elif kind == "kvm" and not os.path.exists(_KVM):
        reason = Phrase("it has no {path}", {"path": _KVM})
    seen = {"type": kind, "architecture": architecture}
    yield fine(**seen) if reason is None else stops(ErrorCode.VIRTUALIZATION_MISSING, reason=reason, **seen)


def machine_type(view: DestinationView) -> Iterator[Saw]:
    """QEMU knows this version of the machine."""
    facts = view.facts
    if facts.virtualization not in capabilities.domain_types(view.host_capabilities, facts.architecture):
        # Another check says so; libvirt would say it once more, in other words.
        yield fine(machine=facts.machine)
        return
    problem = view.hypervisor.machine_problem(facts.virtualization, facts.architecture, facts.machine)
    yield fine(machine=facts.machine) if problem is None else stops(ErrorCode.MACHINE_UNSUPPORTED, reason=problem)


def emulator(view: DestinationView) -> Iterator[Saw]:
    """The program that the XML names is at the same path."""
    path = view.facts.emulator
    if path is None:
        yield fine(path=Phrase("libvirt's own emulator"))
    elif not os.access(path, os.X_OK):
        yield stops(ErrorCode.EMULATOR_MISSING, path=path, architecture=view.facts.architecture)
    else:
        yield fine(path=path)


def available_memory() -> int:
    """Bytes that can be had without swapping."""
    for line in _MEMORY_INFORMATION.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def memory(view: DestinationView) -> Iterator[Saw]:
    """There is room for all the memory that the guest may come to use."""
    # Huge pages have a check of their own.
    own = 0 if view.facts.huge_page else view.facts.memory
    free, needed = available_memory(), own + _QEMU_OVERHEAD
    seen = {"free": str(free // _MIB), "needed": str(needed // _MIB)}
    if free >= needed:
        yield fine(**seen)
    elif view.facts.state is DomainState.SHUT_OFF:
        # It needs it only once it is started.
        yield warns(ErrorCode.MEMORY_SHORT, **seen)
    else:
        yield stops(ErrorCode.MEMORY_SHORT, **seen)


def huge_pages(view: DestinationView) -> Iterator[Saw]:
    """There are as many free pages of that size as the guest's memory takes."""
    size = view.facts.huge_page
    if not size:
        return
    counter = _HUGE_PAGES / f"hugepages-{size}kB" / "free_hugepages"
    free = int(counter.read_text()) if counter.is_file() else 0
    needed = -(-view.facts.memory // (size * 1024))
    if free < needed:
        yield stops(ErrorCode.HUGE_PAGES_SHORT, free=str(free), size=str(size), needed=str(needed))


def cpus(view: DestinationView) -> Iterator[Saw]:
    """The host has the CPUs and NUMA nodes that the domain is bound to, and no fewer than the guest."""
    last_node, last_cpu = capabilities.nodes_and_cpus(view.host_capabilities)
    for what, pinned, last in (
        (Phrase("host CPU"), view.facts.last_cpu, last_cpu),
        (Phrase("NUMA node"), view.facts.last_node, last_node),
    ):
        if -1 < last < pinned:
            yield stops(ErrorCode.CPU_PINNED_OUTSIDE, what=what, pinned=str(pinned), last=str(last))
    count = os.cpu_count() or 1
    seen = {"vcpus": str(view.facts.vcpus), "cpus": str(count)}
    yield fine(**seen) if view.facts.vcpus <= count else warns(ErrorCode.CPUS_FEWER, **seen)


def security_model(view: DestinationView) -> Iterator[Saw]:
    """What confines the domain on the source is at work here, or libvirt would not take it."""
    here = capabilities.security_models(view.host_capabilities)
    models = joined(here) or Phrase("none")
    for model in view.facts.security_models:
        if model not in here:
            yield stops(ErrorCode.SECURITY_MODEL_MISSING, model=model, models=models)
    yield fine(models=models)


def has_nbd_fix(version: int) -> bool:
    """Whether that version of QEMU, as libvirt counts, has the fix for CVE-2024-7409 from its own project."""
    series = (version // 1_000_000, version // 1000 % 1000)
    return series >= _NBD_FIXED_SINCE or version % 1000 >= _NBD_FIXED.get(series, 1000)


def nbd_flaw(view: DestinationView) -> Iterator[Saw]:
    """Without the tunnel, QEMU's NBD server is open to whoever reaches its port."""
    version = view.hypervisor.qemu_version()
    fixed, through_ssh = has_nbd_fix(version), view.migration.transport is Transport.SSH
    if not fixed and not through_ssh:
        yield warns(ErrorCode.QEMU_NBD_FLAW, version=version_text(version))
    why = Phrase("it has the fix for CVE-2024-7409" if fixed else "its NBD server is reached through SSH alone")
    yield fine(version=version_text(version), why=why)


def _keeps_capabilities() -> bool:
    """Whether libvirt leaves a QEMU that runs as root its capabilities."""
    try:
        return bool(_KEEPS_CAPABILITIES.search(_QEMU_CONFIGURATION.read_text(errors="replace")))
    except OSError:
        return False


def post_copy(view: DestinationView) -> Iterator[Saw]:
    """QEMU here may fetch the pages that the guest touches before they have come, if that is asked for."""
    if not view.migration.convergence.may_post_copy:
        yield fine(why=Phrase("not asked for"))
        return
    uid, _gid = view.hypervisor.qemu_ids(view.facts.virtualization)
    setting = _USERFAULTFD_SYSCTL.read_text().strip() if _USERFAULTFD_SYSCTL.exists() else Phrase(
        "missing")
    versions = (view.hypervisor.version(), view.hypervisor.qemu_version())
    new_enough = all(here >= since for here, since in zip(versions, _USERFAULTFD_SINCE))
    if setting == "1":
        yield fine(why=Phrase("vm.unprivileged_userfaultfd is 1"))
    elif new_enough and _USERFAULTFD.exists():
        yield fine(why=Phrase("libvirt there lets QEMU open {path}", {"path": str(_USERFAULTFD)}))
    elif uid == 0 and _keeps_capabilities():
        yield fine(why=Phrase("QEMU runs as root with its capabilities"))
    else:
        yield stops(ErrorCode.POST_COPY_UNAVAILABLE, reason=Phrase(
            "it runs as user {user}, and vm.unprivileged_userfaultfd is {setting}",
            {"user": str(uid), "setting": setting}))


LOOKS: Looks[DestinationView] = {
    Check.VERSIONS: versions,
    Check.VIRTUALIZATION: virtualization,
    Check.MACHINE_TYPE: machine_type,
    Check.EMULATOR: emulator,
    Check.MEMORY: memory,
    Check.HUGE_PAGES: huge_pages,
    Check.CPUS: cpus,
    Check.SECURITY_MODEL: security_model,
    Check.NBD_FLAW: nbd_flaw,
    Check.POST_COPY: post_copy,
}
