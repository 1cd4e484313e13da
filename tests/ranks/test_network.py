"""Two hosts: network namespaces joined by a virtual cable, without a common disk or a name for each other."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ranks.runners import MEASURED_PER_PROFILE, PROFILE_COUNT

TOP = Path(__file__).parents[2]
NAMES = [f"fics{os.getpid() % 100000}{side}" for side in "ab"]
ADDRESSES = ["10.213.7.1", "10.213.7.2"]


def ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture
def hosts():
    """Two namespaces with an address each."""
    try:
        for name in NAMES:
            ip("netns", "add", name)
        ip("link", "add", NAMES[0], "netns", NAMES[0], "type", "veth", "peer", "name", NAMES[1], "netns", NAMES[1])
        for name, address in zip(NAMES, ADDRESSES, strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", name)
            ip("-n", name, "link", "set", name, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield NAMES
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no network namespaces here: {getattr(error, 'stderr', error)}")
    finally:
        for name in NAMES:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def run_job(hosts, tmp_path):
    running = []
    for rank, host in enumerate(hosts):
        command = ["ip", "netns", "exec", host, sys.executable, "-m", "tests.ranks.two_hosts", str(rank), f"{ADDRESSES[0]}:29411"]
        environ = {**os.environ, "GLOO_SOCKET_IFNAME": host, "PYTHONPATH": str(TOP)}
        command += [str(tmp_path / f"root{rank}"), str(tmp_path / f"out{rank}")]
        running.append(subprocess.Popen(command, env=environ, cwd=TOP, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True))
    for process in running:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors[-3000:]
    return [json.loads((tmp_path / f"out{rank}").read_text()) for rank in range(len(hosts))]


def test_two_hosts_measure_once_and_both_are_warm_afterwards(hosts, tmp_path):
    profiles = 2 * 2 * PROFILE_COUNT
    first = run_job(hosts, tmp_path)
    assert sum(found["measured"] for found in first) == profiles * MEASURED_PER_PROFILE
    assert first[0]["answers"] == first[1]["answers"]
    assert [(found["shared"], found["stored"]) for found in first] == [(2 * PROFILE_COUNT, profiles)] * 2
    again = run_job(hosts, tmp_path)
    assert [found["measured"] for found in again] == [0, 0]
    assert [found["answers"] for found in again] == [first[0]["answers"]] * 2
