"""Very many agents in one process, and the controller that greets them all from another."""

from __future__ import annotations

import secrets
import selectors
import socket
import sys
import time
from pathlib import Path

from bench.processes import play, say
from bench.samples import LOOPBACK, MASTER, host_facts
from constant import HELLO_GIVE_UP_SECONDS, Command
from udpmodule import ControllerSocket, Responder, Stage
from wire.admission import Gate
from wire.facts import HostFacts
from wire.memory import Memory
from wire.message import Reply, Request
from wire.records import HelloArguments

# The agents: each has its own address, socket, key and memory.


def _address(number: int) -> str:
    """The address of the simulated agent with that number."""
    return f"127.1.{number // 250}.{number % 250 + 1}"


class _SimulatedAgent:
    """Answers HELLO as an agent does, and journals into nothing."""

    def __init__(self, address: str, port: int) -> None:
        now = time.monotonic()
        self.responder = Responder(
            Gate(LOOPBACK), (MASTER.for_agent(address),), Memory(now, time.time()), secrets.token_hex(8),
            secrets.token_bytes(32), now)
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.setblocking(False)
        self.udp.bind((address, port))
        self.port: int = self.udp.getsockname()[1]
        self.sent = 0

    def turn(self) -> None:
        """Take one datagram and do all that follows from it."""
        datagram, address = self.udp.recvfrom(65535)
        now = time.monotonic()
        self.responder.receive_datagram(datagram, (address[0], address[1]), now)
        while (event := self.responder.next_event()) is not None:
            if event.stage is Stage.ARRIVED:
                self.responder.accept(event.request.request_id, now)
            elif event.stage is Stage.BEGUN:
                self._answer(event.request, now)
            for write in self.responder.entries_to_write():
                self.responder.entries_written(write, None, now)
        for reply, asker in self.responder.datagrams_to_send(now):
            self.udp.sendto(reply, asker)
            self.sent += 1

    def _answer(self, request: Request, now: float) -> None:
        facts = host_facts(self.responder.epoch, self.responder.challenge(now))
        self.responder.finish(request.request_id, facts, now)


def _agents(count: str) -> None:
    with selectors.DefaultSelector() as selector:
        agents: list[_SimulatedAgent] = []
        for number in range(int(count)):
            # All on the port that the first one was given.
            agents.append(_SimulatedAgent(_address(number), agents[0].port if agents else 0))
            selector.register(agents[-1].udp, selectors.EVENT_READ, agents[-1])
        # Standard input has nothing to read until it is closed.
        selector.register(sys.stdin, selectors.EVENT_READ)
        say(port=agents[0].port)
        while True:
            ready = [key.data for key, _ in selector.select()]
            if None in ready:
                break
            for agent in ready:
                agent.turn()
    say(received=sum(agent.responder.gate.counters["received"] for agent in agents),
        sent=sum(agent.sent for agent in agents))


# The controller of many agents.


def _peak_memory() -> int:
    """The most bytes that this process has had in memory.

    getrusage() would count in what the process that started this one had: Linux keeps ru_maxrss over an exec.
    """
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    (peak,) = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return int(peak) * 1024


def _controller(port: str, count: str) -> None:
    # For its memory: what the admin's command has in it.
    import vmmigration  # noqa: F401

    hosts = [_address(number) for number in range(int(count))]
    udp = ControllerSocket(int(port))
    began = time.monotonic()
    exchanges = [
        udp.start(Request(
            request_id=secrets.token_hex(16), agent_ip=host, cmd=Command.HELLO, cmd_arguments=HelloArguments(),
        ), (MASTER.for_agent(host),), HELLO_GIVE_UP_SECONDS)
        for host in hosts]
    outcomes = [udp.wait(exchange, lambda _progress: None) for exchange in exchanges]
    seconds = time.monotonic() - began
    answered = sum(
        isinstance(outcome, Reply) and isinstance(outcome.cmd_result, HostFacts) for outcome in outcomes)
    udp.close()
    say(seconds=seconds, answered=answered, peak_memory=_peak_memory())


if __name__ == "__main__":
    play({"agents": _agents, "controller": _controller})
