"""The tunnel of a job, kept for a moment from one step to the next: a run logs in once, and not once for each step.

A login takes 0.2 to 0.4 s; three of them were half of what a run took beside libvirt's own migration (measured).
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from constant import DomainState
from host import orphans
from host.domain_xml import describe
from host.job_files import JobSockets, socket_directory
from host.ssh import Login, Tunnel, tunnel
from wire.records import LinkArguments

if TYPE_CHECKING:
    # Importing it needs libvirt-python, and whoever misses that is to be told so in words.
    from host.hypervisor import Hypervisor

log = logging.getLogger(__name__)

# From the check of the way until the files of the VM, or the VM itself, are sent: the destination is prepared
# meanwhile, which takes less unless an image is to be allocated beforehand. Later it is opened anew.
KEPT_SECONDS = 10.0


@dataclass(frozen=True)
class _Kept:
    """A tunnel that waits for the next step, what closes it, and what it is good for."""

    login: Login
    forwards: Mapping[str, str]
    opened: Tunnel
    closing: ExitStack
    timer: threading.Timer


def qemu_users(hypervisor: Hypervisor, virtualization: str) -> list[str]:
    """As whom QEMU runs here, besides root, by its id: who has to get at a tunnel's sockets."""
    uid, _ = hypervisor.qemu_ids(virtualization)
    return [str(uid)] if uid else []


class KeptTunnels:
    """The tunnels of one agent that wait. Any thread may call it."""

    def __init__(self, seconds: float = KEPT_SECONDS) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._kept: dict[str, _Kept] = {}
        # Of each directory that a tunnel is used in now, or waited for.
        self._in_use: WeakValueDictionary[str, threading.Lock] = WeakValueDictionary()

    @contextmanager
    def of(
        self, login: Login, sockets: JobSockets, forwards: Mapping[str, str], users: Sequence[str], *, keep: bool,
    ) -> Iterator[Tunnel]:
        """A tunnel with these forwards for the length of a `with`: the one that was kept, or a new one.

        `users` are the ids of those who may use its sockets besides root. If all goes well in the `with`, `keep` has
        it wait for the job's next step. Another one of that job that wants it now waits for the end of this `with`.
        Raises what tunnel() and socket_directory() raise.
        """
        with self._lock:
            in_use = self._in_use.setdefault(sockets.directory, threading.Lock())
        with in_use, ExitStack() as closing:
            kept = self._taken(sockets.directory)
            if kept is not None and (kept.login, dict(kept.forwards)) == (login, dict(forwards)) and (
                    not kept.opened.ended()):
                closing.push(kept.closing)
                opened = kept.opened
            else:
                if kept is not None:
                    kept.closing.close()
                if os.path.isdir(sockets.directory):
                    # Of an agent that was killed between two steps.
                    orphans.clear(sockets.directory)
                closing.enter_context(socket_directory(sockets.directory, (0, 0), list(users), login.host))
                opened = closing.enter_context(tunnel(login, forwards, sockets.control))
                # If ssh has ended already they are gone, and the step will say so.
                with contextlib.suppress(FileNotFoundError):
                    for path in sockets.of_root(forwards):
                        # Beside the owner's rights that takes away those of the access list.
                        os.chmod(path, 0o600)
            yield opened
            if keep and not opened.ended():
                self._keep(sockets.directory, login, forwards, opened, closing.pop_all())

    @contextmanager
    def of_link(self, host: str, hypervisor: Hypervisor, arguments: LinkArguments) -> Iterator[Tunnel]:
        """The tunnel in which a way is looked at: the one of the job, if it is for a domain that is here.

        `host` is the source, whose libvirt says as whom QEMU runs. Raises what of() raises.
        """
        domain, users = arguments.domain, []
        name = arguments.name_there or domain or ""
        sockets = JobSockets.named(arguments.job_id, name)
        forwards = sockets.forwards(arguments.destination_daemon, arguments.transport)
        keep = (arguments.keep and domain is not None and sockets.fit(name)
                and hypervisor.state(domain) is not DomainState.ABSENT)
        if keep and domain is not None:
            users = qemu_users(hypervisor, describe(hypervisor.document(domain)).virtualization)
        else:
            # A name that does not fit is an obstacle of its own.
            forwards = {path: there for path, there in forwards.items() if path in (sockets.libvirt, sockets.probe)}
        login = Login(host, arguments.user, arguments.destination)
        with self.of(login, sockets, forwards, users, keep=keep) as opened:
            yield opened

    def _keep(
        self, directory: str, login: Login, forwards: Mapping[str, str], opened: Tunnel, closing: ExitStack,
    ) -> None:
        timer = threading.Timer(self._seconds, self.close, (directory,))
        timer.daemon = True
        with self._lock:
            self._kept[directory] = _Kept(login, forwards, opened, closing, timer)
        timer.start()

    def _taken(self, directory: str) -> _Kept | None:
        with self._lock:
            kept = self._kept.pop(directory, None)
        if kept is not None:
            kept.timer.cancel()
        return kept

    def close(self, directory: str) -> None:
        """End the tunnel that waits there, if one does."""
        with self._lock:
            in_use = self._in_use.setdefault(directory, threading.Lock())
        # Whoever comes for the directory next waits until it is removed.
        with in_use:
            kept = self._taken(directory)
            if kept is not None:
                log.debug("the tunnel in %s is not needed any more", directory)
                with contextlib.suppress(OSError):
                    kept.closing.close()

    def close_soon(self, job_id: str) -> None:
        """End the tunnel of that job that waits, by a thread of its own: its caller may not wait."""
        directory = JobSockets.named(job_id).directory
        threading.Thread(target=self.close, args=(directory,), name="close-tunnel", daemon=True).start()
