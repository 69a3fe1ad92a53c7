"""Real hosts on one machine: namespaces with their own libvirtd, sshd and network, for the tests and the demo."""

from .guest import GuestSpec
from .hosts import Host, HostCommandError
from .lab import Agent, Lab
from .start import start_guest
from .state import LabError, leftovers
from .witness import Witness, WitnessReport

__all__ = [
    "Agent",
    "GuestSpec",
    "Host",
    "HostCommandError",
    "Lab",
    "LabError",
    "Witness",
    "WitnessReport",
    "leftovers",
    "start_guest",
]
