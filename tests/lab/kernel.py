"""The guest's kernel and initramfs: a Linux image package of the distribution, unpacked (never installed), with
busybox around the modules that the witness's disk needs.
"""

from __future__ import annotations

import fcntl
import hashlib
import lzma
import os
import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .state import CHECKOUT, LabError

#: Names another place for what is made once and kept.
CACHE_VARIABLE = "VMMIGRATION_LAB_CACHE"
#: Debian's, then Ubuntu's: packages that depend on the image package proper.
META_PACKAGES = ("linux-image-cloud-amd64", "linux-image-virtual", "linux-image-generic", "linux-image-amd64")
#: In the order in which they are loaded; each after what it depends on. Those built in are left out.
MODULES = (
    "crc32c_generic",
    "virtio_ring",
    "virtio",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "ext4",
    "button",
    "evdev",
)
#: For the guest agent's channel; loaded where there is one.
CHANNEL_MODULES = ("virtio_console",)
#: A guest can do without these: a kernel may not have them.
OPTIONAL_MODULES = {
    "crc32c_generic",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_net",
    "button",
    "evdev",
}
INIT_SCRIPT = Path(__file__).with_name("guest-init.sh")
AGENT_SCRIPT = Path(__file__).with_name("guest-agent.sh")
_PACKAGE_PATTERN = re.compile(r"linux-(?:image|modules)(?:-unsigned)?-\d[\w.+~-]*")


@dataclass(frozen=True)
class GuestBoot:
    """The files that a guest boots from."""

    kernel: Path
    initrd: Path


def cache_directory() -> Path:
    """Return the directory for what is made once and kept, which is made if need be."""
    directory = Path(os.environ.get(CACHE_VARIABLE) or CHECKOUT / ".lab-cache")
    directory.mkdir(parents=True, exist_ok=True)
    return directory


@contextmanager
def cache_lock(name: str) -> Iterator[None]:
    """Let one process at a time make the thing of that name in the cache."""
    with (cache_directory() / f"{name}.lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def guest_boot() -> GuestBoot:
    """Return kernel and initramfs, made the first time; raises LabError if no kernel can be had."""
    with cache_lock("kernel"):
        unpacked = _unpacked_kernel()
        busybox = _busybox()
        parts = [INIT_SCRIPT.read_bytes(), AGENT_SCRIPT.read_bytes(), busybox.read_bytes()]
        recipe = hashlib.sha256(b"".join(parts) + "".join(MODULES + CHANNEL_MODULES).encode())
        initrd = unpacked / f"initrd-{recipe.hexdigest()[:16]}.cpio"
        if not initrd.exists():
            draft = initrd.with_suffix(".new")
            draft.write_bytes(_initramfs(unpacked, busybox))
            draft.rename(initrd)
        return GuestBoot(unpacked / "vmlinuz", initrd)


def _busybox() -> Path:
    """Return a busybox that needs no library; raises LabError if there is none."""
    for name in ("busybox-static", "busybox"):
        found = shutil.which(name)
        if found and _is_static(Path(found).read_bytes()):
            return Path(found)
    raise LabError("there is no static busybox: apt-get install busybox-static")


def _is_static(program: bytes) -> bool:
    """Say whether a 64-bit ELF program needs no dynamic loader (has no header of type PT_INTERP)."""
    offset, size, count = struct.unpack_from("<Q", program, 32)[0], *struct.unpack_from("<HH", program, 54)
    types = (struct.unpack_from("<I", program, offset + size * index)[0] for index in range(count))
    return 3 not in types


def _unpacked_kernel() -> Path:
    """Return the directory with vmlinuz and modules/ of the newest image package that was ever unpacked."""
    present = sorted(cache_directory().glob("kernel-*/vmlinuz"), key=lambda file: file.stat().st_mtime)
    if present:
        return present[-1].parent
    packages = _image_packages()
    with tempfile.TemporaryDirectory(dir=cache_directory(), prefix="unpack-") as name:
        work = Path(name)
        _run(["apt-get", "download", *packages], work)
        for archive in work.glob("*.deb"):
            _run(["dpkg-deb", "-x", str(archive), str(work / "root")], work)
            archive.unlink()
        images = sorted((work / "root/boot").glob("vmlinuz-*"))
        if not images:
            raise LabError(f"no kernel in {', '.join(packages)}")
        version = images[-1].name.partition("-")[2]
        modules = work / "root/lib/modules" / version
        if not modules.is_dir():
            modules = work / "root/usr/lib/modules" / version
        result = work / "kernel"
        result.mkdir(mode=0o755)
        shutil.move(str(images[-1]), str(result / "vmlinuz"))
        (result / "vmlinuz").chmod(0o644)
        shutil.move(str(modules), str(result / "modules"))
        target = cache_directory() / f"kernel-{version}"
        shutil.rmtree(target, ignore_errors=True)
        result.rename(target)
        return target


def _image_packages() -> list[str]:
    """Return the versioned packages that hold a kernel image and its modules; raises LabError if none is known."""
    for meta in META_PACKAGES:
        found: list[str] = []
        pending = [meta]
        while pending:
            for name in _depends(pending.pop()):
                if _PACKAGE_PATTERN.fullmatch(name) and name not in found and "extra" not in name:
                    found.append(name)
                    pending.append(name)
        if found:
            return found
    raise LabError(
        f"apt knows none of {', '.join(META_PACKAGES)}: run `apt-get update`, or put vmlinuz and modules/ of a "
        f"kernel into {cache_directory()}/kernel-VERSION/"
    )


def _depends(package: str) -> list[str]:
    """Return what a package depends on, alternatives included."""
    argv = ["apt-cache", "depends", "--important", "--no-recommends", "--no-suggests", package]
    result = subprocess.run(argv, capture_output=True, text=True)
    lines = result.stdout.splitlines() if result.returncode == 0 else []
    return [line.split(":", 1)[1].strip() for line in lines if "Depends:" in line]


def _run(argv: list[str], directory: Path) -> None:
    """Run a package tool; raises LabError with what it said."""
    result = subprocess.run(argv, cwd=directory, capture_output=True, text=True)
    if result.returncode != 0:
        hint = "run `apt-get update`, or check the network" if argv[0] == "apt-get" else "is the disk full?"
        raise LabError(f"`{' '.join(argv)}` failed ({hint}): {result.stderr.strip()[-800:]}")


# --- modules -------------------------------------------------------------------------------------------------------


def _module_name(file_name: str) -> str:
    """Return a module's name as the kernel writes it: ext4 for ext4.ko.xz, virtio_blk for virtio-blk.ko."""
    return file_name.partition(".ko")[0].replace("-", "_")


def _module_bytes(file: Path) -> bytes:
    """Return a module's ELF file, uncompressed."""
    if file.suffix == ".xz":
        return lzma.decompress(file.read_bytes())
    if file.suffix == ".zst":
        command = ["zstd", "-d", "-q", "-c", str(file)]
        return subprocess.run(command, check=True, capture_output=True).stdout
    return file.read_bytes()


def _needed_modules(modules: Path) -> dict[str, bytes]:
    """Return the modules that the guest loads, by the directory's name and its place there: each after those it needs.

    What depends on what stands in the modules themselves: a package that was not installed has no modules.dep.
    """
    files = {_module_name(file.name): file for file in modules.rglob("*.ko*")}
    built_in = {_module_name(Path(line).name) for line in (modules / "modules.builtin").read_text().split()}
    loaded: dict[str, bytes] = {}

    def load(name: str, required: bool) -> None:
        if name in loaded or name in built_in:
            return
        if name not in files:
            if required:
                raise LabError(f"the kernel in {modules.parent} has no module {name}")
            return
        content = _module_bytes(files[name])
        match = re.search(rb"\0depends=([^\0]*)\0", content)
        for dependency in match.group(1).decode().split(",") if match else []:
            if dependency:
                load(dependency.replace("-", "_"), True)
        loaded[name] = content

    named: dict[str, bytes] = {}
    for directory, names in (("modules", MODULES), ("modules/channel", CHANNEL_MODULES)):
        before = len(loaded)
        for wanted in names:
            load(wanted, wanted not in OPTIONAL_MODULES)
        for number, content in enumerate(list(loaded.values())[before:]):
            named[f"{directory}/{number:02}.ko"] = content
    return named


# --- initramfs -----------------------------------------------------------------------------------------------------


class CpioArchive:
    """A "newc" archive, the form that the kernel unpacks as its first file system."""

    def __init__(self) -> None:
        """Begin an empty archive."""
        self._parts: list[bytes] = []
        self._count = 0

    def add(self, name: str, mode: int, content: bytes = b"") -> None:
        """Add a file or directory; `mode` with the bits of its type."""
        self._count += 1
        encoded = name.encode() + b"\0"
        fields = (self._count, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
        header = b"070701" + b"".join(b"%08x" % field for field in fields) + encoded
        for part in (header, content):
            self._parts.append(part + bytes(-len(part) % 4))

    def finish(self) -> bytes:
        """Return the archive."""
        self.add("TRAILER!!!", 0)
        return b"".join(self._parts)


def _initramfs(unpacked: Path, busybox: Path) -> bytes:
    """Return an initramfs with busybox, the modules and the witness as /init."""
    archive = CpioArchive()
    for directory in ("bin", "dev", "proc", "sys", "disk", "run", "modules", "modules/channel"):
        archive.add(directory, 0o040755)
    archive.add("bin/busybox", 0o100755, busybox.read_bytes())
    for name, content in _needed_modules(unpacked / "modules").items():
        archive.add(name, 0o100644, content)
    archive.add("init", 0o100755, INIT_SCRIPT.read_bytes())
    archive.add("agent", 0o100755, AGENT_SCRIPT.read_bytes())
    return archive.finish()
