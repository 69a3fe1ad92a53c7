"""What stays behind on the source: it cannot be started by mistake, can be brought back, and is no obstacle later."""

from __future__ import annotations

import json
import uuid
import xml.etree.ElementTree as ElementTree

import pytest

from . import Host
from .conftest import IMAGES, Admin, Guest, MakeGuest, job_leftovers, virsh
from .test_every_vm import document


def moved(admin: Admin, guest: Guest, *options: str, back: bool = False) -> str:
    """Move the guest and return the job's id."""
    run = admin.migrate(guest.name, "--json", *options, back=back)
    assert run.code == 0, run.text
    return str(run.result()["job_id"])


def start(host: Host, guest: Guest) -> str:
    """What libvirt says against starting the guest on that host; empty if it starts."""
    return host.run(["virsh", "-q", "-c", "qemu:///system", "start", guest.name], check=False).stderr


def note(host: Host, guest: Guest) -> dict[str, str]:
    """What the definition on that host says of having moved away."""
    words = ["virsh", "-q", "-c", "qemu:///system", "metadata", guest.name, "urn:vmmigration:moved", "--config"]
    said = host.run(words, check=False).stdout
    return dict(ElementTree.fromstring(said).attrib) if said.strip() else {}  # noqa: S314 - from our own libvirt


def test_the_copy_that_stays_says_where_the_vm_went_and_cannot_be_started(
    admin: Admin, make_guest: MakeGuest,
) -> None:
    guest = make_guest("stays")
    node1, node2 = admin.lab.nodes
    guest.on(node1, "autostart")
    job_id = moved(admin, guest)
    assert guest.state(node1) == "shut off"
    assert virsh(node1, "list", "--autostart", "--all", "--name").split() == []
    said = note(node1, guest)
    assert (said["job"], said["to"], int(said["at"]) > 0) == (job_id, node2.address, True)
    assert "No such file or directory" in start(node1, guest)
    assert not node1.path(guest.disk).exists()
    assert node1.path(f"{guest.disk}.moved-{job_id}").exists()
    assert note(node2, guest) == {}
    again = admin.migrate(guest.name)
    assert again.code == 3, again.text
    assert f"is only the copy that stayed behind when job {job_id} moved it to {node2.address}" in again.stderr
    assert again.stderr.count("vmmigration.py: ") == 1


def test_a_vm_goes_there_and_back_over_its_kept_copy_and_there_again(admin: Admin, make_guest: MakeGuest) -> None:
    guest = make_guest("pendulum")
    node1, node2 = admin.lab.nodes
    first = moved(admin, guest)
    second = moved(admin, guest, back=True)
    assert (guest.state(node1), guest.state(node2)) == ("running", "shut off")
    assert note(node1, guest) == {}
    assert note(node2, guest)["job"] == second
    third = moved(admin, guest)
    guest.witness.wait_for_ticks(20)
    report = guest.witness.report()
    assert report.sound, report.to_text()
    assert (report.host, guest.state(node1)) == ("node2", "shut off")
    assert note(node1, guest)["job"] == third
    # Nothing was deleted that the jobs did not make.
    for node, job_id in ((node1, first), (node2, second), (node1, third)):
        assert node.path(f"{guest.disk}.moved-{job_id}").exists()
    assert job_leftovers(node1) == job_leftovers(node2) == []


def test_a_move_back_that_fails_leaves_the_kept_copy_as_it_was(admin: Admin, make_guest: MakeGuest) -> None:
    guest = make_guest("stayed")
    node1, node2 = admin.lab.nodes
    job_id = moved(admin, guest)
    before = virsh(node1, "dumpxml", guest.name)
    failed = admin.migrate(guest.name, "--bandwidth", "10", "--timeout", "2", back=True)
    assert failed.code == 5, failed.text
    assert (guest.state(node1), guest.state(node2)) == ("shut off", "running")
    assert virsh(node1, "dumpxml", guest.name) == before
    assert node1.path(f"{guest.disk}.moved-{job_id}").exists()
    assert not node1.path(guest.disk).exists()
    assert job_leftovers(node1) == job_leftovers(node2) == []
    restored = admin.command("restore-source", job_id)
    assert restored.code == 3, restored.text
    assert f"VM stayed is running on {node2.address}: then there would be two of it" in restored.stderr


def test_restore_source_brings_the_copy_back_without_what_was_written_since(
    admin: Admin, make_guest: MakeGuest,
) -> None:
    guest = make_guest("goback")
    node1, node2 = admin.lab.nodes
    job_id = moved(admin, guest)
    guest.on(node2, "destroy")
    restored = admin.command("restore-source", job_id)
    assert restored.code == 0, restored.text
    assert f"has written since it moved is on {node2.address} alone" in restored.stderr
    assert "virsh start goback" in restored.stdout
    assert note(node1, guest) == {}
    assert start(node1, guest) == ""
    guest.witness.wait_for_ticks(20)
    again = admin.command("restore-source", job_id)
    assert again.code == 3, again.text


def test_restore_source_does_not_guess_where_the_destination_is_silent(
    admin: Admin, make_guest: MakeGuest,
) -> None:
    guest = make_guest("dead")
    node1, node2 = admin.lab.nodes
    job_id = moved(admin, guest)
    node2.link(up=False)
    try:
        refused = admin.command("restore-source", job_id)
        assert refused.code == 4, refused.text
        assert "No such file or directory" in start(node1, guest)
        allowed = admin.command("restore-source", job_id, "--without-destination", "--json")
        assert allowed.code == 0, allowed.text
        assert json.loads(allowed.stdout)["domain"] == guest.name
    finally:
        node2.link(up=True)
    assert node1.path(guest.disk).exists()


@pytest.mark.parametrize("after", ["undefine", "delete"])
def test_source_after_says_what_becomes_of_the_copy(admin: Admin, make_guest: MakeGuest, after: str) -> None:
    guest = make_guest(after)
    node1, node2 = admin.lab.nodes
    job_id = moved(admin, guest, "--source-after", after)
    assert (guest.state(node1), guest.state(node2)) == ("absent", "running")
    assert not node1.path(guest.disk).exists()
    assert node1.path(f"{guest.disk}.moved-{job_id}").exists() is (after == "undefine")
    assert guest.witness.report().sound


def test_an_image_on_which_another_vm_stands_keeps_its_name_and_the_other_vm_starts(
    admin: Admin, make_guest: MakeGuest,
) -> None:
    guest = make_guest("template")
    node1, node2 = admin.lab.nodes
    guest.on(node1, "destroy")
    clone = f"{IMAGES}/clone.qcow2"
    node1.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", guest.disk, "-F", "qcow2", clone])
    domain = document(node1, guest.name, "--inactive")
    for name, text in (("name", "clone"), ("uuid", str(uuid.uuid4()))):
        element = domain.find(name)
        assert element is not None
        element.text = text
    source = domain.find("devices/disk/source")
    assert source is not None
    source.set("file", clone)
    node1.path("/root/clone.xml").write_text(ElementTree.tostring(domain, "unicode"))
    virsh(node1, "define", "/root/clone.xml")
    try:
        run = admin.migrate(guest.name, "--source-after", "delete")
        assert run.code == 0, run.text
        assert f"{guest.disk} left alone, another VM uses it as well" in run.text
        assert (guest.state(node1), guest.state(node2)) == ("absent", "shut off")
        virsh(node1, "start", "clone")
    finally:
        for command in ("destroy", "undefine"):
            node1.run(["virsh", "-q", command, "clone"], check=False)
        for path in (clone, "/root/clone.xml"):
            node1.path(path).unlink()
