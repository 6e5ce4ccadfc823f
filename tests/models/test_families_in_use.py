"""Every family gives one answer by `ask`, through the adapter of lmms-eval and at the endpoint."""

import base64

import numpy as np
import openai
import pytest
from helpers import tiny_checkpoints
from helpers.lmms_requests import ask

from jvidprune.integrations.lmms_args import ModelArgs
from jvidprune.integrations.lmms_requests import Adapter
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.models import family as families
from jvidprune.serve.api import serving
from jvidprune.video.encode import write_mp4
from jvidprune.video.limits import Limits

TOKENS, FRAMES, RATIO = 4, 4, 0.5


@pytest.fixture(scope="module", params=families.names())
def folder(request, tmp_path_factory):
    """A tiny checkpoint in the layout of a download."""
    return tiny_checkpoints.write(request.param, tmp_path_factory.mktemp("m") / request.param)


@pytest.fixture(scope="module")
def moving(tmp_path_factory):
    """A clip of noise."""
    path = tmp_path_factory.mktemp("clip") / "noise.mp4"
    write_mp4(path, np.random.default_rng(0).integers(0, 255, (16, 32, 32, 3), np.uint8), fps=4)
    return path


@pytest.mark.slow
def test_the_endpoint_and_the_adapter_answer_as_ask_does(folder, moving):
    llm = VideoLLM.load(folder)
    sampled = llm.sample(moving, frames=FRAMES)
    expected = llm.ask(sampled, "What?", reducer="uniform", ratio=RATIO, max_new_tokens=TOKENS)
    assert 0 < expected.kept < expected.visual

    options = {
        "rows": 2,
        "context": 1024,
        "max_new_tokens": 8,
        "limits": Limits(pixels=1 << 16, frames=16, seconds=20.0),
    }
    with (
        serving(llm, name="tiny", port=0, reducer="uniform", ratio=RATIO, **options) as at,
        openai.OpenAI(base_url=at.url, api_key="none", max_retries=0, timeout=120) as client,
    ):
        url = f"data:video/mp4;base64,{base64.b64encode(moving.read_bytes()).decode()}"
        parts = [{"type": "video_url", "video_url": {"url": url}}, {"type": "text", "text": "What?"}]
        reply = client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": parts}],
            max_tokens=TOKENS,
            extra_body={"frames": FRAMES},
        )
    assert reply.choices[0].message.content == expected.text
    assert reply.usage.prompt_tokens == expected.prompt

    given = {"pretrained": str(folder), "reducer": "uniform", "ratio": RATIO, "max_frames_num": FRAMES}
    documents = {"task": {"test": [{"visual": [str(moving)]}]}}
    (answer,) = Adapter(ModelArgs.read(given)).generate([ask("What?", max_new_tokens=TOKENS)], documents)
    assert answer.text == expected.text
