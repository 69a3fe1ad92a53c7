"""The copy of a VM that stays behind when it has moved: its disks, its NVRAM and its TPM's state get other names, so
that it cannot be started by mistake, and get their own again if somebody has to go back.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass

from host.disks_of_others import DisksOfOthers
from host.domain_edit import Changes, edit
from host.domain_files import TPM_DIRECTORY
from host.domain_xml import describe
from host.hypervisor import Hypervisor
from wire.phrase import Phrase
from wire.placement import is_device
from wire.situation import MovedNote, hidden_name


@dataclass(frozen=True)
class StaleCopy:
    """The copy on this host that a job leaves behind: what its definition names, by the names before the move.

    A file gets another name on disk. A block device cannot, and what another VM uses as well must not: there the
    definition gets another name for it.
    """

    job_id: str
    files: tuple[str, ...]
    devices: tuple[str, ...]
    shared: tuple[str, ...] = ()
    """What another VM uses as well: it is left alone, and the definition gets another name for it."""
    taken: tuple[str, ...] = ()
    """What another VM has been given since."""

    @classmethod
    def of(cls, hypervisor: Hypervisor, domain: str, job_id: str, host: str) -> StaleCopy:
        """What libvirt here says belongs to the domain alone. Raises MigrationError DOMAIN_MISSING."""
        description = describe(hypervisor.document(domain, inactive=True))
        others = DisksOfOthers.of(hypervisor, domain, host)
        named = [
            disk.path for disk in description.disks
            if disk.path is not None and disk.mirrored and not disk.shareable]
        named += [description.nvram.path] if description.nvram is not None else []
        paths = [path.removesuffix(hidden_name("", job_id)) for path in named]
        shared = tuple(filter(others.include, paths))
        own = [path for path in paths if path not in shared]
        tpm = (f"{TPM_DIRECTORY}/{description.uuid}",) if description.has_tpm else ()
        return cls(
            job_id, (*(path for path in own if not is_device(path)), *tpm), tuple(filter(is_device, own)), shared,
            tuple(path for path in shared if os.path.lexists(hidden_name(path, job_id)) or (
                hidden_name(path, job_id) in named and path in others.named)))

    def hidden(self, path: str) -> str:
        """The name under which it lies while nobody is to find it."""
        return hidden_name(path, self.job_id)

    def hide(self, hypervisor: Hypervisor, domain: str) -> list[str]:
        """Have the domain not find here what it needs to start. Returns what went wrong."""
        self._name(hypervisor, domain, {path: self.hidden(path) for path in self._on_paper()})
        return _rename({path: self.hidden(path) for path in self.files})

    def bring_back(self, hypervisor: Hypervisor, domain: str) -> list[str]:
        """Undo that and mark(), but for autostart. Returns what went wrong; the note stays then."""
        problems = _rename({self.hidden(path): path for path in self.files})
        if not problems:
            self._name(hypervisor, domain, {self.hidden(path): path for path in self._on_paper()})
            hypervisor.set_moved_note(domain, None)
        return problems

    def _on_paper(self) -> list[str]:
        """What gets another name in the definition alone; what has come to be shared only since has one on disk."""
        return [*self.devices, *(path for path in self.shared if not os.path.lexists(self.hidden(path)))]

    @staticmethod
    def _name(hypervisor: Hypervisor, domain: str, paths: dict[str, str]) -> None:
        document = hypervisor.document(domain, inactive=True)
        changed = edit(document, Changes(paths=paths))
        if changed != document:
            hypervisor.define(changed)

    def lacking(self) -> list[str]:
        """What is under neither name, so that it would have to be made anew."""
        return [path for path in self.files if not (os.path.lexists(path) or os.path.lexists(self.hidden(path)))]

    def beyond(self) -> list[str]:
        """What delete() leaves: the data on block devices, and files that are only linked to."""
        return [*self.devices, *(path for path in self.files if os.path.islink(self.hidden(path)))]

    def delete(self) -> list[str]:
        """Remove what was hidden, for good. Returns what went wrong."""
        problems: list[str] = []
        for path in map(self.hidden, self.files):
            try:
                if os.path.isdir(path) and not os.path.islink(path):
                    shutil.rmtree(path)
                elif os.path.lexists(path):
                    os.unlink(path)
            except OSError as error:
                problems.append(Phrase("cannot remove {path}: {reason}", {
                    "path": path, "reason": error.strerror or str(error)}))
        return problems


def mark(hypervisor: Hypervisor, domain: str, note: MovedNote) -> None:
    """Have the copy of a VM that has moved not start with its host, and say in its definition why."""
    hypervisor.set_autostart(domain, False)
    hypervisor.set_moved_note(domain, note)


def take_note_off(hypervisor: Hypervisor, domain: str) -> None:
    """Of a VM that has arrived: a copy that somebody has started all the same is none where it comes to be moved."""
    if hypervisor.moved_note(domain) is not None:
        hypervisor.set_moved_note(domain, None)


def _rename(names: dict[str, str]) -> list[str]:
    """Rename what is there; what has its new name already stays, and nothing is put in another's place."""
    problems: list[str] = []
    for old, new in names.items():
        if not os.path.lexists(old):
            continue
        try:
            if os.path.lexists(new):
                raise FileExistsError(0, Phrase("{path} exists already", {"path": new}))
            os.rename(old, new)
        except OSError as error:
            problems.append(Phrase("cannot rename {path}: {reason}", {
                "path": old, "reason": error.strerror or str(error)}))
    return problems


def leftovers(paths: Iterable[str]) -> list[str]:
    """The hidden files beside these paths that earlier moves have left."""
    found = []
    for path in paths:
        directory, name = os.path.split(path)
        if os.path.isdir(directory):
            found += [f"{directory}/{each}" for each in sorted(os.listdir(directory))
                      if each.startswith(hidden_name(name, ""))]
    return found
