"""Why programs of models on a mesh send each other what they send."""

from typing import Any

from jvidprune.parallel import read_mesh

NOT_KNOWN = "**not explained**"

WEIGHT = "weights of a layer, which fsdp divides, made whole for that layer"


def reason(row: str, message: dict[str, Any]) -> str:
    """One clause on a message of a row; `NOT_KNOWN` where no rule fits, so that a new one is seen.

    Args:
      row: its key.
      message: fields of `costs.hlo.Message`.
    """
    stage, mesh = row.split()[0], {"data": 1, "fsdp": 1, "tensor": 1} | read_mesh(row.split()[-1])
    rows, kind, doing = mesh["data"] * mesh["fsdp"], message["kind"], message["origin"].rsplit("/", 1)[-1]
    each = message["put"] / max(message["count"], 1)
    backward = "transpose(" in message["origin"]
    if each <= 4096 and kind in ("all-reduce", "all-gather"):
        return "a few numbers: norms, counts, maxima or the loss"
    if kind == "all-reduce" and message["among"] == mesh["tensor"] and "dot_general" in doing:
        return "tensor divides heads and hidden widths: partial sums of a product are added, twice a layer"
    if kind == "all-reduce" and message["among"] == mesh["tensor"] and doing == "psum":
        return "tensor divides the experts: what the chips' parts of them give is added, once a layer"
    if stage == "encode":
        if kind in ("all-gather", "collective-permute", "all-to-all"):
            return "frames lie over data and fsdp; reducer and prompt read the whole video"
        return NOT_KNOWN
    if stage == "prefill":
        if kind == "all-gather" and message["largest"] <= 2**20:
            return "positions and padding marks of all prompts, or the last state of a prompt for the logits"
        return NOT_KNOWN
    if kind == "all-gather" and message["among"] in (mesh["fsdp"], rows):
        return WEIGHT + (", once more in the backward pass" if backward else "")
    if kind == "all-gather" and message["among"] == mesh["tensor"]:
        return "activations whose rows tensor divides for norms, made whole for the next product"
    if kind == "reduce-scatter":
        return "gradients of weights: every chip keeps the sum of its share"
    if kind == "all-reduce" and message["among"] in (mesh["data"], mesh["fsdp"], rows, rows * mesh["tensor"]):
        return "gradients are summed over the clips that data and fsdp divide"
    if kind == "all-reduce" and message["among"] == mesh["tensor"]:
        return "tensor divides what is summed or scattered: embeddings by vocabulary, the loss by logits"
    return NOT_KNOWN
