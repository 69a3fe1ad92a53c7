"""Reads the XML in which libvirt tells what a host can do: pure functions from a document to an answer."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree  # the documents are libvirt's own, never out of a datagram


def _root(document: str) -> ElementTree.Element:
    return ElementTree.fromstring(document)  # noqa: S314 - from the host's own libvirt, or the peer's through SSH


def host_uuid(capabilities: str) -> str:
    """libvirt's UUID of the host."""
    return _root(capabilities).findtext("host/uuid", "")


def dac_ids(capabilities: str, virtualization: str) -> tuple[int, int]:
    """The user and group ids as which libvirt runs QEMU; 0, 0 if they do not say."""
    for model in _root(capabilities).findall("host/secmodel"):
        if model.findtext("model") == "dac":
            labels = {label.get("type"): label.text or "" for label in model.findall("baselabel")}
            return parse_dac_label(labels.get(virtualization, ""))
    return 0, 0


def parse_dac_label(label: str) -> tuple[int, int]:
    """The ids in a label such as `+64055:+64055`; 0, 0 for one that names no numbers."""
    user, _, group = label.partition(":")
    if user.lstrip("+").isdigit() and group.lstrip("+").isdigit():
        return int(user.lstrip("+")), int(group.lstrip("+"))
    return 0, 0


def security_models(capabilities: str) -> tuple[str, ...]:
    """What libvirt confines VMs with, file ownership included: dac, apparmor, selinux."""
    names = [model.findtext("model", "") for model in _root(capabilities).findall("host/secmodel")]
    return tuple(name for name in names if name not in ("", "none"))


def domain_types(capabilities: str, architecture: str) -> tuple[str, ...]:
    """The types of VM, kvm and qemu, that the host runs for that architecture."""
    found = []
    for arch in _root(capabilities).findall("guest/arch"):
        if arch.get("name") == architecture:
            found += [domain.get("type", "") for domain in arch.findall("domain")]
    return tuple(dict.fromkeys(found))


def nodes_and_cpus(capabilities: str) -> tuple[int, int]:
    """The highest number of a NUMA node and of a CPU of the host; -1 where libvirt does not say."""
    cells = _root(capabilities).findall("host/topology/cells/cell")
    cpus = [int(cpu.get("id", "-1")) for cell in cells for cpu in cell.findall("cpus/cpu")]
    return max((int(cell.get("id", "-1")) for cell in cells), default=-1), max(cpus, default=-1)


def host_model(domain_capabilities: str) -> str | None:
    """The CPU that libvirt calls host-model, as a `<cpu>` element; None where there is none."""
    mode = _root(domain_capabilities).find("cpu/mode[@name='host-model']")
    if mode is None or mode.get("supported") != "yes" or mode.find("model") is None:
        return None
    cpu = ElementTree.Element("cpu", {"mode": "custom", "match": "exact"})
    cpu.extend(mode)
    return ElementTree.tostring(cpu, encoding="unicode")


def port_groups(network: str) -> tuple[str, ...]:
    """The names of a libvirt network's port groups."""
    return tuple(group.get("name", "") for group in _root(network).findall("portgroup"))


def foreign_bridge(network: str) -> str | None:
    """The bridge of the host's that a libvirt network is only a name for; None where libvirt makes the bridge."""
    root = _root(network)
    bridge = root.find("bridge")
    mode = root.find("forward[@mode='bridge']")
    return bridge.get("name") if mode is not None and bridge is not None else None


def pool_directory(pool: str) -> str | None:
    """The directory that a storage pool is made of; None for another kind of pool."""
    root = _root(pool)
    return root.findtext("target/path") if root.get("type") in ("dir", "fs", "netfs") else None
