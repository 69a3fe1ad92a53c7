"""What the tests of the checks look with: a libvirt that says what a test wants, and what came of a table of checks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import pytest

pytest.importorskip("libvirt", reason="libvirt-python is not installed (apt-get install python3-libvirt)",
                    exc_type=ImportError)

from constant import DomainState, Severity
from host.hypervisor import Hypervisor, Network
from steps.checks.look import Looks, look
from tests.unit.samples import DESTINATION, FACTS, MIGRATION
from wire.errors import ErrorCode
from wire.facts import DomainFacts
from wire.findings import Check, Finding
from wire.situation import DomainView, MovedNote

View = TypeVar("View")
CAPABILITIES = """<capabilities><host><uuid>there</uuid>
<topology><cells num='1'><cell id='0'><cpus><cpu id='0'/><cpu id='3'/></cpus></cell></cells></topology>
<secmodel><model>apparmor</model></secmodel><secmodel><model>dac</model></secmodel></host>
<guest><arch name='x86_64'><domain type='qemu'/><domain type='kvm'/></arch></guest></capabilities>"""


@dataclass
class FakeHypervisor:
    """Answers what the checks ask of libvirt; everything is in order unless a test says otherwise."""

    documents: Mapping[bool, str] = field(default_factory=dict)
    """The domain's XML, by whether it is the inactive one."""
    states: Mapping[str, DomainState] = field(default_factory=dict)
    same_uuid: str | None = None
    moved: MovedNote | None = None
    jobs: bool = False
    snapshot_count: int = 0
    checkpoint_count: int = 0
    libvirt: int = 9_000_000
    qemu: int = 7_002_022
    ids: tuple[int, int] = (64055, 64055)
    machine: str | None = None
    cpu: str | None = None
    model: str | None = "<cpu><model>EPYC</model></cpu>"
    networks: Mapping[str, Network] = field(default_factory=dict)
    pools: list[tuple[str, bool]] = field(default_factory=list)
    taken_macs: list[tuple[str, str, DomainState]] = field(default_factory=list)
    secrets: tuple[str, ...] = ()
    uuid: str = "there"
    types: str = CAPABILITIES
    asked: list[str] = field(default_factory=list)
    paused_by: str | None = None
    saved: bool = False
    agent: str | None = None

    def hypervisor(self) -> Hypervisor:
        """The same, as the checks take it."""
        return cast(Hypervisor, self)

    def document(self, _domain: str, *, inactive: bool = False) -> str:
        """The domain's XML."""
        return self.documents.get(inactive, self.documents.get(False, "<domain/>"))

    def state(self, domain: str) -> DomainState:
        """How the domain is here."""
        return self.states.get(domain, DomainState.ABSENT)

    def view(self, domain: str) -> DomainView:
        """The same, with what it says of itself."""
        return DomainView(state=self.state(domain), moved=self.moved)

    def moved_note(self, _domain: str) -> MovedNote | None:
        """What it says of having moved away."""
        return self.moved

    def pause_problem(self, _domain: str) -> str | None:
        """Why it is not simply paused."""
        return self.paused_by

    def has_managed_save(self, _domain: str) -> bool:
        """Whether its memory lies in a file."""
        return self.saved

    def agent_problem(self, _domain: str) -> str | None:
        """Why the guest's agent does not answer."""
        return self.agent

    def resident_memory(self, _domain: str) -> int:
        """What QEMU holds."""
        return 0

    def autostart(self, _domain: str) -> bool:
        """Whether it starts with the host."""
        return False

    def migratable_document(self, domain: str) -> str:
        """The domain's XML for another host."""
        return self.document(domain)

    def name_of(self, _uuid: str) -> str | None:
        """Who has that UUID."""
        return self.same_uuid

    def busy(self, _domain: str) -> bool:
        """Whether a job is at work."""
        return self.jobs

    def snapshots(self, _domain: str) -> int:
        """How many there are."""
        return self.snapshot_count

    def checkpoints(self, _domain: str) -> int:
        """How many there are."""
        return self.checkpoint_count

    def version(self) -> int:
        """libvirt's."""
        return self.libvirt

    def qemu_version(self) -> int:
        """QEMU's."""
        return self.qemu

    def qemu_ids(self, _virtualization: str) -> tuple[int, int]:
        """As which user QEMU runs."""
        return self.ids

    def machine_problem(self, *_machine: str) -> str | None:
        """Why the machine cannot run."""
        return self.machine

    def host_model(self, _domain: object) -> str | None:
        """The CPU that this host would give at best."""
        return self.model

    def cpu_problem(self, _domain: object, cpu: str) -> str | None:
        """Why that CPU cannot run here."""
        self.asked.append(cpu)
        return self.cpu

    def network(self, name: str) -> Network | None:
        """The network of that name."""
        return self.networks.get(name)

    def pools_on(self, _directory: str) -> list[tuple[str, bool]]:
        """The pools there."""
        return self.pools

    def macs(self) -> list[tuple[str, str, DomainState]]:
        """All addresses that are taken."""
        return self.taken_macs

    def has_secret(self, secret: str) -> bool:
        """Whether it is here."""
        return secret in self.secrets

    def host_uuid(self) -> str:
        """libvirt's UUID of the host."""
        return self.uuid

    def host_capabilities(self) -> str:
        """What the host can do."""
        return self.types


def facts(**changes: Any) -> DomainFacts:
    """The facts of an ordinary domain, with changes."""
    return dataclasses.replace(FACTS, **changes)


def found(looks: Looks[View], view: View, check: Check) -> list[Finding]:
    """What one check of a table saw, in the findings of all."""
    known = {"host": DESTINATION, "domain": MIGRATION.domain}
    return [each for each in look({check: looks[check]}, view, known) if each.check is check]


def said(looks: Looks[View], view: View, check: Check) -> list[tuple[Severity, ErrorCode | None]]:
    """The same as severities and codes; every sentence must be filled."""
    findings = found(looks, view, check)
    for finding in findings:
        assert "?" not in finding.message + finding.hint, finding.message + finding.hint
    return [(finding.severity, finding.code) for finding in findings]


FINE = [(Severity.FINE, None)]


def stopping(*codes: ErrorCode) -> list[tuple[Severity, ErrorCode]]:
    """What said() gives for these."""
    return [(Severity.STOPS, code) for code in codes]


def warning(*codes: ErrorCode) -> list[tuple[Severity, ErrorCode]]:
    """What said() gives for these."""
    return [(Severity.WARNS, code) for code in codes]
