"""What both ends of the protocol do with bytes that atheris, a fuzzer guided by coverage, makes up.

    pip install atheris
    python -m tests.loopback.fuzz_atheris DIRECTORY [-max_total_time=300] [other options of libFuzzer]

DIRECTORY keeps what was found interesting; a run on an empty one begins with a message of each kind. An input that
raises, or is answered without a right MAC, ends the run and is written to the current directory.
"""

from __future__ import annotations

import importlib
import logging
import sys
from pathlib import Path

atheris = importlib.import_module("atheris")

with atheris.instrument_imports(include=["udpmodule", "wire", "constant"]):
    from constant import Command, MessageType
    from tests.loopback.fuzz import bodies, result_of
    from tests.unit.pair import EPOCH, responder
    from tests.unit.samples import AGENT_KEY, CONTROLLER, FACTS, HOST_FACTS, SOURCE, STOPS
    from udpmodule import Stage
    from wire.datagram import Direction, keyring, seal, seal_reply, unseal
    from wire.errors import ErrorCode, MigrationError
    from wire.exchange import Exchange, Requester
    from wire.findings import CheckReport
    from wire.message import Reply, Request
    from wire.records import HelloArguments, Obstacle, Progress

_NOW = 1000.0
_CHALLENGE = responder(now=_NOW).challenge(_NOW)
_PATIENCE = 90.0
# The first byte of an input: who gets the rest, and whether it is a whole datagram or a body that is sealed first.
_AGENT, _AGENT_SEALED, _CONTROLLER, _CONTROLLER_SEALED = range(4)


def to_agent(datagram: bytes) -> None:
    """An agent gets it, does all that it asks for, and answers only who has the key."""
    agent = responder(now=_NOW)
    agent.receive_datagram(datagram, CONTROLLER, _NOW)
    while (event := agent.next_event()) is not None:
        request = event.request
        if event.stage is Stage.ARRIVED and request.cmd is not Command.CANCEL:
            agent.accept(request.request_id, _NOW)
        elif event.stage in (Stage.ARRIVED, Stage.BEGUN):
            agent.finish(request.request_id, result_of(request), _NOW)
        for write in agent.entries_to_write():
            agent.entries_written(write, None, _NOW)
    # The same again is answered from memory.
    agent.receive_datagram(datagram, CONTROLLER, _NOW)
    assert agent.next_event() is None
    agent.handle_timer(_NOW + 3600)
    if agent.datagrams_to_send(_NOW):
        unseal(datagram, keyring([AGENT_KEY]), Direction.REQUEST)


def to_controller(datagram: bytes) -> None:
    """A controller that waits for an answer gets it, in both ways that there are, twice."""
    request = Request(request_id="0" * 32, agent_ip=SOURCE, cmd=Command.HELLO, cmd_arguments=HelloArguments())
    requester = Requester(8002, lambda: 0.0)
    exchange = requester.start(request, [AGENT_KEY], _NOW, _PATIENCE)
    alone = Exchange(request, [AGENT_KEY], _NOW, _PATIENCE, lambda: 0.0)
    for time in (_NOW, _NOW + 10):
        requester.handle_timer(time)
        requester.datagrams_to_send(time)
        alone.datagrams_to_send(time)
        requester.receive_datagram(datagram, CONTROLLER, time)
        alone.receive_datagram(datagram, time)
        assert exchange.outcome == alone.outcome
    while alone.next_event() is not None:
        pass
    if alone.outcome is not None:
        unseal(datagram, keyring([AGENT_KEY]), Direction.REPLY)


def one_input(content: bytes) -> None:
    """What atheris calls with each input."""
    whom, rest = content[:1], content[1:]
    if whom == bytes([_AGENT]):
        to_agent(rest)
    elif whom == bytes([_AGENT_SEALED]):
        to_agent(seal(AGENT_KEY, Direction.REQUEST, rest))
    elif whom == bytes([_CONTROLLER]):
        to_controller(rest)
    else:
        to_controller(seal(AGENT_KEY, Direction.REPLY, rest))


def seeds() -> list[bytes]:
    """An input of each kind, of which the others are made."""
    found = []
    for body in bodies(SOURCE, EPOCH, _CHALLENGE):
        found += [bytes([_AGENT]) + seal(AGENT_KEY, Direction.REQUEST, body), bytes([_AGENT_SEALED]) + body]
    error = Obstacle.of(MigrationError(ErrorCode.INTERNAL, {"host": SOURCE, "reason": "unknown"}))
    long = CheckReport(findings=(STOPS,) * 40, facts=FACTS)
    for msg_type, command, result in (
        (MessageType.ACCEPTED, Command.HELLO, None), (MessageType.RESPONSE, Command.HELLO, HOST_FACTS),
        (MessageType.PROGRESS, Command.HELLO, Progress(phase="waiting", done=1, total=2)),
        (MessageType.REFUSED, Command.HELLO, error), (MessageType.RESPONSE, Command.CHECK_SOURCE, long),
    ):
        reply = Reply(
            msg_type=msg_type, request_id="0" * 32, agent_ip=SOURCE, cmd=command, sequence=1, cmd_result=result)
        sealed = [seal_reply(AGENT_KEY, reply, page) for page in range(2)]
        found += [bytes([_CONTROLLER]) + each for each in sealed]
        found += [bytes([_CONTROLLER_SEALED]) + each.partition(b"\n")[2] for each in sealed]
    return found


def main() -> None:
    """Run until libFuzzer has had enough, or something is found."""
    # Each input is another agent's first stranger, of which it would tell.
    logging.disable()
    directory = Path(sys.argv[1])
    directory.mkdir(exist_ok=True)
    if not any(directory.iterdir()):
        for number, seed in enumerate(seeds()):
            (directory / f"seed-{number:02}").write_bytes(seed)
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
