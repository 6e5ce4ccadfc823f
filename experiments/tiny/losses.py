"""Losses: what single frames show (tower, projector, pooling head), and questions about clips (language model)."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from experiments.tiny.batches import CATEGORY_NAMES, ClipBatch, FrameBatch, QuestionRows
from experiments.tiny.named import SPOTS, WAYS
from experiments.tiny.network import MIDDLE, Heads, Network
from experiments.tiny.targets import IGNORE, SEEN, STORY
from jvidprune.cuts.cache import CacheSegment
from jvidprune.models.llava_onevision import LlavaOnevision

OBJECT_WEIGHT = 4.0
"""Weight of a cell with an object against one of background."""


def pixels(frames: Array) -> Float[Array, "F 3 S S"]:
    """uint8 frames as the tower reads them: (x - 127.5) / 127.5, channels first."""
    return jnp.moveaxis((frames.astype(jnp.float32) - 127.5) / 127.5, -1, 1)


def _classes(logits: Array, target: Array, name: str, metrics: dict[str, Array], *, background: bool) -> Array:
    """Mean cross entropy where a target is given; background (class 0) weighs less than objects if it is a class."""
    known = target != IGNORE
    weight = known * (jnp.where(target > 0, OBJECT_WEIGHT, 1.0) if background else 1.0)
    picked = known & (target > 0) if background else known
    right = (logits.argmax(-1) == target) & picked
    metrics[f"dense/{name}"] = right.sum() / jnp.maximum(picked.sum(), 1)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(target, 0))
    return (loss * weight).sum() / jnp.maximum(weight.sum(), 1)


def _miss(found: Array, wanted: Array, name: str, metrics: dict[str, Array]) -> Array:
    """Mean square of the miss where there is an object (no NaN)."""
    known = ~jnp.isnan(wanted)
    miss = jnp.where(known, found - jnp.where(known, wanted, 0), 0)
    metrics[f"dense/{name}"] = jnp.abs(miss).sum() / jnp.maximum(known.sum(), 1)
    return (miss**2).sum() / jnp.maximum(known.sum(), 1)


def word_rows(table: Array, pairs: Array) -> Float[Array, "C D"]:
    """Mean of the two rows of each word, without and with a space before it."""
    return table[pairs].mean(axis=1)


def frame_loss(
    network: Network, params: Any, batch: FrameBatch, words: dict[str, Array], *, head: bool = True
) -> tuple[Array, dict[str, Array]]:
    """Loss of single frames.

    Patches tell through linear heads: half way up the tower which of their pixels show an object and how far off its
    middle is, at its end colour and shape. Pooled cells tell colour and shape through the word embeddings, so that a
    visual token is written in the language model's own words, and also their place and how far off their object's
    middle is. The pooling head tells which colours and shapes a frame shows, so that its attention learns to look for
    objects.

    Args:
      network: structure.
      params: parameters.
      batch: frames and targets.
      words: "colour" and "shape", each (classes, 2) ids of the words without and with a space before them.
      head: whether the pooling head learns, too.
    """
    model, heads = network.merge(params)
    early, hidden = tower_states(model, batch.frames)
    return shown_loss(network, model, heads, early, hidden, batch, words, head)


def tower_states(
    model: LlavaOnevision, frames: Array, dtype: Any = jnp.float32
) -> tuple[Float[Array, "F M D"], Float[Array, "F M D"]]:
    """Patches of uint8 frames half way up the tower and at its end."""
    half, blocks = model.config.vision.layers // 2, model.config.vision.layers
    early, _ = model.vision.run(model.vision.embed(pixels(frames).astype(dtype)), 0, half)
    return early, model.vision.run(early, half, blocks)[0]


def shown_loss(
    network: Network,
    model: LlavaOnevision,
    heads: Heads,
    early: Array,
    hidden: Array,
    batch: FrameBatch,
    words: dict[str, Array],
    head: bool = True,
) -> tuple[Array, dict[str, Array]]:
    """The loss of `frame_loss` from what the tower gave, see `tower_states`."""
    features = model.pool(model.projector(hidden))
    metrics: dict[str, Array] = {}
    colours = SEEN["colour"]
    patch = heads.patch(hidden)
    loss = _classes(patch[..., :colours], batch.patches[..., 0], "patch_colour", metrics, background=True)
    loss += 2 * _classes(patch[..., colours:], batch.patches[..., 1], "patch_shape", metrics, background=True)
    mask = heads.mask(early)
    mask, near = mask[..., :-2], mask[..., -2:]
    loss += 0.3 * _miss(near, batch.near, "near", metrics)
    loss += 4 * optax.sigmoid_binary_cross_entropy(mask, batch.mask).mean()
    both = ((mask > 0) & batch.mask).sum()
    metrics["dense/overlap"] = both / jnp.maximum(((mask > 0) | batch.mask).sum(), 1)
    for number, name in enumerate(("colour", "shape")):
        rows = word_rows(model.lm.embed.embedding[...], words[name])
        logits = heads.sharpness[...][number] * features @ rows.T
        none = jnp.broadcast_to(heads.nothing[...][number], (*logits.shape[:-1], 1))
        logits = jnp.concatenate([none, logits], -1)
        loss += (2 + number) * _classes(logits, batch.cells[..., number], name, metrics, background=True)
    cell, (rows, columns) = heads.cell(features), network.config.grid
    loss += _classes(cell[..., :3], batch.cells[..., 2], "role", metrics, background=True)
    place = jnp.arange(rows * columns)
    for at, size, target in ((5, rows, place // columns), (5 + rows, columns, place % columns)):
        wanted = jnp.broadcast_to(target, cell.shape[:2])
        loss += 0.3 * _classes(cell[..., at : at + size], wanted, "place", metrics, background=False)
    loss += _miss(cell[..., 3:5], batch.offset, "offset", metrics)
    if not head:
        return loss, {"loss": loss, **metrics}
    assert model.vision.head is not None
    pooled, attention = model.vision.head(hidden)
    shown = [(batch.patches[..., i, None] == jnp.arange(1, n)).any(1) for i, n in enumerate(list(SEEN.values())[:2])]
    wanted = jnp.concatenate(shown, -1)
    logits = heads.frame(pooled)
    loss += optax.sigmoid_binary_cross_entropy(logits, wanted).mean() * 2
    metrics["dense/frame"] = ((logits > 0) == wanted).mean()
    metrics["dense/attention"] = (attention * (batch.patches[..., 0] > 0)).sum(-1).mean()
    return loss, {"loss": loss, **metrics}


def _read_prefix(model: LlavaOnevision, batch: ClipBatch, before: Array, features: Array) -> tuple[Array, CacheSegment]:
    """Middle hidden states of the kept visual tokens, and keys and values of text before, tokens and newline."""
    clips, width = features.shape[0], features.shape[-1]
    tokens = jnp.take_along_axis(features.reshape(clips, -1, width), batch.kept[..., None], axis=1)
    text = jnp.broadcast_to(model.embed_text(before), (clips, len(before), width))
    newline = jnp.broadcast_to(model.newline, (clips, 1, width))
    embeds = jnp.concatenate([text, tokens, newline], axis=1)
    start = jnp.broadcast_to(jnp.arange(len(before)), text.shape[:2])
    positions = jnp.concatenate([start, len(before) + batch.positions], axis=1)
    valid = jnp.ones(positions.shape, bool)
    layers = model.config.text.layers
    _, out = model.lm.run(embeds, model.lm.step(positions, valid), 0, layers, hidden=True)
    past = CacheSegment(out.k, out.v, valid, jnp.int32(positions.shape[1]), 0, layers)
    return out.hidden[min(MIDDLE, layers) - 1][:, len(before) : -1], past


def clip_loss(
    network: Network, params: Any, batch: ClipBatch, before: Array, *, dense: float, tower: bool
) -> tuple[Array, dict[str, Array]]:
    """Loss of questions about clips, on answers alone, and of dense targets on the visual tokens.

    The video is read once; its questions attend to its keys and values side by side.

    Args:
      network: structure.
      params: parameters.
      batch: clips, kept tokens, questions.
      before: (P,) ids of the prompt in front of the video.
      dense: weight of the dense targets.
      tower: whether gradients reach the tower.
    """
    model, heads = network.merge(params)
    frames = batch.frames.reshape(-1, *batch.frames.shape[2:])
    hidden, _ = model.vision(pixels(frames))
    hidden = hidden if tower else jax.lax.stop_gradient(hidden)
    features = model.pool(model.projector(hidden)).reshape(batch.frames.shape[0], -1, network.config.text.width)
    middle, past = _read_prefix(model, batch, before, features)
    metrics: dict[str, Array] = {}
    story = _story_loss(heads.story(middle), batch.story, metrics)

    offset = len(before) + batch.positions[:, -1] + 1
    asked, told = question_loss(network, model, heads, batch, past, offset)
    loss = asked + dense * story
    return loss, {"loss": loss, "story": story, **metrics, **told}


def question_loss(
    network: Network,
    model: LlavaOnevision,
    heads: Heads,
    batch: ClipBatch | QuestionRows,
    past: CacheSegment,
    offset: Array,
    named: float = 0.0,
) -> tuple[Array, dict[str, Array]]:
    """Loss of the questions of clips that were read, on answers alone, side by side.

    Args:
      network: structure.
      model, heads: merged.
      batch: questions.
      past: keys and values of the text before, the visual tokens and the newline.
      offset: (B,) rotary position of the first token of a question.
      named: weight of what becomes of the objects that questions name, told behind two thirds of the layers.
    """
    metrics: dict[str, Array] = {}
    slots = jnp.arange(batch.ids.shape[-1])
    layers = network.config.text.layers

    def read(ids: Array, length: Array) -> tuple[Array, Array, Array]:
        step = model.lm.step(offset[:, None] + slots, slots < length[:, None])
        x, out = model.lm.run(model.embed_text(ids), step, 0, layers, past=past, hidden=True)
        return x, out.hidden[layers * 3 // 4 - 1], out.hidden[layers * 2 // 3 - 1]

    states, late, inner = jax.vmap(read, in_axes=1, out_axes=1)(batch.ids, batch.length)
    truth = _truth_loss(heads.truth(late)[..., 0], batch.truth, metrics)
    marked = jnp.take_along_axis(states, batch.mark[..., None, None], axis=2)[:, :, 0]
    at = batch.ask[..., None] + jnp.arange(2)
    states = jnp.take_along_axis(states, at[..., None], axis=2)
    logits = model.lm.logits(states)
    wanted = jnp.take_along_axis(batch.ids, at + 1, axis=2)
    asked = batch.category >= 0
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, wanted)
    answer = jnp.where(asked, losses[..., 0], 0).sum() / asked.sum()
    end = jnp.where(asked, losses[..., 1], 0).sum() / asked.sum()
    content = _content_loss(model, heads, marked, batch.content)
    content += _content_loss(model, heads, states[:, :, 0], batch.content)
    loss = answer + 0.2 * end + 0.5 * content + 0.5 * truth
    if named:
        assert isinstance(batch, QuestionRows)
        loss += named * _named_loss(heads, inner, batch, metrics)
    right = asked & (logits[..., 0, :].argmax(-1) == wanted[..., 0])
    for number, name in enumerate(CATEGORY_NAMES):
        here = batch.category == number
        metrics[f"hits/{name}"], metrics[f"asked/{name}"] = (right & here).sum(), here.sum()
    metrics["hits/all"], metrics["asked/all"] = right.sum(), asked.sum()
    return loss, {"answer": answer, "content": content, "truth": truth, **metrics}


def _content_loss(model: LlavaOnevision, heads: Heads, state: Array, content: Array) -> Array:
    """Question mark and end of the prompt tell what the right answer says, through a head and the word embeddings."""
    told = heads.content(model.lm.norm(state)).reshape(*state.shape[:-1], 2, -1)
    logits = told @ model.lm.embed.embedding[...].T
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(content, 0))
    known = content >= 0
    return jnp.where(known, losses, 0).sum() / jnp.maximum(known.sum(), 1)


def _truth_loss(logits: Array, truth: Array, metrics: dict[str, Array]) -> Array:
    """The last token of an option tells whether the option is right."""
    weight = jnp.where(truth == 1, 3.0, 1.0) * (truth >= 0)
    losses = optax.sigmoid_binary_cross_entropy(logits, truth == 1)
    metrics["dense/truth"] = ((logits > 0) & (truth == 1)).sum() / jnp.maximum((truth == 1).sum(), 1)
    return (losses * weight).sum() / jnp.maximum(weight.sum(), 1)


def _named_loss(heads: Heads, inner: Array, batch: QuestionRows, metrics: dict[str, Array]) -> Array:
    """The words that name an object tell where it is at both ends, when these are, and where it moves."""
    known = batch.named >= 0
    words = jnp.take_along_axis(inner, jnp.maximum(batch.named, 0)[..., None], axis=2)
    told = heads.story(words)
    spots, ways = told[..., :SPOTS], told[..., SPOTS : SPOTS + len(WAYS)]
    many = jnp.maximum(known.sum(), 1)
    miss = jnp.where(known, jnp.square(spots - batch.spots).mean(-1), 0).sum() / many
    losses = optax.softmax_cross_entropy_with_integer_labels(ways, batch.ways)
    metrics["named/miss"] = miss
    metrics["named/way"] = (known & (ways.argmax(-1) == batch.ways)).sum() / many
    return 3 * miss + jnp.where(known, losses, 0).sum() / many


def _story_loss(logits: Array, story: Array, metrics: dict[str, Array]) -> Array:
    loss, at = jnp.zeros(()), 0
    for number, (name, classes) in enumerate(STORY.items()):
        background = name in ("direction", "colour_before", "shape_before")
        part = logits[..., at : at + classes]
        loss += _classes(part, story[..., number], name, metrics, background=background)
        at += classes
    return loss
