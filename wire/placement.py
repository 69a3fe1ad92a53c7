"""Where the files and networks of a domain go on the other host: the admin's maps, and the pure rules that apply them.

Both agents and the controller work it out for themselves, from the same request, and come to the same.
"""

from __future__ import annotations

import os.path
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from wire.errors import ErrorCode, MigrationError
from wire.facts import DomainFacts
from wire.forms import check_directory
from wire.phrase import Phrase, template
from wire.schema import record

_TARGET_PATTERN = re.compile(r"[a-z][a-z0-9]{1,15}")
# libvirt takes more than this for the name of a network; of a bridge Linux takes 15 signs.
_NETWORK_PATTERN = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.:-]{0,63}")
_NETWORK_KINDS = ("network", "bridge")


@record
class DiskMap:
    """Where a disk, a file or all that is below a directory goes: `what` is a disk's target, or a path."""

    what: str
    path: str

    def __post_init__(self) -> None:
        check_directory(template("Path of the disk map"), self.path)
        if not _TARGET_PATTERN.fullmatch(self.what):
            check_directory(template("Path of the disk map"), self.what)

    @property
    def text(self) -> str:
        """As it was typed."""
        return f"{self.what}={self.path}"


@record
class Connection:
    """What an interface is connected to: a libvirt network or a bridge of the host."""

    kind: str
    name: str

    def __post_init__(self) -> None:
        if self.kind not in _NETWORK_KINDS or not _NETWORK_PATTERN.fullmatch(self.name):
            raise ValueError("no network or bridge")

    @property
    def text(self) -> str:
        """The shortest form in which it may be typed."""
        return self.name if self.kind == "bridge" and ":" not in self.name else f"{self.kind}:{self.name}"


@record
class NetworkMap:
    """What interfaces that are connected to `here` are connected to over there."""

    here: Connection
    there: Connection

    @property
    def text(self) -> str:
        """As it may be typed."""
        return f"{self.here.text}={self.there.text}"


def _two_sides(option: str, text: str, example: str) -> tuple[str, str]:
    left, equals, right = text.partition("=")
    if not (left and equals and right):
        problem = Phrase("{option} {text!r} is not of the form {example}", {
            "option": option, "text": text, "example": example})
        raise MigrationError(ErrorCode.ARGUMENTS_INVALID, {"problem": problem, "program": "vmmigration.py"})
    return left, right


def parse_disk_map(text: str) -> DiskMap:
    """The map that `vda=/srv/vm/x.qcow2` or `/var/lib/libvirt/images=/srv/vm` means. Raises MigrationError."""
    what, path = _two_sides("--disk-map", text, Phrase("vda=/directory/file or /directory=/directory"))
    if not what.startswith("/") and not _TARGET_PATTERN.fullmatch(what):
        problem = Phrase("{what!r} in --disk-map is neither a disk such as vda nor an absolute path", {"what": what})
        raise MigrationError(ErrorCode.ARGUMENTS_INVALID, {"problem": problem, "program": "vmmigration.py"})
    # Of a directory, a closing slash means nothing.
    return DiskMap(what=what.rstrip("/") or what, path=path.rstrip("/") or path)


def parse_network_map(text: str) -> NetworkMap:
    """The map that `br0=br1` or `network:default=bridge:br1` means. Raises MigrationError ARGUMENTS_INVALID."""
    here, there = _two_sides("--network-map", text, Phrase("br0=br1 or network:default=bridge:br1"))
    return NetworkMap(here=_connection(here), there=_connection(there))


def _connection(text: str) -> Connection:
    kind, colon, name = text.partition(":")
    try:
        return Connection(kind=kind if colon else "bridge", name=name if colon else text)
    except ValueError as error:
        problem = Phrase(
            "{text!r} in --network-map is neither a bridge nor network:NAME nor bridge:NAME", {"text": text})
        raise MigrationError(
            ErrorCode.ARGUMENTS_INVALID, {"problem": problem, "program": "vmmigration.py"}) from error


def is_device(path: str) -> bool:
    """Whether a path is that of a block device, going by its name."""
    return path.startswith("/dev/")


@dataclass(frozen=True)
class Placement:
    """Where each file of the domain goes. `directory` is that of the pool the admin named, once it is known."""

    facts: DomainFacts
    maps: tuple[DiskMap, ...]
    directory: str | None
    domain: str
    new_name: str | None

    def path(self, path: str) -> str:
        """Where the file at this path of the source goes; its own path if nothing says otherwise."""
        return self.paths.get(path) or self._by_rules(path)

    def changed(self) -> dict[str, str]:
        """The files that go elsewhere than where they are."""
        return {here: there for here, there in self.paths.items() if here != there}

    @cached_property
    def paths(self) -> Mapping[str, str]:
        """Every file of the domain, and where it goes."""
        by_target = {each.what: each.path for each in self.maps}
        found: dict[str, str] = {}
        for disk in self.facts.disks:
            found[disk.path] = by_target.get(disk.target) or self._by_rules(disk.path)
        for disk in self.facts.disks:
            # A layer that lies beside an image of its own map goes along with it.
            for layer in disk.layers:
                beside = disk.target in by_target and os.path.dirname(layer.path) == os.path.dirname(disk.path)
                there = f"{os.path.dirname(found[disk.path])}/{os.path.basename(layer.path)}"
                found.setdefault(layer.path, there if beside and not self._mapped(layer.path)
                                 else self._by_rules(layer.path))
        for file in self.facts.files:
            found.setdefault(file.path, by_target.get(file.target) or self._by_rules(file.path, file.pooled))
        if self.facts.nvram is not None:
            found.setdefault(self.facts.nvram.path, self._renamed(self._by_rules(self.facts.nvram.path, pooled=False)))
        return found

    def _mapped(self, path: str) -> str | None:
        """What the maps of paths say: the file's own, or that of the nearest directory above it."""
        fitting = [each for each in self.maps if path == each.what or path.startswith(each.what + "/")]
        if not fitting:
            return None
        nearest = max(fitting, key=lambda each: len(each.what))
        return nearest.path + path[len(nearest.what):]

    def _by_rules(self, path: str, pooled: bool = True) -> str:
        mapped = self._mapped(path)
        if mapped is None and self.directory is not None and pooled:
            return f"{self.directory}/{os.path.basename(path)}"
        return mapped or path

    def _renamed(self, path: str) -> str:
        """libvirt names an NVRAM file after its domain."""
        directory, name = os.path.split(path)
        if self.new_name is not None and re.match(re.escape(self.domain) + r"(_VARS)?\.", name):
            name = self.new_name + name[len(self.domain):]
        return f"{directory}/{name}"

    def idle_maps(self) -> Iterator[DiskMap]:
        """The maps that fit nothing of the domain: mistyped, most likely."""
        targets = {disk.target for disk in self.facts.disks} | {file.target for file in self.facts.files}
        for each in self.maps:
            below = any(path == each.what or path.startswith(each.what + "/") for path in self.paths)
            if each.what not in targets and not below:
                yield each

    def collisions(self) -> Iterator[str]:
        """The paths at which two different files would have to be."""
        seen: dict[str, str] = {}
        for here, there in self.paths.items():
            if seen.setdefault(there, here) != here:
                yield there

    def stored_name(self, image: str, layer: str, name: str) -> str:
        """How the header of the image has to name the layer below it over there.

        `name` is how it does here: a relative name stays one. The paths are those of the source.
        """
        there = self.path(layer)
        if name.startswith("/"):
            return there
        if here_relative(name, image) == layer and os.path.relpath(layer, os.path.dirname(image)) == os.path.relpath(
                there, os.path.dirname(self.path(image))):
            return name
        return os.path.relpath(there, os.path.dirname(self.path(image)))


def here_relative(name: str, image: str) -> str:
    """The path that a relative name in an image's header means."""
    return os.path.normpath(os.path.join(os.path.dirname(image), name))
