"""Many processes: where this one belongs on a TPU pod, under SLURM or by explicit numbers, and JAX's start-up."""

import dataclasses
import importlib.util
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax

from jvidprune.errors import JvidpruneError, TransientError, reason


@dataclasses.dataclass(frozen=True)
class Launch:
    """How this process was started.

    Attributes:
      kind: "single", "explicit", "slurm" or "tpu".
      coordinator: host:port of process 0; empty where JAX finds it itself (TPU).
      process: number of this one.
      processes: how many there are; 0 where JAX finds out.
      local_devices: which of the machine's devices this process takes; None for all that it sees.
    """

    kind: str
    coordinator: str = ""
    process: int = 0
    processes: int = 1
    local_devices: tuple[int, ...] | None = None


def detect(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    exists: Callable[[str], bool] = os.path.exists,
) -> Launch:
    """Where this process belongs: by explicit numbers, else by JAX_* variables, else SLURM, else a TPU pod.

    Args:
      coordinator: host:port of process 0.
      processes: how many there are.
      process: number of this one.
      environment: by default that of the process.
      exists: whether a file exists, to see a TPU.

    Raises:
      JvidpruneError: some of the three are given but not all, or they contradict each other.
    """
    env = os.environ if environment is None else environment
    coordinator = coordinator or env.get("JAX_COORDINATOR_ADDRESS") or None
    processes = _number(processes, env, "JAX_NUM_PROCESSES")
    process = _number(process, env, "JAX_PROCESS_ID")
    given = {"coordinator": coordinator, "number of processes": processes, "process id": process}
    if any(value is not None for value in given.values()):
        if missing := [name for name, value in given.items() if value is None]:
            raise JvidpruneError(f"several processes need a coordinator, their number and an id: no {missing[0]}.")
        return _explicit(str(coordinator), int(processes or 0), int(process or 0))
    if "SLURM_PROCID" in env and int(env.get("SLURM_NTASKS", "1")) > 1:
        return _slurm(env)
    hosts = [name for name in env.get("TPU_WORKER_HOSTNAMES", "").split(",") if name.strip()]
    if len(hosts) > 1 or "MEGASCALE_COORDINATOR_ADDRESS" in env or _tpu_machine(env, exists):
        return Launch("tpu", processes=0)
    return Launch("single")


def _number(given: int | None, env: Mapping[str, str], name: str) -> int | None:
    text = env.get(name)
    if given is not None or not text:
        return given
    if not text.lstrip("-").isdecimal():
        raise JvidpruneError(f"{name} must be a whole number, got {text!r}.")
    return int(text)


def _explicit(coordinator: str, processes: int, process: int) -> Launch:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise JvidpruneError(f"a coordinator is written host:port, got {coordinator!r}.")
    if processes < 1:
        raise JvidpruneError(f"there must be at least 1 process, got {processes}.")
    if not 0 <= process < processes:
        raise JvidpruneError(f"process ids of {processes} processes are 0 to {processes - 1}, got {process}.")
    return Launch("explicit", coordinator, process, processes)


def _slurm(env: Mapping[str, str]) -> Launch:
    """A task of `srun`: the coordinator is on the step's first node, at a port that the job's number decides."""
    nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST", "")
    job = env.get("SLURM_JOB_ID", "")
    if not nodes or not job.isdecimal():
        raise JvidpruneError("SLURM gives neither nodes nor a job number: start with srun, or name a coordinator.")
    # node[003-007,9] and node3,node4 begin with node003 and node3.
    first = re.match(r"([^\[,]+)(?:\[([^\],-]+))?", nodes)
    host = "".join(part or "" for part in first.groups()) if first else nodes
    tasks = re.match(r"\d+", env.get("SLURM_STEP_TASKS_PER_NODE") or env.get("SLURM_TASKS_PER_NODE") or "1")
    bound = len([x for x in env.get("CUDA_VISIBLE_DEVICES", "").split(",") if x]) == 1
    # One task a node takes all its devices; several share them, unless SLURM has bound each to its own.
    shared = tasks is not None and int(tasks.group()) > 1 and not bound
    devices = (int(env.get("SLURM_LOCALID", "0")),) if shared else None
    return Launch(
        "slurm", f"{host}:{61440 + int(job) % 4096}", int(env["SLURM_PROCID"]), int(env["SLURM_NTASKS"]), devices
    )


def _tpu_machine(env: Mapping[str, str], exists: Callable[[str], bool]) -> bool:
    """Whether this is a TPU VM that JAX is going to use."""
    if "tpu" not in (env.get("JAX_PLATFORMS") or "tpu") or importlib.util.find_spec("libtpu") is None:
        return False
    return exists("/dev/accel0") or exists("/dev/vfio/0")


def start(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    keep_running: bool = False,
    heartbeat: int = 100,
    patience: int = 300,
) -> Launch:
    """Starts JAX's distributed runtime where there are several processes; before anything runs on a device.

    A second call starts nothing and says the same. On CPU collectives go through gloo, and with `keep_running` they
    stay inside a process.

    Args:
      coordinator, processes, process: see `detect`.
      keep_running: the others go on when a process dies, and it may come back (a sweep, whose processes share nothing
        but a folder); by default all end, as a training step needs all. Process 0 must be the last to leave in any
        case: the others report to it.
      heartbeat: seconds of silence after which a process counts as dead.
      patience: seconds to wait for the others at the beginning and at the end.

    Raises:
      TransientError: the others cannot be joined.
      JvidpruneError: contradicting numbers, or it is too late: something has run on a device.
    """
    launch = detect(coordinator, processes, process)
    if jax.distributed.is_initialized():
        # Without the numbers of the first call a process looks as if it were alone.
        return _joined(launch if launch.kind != "single" else dataclasses.replace(launch, kind="explicit"))
    if launch.kind == "single":
        return launch
    config: Any = jax.config
    # A process that comes back finds the rendezvous of its former life with gloo, even for its own devices alone.
    config.update("jax_cpu_collectives_implementation", None if keep_running else "gloo")
    if keep_running:
        config.update("jax_enable_recoverability", True)
    options: dict[str, Any] = {
        "initialization_timeout": patience,
        "heartbeat_timeout_seconds": heartbeat,
        "shutdown_timeout_seconds": patience,
    }
    if launch.kind != "tpu":
        options |= {
            "coordinator_address": launch.coordinator,
            "num_processes": launch.processes,
            "process_id": launch.process,
            "local_device_ids": launch.local_devices,
            "cluster_detection_method": "deactivate",
        }
    try:
        jax.distributed.initialize(**options)
    except (RuntimeError, ValueError) as error:
        where = launch.coordinator or "the pod's first host"
        # The runtime's own errors are about the others and the network; the rest is about how it was called.
        kind = TransientError if isinstance(error, jax.errors.JaxRuntimeError) else JvidpruneError
        raise kind(f"cannot join the other processes at {where}: {reason(error)}.") from error
    return _joined(launch)


def _joined(launch: Launch) -> Launch:
    """The same with the numbers that the running runtime knows."""
    return dataclasses.replace(launch, process=jax.process_index(), processes=jax.process_count())
