"""Makes the namespaces of one lab host and lets a command into them.

Run as a file of its own, by the lab, with the outer system's root:
    namespaces.py new SPEC.json                               prints "ready" once PID 1 waits
    namespaces.py enter PID1 USER CWD COMMAND [ARGUMENT...]    runs a command, passing signals and status through
The standard library has unshare() and setns() from Python 3.12 on only, hence ctypes.
"""

from __future__ import annotations

import ctypes
import json
import os
import pwd
import signal
import socket
import sys
from pathlib import Path
from typing import NoReturn

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWNET = 0x40000000
CLONE_NEWPID = 0x20000000
NAMESPACE_FLAGS = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET | CLONE_NEWPID
#: The order matters for setns(): the PID namespace by its file must be opened before /proc changes.
NAMESPACE_FILES = ("uts", "ipc", "net", "pid", "mnt")

MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000

PR_SET_PDEATHSIG = 1
EXIT_NOT_FOUND = 127
EXIT_LAUNCHER_FAILED = 125

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    """Raise OSError with the C library's errno if `result` says that a call failed."""
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    """Call mount(2); raises OSError naming the target."""
    result = _libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode())
    _check(result, f"mount {kind or source} on {target}")


def _mount_private_tree(spec: dict[str, object]) -> None:
    """Give this mount namespace the host's own directories, as SPEC's "binds" and "tmpfs" say."""
    mount("none", "/", "", MS_REC | MS_PRIVATE)
    # The checkout may lie below a directory that is about to be hidden (/home, /tmp): its
    # directories are held open, so that they can be bound again afterwards.
    shared = {path: os.open(path, os.O_PATH | os.O_DIRECTORY) for path in _strings(spec["shared"])}
    binds = spec["binds"]
    assert isinstance(binds, dict)
    for target, source in binds.items():
        mount(str(source), str(target), "", MS_BIND)
    for target in _strings(spec["tmpfs"]):
        mount("tmpfs", target, "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755")
        (Path(target) / "lock").mkdir()
        (Path(target) / "lock").chmod(0o1777)
    for path, descriptor in shared.items():
        Path(path).mkdir(parents=True, exist_ok=True)
        mount(f"/proc/self/fd/{descriptor}", path, "", MS_BIND | MS_REC)
        os.close(descriptor)
    # sysfs shows the interfaces of the network namespace in which it was mounted.
    mount("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)


def _strings(value: object) -> list[str]:
    """Return the list of strings that SPEC holds in a field."""
    assert isinstance(value, list)
    return [str(item) for item in value]


def _process_start(pid: int) -> int:
    """Return the start time of a process in clock ticks since boot (field 22 of its stat file)."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def make_host(spec_file: Path) -> NoReturn:
    """Make a host's namespaces and become its PID 1; the caller's process ends as soon as that runs."""
    spec = json.loads(spec_file.read_text())
    _check(_libc.unshare(NAMESPACE_FLAGS), "unshare")
    if os.fork():
        os._exit(0)
    os.setsid()
    # /proc is still the outer one: it tells which process this is outside.
    outer_pid = int(os.readlink("/proc/self"))
    record = Path(spec["pid_file"])
    draft = record.with_suffix(".new")
    draft.write_text(json.dumps({"pid": outer_pid, "start": _process_start(outer_pid)}))
    draft.rename(record)
    socket.sethostname(spec["name"])
    _mount_private_tree(spec)
    os.chdir("/")
    # All signals as they were before Python changed some.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    print("ready", flush=True)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.execv(spec["init"][0], spec["init"])  # noqa: S606 - an argument list from the lab's own file


def _join(pid: int) -> None:
    """Move this process into the namespaces of `pid`; children it makes are in its PID namespace too."""
    descriptors = [os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY) for kind in NAMESPACE_FILES]
    for descriptor, kind in zip(descriptors, NAMESPACE_FILES):
        _check(_libc.setns(descriptor, 0), f"setns {kind}")
        os.close(descriptor)


def _become(user: str) -> None:
    """Take on the identity of one of the host's own users, with its groups and home."""
    account = pwd.getpwnam(user)
    if user != "root":
        os.initgroups(user, account.pw_gid)
        os.setgid(account.pw_gid)
        os.setuid(account.pw_uid)
    os.environ.update(HOME=account.pw_dir, USER=user, LOGNAME=user, SHELL=account.pw_shell)


def _execute(user: str, directory: str, command: list[str]) -> NoReturn:
    """Replace the launcher's child by the command; ends with 127 if there is no such command."""
    try:
        _become(user)
        try:
            os.chdir(directory)
        except OSError:
            os.chdir("/")
        # Whoever ends the launcher with SIGKILL means the command.
        _libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, set())
        os.execvpe(command[0], command, os.environ)  # noqa: S606 - running what is asked for is the purpose
    except (OSError, KeyError) as error:
        print(f"lab: {command[0]}: {error}", file=sys.stderr, flush=True)
    os._exit(EXIT_NOT_FOUND)


def _forward_until_end(child: int) -> int:
    """Pass signals on to the child until it ends; returns its wait status."""
    while True:
        received = signal.sigwaitinfo(signal.valid_signals())
        if received.si_signo == signal.SIGCHLD:
            ended, status = os.waitpid(child, os.WNOHANG | os.WUNTRACED)
            if ended and os.WIFSTOPPED(status):
                os.kill(os.getpid(), signal.SIGSTOP)
                os.kill(child, signal.SIGCONT)
            elif ended:
                return status
        elif received.si_code <= 0:
            # Sent by a process, to this one alone. What the terminal sends (si_code above 0)
            # reaches the child by itself: it is in the same process group.
            os.kill(child, received.si_signo)


def enter_host(pid: int, user: str, directory: str, command: list[str]) -> NoReturn:
    """Run a command in the host whose PID 1 is `pid`, and end as it ends."""
    try:
        _join(pid)
    except OSError as error:
        print(f"lab: cannot enter the host of process {pid}: {error}", file=sys.stderr)
        os._exit(EXIT_LAUNCHER_FAILED)
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    child = os.fork()
    if child == 0:
        _execute(user, directory, command)
    # The command alone holds its pipes: their other ends see its end of file.
    os.closerange(0, 65536)
    os.open(os.devnull, os.O_RDWR)
    status = _forward_until_end(child)
    if os.WIFSIGNALED(status):
        _end_by_signal(os.WTERMSIG(status))
    os._exit(os.WEXITSTATUS(status))


def _end_by_signal(number: int) -> None:
    """End this process by the same signal that ended the command, so that the status is the same."""
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    os.kill(os.getpid(), number)


def main(arguments: list[str]) -> NoReturn:
    """Do what the module's opening text says."""
    if arguments[0] == "new":
        make_host(Path(arguments[1]))
    enter_host(int(arguments[1]), arguments[2], arguments[3], arguments[4:])


if __name__ == "__main__":
    main(sys.argv[1:])
