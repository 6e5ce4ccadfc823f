"""STTS (arXiv 2603.18004): a vision tower that learns which windows of patches to keep, and prunes while it runs.

A scorer reads what block `prune_at` made of a window and of the same window one frame before; the worst `removed` share
of the windows of a whole video goes, the scores bias the keys of the next block, and all blocks behind it run on the
kept patches alone, packed into one sequence. What is removed never reaches the projector or the language model.

    from jvidprune.stts import STTSConfig, Scorer
    from jvidprune.stts import encode, encoder_of, one_video, windows_to_remove

    config = STTSConfig(prune_at=0, removed=0.5)            # block 0 is scored, block 1 biased, blocks 2.. are packed
    encoder = encoder_of(model, config.window)              # one token is made of 2x2 patches in LLaVA-Video
    windows = encoder.windows                               # windows.count a frame
    scorer = Scorer(encoder.tower.sizes, rngs=nnx.Rngs(0))
    remove = windows_to_remove(frames, windows.count, config.removed)    # a host integer
    kept = frames * windows.count - remove                               # static

    def loss(model, scorer, pixels, prompt):                # pixels (frames, 3, S, S), normalised
        encoder = encoder_of(model, config.window)
        video = encode(encoder, pixels, one_video(frames, remove), config, kept=kept, scorer=scorer)
        embeds = put_into(prompt, video.tokens)             # (kept * windows.tokens_each, D), video.index tells places
        return language_model_loss(model, embeds, prompt) + video.loss

`loss` is differentiable in model and scorer (`jax.value_and_grad(loss, argnums=(0, 1))`, or on `nnx.split` states).
The scorer learns from the language model through the bias alone, and from the auxiliary loss, which
`video.loss` already scales by `config.coefficient`. For a batch, pass all frames on one axis with
`packed_examples([[frames]] * B, [[remove]] * B, frames)` and `kept=B * kept`; `video.tokens.reshape(B, -1, D)` parts
the videos, and `loss` is the mean over all windows. `remove` may be traced: one program serves several shares with the
`kept` of the smallest.

This is the same for every family: windows are what becomes one token there, 2x2 merge blocks in the Qwen towers (which
need `encoder_of(model, window, grid)`), 3x3 patches in Molmo2. A tower of another kind needs the members of `Tower` and
`Encoder`.

`llm = attach(llm, config, scorer)` makes STTS one more method of a `VideoLLM`: `llm.reducer("stts")` works in `encode`,
`reduce`, `ask` and in sweeps, where the tower runs up to the scores once for all ratios. A released checkpoint that
holds a scorer has it attached when it is loaded.
"""

from jvidprune.stts.attach import ScoredModel, attach
from jvidprune.stts.budget import budgets, windows_kept, windows_to_remove
from jvidprune.stts.config import STTSConfig
from jvidprune.stts.encode import Encoder, PrunedTokens, encode, encoder_of, pooling_windows
from jvidprune.stts.grid_tower import GridTower
from jvidprune.stts.scorer import Scorer, ScorerSizes, scorer_from_tensors, scorer_tensors
from jvidprune.stts.select import Examples, keep_windows, one_video, packed_examples
from jvidprune.stts.sequence import Shortened, shorten
from jvidprune.stts.siglip import SiglipTower
from jvidprune.stts.tower import Scored, Tower, run_tower
from jvidprune.stts.windows import Windows, merged_windows, pooled_windows, raster_windows
