"""Conventions: whose sampling, sizes, resizing, templates, positions and markers, and what folders say of pixels."""

import dataclasses
import json
import re
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import tiny_checkpoints as tiny
from helpers.places import GOLDEN, REPOSITORY

from jvidprune import JvidpruneError, reducers
from jvidprune.cli import main
from jvidprune.cli.paper import layout_of
from jvidprune.evals.identity import model_identity, run_hash
from jvidprune.integrations.lmms_args import ModelArgs
from jvidprune.llm.conventions import CONVENTIONS, settings_of
from jvidprune.llm.encoded import EncodedVideo
from jvidprune.llm.folder import family_settings
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.models import family as families
from jvidprune.models.checkpoint.processor import channels
from jvidprune.models.checkpoint.published import published
from jvidprune.models.positions import MROPE_RULES
from jvidprune.reducers.serialise import (
    FILE,
    FolderSettings,
    SavedPruning,
    load_declared,
    load_pruning,
    load_settings,
    save_pruning,
    with_reading,
)
from jvidprune.tokens import VideoTokens
from jvidprune.video.decode import Clip
from jvidprune.video.preprocess import normalise
from jvidprune.video.resize import resize_planes

HD = (720, 1280)


def sizes(family, convention, frames, size, given=None):
    """(grid frames, patch rows, patch columns) of a published model's video."""
    config = published({"qwen2_5_vl": "qwen2.5-vl-7b", "qwen3_vl": "qwen3-vl-8b"}[family])
    rows, columns = settings_of(family, convention).grid(config, frames, *size, given or {})
    return -(-frames // 2), 2 * rows, 2 * columns


@pytest.mark.parametrize(
    ("family", "convention", "frames", "size", "grid"),
    [
        # The README of Qwen3-VL: its processor does not resize again. 23,040 tokens.
        ("qwen3_vl", "released", 64, HD, (32, 40, 72)),
        ("qwen3_vl", "transformers", 64, HD, (32, 28, 52)),
        ("qwen3_vl", "lmms-eval", 64, HD, (32, 40, 72)),
        ("qwen3_vl", "released", 8, (1080, 1920), (4, 40, 72)),
        ("qwen3_vl", "transformers", 8, (1080, 1920), (4, 68, 120)),
        # 128 tokens a grid frame at least, of lmms-eval 196.
        ("qwen3_vl", "released", 8, (240, 320), (4, 20, 28)),
        ("qwen3_vl", "lmms-eval", 8, (240, 320), (4, 26, 34)),
        ("qwen2_5_vl", "released", 64, HD, (32, 40, 72)),
        ("qwen2_5_vl", "transformers", 64, HD, (32, 52, 92)),
        ("qwen2_5_vl", "lmms-eval", 64, HD, (32, 40, 72)),
        ("qwen2_5_vl", "released", 768, HD, (384, 24, 46)),
        ("qwen2_5_vl", "transformers", 768, HD, (384, 52, 92)),
        ("qwen2_5_vl", "released", 8, (240, 320), (4, 20, 28)),
        ("qwen2_5_vl", "transformers", 8, (240, 320), (4, 18, 22)),
        ("qwen2_5_vl", "lmms-eval", 8, (240, 320), (4, 28, 38)),
    ],
)
def test_grids_of_the_conventions(family, convention, frames, size, grid):
    assert sizes(family, convention, frames, size) == grid


@pytest.mark.parametrize(
    ("given", "levels"),
    [
        ({}, lambda x: (x / 255 - 0.5) / 0.25),
        ({"rescale_factor": 1 / 127.5}, lambda x: (x / 127.5 - 0.5) / 0.25),
        ({"do_rescale": False}, lambda x: (x - 0.5) / 0.25),
        ({"do_normalize": False}, lambda x: x / 255),
        ({"do_normalize": False, "do_rescale": False}, lambda x: x),
        ({"do_normalize": False, "rescale_factor": 0.5}, lambda x: x * 0.5),
        ({"do_rescale": None, "rescale_factor": None, "do_normalize": True}, lambda x: (x / 255 - 0.5) / 0.25),
    ],
)
def test_what_a_folder_says_of_levels_is_done(given, levels):
    frames = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 5), dtype=np.uint8)
    mean, std = channels(given | {"image_mean": [0.5] * 3, "image_std": [0.25] * 3})
    np.testing.assert_allclose(normalise(frames, mean, std), levels(frames.astype(np.float64)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"resample": 2}, "resample 2, but frames of this family are resized with 3 .bicubic. alone"),
        ({"resample": "lanczos"}, "resample .?lanczos"),
        ({"do_center_crop": True}, "do_center_crop true, which is not supported"),
        ({"do_resize": "no"}, "do_resize .?no.?; it must be true or false"),
        ({"do_rescale": 1}, "do_rescale 1; it must be true or false"),
        ({"do_normalize": []}, "do_normalize .*; it must be true or false"),
        ({"rescale_factor": 0}, "rescale_factor 0; it must be above 0"),
        ({"rescale_factor": "1/255"}, "rescale_factor .?1/255.?; it must be above 0"),
    ],
)
@pytest.mark.parametrize("family", families.names())
def test_steps_of_a_folders_processor_are_done_or_refused(family, given, says):
    settings = settings_of(family)
    sides = {"image_size": 32, "patch_size": 4, "merge": 2, "pair": 1 if family == "video_llama_3" else 2}
    model = SimpleNamespace(family=family, vision=SimpleNamespace(**sides))
    if family == "molmo2" and given == {"resample": 2}:
        settings.pixels(model, given)
        given, says = {"resample": 3}, "resample 3, but frames of this family are resized with 2 .bilinear. alone"
    with pytest.raises(JvidpruneError, match=f"folder's video processor has {says}"):
        settings.pixels(model, given)


def test_frames_that_may_not_be_resized_fit_or_are_refused():
    sides = {"image_size": 32, "patch_size": 4, "merge": 2, "pair": 2}
    frames = np.random.default_rng(0).integers(0, 256, (2, 32, 40, 3), dtype=np.uint8)
    squash = settings_of("llava_onevision").pixels(
        SimpleNamespace(vision=SimpleNamespace(**sides)), {"do_resize": False}
    )
    np.testing.assert_array_equal(squash(frames[:, :, :32]), normalise(frames[:, :, :32].transpose(0, 3, 1, 2)))
    with pytest.raises(JvidpruneError, match="do_resize false, but frames of 32 x 40 pixels are not the 32 x 32"):
        squash(frames)
    alone = settings_of("qwen2_5_vl", "transformers")
    model = SimpleNamespace(family="qwen2_5_vl", vision=SimpleNamespace(**sides))
    read = alone.pixels(model, {"do_resize": False, "image_mean": [0.5] * 3, "image_std": [0.5] * 3})
    assert read(frames).grid == (1, 8, 10)
    with pytest.raises(JvidpruneError, match="do_resize false, but the sides of frames of 32 x 39 pixels"):
        read(frames[:, :, :39])


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("family", families.names())
def test_every_family_has_a_way_in_every_convention_or_a_sentence(family, convention):
    missing = {
        ("llava_video", "transformers"): "no class for lmms-lab",
        ("molmo2", "lmms-eval"): "no model class for",
        ("video_llama_3", "lmms-eval"): "no model class for",
        ("internvl", "lmms-eval"): "no model class for",
        ("qwen3_5", "lmms-eval"): "no model class for",
    }
    if (family, convention) in missing:
        with pytest.raises(JvidpruneError, match=missing[family, convention]):
            settings_of(family, convention)
        return
    found = settings_of(family, convention)
    assert found.convention == convention
    if convention == "released":
        assert found == settings_of(family) == families.get(family).settings["released"]


def test_the_parts_of_the_conventions():
    """Sampling, template, positions and markers; sizes have a test of their own."""
    parts = {
        (family, convention): (found.rule, found.template, found.own_chat, found.mrope_rule, found.markers)
        for family, convention in [
            *(("qwen2_5_vl", name) for name in CONVENTIONS),
            *(("qwen3_vl", name) for name in CONVENTIONS),
            *(("llava_onevision", name) for name in CONVENTIONS),
            ("llava_video", "lmms-eval"),
        ]
        for found in [settings_of(family, convention)]
    }
    new, lmms = "transformers-5", "lmms-eval"
    assert parts == {
        ("qwen2_5_vl", "released"): ("qwen_utils", "qwen2_5_vl", False, "released", "blocks"),
        ("qwen2_5_vl", "transformers"): ("hf_qwen2", "qwen2_5_vl", True, new, "blocks"),
        ("qwen2_5_vl", "lmms-eval"): ("qwen_utils", "qwen2_5_vl", False, lmms, "blocks"),
        ("qwen3_vl", "released"): ("qwen_utils", "qwen3_vl", False, "released", "blocks"),
        ("qwen3_vl", "transformers"): ("hf_qwen3", "qwen3_vl", True, new, "around"),
        # With a system turn.
        ("qwen3_vl", "lmms-eval"): ("qwen_utils", "qwen2_5_vl", False, lmms, "blocks"),
        ("llava_onevision", "released"): ("uniform", "qwen_1_5", False, None, "blocks"),
        ("llava_onevision", "transformers"): ("hf_default", "llava_hf", True, None, "blocks"),
        ("llava_onevision", "lmms-eval"): ("uniform", "llava_hf", True, None, "blocks"),
        ("llava_video", "lmms-eval"): ("llava_video_upto", "qwen_1_5", False, None, "blocks"),
    }


@pytest.mark.parametrize("convention", ["released", "lmms-eval"])
def test_lmms_lab_checkpoints_are_resized_as_their_code_resizes(tmp_path, convention):
    """LLaVA-NeXT takes Pillow's filter, the processor of llava-hf folders torchvision's."""
    frames = np.random.default_rng(0).integers(0, 256, (1, 50, 70, 3), dtype=np.uint8)
    model = SimpleNamespace(vision=SimpleNamespace(image_size=32))
    read = {}
    for name, config in (("hf", {"model_type": "llava_onevision"}), ("lab", {"model_type": "llava_qwen"})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        for family in ("llava_onevision", "llava_video"):
            read[name, family] = family_settings(family, tmp_path / name, convention).pixels(model, {})
    filters = {key: one.keywords["filter"] for key, one in read.items()}
    assert filters.pop(("hf", "llava_onevision")) == "torchvision"
    assert set(filters.values()) == {"pillow"}
    first, second = read["hf", "llava_onevision"](frames), read["lab", "llava_onevision"](frames)
    np.testing.assert_allclose(first, second, atol=2.1 / 127.5)
    with pytest.raises(JvidpruneError, match="transformers has no class for lmms-lab checkpoints"):
        family_settings("llava_onevision", tmp_path / "lab", "transformers")


def test_unknown_names_are_refused_before_anything_is_read():
    for words in ({"convention": "hf"}, {"mrope_rule": "tf5"}):
        (name,) = words
        with pytest.raises(JvidpruneError, match=f"unknown .* '{words[name]}'; known: released"):
            VideoLLM.load("no/such/folder", **words)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {family: tiny.write(family, root / family) for family in ("llava_onevision", "qwen2_5_vl", "qwen3_vl")}


@pytest.fixture(scope="module")
def clip():
    """Seven frames of a file of 50 frames at 5 a second: 10/7 s from frame to frame."""
    indices = np.array([0, 8, 16, 24, 33, 41, 49])
    frames = np.random.default_rng(0).integers(0, 256, (7, 24, 40, 3), dtype=np.uint8)
    return Clip(frames, indices, indices / 5, 5.0, 50)


def positions_of(llm, clip):
    """(time ids of the grid frames from the first on, positions of the text behind, the first generated one's)."""
    one = llm.reduce(llm.encode(clip), reducer=reducers.get("none"), ratio=1.0)
    slots, _ = llm.lay_out([one], "What?", 2)
    behind = slots.positions[:, slots.visual[1] : slots.length]
    assert (behind == behind[0]).all()
    shown = slots.positions[0, slots.visual[0] : slots.visual[1]]
    return np.unique(shown - shown[0]).tolist(), (behind[0] - shown[0]).tolist(), slots.next_position - shown[0]


def test_mrope_rules_reach_the_prompt(folders, clip):
    """20/7 s a grid step, two ids a second: 5.7 ids a step as they are, 4 of whole seconds, 2 of lmms-eval."""
    found = {rule: VideoLLM.load(folders["qwen2_5_vl"], mrope_rule=rule) for rule in MROPE_RULES}
    side = max(found["released"].encode(clip).tokens.grid)
    assert side < 17
    expected = {"released": [0, 5, 11, 17], "transformers-4.57": [0, 4, 8, 12], "lmms-eval": [0, 2, 4, 6]}
    expected["transformers-5"] = expected["released"]
    for rule, llm in found.items():
        assert llm.settings.mrope_rule == rule
        times, behind, following = positions_of(llm, clip)
        assert times == expected[rule]
        start = side if rule == "transformers-5" else max(side, times[-1] + 1)
        assert behind == list(range(start, start + len(behind)))
        assert following == behind[-1] + 1


def test_conventions_reach_the_model(folders, clip):
    ids, grids = {}, {}
    for convention in CONVENTIONS:
        llm = VideoLLM.load(folders["qwen3_vl"], convention=convention)
        steps, rows, columns = llm.pixels(clip.frames).grid
        grids[convention] = (rows, columns)
        video = VideoTokens.create(np.zeros((steps, rows * columns // 4, 1)), grid=(rows // 2, columns // 2))
        one = llm.reduce(EncodedVideo(video, clip), reducer=reducers.get("none"), ratio=1.0)
        ids[convention] = [i for part in llm.prompts.ids([one], "What?") for i in part]
        assert (llm.settings.convention, llm.settings.rule) == (convention, settings_of("qwen3_vl", convention).rule)
    config, encode = llm.loaded.config, llm.tokenizer.encode
    # Without placeholders: four stamps, each with its pair of markers.
    pair = [config.vision_start, config.vision_end]
    shown = [i for stamp in ("0.8", "4.0", "7.4", "9.8") for i in [*encode(f"<{stamp} seconds>"), *pair]]
    turn, rest = encode("<|im_start|>user\n"), encode("What?<|im_end|>\n<|im_start|>assistant\n")
    assert ids["released"] == [*turn, *shown, *rest]
    assert ids["transformers"] == [*turn, pair[0], *shown, pair[1], *rest]
    system = encode("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n")
    assert ids["lmms-eval"] == [*system, *turn, *shown, *rest]
    # Blocks of 8 pixels: 128 of them at least, one for every 8 x 8, and at least 200,704 pixels.
    assert grids == {"released": (18, 30), "transformers": (6, 10), "lmms-eval": (88, 146)}


def test_a_named_part_goes_before_the_convention(folders):
    llm = VideoLLM.load(
        folders["qwen2_5_vl"], convention="transformers", template="qwen3_vl", mrope_rule="transformers-4.57"
    )
    assert (llm.settings.template, llm.settings.mrope_rule) == ("qwen3_vl", "transformers-4.57")
    assert llm.settings.rule == "hf_qwen2"
    with pytest.raises(JvidpruneError, match="M-RoPE rules are for the Qwen-VL families, leave transformers-5 out"):
        VideoLLM.load(folders["llava_onevision"], mrope_rule="transformers-5")


def test_a_folders_own_chat_template_is_transformers_and_not_the_authors(folders, tmp_path):
    folder = shutil.copytree(folders["llava_onevision"], tmp_path / "model")
    assert VideoLLM.load(folder, convention="transformers").settings.template == "llava_hf"
    (folder / "chat_template.jinja").write_text("{{ '<video>' }}[{{ messages[0]['content'][-1]['text'] }}]")
    assert VideoLLM.load(folder, convention="transformers").prompts.texts("Q?") == ["", "[Q?]"]
    assert VideoLLM.load(folder).settings.template == "qwen_1_5"


def test_runs_of_two_conventions_are_two_runs(folders):
    words = [{}, {"convention": "transformers"}, {"convention": "lmms-eval"}, {"mrope_rule": "transformers-4.57"}]
    found = [model_identity(VideoLLM.load(folders["qwen2_5_vl"], **some)) for some in words]
    assert len({run_hash(identity) for identity in found}) == 4
    settings = found[2]["around"]["settings"]
    assert (settings["convention"], settings["mrope_rule"]) == ("lmms-eval", "lmms-eval")


def test_a_saved_convention_is_that_of_the_folder(folders, tmp_path):
    folder = shutil.copytree(folders["qwen2_5_vl"], tmp_path / "model")
    saved = SavedPruning(reducers.get("random"), 0.5, "qwen2_5_vl", "transformers", "transformers-4.57")
    save_pruning(folder, saved)
    assert load_pruning(folder) == saved
    llm = VideoLLM.load(folder)
    assert (llm.settings.convention, llm.settings.mrope_rule) == ("transformers", "transformers-4.57")
    # Another convention of the caller's brings its own positions.
    llm = VideoLLM.load(folder, convention="lmms-eval")
    assert (llm.settings.convention, llm.settings.mrope_rule) == ("lmms-eval", "lmms-eval")
    assert "convention" not in SavedPruning(reducers.get("random"), 0.5).record()
    save_pruning(folder, dataclasses.replace(saved, convention="hf"))
    with pytest.raises(JvidpruneError, match="unknown convention 'hf'"):
        VideoLLM.load(folder)


def test_a_convention_that_a_model_was_trained_in_stays_beside_its_reducers(folders, tmp_path):
    folder = shutil.copytree(folders["qwen2_5_vl"], tmp_path / "model")
    declared = FolderSettings(None, None, "transformers", "transformers-4.57")
    (folder / FILE).write_text(declared.text())
    assert load_settings(folder) == load_declared(folder) == declared
    settings = VideoLLM.load(folder).settings
    assert (settings.convention, settings.mrope_rule) == ("transformers", "transformers-4.57")
    saved = SavedPruning(reducers.get("random"), 0.5, "qwen2_5_vl")
    save_pruning(folder, saved)
    reading = {"convention": "transformers", "mrope_rule": "transformers-4.57"}
    assert load_pruning(folder) == dataclasses.replace(saved, **reading)
    # A method that has a convention of its own brings its own rule of positions.
    (folder / FILE).write_text(declared.text())
    save_pruning(folder, dataclasses.replace(saved, convention="lmms-eval"))
    assert load_pruning(folder) == dataclasses.replace(saved, convention="lmms-eval")
    assert load_declared(folder) == FolderSettings()
    # Noting another one changes nothing else.
    (folder / FILE).write_text(with_reading(folder, "released"))
    assert load_pruning(folder) == dataclasses.replace(saved, convention="released")


def test_the_document_lists_what_the_code_does():
    """Token counts of docs/conventions.md, and the names of conventions and M-RoPE rules."""
    text = (REPOSITORY / "docs" / "conventions.md").read_text(encoding="utf8")
    rows = re.findall(r"^\| ([a-z0-9.-]+) \| (\d+) \| (\d+) × (\d+) \| (.*) \|$", text, re.MULTILINE)
    assert len({name for name, *_ in rows}) == len(families.names())
    ratios = []
    for name, frames, height, width, cells in rows:
        found = {}
        for convention, cell in zip(CONVENTIONS, cells.split(" | "), strict=True):
            config, size = published(name), (int(height), int(width))
            if cell == "–":
                with pytest.raises(JvidpruneError):
                    layout_of(config, int(frames), size, convention)
                continue
            found[convention] = layout_of(config, int(frames), size, convention).total
            assert cell == f"{found[convention]:,} ({found[convention] / int(frames):.1f})"
        ratios.append(max(found.values()) / min(found.values()))
    assert f"in this table is a factor of {max(ratios):.1f}." in text
    for name in (*CONVENTIONS, *MROPE_RULES):
        assert f"`{name}`" in text or f"**{name}**" in text


def test_verbs_choose_a_convention(folders, tmp_path, capsys):
    kept = {}
    for convention in CONVENTIONS:
        words = ("--model", "qwen3-vl-8b", "--frames", "64", "--size", "720x1280", "--ratios", "1", "--reducer", "none")
        run("plan", *words, "--convention", convention, "--json")
        kept[convention] = json.loads(capsys.readouterr().out)[0]["visual"]
    assert kept == {"released": 23040, "transformers": 11648, "lmms-eval": 23040}

    seen = {}
    for convention in CONVENTIONS:
        run("video", "--model", str(folders["qwen3_vl"]), "--frames", "5", "--convention", convention, "--json")
        seen[convention] = json.loads(capsys.readouterr().out)["sampled"]
        assert seen[convention]["convention"] == convention
    # The generated clip has frames of 288 x 384 pixels; tokens of this checkpoint are 8 x 8.
    assert [(one["rule"], len(one["numbers"]), one["grid"], one["tokens"]) for one in seen.values()] == [
        ("qwen_utils", 4, [2, 24, 32], 2 * 24 * 32),
        ("hf_qwen3", 5, [3, 36, 48], 3 * 36 * 48),
        ("qwen_utils", 4, [2, 49, 65], 2 * 49 * 65),
    ]

    target = tmp_path / "out"
    words = ("--reducer", "random", "--ratio", "0.5", "--convention", "transformers", "--mrope-rule", "released")
    run("export", str(folders["qwen2_5_vl"]), str(target), *words, "--quiet")
    saved = load_pruning(target)
    assert (saved.convention, saved.mrope_rule) == ("transformers", "released")
    capsys.readouterr()
    refused = {
        (
            "flops",
            "--model",
            "llava-video-7b",
            "--convention",
            "transformers",
        ): "no class for lmms-lab checkpoints",
        ("flops", "--model", "molmo2-8b", "--convention", "lmms-eval"): "lmms-eval has no model class for molmo2",
        ("ask", "--mrope-rule", "transformers-5"): "M-RoPE rules are for the Qwen-VL families",
        ("export", "any", "where", "--convention", "released"): "name it with --reducer",
    }
    for words, sentence in refused.items():
        with pytest.raises(SystemExit) as left:
            run(*words)
        assert left.value.code == 2
        assert sentence in capsys.readouterr().err


def run(*words):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["jvidprune", *words])
        main()


def test_model_arguments_of_lmms_eval_name_a_convention():
    args = ModelArgs.read({"convention": "lmms-eval", "mrope_rule": "'transformers-5'"})
    assert (args.convention, args.mrope_rule) == ("lmms-eval", "transformers-5")
    with pytest.raises(JvidpruneError, match="unknown convention 'vllm'; known: released, transformers, lmms-eval"):
        ModelArgs.read({"convention": "vllm"})
    with pytest.raises(JvidpruneError, match="unknown M-RoPE rule 'max'"):
        ModelArgs.read({"mrope_rule": "max"})


def test_released_recipes_equal_the_files_of_the_real_processors():
    """Made with torchvision 0.28, qwen-vl-utils 0.0.14 and transformers 5.24 as test_torch_reference.py has them.

    Resized bytes on noise and on flat shapes with hard edges, where many sums are exactly a half; grids and patches.
    """
    golden = np.load(GOLDEN / "qwen_utils" / "released.npz")
    cases = json.loads(str(golden["config"]))["cases"]
    for number, (*_, height, width, kind) in enumerate(cases):
        found = resize_planes(golden[f"in{number}"], (height, width), filter="torchvision_float")
        assert np.array_equal(found, golden[f"out{number}"]), (number, kind)
    frames = golden["frames"]
    for family, name in (("qwen2_5_vl", "qwen2.5-vl-7b"), ("qwen3_vl", "qwen3-vl-8b")):
        settings = settings_of(family)
        index = settings.wish(4).indices(len(frames), 10.0)
        found = settings.pixels(published(name), {})(frames[index])
        assert list(found.grid) == golden[f"{family}_grid"].tolist()
        np.testing.assert_allclose(found.values[:1], golden[f"{family}_first"], rtol=0, atol=2e-6)
        np.testing.assert_allclose(found.values[-1:], golden[f"{family}_last"], rtol=0, atol=2e-6)
        wide = found.values.astype(np.float64)
        np.testing.assert_allclose([wide.sum(), np.abs(wide).sum()], golden[f"{family}_sums"], atol=1e-7 * wide.size)
