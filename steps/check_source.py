"""CHECK_SOURCE: the domain and its disks as they are here, and everything that stands in the way on this host.

It changes nothing: the SSH way is tried by asking the destination's libvirt who it is, through the very tunnel
that the migration will use, and closed again.
"""

from __future__ import annotations

from constant import LIBVIRT_SOCKETS, DomainState, ImageFormat, Transport
from host import image
from host.domain_xml import DiskElement, DomainDescription, describe
from host.hypervisor import Hypervisor
from host.job_files import JobSockets, socket_directory
from host.process import tool_path
from host.ssh import Login, Tunnel, tunnel
from steps.context import StepContext, noting
from wire.errors import ErrorCode, MigrationError
from wire.records import CheckReport, DiskFacts, DomainFacts, Migration, Obstacle, StepArguments


def run(context: StepContext, arguments: StepArguments) -> CheckReport:
    """Find all obstacles on this host, and the facts of the domain if it can be looked at."""
    migration = arguments.migration
    obstacles: list[Obstacle] = []
    facts = None
    if migration.transport is Transport.SSH and not JobSockets.of(migration).fit(migration.domain):
        obstacles.append(_obstacle(context, migration, ErrorCode.DOMAIN_NAME_UNFIT))
    with noting(obstacles):
        tool_path("setfacl", context.host)
    with noting(obstacles), Hypervisor.open(context.host) as hypervisor:
        facts = _examine_domain(context, hypervisor, migration, obstacles)
        with noting(obstacles):
            _try_destination(context, hypervisor, migration)
    return CheckReport(obstacles=tuple(obstacles), facts=facts)


def _obstacle(context: StepContext, migration: Migration, code: ErrorCode, **facts: str) -> Obstacle:
    return Obstacle(code=code, facts={"host": context.host, "domain": migration.domain, **facts})


def _examine_domain(
    context: StepContext, hypervisor: Hypervisor, migration: Migration, obstacles: list[Obstacle],
) -> DomainFacts | None:
    """The domain's facts; what stands in the way is added to `obstacles`. None if it cannot be moved at all."""
    state = hypervisor.state(migration.domain)
    if state is not DomainState.RUNNING:
        code = ErrorCode.DOMAIN_MISSING if state is DomainState.ABSENT else ErrorCode.DOMAIN_NOT_RUNNING
        obstacles.append(_obstacle(context, migration, code, state=state.value))
        return None
    if hypervisor.busy(migration.domain):
        obstacles.append(_obstacle(context, migration, ErrorCode.DOMAIN_BUSY))
    if count := hypervisor.snapshots(migration.domain):
        obstacles.append(_obstacle(context, migration, ErrorCode.DOMAIN_HAS_SNAPSHOTS, count=str(count)))
    description = describe(hypervisor.document(migration.domain))
    obstacles.extend(
        _obstacle(context, migration, ErrorCode.DEVICE_UNSUPPORTED, device=device)
        for device in description.unsupported)
    disks = _examine_disks(context, hypervisor, migration, description, obstacles)
    return DomainFacts(
        uuid=description.uuid, virtualization=description.virtualization, architecture=description.architecture,
        machine=description.machine, memory=description.memory, autostart=hypervisor.autostart(migration.domain),
        disks=disks, kernel=description.kernel, initrd=description.initrd, networks=description.networks)


def _examine_disks(
    context: StepContext, hypervisor: Hypervisor, migration: Migration, description: DomainDescription,
    obstacles: list[Obstacle],
) -> tuple[DiskFacts, ...]:
    """The facts of the disks that move; obstacles for those that cannot, and for a disk argument that is not one."""
    if migration.disk is not None and migration.disk not in [disk.path for disk in description.disks]:
        paths = ", ".join(disk.path for disk in description.disks if disk.path) or "none"
        obstacles.append(_obstacle(
            context, migration, ErrorCode.DISK_NOT_OF_DOMAIN, path=migration.disk, disks=paths))
    inserted = [disk for disk in description.disks if disk.device == "disk" or disk.path is not None]
    movable = []
    for disk in inserted:
        reason = _why_not(disk, len(inserted))
        if reason is not None:
            obstacles.append(_obstacle(
                context, migration, ErrorCode.DISK_UNSUPPORTED, target=disk.target, reason=reason))
            continue
        with noting(obstacles):
            size = hypervisor.disk_size(migration.domain, disk.target)
            movable.append(image.examine(
                disk, ImageFormat(disk.format), size, context.host, migration.domain))
    if not inserted:
        obstacles.append(_obstacle(
            context, migration, ErrorCode.DISK_UNSUPPORTED, target="(none)", reason="the VM has no disk"))
    return tuple(movable)


def _why_not(disk: DiskElement, count: int) -> str | None:
    """Why a disk cannot be moved yet; None if it can."""
    reasons = (
        (disk.device != "disk", f"it is a {disk.device} with a medium in it"),
        (count > 1, f"the VM has {count} disks"),
        (disk.kind != "file" or not disk.path, f"its type is {disk.kind}, not file"),
        (disk.format not in [each.value for each in ImageFormat], f"its format is {disk.format}"),
        (disk.backed, "it has a backing image"),
        (disk.encrypted, "it is encrypted"),
        (disk.read_only, "it is read-only"),
        (disk.shareable, "it is shared with other VMs"),
    )
    return next((reason for applies, reason in reasons if applies), None)


def _try_destination(context: StepContext, hypervisor: Hypervisor, migration: Migration) -> None:
    """Ask the destination's libvirt for its host UUID through the tunnel. Raises MigrationError."""
    if migration.destination not in context.destinations:
        raise MigrationError(ErrorCode.DESTINATION_NOT_ALLOWED, {
            "host": context.host, "address": migration.destination, "path": str(context.destinations.path)})
    login = Login(context.host, migration.user, migration.destination)
    sockets = JobSockets.of(migration)
    remote = LIBVIRT_SOCKETS[migration.destination_daemon]
    with socket_directory(sockets.directory, (0, 0), [], context.host), \
            tunnel(login, {sockets.libvirt: remote}) as opened:
        if _remote_host_uuid(login, sockets, opened) == hypervisor.host_uuid():
            raise MigrationError(
                ErrorCode.SAME_LIBVIRT_HOST, {"host": context.host, "destination": migration.destination})


def _remote_host_uuid(login: Login, sockets: JobSockets, opened: Tunnel) -> str:
    try:
        with Hypervisor.open(login.destination, f"qemu+unix:///system?socket={sockets.libvirt}") as remote:
            return remote.host_uuid()
    except MigrationError as error:
        said = opened.messages().strip().splitlines()
        reason = said[-1] if said else error.facts.get("reason", "")
        raise MigrationError(ErrorCode.SSH_LIBVIRT_REFUSED, login.facts(reason)) from error
