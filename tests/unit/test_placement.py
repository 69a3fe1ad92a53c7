"""Where the files of a VM go on the other host, by the maps that the admin gave."""

from __future__ import annotations

import dataclasses

import pytest

from constant import FilePurpose
from tests.unit.samples import FACTS, ISO, LAYERED, MIGRATION, NVRAM, QCOW2
from wire.errors import ErrorCode, MigrationError
from wire.facts import DomainFacts, FileFacts
from wire.placement import Placement, parse_disk_map, parse_network_map

IMAGES = "/var/lib/libvirt/images"


def file(path: str, purpose: FilePurpose = FilePurpose.LAYER) -> FileFacts:
    """A file that is sent."""
    return FileFacts(path=path, purpose=purpose, length=1, allocated=1, mode=0o600)


def placed(*maps: str, facts: DomainFacts | None = None, pool: str | None = None, name: str | None = None) -> Placement:
    """Where the files of a VM with a plain disk vda, and vdb on two layers, go with these maps."""
    files = (file("/srv/vm/middle.qcow2"), file("/srv/vm/base.img"), ISO, file("/srv/boot/vmlinuz", FilePurpose.KERNEL))
    facts = facts or dataclasses.replace(FACTS, disks=(QCOW2, LAYERED), files=files, nvram=NVRAM)
    migration = dataclasses.replace(
        MIGRATION, disk_maps=tuple(map(parse_disk_map, maps)), directory=pool, new_name=name)
    return migration.placement(facts)


def test_without_a_map_everything_goes_to_its_own_path() -> None:
    assert placed().changed() == {}
    assert len(placed().paths) == 7
    assert placed().path("/somewhere/else") == "/somewhere/else"


@pytest.mark.parametrize(("maps", "here", "there"), [
    (["vda=/data/x.qcow2"], QCOW2.path, "/data/x.qcow2"),
    ([f"{IMAGES}=/data"], QCOW2.path, "/data/node.qcow2"),
    ([f"{IMAGES}/=/data/"], QCOW2.path, "/data/node.qcow2"),
    ([f"{IMAGES}=/data", "vda=/fast/x"], QCOW2.path, "/fast/x"),
    (["/var=/data", f"{IMAGES}=/fast"], QCOW2.path, "/fast/node.qcow2"),
    (["/srv/iso/a.iso=/data/b.iso"], ISO.path, "/data/b.iso"),
    (["sda=/data/b.iso"], ISO.path, "/data/b.iso"),
    (["/srv/iso=/data"], "/srv/iso-others/a.iso", "/srv/iso-others/a.iso"),
    (["/srv/boot=/boot2"], "/srv/boot/vmlinuz", "/boot2/vmlinuz"),
    (["/var/lib=/data"], NVRAM.path, "/data/libvirt/qemu/nvram/VM1_VARS.fd"),
])
def test_the_most_exact_map_says_where_a_file_goes(maps: list[str], here: str, there: str) -> None:
    assert placed(*maps).path(here) == there


def test_layers_beside_a_disk_with_a_map_of_its_own_go_along_unless_they_have_one() -> None:
    along = placed("vdb=/data/x.qcow2")
    assert along.path("/srv/vm/base.img") == "/data/base.img"
    assert along.path("/srv/vm/middle.qcow2") == "/data/middle.qcow2"
    apart = placed("vdb=/data/x.qcow2", "/srv/vm/base.img=/bases/base.img")
    assert apart.path("/srv/vm/base.img") == "/bases/base.img"
    elsewhere = dataclasses.replace(LAYERED, path="/srv/tops/top.qcow2")
    stays = placed("vdb=/data/x.qcow2", facts=dataclasses.replace(FACTS, disks=(elsewhere,)))
    assert stays.path("/srv/vm/base.img") == "/srv/vm/base.img"


def test_a_pool_takes_disks_layers_and_media_and_nothing_else() -> None:
    pooled = placed("vda=/data/x.qcow2", pool="/pool")
    assert pooled.path(QCOW2.path) == "/data/x.qcow2"
    assert pooled.path(LAYERED.path) == "/pool/top.qcow2"
    assert pooled.path("/srv/vm/base.img") == "/pool/base.img"
    assert pooled.path(ISO.path) == "/pool/a.iso"
    assert pooled.path("/srv/boot/vmlinuz") == "/srv/boot/vmlinuz"
    assert pooled.path(NVRAM.path) == NVRAM.path


def test_a_new_name_is_also_that_of_the_nvram_that_libvirt_has_named_after_the_vm() -> None:
    assert placed(name="new").path(NVRAM.path) == "/var/lib/libvirt/qemu/nvram/new_VARS.fd"
    own = dataclasses.replace(NVRAM, path="/srv/VM10_VARS.fd")
    kept = placed(name="new", facts=dataclasses.replace(FACTS, nvram=own))
    assert kept.path(own.path) == own.path


def test_maps_that_fit_nothing_are_found() -> None:
    maps = ["vdz=/data/x", "/srv=/data", "vda=/data/x", "sda=/data/b.iso", "/srv/v=/data"]
    assert [each.text for each in placed(*maps).idle_maps()] == ["vdz=/data/x", "/srv/v=/data"]


def test_two_files_for_one_path_are_found() -> None:
    assert list(placed("vda=/data/x", "vdb=/data/x").collisions()) == ["/data/x"]
    assert list(placed("vda=/srv/vm/base.img").collisions()) == ["/srv/vm/base.img"]
    assert list(placed("/srv=/data").collisions()) == []


@pytest.mark.parametrize(("maps", "name", "stored"), [
    ([], "base.img", "base.img"),
    ([], "./base.img", "./base.img"),
    ([], "/srv/vm/base.img", "/srv/vm/base.img"),
    (["/srv/vm=/data"], "base.img", "base.img"),
    (["/srv/vm=/data"], "/srv/vm/base.img", "/data/base.img"),
    (["/srv/vm/base.img=/bases/b.img"], "base.img", "../../bases/b.img"),
    (["/srv/vm/base.img=/bases/b.img"], "/srv/vm/base.img", "/bases/b.img"),
])
def test_a_header_names_the_layer_below_as_it_did_relative_or_absolute(
    maps: list[str], name: str, stored: str,
) -> None:
    assert placed(*maps).stored_name("/srv/vm/middle.qcow2", "/srv/vm/base.img", name) == stored


@pytest.mark.parametrize("text", ["", "vda", "vda=", "=/x", "vda=x", "VDA=/srv/x", "vda=/srv/../x", "srv/vm=/x/y"])
def test_what_is_no_disk_map_is_refused(text: str) -> None:
    with pytest.raises(MigrationError) as caught:
        parse_disk_map(text)
    assert caught.value.code in (ErrorCode.ARGUMENTS_INVALID, ErrorCode.PATH_INVALID)


@pytest.mark.parametrize(("text", "here", "there"), [
    ("br0=br1", ("bridge", "br0"), ("bridge", "br1")),
    ("network:default=bridge:br1", ("network", "default"), ("bridge", "br1")),
    ("br0=network:lan", ("bridge", "br0"), ("network", "lan")),
])
def test_a_network_map_names_a_bridge_or_one_of_libvirts_networks(
    text: str, here: tuple[str, str], there: tuple[str, str],
) -> None:
    found = parse_network_map(text)
    assert ((found.here.kind, found.here.name), (found.there.kind, found.there.name)) == (here, there)
    assert parse_network_map(found.text) == found


@pytest.mark.parametrize(("typed", "told"), [
    ("br0=br1", "br0=br1"), ("bridge:br0=bridge:br1", "br0=br1"), ("network:default=br1", "network:default=br1"),
    ("bridge:a:b=network:lan", "bridge:a:b=network:lan")])
def test_a_network_map_is_told_in_its_shortest_form(typed: str, told: str) -> None:
    assert parse_network_map(typed).text == told


@pytest.mark.parametrize("text", ["", "br0", "br0=", "=br1", "direct:eth0=br0", "br0=a/b", "br0=network:"])
def test_what_is_no_network_map_is_refused(text: str) -> None:
    with pytest.raises(MigrationError) as caught:
        parse_network_map(text)
    assert caught.value.code is ErrorCode.ARGUMENTS_INVALID
