"""What holds of any dry run, refused run and `check`: nothing is changed, all is said, and it is soon over."""

from __future__ import annotations

import hashlib
import re
import stat
from pathlib import Path

import pytest

from . import Agent, Host
from . import obstacles as place
from .conftest import CONTROLLER, PYTHON, Admin, Run
from .obstacles import AUTHORIZED_KEYS, DIRECTORY, IMAGE, NAME, Obstacle, Scene, placed, replaced, to_json

ALLOWED, REFUSED, NO_CONTACT = 0, 3, 4
#: The checks take 0.5 s and the measurement 1.4 s on 2 cores without KVM; the rest is for busy machines.
GENEROUS_SECONDS = 4.0

PLACES = ("/etc", "/var/lib/libvirt", "/var/lib/vmmigration", "/run/libvirt", "/root/.ssh")
#: Larger files are images and kernels, of which size and time of change tell enough.
SMALL = 1 << 20
#: What others change meanwhile: path, and why.
OTHERS = {
    IMAGE: "the running guest writes to it",
    "/run/libvirt/qemu": "the way is tried through a directory for sockets that is made here and removed again: "
                         "only the time of the change is left",
}
#: One shell, as each command in a host takes its time. The CPU time that a QEMU has used grows.
ASK_LIBVIRT = """\
export LIBVIRT_DEFAULT_URI=qemu:///system
for words in "list --all --uuid --name" "net-list --all" "pool-list --all" secret-list; do virsh -q $words; done
for domain in $(virsh -q list --all --name); do
    for words in dumpxml "dumpxml --inactive" snapshot-list domstate dominfo; do
        virsh -q $words "$domain" | grep -v '^CPU time'
    done
done
exit 0
"""


def describe(path: Path, inside: str) -> str:
    """All that is to stay the same of a file."""
    status = path.lstat()
    owner = f"{status.st_mode:o} {status.st_uid}:{status.st_gid}"
    if inside in OTHERS:
        return owner
    text = f"{owner} {status.st_size} {status.st_mtime_ns}"
    if stat.S_ISREG(status.st_mode) and status.st_size < SMALL:
        text += f" {hashlib.sha256(path.read_bytes()).hexdigest()}"
    return text


def state(host: Host) -> dict[str, str]:
    """The files of a host, and all that libvirt says of it."""
    seen = {}
    for directory in PLACES:
        root = host.path(directory)
        for path in [root, *sorted(root.rglob("*"))]:
            inside = f"{directory}/{path.relative_to(root)}".removesuffix("/.")
            seen[inside] = describe(path, inside)
    seen["libvirt"] = host.run(["sh", "-c", ASK_LIBVIRT]).stdout
    seen["ip link"] = host.run(["ip", "-brief", "link"]).stdout
    seen["mounts"] = Path(f"/proc/{host.init.pid}/mounts").read_text()
    return seen


def both(scene: Scene) -> list[dict[str, str]]:
    """Both hosts as they are now."""
    return [state(node) for node in scene.lab.nodes]


def assert_same(after: list[dict[str, str]], before: list[dict[str, str]]) -> None:
    """Nothing has changed on either host; says what has."""
    for now, then in zip(after, before):
        changed = {
            key: (then.get(key), now.get(key)) for key in {*now, *then} if then.get(key) != now.get(key)}
        assert changed == {}


REFUSALS = [
    Obstacle("none", place.nothing),
    Obstacle("of files and networks", place.together(place.file_there(IMAGE), place.bridge_missing),
             ("target-path", "networks")),
    Obstacle("of the way", place.key_removed, ("ssh",)),
    Obstacle("of the user", place.not_in_group, ("ssh-user",)),
    Obstacle("of the domain", place.snapshot_there, ("snapshots",)),
    Obstacle("of space", place.mounted("mount -t tmpfs -o size=8m tmpfs"), ("disk-space",)),
]


@pytest.mark.parametrize("obstacle", REFUSALS, ids=lambda obstacle: obstacle.name)
def test_a_dry_run_changes_nothing_on_either_host_whatever_it_finds(scene: Scene, obstacle: Obstacle) -> None:
    with placed(obstacle.place, scene):
        before = both(scene)
        said = scene.dry_run()
        after = both(scene)
    assert said.wrong() == obstacle.wrong, to_json(said)
    # The comparison is of something.
    assert NAME in before[0]["libvirt"]
    assert {"/etc/libvirt/qemu.conf", "/run/libvirt/libvirt-sock", "/root/.ssh/known_hosts"} <= before[1].keys()
    assert_same(after, before)


@pytest.mark.parametrize("obstacle", REFUSALS[1:], ids=lambda obstacle: obstacle.name)
def test_a_real_run_refuses_for_what_the_dry_run_has_named_and_changes_nothing(
    scene: Scene, obstacle: Obstacle,
) -> None:
    with placed(obstacle.place, scene):
        foreseen = scene.dry_run()
        before = both(scene)
        said = scene.run(scene.words())
        after = both(scene)
    assert said.run.code == foreseen.run.code == REFUSED, said.run.text
    assert (said.result["outcome"], said.result["dry_run"]) == ("nothing changed", False)
    assert said.wrong() == foreseen.wrong() == obstacle.wrong
    assert said.obstacles() == foreseen.obstacles()
    assert [error["code"] for error in said.result["errors"]] == [error["code"] for error in foreseen.result["errors"]]
    assert_same(after, before)


def test_what_a_real_run_says_to_a_person_ends_with_nothing_was_changed(scene: Scene) -> None:
    with placed(place.file_there(IMAGE), scene):
        run = Admin(scene.lab).run(scene.words())
    assert (run.code, run.stdout) == (REFUSED, "Nothing was changed on either host.\n")
    assert f"{IMAGE} exists already on {scene.target.address}" in run.stderr
    assert "PREPARE_DESTINATION" not in run.stderr


def test_all_checks_of_both_hosts_are_over_within_seconds(scene: Scene) -> None:
    said = scene.dry_run()
    assert said.wrong() == set(), to_json(said)
    seconds: dict[str, float] = {}
    for step in said.result["steps"]:
        seconds[step["command"]] = max(step["seconds"], seconds.get(step["command"], 0.0))
    # CHECK_LINK goes on beside the other two.
    checks = max(seconds["CHECK_LINK"], seconds["CHECK_SOURCE"] + seconds["CHECK_DESTINATION"])
    print(f"checks {checks:.2f} s, with the measurement {said.result['seconds']:.2f} s: {seconds}")
    assert checks < GENEROUS_SECONDS
    assert said.result["seconds"] < GENEROUS_SECONDS
    assert len({finding["check"] for finding in said.result["findings"]}) > 40


def test_a_check_that_may_be_skipped_stops_no_more_and_is_told_all_the_same(scene: Scene) -> None:
    with placed(place.running_neighbour, scene):
        stopped = scene.dry_run()
        skipped = scene.dry_run("--skip-check", "mac-addresses")
        text = Admin(scene.lab).run(scene.words("--dry-run", "--skip-check", "mac-addresses"))
    assert stopped.wrong() == {("mac-addresses", "stops")}, to_json(stopped)
    assert "To go on all the same: --skip-check mac-addresses" in stopped.run.stderr
    assert (skipped.run.code, skipped.result["would_start"]) == (ALLOWED, True), skipped.run.text
    assert [each["check"] for each in skipped.result["findings"] if each["skipped"]] == ["mac-addresses"]
    assert skipped.wrong() == {("mac-addresses", "warns")}
    assert text.stdout.endswith("A real run would start.\n"), text.text
    assert "skipped mac-addresses: VM other (paused)" in text.stderr


def test_a_check_that_may_not_be_skipped_and_one_that_is_none_are_refused_at_once(scene: Scene) -> None:
    for name, sentence in (("target-path", "The check target-path cannot be skipped"), ("nonsense", "no check named")):
        run = Admin(scene.lab).run(scene.words("--dry-run", "--skip-check", name))
        assert run.code == 2, run.text
        assert sentence in run.stderr
        assert "mac-addresses" in run.stderr


def test_the_text_of_a_dry_run_has_the_plan_step_by_step(scene: Scene) -> None:
    run = Admin(scene.lab).run(scene.words("--dry-run"))
    assert run.code == ALLOWED, run.text
    lines = run.stdout.splitlines()
    assert lines[0] == f"Plan for moving {NAME} from {scene.source.address} to {scene.target.address}:"
    assert f"make an empty qcow2 of 512 MiB at {IMAGE}" in lines[1]
    assert any(line.startswith("link") and "/s" in line for line in lines)
    assert any(line.startswith("verdict") for line in lines)
    assert lines[-1] == "A real run would start."


def test_an_admin_who_reads_chinese_reads_what_the_agents_found_in_it(scene: Scene) -> None:
    with placed(place.file_there(IMAGE), scene):
        run = Admin(scene.lab).run(scene.words("--dry-run", "-v"), {"LC_ALL": "zh_CN.UTF-8"})
    assert run.code == REFUSED, run.text
    assert run.stdout == "实际迁移不能开始\uff1a有 1 项阻碍。\n"
    found = [line for line in run.stderr.splitlines() if re.match(r"vmmigration\.py: |  ", line)]
    assert f"vmmigration.py: {IMAGE} 在 {scene.target.address} 上已经存在。 [path-taken]" in found
    assert len(found) > 40
    # Names, paths, figures and commands aside, nothing is left in English.
    assert [line for line in found if re.search(r"[a-z]{2,} [a-z]{2,} [a-z]{2,}", re.sub("`.*?`", "", line))] == []


# `check`: without a VM.


def check(scene: Scene, *words: str) -> Run:
    """Run `vmmigration.py check`."""
    return Admin(scene.lab).run([PYTHON, CONTROLLER, "check", *words])


def test_check_tells_both_hosts_and_both_ways(scene: Scene) -> None:
    before = both(scene)
    run = check(scene)
    after = both(scene)
    assert (run.code, run.stderr) == (ALLOWED, ""), run.text
    here, there = scene.source.address, scene.target.address
    for node in scene.lab.nodes:
        row = next(line for line in run.stdout.splitlines() if line.startswith(node.address))
        assert node.full_name in row
        assert "in /var/lib/libvirt/images" in row
    assert f"{here} -> {there}  ok" in run.stdout
    assert f"{there} -> {here}  ok" in run.stdout
    assert_same(after, before)


def test_check_tells_which_way_is_closed_and_what_to_do(scene: Scene) -> None:
    here, there = scene.source.address, scene.target.address
    with replaced(scene.target.path(AUTHORIZED_KEYS), ""):
        run = check(scene)
        said = check(scene, "--json").result()
    assert run.code == REFUSED, run.text
    assert f"{here} -> {there}  FAILED" in run.stdout
    assert f"{there} -> {here}  ok" in run.stdout
    assert f"Run `ssh-copy-id kvm@{there}` as root on {here}" in run.stderr
    assert said["exit_code"] == REFUSED
    assert {(pair["source"], pair["works"]) for pair in said["pairs"]} == {(here, False), (there, True)}


def test_check_with_a_user_that_neither_host_has_finds_both_ways_closed(scene: Scene) -> None:
    run = check(scene, "nobody-here")
    assert run.code == REFUSED, run.text
    assert run.stdout.count("FAILED") == 2
    assert "nobody-here" in run.stderr


def test_check_with_an_agent_stopped_ends_with_no_contact(scene: Scene, agents: dict[str, Agent]) -> None:
    assert agents["node2"].stop() == 0
    try:
        run = check(scene)
    finally:
        agents["node2"] = scene.lab.start_agent(scene.target)
    assert run.code == NO_CONTACT, run.text
    row = next(line for line in run.stdout.splitlines() if line.startswith(scene.target.address))
    assert "agent-silent" in row
    assert f"No agent answered at {scene.target.address} UDP port 8002" in run.stderr
    # What one agent knows is told all the same.
    assert scene.source.full_name in run.stdout


def test_check_with_libvirt_down_on_one_host_says_so(scene: Scene) -> None:
    with placed(place.libvirtd_stopped, scene):
        run = check(scene)
    assert run.code == REFUSED, run.text
    assert f"{scene.source.address} -> {scene.target.address}  FAILED" in run.stdout
    assert "libvirt on" in run.stderr
    assert scene.target.path(DIRECTORY).is_dir()
