"""Checks on the source about the domain itself: its state, what it holds of the host, what QEMU would not move."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from constant import DomainState, FilePurpose, Transport
from host.domain_files import nvram_facts
from host.domain_xml import DiskElement, DomainDescription, describe
from host.hypervisor import Hypervisor
from host.image import flattened
from host.job_files import JobSockets
from host.migration_target import has_synchronous_writes
from steps.checks.look import Looks, Saw, fine, stops, warns
from wire.errors import ErrorCode, MigrationError
from wire.facts import DiskFacts, DomainFacts, FileFacts, NvramFacts
from wire.findings import Check
from wire.phrase import Phrase, joined
from wire.records import Migration

_NESTED_FEATURES = ("vmx", "svm")


@dataclass(frozen=True)
class SourceView:
    """What the checks on the source look at."""

    host: str
    migration: Migration
    hypervisor: Hypervisor
    description: DomainDescription
    """As it runs; of one that does not, as it is defined."""
    lasting: DomainDescription | None
    """As it is defined; None of a transient one."""
    state: DomainState
    disks: tuple[DiskElement, ...]
    images: Mapping[tuple[str, str], DiskFacts | MigrationError]
    """What became of looking at the image of each disk, as far as the XML says nothing against it."""
    files: tuple[FileFacts | MigrationError, ...] = ()
    """The files that are to be sent, or why one cannot be."""

    @property
    def domain(self) -> str:
        """The domain's name."""
        return self.migration.domain

    def facts(self) -> DomainFacts:
        """What the destination is told."""
        description = self.description
        disks = tuple(each for each in self.images.values() if isinstance(each, DiskFacts))
        return DomainFacts(
            uuid=description.uuid, virtualization=description.virtualization, architecture=description.architecture,
            machine=description.machine, memory=description.memory,
            resident=self.hypervisor.resident_memory(self.domain), state=self.state,
            persistent=self.lasting is not None, autostart=self.hypervisor.autostart(self.domain),
            disks=tuple(map(flattened, disks)) if self.migration.flatten else disks,
            files=tuple(file for file in self.files if isinstance(file, FileFacts)),
            nvram=_nvram(self), firmware=description.firmware, has_tpm=description.has_tpm,
            emulator=description.emulator, vcpus=description.vcpus, last_cpu=description.last_cpu,
            last_node=description.last_node, huge_page=description.huge_page, interfaces=description.interfaces,
            graphics=describe(self.hypervisor.migratable_document(self.domain)).graphics,
            serial_ports=description.serial_ports, secrets=description.secrets,
            security_models=description.security_models, libvirt_version=self.hypervisor.version(),
            qemu_version=self.hypervisor.qemu_version())


def _nvram(view: SourceView) -> NvramFacts | None:
    """Of a running domain: QEMU copies the content itself, into a file of that size. The check tells of a bad one."""
    if view.state is DomainState.SHUT_OFF:
        return None
    try:
        return nvram_facts(view.description.nvram)
    except (OSError, ValueError):
        return None


def state(view: SourceView) -> Iterator[Saw]:
    """It runs, has been paused by somebody, or is shut off; anything else passes, or has to be mended first."""
    if view.state is DomainState.PAUSED:
        problem = view.hypervisor.pause_problem(view.domain)
        if problem is not None:
            yield stops(ErrorCode.DOMAIN_NOT_RUNNING, state=problem)
    elif view.state is DomainState.SHUT_OFF:
        if view.hypervisor.has_managed_save(view.domain):
            yield stops(ErrorCode.DOMAIN_SAVED)
        yield warns(ErrorCode.DOMAIN_SHUT_OFF)
    yield fine(state=Phrase(view.state.value))


def job(view: SourceView) -> Iterator[Saw]:
    """libvirt does one job at a time: a backup, a save, another migration."""
    # Of one that does not run, libvirt cannot tell, and another check says so.
    if view.state is not DomainState.SHUT_OFF and view.hypervisor.busy(view.domain):
        yield stops(ErrorCode.DOMAIN_BUSY)


def name(view: SourceView) -> Iterator[Saw]:
    """The name over there is part of the sockets' paths, as libvirt's AppArmor profile wants it."""
    there = view.migration.name_there
    if view.migration.transport is Transport.SSH and not JobSockets.of(view.migration).fit(there):
        yield stops(ErrorCode.DOMAIN_NAME_UNFIT, name=there)


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
                remedy = Phrase(device.remedy, {"domain": view.domain})
                yield stops(ErrorCode.DEVICE_UNSUPPORTED, device=device.name, remedy=remedy)

    return look_at_devices


def special_devices(view: SourceView) -> Iterator[Saw]:
    """Devices that QEMU does not move, and what libvirt cannot know of."""
    yield from devices(Check.SPECIAL_DEVICES)(view)
    if view.description.has_own_arguments:
        yield warns(ErrorCode.OWN_ARGUMENTS)


def files_to_send(view: SourceView) -> Iterator[Saw]:
    """Every file that has to go along can be read."""
    for file in view.files:
        if isinstance(file, MigrationError):
            yield stops(file.code, **file.facts)
    yield fine(count=str(len(view.files)))


def firmware(view: SourceView) -> Iterator[Saw]:
    """The variables of its firmware are in a file, and that is here."""
    yield from devices(Check.FIRMWARE)(view)
    nvram = view.description.nvram
    if nvram is None or view.state is DomainState.SHUT_OFF:
        # One that has never been started has none yet.
        return
    try:
        nvram_facts(nvram)
    except (OSError, ValueError) as error:
        yield stops(ErrorCode.FILE_NOT_SENT, what=Phrase(FilePurpose.NVRAM.value), path=nvram.path, reason=str(error))


def invariant_tsc(view: SourceView) -> Iterator[Saw]:
    """QEMU does not migrate a CPU whose clock may not change, unless its frequency is given."""
    description = view.description
    if view.state is DomainState.SHUT_OFF:
        return
    has_it = "invtsc" in description.cpu_features or not description.cpu_migratable
    if has_it and not description.tsc_frequency_given:
        yield stops(ErrorCode.INVARIANT_TSC)


def nested_virtualization(view: SourceView) -> Iterator[Saw]:
    """A guest that was made to run guests: theirs is state that older kernels and QEMUs lose.

    Only where its definition asks for it: a CPU that is the host's has the feature by default, used or not.
    """
    given = [feature for feature in (view.lasting or view.description).cpu_features if feature in _NESTED_FEATURES]
    if given:
        yield warns(ErrorCode.NESTED_GUESTS, feature=joined(given))


def guest_agent(view: SourceView) -> Iterator[Saw]:
    """What only the guest itself can do is asked of its agent."""
    if view.migration.trim and view.state is DomainState.RUNNING:
        problem = view.hypervisor.agent_problem(view.domain)
        if problem is not None:
            yield stops(ErrorCode.GUEST_AGENT_SILENT, reason=problem)


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
    Check.FIRMWARE: firmware,
    Check.FILES_TO_SEND: files_to_send,
    Check.SPECIAL_DEVICES: special_devices,
    Check.INVARIANT_TSC: invariant_tsc,
    Check.NESTED_VIRTUALIZATION: nested_virtualization,
    Check.GUEST_AGENT: guest_agent,
    Check.SYNCHRONOUS_WRITES: synchronous_writes,
}
