"""The tunnel of a job from one step to the next: which one a step gets, and when one that waits is ended."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from constant import DomainState
from control.checks import link_arguments
from host import kept_tunnels
from host.job_files import JobSockets
from host.kept_tunnels import KeptTunnels
from host.ssh import Login
from tests.unit.libvirtd import document
from tests.unit.samples import DESTINATION, MIGRATION, SOURCE

LOGIN = Login(SOURCE, "kvm", DESTINATION)
SOCKETS = JobSockets.of(MIGRATION)
FORWARDS = SOCKETS.forwards(MIGRATION.destination_daemon, MIGRATION.transport)


@dataclass
class Child:
    """An ssh."""

    number: int
    gone: bool = False

    def ended(self) -> bool:
        """Whether it is gone."""
        return self.gone


@dataclass
class Site:
    """A host on which tunnels are opened and closed."""

    tunnels: KeptTunnels
    events: list[str] = field(default_factory=list)
    logins: int = 0
    modes: dict[str, int] = field(default_factory=dict)

    @contextlib.contextmanager
    def tunnel(self, _login: Login, _forwards: dict[str, str], _control: str) -> Iterator[Child]:
        """Log in."""
        self.logins += 1
        child = Child(self.logins)
        self.events.append(f"opened {child.number}")
        try:
            yield child
        finally:
            self.events.append(f"closed {child.number}")

    @contextlib.contextmanager
    def directory(self, path: str, *what: object) -> Iterator[None]:
        """Make the directory."""
        assert path == SOCKETS.directory
        self.events.append(f"directory for {what[1]}")
        try:
            yield
        finally:
            self.events.append("removed")

    def step(self, *, keep: bool, login: Login = LOGIN, forwards: dict[str, str] = FORWARDS) -> Any:
        """A step that goes through the tunnel."""
        with self.tunnels.of(login, SOCKETS, forwards, ["64055"], keep=keep) as opened:
            return opened


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """Where no tunnel ends by itself while a test lasts."""
    made = Site(KeptTunnels(seconds=3600.0))
    monkeypatch.setattr(kept_tunnels, "tunnel", made.tunnel)
    monkeypatch.setattr(kept_tunnels, "socket_directory", made.directory)
    monkeypatch.setattr("host.kept_tunnels.os.chmod", lambda path, mode: made.modes.update({path: mode}))
    yield made
    made.tunnels.close(SOCKETS.directory)


def test_all_steps_of_a_run_go_through_one_tunnel_and_the_last_one_closes_it(site: Site) -> None:
    assert [site.step(keep=keep).number for keep in (True, True, False)] == [1, 1, 1]
    assert site.events == ["directory for ['64055']", "opened 1", "closed 1", "removed"]
    assert site.step(keep=False).number == 2


def test_the_user_of_qemu_gets_at_memory_and_disks_and_not_at_libvirt_over_there(site: Site) -> None:
    site.step(keep=False)
    assert site.modes == dict.fromkeys(FORWARDS.keys() - {SOCKETS.memory, SOCKETS.disks}, 0o600)
    assert SOCKETS.libvirt in site.modes


def test_a_step_that_fails_leaves_no_tunnel_behind(site: Site) -> None:
    site.step(keep=True)
    with contextlib.suppress(ValueError), site.tunnels.of(LOGIN, SOCKETS, FORWARDS, [], keep=True):
        raise ValueError("odd")
    assert site.events[-2:] == ["closed 1", "removed"]
    assert site.step(keep=False).number == 2


def test_a_tunnel_that_has_ended_meanwhile_is_opened_anew(site: Site) -> None:
    site.step(keep=True).gone = True
    assert site.step(keep=False).number == 2
    assert site.events[2:6] == ["closed 1", "removed", "directory for ['64055']", "opened 2"]


@pytest.mark.parametrize("other", [
    {"login": dataclasses.replace(LOGIN, user="root")}, {"forwards": {SOCKETS.libvirt: "/run/libvirt/libvirt-sock"}}])
def test_a_tunnel_of_somebody_else_or_to_something_else_is_not_taken(site: Site, other: dict[str, Any]) -> None:
    site.step(keep=True)
    assert site.step(keep=False, **other).number == 2
    assert "closed 1" in site.events


def test_one_that_ended_in_the_step_is_not_kept(site: Site) -> None:
    with site.tunnels.of(LOGIN, SOCKETS, FORWARDS, [], keep=True) as opened:
        opened.gone = True  # type: ignore[attr-defined]  # a Child
    assert site.events[-2:] == ["closed 1", "removed"]


def test_a_tunnel_that_nobody_comes_for_is_ended_after_a_while(
    site: Site, monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[threading.Timer] = []
    monkeypatch.setattr(threading.Timer, "start", lambda timer: started.append(timer))
    site.step(keep=True)
    (timer,) = started
    assert timer.interval == 3600.0
    timer.function(*timer.args)
    assert site.events[-2:] == ["closed 1", "removed"]
    site.step(keep=True)
    site.step(keep=False)
    assert started[1].finished.is_set()


def test_a_job_that_is_cancelled_or_refused_keeps_none(site: Site) -> None:
    site.step(keep=True)
    before = set(threading.enumerate())
    site.tunnels.close_soon("ffffffff")
    site.tunnels.close_soon(MIGRATION.job_id)
    for thread in set(threading.enumerate()) - before:
        thread.join(5.0)
    assert site.events[-2:] == ["closed 1", "removed"]


def test_a_step_that_comes_while_another_one_uses_the_tunnel_waits_for_it(site: Site) -> None:
    got: list[int] = []
    with site.tunnels.of(LOGIN, SOCKETS, FORWARDS, [], keep=True):
        second = threading.Thread(target=lambda: got.append(site.step(keep=False).number))
        second.start()
        second.join(0.05)
        assert (got, second.is_alive()) == ([], True)
    second.join(5.0)
    assert (got, site.logins) == ([1], 1)


def test_a_step_that_comes_while_the_tunnel_is_being_closed_gets_a_new_one_when_all_of_it_is_gone(site: Site) -> None:
    site.step(keep=True)
    lock = site.tunnels._in_use.setdefault(SOCKETS.directory, threading.Lock())
    with lock:
        closing = threading.Thread(target=site.tunnels.close, args=(SOCKETS.directory,))
        closing.start()
        closing.join(0.05)
        assert (closing.is_alive(), site.events[-1]) == (True, "opened 1")
    closing.join(5.0)
    assert site.events[-2:] == ["closed 1", "removed"]
    assert site.step(keep=False).number == 2


class Libvirt:
    """What is asked of the source's libvirt."""

    def __init__(self, state: DomainState) -> None:
        self._state = state

    def state(self, _domain: str) -> DomainState:
        """How the VM is."""
        return self._state

    def document(self, _domain: str) -> str:
        """Its definition."""
        return document()

    def qemu_ids(self, virtualization: str) -> tuple[int, int]:
        """As whom QEMU runs."""
        assert virtualization == "kvm"
        return 64055, 64055


def look_at(site: Site, *, state: DomainState = DomainState.RUNNING, **changes: Any) -> None:
    """A step that looks at the way."""
    arguments = dataclasses.replace(link_arguments(MIGRATION, keep=True), **changes)
    with site.tunnels.of_link(SOURCE, cast(Any, Libvirt(state)), arguments):
        pass


def test_the_tunnel_in_which_the_way_is_looked_at_is_the_one_that_the_vm_will_take(site: Site) -> None:
    look_at(site)
    assert site.step(keep=False).number == 1


def test_so_it_is_for_a_vm_that_gets_another_name(site: Site) -> None:
    renamed = dataclasses.replace(MIGRATION, new_name="web")
    arguments = link_arguments(renamed, keep=True)
    with site.tunnels.of_link(SOURCE, cast(Any, Libvirt(DomainState.RUNNING)), arguments):
        pass
    sockets = JobSockets.of(renamed)
    forwards = sockets.forwards(arguments.destination_daemon, renamed.transport)
    assert any(path.endswith(".tunnelmigrate.dest.web") for path in forwards)
    assert site.step(keep=False, forwards=forwards).number == 1


@pytest.mark.parametrize("changes", [
    {"keep": False}, {"domain": None}, {"domain": "x" * 90}, {"state": DomainState.ABSENT}])
def test_where_there_is_no_vm_to_take_it_the_tunnel_is_closed_again(site: Site, changes: dict[str, Any]) -> None:
    look_at(site, **changes)
    assert site.events == ["directory for []", "opened 1", "closed 1", "removed"]


def test_what_an_agent_that_was_killed_has_left_is_cleared_first(
    site: Site, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("host.kept_tunnels.os.path.isdir", lambda path: path == SOCKETS.directory)
    monkeypatch.setattr("host.orphans.clear", lambda path: site.events.append(f"cleared {path}"))
    site.step(keep=False)
    assert site.events[:2] == [f"cleared {SOCKETS.directory}", "directory for ['64055']"]
