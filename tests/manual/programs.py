"""What the two programs take, as their own parsers say: options with their values, and the command words."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from typing import Any, NoReturn

import pytest

import agent
from console.arguments import parse


class _Found(Exception):  # noqa: N818 - carries the parser out of the function that made it
    def __init__(self, parser: argparse.ArgumentParser) -> None:
        super().__init__()
        self.parser = parser


def _parser_of(parse_arguments: Callable[[list[str]], Any]) -> argparse.ArgumentParser:
    def stop(self: argparse.ArgumentParser, *_arguments: object) -> NoReturn:
        raise _Found(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        patch.setattr(argparse.ArgumentParser, "parse_intermixed_args", stop)
        try:
            parse_arguments([])
        except _Found as found:
            return found.parser
    raise AssertionError("it has no parser")


def options_of(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Its options, without the other arguments."""
    return [action for action in parser._actions if action.option_strings]


def names_of(parser: argparse.ArgumentParser) -> set[str]:
    """How its options can be written."""
    return {name for action in options_of(parser) for name in action.option_strings}


CONTROLLER = _parser_of(parse)
AGENT = _parser_of(agent._arguments)
# The lines of its usage begin with the program, its options and then either a command or what a move takes.
COMMANDS = frozenset(re.findall(r"(?:\] |\| )([a-z][a-z-]+)", CONTROLLER.usage or ""))
