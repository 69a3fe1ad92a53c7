"""Nodes of other releases than this machine's: a VM moves to them, and comes back, also from an older to a newer one.

That is how a few nodes are brought to a new release one after the other, with the VMs away from the one at hand.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.packaging.node import AGENT
from tests.packaging.pair import DESTINATION, IMAGE, SOURCE, nodes
from tests.packaging.root import NOBLE, TRIXIE, Release, node_root, own_release


@pytest.mark.parametrize("releases", [
    pytest.param((None, TRIXIE), id="to Debian 13"), pytest.param((NOBLE, NOBLE), id="Ubuntu 24.04")])
@pytest.mark.usefixtures("root")
def test_a_vm_moves_between_nodes_of_these_releases_and_comes_back(
    releases: tuple[Release | None, Release], packages: Path, tmp_path: Path,
) -> None:
    first, second = (node_root(packages, release or own_release()) for release in releases)
    with nodes((first, second), packages, tmp_path) as pair:
        checked = pair.source.run("vmmigration", "check", "kvm").stdout
        assert checked.count("  ok") == 2
        there = pair.source.run(*pair.command())
        assert f"VM1 runs on {DESTINATION} now." in there.stdout
        assert pair.states() == ("shut off", "running")
        back = pair.source.run("vmmigration", DESTINATION, SOURCE, "kvm", "VM1", IMAGE, "/home/vms/back.xml")
        assert f"VM1 runs on {SOURCE} now." in back.stdout
        assert pair.states() == ("running", "shut off")
        for machine in (pair.source, pair.destination):
            assert "Traceback" not in machine.journal(AGENT)
