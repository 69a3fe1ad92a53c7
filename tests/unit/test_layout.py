"""Who imports whom: one way only, and what the management host runs is Python's standard library alone."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.unit.samples import ROOT

OURS = {
    "constant", "wire", "udpmodule", "control", "controller", "console", "vmmigration", "agent", "steps", "host"}
MAY_IMPORT: Mapping[str, set[str]] = {
    "constant": set(),
    "wire": {"constant", "wire"},
    "udpmodule": {"constant", "wire"},
    "control": {"constant", "wire", "udpmodule", "control"},
    "controller": {"constant", "wire", "udpmodule", "control"},
    "console": {"constant", "wire", "control", "controller", "console"},
    "vmmigration": {"constant", "wire", "udpmodule", "control", "controller", "console"},
    "host": {"constant", "wire", "host"},
    "steps": {"constant", "wire", "host", "steps"},
    # Of host only what has nothing to do with a migration: the service manager.
    "agent": {"constant", "wire", "udpmodule", "steps", "host"},
}


def imports(path: Path) -> set[str]:
    """The top-level names that a module imports when it runs, also inside its functions."""
    found: set[str] = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "typing.TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found.add(str(node.module).partition(".")[0])
    return found


def modules_of(name: str) -> list[Path]:
    """The files of a module or a package."""
    return sorted((ROOT / name).rglob("*.py")) if (ROOT / name).is_dir() else [ROOT / f"{name}.py"]


@pytest.mark.parametrize("name", sorted(OURS))
def test_imports_run_one_way(name: str) -> None:
    for path in modules_of(name):
        assert imports(path) & OURS <= MAY_IMPORT[name], path


@pytest.mark.parametrize("name", ["constant", "wire", "udpmodule", "control", "controller", "console", "vmmigration"])
def test_the_controller_imports_the_standard_library_alone(name: str) -> None:
    standard = set(sys.stdlib_module_names)
    for path in modules_of(name):
        assert imports(path) <= standard | OURS, path


def test_the_command_loads_nothing_that_windows_lacks() -> None:
    # The agent's journal locks its file, with fcntl.
    finished = subprocess.run(
        [sys.executable, "-c", "import sys; sys.modules['fcntl'] = None; import vmmigration"], cwd=ROOT,
        capture_output=True, text=True, check=False, timeout=30)
    assert (finished.returncode, finished.stderr) == (0, "")


def test_every_package_is_installed() -> None:
    call = next(node for node in ast.walk(ast.parse((ROOT / "setup.py").read_text(encoding="utf-8")))
                if isinstance(node, ast.keyword) and node.arg == "packages")
    ours = {path.parent.relative_to(ROOT) for name in OURS for path in (ROOT / name).rglob("__init__.py")}
    assert set(ast.literal_eval(call.value)) == {".".join(path.parts) for path in ours}


def test_only_the_host_package_imports_libvirt_and_paramiko() -> None:
    importing = {name for name in OURS for path in modules_of(name) if imports(path) & {"libvirt", "paramiko"}}
    assert importing <= {"host"}
    assert "libvirt" in imports(ROOT / "host" / "bindings.py")


def test_the_agent_takes_nothing_from_the_host_but_its_service_manager() -> None:
    tree = ast.parse((ROOT / "agent.py").read_text(encoding="utf-8"))
    taken = {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name for name in taken if name.partition(".")[0] == "host"} == {"host.service_manager"}


def test_only_one_module_opens_a_udp_socket() -> None:
    assert "SOCK_DGRAM" in (ROOT / "udpmodule.py").read_text(encoding="utf-8")
    for name in OURS - {"udpmodule"}:
        for path in modules_of(name):
            # The service manager's socket is a unix socket.
            text = path.read_text(encoding="utf-8").replace("socket.AF_UNIX, socket.SOCK_DGRAM", "")
            assert "SOCK_DGRAM" not in text, path
