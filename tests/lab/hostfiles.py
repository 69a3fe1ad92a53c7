"""The directories that each lab host has for itself, and what stands in them: accounts, names, SSH and libvirt's
configuration. Written from outside, before the host's namespaces exist.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

from .state import host_uuid

#: Each host's own directories (modes are Debian's); the mount points' order is that of mounting.
PRIVATE_DIRECTORIES: dict[str, int] = {
    "/etc": 0o755,
    "/var/lib/libvirt": 0o755,
    "/var/cache/libvirt": 0o711,
    "/var/log": 0o755,
    "/var/lib/vmmigration": 0o700,
    "/tmp": 0o1777,  # noqa: S108 - each host gets a /tmp of its own, nothing is written to the outer one
    "/home": 0o755,
    "/root/.ssh": 0o700,
}
#: On memory, as on a real host: libvirt syncs its state there often.
TMPFS_DIRECTORIES = ("/run",)

KVM_DEVICE = "/dev/kvm"

LIBVIRT_GROUP = "libvirt"
QEMU_USER = "libvirt-qemu"
#: The ordinary user through which the nodes reach each other.
SSH_USER = "kvm"
#: Numbers that Debian assigns to libvirt-qemu on every system.
QEMU_UID = 64055
FIRST_ORDINARY_UID = 1000

SSHD_CONFIG = """\
Port 22
ListenAddress 0.0.0.0
HostKey /etc/ssh/ssh_host_ed25519_key
PidFile /run/sshd.pid
PermitRootLogin prohibit-password
PubkeyAuthentication yes
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
StrictModes yes
AllowTcpForwarding yes
AllowStreamLocalForwarding yes
MaxStartups 100:30:200
LogLevel VERBOSE
Subsystem sftp internal-sftp
"""

QEMU_CONF = """\
user = "{user}"
group = "{group}"
dynamic_ownership = 1
remember_owner = 0
security_driver = "none"
cgroup_controllers = []
namespaces = []
"""

LIBVIRTD_CONF = """\
host_uuid = "{uuid}"
unix_sock_group = "libvirt"
unix_sock_ro_perms = "0777"
unix_sock_rw_perms = "0770"
auth_unix_ro = "none"
auth_unix_rw = "none"
log_level = 3
log_outputs = "3:file:/var/log/libvirt/libvirtd.log"
"""

# The witness's serial log goes through virtlogd: nothing may be rotated away while a test runs.
VIRTLOGD_CONF = """\
max_size = 1073741824
log_outputs = "3:file:/var/log/libvirt/virtlogd.log"
"""


@dataclass(frozen=True)
class HostIdentity:
    """What a host is called and how it is reached; `is_node` says whether it runs VMs."""

    prefix: str
    name: str
    address: str
    is_node: bool

    @property
    def full_name(self) -> str:
        """The host's own name, the same nowhere else: <prefix>-<name>."""
        return f"{self.prefix}-{self.name}"


class Accounts:
    """The passwd, group and shadow files of one private /etc."""

    def __init__(self, etc: Path) -> None:
        """Read the files below `etc`."""
        self._etc = etc
        self._tables = {
            name: [line.split(":") for line in (etc / name).read_text().splitlines() if line]
            for name in ("passwd", "group", "shadow")
        }

    def _row(self, table: str, name: str) -> list[str] | None:
        """Return the row of that name, or None."""
        return next((row for row in self._tables[table] if row[0] == name), None)

    def _free_number(self, table: str, first: int) -> int:
        """Return the first number from `first` on that no row of a table has."""
        taken = {int(row[2]) for row in self._tables[table] if row[2].isdigit()}
        return next(number for number in range(first, first + 10_000) if number not in taken)

    def ensure_group(self, name: str, first_number: int) -> int:
        """Return the number of a group, which is made if there is none."""
        row = self._row("group", name)
        if row is None:
            row = [name, "x", str(self._free_number("group", first_number)), ""]
            self._tables["group"].append(row)
        return int(row[2])

    def ensure_user(self, name: str, first_number: int, group: int, home: str, shell: str) -> None:
        """Make the user if there is none of that name."""
        if self._row("passwd", name) is None:
            number = self._free_number("passwd", first_number)
            self._tables["passwd"].append([name, "x", str(number), str(group), "", home, shell])
            # "*", not "!": sshd refuses even a key to an account that is locked.
            self._tables["shadow"].append([name, "*", "19000", "0", "99999", "7", "", "", ""])

    def forget_user(self, name: str) -> None:
        """Drop a user that the outer system happens to have, and its memberships."""
        for table in ("passwd", "shadow"):
            self._tables[table] = [row for row in self._tables[table] if row[0] != name]
        for row in self._tables["group"]:
            row[3] = ",".join(member for member in row[3].split(",") if member != name)

    def add_member(self, group: str, user: str) -> None:
        """Put a user into a group."""
        row = self._row("group", group)
        assert row is not None
        members = [member for member in row[3].split(",") if member]
        row[3] = ",".join([*members, user] if user not in members else members)

    def numbers(self, user: str) -> tuple[int, int]:
        """Return a user's uid and primary gid."""
        row = self._row("passwd", user)
        assert row is not None
        return int(row[2]), int(row[3])

    def write(self) -> None:
        """Write the files back."""
        for name, rows in self._tables.items():
            (self._etc / name).write_text("".join(":".join(row) + "\n" for row in rows))


def write_text(file: Path, text: str, mode: int = 0o644) -> None:
    """Replace a file, or a link in its place, by a plain file of that mode."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.is_symlink():
        file.unlink()
    file.write_text(text)
    file.chmod(mode)


def make_directory(directory: Path, mode: int, owner: tuple[int, int] = (0, 0)) -> None:
    """Make a directory with exactly that mode and owner, whatever the umask."""
    directory.mkdir(parents=True, exist_ok=True)
    os.chown(directory, *owner)
    directory.chmod(mode)


def make_key(file: Path, comment: str) -> str:
    """Make an ed25519 key without passphrase and return its public line."""
    file.parent.mkdir(parents=True, exist_ok=True)
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(file)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return file.with_name(file.name + ".pub").read_text()


def make_host_files(root: Path, host: HostIdentity, everyone: list[HostIdentity], qemu_user: str) -> None:
    """Make a host's private directories below `root`, complete but for other hosts' SSH keys."""
    for path, mode in PRIVATE_DIRECTORIES.items():
        make_directory(root / path.lstrip("/"), mode)
    etc = root / "etc"
    subprocess.run(["cp", "-a", "/etc/.", str(etc)], check=True)  # noqa: S607 - fixed arguments
    _write_names(etc, host, everyone)
    accounts = _write_accounts(etc)
    make_directory(etc / "vmmigration", 0o755)
    _write_ssh(root, host, accounts)
    if host.is_node:
        _write_libvirt(root, host, accounts, qemu_user)
    else:
        shutil.rmtree(etc / "libvirt", ignore_errors=True)


def _write_names(etc: Path, host: HostIdentity, everyone: list[HostIdentity]) -> None:
    """Write the host's name and how it resolves names: from its own file alone, at once."""
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback"]
    lines += [f"{other.address} {other.full_name} {other.name}" for other in everyone]
    write_text(etc / "hosts", "\n".join(lines) + "\n")
    write_text(etc / "hostname", f"{host.full_name}\n")
    write_text(etc / "resolv.conf", "")
    write_text(
        etc / "nsswitch.conf",
        "passwd: files\ngroup: files\nshadow: files\nhosts: files\nservices: files\nprotocols: files\n",
    )
    # What the outer system runs at each login may print, or hang, where libvirt's SSH transport listens.
    shutil.rmtree(etc / "profile.d", ignore_errors=True)


def _write_accounts(etc: Path) -> Accounts:
    """Make sure of libvirt's accounts, and make the ordinary user that is in group libvirt."""
    accounts = Accounts(etc)
    accounts.ensure_group(LIBVIRT_GROUP, 900)
    kvm_group = accounts.ensure_group("kvm", 990)
    accounts.ensure_group(QEMU_USER, QEMU_UID)
    accounts.ensure_user(QEMU_USER, QEMU_UID, kvm_group, "/var/lib/libvirt", "/usr/sbin/nologin")
    accounts.add_member(QEMU_USER, QEMU_USER)
    # Not in group kvm, though it is called so: that is QEMU's own primary group.
    accounts.forget_user(SSH_USER)
    users = accounts.ensure_group("users", 100)
    accounts.ensure_user(SSH_USER, FIRST_ORDINARY_UID, users, f"/home/{SSH_USER}", "/bin/bash")
    accounts.add_member(LIBVIRT_GROUP, SSH_USER)
    accounts.write()
    return accounts


def _write_ssh(root: Path, host: HostIdentity, accounts: Accounts) -> None:
    """Write sshd's configuration, the host's own key, root's key, and an empty ~/.ssh for the SSH user."""
    ssh = root / "etc/ssh"
    shutil.rmtree(ssh, ignore_errors=True)
    write_text(ssh / "sshd_config", SSHD_CONFIG)
    # Otherwise OpenSSH's defaults, as on a host that nobody has tuned: whoever wants no question must say so.
    write_text(ssh / "ssh_config", "Host *\n    HashKnownHosts no\n")
    make_key(ssh / "ssh_host_ed25519_key", f"root@{host.full_name}")
    make_key(root / "root/.ssh/id_ed25519", f"root@{host.full_name}")
    owner = accounts.numbers(SSH_USER)
    home = root / "home" / SSH_USER
    make_directory(home, 0o755, owner)
    make_directory(home / ".ssh", 0o700, owner)


def _write_libvirt(root: Path, host: HostIdentity, accounts: Accounts, qemu_user: str) -> None:
    """Write libvirt's configuration and its directories, with Debian's owners and modes."""
    libvirt = root / "etc/libvirt"
    # What the outer system has defined (machines, networks, pools) is not this host's.
    for name in ("qemu", "storage", "secrets", "nwfilter", "nwfilter-binding"):
        shutil.rmtree(libvirt / name, ignore_errors=True)
    make_directory(libvirt / "qemu", 0o700)
    make_directory(libvirt / "hooks", 0o755)
    qemu_group = "root" if qemu_user == "root" else QEMU_USER
    write_text(libvirt / "qemu.conf", QEMU_CONF.format(user=qemu_user, group=qemu_group), 0o600)
    write_text(libvirt / "libvirtd.conf", LIBVIRTD_CONF.format(uuid=host_uuid(host.prefix, host.name)))
    write_text(libvirt / "virtlogd.conf", VIRTLOGD_CONF)
    state = root / "var/lib/libvirt"
    make_directory(state / "images", 0o711)
    make_directory(state / "boot", 0o711)
    make_directory(state / "qemu", 0o750, accounts.numbers(QEMU_USER))
    make_directory(root / "var/cache/libvirt/qemu", 0o711)
    _make_kvm_device(root, accounts)
    make_directory(root / "var/log/libvirt/qemu", 0o755)


def _make_kvm_device(root: Path, accounts: Accounts) -> None:
    """Make the host's own /dev/kvm with Debian's group and mode, if the machine has one.

    Where root alone may open it, as in a container or a small VM, libvirt takes what it probed for invalid and probes
    again at each look: 0.7 s each, 7 s for a `virsh define`.
    """
    outer = Path(KVM_DEVICE)
    if outer.exists():
        device = root / KVM_DEVICE.lstrip("/")
        device.parent.mkdir()
        os.mknod(device, stat.S_IFCHR, outer.stat().st_rdev)
        os.chown(device, 0, accounts.ensure_group("kvm", 990))
        device.chmod(0o660)


def trust(root: Path, other_root: Path, other: HostIdentity) -> None:
    """Let root of the host at `root` reach the SSH user of another host without a question."""
    host_key = (other_root / "etc/ssh/ssh_host_ed25519_key.pub").read_text().split()
    names = f"{other.address},{other.full_name},{other.name}"
    known_hosts = root / "root/.ssh/known_hosts"
    known = known_hosts.read_text() if known_hosts.exists() else ""
    write_text(known_hosts, f"{known}{names} {host_key[0]} {host_key[1]}\n")
    public_key = (root / "root/.ssh/id_ed25519.pub").read_text()
    authorized = other_root / "home" / SSH_USER / ".ssh/authorized_keys"
    present = authorized.read_text() if authorized.exists() else ""
    write_text(authorized, present + public_key, 0o600)
    os.chown(authorized, *Accounts(other_root / "etc").numbers(SSH_USER))
