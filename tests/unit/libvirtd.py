"""A libvirt below Hypervisor: domains of which each has a definition and a state, kept as libvirt itself keeps them."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from typing import Any

import pytest

libvirt = pytest.importorskip(
    "libvirt", reason="libvirt-python is not installed (apt-get install python3-libvirt)", exc_type=ImportError)

from tests.unit.samples import FACTS  # noqa: E402 - nothing below is of use without libvirt
from wire.situation import MovedNote  # noqa: E402

_CAPABILITIES = """<capabilities><host><secmodel><model>dac</model>
<baselabel type='kvm'>+{uid}:+{gid}</baselabel></secmodel></host></capabilities>"""
OFF = (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN)
RUNS = (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_BOOTED)
PAUSED = (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_USER)


def error(code: int, message: str) -> Exception:
    """An error as libvirt raises it."""
    made: Exception = libvirt.libvirtError(message)
    made.err = (code, 0, message, 2, None, None, None, -1, -1)  # type: ignore[attr-defined]
    return made


def document(*disks: str, name: str = "VM1", uuid: str = FACTS.uuid, nvram: str = "", tpm: bool = False) -> str:
    """A domain with these disks, the first of which is vda."""
    devices = "".join(
        f"<disk type='block' device='disk'><source dev='{path}'/><target dev='vd{letter}'/></disk>"
        if path.startswith("/dev/") else
        f"<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{path}'/>"
        f"<target dev='vd{letter}'/></disk>" for letter, path in zip("abcdef", disks))
    devices += "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>" if tpm else ""
    firmware = f"<nvram>{nvram}</nvram>" if nvram else ""
    return (
        f"<domain type='kvm'><name>{name}</name><uuid>{uuid}</uuid><memory>1024</memory><os>"
        f"<type arch='x86_64' machine='pc'>hvm</type>{firmware}</os><devices>{devices}</devices></domain>")


@dataclass
class Domain:
    """One of its domains; the names are libvirt's."""

    site: Libvirtd
    text: str
    now: tuple[int, int] = OFF
    starts: bool = False
    persistent: bool = True
    job: int = libvirt.VIR_DOMAIN_JOB_NONE

    def name(self) -> str:
        """Its name."""
        return ElementTree.fromstring(self.text).findtext("name", "")  # noqa: S314 - a test's own

    def uuid(self) -> str:
        """Its UUID."""
        return ElementTree.fromstring(self.text).findtext("uuid", "")  # noqa: S314 - a test's own

    def XMLDesc(self, _flags: int) -> str:  # noqa: N802 - libvirt's name
        """Its definition."""
        return self.text

    def state(self) -> list[int]:
        """How it is, and why."""
        return list(self.now)

    def isPersistent(self) -> int:  # noqa: N802 - libvirt's name
        """Whether it stays when it is shut off."""
        return int(self.persistent)

    def isActive(self) -> int:  # noqa: N802 - libvirt's name
        """Whether a QEMU runs."""
        return int(self.now[0] != libvirt.VIR_DOMAIN_SHUTOFF)

    def autostart(self) -> int:
        """Whether it starts with the host."""
        return int(self.starts)

    def setAutostart(self, enabled: int) -> None:  # noqa: N802 - libvirt's name
        """Have it start with the host, or not."""
        self.starts = bool(enabled)

    def jobInfo(self) -> list[int]:  # noqa: N802 - libvirt's name
        """The job that runs on it."""
        return [self.job]

    def blockJobInfo(self, _target: str, _flags: int) -> None:  # noqa: N802 - libvirt's name
        """No mirror runs."""

    def metadata(self, kind: int, uri: str, flags: int) -> str:
        """What its definition says under that name."""
        assert (kind, flags) == (libvirt.VIR_DOMAIN_METADATA_ELEMENT, libvirt.VIR_DOMAIN_AFFECT_CONFIG)
        found = ElementTree.fromstring(self.text).find(f"metadata/{{{uri}}}moved")  # noqa: S314 - a test's own
        if found is None:
            raise error(libvirt.VIR_ERR_NO_DOMAIN_METADATA, "metadata not found")
        return ElementTree.tostring(found, "unicode")

    def setMetadata(self, _kind: int, text: str | None, _key: str, uri: str, flags: int) -> None:  # noqa: N802
        """Have it say that; None takes it out."""
        assert flags == libvirt.VIR_DOMAIN_AFFECT_CONFIG
        root = ElementTree.fromstring(self.text)  # noqa: S314 - a test's own
        for kept in root.findall("metadata"):
            root.remove(kept)
        if text is not None:
            said = ElementTree.fromstring(text)  # noqa: S314 - a test's own
            said.tag = f"{{{uri}}}{said.tag}"
            ElementTree.SubElement(root, "metadata").append(said)
        self.text = ElementTree.tostring(root, "unicode")

    def undefineFlags(self, flags: int) -> None:  # noqa: N802 - libvirt's name
        """Forget it. Without the flags libvirt refuses one with an NVRAM, or removes what belongs to it."""
        assert flags & libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM
        assert not self.isActive()
        self.site.domains.remove(self)

    def destroy(self) -> None:
        """End its QEMU."""
        self.now = OFF

    def resume(self) -> None:
        """Let it go on."""
        self.now = RUNS


@dataclass
class Libvirtd:
    """A host's libvirt, with the domains that it knows."""

    domains: list[Domain] = field(default_factory=list)
    owner: tuple[int, int] = (0, 0)
    opened: list[str] = field(default_factory=list)

    def put(self, patch: pytest.MonkeyPatch) -> Libvirtd:
        """Have it answer on this host."""
        def opened(uri: str) -> Libvirtd:
            self.opened.append(uri)
            return self

        patch.setattr(libvirt, "open", opened)
        return self

    def add(self, text: str, now: tuple[int, int] = OFF, *, note: MovedNote | None = None) -> Domain:
        """One domain more."""
        self.domains.append(Domain(self, text, now))
        if note is not None:
            said = f"<moved job='{note.job_id}' to='{note.destination}' at='{note.at}'/>"
            self.domains[-1].setMetadata(
                libvirt.VIR_DOMAIN_METADATA_ELEMENT, said, "vmmigration", "urn:vmmigration:moved",
                libvirt.VIR_DOMAIN_AFFECT_CONFIG)
        return self.domains[-1]

    def names(self) -> list[str]:
        """What domains there are."""
        return [each.name() for each in self.domains]

    # libvirt's names.

    def lookupByName(self, name: str) -> Domain:  # noqa: N802 - libvirt's name
        """The domain of that name."""
        for each in self.domains:
            if each.name() == name:
                return each
        raise error(libvirt.VIR_ERR_NO_DOMAIN, f"Domain not found: {name}")

    def lookupByUUIDString(self, uuid: str) -> Domain:  # noqa: N802 - libvirt's name
        """The domain with that UUID."""
        for each in self.domains:
            if each.uuid() == uuid:
                return each
        raise error(libvirt.VIR_ERR_NO_DOMAIN, f"Domain not found: {uuid}")

    def listAllDomains(self, _flags: int) -> list[Domain]:  # noqa: N802 - libvirt's name
        """All of them."""
        return list(self.domains)

    def defineXML(self, text: str) -> None:  # noqa: N802 - libvirt's name
        """Define a domain, or define it anew."""
        made = Domain(self, text)
        for each in self.domains:
            if each.name() == made.name():
                each.text, each.persistent = text, True
                return
        self.domains.append(made)

    def getCapabilities(self) -> str:  # noqa: N802 - libvirt's name
        """As which user QEMU runs."""
        return _CAPABILITIES.format(uid=self.owner[0], gid=self.owner[1])

    def getLibVersion(self) -> int:  # noqa: N802 - libvirt's name
        """Its version."""
        return 9_000_000

    def getVersion(self) -> int:  # noqa: N802 - libvirt's name
        """QEMU's."""
        return 7_002_022

    def close(self) -> Any:
        """There is nothing to close."""
