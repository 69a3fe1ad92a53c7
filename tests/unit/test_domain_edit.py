"""What host/domain_edit changes in a domain's document, and that it leaves everything else as it was."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from xml.etree.ElementTree import canonicalize

import pytest

from host.domain_edit import Changes, NewLayer, NewNetwork, edit
from host.domain_xml import describe
from tests.unit.samples import ROOT

DOCUMENTS = sorted((ROOT / "tests" / "unit" / "domains").glob("*.xml"))

# Spelled as edit() spells, so that what it writes can be compared letter by letter.
FULL = """\
<?xml version='1.0' encoding='UTF-8'?>
<!-- made by hand: do not overwrite -->
<?editor keep?>
<domain type='kvm' id='7'>
  <!-- <name>web</name> -->
  <name>web</name>
  <title>Shop &amp; "till" &lt;x&gt; it's</title>
  <description><![CDATA[<name>web</name> & more]]></description>
  <metadata>
    <libosinfo:libosinfo xmlns:libosinfo='http://libosinfo.org/xmlns/libvirt/domain/1.0'>
      <libosinfo:os id='http://debian.org/debian/12'/>
    </libosinfo:libosinfo>
    <own:plan xmlns:own='urn:a b' keep='7' own:note='a &quot;b&quot;&#10;&#9;c&#13;d &apos;e&apos; &lt;f&gt; &amp;#10;'>
      <!-- not the domain's own: /images/web.qcow2 -->
      <own:name>web</own:name>
      <own:devices>
        <disk type='file' device='disk'>
          <source file='/images/web.qcow2'/>
          <target dev='vda'/>
        </disk>
        <own:interface type='network'><source network='default'/></own:interface>
      </own:devices>
      <plain xmlns='urn:other'><name>web</name><back xmlns=''><name>web</name></back></plain>
    </own:plan>
    <name>web</name>
    <kernel>/boot/web-kernel</kernel>
  </metadata>
  <memory unit='KiB'>1048576</memory>
  <vcpu placement='static'>2</vcpu>
  <os>
    <type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
    <loader readonly='yes' type='pflash'>/firmware/OVMF_CODE.fd</loader>
    <nvram template='/firmware/OVMF_VARS.fd'>/nvram/web_VARS.fd</nvram>
    <kernel>/boot/web-kernel</kernel>
    <initrd>/boot/web-initrd</initrd>
    <cmdline>root=/dev/vda1 init=/boot/web-kernel</cmdline>
    <dtb>/boot/web.dtb</dtb>
    <!-- boots from the first disk -->
    <boot dev='hd'/>
  </os>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <!-- the system -->
    <disk type='file' device='disk' snapshot='external'>
      <driver name='qemu' type='qcow2' discard='unmap'/>
      <!-- the top image --><source index='9' file='/images/web.qcow2' startupPolicy='mandatory'>
        <!-- sealed -->
        <seclabel model='dac' relabel='no'/>
      </source>
      <backingStore type='file' index='3'>
        <format type='qcow2'/>
        <source file='/images/web.3'/>
        <backingStore type='block' index='4'>
          <format type='raw'/>
          <source dev='/dev/vg0/base'/>
          <backingStore/>
        </backingStore>
      </backingStore>
      <mirror type='file' file='/images/web.3' format='raw' job='copy'>
        <format type='raw'/>
        <source file='/images/web.3'/>
      </mirror>
      <target dev='vda' bus='virtio'/>
      <serial>/images/web.3</serial>
      <alias name='virtio-disk0'/>
      <unknown to='libvirt' since='&gt; 9'>text<b/>tail</unknown>
    </disk>
    <disk type='block' device='disk'>
      <driver name='qemu' type='raw' cache='none'/>
      <source dev='/dev/vg0/data'>
        <slices>
          <slice type='storage' offset='0' size='4096'/>
        </slices>
        <encryption format='luks'>
          <secret type='passphrase' uuid='f981dd17-143f-45bc-88e6-ed1fe20ce9da'/>
        </encryption>
      </source>
      <target dev='vdb' bus='virtio'/>
    </disk>
    <disk type='volume' device='disk'>
      <driver name='qemu' type='raw'/>
      <source pool='default' volume='data'/>
      <target dev='vdc' bus='virtio'/>
    </disk>
    <disk type='network' device='disk'>
      <driver name='qemu' type='raw'/>
      <source protocol='nbd' name='/images/web.qcow2' tls='no'>
        <host name='10.0.0.1'/>
      </source>
      <target dev='vdd' bus='virtio'/>
    </disk>
    <disk type='file' device='cdrom'>
      <driver name='qemu' type='raw'/>
      <source file='/iso/debian.iso' startupPolicy='optional'/>
      <backingStore/>
      <target dev='sda' bus='sata'/>
      <readonly/>
    </disk>
    <disk type='block' device='floppy'>
      <source dev='/dev/fd0'/>
      <target dev='fda' bus='fdc'/>
    </disk>
    <disk type='file' device='cdrom'>
      <target dev='sdb' bus='sata'/>
      <readonly/>
    </disk>
    <filesystem type='mount'>
      <source dir='/images/web.qcow2'/>
      <target dir='share'/>
    </filesystem>
    <interface type='network'>
      <mac address='52:54:00:00:00:01'/>
      <source network='default' portgroup='blue' portid='7c0a4d9e-1f6b-4c58-9d2e-35b0a8e6f117' bridge='virbr0'/>
      <target dev='vnet0'/>
      <model type='virtio'/>
      <!-- the admin's side -->
      <alias name='net0'/>
    </interface>
    <interface type='bridge'>
      <mac address='52:54:00:00:00:02'/>
      <source bridge='br0'/>
      <virtualport type='openvswitch'>
        <parameters interfaceid='09b11c53-8b5c-4eeb-8f00-d84eaa0aaa4f'/>
      </virtualport>
      <target dev='web-lan'/>
      <model type='virtio'/>
    </interface>
    <interface type='direct'>
      <mac address='52:54:00:00:00:03'/>
      <source network='cards' portid='7c0a4d9e-1f6b-4c58-9d2e-35b0a8e6f118' dev='eth1' mode='bridge'/>
      <target dev='macvtap0'/>
      <model type='virtio'/>
    </interface>
    <interface type='user'>
      <mac address='52:54:00:00:00:04'/>
      <model type='virtio'/>
    </interface>
    <serial type='file'>
      <source path='/images/web.qcow2'/>
      <log file='/images/web.qcow2' append='on'/>
      <target port='0'/>
    </serial>
  </devices>
  <qemu:commandline xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
    <qemu:arg value='-drive'/>
    <qemu:arg value='file=/images/web.qcow2'/>
  </qemu:commandline>
</domain>
<!-- after the end -->
"""
FIVE_LAYERS = tuple(NewLayer(path=f"/new/{number}", format="qcow2" if number < 5 else "raw") for number in range(1, 6))


def all_documents() -> Iterator[tuple[str, str]]:
    """Each stored document and the one above, by name."""
    yield "full", FULL
    for path in DOCUMENTS:
        yield path.stem, path.read_text(encoding="utf-8")


EVERY = pytest.mark.parametrize("document", [
    pytest.param(document, id=name) for name, document in all_documents()])


def canonical(document: str) -> str:
    """One spelling for all documents that mean the same."""
    return canonicalize(document, with_comments=True)


def minimal(inside: str, *, os: str = "") -> str:
    """A domain with just this among its devices."""
    return f"<domain><name>x</name><os><type>hvm</type>{os}</os><devices><hub type='usb'/>{inside}</devices></domain>"


def check(document: str, changes: Changes, *replaced: tuple[str, str]) -> None:
    """Whether the changes make of the document itself with each text, found once in it, replaced by another."""
    expected = document
    for old, new in replaced:
        assert document.count(old) == 1, old
        expected = expected.replace(old, new)
    edited = edit(document, changes)
    assert edited == expected
    assert edit(edited, changes) == edited


def sweeping(document: str) -> Changes:
    """Changes to all that can be changed in a document."""
    description = describe(document)
    paths = set(re.findall(r"""(?:file|dev)=['"](/[^'"]*)""", document))
    paths |= set(re.findall(r"<(?:kernel|initrd|dtb|nvram)\b[^>]*>(/[^<]*)<", document))
    connected = {(each.kind, each.source) for each in description.interfaces if each.kind in ("network", "bridge")}
    return Changes(
        name="another & <new>'s one",
        paths={path: f"/dev/new/{number}" if number % 3 == 0 else f"/new{path}"
               for number, path in enumerate(sorted(paths))},
        chains={disk.target: FIVE_LAYERS[:len(disk.path or "") % 6] for disk in description.disks},
        networks={each: NewNetwork(kind="bridge" if number % 2 else "network", name=f"new{number}")
                  for number, each in enumerate(sorted(connected))},
        ejected=frozenset({"sda", "sdb", "hda", "hdc", "fda", "vda"}),
        thin=frozenset({"vda", "vdb", "sda", "hda"}),
    )


# All documents.


@EVERY
def test_without_changes_the_document_means_the_same(document: str) -> None:
    assert canonical(edit(document, Changes())) == canonical(document)


@EVERY
def test_changes_to_what_is_not_there_change_nothing(document: str) -> None:
    absent = Changes(
        paths={"/absent": "/dev/new", "": "/new"}, chains={"xvdz": FIVE_LAYERS},
        networks={("network", "absent"): NewNetwork(kind="bridge", name="br9")}, ejected=frozenset({"xvdz"}),
        thin=frozenset({"xvdz"}))
    assert canonical(edit(document, absent)) == canonical(document)


@EVERY
def test_an_edit_done_twice_is_the_edit_done_once(document: str) -> None:
    changes = sweeping(document)
    once = edit(document, changes)
    assert canonical(once) != canonical(document)
    assert edit(once, changes) == once


@EVERY
def test_a_path_or_name_that_is_changed_back_leaves_no_trace(document: str) -> None:
    there = sweeping(document)
    back = Changes(name=describe(document).name, paths={new: old for old, new in there.paths.items()})
    moved = edit(document, Changes(name=there.name, paths=there.paths))
    assert canonical(edit(moved, back)) == canonical(document)


@EVERY
def test_changes_made_one_after_the_other_are_the_changes_made_at_once(document: str) -> None:
    whole = sweeping(document)
    parts = [
        Changes(name=whole.name), Changes(chains=whole.chains), Changes(thin=whole.thin),
        *(Changes(paths={old: new}) for old, new in whole.paths.items()),
        *(Changes(networks={old: new}) for old, new in whole.networks.items()),
    ]
    for seed in range(5):
        random.Random(seed).shuffle(parts)  # noqa: S311 - an order, not a secret
        edited = edit(document, Changes(ejected=whole.ejected))
        for part in parts:
            edited = edit(edited, part)
        assert canonical(edited) == canonical(edit(document, whole))


@EVERY
def test_what_is_read_out_of_an_edited_document_is_what_was_asked_for(document: str) -> None:
    changes, before = sweeping(document), describe(document)
    after = describe(edit(document, changes))
    assert after.name == changes.name
    for old, new in zip(before.disks, after.disks):
        if old.target in changes.ejected and old.device in ("cdrom", "floppy"):
            assert (new.path, new.layers) == (None, ())
        else:
            assert new.path == changes.paths.get(old.path or "", old.path)
            has_medium = old.path is not None or old.kind in ("volume", "network")
            assert new.layers == (
                tuple((layer.path, layer.format) for layer in changes.chains[old.target]) if has_medium else ())
    for was, now in zip(before.interfaces, after.interfaces):
        connection = changes.networks.get((was.kind, was.source))
        assert (now.kind, now.source) == (
            (connection.kind, connection.name) if connection is not None else (was.kind, was.source))
    assert after == replace(
        before, name=after.name, disks=after.disks, interfaces=after.interfaces,
        boot_files=after.boot_files, nvram=after.nvram)
    assert len(after.disks) == len(before.disks)


# What is kept.


def test_a_document_in_libvirts_own_spelling_is_kept_letter_by_letter() -> None:
    check(FULL, Changes())
    written_by_libvirt = [path.stem for path in DOCUMENTS if '="' not in path.read_text(encoding="utf-8")]
    assert "running-with-chain" in written_by_libvirt
    for name in written_by_libvirt:
        document = Path(DOCUMENTS[0].parent, f"{name}.xml").read_text(encoding="utf-8")
        assert edit(document, Changes()) == document


@pytest.mark.parametrize("kept", [
    "<domain><a b='1&#10;2&#9;3&#13;4'>&#13;</a></domain>",
    "<domain><a b='&apos;&quot;&lt;&gt;&amp;amp;'>'\"&lt;&gt;&amp;amp;]]&gt;</a></domain>",
    "<domain xmlns:q='urn:one' xmlns:r='urn:one'><q:a r:b='1' q:c='2'/><r:a/></domain>",
    "<domain><a z='1' xmlns:q='a name with blanks' q:y='2' x='3'/></domain>",
    "<domain><a xmlns='urn:one'><b xmlns=''/></a></domain>",
    "<domain>\u00fc\u2028\U0001f600<a b='\u00fc\u0085'/></domain>",
    "<domain><![CDATA[<a>&amp;]]]]><![CDATA[>]]></domain>",
    "<domain><!----><a> <!-- - --> </a><?p i='1'?>  \n </domain>",
    "<?xml version='1.0' encoding='ISO-8859-1' standalone='yes'?>\n<domain>\u00fc</domain>",
    "<domain/>\n", "<domain><a/> <a> </a></domain>",
])
def test_however_the_document_is_spelled_its_content_is_kept(kept: str) -> None:
    assert edit(kept, Changes()) == kept


def test_a_line_feed_in_a_new_value_is_written_so_that_it_is_read_again() -> None:
    edited = edit(minimal("<disk><source file='/a'/></disk>", os="<kernel>/a</kernel>"), Changes(
        name="a\r\t\nb", paths={"/a": "/x\r\t\n'\"<&>"}))
    description = describe(edited)
    assert (description.name, description.disks[0].path, description.boot_files[0][1]) == (
        "a\r\t\nb", "/x\r\t\n'\"<&>", "/x\r\t\n'\"<&>")


# The name.


def test_only_the_domains_own_name_is_changed() -> None:
    check(FULL, Changes(name="shop"), ("\n  <name>web</name>", "\n  <name>shop</name>"))


def test_a_name_in_pieces_becomes_one_and_its_comment_stays() -> None:
    assert edit("<domain><name>w<!-- why --><![CDATA[eb]]></name></domain>", Changes(name="shop & co")) == (
        "<domain><name>shop &amp; co<!-- why --></name></domain>")


# Paths.


def test_a_disk_keeps_all_of_its_source_but_the_path() -> None:
    check(FULL, Changes(paths={"/images/web.qcow2": "/srv/web.img"}),
          ("index='9' file='/images/web.qcow2'", "index='9' file='/srv/web.img'"))


def test_a_file_that_moves_to_a_device_makes_its_disk_a_block_disk() -> None:
    check(FULL, Changes(paths={"/images/web.qcow2": "/dev/vg1/web"}),
          ("<disk type='file' device='disk' snapshot=", "<disk type='block' device='disk' snapshot="),
          ("index='9' file='/images/web.qcow2'", "index='9' dev='/dev/vg1/web'"))


def test_a_device_that_moves_is_one_still_or_makes_its_disk_a_file_disk() -> None:
    check(FULL, Changes(paths={"/dev/vg0/data": "/dev/vg1/data"}), ("'/dev/vg0/data'", "'/dev/vg1/data'"))
    check(FULL, Changes(paths={"/dev/vg0/data": "/srv/data.img"}),
          ("<disk type='block' device='disk'>", "<disk type='file' device='disk'>"),
          ("<source dev='/dev/vg0/data'>", "<source file='/srv/data.img'>"))


def test_the_layers_below_a_disk_move_each_for_itself() -> None:
    check(FULL, Changes(paths={"/images/web.3": "/dev/vg1/web.3", "/dev/vg0/base": "/srv/base"}),
          ("file' index='3'>\n        <format type='qcow2'/>\n        <source file='/images/web.3'/>",
           "block' index='3'>\n        <format type='qcow2'/>\n        <source dev='/dev/vg1/web.3'/>"),
          ("<backingStore type='block' index='4'>", "<backingStore type='file' index='4'>"),
          ("<source dev='/dev/vg0/base'/>", "<source file='/srv/base'/>"))


def test_a_disk_without_a_type_is_a_file_disk() -> None:
    document = minimal("<disk><source file='/a'/></disk>")
    check(document, Changes(paths={"/a": "/b"}), ("'/a'", "'/b'"))
    check(document, Changes(paths={"/a": "/dev/b"}),
          ("<disk><source file='/a'/>", "<disk type='block'><source dev='/dev/b'/>"))


def test_only_what_the_disks_type_reads_is_a_path() -> None:
    for kind, attribute in (("network", "file"), ("volume", "dev"), ("file", "dev"), ("block", "file")):
        check(minimal(f"<disk type='{kind}'><source {attribute}='/a'/></disk>"), Changes(paths={"/a": "/b"}))


def test_a_layer_below_one_on_the_network_moves() -> None:
    check(minimal("<disk type='network'><source protocol='nbd'/><backingStore type='file'><source file='/a'/>"
                  "</backingStore></disk>"), Changes(paths={"/a": "/b"}), ("'/a'", "'/b'"))


@pytest.mark.parametrize("document", [
    minimal("<controller><disk><source file='/a'/></disk></controller>"),
    minimal("<disk><mirror><source file='/a'/><backingStore><source file='/a'/></backingStore></mirror></disk>"),
    minimal("<disk xmlns='urn:own'><source file='/a'/></disk>"),
    minimal("<disk><source xmlns='urn:own' file='/a'/></disk>"),
    minimal("<q:disk xmlns:q='urn:own'><source file='/a'/></q:disk>"),
    minimal("<disk><q:source xmlns:q='urn:own' file='/a'/><source q:file='/a' xmlns:q='urn:own'/></disk>"),
    minimal("<disk><serial>/a</serial></disk><filesystem><source file='/a' dir='/a'/></filesystem>"),
    minimal("", os="<loader>/a</loader><cmdline>/a</cmdline><nvram template='/a'/><dtb xmlns='urn:own'>/a</dtb>"),
    "<domain><kernel>/a</kernel><disk><source file='/a'/></disk></domain>",
    "<domain><metadata><os><kernel>/a</kernel></os></metadata></domain>",
    "<domain><devices xmlns='urn:own'><disk><source file='/a'/></disk></devices></domain>",
])
def test_what_only_looks_like_the_domains_file_is_let_alone(document: str) -> None:
    check(document, Changes(paths={"/a": "/b"}))


def test_kernel_initrd_device_tree_and_nvram_move() -> None:
    check(FULL, Changes(paths={
        "/boot/web-kernel": "/b/k", "/boot/web-initrd": "/b/i", "/boot/web.dtb": "/b/d", "/nvram/web_VARS.fd": "/b/n",
        "/firmware/OVMF_CODE.fd": "/b/f", "/firmware/OVMF_VARS.fd": "/b/v"}),
        ("/boot/web-kernel</kernel>\n    <initrd>/boot/web-initrd<", "/b/k</kernel>\n    <initrd>/b/i<"),
        ("<dtb>/boot/web.dtb<", "<dtb>/b/d<"), (">/nvram/web_VARS.fd<", ">/b/n<"))


@pytest.mark.parametrize(("nvram", "new", "expected"), [
    ("<nvram type='file'>\n<source file='/a'/>\n</nvram>", "/b", "<nvram type='file'>\n<source file='/b'/>\n</nvram>"),
    ("<nvram type='file'><source file='/a'/></nvram>", "/dev/b", "<nvram type='block'><source dev='/dev/b'/></nvram>"),
    ("<nvram type='block'><source dev='/a'/></nvram>", "/b", "<nvram type='file'><source file='/b'/></nvram>"),
    ("<nvram><source file='/a'/></nvram>", "/b", "<nvram><source file='/b'/></nvram>"),
    ("<nvram template='/a' format='raw'>/a</nvram>", "/b", "<nvram template='/a' format='raw'>/b</nvram>"),
])
def test_nvram_moves_in_its_older_and_its_newer_form(nvram: str, new: str, expected: str) -> None:
    check(minimal("", os=nvram), Changes(paths={"/a": new}), (nvram, expected))


# Chains.


def test_the_chain_below_a_disk_is_written_out_to_its_end() -> None:
    check(minimal("""
    <disk type='file' device='disk'>
      <source file='/top'/>
      <target dev='vda'/>
    </disk>"""), Changes(chains={"vda": FIVE_LAYERS[3:]}), ("<source file='/top'/>", """<source file='/top'/>
      <backingStore type='file'>
        <format type='qcow2'/>
        <source file='/new/4'/>
        <backingStore type='file'>
          <format type='raw'/>
          <source file='/new/5'/>
          <backingStore/>
        </backingStore>
      </backingStore>"""))


def test_five_layers_lie_in_one_another_in_the_order_given() -> None:
    disk = describe(edit(FULL, Changes(chains={"vda": FIVE_LAYERS}))).disks[0]
    assert [path for path, _format in disk.layers] == ["/new/1", "/new/2", "/new/3", "/new/4", "/new/5"]


def test_a_chain_takes_the_place_of_the_one_that_was_there() -> None:
    start, end = FULL.index("<backingStore type='file' index='3'>"), FULL.index("\n      <mirror type='file'")
    check(FULL, Changes(chains={"vda": (NewLayer(path="/dev/vg1/base", format="raw"),)}), (FULL[start:end], """\
<backingStore type='block'>
        <format type='raw'/>
        <source dev='/dev/vg1/base'/>
        <backingStore/>
      </backingStore>"""))


def test_no_layers_end_the_chain() -> None:
    start, end = FULL.index("<backingStore type='file' index='3'>"), FULL.index("\n      <mirror type='file'")
    check(FULL, Changes(chains={"vda": (), "vdb": ()}), (FULL[start:end], "<backingStore/>"),
          ("</source>\n      <target dev='vdb'", "</source>\n      <backingStore/>\n      <target dev='vdb'"))


@pytest.mark.parametrize("before", ["", "\n  words ", "\n  <!-- -->"])
def test_a_chain_below_a_disk_that_does_not_begin_its_line_stays_on_that_line(before: str) -> None:
    check(minimal(f"<disk type='file'>{before}<source file='/a'/><target dev='vda'/></disk>"),
          Changes(chains={"vda": (NewLayer(path="/b", format="raw"),)}), ("'/a'/>", (
              "'/a'/><backingStore type='file'><format type='raw'/><source file='/b'/><backingStore/></backingStore>")))


def test_a_new_layer_is_not_taken_for_an_old_path() -> None:
    moved = edit(FULL, Changes(
        paths={"/images/web.3": "/x"}, chains={"vda": (NewLayer(path="/images/web.3", format="qcow2"),)}))
    assert [path for path, _format in describe(moved).disks[0].layers] == ["/images/web.3"]


def test_a_drive_without_a_medium_gets_no_chain() -> None:
    check(FULL, Changes(chains={"sdb": FIVE_LAYERS}))


# Zeros.


@pytest.mark.parametrize(("before", "after"), [
    ("", " detect_zeroes='on'"), (" detect_zeroes='off'", " detect_zeroes='on'"),
    (" detect_zeroes='unmap'", " detect_zeroes='unmap'")])
def test_zeros_are_detected_on_the_disks_that_are_to_stay_thin(before: str, after: str) -> None:
    disk = ("<disk type='file'><driver name='qemu' type='qcow2' cache='none'{}/><source file='/{}'/>"
            "<target dev='{}'/></disk>")
    other = disk.format("", "b", "vdb")
    document = minimal(disk.format(before, "a", "vda") + other)
    assert edit(document, Changes(thin=frozenset({"vda"}))) == minimal(disk.format(after, "a", "vda") + other)


def test_a_disk_without_a_driver_gets_none() -> None:
    check(minimal("<disk type='file'><source file='/a'/><target dev='vda'/></disk>"),
          Changes(thin=frozenset({"vda"})))


# Drives.


def test_an_ejected_drive_stays_without_its_medium() -> None:
    check(FULL, Changes(ejected=frozenset({"sda", "fda"})),
          ("\n      <source file='/iso/debian.iso' startupPolicy='optional'/>\n      <backingStore/>", ""),
          ("\n      <source dev='/dev/fd0'/>", ""))


def test_an_ejected_drive_gets_neither_path_nor_chain() -> None:
    changes = Changes(paths={"/iso/debian.iso": "/dev/new"}, chains={"sda": FIVE_LAYERS}, ejected=frozenset({"sda"}))
    check(FULL, changes,
          ("\n      <source file='/iso/debian.iso' startupPolicy='optional'/>\n      <backingStore/>", ""))


@pytest.mark.parametrize("device", ["", " device='disk'", " device='lun'"])
def test_what_is_not_a_drive_for_media_is_not_ejected(device: str) -> None:
    check(minimal(f"<disk type='block'{device}><source dev='/dev/a'/><target dev='sda'/></disk>"),
          Changes(ejected=frozenset({"sda"})))


@pytest.mark.parametrize(("kind", "after"), [
    ("file", "file"), ("block", "block"), ("volume", "volume"), ("network", "file")])
def test_an_ejected_drive_is_of_a_type_that_needs_no_source(kind: str, after: str) -> None:
    check(minimal(f"<disk type='{kind}' device='cdrom'><source protocol='http'/><target dev='sda'/></disk>"),
          Changes(ejected=frozenset({"sda"})), (f"'{kind}'", f"'{after}'"), ("<source protocol='http'/>", ""))


def test_comments_and_words_beside_a_medium_survive_it() -> None:
    check(minimal("<disk device='cdrom'>\n <!-- why -->\n <source/> <!-- till May --> a<backingStore/>b"
                  "<target dev='sda'/></disk>"),
          Changes(ejected=frozenset({"sda"})), ("\n <source/> ", " "), ("a<backingStore/>b", "ab"))


# Interfaces.

FIRST_SOURCE = ("network='default' portgroup='blue' portid='7c0a4d9e-1f6b-4c58-9d2e-35b0a8e6f117' bridge='virbr0'/>"
                "\n      <target dev='vnet0'/>")
SECOND_SOURCE = ("bridge'>\n      <mac address='52:54:00:00:00:02'/>\n      <source bridge='br0'/>\n"
                 "      <virtualport type='openvswitch'>\n"
                 "        <parameters interfaceid='09b11c53-8b5c-4eeb-8f00-d84eaa0aaa4f'/>\n      </virtualport>\n")
THIRD_SOURCE = ("direct'>\n      <mac address='52:54:00:00:00:03'/>\n      <source "
                "network='cards' portid='7c0a4d9e-1f6b-4c58-9d2e-35b0a8e6f118' dev='eth1' mode='bridge'/>\n"
                "      <target dev='macvtap0'/>\n")


def test_from_network_to_network_the_portgroup_stays_and_what_libvirt_made_up_goes() -> None:
    check(FULL, Changes(networks={("network", "default"): NewNetwork(kind="network", name="lan")}),
          (FIRST_SOURCE, "network='lan' portgroup='blue'/>"))


def test_from_network_to_bridge_the_portgroup_goes() -> None:
    check(FULL, Changes(networks={("network", "default"): NewNetwork(kind="bridge", name="br1")}),
          ("<interface type='network'>\n      <mac address='52:54:00:00:00:01'/>\n      <source " + FIRST_SOURCE,
           "<interface type='bridge'>\n      <mac address='52:54:00:00:00:01'/>\n      <source bridge='br1'/>"))


def test_from_bridge_to_bridge_the_virtual_port_and_a_name_of_the_admins_stay() -> None:
    check(FULL, Changes(networks={("bridge", "br0"): NewNetwork(kind="bridge", name="br1")}),
          ("<source bridge='br0'/>", "<source bridge='br1'/>"))


def test_from_bridge_to_network_the_virtual_port_goes() -> None:
    check(FULL, Changes(networks={("bridge", "br0"): NewNetwork(kind="network", name="lan")}), (
        SECOND_SOURCE, "network'>\n      <mac address='52:54:00:00:00:02'/>\n      <source network='lan'/>\n"))


def test_a_running_domains_interface_is_known_by_its_network_not_by_the_card_that_carries_it() -> None:
    check(FULL, Changes(networks={("network", "cards"): NewNetwork(kind="network", name="lan")}), (
        THIRD_SOURCE, "network'>\n      <mac address='52:54:00:00:00:03'/>\n      <source network='lan'/>\n"))


def test_a_running_domains_interface_is_not_known_by_the_bridge_of_its_network() -> None:
    document = minimal("<interface type='bridge'><source network='lan' portgroup='g' bridge='br0'/></interface>")
    check(document, Changes(networks={("bridge", "br0"): NewNetwork(kind="bridge", name="br1")}))
    check(document, Changes(networks={("network", "lan"): NewNetwork(kind="bridge", name="br1")}),
          ("<source network='lan' portgroup='g' bridge='br0'/>", "<source bridge='br1'/>"))
    check(document, Changes(networks={("network", "lan"): NewNetwork(kind="network", name="wan")}),
          ("bridge'><source network='lan' portgroup='g' bridge='br0'", "network'><source network='wan' portgroup='g'"))


def test_a_bridge_has_no_portgroup_to_hand_on() -> None:
    check(minimal("<interface type='bridge'><source bridge='a' portgroup='g'/></interface>"),
          Changes(networks={("bridge", "a"): NewNetwork(kind="network", name="b")}),
          ("bridge'><source bridge='a' portgroup='g'/>", "network'><source network='b'/>"))


def test_two_interfaces_that_trade_places_do_so_at_once() -> None:
    document = minimal("<interface type='network'><source network='a'/></interface>"
                       "<interface type='network'><source network='b'/></interface>")
    a, b = NewNetwork(kind="network", name="a"), NewNetwork(kind="network", name="b")
    swapped = edit(document, Changes(networks={("network", "a"): b, ("network", "b"): a}))
    assert [each.source for each in describe(swapped).interfaces] == ["b", "a"]


@pytest.mark.parametrize(("target", "stays"), [
    ("dev='vnet12'", False), ("dev='vif3.0'", False), ("dev='macvtap4'", False), ("dev='macvlan1'", False),
    ("dev='web0'", True), ("dev='tap-vnet0'", True), ("dev='vnet0' managed='no'", True), ("managed='no'", True)])
def test_a_name_of_the_hosts_side_goes_only_if_libvirt_made_it_up(target: str, stays: bool) -> None:
    gone = () if stays else ((f"<target {target}/>", ""),)
    check(minimal(f"<interface type='bridge'><source bridge='br0'/><target {target}/></interface>"),
          Changes(networks={("bridge", "br0"): NewNetwork(kind="bridge", name="br1")}), ("'br0'", "'br1'"), *gone)


def test_what_a_network_gave_its_interface_goes_with_it_and_the_rest_stays() -> None:
    kept = "<bandwidth/><vlan><tag id='42'/></vlan><q:virtualport xmlns:q='urn:own'/><filterref filter='f'/>"
    gone = "<actual type='bridge'><source bridge='virbr0'/></actual>"
    source = "<source network='a' portid='p'><!-- old --></source>"
    check(minimal(f"<interface type='network' trustGuestRxFilters='yes'>{source}{gone}{kept}</interface>"),
          Changes(networks={("network", "a"): NewNetwork(kind="bridge", name="b")}),
          ("'network'", "'bridge'"), (source, "<source bridge='b'/>"), (gone, ""))


@pytest.mark.parametrize("inside", [
    "<interface type='network'><mac address='a'/></interface>", "<interface type='network'><source/></interface>",
    "<interface type='direct'><source dev='a' mode='bridge'/></interface>",
    "<interface type='ethernet'><source network='a'/></interface>",
    "<interface type='hostdev'><source network='a'/></interface>",
    "<q:interface xmlns:q='urn:own' type='network'><source network='a'/></q:interface>",
    "<hub><interface type='network'><source network='a'/></interface></hub>",
    "<interface type='network'><source network='a' xmlns='urn:own'/></interface>",
    "<interface type='bridge'><source bridge='a'/></interface>",
])
def test_what_is_not_connected_to_the_network_is_let_alone(inside: str) -> None:
    check(minimal(inside), Changes(networks={("network", "a"): NewNetwork(kind="bridge", name="b")}))


# What is refused.


@pytest.mark.parametrize("document", [
    "", "no XML", "<domain>", "<domain></Domain>", "<domain/><domain/>", "<domain a='1' a='2'/>",
    "<domain>&own;</domain>", "<domain><q:a/></domain>", "<domain q:a='1'/>", "<domain>\x00</domain>",
    "<domain>\ud800</domain>",
])
def test_a_document_that_is_not_well_formed_is_refused(document: str) -> None:
    with pytest.raises(ValueError, match=r"^The domain's document is not well-formed XML: .+\.$"):
        edit(document, Changes())


@pytest.mark.parametrize("declared", [
    "<!DOCTYPE domain>", "<!DOCTYPE domain SYSTEM 'file:///etc/passwd'>",
    "<!DOCTYPE domain [<!ENTITY a 'aaaa'><!ENTITY b '&a;&a;&a;'>]>",
    "<!DOCTYPE domain [<!ENTITY b SYSTEM '/etc/passwd'>]>",
])
def test_a_document_type_is_refused_before_any_of_its_entities_is_read(declared: str) -> None:
    with pytest.raises(ValueError, match="declares a document type"):
        edit(f"{declared}<domain>&b;", Changes())


@pytest.mark.parametrize("document", [
    "<network/>", "<domain xmlns='urn:own'/>", "<q:domain xmlns:q='urn:own'/>", "<domstatus><domain/></domstatus>"])
def test_a_document_about_something_else_is_refused(document: str) -> None:
    with pytest.raises(ValueError, match="not about a domain"):
        edit(document, Changes())


@pytest.mark.parametrize("character", ["\x00", "\x1b", "\ud800", "\uffff"])
def test_a_new_value_that_xml_cannot_hold_is_refused(character: str) -> None:
    for changes in (Changes(name=f"a{character}"), Changes(paths={"/images/web.qcow2": f"/b{character}"})):
        with pytest.raises(ValueError, match="XML cannot hold"):
            edit(FULL, changes)


def test_a_layer_or_connection_of_no_known_kind_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="qcow2 or raw, not 'vmdk'"):
        NewLayer(path="/a", format="vmdk")
    with pytest.raises(ValueError, match="not to a 'direct'"):
        NewNetwork(kind="direct", name="eth0")
