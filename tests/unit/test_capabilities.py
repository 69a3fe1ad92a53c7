"""What host/capabilities reads out of libvirt's own descriptions of a host."""

from __future__ import annotations

from pathlib import Path

import pytest

from host.capabilities import (
    dac_ids,
    domain_types,
    foreign_bridge,
    host_model,
    host_uuid,
    nodes_and_cpus,
    parse_dac_label,
    pool_directory,
    port_groups,
    security_models,
)

DOCUMENTS = Path(__file__).parent / "documents"
# As libvirt 9.0 tells them, without what is not read.
TWO_NODES = """<capabilities><host><topology><cells num='2'>
<cell id='0'><cpus num='2'><cpu id='0' socket_id='0'/><cpu id='1' socket_id='0'/></cpus></cell>
<cell id='1'><cpus num='2'><cpu id='6' socket_id='1'/><cpu id='7' socket_id='1'/></cpus></cell>
</cells></topology><secmodel><model>apparmor</model><doi>0</doi></secmodel><secmodel><model>dac</model></secmodel>
<secmodel><model>none</model></secmodel></host>
<guest><os_type>hvm</os_type><arch name='i686'><domain type='qemu'/></arch></guest>
<guest><os_type>hvm</os_type><arch name='x86_64'><machine>pc</machine><domain type='qemu'/><domain type='kvm'/></arch>
</guest></capabilities>"""
DOMAIN_CAPABILITIES = """<domainCapabilities><cpu><mode name='host-passthrough' supported='yes'/>
<mode name='host-model' supported='{supported}'><model fallback='forbid'>EPYC</model><vendor>AMD</vendor>
<feature policy='require' name='svm'/></mode></cpu></domainCapabilities>"""


def text(name: str) -> str:
    """A stored document."""
    return (DOCUMENTS / f"{name}.xml").read_text(encoding="utf-8")


def test_the_ids_of_qemu_are_those_of_the_guests_virtualization() -> None:
    assert dac_ids(text("capabilities"), "kvm") == (64055, 108)
    assert dac_ids(text("capabilities"), "qemu") == (64056, 109)


def test_capabilities_that_do_not_say_mean_root() -> None:
    assert dac_ids(text("capabilities"), "xen") == (0, 0)
    assert dac_ids("<capabilities><host/></capabilities>", "kvm") == (0, 0)


@pytest.mark.parametrize(("label", "ids"), [
    ("+64055:+108", (64055, 108)), ("0:0", (0, 0)), ("107:36", (107, 36)), ("qemu:kvm", (0, 0)), ("", (0, 0)),
    ("+1", (0, 0)), ("+1:", (0, 0)), (":+1", (0, 0)), ("-1:-1", (0, 0)),
])
def test_a_label_is_two_numbers_or_means_root(label: str, ids: tuple[int, int]) -> None:
    assert parse_dac_label(label) == ids


def test_the_uuid_of_the_host_is_read() -> None:
    assert host_uuid(text("capabilities")) == "4c4c4544-0051-3610-8052-b4c04f4e3132"
    assert host_uuid("<capabilities/>") == ""


def test_the_confinement_of_a_host_is_told_without_what_is_none() -> None:
    assert security_models(TWO_NODES) == ("apparmor", "dac")
    assert security_models("<capabilities/>") == ()


@pytest.mark.parametrize(("architecture", "types"), [
    ("x86_64", ("qemu", "kvm")), ("i686", ("qemu",)), ("aarch64", ()),
])
def test_the_types_of_vm_are_those_of_the_architecture(architecture: str, types: tuple[str, ...]) -> None:
    assert domain_types(TWO_NODES, architecture) == types


def test_the_last_node_and_cpu_are_those_with_the_highest_numbers() -> None:
    assert nodes_and_cpus(TWO_NODES) == (1, 7)
    assert nodes_and_cpus("<capabilities/>") == (-1, -1)


def test_the_cpu_model_of_a_host_becomes_a_cpu_that_can_be_compared() -> None:
    cpu = host_model(DOMAIN_CAPABILITIES.format(supported="yes"))
    assert cpu is not None
    assert cpu.startswith("<cpu ")
    assert '<model fallback="forbid">EPYC</model>' in cpu
    assert 'name="svm"' in cpu


def test_a_host_without_a_cpu_model_has_none_to_compare() -> None:
    assert host_model(DOMAIN_CAPABILITIES.format(supported="no")) is None
    assert host_model("<domainCapabilities><cpu/></domainCapabilities>") is None


def test_the_port_groups_of_a_network_are_told_by_name() -> None:
    assert port_groups("<network><name>n</name><portgroup name='a'/><portgroup name='b'/></network>") == ("a", "b")
    assert port_groups("<network/>") == ()


@pytest.mark.parametrize(("inside", "bridge"), [
    ("<forward mode='bridge'/><bridge name='br0'/>", "br0"), ("<forward mode='nat'/><bridge name='virbr0'/>", None),
    ("<bridge name='virbr1'/>", None), ("<forward mode='bridge'><interface dev='eth0'/></forward>", None),
])
def test_only_a_network_that_is_a_name_for_a_bridge_needs_one_of_the_hosts(inside: str, bridge: str | None) -> None:
    assert foreign_bridge(f"<network>{inside}</network>") == bridge


@pytest.mark.parametrize(("kind", "directory"), [("dir", "/srv/vm"), ("fs", "/srv/vm"), ("logical", None)])
def test_only_a_pool_of_files_has_a_directory(kind: str, directory: str | None) -> None:
    assert pool_directory(f"<pool type='{kind}'><target><path>/srv/vm</path></target></pool>") == directory
