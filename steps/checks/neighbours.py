"""Checks on the destination about what the domain will live among: networks, other VMs, displays, secrets, users."""

from __future__ import annotations

import grp
import ipaddress
import os
import pwd
import socket
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from constant import LIBVIRT_SOCKETS, DomainState
from host.stale_copy import StaleCopy, leftovers
from steps.checks.look import Looks, Saw, fine, stops, warns
from steps.checks.machine import DestinationView
from wire.errors import ErrorCode
from wire.facts import InterfaceFacts
from wire.findings import Check
from wire.phrase import Phrase, joined
from wire.records import libvirt_conf_path

_NETWORK_DEVICES = Path("/sys/class/net")
# linux/if.h: the administrator has switched it on.
_IFF_UP = 1
_SOCKET_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
# net/tcp_states.h in these (proc(5)): a socket that listens.
_LISTENING = "0A"


def networks(view: DestinationView) -> Iterator[Saw]:
    """What each interface is connected to is here, and up."""
    # Several interfaces of one network are looked at once.
    connected = dict.fromkeys(replace(_there(view, each), mac="") for each in view.facts.interfaces)
    for interface in connected:
        if interface.kind == "network":
            yield from _libvirt_network(view, interface)
        elif interface.kind in ("bridge", "direct"):
            what = Phrase("bridge" if interface.kind == "bridge" else "network device")
            yield from _network_device(what, interface.source)
    named = dict.fromkeys(f"{each.kind} {each.source}".rstrip() for each in connected)
    yield fine(networks=joined(named) or Phrase("none"))


def _there(view: DestinationView, interface: InterfaceFacts) -> InterfaceFacts:
    """The interface as it will be here."""
    for each in view.migration.network_maps:
        if (each.here.kind, each.here.name) == (interface.kind, interface.source):
            portgroup = interface.portgroup if each.there.kind == interface.kind else None
            return replace(interface, kind=each.there.kind, source=each.there.name, portgroup=portgroup)
    return interface


def _libvirt_network(view: DestinationView, interface: InterfaceFacts) -> Iterator[Saw]:
    found = view.hypervisor.network(interface.source)
    name = interface.source
    if found is None:
        remedy = Phrase("Define it (`virsh net-define`)")
        yield stops(ErrorCode.NETWORK_MISSING, what=Phrase("libvirt network"), name=name, remedy=remedy)
        return
    if not found.active:
        remedy = Phrase("Start it (`virsh net-start {name}`)", {"name": name})
        yield stops(ErrorCode.NETWORK_MISSING, what=Phrase("active libvirt network"), name=name, remedy=remedy)
    if interface.portgroup is not None and interface.portgroup not in found.port_groups:
        what = Phrase("port group {group} in the libvirt network", {"group": interface.portgroup})
        remedy = Phrase("Add it (`virsh net-edit {name}`)", {"name": name})
        yield stops(ErrorCode.NETWORK_MISSING, what=what, name=name, remedy=remedy)
    if found.bridge is not None:
        # libvirt starts such a network whether or not its bridge is there.
        yield from _network_device(Phrase("bridge"), found.bridge)


def _network_device(what: Phrase, name: str) -> Iterator[Saw]:
    # The name of a network device cannot hold a slash (dev_valid_name() in Linux), so none is looked for.
    device = _NETWORK_DEVICES / name
    if not name or "/" in name or not device.is_dir():
        yield stops(ErrorCode.NETWORK_MISSING, what=what, name=name, remedy=Phrase("Set it up"))
    elif not int((device / "flags").read_text(), 16) & _IFF_UP:
        yield warns(ErrorCode.NETWORK_DOWN, what=what, name=name)


def vm_name(view: DestinationView) -> Iterator[Saw]:
    """No VM here has the name, and no file that libvirt would write over."""
    domain = view.migration.name_there
    found = view.hypervisor.view(domain)
    own = libvirt_conf_path(domain)
    if found.moved is not None and found.gone and view.hypervisor.name_of(view.facts.uuid) == domain:
        # The copy's own disks: the VM may come back to other paths.
        kept = leftovers(StaleCopy.of(view.hypervisor, domain, found.moved.job_id, view.host).files)
        yield warns(ErrorCode.STALE_COPY_REPLACED, domain=domain, job=found.moved.job_id,
                    paths=joined(kept) or Phrase("none"))
    elif found.state is not DomainState.ABSENT:
        yield stops(ErrorCode.DOMAIN_EXISTS, what=Phrase("name"), domain=domain, state=Phrase(found.state.value))
    elif os.path.lexists(own):
        # Also where the admin wants the XML elsewhere: libvirt writes this one by itself.
        yield stops(ErrorCode.PATH_TAKEN, path=own)


def vm_uuid(view: DestinationView) -> Iterator[Saw]:
    """No VM here has the UUID under another name."""
    name = view.hypervisor.name_of(view.facts.uuid)
    if name is not None and name != view.migration.name_there:
        state = view.hypervisor.state(name)
        yield stops(ErrorCode.DOMAIN_EXISTS, what=Phrase("UUID"), domain=name, state=Phrase(state.value))


def mac_addresses(view: DestinationView) -> Iterator[Saw]:
    """No other VM here has one of the domain's MAC addresses; one that is shut off takes no traffic yet."""
    ours = {interface.mac for interface in view.facts.interfaces if interface.mac}
    for mac, name, state in view.hypervisor.macs():
        if mac in ours and name != view.migration.name_there:
            seen = {"other": name, "state": Phrase(state.value), "mac": mac}
            shut_off = state is DomainState.SHUT_OFF
            yield warns(ErrorCode.MAC_TAKEN, **seen) if shut_off else stops(ErrorCode.MAC_TAKEN, **seen)


def graphics(view: DestinationView) -> Iterator[Saw]:
    """A display with a fixed port or address finds both free here."""
    listening = listening_ports()
    for display in view.facts.graphics:
        if display.port in listening:
            yield stops(ErrorCode.GRAPHICS_PORT_TAKEN, kind=display.kind, port=str(display.port))
        if display.address is not None and not is_own_address(display.address):
            yield stops(ErrorCode.GRAPHICS_ADDRESS_FOREIGN, kind=display.kind, address=display.address)


def listening_ports() -> set[int]:
    """The TCP ports on which something listens here."""
    found = set()
    for table in _SOCKET_TABLES:
        if table.exists():
            for line in table.read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTENING:
                    found.add(int(fields[1].rpartition(":")[2], 16))
    return found


def is_own_address(text: str) -> bool:
    """Whether a server on this host can listen on that address; a name is left to libvirt."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return True
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            # Any port: only the address is asked about, and nothing listens.
            probe.bind((text, 0))
        except OSError:
            return False
    return True


def secrets(view: DestinationView) -> Iterator[Saw]:
    """The libvirt secrets of its disks and TPM are here."""
    for secret in view.facts.secrets:
        if not view.hypervisor.has_secret(secret):
            yield stops(ErrorCode.SECRET_MISSING, secret=secret)


def storage_pool(view: DestinationView) -> Iterator[Saw]:
    """The pool that the admin named is here; one on the images' directory shows them if it is active."""
    wanted = view.migration.pool
    if wanted is not None and view.migration.directory is None:
        yield stops(ErrorCode.POOL_MISSING, pool=wanted, reason=Phrase(
            "there is no active one of that name on a directory"))
    found = []
    placement = view.migration.placement(view.facts)
    for directory in dict.fromkeys(os.path.dirname(placement.path(disk.path)) for disk in view.facts.disks):
        for pool, active in view.hypervisor.pools_on(directory):
            found.append(pool)
            if not active:
                yield warns(ErrorCode.POOL_NOT_ACTIVE, pool=pool, path=directory)
    yield fine(pools=joined(found) or Phrase("none, and none is needed"))


def ssh_user(view: DestinationView) -> Iterator[Saw]:
    """The user that the source logs in as is here, and may use libvirt's socket."""
    user, path = view.migration.user, LIBVIRT_SOCKETS[view.migration.destination_daemon]
    try:
        account = pwd.getpwnam(user)
    except KeyError:
        yield stops(ErrorCode.USER_MISSING, user=user)
        return
    try:
        status = os.stat(path)
        group = grp.getgrgid(status.st_gid).gr_name
    except (OSError, KeyError):
        # That libvirt does not answer, or is asked another way, is seen by those who ask it.
        yield fine(user=user)
        return
    groups = os.getgrouplist(user, account.pw_gid)
    open_to_all = status.st_mode & (stat.S_IROTH | stat.S_IWOTH) == stat.S_IROTH | stat.S_IWOTH
    if account.pw_uid != 0 and not open_to_all and status.st_gid not in groups:
        yield stops(ErrorCode.USER_NOT_IN_GROUP, user=user, path=path, group=group)
    yield fine(user=user)


LOOKS: Looks[DestinationView] = {
    Check.NETWORKS: networks,
    Check.VM_NAME: vm_name,
    Check.VM_UUID: vm_uuid,
    Check.MAC_ADDRESSES: mac_addresses,
    Check.GRAPHICS: graphics,
    Check.SECRETS: secrets,
    Check.STORAGE_POOL: storage_pool,
    Check.SSH_USER: ssh_user,
}
