"""Writes a libvirt domain's XML anew for another host: pure functions from a document to the same document with other
names, paths, backing chains and networks in it, and with all that was not asked to change as it was.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Union
from xml.dom import expatbuilder, minidom
from xml.parsers import expat


@dataclass(frozen=True)
class NewLayer:
    """One image below a disk's top one."""

    path: str
    format: str
    """`qcow2` or `raw`."""

    def __post_init__(self) -> None:
        if self.format not in ("qcow2", "raw"):
            raise ValueError(f"An image below a disk is qcow2 or raw, not {self.format!r}.")


@dataclass(frozen=True)
class NewNetwork:
    """What an interface is to be connected to."""

    kind: str
    """`network`, one of libvirt's, or `bridge`, one of the host's."""
    name: str

    def __post_init__(self) -> None:
        if self.kind not in ("network", "bridge"):
            raise ValueError(f"An interface is connected to a network or a bridge, not to a {self.kind!r}.")


@dataclass(frozen=True)
class Changes:
    """What is to be another in a domain's document. What it names and the document lacks is passed over."""

    name: str | None = None
    """The domain's new name."""
    paths: Mapping[str, str] = field(default_factory=dict)
    """From each file that moves to its new path: images and their layers, kernel, initrd, device tree, NVRAM."""
    chains: Mapping[str, tuple[NewLayer, ...]] = field(default_factory=dict)
    """By a disk's target, all that lies below its top image, from the upper to the lowest; empty for nothing."""
    networks: Mapping[tuple[str, str], NewNetwork] = field(default_factory=dict)
    """From what interfaces are connected to now, `network` or `bridge` and its name, to what they will be."""
    ejected: frozenset[str] = frozenset()
    """The targets of the CD-ROM and floppy drives whose medium is taken out."""
    thin: frozenset[str] = frozenset()
    """The targets of the disks on which QEMU is to find out that zeros are written, which then take no room."""


# The attribute of <source> that names the file, by the type of the element that it is in. Other types name none.
_PATH_ATTRIBUTES = {"file": "file", "block": "dev"}
_DRIVES = ("cdrom", "floppy")
# libvirt gives the host's side of an interface such a name, and another one at each start.
_GENERATED_TARGETS = ("vnet", "vif", "macvtap", "macvlan")
# A reader takes a bare carriage return for a line feed, and in an attribute tabs and line feeds for blanks.
_TEXT_ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "\r": "&#13;"})
_ATTRIBUTE_ESCAPES = {**_TEXT_ESCAPES, **str.maketrans({"'": "&apos;", '"': "&quot;", "\t": "&#9;", "\n": "&#10;"})}
_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

_Node = Union[minidom.Element, minidom.CharacterData, minidom.ProcessingInstruction, minidom.DocumentType]


def edit(document: str, changes: Changes) -> str:
    """The domain's document with these changes, active or inactive.

    Raises ValueError if it is not well-formed, declares a document type, is not about a domain, or if something new has
    a character that XML cannot hold.
    """
    tree = _parsed(document)
    domain = tree.documentElement
    if domain is None or not _is(domain, "domain"):
        raise ValueError("The document is not about a domain: its outermost element is not <domain>.")
    name = _child(domain, "name")
    if changes.name is not None and name is not None:
        _set_text(name, changes.name)
    for system in _children(domain, "os"):
        _move_firmware_and_kernel(system, changes.paths)
    for devices in _children(domain, "devices"):
        for disk in _children(devices, "disk"):
            _edit_disk(disk, changes)
        for interface in _children(devices, "interface"):
            _connect(interface, changes.networks)
    written = _written(tree) + ("\n" if document.endswith("\n") else "")
    if _NOT_IN_XML.search(written):
        raise ValueError("A new name or path has a character in it that XML cannot hold.")
    return written


# Files.


def _move_firmware_and_kernel(system: minidom.Element, paths: Mapping[str, str]) -> None:
    for name in ("kernel", "initrd", "dtb", "nvram"):
        for element in _children(system, name):
            path = paths.get(_text(element))
            if path is not None:
                _set_text(element, path)
    for nvram in _children(system, "nvram"):
        _move_sources(nvram, paths)


def _move_sources(holder: minidom.Element, paths: Mapping[str, str]) -> None:
    """Put the new paths into the <source> of a disk, layer or NVRAM and into those of the layers below."""
    kind = holder.getAttribute("type") or "file"
    source = _child(holder, "source")
    if source is not None and kind in _PATH_ATTRIBUTES:
        path = paths.get(source.getAttribute(_PATH_ATTRIBUTES[kind]))
        if path is not None:
            _set_path(holder, source, kind, path)
    for layer in _children(holder, "backingStore"):
        _move_sources(layer, paths)


def _set_path(holder: minidom.Element, source: minidom.Element, kind: str, path: str) -> None:
    new_kind = _kind_of(path)
    if new_kind != kind:
        holder.setAttribute("type", new_kind)
        _rename_attribute(source, _PATH_ATTRIBUTES[kind], _PATH_ATTRIBUTES[new_kind])
    source.setAttribute(_PATH_ATTRIBUTES[new_kind], path)


def _kind_of(path: str) -> str:
    return "block" if path.startswith("/dev/") else "file"


# Disks.


def _edit_disk(disk: minidom.Element, changes: Changes) -> None:
    target = _child(disk, "target")
    name = target.getAttribute("dev") if target is not None else ""
    if name in changes.ejected and disk.getAttribute("device") in _DRIVES:
        _eject(disk)
    _move_sources(disk, changes.paths)
    driver = _child(disk, "driver")
    if name in changes.thin and driver is not None and driver.getAttribute("detect_zeroes") in ("", "off"):
        driver.setAttribute("detect_zeroes", "on")
    if name in changes.chains:
        _replace_chain(disk, changes.chains[name])


def _eject(drive: minidom.Element) -> None:
    for name in ("source", "backingStore"):
        _take_out_children(drive, name)
    # Only of a network disk libvirt's schema wants to know the source, medium or not.
    if drive.getAttribute("type") == "network":
        drive.setAttribute("type", "file")


def _replace_chain(disk: minidom.Element, layers: tuple[NewLayer, ...]) -> None:
    source, present = _child(disk, "source"), _child(disk, "backingStore")
    # An empty drive has nothing that a layer could be below.
    if source is None:
        return
    indent = _indent(present or source)
    chain = _backing_store(layers, indent)
    disk.replaceChild(chain, present or source)
    if present is None:
        disk.insertBefore(source, chain)
        disk.insertBefore(_new_text(indent), chain)


def _backing_store(layers: tuple[NewLayer, ...], indent: str) -> minidom.Element:
    """The first layer with the others nested in it, and inmost the empty element that says there is no more."""
    if not layers:
        return _new_element("backingStore", {})
    kind = _kind_of(layers[0].path)
    element = _new_element("backingStore", {"type": kind})
    inner = indent and indent + "  "
    for child in (
        _new_element("format", {"type": layers[0].format}),
        _new_element("source", {_PATH_ATTRIBUTES[kind]: layers[0].path}),
        _backing_store(layers[1:], inner),
    ):
        element.appendChild(_new_text(inner))
        element.appendChild(child)
    element.appendChild(_new_text(indent))
    return element


# Interfaces.


def _connect(interface: minidom.Element, networks: Mapping[tuple[str, str], NewNetwork]) -> None:
    source = _child(interface, "source")
    if source is None:
        return
    kind = _connected_to(interface.getAttribute("type"), source)
    new = networks.get((kind, source.getAttribute(kind)))
    if new is None:
        return
    portgroup = source.getAttribute("portgroup") if kind == new.kind == "network" else ""
    interface.setAttribute("type", new.kind)
    _empty(source)
    source.setAttribute(new.kind, new.name)
    if portgroup:
        source.setAttribute("portgroup", portgroup)
    if kind != new.kind:
        _take_out_children(interface, "virtualport")
    _take_out_children(interface, "actual")
    _take_out_children(interface, "target", _is_generated)


def _connected_to(kind: str, source: minidom.Element) -> str:
    """`network`, `bridge`, or whatever else the interface's type is."""
    # So libvirt tells, while the domain runs, of a network that hands its guests to a bridge or card of the host.
    return "network" if kind in ("bridge", "direct") and source.hasAttribute("network") else kind


def _is_generated(target: minidom.Element) -> bool:
    # One that libvirt does not manage was made by the admin, who may call it what he likes.
    return target.getAttribute("dev").startswith(_GENERATED_TARGETS) and target.getAttribute("managed") != "no"


# The tree.


def _parsed(document: str) -> minidom.Document:
    # A control character cannot be in a namespace's name, so none is mistaken for the separator.
    checker = expat.ParserCreate(namespace_separator="\x01")
    checker.StartDoctypeDeclHandler = _refuse_document_type
    try:
        checker.Parse(document, True)
        # Names and attributes as written, xmlns among them: minidom's own way with namespaces moves these to the front
        # and refuses names with a blank. The checker has seen to it that each prefix is declared.
        return expatbuilder.parseString(document, namespaces=False)  # noqa: S316 - no document type, so no entities
    except (expat.ExpatError, UnicodeEncodeError) as error:
        raise ValueError(f"The domain's document is not well-formed XML: {error}.") from error


def _refuse_document_type(*_declared: object) -> None:
    raise ValueError("The domain's document declares a document type, which libvirt never writes: refused.")


def _is(element: minidom.Element, name: str) -> bool:
    """Whether it is libvirt's element of that name, given that what it is in is libvirt's."""
    return element.tagName == name and not element.getAttribute("xmlns")


def _children(element: minidom.Element, name: str) -> Iterator[minidom.Element]:
    for node in list(element.childNodes):
        if isinstance(node, minidom.Element) and _is(node, name):
            yield node


def _child(element: minidom.Element, name: str) -> minidom.Element | None:
    return next(_children(element, name), None)


def _text(element: minidom.Element) -> str:
    return "".join(node.data for node in element.childNodes if isinstance(node, minidom.Text))


def _set_text(element: minidom.Element, text: str) -> None:
    for node in list(element.childNodes):
        if isinstance(node, minidom.Text):
            element.removeChild(node)
    element.insertBefore(_new_text(text), element.firstChild)


def _new_element(name: str, attributes: Mapping[str, str]) -> minidom.Element:
    element = minidom.Document().createElement(name)
    for each, value in attributes.items():
        element.setAttribute(each, value)
    return element


def _new_text(text: str) -> minidom.Text:
    return minidom.Document().createTextNode(text)


def _rename_attribute(element: minidom.Element, name: str, new_name: str) -> None:
    """In its place: minidom would put the new one behind the others."""
    attributes = list(element.attributes.items())
    for each, _value in attributes:
        element.removeAttribute(each)
    for each, value in attributes:
        element.setAttribute(new_name if each == name else each, value)


def _empty(element: minidom.Element) -> None:
    for name in list(element.attributes.keys()):
        element.removeAttribute(name)
    for node in list(element.childNodes):
        element.removeChild(node)


def _indent(element: minidom.Element) -> str:
    """The line feed and the blanks before an element that begins its line, otherwise nothing."""
    before = element.previousSibling
    if not isinstance(before, minidom.Text) or "\n" not in before.data or before.data.strip():
        return ""
    return before.data[before.data.rindex("\n"):]


def _take_out_children(
    element: minidom.Element, name: str, chosen: Callable[[minidom.Element], bool] = lambda _element: True,
) -> None:
    """With the line that each is on, where it has one to itself."""
    for child in _children(element, name):
        if chosen(child):
            before = child.previousSibling
            if isinstance(before, minidom.Text) and not before.data.strip():
                element.removeChild(before)
            element.removeChild(child)


# The writer: minidom's own, before Python 3.13, leaves line feeds and tabs in attributes bare.


def _written(tree: minidom.Document) -> str:
    parts = []
    if tree.version is not None:
        encoding = f" encoding='{tree.encoding}'" if tree.encoding else ""
        standalone = "" if tree.standalone is None else f" standalone='{'yes' if tree.standalone else 'no'}'"
        parts.append(f"<?xml version='{tree.version}'{encoding}{standalone}?>")
    return "\n".join(parts + ["".join(_pieces(node)) for node in tree.childNodes])


def _pieces(node: _Node) -> Iterator[str]:
    if isinstance(node, minidom.Element):
        attributes = "".join(
            f" {name}='{value.translate(_ATTRIBUTE_ESCAPES)}'" for name, value in node.attributes.items())
        if not node.childNodes:
            yield f"<{node.tagName}{attributes}/>"
            return
        yield f"<{node.tagName}{attributes}>"
        for child in node.childNodes:
            yield from _pieces(child)
        yield f"</{node.tagName}>"
    elif isinstance(node, minidom.Text) and not isinstance(node, minidom.CDATASection):
        yield node.data.translate(_TEXT_ESCAPES)
    else:
        yield node.toxml()
