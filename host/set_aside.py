"""The definition of a copy that an earlier move has left on this host: set aside while the VM comes back, and put back
if it does not come.
"""

from __future__ import annotations

from pathlib import Path

from host.file_identity import FileIdentity
from host.hypervisor import Hypervisor
from host.job_files import Ledger, MadeKind, write_synced


def set_aside(hypervisor: Hypervisor, domain: str, ledger: Ledger, path: Path) -> None:
    """Keep the domain's definition in a file, then have libvirt forget it. Raises OSError, MigrationError."""
    document = hypervisor.document(domain, inactive=True)
    ledger.plan(MadeKind.DEFINITION, str(path))
    # Not for others: the document may hold a console's password.
    write_synced(path, document.encode())
    ledger.add(MadeKind.DEFINITION, str(path), FileIdentity.at(str(path)))
    hypervisor.undefine(domain)


def put_back(hypervisor: Hypervisor, domain: str, ledger: Ledger) -> None:
    """Define again what was set aside, if anything was. The file stays until the ledger is closed."""
    for made in ledger.entries():
        if made.kind is MadeKind.DEFINITION and made.inode and made.still_there() and hypervisor.view(domain).gone:
            hypervisor.define(Path(made.path).read_text(encoding="utf-8"))
