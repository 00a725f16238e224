"""How many blocks each head reads, written down, so that no test loses a head that refuses what it was given."""

from __future__ import annotations

from collections.abc import Sequence

from classyseg.structures import BlockInfo

ONE, TWO, SEVERAL, ANY = (1,), (2,), (2, 3, 4), (1, 2, 3, 4)
NUM_BLOCKS = {
    "atten": ANY,
    "context_fcn": ANY,
    "deeplabv3": ONE,
    "deeplabv3plus": TWO,
    "deepten": ONE,
    "encnet": ANY,
    "fcfpn": SEVERAL,
    "fcn": ANY,
    "fully_connected": ONE,
    "fully_convolutional_linear": ONE,
    "identity": ONE,
    "jpu": SEVERAL,
    "linear": ANY,
    "lraspp": TWO,
    "ocr": ANY,
    "point_rend": SEVERAL,
    "psp": ONE,
    "segformer": ANY,
    "semantic_fpn": ANY,
    "unet": SEVERAL,
    "upernet": SEVERAL,
    "vision_transformer": ONE,
}
"""Of each built-in head: which numbers up to four."""
CLASSIFIERS = ("deepten", "fully_connected", "fully_convolutional_linear", "linear", "vision_transformer")
"""The heads that give logits for whole images."""


def takes(head: str, blocks: Sequence[BlockInfo], num_classes: int) -> bool:
    """Whether `head` can be built on `blocks`, shallow to deep; plugins' heads take any number."""
    if head == "identity":
        return [block.channels for block in blocks] == [num_classes]
    return len(blocks) in NUM_BLOCKS.get(head, ANY)


def deepest(head: str, blocks: Sequence[BlockInfo]) -> list[BlockInfo]:
    """Of `blocks`, shallow to deep, the deepest where `head` reads one, else as many as it reads."""
    counts = NUM_BLOCKS.get(head, ANY)
    return list(blocks)[-(1 if 1 in counts else max(counts)) :]
