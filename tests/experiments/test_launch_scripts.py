"""The scripts that start jvidprune on clusters, run for real against stand-ins of srun, gcloud and xpk."""

import os
import subprocess

import pytest
from helpers.places import REPOSITORY

LAUNCH = REPOSITORY / "experiments" / "launch"

SRUN = """#!/usr/bin/env bash
while [[ "$1" == --* ]]; do shift; done
for id in 0 1; do SLURM_PROCID=$id "$@" & done
wait -n; first=$?; wait -n; second=$?
exit $((first > second ? first : second))
"""
# A line is written at once, so that two processes cannot mix theirs. Process 1 dies once; "mistake" is a command that
# cannot succeed, "taken" one that finds its place taken once.
JVIDPRUNE = """#!/usr/bin/env bash
line=$(printf '%s|' "${SLURM_PROCID:-}" "$@"); echo "$line" >> "$LOG"
[ "$1" = mistake ] && exit 2
if [ "$1" = taken ] && [ ! -e "$LOG.taken$SLURM_PROCID" ]; then touch "$LOG.taken$SLURM_PROCID"; exit 75; fi
if [ "${SLURM_PROCID:-}" = 1 ] && [ ! -e "$LOG.died" ]; then touch "$LOG.died"; exit 137; fi
exit 0
"""
LOGGED = """#!/usr/bin/env bash
line=$(printf '%s|' "$@"); echo "$line" >> "$LOG"
case "$*" in
*describe*) exit 1 ;;
*"jvidprune sweep"*) [ -e "$LOG.died" ] || { touch "$LOG.died"; exit 75; } ;;
*"jvidprune mistake"*) exit 2 ;;
esac
"""


@pytest.fixture
def run(tmp_path):
    """Runs a script with stand-ins in the PATH: (exit code, logged calls, stderr)."""
    stand_ins = {"srun": SRUN, "jvidprune": JVIDPRUNE, "gcloud": LOGGED, "xpk": LOGGED}
    # `pip wheel` would build the package.
    stand_ins["python3"] = '#!/usr/bin/env bash\ntouch "${@: -2:1}/jvidprune-0-py3-none-any.whl"\n'
    for name, text in stand_ins.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    log = tmp_path / "log"

    def call(script, *words, **environment):
        path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
        env = {"PATH": path, "LOG": str(log), "PAUSE": "0", "HOME": str(tmp_path), **environment}
        done = subprocess.run([LAUNCH / script, *words], env=env, capture_output=True, text=True, check=False)
        return done.returncode, sorted(log.read_text().splitlines()) if log.exists() else [], done.stderr

    return call


def test_slurm_starts_a_process_again_that_died_but_not_one_with_a_mistake(run):
    code, calls, err = run("slurm.sbatch", "sweep", "--out", "a folder")
    assert code == 0, err
    assert calls == ["0|sweep|--out|a folder|", "1|sweep|--out|a folder|", "1|sweep|--out|a folder|"]
    assert "process 1 ended with code 137; starting it again" in err
    code, calls, _ = run("slurm.sbatch", "mistake")
    assert code == 2
    assert [call for call in calls if "mistake" in call] == ["0|mistake|", "1|mistake|"]
    code, calls, err = run("slurm.sbatch", "taken")
    assert code == 0, err
    assert [call for call in calls if "taken" in call] == ["0|taken|"] * 2 + ["1|taken|"] * 2
    assert "process 0 ended with code 75; starting it again" in err
    assert run("slurm.sbatch")[0] == 2


def test_an_element_of_an_array_is_one_host_of_all(run):
    whole = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_MAX": "7"}
    assert run("slurm_array.sbatch", "--out", "x", **whole)[:2] == (0, ["|sweep|--host|3/8|--out|x|"])
    again = whole | {"SLURM_ARRAY_TASK_MAX": "3", "HOSTS": "8"}
    assert run("slurm_array.sbatch", **again)[1][0] == "|sweep|--host|3/8|"
    assert run("slurm_array.sbatch")[0] == 2


def test_a_tpu_slice_is_made_installed_and_started_again_as_a_whole(run):
    code, _, err = run("tpu_pod.sh", "sweep")
    assert code != 0
    assert "NAME, ZONE, TYPE, VERSION and NFS must be set" in err
    names = {"NAME": "n", "ZONE": "z", "TYPE": "v6e-16", "VERSION": "v2", "NFS": "10.0.0.2:/share"}
    code, calls, err = run("tpu_pod.sh", "sweep", "--out", "/mnt/shared/a run", **names)
    assert code == 0, err
    assert any("tpu-vm|create|n|--zone|z|--accelerator-type|v6e-16|--version|v2|" in call for call in calls)
    assert any("tpu-vm|scp|" in call and ".whl|n:|--zone|z|--worker|all|" in call for call in calls)
    assert any("mount -t nfs '10.0.0.2:/share' /mnt/shared" in call for call in calls)
    started = [call for call in calls if "env/bin/jvidprune sweep --out /mnt/shared/a\\ run" in call]
    assert len(started) == 2
    assert all("ssh|n|--zone|z|--worker|all|--command|" in call for call in started)
    assert "the slice ended with code 75; starting again" in err
    code, calls, _ = run("tpu_pod.sh", "mistake", **names)
    assert code == 2
    assert len([call for call in calls if "jvidprune mistake" in call]) == 1


def test_an_xpk_workload_carries_the_command(run):
    names = {"CLUSTER": "c", "WORKLOAD": "w", "TYPE": "v6e-16", "IMAGE": "i"}
    code, calls, err = run("tpu_xpk.sh", "plan", "--model", "a b", **names)
    assert code == 0, err
    assert calls == [
        "workload|create|--cluster|c|--workload|w|--tpu-type|v6e-16|--num-slices|1|--docker-image|i|--max-restarts|10|"
        "--command|jvidprune plan --model a\\ b |"
    ]
    assert run("tpu_xpk.sh", "plan")[0] != 0
