"""Positions of kept tokens: the same tokens under both rules on all families, and who decides which rule holds."""

import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny_checkpoints as tiny
from helpers.folders import export_checkpoint
from helpers.packaged import recipe

from jvidprune import JvidpruneError, cli, reducers
from jvidprune.cli.train import TrainChoice
from jvidprune.evals.identity import model_identity, plain, run_hash
from jvidprune.evals.plan import NoVideo
from jvidprune.integrations.lmms_args import ModelArgs
from jvidprune.llm import rows
from jvidprune.llm.encoded import EncodedVideo, ReducedVideo
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.models import family as families
from jvidprune.models.embedded import EMBEDDED
from jvidprune.models.generate import generate
from jvidprune.models.prefill import prefill
from jvidprune.ops.compact import selection_plan
from jvidprune.reducers import registry
from jvidprune.reducers.prompt_rules import PromptRules, position_rule
from jvidprune.reducers.protocol import prompt_rules
from jvidprune.reducers.serialise import (
    FILE,
    FolderSettings,
    SavedPruning,
    load_positions,
    load_pruning,
    load_settings,
    save_pruning,
)
from jvidprune.stts import STTSConfig
from jvidprune.tokens import Reduced, VideoTokens
from jvidprune.training.stts import stts_config
from jvidprune.video.decode import Clip

FRAMES, SIDE = 3, 4
N = SIDE * SIDE
ROOM = FRAMES * N
RULES = ("renumbered", "original")
KEPT = {
    "some": [1, 2, 8, 2 * N + 12, 2 * N + 15],
    "none": [],
    "all": list(range(ROOM)),
    "half": sorted(np.random.default_rng(3).choice(ROOM, ROOM // 2, replace=False).tolist()),
}


@dataclasses.dataclass(frozen=True)
class Mine:
    """A reducer of a user's own: four members and nothing else."""

    needs = frozenset()

    def budget(self, layout, ratio):
        return np.int32(max(1, round(layout.total * ratio)))

    def capacity(self, layout, ratio):
        return int(self.budget(layout, ratio))

    def plan(self, video, budget, *, capacity):
        order = jnp.arange(video.features.shape[0] * video.features.shape[1])
        return selection_plan(order % 3 == 0, capacity)


@pytest.fixture(scope="module")
def llms(tmp_path_factory):
    """A model of every family."""
    root = tmp_path_factory.mktemp("families")
    return {family: VideoLLM.load(tiny.write(family, root / family)) for family in families.names()}


@pytest.fixture
def llm(llms):
    return llms["llava_onevision"]


def reduced_video(reducer, kept, family="qwen2_5_vl", **options):
    """What a reducer would have made of three frames of 4 x 4 tokens, with padding behind."""
    index = np.full(ROOM, FRAMES * N, np.int32)
    index[: len(kept)] = kept
    valid = np.arange(ROOM) < len(kept)
    tokens = jax.random.normal(jax.random.key(0), (ROOM, tiny.WIDTH))
    reduced = Reduced(tokens, *map(jnp.asarray, (index, valid, valid, np.zeros(ROOM))), {})
    # A grid frame of Qwen-VL is made of two frames, a second from the next one.
    count = FRAMES * (2 if family.startswith("qwen") else 1)
    clip = Clip.from_frames(np.zeros((count, 1, 1, 3), np.uint8), fps=2.0)
    video = EncodedVideo(VideoTokens.create(np.zeros((FRAMES, N, tiny.WIDTH), np.float32)), clip)
    return ReducedVideo(video, reduced, reducer, 0.2, (), **options)


def whole_prompt(llm, one):
    """Every slot of the prompt without any reduction, as (positions on its axes, what it holds), from first principles.

    What it holds is the id of a visual token, "text" or "newline".
    """
    texts = [len(part) for part in llm.prompts.ids([one], "What?")]
    family, slots, at = llm.loaded.family, [], 0

    def write(count, what):
        nonlocal at
        for _ in range(count):
            slots.append(((at,) * (3 if family.startswith("qwen") else 1), what))
            at += 1

    def shown(frames, seconds):
        nonlocal at
        ids = [(t, row, column) for t in frames for row in range(SIDE) for column in range(SIDE)]
        places = [(at + (t - frames[0]) * seconds, at + row, at + column) for t, row, column in ids]
        slots.extend((where, t * N + row * SIDE + column) for where, (t, row, column) in zip(places, ids, strict=True))
        at = 1 + max(max(where) for where in places)

    write(texts[0], "text")
    if family == "qwen2_5_vl":
        # A second between grid frames, two ids of the time axis a second.
        shown(range(FRAMES), 2)
        write(texts[1], "text")
    elif family in ("qwen3_vl", "qwen3_vl_moe", "qwen3_5"):
        for t, text in enumerate(texts[1:]):
            shown([t], 0)
            write(text, "text")
    elif family in ("molmo2", "video_llama_3", "internvl"):
        for t, text in enumerate(texts[1:]):
            for token in range(N):
                write(1, t * N + token)
            write(text, "text")
    else:
        for token in range(ROOM):
            write(1, token)
            if family == "llava_video" and token % SIDE == SIDE - 1:
                write(1, "newline")
        write(int(family == "llava_onevision"), "newline")
        write(texts[1], "text")
    return slots


def expected(llm, one, kept, rule):
    """(axes, L) positions of the prompt and that of the first new token."""
    slots = whole_prompt(llm, one)
    stay = [where for where, what in slots if isinstance(what, str) or what in kept]
    if rule == "renumbered":
        return np.tile(np.arange(len(stay)), (len(stay[0]), 1)), len(stay)
    return np.array(stay).T, 1 + max(max(where) for where, _ in slots)


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("family", families.names())
def test_the_same_kept_tokens_under_both_rules(llms, family, kept):
    llm, kept = llms[family], KEPT[kept]
    found = {}
    for rule in RULES:
        one = reduced_video(reducers.get("random", family), kept, family, positions=rule)
        slots, _ = found[rule] = llm.lay_out([one], "What?", 4)
        positions, following = expected(llm, one, kept, rule)
        np.testing.assert_array_equal(slots.rotary[..., 0, : slots.length].reshape(positions.shape), positions)
        assert (slots.length if slots.next_position is None else slots.next_position) == following
    np.testing.assert_array_equal(found["original"][0].source, found["renumbered"][0].source)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("family", families.names())
@pytest.mark.slow
def test_the_model_reads_and_answers_at_these_positions(llms, family, rule, monkeypatch):
    """What reaches the prefill, and the third token of an answer, as one long prompt with explicit positions has it."""
    llm, calls = llms[family], []

    def spied(*given, **options):
        calls.append((given, options))
        return prefill(*given, **options)

    monkeypatch.setattr(rows, "prefill", spied)
    llm = dataclasses.replace(llm)
    object.__setattr__(llm, "eos_ids", ())
    one = reduced_video(Mine(), KEPT["half"], family)
    answer = llm.ask(one, "What?", positions=rule, max_new_tokens=3)
    assert answer.positions == answer.record()["positions"] == rule
    (model, embeds, where, _), options = calls[0]
    positions, following = expected(llm, one, KEPT["half"], rule)
    length = answer.prompt
    where = np.asarray(where)
    np.testing.assert_array_equal(where[..., 0, :length].reshape(positions.shape), positions)
    assert options["next_position"].tolist() == [following]

    said = np.array(answer.token_ids[:2], np.int32)
    embeds = jnp.concatenate([embeds[:1, :length], model.embed_text(said)[None]], axis=1)
    behind = np.broadcast_to(following + np.arange(2), (*where.shape[:-2], 1, 2))
    where = np.concatenate([where[..., :1, :length], behind], axis=-1)
    more = {"next_position": np.array([following + 2], np.int32)}
    if "bidirectional" in options:
        more["bidirectional"] = np.pad(options["bidirectional"][:1, :length], ((0, 0), (0, 2)))
    third = generate(model, embeds, where, np.ones((1, length + 2), bool), max_new_tokens=1, **more)
    assert int(third[0, 0]) == answer.token_ids[2]


@pytest.mark.parametrize("text", ["fastv:layer=1", "dycoke:decode_layer=1"])
@pytest.mark.slow
def test_stages_inside_the_model_and_decoding_policies_work_under_both_rules(llms, text):
    """Where nothing is left out before the model, both rules are one on a single axis; where it is, they differ."""
    llm, frames = llms["molmo2"], np.random.default_rng(0).integers(0, 256, (8, 48, 48, 3), np.uint8)
    reducer = llm.reducer(text)
    video = llm.encode(frames, reducer=reducer, fps=2.0)
    cuts = reducer.inner(0.6)
    assert cuts
    found = {}
    for rule in RULES:
        one = llm.reduce(video, reducer=reducer, ratio=0.6, positions=rule)
        answer = llm.ask(one, "What?", max_new_tokens=4)
        slots, _ = llm.lay_out([one], "What?", 4)
        found[rule] = answer.token_ids, slots.rotary[0, : slots.length].tolist()
        assert (answer.positions, len(one.inner)) == (rule, len(cuts))
    whole = llm.prompts.ids([one], "What?")
    length = sum(map(len, whole)) + video.tokens.layout().total
    if text.startswith("fastv"):
        assert found["original"] == found["renumbered"]
        assert found["original"][1] == list(range(length))
    else:
        assert found["renumbered"][1] == list(range(len(found["renumbered"][1])))
        assert found["original"][1][-1] == length - 1 > found["renumbered"][1][-1]


def test_rows_filed_under_other_places_keep_the_positions_of_their_own_tokens(llms):
    """VisionZip on LLaVA-Video: where a row is filed decides where it stands, not its position."""
    one = reduced_video(reducers.get("visionzip", "llava_video"), [3, 0, 9], positions="original")
    one.reduced.diagnostics["place"] = np.array([0, 6, 9] + [ROOM] * (ROOM - 3))
    slots, text = llms["llava_video"].lay_out([one], "What?", 4)
    row = slots.source[: slots.length] - len(text) - 1
    before = len(llms["llava_video"].prompts.ids([one], "What?")[0])
    where = {int(r): int(p) - before for r, p in zip(row, slots.positions[: slots.length], strict=True) if r >= 0}
    # Ids 3, 0 and 9; a newline behind every four tokens.
    assert where == {0: 3, 1: 0, 2: 9 + 2}


# --- who decides -----------------------------------------------------------------------------------------------------


def told(reducer, rule):
    return reducer if rule is None else dataclasses.replace(reducer, positions=rule)


@pytest.mark.parametrize("family", families.names())
def test_the_first_that_says_anything_decides(llms, family):
    """Question, video, model, method, folder, reference: every combination of them."""
    choices = (None, *RULES)
    reference = "original" if family.startswith("qwen") else "renumbered"
    for asked, loaded, own, folder in itertools.product(choices, repeat=4):
        settings = dataclasses.replace(llms[family].settings, positions=loaded, declared_positions=folder)
        llm = dataclasses.replace(llms[family], settings=settings)
        one = reduced_video(told(reducers.get("random", family), own), KEPT["some"], family, positions=asked)
        right = next(rule for rule in (asked, loaded, own, folder, reference) if rule)
        assert llm.position_rule([one]) == right, (asked, loaded, own, folder)
        counted = expected(llm, one, KEPT["some"], right)[1]
        slots, _ = llm.lay_out([one], "What?", 1)
        assert (slots.length if slots.next_position is None else slots.next_position) == counted


def test_arguments_of_reduce_ask_and_load(llm, tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    video, uniform = llm.encode(frames), reducers.get("uniform")
    one = llm.reduce(video, reducer=uniform, ratio=0.25, positions="original")
    assert llm.position_rule([one]) == "original"
    assert llm.ask(one, "?", max_new_tokens=1).positions == "original"
    assert llm.ask(one, "?", max_new_tokens=1, positions="renumbered").positions == "renumbered"
    assert llm.ask(video, "?", reducer=uniform, ratio=0.25, max_new_tokens=1).positions == "renumbered"
    loaded = VideoLLM.load(llm.loaded.folder, positions="original")
    assert loaded.ask(video, "?", reducer=Mine(), ratio=0.25, max_new_tokens=1).positions == "original"
    for call in (
        lambda: llm.ask(one, "?", positions="kept"),
        lambda: llm.reduce(video, reducer=uniform, ratio=0.25, positions="kept"),
        lambda: VideoLLM.load(llm.loaded.folder, positions="kept"),
        lambda: reducers.get("random", positions="kept"),
        lambda: registry.from_text("visionzip+flashvid:positions=kept"),
        lambda: ModelArgs.read({"positions": "kept"}),
    ):
        with pytest.raises(JvidpruneError, match=r"^(unknown )?positions.*'kept'.*renumbered|^positions.*renumbered"):
            call()


def test_videos_of_one_prompt_follow_one_rule(llm):
    plain_one, moved = (reduced_video(told(reducers.get("random"), rule), [3]) for rule in (None, "original"))
    assert llm.position_rule([plain_one, moved]) == "original"
    fastvid = reduced_video(reducers.get("fastvid", "llava_onevision"), [3])
    assert llm.position_rule([plain_one, fastvid]) == "original"
    other = reduced_video(reducers.get("random", positions="renumbered"), [3])
    assert llm.position_rule([fastvid, other]) == "renumbered"
    with pytest.raises(JvidpruneError, match="told original and renumbered"):
        llm.position_rule([moved, other])
    assert llm.ask([moved, other], "?", max_new_tokens=1, positions="original").positions == "original"


@pytest.mark.parametrize("family", families.names())
def test_the_defaults_are_those_of_the_references(family):
    """FastVID alone keeps positions on families that count them on one axis, and what it is a part of."""
    setting = families.get(family).settings["released"]
    for name in (*registry.names(), "stop:base=fastvid", "stop:base=flashvid", "visionzip+fastvid", "visionzip+random"):
        reducer = registry.from_text(name, family)
        assert prompt_rules(reducer).positions is None
        keeps = "fastvid" in name or family.startswith("qwen")
        rule = position_rule([prompt_rules(reducer)], reference=setting.reference_positions)
        assert rule == ("original" if keeps else "renumbered"), name
    assert position_rule([prompt_rules(NoVideo())], reference=setting.reference_positions) == (
        "original" if family.startswith("qwen") else "renumbered"
    )


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("flashvid:positions=original", "original"),
        ("fastvid:positions=renumbered", "renumbered"),
        ("stop:base=(flashvid:positions=original)", "original"),
        ("stop:base=(fastvid:positions=renumbered)", "renumbered"),
        ("stop:base=(flashvid:positions=original),positions=renumbered", "renumbered"),
        ("stop:base=flashvid,positions=original", "original"),
        ("visionzip+flashvid:positions=original", "original"),
        ("visionzip:positions=original+flashvid", "original"),
        ("visionzip:positions=original+flashvid:positions=renumbered", "renumbered"),
        ("sequential:first=visionzip,second=(flashvid:positions=original)", "original"),
        ("sequential:first=visionzip,second=flashvid,positions=original", "original"),
        ("sequential:first=(stop:base=(visionzip:positions=original)),second=random", "original"),
        ("stts:positions=original", "original"),
        *((f"{name}:positions=original", "original") for name in ("none", "random", "fastv", "evs", "aot")),
    ],
)
def test_every_method_takes_the_setting_and_what_wraps_others_inherits_it(text, rule):
    assert prompt_rules(registry.from_text(text)).positions == rule
    assert prompt_rules(registry.from_text(text, "llava_onevision", 8)).positions == rule


def test_no_method_lacks_it():
    for name in (*registry.names(), *registry.combinators(), *registry.learned()):
        assert prompt_rules(registry.get(name)).positions is None
        assert prompt_rules(registry.get(name, positions="renumbered")).positions == "renumbered"


def test_a_rule_that_is_none_is_refused_wherever_a_reducer_says_it():
    @dataclasses.dataclass(frozen=True)
    class Wrong(Mine):
        prompt = PromptRules(positions="family")

    with pytest.raises(JvidpruneError, match=r"positions of Wrong must be renumbered or original, got 'family'\."):
        prompt_rules(Wrong())

    class Right(Mine):
        prompt = PromptRules(positions="original")

    assert position_rule([prompt_rules(Right())]) == "original"
    assert position_rule([prompt_rules(Mine())]) == "renumbered"


def test_scorers_keep_the_rule_they_were_trained_under():
    method = registry.get("stts")
    for keep, rule in ((None, None), (True, "original"), (False, "renumbered")):
        model = type("Model", (), {"stts": STTSConfig(keep_positions=keep), "layers": 27})()
        bound = method.bind(model)
        assert prompt_rules(bound).positions == rule
        assert prompt_rules(dataclasses.replace(bound, positions="original")).positions == "original"


# --- folders ---------------------------------------------------------------------------------------------------------


def test_a_folder_declares_the_positions_its_model_was_made_for(tmp_path, llm):
    folder = tiny.write("llava_onevision", tmp_path / "model")
    (folder / FILE).write_text(FolderSettings(positions="original").text())
    assert load_settings(folder) == FolderSettings(None, "original")
    declared = VideoLLM.load(folder)
    assert declared.pruning is None
    assert declared.position_rule([reduced_video(reducers.get("random"), [3])]) == "original"
    assert declared.position_rule([reduced_video(Mine(), [3])]) == "original"
    assert declared.position_rule([reduced_video(NoVideo(), [])]) == "original"
    renumbered = reducers.get("fastvid", positions="renumbered")
    assert declared.position_rule([reduced_video(renumbered, [3])]) == "renumbered"
    assert stts_config(declared, TrainChoice()).keep_positions is True
    assert stts_config(llm, TrainChoice()).keep_positions is False
    # Pruning settings join the declaration, and an export takes both over.
    save_pruning(folder, SavedPruning(reducers.get("random", "llava_onevision", seed=3), 0.25, "llava_onevision"))
    export_checkpoint(folder, tmp_path / "copy")
    for place in (folder, tmp_path / "copy"):
        assert load_positions(place) == "original"
        assert load_pruning(place) == SavedPruning(
            reducers.get("random", "llava_onevision", seed=3), 0.25, "llava_onevision"
        )


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"format": 1, "positions": "kept"}, "positions must be renumbered or original, got 'kept'"),
        ({"format": 1, "positions": None}, "positions must be renumbered or original, got null"),
        ({"format": 1, "positions": ["original"]}, "positions must be renumbered or original"),
        ({"format": 2, "positions": "original"}, "format 2"),
        ({"positions": "original"}, "no format"),
        ({"format": 1, "positions": "original", "position": 1}, "unknown key in the file 'position'"),
        ({"format": 1, "positions": "original", "ratio": 0.1}, "no reducer"),
        ({"format": 1, "convention": "released", "ratio": 0.1}, "no reducer"),
        ({"format": 1, "convention": 1}, "convention must be a name or null, got 1"),
        ({"format": 1, "convention": "released", "conventions": 1}, "unknown key in the file 'conventions'"),
        ({"format": 1}, "no ratio"),
        ([1], "JSON object"),
    ],
)
def test_a_declaration_is_read_strictly(tmp_path, content, says):
    (tmp_path / FILE).write_text(json.dumps(content))
    with pytest.raises(JvidpruneError, match=says) as error:
        load_settings(tmp_path)
    assert str(tmp_path / FILE) in str(error.value)


def test_the_embedded_model_declares_the_positions_of_its_training():
    """Original ones where tokens were always left out at their own, and no rule where both ways were trained."""
    declared = load_settings(EMBEDDED)
    assert (declared.pruning, declared.convention, declared.mrope_rule) == (None, None, None)
    assert (EMBEDDED / FILE).read_text() == declared.text()
    plans = [stage["plan"] for stage in recipe()["stages"] if stage.get("plan")]
    # Stages of the second recipe have no plan: they draw for every clip whether its gaps are closed.
    closed = {plan["close_gaps"] for plan in plans} or {True, False}
    assert declared.positions == {(False,): "original", (True,): "renumbered"}.get(tuple(closed))


@pytest.mark.slow
def test_the_command_line(llms, tmp_path, monkeypatch, capsys):
    source = llms["llava_onevision"].loaded.folder

    def run(*words):
        monkeypatch.setattr("sys.argv", ["jvidprune", *map(str, words)])
        cli.main()
        return json.loads(capsys.readouterr().out)

    record = run("export", source, tmp_path / "declared", "--positions", "original", "--json")
    assert (record["pruned"], record["positions"]) == (False, "original")
    words = ("--reducer", "flashvid:positions=original", "--ratio", 0.5, "--positions", "renumbered", "--json")
    record = run("export", tmp_path / "declared", tmp_path / "pruned", *words)
    assert (record["pruned"], record["positions"]) == (True, "original")
    saved = load_pruning(tmp_path / "pruned")
    assert saved is not None
    assert saved.reducer == reducers.get("flashvid", "llava_onevision", layers=2, positions="renumbered")
    VideoLLM.load(tmp_path / "pruned")

    words = ("--model", tmp_path / "declared", "--frames", 2, "--max-new-tokens", 1, "--ratio", 0.5, "--json")
    found = {}
    for extra in ((), ("--positions", "renumbered")):
        for reducer in ("random", "random:positions=renumbered", "random:positions=original"):
            record = run("ask", *words, "--reducer", reducer, *extra)
            found[extra[1:], reducer.partition("=")[2]] = record["positions"]
    assert found == {
        ((), ""): "original",
        ((), "renumbered"): "renumbered",
        ((), "original"): "original",
        (("renumbered",), ""): "renumbered",
        (("renumbered",), "renumbered"): "renumbered",
        (("renumbered",), "original"): "renumbered",
    }


def test_a_run_is_known_by_its_positions(llm):
    """A method's own setting, and the rule that was asked for when the model was loaded."""
    names = set()
    for loaded, own in itertools.product((None, *RULES), repeat=2):
        told_llm = dataclasses.replace(llm, settings=dataclasses.replace(llm.settings, positions=loaded))
        method = told(reducers.get("random"), own)
        names.add(run_hash(model_identity(told_llm) | {"method": plain(method)}))
    assert len(names) == 9
