"""The short set: some thirty seeded runs that have every kind of fault and every step, in two labs side by side."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Iterator

import pytest

from tests.faults.faults import FAULTS, MOMENTS
from tests.faults.invariants import RunRecord
from tests.faults.soak import FreshGround, Order
from tests.lab.conftest import why_no_lab

LABS = 2
# A run whose labs are busy with all the others before it.
SECONDS = 1800.0
# Fault and step of each run; its place is its seed. The long ones come first, so that neither lab waits for the other.
RUNS = (
    ("link-forever", "LIVE_MIGRATION"),
    ("link-70", "LIVE_MIGRATION"),
    ("stop-source-agent", "LIVE_MIGRATION"),
    ("stop-destination-agent", "SWITCHOVER"),
    ("cable-destination-20", "LIVE_MIGRATION"),
    ("cable-source-20", "SWITCHOVER"),
    ("link-20", "SWITCHOVER"),
    ("link-5", "MEASURE_LINK"),
    ("link-5", "COPY_DISK_FILE"),
    ("management-5", "HELLO"),
    ("management-20", "FINISH_SOURCE"),
    ("loss-destination", "LIVE_MIGRATION"),
    ("loss-source", "PREPARE_DESTINATION"),
    ("loss-management", "SWITCHOVER"),
    ("kill-controller", "LIVE_MIGRATION"),
    ("kill-controller", "SWITCHOVER"),
    ("kill-source-agent", "LIVE_MIGRATION"),
    ("kill-source-agent", "SWITCHOVER"),
    ("kill-destination-agent", "ROLL_BACK"),
    ("kill-destination-agent", "DEFINE_VIRTUAL_MACHINE"),
    ("kill-tunnel", "LIVE_MIGRATION"),
    ("kill-tunnel", "SWITCHOVER"),
    ("kill-destination-sshd", "COPY_DISK_FILE"),
    ("kill-source-libvirtd", "CHECK_SOURCE"),
    ("kill-source-libvirtd", "SWITCHOVER"),
    ("kill-destination-libvirtd", "CHECK_DESTINATION"),
    ("kill-destination-libvirtd", "SWITCHOVER"),
    ("kill-destination-qemu", "SWITCHOVER"),
    ("disk-full", "LIVE_MIGRATION"),
    ("read-only", "LIVE_MIGRATION"),
    ("clock-source", "CHECK_LINK"),
    ("clock-destination", "EXTRACT_CONFIGURE_FILE"),
    ("reboot-source", "LIVE_MIGRATION"),
    ("reboot-destination", "FINISH_DESTINATION"),
)
# The same as others, only longer or pulled elsewhere, or minutes of waiting: script/soak has them.
IN_SOAK_ALONE = {
    "cable-destination-5", "cable-destination-70", "cable-destination-forever", "cable-source-70", "management-70",
    "management-forever", "stop-destination-libvirtd", "stop-destination-qemu"}


def test_the_short_set_has_every_fault_and_every_step() -> None:
    assert {fault for fault, _moment in RUNS} == set(FAULTS) - IN_SOAK_ALONE
    assert {moment for _fault, moment in RUNS} == set(MOMENTS)
    assert all(moment in FAULTS[fault].moments for fault, moment in RUNS)


class Results:
    """The runs, as they come out of the labs."""

    def __init__(self, wanted: list[int]) -> None:
        self._orders: queue.SimpleQueue[int] = queue.SimpleQueue()
        for seed in wanted:
            self._orders.put(seed)
        self._records: dict[int, RunRecord] = {}
        self._arrived = threading.Condition()
        self._threads = [
            threading.Thread(target=self._work, args=(f"tests-faults-{index + 1}",)) for index in range(LABS)]
        for thread in self._threads:
            thread.start()

    def _work(self, prefix: str) -> None:
        with FreshGround(prefix) as fresh:
            while True:
                try:
                    seed = self._orders.get_nowait()
                except queue.Empty:
                    return
                record = fresh.run(Order(seed, *RUNS[seed]))
                with self._arrived:
                    self._records[seed] = record
                    self._arrived.notify_all()

    def of(self, seed: int) -> RunRecord:
        """Wait for one."""
        with self._arrived:
            assert self._arrived.wait_for(lambda: seed in self._records, SECONDS), "the labs are at a standstill"
            return self._records[seed]

    def end(self) -> None:
        """Begin no more, and wait for those that run."""
        while not self._orders.empty():
            self._orders.get_nowait()
        for thread in self._threads:
            thread.join()


@pytest.fixture(scope="module")
def results(request: pytest.FixtureRequest) -> Iterator[Results]:
    """Begins all the runs that were selected. Skips where there can be no lab; under CI that is a failure."""
    reason = why_no_lab()
    if reason is not None and os.environ.get("CI") == "true":
        pytest.fail(f"under CI the lab must run: {reason}")
    if reason is not None:
        pytest.skip(reason)
    wanted = sorted(
        int(str(item.callspec.params["seed"])) for item in request.session.items
        if isinstance(item, pytest.Function) and item.originalname == "test_whatever_breaks_section_6_holds")
    running = Results(wanted)
    yield running
    running.end()


@pytest.mark.lab
@pytest.mark.parametrize("seed", range(len(RUNS)), ids=["-in-".join(run) for run in RUNS])
def test_whatever_breaks_section_6_holds(results: Results, seed: int) -> None:
    record = results.of(seed)
    assert record.violations == (), f"{record.outcome}\n" + "\n".join([*record.violations, record.evidence])
