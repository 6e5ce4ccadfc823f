"""Two real processes of four simulated devices each: a sweep and a training step end as in a single process."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.places import MODELS, import_paths
from helpers.sweeps import WORDS, exit_code, has_lines, results, sweep, table

MESH = ["--mesh", "data=2,tensor=2"]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def environment(**more):
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
    paths = import_paths(Path(__file__).parent)
    return os.environ | {"XLA_FLAGS": flags, "NPROC": "32", "JAX_PLATFORMS": "cpu", "PYTHONPATH": paths} | more


@pytest.fixture(scope="module")
def whole(home, model):
    """The folder of a single process with one device."""
    return sweep(home, model, home / "whole")


class Hosts:
    """The two processes of a sweep in one folder."""

    def __init__(self, home, model, out):
        self.out, self.port, self.log = out, free_port(), home / f"{out.name}.log"
        self.command = [sys.executable, "-m", "jvidprune.cli", "sweep", "--model", str(model), *WORDS, *MESH]
        self.command += ["--out", str(out), "--coordinator", f"127.0.0.1:{self.port}", "--processes", "2"]
        self.environment = environment(JVIDPRUNE_CACHE=str(home))
        self.running = [self.start(number) for number in (0, 1)]

    def start(self, number):
        command = [*self.command, "--process-id", str(number)]
        with self.log.open("ab") as log:
            return subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)

    def kill_when_writing(self, number):
        """SIGKILL as soon as a host has written its first records."""
        while self.running[number].poll() is None and not has_lines(self.own(number), 1):
            time.sleep(0.002)
        self.running[number].send_signal(signal.SIGKILL)
        assert self.running[number].wait() == -signal.SIGKILL, self.log.read_text()[-3000:]

    def own(self, number):
        return self.out / f"samples.{number}-of-2.jsonl"

    def close(self):
        for process in self.running:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()


@pytest.fixture
def hosts(home, model, tmp_path):
    made = Hosts(home, model, tmp_path / "out")
    yield made
    made.close()


def assert_whole(out, whole):
    assert results(out) == results(whole)
    assert table(out) == table(whole)
    # The joined file is the one that a single process writes, in its order, and nothing is left of the parts.
    assert (out / "samples.jsonl").read_bytes() == (whole / "samples.jsonl").read_bytes()
    assert not list(out.glob("*-of-*.jsonl"))
    places = [
        [(r["clip"], r["method"], r["ratio"]) for r in map(json.loads, path.read_text().splitlines())]
        for path in (out / "batches.jsonl", whole / "batches.jsonl")
    ]
    assert sorted(places[0]) == sorted(places[1])
    assert len(set(places[0])) == len(places[0])


@pytest.mark.long
@pytest.mark.slow
def test_a_host_that_dies_comes_back_and_the_table_is_that_of_a_single_process(hosts, whole):
    hosts.kill_when_writing(1)
    written = results_of(hosts.own(1))
    assert 0 < len(written) < len(results(whole)) / 2
    hosts.running[1] = hosts.start(1)
    codes = [process.wait() for process in hosts.running]
    assert codes == [0, 0], hosts.log.read_text()[-3000:]
    assert_whole(hosts.out, whole)
    assert "host 1 of 2" in hosts.log.read_text() or "report:" in hosts.log.read_text()


@pytest.mark.slow
def test_what_the_others_ended_by_a_dead_coordinator_leave_is_finished_by_a_single_process(hosts, home, model, whole):
    hosts.kill_when_writing(0)
    hosts.running[1].wait()
    there = results_of(hosts.own(0)) + results_of(hosts.own(1))
    assert 0 < len(there) < len(results(whole))
    assert not (hosts.out / "table.csv").exists()
    sweep(home, model, hosts.out)
    assert_whole(hosts.out, whole)


def results_of(path):
    """Whole records of a file that may be torn."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found


def test_two_hosts_keep_a_single_process_out_and_other_hosts_of_their_number(tmp_path):
    from jvidprune.errors import JvidpruneError, TransientError
    from jvidprune.evals.hosts import Host, is_running, only_writer

    assert [list(Host(i, 3).clips(7)) for i in range(3)] == [[0, 3, 6], [1, 4], [2, 5]]
    with pytest.raises(JvidpruneError, match="numbered 0 to 1, got 2"):
        Host(2, 2)
    with only_writer(tmp_path, Host(0, 2)):
        with only_writer(tmp_path, Host(1, 2)):
            assert is_running(tmp_path, Host(1, 2))
        assert not is_running(tmp_path, Host(1, 2))
        refused = pytest.raises(TransientError, match=r"another process is writing to .* as host 0 of 2; wait for it")
        with refused, only_writer(tmp_path, Host(0, 2), patience=0):
            pass
        with pytest.raises(TransientError, match="another process is writing to"), only_writer(tmp_path, patience=0):
            pass
    refused = pytest.raises(TransientError, match="another process is writing to")
    with only_writer(tmp_path), refused, only_writer(tmp_path, Host(1, 2), patience=0):
        pass


def test_a_place_that_is_only_asked_about_is_waited_for(tmp_path):
    import fcntl

    from jvidprune.evals import hosts

    assert hosts.PATIENCE >= 1
    with hosts.only_writer(tmp_path, hosts.Host(1, 2)):
        pass
    # As `is_running` of host 0 does in the moment at which host 1 is started again.
    probe = (tmp_path / ".lock.1-of-2").open("a+")
    fcntl.flock(probe, fcntl.LOCK_EX)
    threading.Timer(0.2, probe.close).start()
    with hosts.only_writer(tmp_path, hosts.Host(1, 2), patience=60):
        assert hosts.is_running(tmp_path, hosts.Host(1, 2))


def test_what_goes_wrong_inside_is_not_taken_for_a_folder_that_cannot_be_written_to(tmp_path):
    from jvidprune.errors import JvidpruneError
    from jvidprune.evals.hosts import only_writer

    with pytest.raises(BrokenPipeError), only_writer(tmp_path):
        raise BrokenPipeError
    (tmp_path / "file").touch()
    with pytest.raises(JvidpruneError, match=r"cannot write to .*file: "), only_writer(tmp_path / "file"):
        pass


def test_of_two_runs_at_once_in_a_folder_one_is_refused_and_later_both_share_it(tmp_path, monkeypatch):
    from jvidprune.errors import TransientError
    from jvidprune.evals import runner
    from jvidprune.evals.hosts import Host, only_writer
    from jvidprune.evals.plan import SweepPlan

    monkeypatch.setattr(runner.plans, "identity", lambda llm, task, plan: {"longest": plan.max_new_tokens})

    def run(number, longest):
        plan = SweepPlan({}, max_new_tokens=longest)
        return runner.run_sweep(None, [], plan, tmp_path, host=Host(number, 2), grace=0).complete

    assert run(0, 1)
    with only_writer(tmp_path, Host(0, 2)):
        # Host 0 goes on with what run.json says.
        assert run(1, 1) is True
        with pytest.raises(TransientError, match="holds another run"):
            run(1, 2)
    assert run(1, 2)
    known = json.loads((tmp_path / "run.json").read_text())
    assert (known["longest"], [run["longest"] for run in known["earlier"]]) == (2, [1])
    assert run(0, 1)
    known = json.loads((tmp_path / "run.json").read_text())
    assert (known["longest"], [run["longest"] for run in known["earlier"]]) == (1, [2])


@pytest.mark.slow
def test_a_bad_clip_is_the_same_for_hosts_and_for_a_single_process(home, model, tmp_path):
    from jvidprune.procedural.benchmark import Procedural
    from jvidprune.procedural.export import export

    data, out = tmp_path / "data", tmp_path / "out"
    export(Procedural("test", clips=4, questions=1), data, scale=1)
    whole = (data / "videos" / "test-1.mp4").read_bytes()
    (data / "videos" / "test-1.mp4").write_bytes(whole[: len(whole) // 2])
    words = ["--task", "exported", "--data", str(data), "--frames", "8"]
    alone = sweep(home, model, tmp_path / "alone", *words)
    for number in (1, 0):
        assert exit_code(home, model, out, *words, "--host", f"{number}/2") == 0
    assert_whole(out, alone)
    # Mended, both go on; what an earlier version of the package wrote stays where it is.
    old = b'{"clip":"videos/test-0.mp4","question":"q","method":"none","ratio":1.0}\n'
    for folder in (alone, out):
        (folder / "samples.jsonl").write_bytes(old + (folder / "samples.jsonl").read_bytes())
        (data / "videos" / "test-1.mp4").write_bytes(whole)
    sweep(home, model, alone, *words)
    for number in (1, 0):
        assert exit_code(home, model, out, *words, "--host", f"{number}/2") == 0
    assert table(out) == table(alone)
    for folder in (alone, out):
        assert old in (folder / "samples.jsonl").read_bytes()
        assert "test-1" in (folder / "samples.jsonl").read_text()


@pytest.mark.slow
def test_hosts_without_a_coordinator_share_the_folder_alone(home, model, whole, tmp_path, capfd):
    from jvidprune.evals.hosts import Host, only_writer

    out = tmp_path / "out"
    sweep(home, model, out, "--host", "1/2")
    assert len(results_of(out / "samples.1-of-2.jsonl")) == len(results(whole)) / 2
    assert not (out / "table.csv").exists()
    with only_writer(out, Host(0, 2)):
        assert exit_code(home, model, out, "--host", "0/2") == 75
    assert "as host 0 of 2; wait for it to end" in capfd.readouterr().err
    assert exit_code(home, model, out, "--host", "0/2") == 0
    assert_whole(out, whole)
    sweep(home, model, out, "--host", "2/2")
    assert "numbered 0 to 1, got 2" in capfd.readouterr().err
    sweep(home, model, out, "--host", "1/2", "--coordinator", "h:1")
    assert "host 1/2 needs no coordinator" in capfd.readouterr().err


# --- a training step -------------------------------------------------------------------------------------------------


def train(folder, mesh=None):
    """Two steps of gradient descent with momentum on the language model: (parameters, losses)."""
    import jax
    import jax.numpy as jnp
    import optax
    from flax import nnx

    from experiments.tiny.optimiser import OptimiserState, training_step
    from jvidprune import parallel
    from jvidprune.models import family as families
    from jvidprune.models.checkpoint.load import load_model

    loaded = load_model(folder, dtype=jnp.float32, mesh=mesh)
    graph, params = nnx.split(loaded.model)
    tx = optax.sgd(0.1, momentum=0.9)

    def loss(params, batch):
        model = nnx.merge(graph, params)
        ids, places = batch["ids"], jnp.arange(batch["ids"].shape[1])[None]
        logits = model.lm.forward(model.embed_text(ids), places, jnp.ones(ids.shape, bool)).logits
        value = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], ids[:, 1:]).mean()
        return value, {"loss": value}

    table = families.get(loaded.family).sharding
    step, units = training_step(loss, tx), loaded.config.units
    ids = np.random.default_rng(1).integers(0, 200, (2, 8, 5), np.int32)
    with parallel.on_mesh_of(loaded.model):
        if mesh is None:
            moments = tx.init(params)
        else:
            shardings = parallel.state_shardings(jax.eval_shape(tx.init, params), mesh, table, units)
            moments = jax.jit(tx.init, out_shardings=shardings)(params)
        state, losses = OptimiserState(params, moments), []
        for rows in ids:
            batch = {"ids": rows} if mesh is None else parallel.shard_batch({"ids": rows}, mesh)
            state, metrics = step(state, batch, None)
            losses.append(float(metrics["loss"]))
    return state, losses


TRAIN = """
import sys
import jax, numpy as np
from jvidprune import launch, parallel
from jvidprune.models.checkpoint.folder import Checkpoint
from test_two_processes import train
started = launch.start(patience=60)
assert (started.kind, started.processes) == ("slurm", 2), started
assert (jax.device_count(), jax.local_device_count()) == (8, 4)
sizes, read = [], Checkpoint.read
def spy(self, name, index):
    value = read(self, name, index)
    sizes.append(value.nbytes)
    return value
Checkpoint.read = spy
mesh = parallel.make_mesh(fsdp=4, tensor=2)
# A batch that each process has a half of is the batch that both have whole.
rows = np.arange(16).reshape(8, 2)
half = rows[4 * started.process :][:4]
for a, b in zip(*(parallel.shard_batch(part, mesh, local=part is half).addressable_shards for part in (rows, half))):
    np.testing.assert_array_equal(a.data, b.data)
    assert a.index == b.index
state, losses = train(sys.argv[1], mesh)
wanted = np.load(sys.argv[2])
np.testing.assert_allclose(losses, wanted["losses"], rtol=1e-5)
halves = []
for i, leaf in enumerate(jax.tree.leaves(state)):
    whole = wanted[f"leaf{i}"]
    for shard in leaf.addressable_shards:
        np.testing.assert_allclose(shard.data, whole[shard.index], atol=2e-6, rtol=1e-5, err_msg=str(i))
    held = {str(shard.index): shard.data.nbytes for shard in leaf.addressable_shards}
    halves.append(sum(held.values()) / whole.nbytes)
assert min(halves) == 0.5, halves
total = float(wanted["bytes"])
print(started.process, sum(sizes) / total)
"""


@pytest.mark.slow
def test_a_training_step_over_both_processes_is_that_of_one(tmp_path):
    import jax

    state, losses = train(MODELS / "llava_onevision")
    leaves = {f"leaf{i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))
    np.savez(tmp_path / "whole.npz", losses=losses, bytes=total, **leaves)
    # The coordinator's port follows from the job's number.
    job = slurm_job()
    slurm = {"SLURM_JOB_ID": str(job), "SLURM_NTASKS": "2", "SLURM_STEP_NODELIST": "127.0.0.1,other"}
    command = [sys.executable, "-c", TRAIN, str(MODELS / "llava_onevision"), str(tmp_path / "whole.npz")]
    running = [
        subprocess.Popen(
            command,
            env=environment(SLURM_PROCID=str(number), **slurm),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in (0, 1)
    ]
    found = [process.communicate() for process in running]
    assert [process.returncode for process in running] == [0, 0], found
    # gloo talks on stdout, too.
    words = [out.strip().splitlines()[-1].split() for out, _ in found]
    shares = {int(process): float(share) for process, share in words}
    # Neither process has read the checkpoint: about half each, and what is on every device twice.
    assert shares.keys() == {0, 1}
    assert all(0.5 <= share < 0.7 for share in shares.values()), shares


def slurm_job():
    """A job number whose port is free."""
    for job in range(os.getpid(), os.getpid() + 4096):
        with contextlib.suppress(OSError), socket.socket() as listener:
            listener.bind(("127.0.0.1", 61440 + job % 4096))
            return job
    raise AssertionError("no free port")
