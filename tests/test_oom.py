"""What the kernel's counts of its OOM killer are read from, in files with known content."""

from __future__ import annotations

import pytest

from qflow.graph import cores
from qflow.runtime import oom

V2 = "low 0\nhigh 3\nmax 12\noom 4\noom_kill {}\noom_group_kill 9\n"
V1 = "oom_kill_disable 1\nunder_oom 1\noom_kill {}\n"
VMSTAT = "nr_free_pages 12\noom_kill {}\nthp_fault_alloc 8\n"


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Write files of another machine."""
    monkeypatch.setattr(cores, "open", lambda name: open(f"{tmp_path}{name}"), raising=False)

    def write(**files):
        for name, text in files.items():
            path = tmp_path / PLACES[name]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return write


PLACES = {
    "cgroup": "proc/self/cgroup",
    "vmstat": "proc/vmstat",
    "v2": "sys/fs/cgroup/user.slice/a:b/memory.events",
    "v1": "sys/fs/cgroup/memory/docker/abc/memory.oom_control",
    "other": "sys/fs/cgroup/memory/cpu/memory.oom_control",
}
IN_V2, IN_V1 = "0::/user.slice/a:b\n", "5:cpu,cpuacct:/cpu\n4:freezer,memory:/docker/abc\n1:name=systemd:/cpu\n"
CASES = {
    "v2": ({"cgroup": IN_V2, "v2": V2.format(7), "vmstat": VMSTAT.format(2)}, 7),
    "v1": ({"cgroup": IN_V1, "v1": V1.format(5), "other": V1.format(90), "vmstat": VMSTAT.format(2)}, 5),
    "both": ({"cgroup": IN_V1 + IN_V2, "v1": V1.format(5), "v2": V2.format(6)}, 6),
    "the whole machine": ({"cgroup": IN_V2, "v2": V2.format(0), "vmstat": VMSTAT.format(11)}, 11),
    "no cgroup": ({"vmstat": VMSTAT.format(3)}, 3),
    "no count": ({"cgroup": IN_V2, "v2": "low 0\noom 4\n", "vmstat": "nr_free_pages 1\n"}, 0),
    "no number": ({"cgroup": IN_V2, "v2": V2.format("many"), "vmstat": VMSTAT.format(4)}, 4),
    "nothing": ({}, 0),
}


@pytest.mark.parametrize("case", CASES)
def test_W5_the_kernels_counts_are_read(case, machine):
    files, kills = CASES[case]
    machine(**files)
    assert oom.killed() == kills


def test_W5_the_count_of_this_machine_is_a_number_that_does_not_fall():
    assert 0 <= oom.killed() <= oom.killed()
