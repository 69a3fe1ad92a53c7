"""EXTRACT_CONFIGURE_FILE: the domain's XML, as this host's libvirt has it now, at the conf file path asked for."""

from __future__ import annotations

import os

from host.hypervisor import RESTART_SECONDS, Hypervisor
from host.job_files import refuse_system_directory
from host.stale_copy import take_note_off
from steps.context import StepContext
from wire.errors import ErrorCode, MigrationError
from wire.phrase import Phrase, template
from wire.records import StepArguments, StepReport, libvirt_conf_path


def run(context: StepContext, arguments: StepArguments) -> StepReport:
    """Write the file, or leave libvirt's own alone if that is the one. Raises MigrationError."""
    migration, domain = arguments.migration, arguments.migration.name_there
    path = migration.conf_path()
    if path == libvirt_conf_path(domain):
        if not arguments.known_facts().persistent:
            return StepReport(summary=Phrase("none: a transient VM has no file"))
        # Writing over the file that libvirtd keeps for itself would only be overwritten by its next change.
        if not os.path.isfile(path):
            problem = Phrase("libvirt has not written {path}", {"path": path})
            raise MigrationError(
                ErrorCode.NOT_AS_EXPECTED, {"host": context.host, "problem": problem, "domain": domain})
        return StepReport(summary=Phrase("{path} (libvirt's own)", {"path": path}))
    # Whoever asks: root writes it.
    refuse_system_directory(template("Conf file path"), path, context.host)
    with Hypervisor.open(context.host, patience=RESTART_SECONDS) as hypervisor:
        if arguments.known_facts().persistent:
            take_note_off(hypervisor, domain)
        document = hypervisor.document(domain, inactive=True)
    try:
        # Not for others: the document may hold a console's password.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(document)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError as error:
        if not _holds(path, document):
            facts = {"path": path, "host": context.host, "hint": _by_hand(context.host, domain)}
            raise MigrationError(ErrorCode.PATH_TAKEN, facts) from error
    except OSError as error:
        facts = {"path": os.path.dirname(path), "host": context.host, "reason": error.strerror or str(error),
                 "hint": _by_hand(context.host, domain)}
        raise MigrationError(ErrorCode.DIRECTORY_MISSING, facts) from error
    return StepReport(summary=path)


def _by_hand(host: str, domain: str) -> Phrase:
    """What is left to do where the file could not be written: the VM has moved, and nothing else is missing."""
    return Phrase(
        "Write it by hand on {host}: `virsh dumpxml --inactive --security-info {domain} > FILE`.",
        {"host": host, "domain": domain})


def _holds(path: str, document: str) -> bool:
    """Whether the file at the path holds just that: then this step has been here before."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, encoding="utf-8") as file:
            return file.read(len(document) + 1) == document
    except (OSError, UnicodeDecodeError):
        return False
