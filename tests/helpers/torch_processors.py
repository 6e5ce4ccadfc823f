"""Libraries that the processors of the references are made of, and films for them; torch is imported when asked for."""

import functools

import numpy as np


@functools.cache
def modules():
    """torch, torchvision's resize on tensors, and qwen_vl_utils.

    A torchvision built for CUDA lacks two operators beside a CPU build of torch; nothing here calls them.
    """
    import torch

    try:
        import torchvision
    except RuntimeError:
        # The operators are there as long as the library is.
        _LIBRARIES.append(torch.library.Library("torchvision", "DEF"))
        _LIBRARIES[0].define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _LIBRARIES[0].define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision
    from qwen_vl_utils import vision_process

    return torch, torchvision, vision_process


_LIBRARIES = []


def film(frames, size, kind, seed=0):
    """(T, H, W, 3) noise, or ramps, waves and a moving chequerboard with hard edges."""
    if kind == "noise":
        return np.random.default_rng(seed).integers(0, 256, (frames, *size, 3), dtype=np.uint8)
    rows, columns = np.mgrid[: size[0], : size[1]]
    wave = 128 + 127 * np.sin(columns / 9) * np.cos(rows / 7)
    board = (columns // 16 + rows // 16) % 2 * 255.0
    one = np.stack([wave, board, columns * 255.0 / size[1]], axis=-1).astype(np.uint8)
    return np.stack([np.roll(one, 3 * number, axis=1) for number in range(frames)])


def tensor(frames):
    """Frames as the readers of qwen-vl-utils and transformers hand them on."""
    return modules()[0].from_numpy(np.ascontiguousarray(frames.transpose(0, 3, 1, 2)))
