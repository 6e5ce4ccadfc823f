"""The probe: masks from pixels, weights of rows, measures worked out by hand, read-outs in closed form, a small run."""

import csv
import json

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import reducer_checks as checks
from helpers.command import one_sentence

import jvidprune
from jvidprune import JvidpruneError, VideoLLM, reducers
from jvidprune.evals.probe import MEASURES
from jvidprune.evals.probe.measures import ProbedRows, kept_and_merged, measure, nearest, token_of
from jvidprune.evals.probe.oracle import Oracle, told
from jvidprune.evals.probe.readouts import Fitting, Moments, middles, shown_by
from jvidprune.evals.probe.run import before_the_model
from jvidprune.evals.probe.table import ALL_TOKENS, GUESS, summarised
from jvidprune.evals.ranks import spearman, spearman_interval
from jvidprune.procedural.benchmark import Procedural
from jvidprune.procedural.masks import Masks, masks
from jvidprune.procedural.paint import COVER, paint
from jvidprune.procedural.world import Thing
from jvidprune.reducers.composition import compositions
from jvidprune.synthetic import synthetic_tokens


def scene_of(category, number=0):
    """A clip made for a category, with the owner of every pixel."""
    scene, _ = Procedural("test", clips=number + 1, categories=(category,)).scene(number)
    return scene, paint(scene)[1]


@pytest.mark.parametrize("category", ["rare", "needle"])
def test_masks_are_counted_from_pixels(category):
    scene, owner = scene_of(category)
    found = masks(scene, owner, (6, 6), 8)
    assert all(thing.role != "clutter" for thing in found.things)
    for number, thing in enumerate(found.things):
        own = owner == scene.things.index(thing) + 1
        cover = own.reshape(8, 6, 14, 6, 14).mean(axis=(2, 4)).reshape(8, 36)
        np.testing.assert_allclose(found.cover[number], cover.reshape(-1), atol=1e-6)
        for step in range(8):
            expected = set(np.flatnonzero(cover[step] >= COVER))
            expected |= {int(cover[step].argmax())} if cover[step].any() else set()
            assert set(np.flatnonzero(found.shown[number].reshape(8, 36)[step])) == expected
    assert found.of("needle" if category == "needle" else "tiny").any()
    # What holds all of an object in one token is worth 1, a quarter of what is there for 8 frames 1 / 32.
    assert 0 < found.worth().max() <= 1
    assert (found.worth()[found.cover.sum(0) == 0] == 0).all()


def test_masks_stand_on_any_grid_and_on_pairs_of_frames():
    scene, owner = scene_of("attribute")
    found = masks(scene, owner, (5, 7), 4)
    assert found.cover.shape == (len(found.things), 4 * 35)
    pixels = np.bincount((np.arange(84) * 5 // 84), minlength=5)[:, None] * np.bincount(np.arange(84) * 7 // 84)[None]
    total = (found.cover.reshape(-1, 4, 5, 7) * pixels * 2).sum(axis=(1, 2, 3))
    numbers = [scene.things.index(thing) + 1 for thing in found.things]
    np.testing.assert_allclose(total, [(owner == number).sum() for number in numbers], rtol=1e-5)


WEIGHED = ["random", "pool_space", "tome", "fastvid", "flashvid", "ottvid", "aot", "stop(base=visionzip)", "scissor"]


@pytest.fixture(scope="module")
def video():
    return synthetic_tokens(2, frames=4, grid=(6, 6), dim=16, unpooled_grid=(12, 12))


@pytest.mark.parametrize("name", WEIGHED)
def test_rows_are_the_weighted_sums_that_they_are_said_to_be(name, video):
    reducer = reducers.from_text(name)
    needed = {one: video.evidence[one] for one in reducer.needs}
    ratios = [0.5, 0.2]
    found = compositions(reducer, video, ratios)
    swept = jvidprune.sweep(reducer, video, ratios)
    np.testing.assert_array_equal(found.reduced.index, swept.index)
    source = needed.get("features_unpooled", video.features) if name == "aot" else video.features
    assert found.grid == (video.unpooled_grid if name == "aot" else video.grid)
    made = np.asarray(found.weights) @ np.asarray(source, np.float64).reshape(-1, source.shape[-1])
    np.testing.assert_allclose(made, swept.tokens, atol=2e-4)
    assert (np.asarray(found.weights)[~np.asarray(found.reduced.valid)] == 0).all()


def test_what_is_no_weighted_sum_is_refused(video):
    class Squares(type(reducers.get("random"))):
        def apply(self, plan, video):
            reduced = super().apply(plan, video)
            return reduced._replace(tokens=reduced.tokens**2)

    with pytest.raises(JvidpruneError, match="no weighted sums of the video's"):
        compositions(Squares(), video, [0.5])
    checks.refused(lambda: compositions(reducers.get("random"), video, []), "at least one retention ratio")
    checks.refused(lambda: compositions(reducers.get("downscale"), video, [0.5]), "other frames")


THINGS = (
    Thing("red", "circle", "main", 0, 1, centre=np.array([[21.0, 21.0]])),
    Thing("blue", "square", "needle", 0, 1, centre=np.array([[63.0, 63.0]])),
)


def two_objects():
    """One frame of 2 x 2 tokens: red in the first, blue in the last, background between."""
    shown = np.array([[True, False, False, False], [False, False, False, True]])
    return Masks(THINGS, shown * np.float32(0.5), shown, np.array([0, -1, -1, 1]), (2, 2), 1)


def rows_of(weights, slot, tokens, features):
    weights = np.asarray(weights, np.float32)
    index = weights.argmax(1)
    off = nearest(jnp.asarray(features), jnp.asarray(tokens)[None], jnp.ones((1, len(tokens)), bool))[0]
    return ProbedRows(np.asarray(tokens, np.float32), index, np.asarray(slot), weights, np.asarray(off))


def test_measures_are_those_of_a_sum_done_by_hand():
    features = np.array([[4.0, 0], [0, 0], [0, 2], [0, 4]], np.float32)
    weights = [[1, 0, 0, 0], [0, 0, 0.5, 0.5]]
    rows = rows_of(weights, [0, -1, 1, 1], np.asarray(weights) @ features, features)
    found, place = two_objects(), np.arange(4)
    kept, merged = kept_and_merged(rows, place)
    assert (kept.tolist(), merged.tolist()) == ([True, False, False, False], [False, False, True, True])
    sums = measure(features, rows, found, found, place)
    assert sums["object_kept"] == (1, 2)
    assert sums["object_merged"] == (1, 2)
    assert sums["needle_kept"] == (0, 1)
    assert sums["needle_merged"] == (1, 1)
    assert "rare_kept" not in sums
    assert sums["found"] == (2, 2)
    assert sums["purity"] == sums["object_purity"] == (0.5, 1)
    # Rows (4, 0) and (0, 3): squared distances 0, 9, 1, 1; from the mean (1, 1.5) there are 11.25, 3.25, 1.25, 7.25.
    assert sums["reconstruction"] == pytest.approx((23 - 11, 23))
    assert sums["object_reconstruction"] == pytest.approx((18.5 - 1, 18.5))


def test_cells_before_pooling_lie_in_their_token():
    place = token_of((4, 4), (2, 2), 2)
    assert place[:16].reshape(4, 4).tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]
    assert (place[16:] == place[:16] + 4).all()
    assert token_of((2, 3), (2, 3), 1).tolist() == list(range(6))


def test_the_nearest_row_is_the_nearest():
    rng = np.random.default_rng(0)
    x, rows = rng.normal(5, 1, (30, 8)), rng.normal(5, 1, (2, 6, 8))
    valid = np.array([[True] * 6, [True, True, False, False, False, False]])
    found = nearest(jnp.asarray(x, jnp.float32), jnp.asarray(rows, jnp.float32), jnp.asarray(valid))
    for i in range(2):
        apart = np.square(x[:, None] - rows[i][valid[i]][None]).sum(-1).min(1)
        np.testing.assert_allclose(found[i], apart, rtol=1e-4)


def test_a_ridge_is_the_least_squares_of_rows_with_its_penalty():
    rng = np.random.default_rng(1)
    x, y = rng.normal(2, 1, (40, 5)), rng.normal(0, 1, (40, 2))
    moments = Moments(5, 2)
    moments.add(x[:15], y[:15])
    moments.add(x[15:], y[15:])
    found = moments.solve(0.1)
    extra = np.sqrt(0.1 * np.square(x).mean() * 40)
    longer = np.concatenate([np.c_[x, np.ones(40)], np.c_[extra * np.eye(5), np.zeros(5)]])
    expected = np.linalg.lstsq(longer, np.concatenate([y, np.zeros((5, 2))]), rcond=None)[0]
    np.testing.assert_allclose(np.vstack([found.slope, found.offset]), expected, atol=1e-8)


def test_read_outs_read_what_is_there_and_miss_what_is_gone():
    found = two_objects()
    features = np.concatenate([shown_by(found, 1), middles((2, 2), 1)], 1).astype(np.float32)
    fitting = Fitting(features.shape[1])
    for _ in range(3):
        fitting.add(features, found, 1)
    readouts = fitting.fit()
    whole = readouts.read(rows_of(np.eye(4), range(4), features, features), found, 84)
    assert whole == {"attribute": (4, 4), "position": (2, 2), "count": (1, 1)}
    assert readouts.guess(found, 84)["attribute"] == pytest.approx((2 / 5 + 2 / 8, 4))
    # Without the blue square's token its place is read from another and is wrong.
    less = rows_of(np.eye(4)[:3], [0, 1, 2, -1], features[:3], features)
    assert readouts.read(less, found, 84)["position"] == (1, 2)


def test_intervals_hold_their_value_and_resample_clips():
    rng = np.random.default_rng(2)
    sums = [{"object_kept": (float(rng.integers(0, 6)), 10.0)} for _ in range(40)]
    (one,) = summarised({("a", 0.1): sums}).values()
    value = sum(hits for hits, _ in (clip["object_kept"] for clip in sums)) / 400
    assert one["object_kept"].value == pytest.approx(value)
    assert one["object_kept"].low < value < one["object_kept"].high
    assert np.isnan(one["needle_kept"].value)


def test_the_oracle_keeps_what_holds_most_of_an_object():
    scene, owner = scene_of("needle")
    found = masks(scene, owner, (6, 6), 8)
    shown = told(jvidprune.VideoTokens.create(np.ones((8, 36, 4), np.float32)), found)
    index = checks.valid_rows(checks.reduce(Oracle(), shown, 0.1))[0]
    best = np.argsort(-found.worth(), kind="stable")[:29]
    assert set(index.tolist()) == set(best.tolist())
    assert found.of("needle")[index].sum() == found.of("needle").sum()


def test_rank_correlations_are_those_of_scipy():
    from scipy import stats

    rng = np.random.default_rng(3)
    x, y = rng.integers(0, 6, 20).astype(float), rng.integers(0, 6, 20).astype(float)
    assert spearman(x.tolist(), y.tolist()) == pytest.approx(stats.spearmanr(x, y).statistic)
    assert np.isnan(spearman([1.0, 1.0], [1.0, 2.0]))
    rho, low, high = spearman_interval([x.tolist(), x.tolist()], [x.tolist(), (-x).tolist()], draws=50)
    assert (rho, low, high) == pytest.approx((0, 0, 0))
    y[3] = np.nan
    rho, low, high = spearman_interval([x.tolist()], [y.tolist()], draws=200)
    assert rho == pytest.approx(stats.spearmanr(np.delete(x, 3), np.delete(y, 3)).statistic)
    assert low < rho < high


@pytest.fixture(scope="module")
def table():
    llm = VideoLLM.load()
    methods = ["random", "fastvid", "fastv", "dycoke", "cdpruner"]
    # The shortest clips there are, as long ones take three times as long here.
    settings = {"clips": 8, "fitted": 12, "frames": 8, "draws": 200}
    return jvidprune.probe(llm, methods, [0.3, 0.1], controls=["oracle"], **settings)


def test_all_tokens_lose_nothing_and_a_guess_knows_nothing(table):
    whole, guess = table.values[ALL_TOKENS, 1.0], table.values[GUESS, 0.0]
    for name in ("object_kept", "rare_kept", "needle_kept", "found", "reconstruction"):
        assert whole[name].value == pytest.approx(1)
    assert whole["object_merged"].value == 0
    assert whole["attribute"].value > guess["attribute"].value + 0.3
    assert np.isnan(guess["object_kept"].value)


def test_methods_stand_in_the_order_of_the_budget_and_below_the_oracle(table):
    for name in ("random", "oracle"):
        assert table.values[name, 0.1]["object_kept"].value < table.values[name, 0.3]["object_kept"].value
    for ratio in (0.3, 0.1):
        mine, best = table.values["random", ratio], table.values["oracle", ratio]
        assert best["needle_kept"].value == 1 > mine["needle_kept"].value
        assert best["found"].value > mine["found"].value
    assert table.values["fastvid", 0.1]["object_merged"].value > 0.3
    assert set(MEASURES) == set(table.values["fastvid", 0.1])
    assert table.tokens["random", 0.1] == round(0.1 * table.visual)


def test_what_cannot_be_probed_is_told(table):
    assert "works inside the language model" in table.refused["fastv"]
    assert table.refused["dycoke"].startswith("at 10 %: ")
    assert ("dycoke", 0.3) in table.runs
    assert ("dycoke", 0.1) not in table.runs
    assert ("cdpruner", 0.1) in table.runs
    known = before_the_model()
    assert {"flashvid", "dycoke", "aot", "norm_topk", "pool_time"} <= set(known)
    assert not {"none", "fastv", "swiftvlm", "mod", "dstp"} & set(known)
    with pytest.raises(JvidpruneError, match="FastV works inside the language model"):
        jvidprune.probe(VideoLLM.load(), ["fastv"], [0.5], clips=1, fitted=1)


@pytest.mark.slow
def test_the_verb_writes_a_table_and_a_page(run, tmp_path):
    words = ("--methods", "random", "--controls", "oracle", "--ratios", "0.3,0.1", "--clips", 4, "--fitted", 4)
    code, out, err = run("probe", *words, "--out", tmp_path / "found", "--json")
    assert (code, err) == (0, "")
    record = json.loads(out)
    with (tmp_path / "found" / "probe.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(record["rows"])
    assert {row["method"] for row in rows} == {"random", "oracle", ALL_TOKENS, GUESS}
    page = (tmp_path / "found" / "report.html").read_text()
    assert page.count("<table") == 2
    assert "What one method leaves of the tokens of the embedded model" in page
    assert "Object masks" in page
    code, out, _ = run("probe", *words, "--out", tmp_path / "found")
    assert code == 0
    assert "needle" in out
    for wrong, says in (
        (("--methods", ","), "at least one method"),
        (("--methods", "flashvit"), "Did you mean 'flashvid'"),
        (("--clips", 0), "clips must"),
        (("--fps", 2), "have a frame a second"),
    ):
        code, _, err = run("probe", *wrong, "--out", tmp_path / "not")
        assert code == 2
        assert one_sentence(err)
        assert says in err
    assert not (tmp_path / "not").exists()
