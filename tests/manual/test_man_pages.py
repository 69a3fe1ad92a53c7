"""The man pages can be read without a complaint, and say of the programs what those say of themselves."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
from pathlib import Path

import pytest

from constant import ExitCode
from tests.manual.conftest import ROOT, need
from tests.manual.programs import AGENT, COMMANDS, CONTROLLER, names_of, options_of

PAGES = ("vmmigration.1", "vmmigration-agent.8")
PARSERS = {"vmmigration.1": CONTROLLER, "vmmigration-agent.8": AGENT}


def section(page: str, name: str) -> str:
    """The source of a section of a page."""
    text = (ROOT / "man" / f"{page}.scd").read_text(encoding="utf-8")
    found = re.search(rf"^# {name}$(.*?)(?=^# |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found is not None, f"{page} has no section {name}"
    return found[1]


def entries(page: str, name: str) -> list[str]:
    """The lines of a section that have a text of their own below them."""
    return re.findall(r"^(\S.*)\n\t", section(page, name), re.MULTILINE)


def entry_of(option: argparse.Action) -> str:
    """How a page writes an option."""
    names = ", ".join(f"*{name}*" for name in option.option_strings)
    if option.choices is not None:
        return f"{names} {'|'.join(f'*{choice}*' for choice in option.choices)}"
    return f"{names} _{option.metavar}_" if option.metavar is not None else names


@pytest.mark.parametrize("page", PAGES)
def test_every_option_has_its_entry_and_no_other_does(page: str) -> None:
    assert sorted(entries(page, "OPTIONS")) == sorted(map(entry_of, options_of(PARSERS[page])))


@pytest.mark.parametrize("option", [each for each in options_of(CONTROLLER) if each.choices is not None])
def test_each_value_of_an_option_is_explained(option: argparse.Action) -> None:
    text = section("vmmigration.1", "OPTIONS").partition(f"{entry_of(option)}\n\t")[2].partition("\n\n")[0]
    assert set(option.choices or ()) <= set(re.findall(r"\*([a-z-]+)\*", text))


def test_every_command_has_its_entry_and_stands_in_the_synopsis() -> None:
    assert {entry.split("*")[1] for entry in entries("vmmigration.1", "COMMANDS")} == COMMANDS
    assert set(re.findall(r"[\].] \*([a-z-]+)\*", section("vmmigration.1", "SYNOPSIS"))) == COMMANDS


def test_every_exit_code_has_its_entry() -> None:
    assert entries("vmmigration.1", "EXIT STATUS") == [f"*{code.value}*" for code in ExitCode]
    agent = (ExitCode.MOVED, ExitCode.INTERNAL, ExitCode.INPUT, ExitCode.REFUSED)
    assert entries("vmmigration-agent.8", "EXIT STATUS") == [f"*{code.value}*" for code in agent]


@pytest.mark.parametrize("page", PAGES)
def test_man_has_no_complaint(pages: Path, page: str) -> None:
    need("man")
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "MANROFFSEQ": "", "MANWIDTH": "80"}
    shown = subprocess.run(
        ["man", "--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z", pages / page],  # noqa: S607 - whichever is installed
        env=environment, capture_output=True, text=True, check=True)
    assert shown.stderr == ""


@pytest.mark.parametrize("page", PAGES)
def test_mandoc_has_no_complaint(pages: Path, page: str) -> None:
    need("mandoc")
    lint = subprocess.run(
        ["mandoc", "-T", "lint", "-W", "warning", pages / page],  # noqa: S607 - whichever is installed
        capture_output=True, text=True, check=False)
    assert (lint.returncode, lint.stdout, lint.stderr) == (0, "", "")


@pytest.mark.parametrize("page", PAGES)
def test_what_is_shown_has_every_option(pages: Path, page: str) -> None:
    need("mandoc")
    shown = subprocess.run(
        ["mandoc", "-T", "ascii", "-O", "width=200", pages / page],  # noqa: S607 - whichever is installed
        capture_output=True, text=True, check=True).stdout
    # Bold and underlined are overstruck: x, backspace, x.
    plain = re.sub(".\b", "", shown)
    assert {name for name in names_of(PARSERS[page]) if name not in plain} == set()


def test_a_page_is_dated_as_the_builder_says(tmp_path: Path) -> None:
    need("scdoc")
    subprocess.run(
        [ROOT / "script" / "manual", tmp_path], env={**os.environ, "SOURCE_DATE_EPOCH": "1000000000"}, check=True)
    for page in PAGES:
        assert '"2001-09-09"' in (tmp_path / page).read_text(encoding="utf-8")
