"""The ordinary migration, end to end on real hosts: what is true after success, whatever the options."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable

import pytest

from . import Host, Lab, WitnessReport
from .conftest import IMAGES, Admin, Guest, MakeGuest, job_leftovers, virsh

# The longest silence that counts as alive on a busy CI machine; the benchmarks measure it finer.
LIVE_GAP_MS = 3000
# A file system that holds the compressed image, and not what is in it.
SMALL_MIB = 60
PAGE = "/tmp/json.html"  # noqa: S108 - the host's own /tmp


def disk_paths(document: str) -> list[str | None]:
    """The disks that a domain's XML names."""
    sources = ElementTree.fromstring(document).findall("devices/disk/source")  # noqa: S314 - from our own libvirt
    return [source.get("file") for source in sources]


def assert_moved(guest: Guest) -> WitnessReport:
    """What holds after any successful run, seen from both hosts and from inside the guest."""
    node1, node2 = guest.lab.nodes
    before = guest.witness.wait_for_ticks(20)
    report = guest.witness.report()
    assert report.sound, report.to_text()
    assert report.host == "node2"
    assert report.last_tick >= before
    assert report.longest_gap_ms < LIVE_GAP_MS, report.to_text()
    assert guest.state(node2) == "running"
    assert "yes" in next(line for line in guest.on(node2, "dominfo").splitlines() if line.startswith("Persistent"))
    for kind in ([], ["--inactive"]):
        assert disk_paths(guest.on(node2, "dumpxml", *kind)) == [guest.disk]
    assert guest.state(node1) == "shut off"
    copies = list(node1.path(guest.disk).parent.glob(f"{guest.name}.*.moved-*"))
    assert len(copies) == 1
    assert job_leftovers(node1) == []
    assert job_leftovers(node2) == []
    return report


def test_the_originals_six_arguments_move_a_running_vm_through_a_closed_firewall(
    admin: Admin, make_guest: MakeGuest,
) -> None:
    guest = make_guest("six")
    conf_file = f"{IMAGES}/six.xml"
    run = admin.migrate(guest.name, guest.disk, conf_file)
    assert run.code == 0, run.text
    assert_moved(guest)
    node2 = admin.lab.host("node2")
    assert disk_paths(node2.path(conf_file).read_text()) == [guest.disk]
    assert node2.path(conf_file).stat().st_mode & 0o777 == 0o600
    assert f"six runs on {node2.address} now." in run.stdout
    assert "downtime" in run.stdout
    steps = [line.split()[0] for line in run.stderr.splitlines() if " ok " in line]
    assert steps == [
        "HELLO", "HELLO", "CHECK_SOURCE", "CHECK_DESTINATION", "CHECK_LINK", "PREPARE_DESTINATION",
        "MEASURE_LINK", "COPY_DISK_FILE", "COPY_DISK_FILE", "MEASURE_LINK", "LIVE_MIGRATION",
        "EXTRACT_CONFIGURE_FILE", "DEFINE_VIRTUAL_MACHINE", "FINISH", "FINISH"]


def test_a_raw_image_moves_and_stays_sparse(admin: Admin, make_guest: MakeGuest) -> None:
    guest = make_guest("raw", image_format="raw", disk_mib=1024)
    node1, node2 = admin.lab.nodes
    run = admin.migrate(guest.name)
    assert run.code == 0, run.text
    assert_moved(guest)
    copy = next(node1.path(IMAGES).glob("raw.img.moved-*"))
    source, destination = copy.stat(), node2.path(guest.disk).stat()
    assert destination.st_size == source.st_size
    assert destination.st_blocks <= source.st_blocks * 1.05


def compressed(path: str) -> Callable[[Host], None]:
    """An image that holds 64 MiB more, and all of it in compressed clusters."""
    def prepare(host: Host) -> None:
        host.run(["qemu-io", "-f", "qcow2", "-c", "write -P 7 256M 64M", path])
        host.run(["qemu-img", "convert", "-c", "-f", "qcow2", "-O", "qcow2", path, f"{path}.new"])
        host.run(["mv", f"{path}.new", path])

    return prepare


def test_an_image_with_compressed_clusters_needs_the_room_of_what_they_hold(
    admin: Admin, make_guest: MakeGuest,
) -> None:
    guest = make_guest("packed", data_mib=16, prepare=compressed(f"{IMAGES}/packed.qcow2"))
    node1, node2 = admin.lab.nodes
    packed = node1.path(guest.disk).stat().st_blocks * 512
    assert packed < SMALL_MIB << 20
    node2.run(["mount", "-t", "tmpfs", "-o", f"size={SMALL_MIB}m", "tmpfs", IMAGES])
    try:
        refused = admin.migrate(guest.name)
    finally:
        node2.run(["umount", IMAGES])
    assert refused.code == 3, refused.text
    assert f"{IMAGES} on {node2.address} has {SMALL_MIB} MiB free" in refused.stderr
    run = admin.migrate(guest.name)
    assert run.code == 0, run.text
    assert_moved(guest)
    assert node2.path(guest.disk).stat().st_blocks * 512 > packed + (60 << 20)


def test_the_result_as_json_and_the_page_about_it_say_what_libvirt_says(admin: Admin, make_guest: MakeGuest) -> None:
    guest = make_guest("json")
    boss = admin.lab.host("boss")
    run = admin.migrate(guest.name, "--json", "--progress", "none", "--copy-storage", "all", "--report", PAGE)
    result = run.result()
    assert (run.code, run.stderr) == (0, "")
    assert result["outcome"] == "moved"
    assert result["runs_on"] == admin.lab.host("node2").address
    assert result["disk_bytes"] >= 128 * 1024 * 1024
    statistics = guest.on(admin.lab.host("node1"), "domjobinfo", "--completed")
    downtime = next(line for line in statistics.splitlines() if line.startswith("Total downtime"))
    assert str(result["downtime_ms"]) in downtime
    page = boss.path(PAGE).read_text().removeprefix("<!DOCTYPE html>")
    text = " ".join(ElementTree.fromstring(page).itertext())  # noqa: S314 - written by this program
    assert f"{result['downtime_ms']} ms" in text
    assert all(node.full_name in text for node in admin.lab.nodes), text
    assert {step["command"] for step in result["steps"]} <= set(text.split())
    assert "vda" in text, "the rate of the disk"
    assert_moved(guest)


def test_tcp_transport_moves_without_the_tunnel_for_data(admin: Admin, make_guest: MakeGuest) -> None:
    guest = make_guest("tcp")
    for node in admin.lab.nodes:
        node.firewall(on=False)
    try:
        run = admin.migrate(guest.name, "--transport", "tcp")
    finally:
        for node in admin.lab.nodes:
            node.firewall()
    assert run.code == 0, run.text
    assert_moved(guest)


def test_autostart_moves_with_the_vm_and_leaves_the_stale_copy(admin: Admin, make_guest: MakeGuest) -> None:
    guest = make_guest("auto")
    node1, node2 = admin.lab.nodes
    guest.on(node1, "autostart")
    run = admin.migrate(guest.name)
    assert run.code == 0, run.text
    assert virsh(node2, "list", "--autostart", "--all", "--name").split() == [guest.name]
    assert virsh(node1, "list", "--autostart", "--all", "--name").split() == []


@pytest.mark.parametrize("qemu_user", ["root"])
def test_it_works_where_qemu_runs_as_another_user(lab: Lab, qemu_user: str) -> None:
    """The session's lab runs QEMU as Debian does; other hosts run it as root."""
    from . import GuestSpec, start_guest

    with Lab("tests-root", qemu_user=qemu_user) as other:
        other.down()
        other.up(firewall=True)
        other.provision()
        agents = [other.start_agent(node) for node in other.nodes]
        spec = GuestSpec("rooted", disk_bytes=512 * 1024 * 1024, data_bytes=64 * 1024 * 1024)
        guest = Guest(other, "rooted", f"{IMAGES}/rooted.qcow2", start_guest(other, other.host("node1"), spec))
        guest.witness.wait_for_ticks(20)
        run = Admin(other).migrate("rooted")
        assert run.code == 0, run.text
        assert_moved(guest)
        assert [agent.stop() for agent in agents] == [0, 0]
    assert other.leftovers() == []
