"""A guest of the lab: its disk image, its domain, its start. The guest itself is a witness (see guest-init.sh)."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import quoteattr

from .hosts import Host
from .kernel import cache_directory, cache_lock, guest_boot
from .state import LabError

MEBIBYTE = 1024 * 1024
IMAGES = "/var/lib/libvirt/images"
#: Kernel and initramfs, at the same path on every node.
BOOT_DIRECTORY = "/var/lib/libvirt/lab-boot"
#: The front of each disk is an ext2 file system with the witness's records, the rest raw data.
FILE_SYSTEM_BYTES = 32 * MEBIBYTE
RECORD_BYTES = 32
#: Records that the ring file holds: at 100 to 150 a second that is a quarter of an hour or more.
RING_RECORDS = 131_072
RECORDS_FILE = "records"
_SIZE_PATTERN = re.compile(r"(\d+)([KMGT]?)i?B?", re.IGNORECASE)

DOMAIN_XML = """\
<domain type='qemu'>
  <name>{name}</name>
  <memory unit='MiB'>{memory}</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='{machine}'>hvm</type>
    <kernel>{boot}/vmlinuz</kernel>
    <initrd>{boot}/initrd</initrd>
    <cmdline>{arguments}</cmdline>
  </os>
  <features><acpi/><apic/></features>
  <cpu mode='custom' match='exact' check='none'><model fallback='forbid'>qemu64</model></cpu>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>restart</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='{image_format}' cache='{cache}'/>
      <source file={image}/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
    <serial type='file'>
      <source path={serial_log} append='on'/>
      <target port='0'/>
    </serial>
    <console type='file'>
      <source path={serial_log} append='on'/>
      <target type='serial' port='0'/>
    </console>
{extra_devices}  </devices>
</domain>
"""

# The channel to an agent in the guest, which then answers (guest-agent.sh).
AGENT_DEVICES = """
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
"""


def parse_size(text: str) -> int:
    """Return the bytes of a size such as 8G or 512M; raises ValueError."""
    match = _SIZE_PATTERN.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no size: a number and K, M, G or T")
    return int(match.group(1)) << 10 * " KMGT".index(match.group(2).upper() or " ")


@dataclass(frozen=True)
class GuestSpec:
    """What guest to start.

    Sizes are in bytes but for `memory_mib` and `writer_mib`. `data_bytes` is how much of the disk holds pseudo-random
    content (from `seed`), behind the file system. `writer_mib` is how much of that a writer in the guest rewrites in
    a circle; `memory_writer_mib` the same of its memory. `tick_seconds` is the witness's pause between two records.
    `image` is the image's path in the host, by
    default below /var/lib/libvirt/images. `cache` is the disk's cache mode; "auto" is none, or writeback where the file
    system has no direct I/O. `extra_devices` is XML for the domain's <devices>. `prepare` is called with the host once
    the image is made, `rewrite` with the domain's XML before it is defined.
    """

    name: str
    image_format: str = "qcow2"
    disk_bytes: int = 8 * 1024 * MEBIBYTE
    data_bytes: int = 2 * 1024 * MEBIBYTE
    memory_mib: int = 192
    writer_mib: int = 0
    memory_writer_mib: int = 0
    tick_seconds: float = 0.005
    seed: int = 1
    machine: str = "pc"
    cache: str = "auto"
    image: str = ""
    extra_devices: str = ""
    prepare: Callable[[Host], None] | None = None
    rewrite: Callable[[str], str] | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be made."""
        if self.image_format not in ("qcow2", "raw"):
            raise LabError(f"image format {self.image_format!r}: qcow2 or raw")
        used = FILE_SYSTEM_BYTES + max(self.data_bytes, self.writer_mib * MEBIBYTE)
        if used > self.disk_bytes:
            raise LabError(f"{used} bytes of file system and data do not fit on a disk of {self.disk_bytes}")

    @property
    def image_path(self) -> str:
        """Where the image lies in the host."""
        return self.image or f"{IMAGES}/{self.name}.{'qcow2' if self.image_format == 'qcow2' else 'img'}"

    @property
    def serial_log(self) -> str:
        """Where the serial port's output goes in whichever host runs the guest."""
        return serial_log(self.name)

    def domain_xml(self, cache: str) -> str:
        """Return the domain's XML, with that cache mode for the disk.

        With pti the guest's kernel loads its page tables anew at each system call, which empties the emulator's cache
        of translations. A page that is in there as writable and gets written goes unnoticed between two passes over
        the memory: QEMU before 9.0 forgets to take its mark away when it reads which pages are dirty (its commit
        03bfc2188f). Measured in five migrations each that took one pass more than usual: without pti 3.2 pages lost on
        average, and 2 guests did not go on; with it 0.2, and all went on. Of 432 guests in docs/faults.md one crashed.
        A second pass takes place where what is left of the first and what was written meanwhile (about 0.5 MiB) are
        more than crosses in the pause that is aimed at: nearly always at 20 MiB/s with 50 ms, hardly ever at 100. Of 9
        guests with a second pass 3 did not go on, one stood still for 3.4 s (with nohz=off highres=off 2 of 10); with
        `virsh migrate`, the same rate and pause, 4 of 11 stood still for 3.5 s and more. At 100 MiB/s none of 10 did.
        """
        arguments = (
            f"console=ttyS0 quiet loglevel=3 panic=-1 pti=on witness.ring={RING_RECORDS} "
            f"witness.tick={self.tick_seconds} witness.writer={self.writer_mib} "
            f"witness.writer_start={FILE_SYSTEM_BYTES // MEBIBYTE} witness.memory={self.memory_writer_mib}"
        )
        return DOMAIN_XML.format(
            name=self.name,
            memory=self.memory_mib,
            machine=self.machine,
            boot=BOOT_DIRECTORY,
            arguments=arguments,
            image_format=self.image_format,
            cache=cache,
            image=quoteattr(self.image_path),
            serial_log=quoteattr(self.serial_log),
            extra_devices=self.extra_devices,
        )


def serial_log(name: str) -> str:
    """Return the path of a guest's serial log in each node."""
    return f"/var/log/libvirt/qemu/{name}-serial.log"


def install_boot_files(hosts: Sequence[Host]) -> None:
    """Put kernel and initramfs where domains expect them, on every host given."""
    boot = guest_boot()
    for host in hosts:
        directory = host.path(BOOT_DIRECTORY)
        directory.mkdir(mode=0o755, exist_ok=True)
        for source, name in ((boot.kernel, "vmlinuz"), (boot.initrd, "initrd")):
            target = directory / name
            if not target.exists():
                target.write_bytes(source.read_bytes())
                target.chmod(0o644)


def make_image(host: Host, spec: GuestSpec) -> Path:
    """Make the guest's disk image in a host and return where it lies outside; raises LabError if it is there."""
    image = host.path(spec.image_path)
    if image.exists():
        raise LabError(f"{host.full_name}: {spec.image_path} exists already")
    image.parent.mkdir(parents=True, exist_ok=True)
    template = _template(spec.data_bytes, spec.seed)
    if spec.image_format == "raw":
        _tool(["cp", "--sparse=always", str(template), str(image)])
        os.truncate(image, spec.disk_bytes)
    else:
        convert = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-W", "-m", "8", str(template), str(image)]
        _tool(convert)
        _tool(["qemu-img", "resize", "-q", "-f", "qcow2", str(image), str(spec.disk_bytes)])
    image.chmod(0o600)
    # Not left to be written while somebody measures.
    with image.open("rb") as stream:
        os.fsync(stream.fileno())
    return image


def _template(data_bytes: int, seed: int) -> Path:
    """Return the sparse raw image that guests' disks are copied from: made once for each amount of data and seed."""
    name = f"disk-{RING_RECORDS}-{data_bytes}-{seed}"
    with cache_lock(name):
        template = cache_directory() / f"{name}.raw"
        if not template.exists():
            draft = template.with_suffix(".new")
            _write_template(draft, data_bytes, seed)
            draft.rename(template)
        return template


def _write_template(draft: Path, data_bytes: int, seed: int) -> None:
    """Write a file system with an empty ring of records, then the pseudo-random data."""
    draft.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_directory(), prefix="records-") as content:
        # No holes and no zeros: the ring's blocks must be allocated for good.
        empty_record = b" " * (RECORD_BYTES - 1) + b"\n"
        (Path(content) / RECORDS_FILE).write_bytes(empty_record * RING_RECORDS)
        options = ["-q", "-F", "-t", "ext2", "-b", "4096", "-m", "0", "-E", "nodiscard", "-d", content]
        _tool(["mke2fs", *options, str(draft), f"{FILE_SYSTEM_BYTES // 1024}k"])
    with draft.open("r+b") as stream:
        stream.seek(FILE_SYSTEM_BYTES)
        for index in range(data_bytes // MEBIBYTE):
            # Twice as fast as the random module, and as repeatable.
            stream.write(hashlib.shake_128(f"{seed}/{index}".encode()).digest(MEBIBYTE))


def _tool(argv: list[str]) -> None:
    """Run an image tool outside the hosts; raises LabError with what it said."""
    environment = {**os.environ, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    result = subprocess.run(argv, capture_output=True, text=True, env=environment)
    if result.returncode != 0:
        raise LabError(f"`{' '.join(argv)}` failed: {result.stderr.strip()}")


def _cache_mode(image: Path) -> str:
    """Return "none" if the image's file system has direct I/O, otherwise "writeback"."""
    try:
        os.close(os.open(image, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        return "writeback"
    return "none"


def define_and_start(host: Host, spec: GuestSpec, nodes: Sequence[Host]) -> None:
    """Make the guest's disk, define its domain in a host and start it; `nodes` get the files that it boots from."""
    install_boot_files(nodes)
    image = make_image(host, spec)
    cache = _cache_mode(image) if spec.cache == "auto" else spec.cache
    xml_file = host.path("/tmp") / f"{spec.name}.xml"  # noqa: S108 - the host's own /tmp
    if spec.prepare is not None:
        spec.prepare(host)
    document = spec.domain_xml(cache)
    xml_file.write_text(document if spec.rewrite is None else spec.rewrite(document))
    try:
        host.run(["virsh", "-q", "-c", "qemu:///system", "define", f"/tmp/{xml_file.name}"])  # noqa: S108 - see above
    finally:
        xml_file.unlink()
    host.run(["virsh", "-q", "-c", "qemu:///system", "start", spec.name])
