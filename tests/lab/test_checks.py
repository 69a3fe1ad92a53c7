"""Each obstacle that a dry run can meet on real hosts: it is named, nothing else is, and it comes with its remedy."""

from __future__ import annotations

import pytest

from . import obstacles as place
from .conftest import Admin
from .obstacles import DIRECTORY, IMAGE, MAC, NAME, NETWORK, VNC_PORT, Obstacle, Scene, domain_xml, placed, to_json

ALLOWED, REFUSED = 0, 3
KERNEL = "/var/lib/libvirt/lab-boot/vmlinuz"
HUGE_MIB = 1 << 20

SHUT_OFF = domain_xml(NAME)
SAME_UUID = domain_xml("same", identity="<uuid>{uuid}</uuid>")
SAME_MAC = domain_xml("idle", devices=f"<interface type='user'><mac address='{MAC}'/></interface>")
PAPER_DISK = (
    f"<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{DIRECTORY}/paper.qcow2'/>"
    "<target dev='vda' bus='virtio'/></disk>")
PAPER_HUGE = domain_xml("paper", memory=str(HUGE_MIB), devices=PAPER_DISK)
PAPER_HOLDS = domain_xml(
    "paper", vcpus=200, devices=PAPER_DISK + (
        "<filesystem type='mount'><source dir='/srv'/><target dir='share'/></filesystem>"
        "<hostdev mode='subsystem' type='usb'><source><vendor id='0x1234'/><product id='0xbeef'/></source></hostdev>"
        "<serial type='dev'><source path='/dev/ttyS99'/></serial>"))

OBSTACLES = [
    # Files on the destination.
    Obstacle("path taken", place.file_there(IMAGE), ("target-path",), sentences=(
        f"{IMAGE} exists already on {{target}}", "Nothing is overwritten: move that file away on {target}")),
    Obstacle("directory missing", place.moved_away(DIRECTORY), ("target-directory",), sentences=(
        f"{{target}} has no usable directory {DIRECTORY}: it does not exist", f"`install -d -m 711 {DIRECTORY}`")),
    Obstacle(
        "directory read-only",
        place.mounted(f"mount --bind {DIRECTORY}", "mount -o remount,ro,bind"), ("target-directory",),
        sentences=(f"{{target}} has no usable directory {DIRECTORY}: it is on a read-only file system",)),
    Obstacle("no space", place.mounted("mount -t tmpfs -o size=8m tmpfs"), ("disk-space",), sentences=(
        f"{DIRECTORY} on {{target}} has 8 MiB free,", "Make room there", "--skip-check disk-space")),
    Obstacle("no room to grow", place.mounted("mount -t tmpfs -o size=200m tmpfs"), warns=("virtual-size",), sentences=(
        f"{DIRECTORY} on {{target}} has 200 MiB free, the disks of VM {NAME} can grow to 512 MiB there",)),
    Obstacle("pool not started", place.inactive_pool, warns=("storage-pool",), sentences=(
        f"The storage pool images on {DIRECTORY} of {{target}} is not active", "`virsh pool-start images`")),
    Obstacle(
        "another kernel", place.together(place.moved_away(KERNEL), place.file_there(KERNEL)), ("boot-files",),
        sentences=(f"{KERNEL} exists already on {{target}}",)),
    Obstacle("serial log's directory missing", place.moved_away("/var/log/libvirt/qemu"), ("serial-ports",), sentences=(
        "{target} has no usable directory /var/log/libvirt/qemu: a serial port writes into it",)),
    Obstacle("conf file in a system directory", place.nothing, ("conf-file",), options=(IMAGE, "/etc/cron.d/it.xml"),
             sentences=("Conf file path /etc/cron.d/it.xml cannot be used on {target}", "Choose another")),
    Obstacle("libvirt's file is left", place.file_there(f"/etc/libvirt/qemu/{NAME}.xml"), ("vm-name",), sentences=(
        f"/etc/libvirt/qemu/{NAME}.xml exists already on {{target}}",)),
    # Its neighbours there.
    Obstacle("name taken", place.domain_there(SHUT_OFF, NAME), ("vm-name",), sentences=(
        f"{{target}} has a VM with the same name already: {NAME} (shut off)", f"`virsh undefine {NAME} --nvram`")),
    Obstacle("UUID taken", place.domain_there(SAME_UUID, "same"), ("vm-uuid",), sentences=(
        "{target} has a VM with the same UUID already: same (shut off)", "`virsh undefine same --nvram`")),
    Obstacle("MAC address taken", place.running_neighbour, ("mac-addresses",), sentences=(
        f"VM other (paused) on {{target}} has the MAC address {MAC} of VM {NAME}", "Give one of them another")),
    Obstacle("MAC address of one shut off", place.domain_there(SAME_MAC, "idle"), warns=("mac-addresses",), sentences=(
        f"VM idle (shut off) on {{target}} has the MAC address {MAC}",)),
    Obstacle("bridge missing", place.bridge_missing, ("networks",), sentences=(
        f"{{target}} has no bridge br-lab, to which VM {NAME} is connected", "Set it up on {target}")),
    Obstacle("bridge down", place.bridge_down, warns=("networks",), sentences=(
        "The bridge br-lab on {target} is down", "`ip link set br-lab up`")),
    Obstacle("network missing", place.network_missing, ("networks",), sentences=(
        f"{{target}} has no libvirt network {NETWORK}", "Define it (`virsh net-define`) on {target}")),
    Obstacle("network inactive", place.network_inactive, ("networks",), sentences=(
        f"{{target}} has no active libvirt network {NETWORK}", f"`virsh net-start {NETWORK}`")),
    Obstacle("display's port taken", place.port_taken, ("graphics",), sentences=(
        f"The fixed vnc port {VNC_PORT} of VM {NAME} is in use on {{target}}", "ss -ltnp")),
    # The way there.
    Obstacle("host key unknown", place.known_hosts, ("ssh",), sentences=(
        "root on {source} does not know the SSH host key of {target}", "compare the fingerprint")),
    Obstacle("host key changed", place.other_host_key, ("ssh",), sentences=(
        "The SSH host key of {target} is not the one that root on {source} knows", "`ssh-keygen -R {target}`")),
    Obstacle("login refused", place.key_removed, ("ssh",), sentences=(
        "{target} does not let root of {source} in as kvm", "ssh-copy-id kvm@{target}")),
    Obstacle("user missing", place.nothing, ("ssh-user",), user="nobody-here", sentences=(
        "{target} has no user nobody-here", "`adduser --ingroup users nobody-here`")),
    Obstacle("user not in group libvirt", place.not_in_group, ("ssh-user",), sentences=(
        "kvm on {target} may not use libvirt", "`adduser kvm libvirt`")),
    Obstacle("sshd stopped", place.sshd_stopped, ("ssh",), sentences=(
        "{source} cannot reach SSH on {target}", "Check sshd on {target}")),
    Obstacle("libvirtd stopped", place.libvirtd_stopped, ("libvirt",), sentences=(
        "libvirt on {target} does not answer", "`systemctl start libvirtd`")),
    Obstacle("destination not allowed", place.not_allowed, ("allowed-destination",), sentences=(
        "{source} may not migrate to {target}: it is not in its /etc/vmmigration/AgentIPAddr.txt",
        "Add the line `{target}` to that file on {source} and send its agent SIGHUP")),
    Obstacle("migration ports closed", place.nothing, ("migration-ports",), options=("--transport", "tcp"), sentences=(
        "{source} cannot reach TCP port", "Let TCP 49152 to 49215 in on {target}, or use `--transport ssh`")),
    Obstacle("slow link", place.slow_link, warns=("disk-write-rate",), perhaps=("dirty-rate",), sentences=(
        "MiB/s of disk, the link to {target} carries", "Move it at a quieter hour")),
    # The VM.
    Obstacle("VM missing", place.nothing, ("domain",), domain="nobody", sentences=(
        "There is no VM nobody on {source}", "`virsh list --all` on {source}")),
    Obstacle("a map of nothing", place.nothing, ("maps",), options=("--disk-map", "vdz=/srv/x.img"), sentences=(
        f"Nothing of VM {NAME} on {{source}} is what `--disk-map vdz=/srv/x.img` names", f"It has {IMAGE}")),
    Obstacle("two files at one path", place.nothing, ("target-path",), options=("--disk-map", f"vda={KERNEL}2",
             "--disk-map", f"{KERNEL}={KERNEL}2"), sentences=(f"Two files of VM {NAME} would both become {KERNEL}2",)),
    Obstacle("pool missing", place.nothing, ("storage-pool",), options=("--pool", "nowhere"), sentences=(
        "{target} has no storage pool nowhere that can take images", "`virsh pool-list --all`")),
    Obstacle("no block device", place.nothing, ("target-path",), options=("--disk-map", "vda=/dev/null"), sentences=(
        "The block device /dev/null on {target} cannot take disk vda", "it is not a block device")),
    Obstacle("no guest agent", place.nothing, ("guest-agent",), options=("--trim",), sentences=(
        f"The guest agent of VM {NAME} on {{source}} does not answer", "leave `--trim` out")),
    Obstacle("VM busy", place.block_job, ("domain-job",), sentences=(
        f"VM {NAME} on {{source}} is busy with another job", "Wait for it or end it")),
    Obstacle("snapshot", place.snapshot_there, ("snapshots",), sentences=(
        f"VM {NAME} on {{source}} has 1 snapshot(s)", f"`virsh snapshot-delete {NAME} NAME`")),
    Obstacle(
        "another medium", place.together(place.medium_inserted, place.file_there(place.ISO)), ("removable-media",),
        sentences=(f"{place.ISO} exists already on {{target}}",)),
    Obstacle("wrong disk argument", place.nothing, ("disk-argument",), options=("/srv/other.qcow2",), sentences=(
        f"/srv/other.qcow2 is not a disk of VM {NAME}", "leave the disk argument out")),
    Obstacle(
        "more memory than there is", place.paper_domain(PAPER_HUGE), domain="paper", warns=("domain-state", "memory"),
        sentences=(f"VM paper needs {HUGE_MIB + 64} MiB", "Shut something down there", "its disks cross as files")),
    Obstacle(
        "what a VM holds of its host", place.paper_domain(PAPER_HOLDS), domain="paper", stops=(
            "shared-folders", "host-devices", "serial-ports"), warns=("cpus", "domain-state"), sentences=(
                "VM paper has 200 virtual CPUs", "{target} lacks /dev/ttyS99", "the shared folder /srv",
                "`virsh detach-device paper FILE --live`")),
    Obstacle(
        "three at once", place.together(place.file_there(IMAGE), place.bridge_missing, place.key_removed),
        ("target-path", "networks", "ssh"), sentences=(
            f"{IMAGE} exists already", "has no bridge br-lab", "does not let root of {source} in")),
]


@pytest.mark.parametrize("obstacle", OBSTACLES, ids=lambda obstacle: obstacle.name)
def test_an_obstacle_is_named_with_its_remedy_and_nothing_else_is(scene: Scene, obstacle: Obstacle) -> None:
    with placed(obstacle.place, scene):
        said = scene.dry_run(*obstacle.options, user=obstacle.user, domain=obstacle.domain)
    assert said.wrong() - {(name, "warns") for name in obstacle.perhaps} == obstacle.wrong, to_json(said)
    assert said.run.code == (REFUSED if obstacle.stops else ALLOWED), said.run.text
    assert said.result["would_start"] is not bool(obstacle.stops)
    assert "Traceback" not in said.run.stderr
    for sentence in obstacle.sentences:
        expected = sentence.replace("{source}", scene.source.address).replace("{target}", scene.target.address)
        assert expected in said.run.stderr, said.run.stderr
    for finding in said.result["findings"]:
        if finding["severity"] != "fine":
            assert f"{finding['message']} [{finding['code']}]\n  {finding['hint']}\n" in said.run.stderr


def test_between_two_hosts_that_are_in_order_nothing_stops_and_nothing_warns(scene: Scene) -> None:
    # The last of the obstacles is gone as well, so this also holds of how they are taken away.
    said = scene.dry_run()
    assert said.wrong() == set(), to_json(said)
    assert (said.run.code, said.result["would_start"], said.result["outcome"]) == (ALLOWED, True, "nothing changed")
    assert [step["command"] for step in said.result["plan"]["steps"]] == [
        "PREPARE_DESTINATION", "COPY_DISK_FILE", "COPY_DISK_FILE", "LIVE_MIGRATION", "EXTRACT_CONFIGURE_FILE",
        "DEFINE_VIRTUAL_MACHINE",
        "FINISH", "FINISH"]


@pytest.mark.parametrize("here", [place.medium_inserted, place.paused, place.moved_away(KERNEL)])
def test_a_medium_or_kernel_that_the_destination_lacks_and_a_pause_are_no_obstacles(
    scene: Scene, here: place.Place,
) -> None:
    with placed(here, scene):
        said = scene.dry_run()
    assert said.wrong() == set(), to_json(said)


def test_the_text_for_a_person_counts_what_is_in_the_way_and_says_that_a_run_would_not_start(scene: Scene) -> None:
    with placed(place.together(place.file_there(IMAGE), place.network_inactive, place.known_hosts), scene):
        run = Admin(scene.lab).run(scene.words("--dry-run"))
    assert run.code == REFUSED, run.text
    assert run.stdout == "A real run would not start: 3 things in the way.\n"
    assert "A real run would start." not in run.text
    assert f"{IMAGE} exists already" in run.stderr
    assert f"no active libvirt network {NETWORK}" in run.stderr
    assert "does not know the SSH host key" in run.stderr
