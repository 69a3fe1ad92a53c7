"""Which step an agent runs for which command. Importing it needs libvirt-python, and says so if it is missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from constant import Command
from host import orphans
from steps import (
    check_destination,
    check_link,
    check_source,
    copy_disk_file,
    define_virtual_machine,
    extract_configure_file,
    finish,
    hand_over,
    hello,
    list,
    live_migration,
    locate,
    measure_link,
    prepare_destination,
    recall,
    restore_source,
    roll_back,
    settle,
)
from steps.context import StepContext

# Each takes the arguments that wire/message.py has for its command.
STEPS: Mapping[Command, Callable[[StepContext, Any], object]] = MappingProxyType({
    Command.CHECK_SOURCE: check_source.run,
    Command.CHECK_LINK: check_link.run,
    Command.CHECK_DESTINATION: check_destination.run,
    Command.MEASURE_LINK: measure_link.run,
    Command.PREPARE_DESTINATION: prepare_destination.run,
    Command.COPY_DISK_FILE: copy_disk_file.run,
    Command.LIVE_MIGRATION: live_migration.run,
    Command.EXTRACT_CONFIGURE_FILE: extract_configure_file.run,
    Command.DEFINE_VIRTUAL_MACHINE: define_virtual_machine.run,
    Command.HAND_OVER: hand_over.run,
    Command.FINISH: finish.run,
    Command.ROLL_BACK: roll_back.run,
    Command.RESTORE_SOURCE: restore_source.run,
    Command.LOCATE: locate.run,
    Command.LIST: list.run,
    Command.RECALL: recall.run,
})

HELLO = hello.run
# What an agent does without being asked: it goes on with the migration of an earlier life, settles what nobody drives
# any more, and clears up after steps that are no job's.
ADOPT = live_migration.adopt
SETTLE = settle.run
CLEAR = orphans.clear_all_but
