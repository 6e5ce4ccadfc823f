"""Meshes: who holds which slice, what a load reads, and the same answers on one device and on eight."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.places import MODELS, import_paths
from jax.sharding import PartitionSpec

from jvidprune import parallel
from jvidprune.errors import JvidpruneError, TransientError
from jvidprune.launch import Launch, detect, start
from jvidprune.models import family as families
from jvidprune.models.checkpoint.published import PUBLISHED, published


def run_on_eight(script, *words):
    """Runs a script in a process with eight simulated devices and returns what it printed.

    Devices that wait for each other hold threads of XLA's pool, which has one for each core unless NPROC says more:
    with two cores larger programs would wait for ever.
    """
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    paths = import_paths(Path(__file__).parent)
    env = os.environ | {"XLA_FLAGS": flags, "NPROC": "32", "JAX_PLATFORMS": "cpu", "PYTHONPATH": paths}
    command = [sys.executable, "-c", script, *map(str, words)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


# --- the mesh and the tables -----------------------------------------------------------------------------------------


class Wide:
    """A mesh of a shape that this machine has no devices for."""

    def __init__(self, **sizes):
        self.shape = dict.fromkeys(parallel.AXES, 1) | sizes


def spec(path, shape, mesh, units, family="llava_onevision"):
    axes = parallel.axes_of(path, families.get(family).sharding) or (None,) * len(shape)
    return parallel._spec(axes, shape, mesh.shape, units)


def test_a_mesh_that_does_not_fit_the_devices_is_refused_in_one_sentence():
    devices = [jax.devices()[0]] * 8
    mesh = parallel.make_mesh(devices=devices[:1])
    assert dict(mesh.shape) == {"data": 1, "fsdp": 1, "tensor": 1}
    for sizes, sentence in [
        ({"data": 2, "fsdp": 2, "tensor": 4}, "a mesh of data=2, fsdp=2, tensor=4 needs 16 devices, but there are 8"),
        ({"tensor": 3}, "fsdp=1, tensor=3 needs a multiple of 3 devices, but there are 8"),
        ({"fsdp": 16}, "fsdp=16, tensor=1 needs a multiple of 16 devices, but there are 8"),
        ({"fsdp": 0}, "axis fsdp of a mesh must be at least 1, got 0"),
    ]:
        with pytest.raises(JvidpruneError, match=sentence):
            parallel.make_mesh(**sizes, devices=devices)


def test_meshes_are_read_from_text():
    assert parallel.read_mesh("data=2, tensor=4") == {"data": 2, "tensor": 4}
    assert parallel.read_mesh("auto") == parallel.read_mesh("") == {}
    for text in ("model=2", "data", "data=x", "data=2,data=2"):
        with pytest.raises(JvidpruneError, match="a mesh is written as in"):
            parallel.read_mesh(text)


def test_no_head_is_ever_cut():
    mesh, q, k = Wide(fsdp=2, tensor=4), "lm.layers.attn.q.kernel", "lm.layers.attn.k.kernel"
    assert spec(q, (3, 32, 64), mesh, {"heads": 8}) == PartitionSpec(None, "fsdp", "tensor")
    # Two key heads on four devices: everyone holds both.
    assert spec(k, (3, 32, 16), mesh, {"kv_heads": 2}) == PartitionSpec(None, "fsdp", None)
    assert spec(k, (3, 32, 16), Wide(tensor=2), {"kv_heads": 2}) == PartitionSpec(None, None, "tensor")
    parallel.check_mesh("llava_onevision", {"heads": 28}, Wide(tensor=4))
    with pytest.raises(JvidpruneError, match=r"tensor=8 does not divide the 28 heads .* allowed: 1, 2, 4, 7, 14, 28\."):
        parallel.check_mesh("llava_onevision", {"heads": 28}, Wide(tensor=8))


def test_what_does_not_divide_stays_whole_and_batches_take_the_axes_they_can():
    mesh = Wide(data=2, fsdp=4, tensor=2)
    assert spec("lm.embed.embedding", (151, 32), mesh, {}) == PartitionSpec(None, "fsdp")
    assert parallel._spec(("batch", None), (8, 3), mesh.shape, {}) == PartitionSpec(("data", "fsdp"), None)
    assert parallel._spec(("batch", None), (2, 3), mesh.shape, {}) == PartitionSpec("data", None)
    assert parallel._spec(("batch", None), (3, 3), mesh.shape, {}) == PartitionSpec(None, None)
    assert spec("lm.norm.scale", (32,), mesh, {}) == PartitionSpec(None)


def test_every_pattern_names_a_parameter_and_every_large_parameter_is_divided():
    configs = {published(name).family: published(name) for name in PUBLISHED}
    shapes = {family: parameter_shapes(config) for family, config in configs.items()}
    assert shapes.keys() == set(families.names())
    everywhere = {path: shape for found in shapes.values() for path, shape in found.items()}
    for pattern, axes in {row for family in families.families() for row in family.sharding}:
        fitting = [path for path in everywhere if re.fullmatch(pattern, path)]
        assert fitting, pattern
        assert all(len(everywhere[path]) == len(axes) for path in fitting)
    mesh = Wide(fsdp=2, tensor=4)
    for family, config in configs.items():
        specs = {path: spec(path, shape, mesh, config.units, family) for path, shape in shapes[family].items()}
        assert [path for path, found in specs.items() if np.prod(shapes[family][path]) > 20e6 and not any(found)] == []


def parameter_shapes(config):
    package = importlib.import_module(f"jvidprune.models.{config.family}")
    state = nnx.state(nnx.eval_shape(lambda: package.Model(config, dtype=jnp.bfloat16)))
    return {parallel.dotted(path): leaf.shape for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]}


def test_moments_of_an_optimiser_lie_where_their_parameters_do():
    import optax

    params = {"lm": {"layers": {"attn": {"q": {"kernel": np.zeros((2, 4, 6), np.float32)}}}}}
    state = jax.eval_shape(optax.adam(1e-3).init, (params, {"heads": np.zeros(3)}))
    found = {
        parallel.dotted(path): parallel.axes_of(parallel.dotted(path), families.get("qwen3_vl").sharding)
        for path, _ in jax.tree_util.tree_flatten_with_path(state)[0]
    }
    assert found["0.mu.0.lm.layers.attn.q.kernel"] == (None, "embed", "heads")
    assert found["0.nu.0.lm.layers.attn.q.kernel"] == (None, "embed", "heads")
    assert found["0.mu.1.heads"] is found["0.count"] is None
    assert parallel.axes_of("x", families.get("qwen3_vl").sharding) is None


# --- processes -------------------------------------------------------------------------------------------------------


def test_processes_find_their_place():
    def find(*given, exists=lambda path: False, **environment):
        return detect(*given, environment=environment, exists=exists)

    assert find() == Launch("single")
    assert find("h:1234", 4, 2) == Launch("explicit", "h:1234", 2, 4)
    named = {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:99", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}
    assert find(**named) == Launch("explicit", "10.0.0.1:99", 1, 2)
    slurm = {"SLURM_JOB_ID": "4099", "SLURM_NTASKS": "8", "SLURM_PROCID": "5", "SLURM_LOCALID": "1"}
    nodes = {"SLURM_STEP_NODELIST": "gpu[003-006,9],x1", "SLURM_STEP_TASKS_PER_NODE": "2(x4)"}
    assert find(**slurm, **nodes) == Launch("slurm", "gpu003:61443", 5, 8, (1,))
    assert find(**slurm, **nodes, CUDA_VISIBLE_DEVICES="3").local_devices is None
    assert find(**slurm, SLURM_STEP_NODELIST="n1,n2") == Launch("slurm", "n1:61443", 5, 8)
    # Explicit numbers go before SLURM's; one task is a single process.
    assert find("h:1", 2, 0, **slurm, **nodes).kind == "explicit"
    assert find(**slurm | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}).kind == "single"
    assert find(TPU_WORKER_HOSTNAMES="t0,t1", TPU_WORKER_ID="0") == Launch("tpu", processes=0)
    assert find(TPU_WORKER_HOSTNAMES="t0").kind == "single"


@pytest.mark.parametrize(
    ("given", "environment", "sentence"),
    [
        (("h:1", None, 0), {}, "need a coordinator, their number and an id: no number of processes"),
        ((None, 2, None), {}, "no coordinator"),
        (("h", 2, 0), {}, "a coordinator is written host:port, got 'h'"),
        (("h:99999", 2, 0), {}, "got 'h:99999'"),
        (("h:1", 2, 2), {}, "process ids of 2 processes are 0 to 1, got 2"),
        (("h:1", 0, 0), {}, "at least 1 process, got 0"),
        (("h:1", None, 0), {"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES must be a whole number, got 'two'"),
        ((None, None, None), {"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}, "SLURM gives neither nodes nor a job number"),
    ],
)
def test_contradicting_numbers_are_refused_in_one_sentence(given, environment, sentence):
    with pytest.raises(JvidpruneError, match=sentence):
        detect(*given, environment=environment, exists=lambda path: False)


def test_the_runtime_is_joined_once_and_tells_the_numbers_again(monkeypatch):
    def fails(error):
        def initialize(**options):
            raise error

        return initialize

    monkeypatch.setattr(jax.config, "update", lambda name, value: None)
    refused = jax.errors.JaxRuntimeError("UNAVAILABLE: connection refused")
    monkeypatch.setattr(jax.distributed, "initialize", fails(refused))
    with pytest.raises(TransientError, match="cannot join the other processes at h:1: UNAVAILABLE") as failed:
        start("h:1", 2, 0)
    assert failed.value.exit_code == 75
    monkeypatch.setattr(jax.distributed, "initialize", fails(RuntimeError("must be called before any JAX calls")))
    with pytest.raises(JvidpruneError, match="must be called before") as failed:
        start("h:1", 2, 0)
    assert failed.value.exit_code == 2
    # The second call of a process, on a TPU pod, where nobody said how many there are, and without the first numbers.
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(jax, "process_index", lambda: 3)
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "a,b,c,d")
    again = start()
    assert (again.kind, again.process, again.processes) == ("tpu", 3, 4)
    monkeypatch.delenv("TPU_WORKER_HOSTNAMES")
    again = start()
    assert (again.kind, again.process, again.processes) == ("explicit", 3, 4)


# --- on eight devices ------------------------------------------------------------------------------------------------

LOAD = """
import sys
from pathlib import Path
import jax, numpy as np, jax.numpy as jnp
from flax import nnx
from jvidprune import parallel
from jvidprune.models import family as families
from jvidprune.models import load_model
from jvidprune.models.checkpoint.folder import Checkpoint
assert jax.device_count() == 8
mesh = parallel.make_mesh(data=2, fsdp=2, tensor=2)
plain = load_model(sys.argv[1], dtype=jnp.float32).model
reads = []
read = Checkpoint.read
def spy(self, name, index):
    value = read(self, name, index)
    reads.append((name, value.nbytes, tuple((s.start, s.stop) for s in index)))
    return value
Checkpoint.read = spy
spread = load_model(sys.argv[1], dtype=jnp.float32, mesh=mesh).model
# Every slice is read once, so that all of it together is the checkpoint, and no divided tensor is ever whole.
assert len(reads) == len(set((name, index) for name, _, index in reads))
total = sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(plain)))
assert sum(size for _, size, _ in reads) == total
flat = [dict(nnx.to_flat_state(nnx.state(m))) for m in (plain, spread)]
for path, value in flat[0].items():
    np.testing.assert_array_equal(value[...], flat[1][path][...], err_msg=str(path))
kernel = spread.lm.layers.mlp.up.kernel[...]
assert kernel.sharding.spec == jax.sharding.PartitionSpec(None, "fsdp", "tensor"), kernel.sharding
assert kernel.addressable_shards[0].data.size * 4 == kernel.size
layer = kernel.nbytes // kernel.shape[0]
largest = max(size for name, size, _ in reads if "mlp.up_proj" in name)
assert largest * 4 == layer
table = families.get("llava_onevision").sharding
wanted = parallel.state_shardings(nnx.state(plain), mesh, table, plain.config.units)
placed = parallel.shard_state(nnx.state(plain), mesh, table, plain.config.units)
for a, b, c in zip(*(jax.tree.leaves(t) for t in (wanted, nnx.state(spread), placed)), strict=True):
    assert a == b.sharding == c.sharding
from jvidprune.costs.footprint import weights
first = jax.devices()[0]
held = [s.data.size for x in jax.tree.leaves(nnx.state(spread)) for s in x.addressable_shards if s.device == first]
assert weights(spread.config, dict(mesh.shape)).total == sum(held) < total / 4 / 2
batch = parallel.shard_batch({"x": np.arange(12.0).reshape(4, 3), "scale": np.float32(2)}, mesh)
assert batch["x"].addressable_shards[0].data.shape == (1, 3)
seen = []
def double(x):
    y = parallel.constrain(x, "batch", None)
    return y * batch["scale"]
with jax.set_mesh(mesh):
    y = jax.jit(double)(jnp.arange(12.0).reshape(4, 3))
assert y.sharding.spec == jax.sharding.PartitionSpec(("data", "fsdp")), y.sharding
assert parallel.constrain(jnp.ones(3), "batch").shape == (3,)
try:
    parallel.shard_batch(np.zeros((6, 2)), mesh)
except ValueError as error:
    print(error)
"""


def test_a_checkpoint_is_read_slice_by_slice_onto_eight_devices():
    assert (
        run_on_eight(LOAD, MODELS / "llava_onevision") == "a batch of 6 rows cannot be divided over data=2, fsdp=2.\n"
    )


ANSWERS = """
import sys
from pathlib import Path
import jax, numpy as np
from helpers import tiny
from jvidprune import parallel
from jvidprune.llm import batch
from jvidprune.llm.batch import Prompt, answer_many, score_many
from jvidprune.llm.video_llm import VideoLLM
family, folder = sys.argv[1], Path(sys.argv[2])
tiny.write_checkpoint(folder, family)
mesh = parallel.make_mesh(data=2, fsdp=2, tensor=2)
frames = np.random.default_rng(0).integers(0, 255, (6, 48, 64, 3), np.uint8)
needs = frozenset({"attention_last", "keys"})
found, caches, read = [], [], batch.read_rows
def spy(*given):
    logits, cache = read(*given)
    caches.append(cache)
    return logits, cache
batch.read_rows = spy
for where in (None, mesh):
    llm = VideoLLM.load(folder, mesh=where)
    video = llm.encode(frames, needs=needs, fps=2.0)
    reduced = llm.reduce(video, reducer=llm.reducer("flashvid"), ratio=0.3)
    prompts = [Prompt(reduced, question) for question in ("Who?", "What is it?", "Where did it go then?")]
    replies = answer_many(llm, prompts, max_new_tokens=5)
    scores = score_many(llm, prompts, [["yes", "no"]] * 3)
    found.append((llm, video.tokens, reduced, replies, scores))
(_, video, _, replies, scores), (llm, spread, reduced, again, same) = found
assert parallel.mesh_of(llm.loaded.model) == mesh
assert reduced.reduced.tokens.sharding.is_fully_replicated and len(spread.features.devices()) == 8
for part in caches[-1].segments:
    assert part.k.sharding.spec == jax.sharding.PartitionSpec(None, ("data", "fsdp"), None, "tensor"), part.k.sharding
for name in ("features", *needs):
    a, b = (np.asarray(getattr(v, name) if name == "features" else v.evidence[name]) for v in (video, spread))
    np.testing.assert_allclose(a, b, atol=3e-5, rtol=3e-5, err_msg=name)
assert replies == again
assert len({reply.token_ids for reply in replies}) > 1
for a, b in zip(sum(scores, []), sum(same, [])):
    np.testing.assert_allclose(a.log_likelihood, b.log_likelihood, rtol=1e-4)
print("equal")
"""


@pytest.mark.parametrize("family", ["llava_onevision", "qwen3_vl"])
@pytest.mark.slow
def test_a_model_answers_alike_on_one_device_and_on_eight(tmp_path, family):
    assert run_on_eight(ANSWERS, family, tmp_path).strip() == "equal"


KERNEL = """
import jax, numpy as np
from jvidprune import parallel
from jvidprune.models.attention import Keys, attend, attend_all
mesh = parallel.make_mesh(data=2, fsdp=2, tensor=2)
rng = np.random.default_rng(0)
def draw(rows, heads):
    return rng.normal(size=(rows, 20, heads, 8)).astype(np.float32)
def read(q, k, v, kind):
    return attend(q, Keys(k, v, np.ones(q.shape[:2], bool), packed=True), kind=kind), attend_all(q, q, q, kind=kind)[0]
read = jax.jit(read, static_argnames="kind")
# Key heads that "tensor" divides and such that it does not; rows that the mesh divides and such that it does not.
for rows, heads in ((4, 2), (4, 1), (3, 2)):
    given = draw(rows, 4), draw(rows, heads), draw(rows, heads)
    plain = read(*given, kind="plain")
    with jax.set_mesh(mesh):
        found = read(*given, kind="splash")
        text = read.lower(*given, kind="splash").compile().as_text()
    for a, b in zip(found, plain):
        np.testing.assert_allclose(a, b, atol=2e-6)
    assert len(found[0].devices()) == 8 and "all-to-all" not in text and "all-reduce" not in text
print("equal")
"""


def test_a_kernel_that_cannot_be_divided_runs_on_every_devices_own_rows_and_heads():
    assert run_on_eight(KERNEL).strip() == "equal"


EXPERTS = """
import sys
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
from pathlib import Path
from helpers import tiny_checkpoints as tiny
from jvidprune import parallel
from jvidprune.models import load_model
from jvidprune.models.experts import Experts
from jvidprune.ops.branch import using
mesh = parallel.make_mesh(data=2, tensor=4)
module = Experts(6, 5, 8, 3, dtype=jnp.float32, rngs=nnx.Rngs(0))
run = jax.jit(lambda module, x: module(x))
x = np.random.default_rng(3).normal(size=(4, 9, 6)).astype(np.float32)
table = tuple((pattern.removeprefix(r"lm\\.layers\\.mlp\\."), axes[1:]) for pattern, axes in parallel.EXPERT_AXES)
placed = parallel.shard_state(module, mesh, table, {"experts": 8})
assert placed.gate_up[...].sharding.shard_shape((8, 6, 10)) == (2, 6, 10), placed.gate_up[...].sharding
for branch in ("cpu", "tpu"):
    with using(branch), jax.default_matmul_precision("highest"):
        expected = run(module, x)
        with jax.set_mesh(mesh):
            rows = parallel.shard_batch(x, mesh)
            found, text = run(placed, rows), run.lower(placed, rows).compile().as_text()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    # One sum over "tensor"; neither rows nor experts travel.
    assert text.count("all-reduce(") == 1 and "all-gather" not in text and "all-to-all" not in text
folder = tiny.write("qwen3_vl_moe", Path(sys.argv[1]) / "m")
given = jnp.asarray(np.random.default_rng(4).normal(size=(1, 11, tiny.WIDTH)), jnp.float32)
where = jnp.broadcast_to(jnp.arange(11), (3, 1, 11))
forward = jax.jit(lambda model: model.lm.forward(given, where, jnp.ones((1, 11), bool)).logits)
logits = []
for place in (None, parallel.make_mesh(data=2, fsdp=2, tensor=2)):
    model = load_model(folder, dtype=jnp.float32, mesh=place).model
    with parallel.on_mesh_of(model), jax.default_matmul_precision("highest"):
        logits.append(np.asarray(forward(model)))
down = model.lm.layers.mlp.down[...]
assert down.sharding.spec == jax.sharding.PartitionSpec(None, "tensor", None, "fsdp"), down.sharding
np.testing.assert_allclose(*logits, atol=1e-4)
print("equal")
"""


RECURRENT = """
import sys
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np
from helpers import tiny_checkpoints as tiny
from jvidprune import parallel
from jvidprune.models import load_model

folder = tiny.write("qwen3_5", Path(sys.argv[1]) / "m")
given = jnp.asarray(np.random.default_rng(4).normal(size=(2, 130, tiny.WIDTH)), jnp.float32)
where = jnp.broadcast_to(jnp.arange(130), (3, 2, 130))
forward = jax.jit(lambda model: model.lm.forward(given, where, jnp.ones((2, 130), bool)).logits)
logits = []
for place in (None, parallel.make_mesh(data=2, fsdp=2, tensor=2)):
    model = load_model(folder, dtype=jnp.float32, mesh=place).model
    with parallel.on_mesh_of(model), jax.default_matmul_precision("highest"):
        logits.append(np.asarray(forward(model)))
delta, spec = model.lm.linear.delta, jax.sharding.PartitionSpec
for kernel in (delta.q, delta.v, delta.z, delta.a):
    assert kernel.kernel[...].sharding.spec == spec(None, "fsdp", "tensor"), kernel.kernel[...].sharding
assert delta.taps_v[...].sharding.spec == spec(None, None, "tensor"), delta.taps_v[...].sharding
cache = model.lm.empty_cache(4, 8, mesh=place)
state = cache.segments[0].state
assert state.state.sharding.spec == spec(None, ("data", "fsdp"), "tensor", None, None), state.state.sharding
whole, divided = logits
assert np.linalg.norm(divided - whole) < 1e-4 * np.linalg.norm(whole), np.abs(divided - whole).max()
print("equal")
"""


@pytest.mark.slow
def test_recurrent_layers_lie_on_the_devices_of_a_mesh(tmp_path):
    """Heads of the states are divided, and answers stay the same."""
    assert run_on_eight(RECURRENT, tmp_path).strip() == "equal"


@pytest.mark.slow
def test_experts_lie_on_the_devices_of_a_mesh(tmp_path):
    """Each device holds and multiplies by its own alone, in both formulations, and answers stay the same."""
    assert run_on_eight(EXPERTS, tmp_path).strip() == "equal"


QUANTISED = """
import sys
import jax, jax.numpy as jnp, numpy as np
from pathlib import Path
from helpers import tiny_checkpoints as tiny
from jvidprune import parallel
from jvidprune.costs.memory import parameter_bytes
from jvidprune.models import load_model
from jvidprune.ops.branch import using
for family, kind in (("llava_onevision", "int8"), ("qwen3_vl_moe", "fp8")):
    folder = tiny.write(family, Path(sys.argv[1]) / family)
    found = []
    for place in (None, parallel.make_mesh(data=2, fsdp=2, tensor=2)):
        loaded = load_model(folder, dtype=jnp.float32, mesh=place, quantise=kind)
        model, text = loaded.model, loaded.config.text
        axes = (3,) if text.rope.sections else ()
        given = jnp.asarray(np.random.default_rng(4).normal(size=(2, 11, text.width)), jnp.float32)
        where = jnp.broadcast_to(jnp.arange(11), (*axes, 2, 11))
        forward = jax.jit(lambda model: model.lm.forward(given, where, jnp.ones((2, 11), bool)).logits)
        for branch in ("cpu", "tpu"):
            with parallel.on_mesh_of(model), using(branch), jax.default_matmul_precision("highest"):
                found.append(np.asarray(forward(model)))
        held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(model))
        assert held == parameter_bytes(loaded.config, jnp.float32, None if place is None else dict(place.shape))
    for logits in found[1:]:
        np.testing.assert_allclose(logits, found[0], atol=1e-4)
    matrix = (model.lm.layers.mlp.down if family == "qwen3_vl_moe" else model.lm.layers.mlp.down.kernel).get_value()
    if family == "qwen3_vl_moe":
        assert matrix.qvalue.sharding.spec == jax.sharding.PartitionSpec(None, "tensor", None, "fsdp")
        assert matrix.scale.sharding.spec == jax.sharding.PartitionSpec(None, "tensor", None, "fsdp")
    else:
        # A scale of a column that devices share is whole on each of them.
        assert matrix.qvalue.sharding.spec == jax.sharding.PartitionSpec(None, "tensor", "fsdp")
        assert matrix.scale.sharding.spec == jax.sharding.PartitionSpec(None, None, "fsdp")
print("equal")
"""


@pytest.mark.slow
def test_quantised_matrices_and_their_scales_lie_on_the_devices_of_a_mesh(tmp_path):
    assert run_on_eight(QUANTISED, tmp_path).strip() == "equal"
