"""CHECK_DESTINATION: given what CHECK_SOURCE found, everything that stands in the way on this host.

It changes nothing, and goes on after the first obstacle: the admin hears of all of them at once.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator

from constant import DomainState
from host.hypervisor import Hypervisor
from host.job_files import refuse_system_directory
from host.process import tool_path
from steps.context import StepContext, note_all, noting
from wire.errors import ErrorCode, MigrationError
from wire.records import CheckReport, DiskFacts, DomainFacts, Migration, Obstacle, StepArguments, libvirt_conf_path

_MIB = 1024 * 1024


def run(context: StepContext, arguments: StepArguments) -> CheckReport:
    """Find all obstacles on this host."""
    migration, facts = arguments.migration, arguments.known_facts()
    obstacles: list[Obstacle] = []
    for tool in ("qemu-img", "setfacl"):
        with noting(obstacles):
            tool_path(tool, context.host)
    with noting(obstacles), Hypervisor.open(context.host) as hypervisor:
        note_all(obstacles, _libvirt_obstacles(context.host, hypervisor, migration, facts))
    name_taken = any(obstacle.code is ErrorCode.DOMAIN_EXISTS for obstacle in obstacles)
    note_all(obstacles, _account_obstacles(context.host, migration, facts))
    for disk in facts.disks:
        with noting(obstacles):
            refuse_system_directory("Disk path", disk.path, context.host)
            note_all(obstacles, _image_obstacles(context.host, disk))
    with noting(obstacles):
        if migration.conf_path() != libvirt_conf_path(migration.domain):
            note_all(obstacles, _conf_file_obstacles(context.host, migration))
            refuse_system_directory("Conf file path", migration.conf_path(), context.host)
        elif not name_taken and os.path.lexists(migration.conf_path()):
            # libvirt writes this one itself, over a leftover that no domain owns.
            raise MigrationError(ErrorCode.PATH_TAKEN, {"host": context.host, "path": migration.conf_path()})
    return CheckReport(obstacles=tuple(obstacles))


def _libvirt_obstacles(
    host: str, hypervisor: Hypervisor, migration: Migration, facts: DomainFacts,
) -> Iterator[MigrationError]:
    """What libvirt here says against the domain."""
    same_uuid = hypervisor.name_of(facts.uuid)
    clashes = {"name": migration.domain, "UUID": same_uuid} if same_uuid != migration.domain else {
        "name": migration.domain}
    for what, name in clashes.items():
        state = hypervisor.state(name) if name else DomainState.ABSENT
        if name and state is not DomainState.ABSENT:
            yield MigrationError(
                ErrorCode.DOMAIN_EXISTS, {"host": host, "what": what, "domain": name, "state": state.value})
    problem = hypervisor.machine_problem(facts.virtualization, facts.architecture, facts.machine)
    if problem is not None:
        yield MigrationError(ErrorCode.MACHINE_UNSUPPORTED, {"host": host, "reason": problem})
    for network in facts.networks:
        kind, _, name = network.partition(":")
        there = hypervisor.network_active(name) if kind == "network" else _bridge_exists(name)
        if not there:
            what = "active libvirt network" if kind == "network" else "bridge"
            yield MigrationError(
                ErrorCode.NETWORK_MISSING, {"host": host, "what": what, "name": name, "domain": migration.domain})


def _bridge_exists(name: str) -> bool:
    # The name of a network device cannot hold a slash (dev_valid_name() in Linux), so none is looked for.
    return "/" not in name and os.path.isdir(f"/sys/class/net/{name}")


def _account_obstacles(host: str, migration: Migration, facts: DomainFacts) -> Iterator[MigrationError]:
    """The SSH user and the files that are expected to be here already."""
    try:
        pwd.getpwnam(migration.user)
    except KeyError:
        yield MigrationError(ErrorCode.USER_MISSING, {"host": host, "user": migration.user})
    for what, path in (("kernel", facts.kernel), ("initrd", facts.initrd)):
        if path is not None and not os.path.isfile(path):
            yield MigrationError(
                ErrorCode.FILE_MISSING, {"host": host, "path": path, "what": what, "domain": migration.domain})


def _new_file_obstacles(host: str, path: str) -> Iterator[MigrationError]:
    """What is against a new file at this path, whatever it will hold."""
    directory = os.path.dirname(path)
    if os.path.lexists(path):
        yield MigrationError(ErrorCode.PATH_TAKEN, {"host": host, "path": path})
    if not os.path.isdir(directory):
        yield MigrationError(
            ErrorCode.DIRECTORY_MISSING, {"host": host, "path": directory, "reason": "it does not exist"})
    elif os.statvfs(directory).f_flag & os.ST_RDONLY:
        yield MigrationError(
            ErrorCode.DIRECTORY_MISSING, {"host": host, "path": directory, "reason": "it is read-only"})


def _image_obstacles(host: str, disk: DiskFacts) -> Iterator[MigrationError]:
    yield from _new_file_obstacles(host, disk.path)
    directory = os.path.dirname(disk.path)
    if os.path.isdir(directory):
        file_system = os.statvfs(directory)
        free = file_system.f_bavail * file_system.f_frsize
        if free < disk.allocated:
            facts = {"free": str(free // _MIB), "needed": str(-(-disk.allocated // _MIB))}
            yield MigrationError(ErrorCode.SPACE_SHORT, {"host": host, "path": directory, **facts})


def _conf_file_obstacles(host: str, migration: Migration) -> Iterator[MigrationError]:
    """What is against a conf file that is not libvirt's own."""
    path = migration.conf_path()
    in_libvirt = os.path.dirname(path) == os.path.dirname(libvirt_conf_path(migration.domain))
    reasons = (
        (not path.endswith(".xml"), "its name must end in .xml"),
        (in_libvirt, f"in that directory libvirt keeps this VM as {migration.domain}.xml"),
    )
    for applies, reason in reasons:
        if applies:
            yield MigrationError(
                ErrorCode.PATH_NOT_ALLOWED, {"host": host, "what": "Conf file path", "path": path, "reason": reason})
    yield from _new_file_obstacles(host, path)
