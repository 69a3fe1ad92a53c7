"""What bash, zsh and fish offer is what the programs take: asked of the shells themselves, by the keys of a user."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.manual.conftest import ROOT, need
from tests.manual.programs import AGENT, COMMANDS, CONTROLLER, names_of, options_of
from tests.manual.shells import SHELLS, Shell
from wire.findings import skippable

COMPLETIONS = ROOT / "completions"
PROGRAMS = ("vmmigration", "vmmigration-agent")
LIST = """\
# our nodes
192.0.2.1
192.0.2.2   # the second one
198.51.100.0/24
  2001:db8::1
::2
not an address
"""
ADDRESSES = {"192.0.2.1", "192.0.2.2", "2001:db8::1", "::2"}
# As README.md shows how to load them from a checkout.
LOADED: Mapping[str, str] = {
    "bash": "".join(f". {COMPLETIONS / program}.bash\n" for program in PROGRAMS),
    "zsh": f"fpath=({COMPLETIONS} $fpath)\n",
    "fish": "".join(f"source {COMPLETIONS / program}.fish\n" for program in PROGRAMS),
}
# Where a package puts each file, below /usr/share; Debian's zsh has vendor-completions in place of site-functions.
INSTALLED: Mapping[str, str] = {
    **{f"{program}.bash": f"bash-completion/completions/{program}" for program in PROGRAMS},
    **{f"_{program}": f"zsh/site-functions/_{program}" for program in PROGRAMS},
    **{f"{program}.fish": f"fish/vendor_completions.d/{program}.fish" for program in PROGRAMS},
}
BASH_COMPLETION = Path("/usr/share/bash-completion/bash_completion")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration directory with a list of all kinds of lines."""
    directory = tmp_path_factory.mktemp("config")
    (directory / "AgentIPAddr.txt").write_text(LIST)
    return directory


def environment(home: Path, **more: str) -> dict[str, str]:
    """What a shell sees of the environment: nothing of the one that runs the tests."""
    return {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(home), "LC_ALL": "C.UTF-8", **more}


@pytest.fixture(scope="module", params=list(SHELLS))
def shell(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """Each of the shells, with the completions loaded as from a checkout."""
    need(request.param)
    home = tmp_path_factory.mktemp("home")
    with SHELLS[request.param](LOADED[request.param], home, environment(home), ()) as started:
        yield started


# What the programs take.


def test_every_option_is_offered_and_no_other(shell: Shell) -> None:
    assert shell.completes("vmmigration -") | shell.completes("vmmigration --") == names_of(CONTROLLER)
    assert shell.completes("vmmigration-agent -") | shell.completes("vmmigration-agent --") == names_of(AGENT)


@pytest.mark.parametrize(
    "option", [each for each in options_of(CONTROLLER) if each.choices is not None],
    ids=lambda option: option.option_strings[-1])
def test_the_values_of_an_option_are_offered(shell: Shell, option: argparse.Action) -> None:
    name, choices = option.option_strings[-1], set(option.choices or ())
    assert shell.completes(f"vmmigration {name} ") == choices
    assert shell.completes(f"vmmigration {name}=") == choices
    assert shell.completes(f"vmmigration -n 192.0.2.1 192.0.2.2 kvm VM1 {name} ") == choices


def test_the_checks_that_can_be_skipped_are_offered(shell: Shell) -> None:
    assert shell.completes("vmmigration --skip-check ") == set(skippable())
    assert shell.completes("vmmigration --skip-check=") == set(skippable())


def test_every_command_is_offered_in_the_first_place_alone(shell: Shell, config: Path) -> None:
    assert shell.completes(f"vmmigration --config-dir {config} ") == COMMANDS | ADDRESSES
    assert shell.completes(f"vmmigration --config-dir {config} -v --timeout 60 ") == COMMANDS | ADDRESSES
    assert shell.completes("vmmigration res") == {"resume", "restore-source"}
    assert shell.completes(f"vmmigration --config-dir {config} 192.0.2.1 res") == set()


@pytest.mark.parametrize("command", sorted(COMMANDS - {"change-key", "agent-key"}))
def test_nothing_is_offered_that_only_the_nodes_know(shell: Shell, config: Path, command: str) -> None:
    assert shell.completes(f"vmmigration --config-dir {config} {command} ") == set()


def test_change_key_takes_one_of_two_words(shell: Shell) -> None:
    assert shell.completes("vmmigration change-key ") == {"begin", "finish"}
    assert shell.completes("vmmigration change-key begin ") == set()


# Addresses.


def test_source_and_destination_are_single_addresses_of_the_list(shell: Shell, config: Path) -> None:
    program = f"vmmigration --config-dir {config}"
    assert shell.completes(f"{program} 192") == {"192.0.2.1", "192.0.2.2"}
    assert shell.completes(f"{program} 192.0.2.1 ") == ADDRESSES - {"192.0.2.1"}
    assert shell.completes(f"{program} 192.0.2.1 --json 1") == {"192.0.2.2"}
    assert shell.completes(f"{program} 192.0.2.1 192.0.2.2 ") == set()


def test_addresses_of_ipv6_are_completed_over_their_colons(shell: Shell, config: Path) -> None:
    program = f"vmmigration --config-dir={config}"
    assert shell.completes(f"{program} 2001:d") == {"2001:db8::1"}
    assert shell.completes(f"{program} 2001:db8::1 ") == ADDRESSES - {"2001:db8::1"}
    assert shell.completes(f"{program} ::2 2001:") == {"2001:db8::1"}


def test_commands_about_hosts_take_addresses(shell: Shell, config: Path) -> None:
    program = f"vmmigration --config-dir {config}"
    assert shell.completes(f"{program} agent-key ") == ADDRESSES
    assert shell.completes(f"{program} agent-key 192.0.2.1 ") == set()
    assert shell.completes(f"{program} repair VM1 ") == ADDRESSES
    assert shell.completes(f"{program} repair VM1 192.0.2.1 192.0.2.") == {"192.0.2.1", "192.0.2.2"}


def test_a_list_that_is_not_there_is_no_error(shell: Shell, tmp_path: Path) -> None:
    assert shell.completes(f"vmmigration --config-dir {tmp_path} ") == COMMANDS


@pytest.mark.parametrize("name", SHELLS)
def test_without_config_dir_the_list_is_that_of_the_programs_folder(name: str, tmp_path: Path) -> None:
    if Path("/etc/vmmigration").exists():
        pytest.skip("this host is configured")
    need(name)
    (tmp_path / "vmmigration.py").touch(mode=0o755)
    (tmp_path / "AgentIPAddr.txt").write_text(LIST)
    places = environment(tmp_path, PATH=f"{tmp_path}:/usr/bin:/bin")
    with SHELLS[name](LOADED[name], tmp_path, places, ()) as shell:
        assert shell.completes("vmmigration.py 19") == {"192.0.2.1", "192.0.2.2"}
        assert shell.completes(f"{tmp_path}/vmmigration.py 19") == {"192.0.2.1", "192.0.2.2"}


@pytest.mark.parametrize("name", SHELLS)
def test_without_config_dir_a_host_that_is_configured_has_its_list_in_etc(
    name: str, tmp_path: Path, config: Path,
) -> None:
    need(name)
    # An /etc of its own, for the shell alone.
    inside = 'mount -t tmpfs tmpfs /etc && cp -r "$1" /etc/vmmigration && shift && exec "$@"'
    before = ["unshare", "--mount", "sh", "-c", inside, "sh", str(config)]
    if os.geteuid() != 0 or subprocess.run([*before, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("this needs root, and a namespace")
    with SHELLS[name](LOADED[name], tmp_path, environment(tmp_path), before) as shell:
        assert shell.completes("vmmigration 19") == {"192.0.2.1", "192.0.2.2"}


@pytest.mark.parametrize("kept", ["", ":", "="])
def test_bash_may_be_told_to_cut_words_otherwise(kept: str, config: Path, tmp_path: Path) -> None:
    need("bash")
    setup = f"{LOADED['bash']}COMP_WORDBREAKS=\"${{COMP_WORDBREAKS//[:=]}}{kept}\"\n"
    with SHELLS["bash"](setup, tmp_path, environment(tmp_path), ()) as shell:
        assert shell.completes(f"vmmigration --config-dir={config} 2001:db8:") == {"2001:db8::1"}
        assert shell.completes("vmmigration --transport=s") == {"ssh"}
        assert shell.completes("vmmigration --transport=") == {"ssh", "tcp"}


# Files and directories.


def test_paths_are_completed_where_one_is_wanted(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "image.qcow2").touch()
    both = {f"{tmp_path}/image.qcow2", f"{tmp_path}/images"}
    move = "vmmigration 192.0.2.1 192.0.2.2 kvm VM1"

    def completed(line: str) -> set[str]:
        return {each.rstrip("/") for each in shell.completes(line)}

    assert completed(f"{move} {tmp_path}/im") == both
    assert completed(f"{move} /disk {tmp_path}/im") == both
    assert completed(f"vmmigration --disk-map vda={tmp_path}/image.") == {f"vda={tmp_path}/image.qcow2"}
    for option in ("vmmigration --config-dir", "vmmigration-agent --config-dir", "vmmigration-agent --state-dir"):
        assert completed(f"{option} {tmp_path}/im") == {f"{tmp_path}/images"}
        assert completed(f"{option}={tmp_path}/im") == {f"{tmp_path}/images"}


# Installed.


@pytest.mark.parametrize("name", SHELLS)
def test_a_shell_finds_them_where_a_package_puts_them(name: str, tmp_path: Path, config: Path) -> None:
    need(name)
    share = tmp_path / "share"
    for file, place in INSTALLED.items():
        (share / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(COMPLETIONS / file, share / place)
    if name == "bash":
        need(str(BASH_COMPLETION))
    # fish looks for nothing of a program that is not there.
    for program in PROGRAMS:
        (tmp_path / program).touch(mode=0o755)
    # Without a word that loads them: bash and fish by the name of the command, zsh by its search path.
    loaded = {"bash": f". {BASH_COMPLETION}\n", "zsh": f"fpath=({share}/zsh/site-functions $fpath)\n", "fish": ""}
    places = environment(tmp_path, PATH=f"{tmp_path}:/usr/bin:/bin", XDG_DATA_DIRS=f"{share}:/usr/share")
    with SHELLS[name](loaded[name], tmp_path, places, ()) as shell:
        assert shell.completes(f"vmmigration --config-dir {config} 192.0.2.1 1") == {"192.0.2.2"}
        assert shell.completes("vmmigration --transport ") == {"ssh", "tcp"}
        assert shell.completes("vmmigration-agent --ins") == {"--insecure"}


def test_every_file_has_its_place() -> None:
    assert {path.name for path in COMPLETIONS.iterdir()} == set(INSTALLED)
