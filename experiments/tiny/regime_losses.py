"""Losses of the second recipe: captions (sigmoid contrastive and written), and answers from what is read of a clip."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float

from experiments.tiny.batches import QuestionRows
from experiments.tiny.captions import CaptionBatch
from experiments.tiny.losses import pixels, question_loss, shown_loss, tower_states
from experiments.tiny.network import Heads, Network
from experiments.tiny.variety import Shown
from jvidprune.cuts.cache import CacheSegment
from jvidprune.models.llava_onevision import LlavaOnevision, LlavaOnevisionConfig


class AnswerBatch(NamedTuple):
    """Clips with questions, and what is read of each; nothing says what a token shows.

    Attributes:
      seen: (B, T, side, side, 3) uint8 frames, or (B, T, N, D) float16 visual tokens, if tower and projector stay.
      questions: of the clips.
      shown: rows (B, T * N) and positions (B, K + 1).
    """

    seen: Any
    questions: QuestionRows
    shown: Shown


class RegimeHeads(Heads):
    """The linear heads, and those of the contrastive loss, which is thrown away with them."""

    def __init__(self, config: LlavaOnevisionConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        tower = config.vision.width
        self.caption = nnx.Linear(config.text.width, 2 * tower, rngs=rngs)
        # Scale and bias of SigLIP (arXiv 2303.15343): log 10 and -10, for pooling head and mean.
        self.scale = nnx.Param(jnp.full(2, jnp.log(10.0)))
        self.bias = nnx.Param(jnp.full(2, -10.0))


def _merged(network: Network, params: Any, precision: Any) -> tuple[LlavaOnevision, RegimeHeads]:
    """Model and heads in a precision; gradients reach the parameters in theirs."""
    model, heads = network.merge(jax.tree.map(lambda x: x.astype(precision), params))
    assert isinstance(heads, RegimeHeads)
    return model, heads


def contrastive(
    seen: Float[Array, "F D"], told: Float[Array, "F D"], same: Array, scale: Array, bias: Array
) -> tuple[Array, Array]:
    """SigLIP's loss of F pairs, and how often a frame's own caption (or an equal one) is the likeliest.

    Args:
      seen, told: frames and captions.
      same: (F, F) bool, which captions belong to a frame.
      scale: log of the factor of cosines.
      bias: added to them.
    """
    seen, told = (x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-6) for x in (seen, told))
    cosines = seen.astype(jnp.float32) @ told.astype(jnp.float32).T
    logits = jnp.exp(scale) * cosines + bias
    loss = optax.sigmoid_binary_cross_entropy(logits, same).sum(-1).mean()
    best = jnp.take_along_axis(same, cosines.argmax(-1)[:, None], -1)
    return loss, best.mean()


def look_loss(
    network: Network,
    params: Any,
    batch: CaptionBatch,
    words: dict[str, Array],
    before: Array,
    *,
    dense: bool = False,
    precision: Any = jnp.float32,
) -> tuple[Array, dict[str, Array]]:
    """Frames and their captions: contrastive through the pooling head and through the mean of the patches, and written.

    What a caption says in the contrastive loss is what the language model's last token says behind it; the language
    model also writes the caption behind the frame's tokens, as SigLIP 2's decoder does (arXiv 2502.14786). In a warm-up
    the dense losses of single frames are added with the weight of the batch, which is annealed away.

    Args:
      network: structure.
      params: parameters.
      batch: frames and captions.
      words: as for `losses.frame_loss`.
      before: (P,) ids of the prompt in front of the frame.
      dense: whether this is the warm-up.
      precision: of the forward pass; parameters stay what they are.
    """
    model, heads = _merged(network, params, precision)
    early, hidden = tower_states(model, batch.frames.frames, precision)
    assert model.vision.head is not None
    pooled, attention = model.vision.head(hidden)
    told = jnp.split(heads.caption(_said(model, batch)), 2, axis=-1)
    loss, metrics = jnp.zeros(()), {}
    for number, (name, seen) in enumerate((("head", pooled), ("mean", hidden.mean(1)))):
        scale, bias = heads.scale[...][number], heads.bias[...][number]
        one, right = contrastive(seen, told[number], batch.same, scale, bias)
        loss, metrics[f"caption/{name}"] = loss + one, right
    written, metrics["caption/words"] = _written(model, batch, hidden, before)
    total = loss + written
    if dense:
        shown, found = shown_loss(network, model, heads, early, hidden, batch.frames, words, head=False)
        total += batch.dense * shown
        metrics |= {name: value for name, value in found.items() if name != "loss"}
    # What the pooling head looks at is recorded, and learnt from captions alone.
    metrics["head/attention"] = (attention * (batch.frames.patches[..., 0] > 0)).sum(-1).mean()
    metrics["head/area"] = (batch.frames.patches[..., 0] > 0).mean()
    return total, {**metrics, "loss": total, "captions": loss, "written": written}


def _said(model: LlavaOnevision, batch: CaptionBatch) -> Float[Array, "F D"]:
    """The language model's last state behind each caption, without a frame."""
    slots = jnp.arange(batch.ids.shape[-1])
    step = model.lm.step(jnp.broadcast_to(slots, batch.ids.shape), slots < batch.length[:, None])
    states, _ = model.lm.run(model.embed_text(batch.ids), step, 0, model.config.text.layers)
    last = jnp.take_along_axis(states, jnp.maximum(batch.length - 1, 0)[:, None, None], axis=1)[:, 0]
    return model.lm.norm(last)


def _written(model: LlavaOnevision, batch: CaptionBatch, hidden: Array, before: Array) -> tuple[Array, Array]:
    """Mean loss of the words of captions behind their frames, and the share of words that are the likeliest."""
    frames, length = batch.ids.shape
    features = model.pool(model.projector(hidden))
    text = model.embed_text(jnp.concatenate([jnp.broadcast_to(before, (frames, len(before))), batch.ids], axis=1))
    newline = jnp.broadcast_to(model.newline, (frames, 1, features.shape[-1])).astype(features.dtype)
    start = len(before)
    embeds = jnp.concatenate([text[:, :start], features, newline, text[:, start:]], axis=1)
    places = jnp.broadcast_to(jnp.arange(embeds.shape[1]), embeds.shape[:2])
    known = jnp.arange(length) < batch.length[:, None]
    valid = jnp.concatenate([jnp.ones((frames, embeds.shape[1] - length), bool), known], axis=1)
    states, _ = model.lm.run(embeds, model.lm.step(places, valid), 0, model.config.text.layers)
    logits = model.lm.logits(states[:, -length - 1 : -1])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.ids)
    many = jnp.maximum(known.sum(), 1)
    return jnp.where(known, losses, 0).sum() / many, (known & (logits.argmax(-1) == batch.ids)).sum() / many


def answer_loss(
    network: Network,
    params: Any,
    batch: AnswerBatch,
    before: Array,
    *,
    level: float = 0.0,
    named: float = 0.0,
    precision: Any = jnp.float32,
) -> tuple[Array, dict[str, Array]]:
    """Loss of questions about clips, on answers alone; frames are seen by the tower and teach it, cached tokens do not.

    Args:
      network: structure.
      params: parameters.
      batch: clips, what is read of them, questions.
      before: (P,) ids of the prompt in front of the video.
      level: weight of the variance of visual tokens' log-norms.
      named: as for `losses.question_loss`.
      precision: of the forward pass.
    """
    model, heads = _merged(network, params, precision)
    clips = len(batch.seen)
    features = batch.seen
    if batch.seen.ndim == 5:
        frames = pixels(batch.seen.reshape(-1, *batch.seen.shape[2:])).astype(precision)
        features = model.pool(model.projector(model.vision(frames)[0]))
    features = features.reshape(clips, -1, network.config.text.width).astype(precision)
    rows = jax.vmap(averaged, (0, 0, None))(features, batch.shown.rows, batch.shown.positions.shape[-1] - 1)
    past = _prefix(model, rows, batch.shown.positions, before)
    offset = len(before) + batch.shown.positions[:, -1] + 1
    loss, told = question_loss(network, model, heads, batch.questions, past, offset, named)
    if level:
        told["level"] = unevenness(features)
        loss += level * told["level"]
    return loss, {"loss": loss, **told}


def unevenness(features: Float[Array, "B M D"]) -> Float[Array, ""]:
    """Variance of log-norms: small where how long a token is says little, whatever it shows."""
    return 0.5**2 * jnp.var(jnp.log(jnp.square(features.astype(jnp.float32)).sum(-1) + 1e-6))


def averaged(features: Float[Array, "M D"], rows: Array, count: int) -> Float[Array, "K D"]:
    """Means of the tokens of each row."""
    sums = jnp.zeros((count + 1, features.shape[-1]), jnp.float32).at[rows].add(features.astype(jnp.float32))
    many = jnp.zeros(count + 1).at[rows].add(1.0)
    return (sums / jnp.maximum(many, 1.0)[:, None])[:count].astype(features.dtype)


def _prefix(model: LlavaOnevision, rows: Array, positions: Array, before: Array) -> CacheSegment:
    """Keys and values of the text before, the rows and the newline."""
    clips, _, width = rows.shape
    text = jnp.broadcast_to(model.embed_text(before), (clips, len(before), width))
    newline = jnp.broadcast_to(model.newline, (clips, 1, width)).astype(rows.dtype)
    embeds = jnp.concatenate([text.astype(rows.dtype), rows, newline], axis=1)
    start = jnp.broadcast_to(jnp.arange(len(before)), text.shape[:2])
    places = jnp.concatenate([start, len(before) + positions], axis=1)
    valid = jnp.ones(places.shape, bool)
    layers = model.config.text.layers
    _, out = model.lm.run(embeds, model.lm.step(places, valid), 0, layers)
    return CacheSegment(out.k, out.v, valid, jnp.int32(places.shape[1]), 0, layers)
