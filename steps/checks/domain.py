"""Checks on the source about the domain itself: its state, what it holds of the host, what QEMU would not move."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from constant import DomainState, Transport
from host.domain_xml import DomainDescription, describe
from host.hypervisor import Hypervisor, has_synchronous_writes
from host.job_files import JobSockets
from steps.checks.look import Looks, Saw, fine, stops, warns
from wire.errors import ErrorCode, MigrationError, fill
from wire.facts import DiskFacts
from wire.findings import Check
from wire.records import Migration

_NESTED_FEATURES = ("vmx", "svm")


@dataclass(frozen=True)
class SourceView:
    """What the checks on the source look at."""

    host: str
    migration: Migration
    hypervisor: Hypervisor
    description: DomainDescription
    state: DomainState
    images: Mapping[str, DiskFacts | MigrationError]
    """The images of its disks by target, as far as the XML alone says nothing against them."""

    @property
    def domain(self) -> str:
        """The domain's name."""
        return self.migration.domain


def state(view: SourceView) -> Iterator[Saw]:
    """Only a running VM is moved."""
    running = view.state is DomainState.RUNNING
    yield fine(state=view.state.value) if running else stops(ErrorCode.DOMAIN_NOT_RUNNING, state=view.state.value)


def job(view: SourceView) -> Iterator[Saw]:
    """libvirt does one job at a time: a backup, a save, another migration."""
    # Of one that does not run, libvirt cannot tell, and another check says so.
    if view.state is not DomainState.SHUT_OFF and view.hypervisor.busy(view.domain):
        yield stops(ErrorCode.DOMAIN_BUSY)


def name(view: SourceView) -> Iterator[Saw]:
    """The name is part of the sockets' paths, as libvirt's AppArmor profile wants it."""
    if view.migration.transport is Transport.SSH and not JobSockets.of(view.migration).fit(view.domain):
        yield stops(ErrorCode.DOMAIN_NAME_UNFIT)


def snapshots(view: SourceView) -> Iterator[Saw]:
    """libvirt migrates no domain that has some."""
    if count := view.hypervisor.snapshots(view.domain):
        yield stops(ErrorCode.DOMAIN_HAS_SNAPSHOTS, count=str(count))


def checkpoints(view: SourceView) -> Iterator[Saw]:
    """The dirty bitmaps of incremental backups do not go with a mirrored disk."""
    if count := view.hypervisor.checkpoints(view.domain):
        yield stops(ErrorCode.DOMAIN_HAS_CHECKPOINTS, count=str(count))


def devices(check: Check) -> Callable[[SourceView], Iterator[Saw]]:
    """The check that is about these devices."""
    def look_at_devices(view: SourceView) -> Iterator[Saw]:
        for device in view.description.devices:
            if device.check is check:
                remedy = fill(device.remedy, {"domain": view.domain})
                yield stops(ErrorCode.DEVICE_UNSUPPORTED, device=device.name, remedy=remedy)

    return look_at_devices


def special_devices(view: SourceView) -> Iterator[Saw]:
    """Devices that QEMU does not move, and what libvirt cannot know of."""
    yield from devices(Check.SPECIAL_DEVICES)(view)
    if view.description.has_own_arguments:
        yield warns(ErrorCode.OWN_ARGUMENTS)


def invariant_tsc(view: SourceView) -> Iterator[Saw]:
    """QEMU does not migrate a CPU whose clock may not change, unless its frequency is given."""
    description = view.description
    has_it = "invtsc" in description.cpu_features or not description.cpu_migratable
    if has_it and not description.tsc_frequency_given:
        yield stops(ErrorCode.INVARIANT_TSC)


def nested_virtualization(view: SourceView) -> Iterator[Saw]:
    """A guest that was made to run guests: theirs is state that older kernels and QEMUs lose.

    Only where its definition asks for it: a CPU that is the host's has the feature by default, used or not.
    """
    lasting = describe(view.hypervisor.document(view.domain, inactive=True))
    given = [feature for feature in lasting.cpu_features if feature in _NESTED_FEATURES]
    if given:
        yield warns(ErrorCode.NESTED_GUESTS, feature=", ".join(given))


def synchronous_writes(view: SourceView) -> Iterator[Saw]:
    """libvirt here can do it, if it is asked for."""
    if view.migration.convergence.synchronous_writes and not has_synchronous_writes():
        yield stops(ErrorCode.SYNCHRONOUS_WRITES_UNAVAILABLE)


LOOKS: Looks[SourceView] = {
    Check.DOMAIN_STATE: state,
    Check.DOMAIN_JOB: job,
    Check.DOMAIN_NAME: name,
    Check.SNAPSHOTS: snapshots,
    Check.CHECKPOINTS: checkpoints,
    Check.HOST_DEVICES: devices(Check.HOST_DEVICES),
    Check.SHARED_FOLDERS: devices(Check.SHARED_FOLDERS),
    Check.TPM: devices(Check.TPM),
    Check.FIRMWARE: devices(Check.FIRMWARE),
    Check.SPECIAL_DEVICES: special_devices,
    Check.INVARIANT_TSC: invariant_tsc,
    Check.NESTED_VIRTUALIZATION: nested_virtualization,
    Check.SYNCHRONOUS_WRITES: synchronous_writes,
}
