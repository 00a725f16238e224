"""Protocols: what each promises, by naive formulas; and what all of them hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from memory import memory_within
from torch import Tensor
from torch.nn import functional

from classyseg import ClassyHead
from classyseg.config import ConfigError
from classyseg.inference import BudgetError, Network, Predictor, PyTorchEncoding, Wanted, build_protocol
from classyseg.inference.memory import LiveTensors
from classyseg.models import ClassyModel, build_model
from classyseg.registry import PROTOCOLS

SIZE = (70, 110)
NUM_CLASSES = 5
SMALL: dict[str, dict[str, Any]] = {
    "sliding_window": {"size": [32, 48]},
    "pytorch_encoding": {"base_size": 90, "crop_size": 48, "scales": [0.5, 1.25]},
    "multi_scale": {"scales": [0.5, 1.0, 1.3]},
}
"""Options with which a protocol has work to do on the small images of these tests."""


class Convolution(ClassyModel):
    """Two convolutions: logits at `stride`, which see no further than three pixels."""

    def __init__(self, *, stride: int = 1, head: type[ClassyHead] | None = None) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.conv = torch.nn.Conv2d(3, 8, 3, stride=stride, padding=1)
        self.add_block("map", 8, stride)
        self.attach_head("main", (head or Classifier)((self.block("map"),), NUM_CLASSES))
        self.eval()

    def extract_features(self, image: Tensor) -> dict[str, Tensor]:
        return {"map": self.conv(image).relu()}


class Classifier(ClassyHead):
    def __init__(self, blocks: Any, num_classes: int) -> None:
        super().__init__()
        self.classifier = torch.nn.Conv2d(blocks[0].channels, num_classes, 3, padding=1)

    def forward(self, features: Sequence[Tensor]) -> Any:
        return 3 * self.classifier(features[0])


class MasksOfQueries(Classifier):
    """A head without logits: masks of three queries and the classes of each."""

    output_names = ("masks", "classes")

    def forward(self, features: Sequence[Tensor]) -> Any:
        logits = super().forward(features)
        return {"masks": logits[:, :3], "classes": logits[:, :3].mean((2, 3))[..., None] * torch.arange(5.0)}

    def scores(self, outputs: Mapping[str, Tensor], size: Sequence[int]) -> Tensor:
        masks = functional.interpolate(outputs["masks"], tuple(size), mode="bilinear").sigmoid()
        found = torch.einsum("nqc,nqhw->nchw", outputs["classes"].softmax(-1), masks)
        return found / found.sum(1, keepdim=True)

    def labels(self, outputs: Mapping[str, Tensor], size: Sequence[int]) -> Tensor:
        return self.scores(outputs, size).argmax(1)


def images(count: int = 1, size: tuple[int, int] = SIZE) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randn(count, 3, 9, 13, generator=generator)
    return functional.interpolate(coarse, size, mode="bicubic") + 0.1 * torch.randn(
        count, 3, *size, generator=generator
    )


def small(name: str) -> Any:
    return build_protocol({"name": name, **SMALL.get(name, {})})


LABELS, SCORES = Wanted("main"), Wanted("main", "scores")
NETWORKS: dict[str, Callable[[], Network]] = {
    "full": lambda: Network(Convolution()),
    "stride 4": lambda: Network(Convolution(stride=4)),
    "queries": lambda: Network(Convolution(stride=2, head=MasksOfQueries)),
}


def cases() -> list[tuple[str, str]]:
    return [(p, n) for p in PROTOCOLS.names() for n in NETWORKS if (p, n) != ("pytorch_encoding", "queries")]


# -- the contract --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kind"), cases())
@pytest.mark.parametrize("size", [SIZE, (50, 77)], ids=str)
def test_labels_and_scores_have_the_size_that_is_asked_for_and_agree(
    name: str, kind: str, size: tuple[int, int]
) -> None:
    found = small(name)(NETWORKS[kind](), images(2), size, [LABELS, SCORES])
    labels, scores = found[LABELS], found[SCORES]
    assert (labels.shape, labels.dtype) == ((2, *size), torch.int64)
    assert (scores.shape, scores.dtype) == ((2, NUM_CLASSES, *size), torch.float32)
    torch.testing.assert_close(scores.sum(1), torch.ones(2, *size))
    top = scores.max(1).values
    torch.testing.assert_close(scores.gather(1, labels[:, None])[:, 0], top, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("name", "kind"), cases())
def test_what_is_found_depends_on_no_budget_and_on_no_other_image(name: str, kind: str) -> None:
    network, protocol = NETWORKS[kind](), small(name)
    wanted = protocol(network, images(2), SIZE, [LABELS])[LABELS]
    with pytest.raises(BudgetError) as raised:
        protocol(network, images(2), SIZE, [LABELS], 1)
    for budget in (raised.value.needed, 2 * raised.value.needed, 10**10):
        torch.testing.assert_close(protocol(network, images(2), SIZE, [LABELS], budget)[LABELS], wanted, atol=0, rtol=0)
    alone = torch.cat([protocol(network, image[None], SIZE, [LABELS])[LABELS] for image in images(2)])
    torch.testing.assert_close(alone, wanted, atol=0, rtol=0)


@pytest.mark.parametrize("name", sorted({*PROTOCOLS.names()} - {"whole"}))
def test_scores_are_the_same_to_the_bit_in_bands_of_any_height(name: str) -> None:
    network, protocol, wanted = NETWORKS["stride 4"](), small(name), Wanted("main", "scores")
    image = images(1)[..., :-3]  # a width that fills no register
    size = (image.shape[2], image.shape[3])
    found = protocol(network, image, size, [wanted])[wanted]
    with pytest.raises(BudgetError) as raised:
        protocol(network, image, size, [wanted], 1)
    in_bands = protocol(network, image, size, [wanted], raised.value.needed)[wanted]
    torch.testing.assert_close(in_bands, found, atol=0, rtol=0)


@pytest.mark.parametrize("name", PROTOCOLS.names())
def test_the_config_of_a_protocol_makes_it_again(name: str) -> None:
    protocol = small(name)
    again = build_protocol(protocol.config())
    assert (type(again), again.config()) == (type(protocol), protocol.config())


@pytest.mark.parametrize("name", PROTOCOLS.names())
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (200, 3), (33, 49)], ids=str)
def test_an_image_may_have_any_size(name: str, size: tuple[int, int]) -> None:
    found = small(name)(NETWORKS["full"](), images(1, size), size, [LABELS, SCORES])
    assert found[LABELS].shape == (1, *size)
    assert bool(found[SCORES].isfinite().all())


@pytest.mark.parametrize("name", PROTOCOLS.names())
def test_whole_images_are_classified_or_refused_by_name(name: str) -> None:
    model = build_model({"name": "resnet18", "heads": {"main": {"name": "linear", "blocks": ["stage4"]}}}, 3).eval()
    if type(small(name)).takes_whole_images:
        assert (
            Predictor(model, classes=list("abc"), protocol=small(name)).predict(np.zeros((32, 32, 3), np.uint8)).shape
            == ()
        )
    else:
        with pytest.raises(ConfigError, match=r"main.*whole images"):
            Predictor(model, classes=list("abc"), protocol=small(name))


# -- sliding windows -------------------------------------------------------------------------------------------------


def starts(length: int, window: int, step: int) -> list[int]:
    """mmsegmentation's, `slide_inference`."""
    grids = max(length - window + step - 1, 0) // step + 1
    return [max(min(i * step + window, length) - window, 0) for i in range(grids)]


@pytest.mark.parametrize("stride", [1, 4])
@pytest.mark.parametrize("blend", ["flat", "gaussian"])
def test_windows_are_averaged_as_mmsegmentation_averages_them(stride: int, blend: str) -> None:
    model, image = Convolution(stride=stride), images()
    height, width = SIZE
    window, step = (32, 48), (21, 32)
    weights = torch.ones(window)
    if blend == "gaussian":
        rows, columns = (torch.arange(side) - (side - 1) / 2 for side in window)
        weights = torch.exp(-(((rows / 4) ** 2)[:, None] + (columns / 6) ** 2) / 2)
    total, count = torch.zeros(1, NUM_CLASSES, height, width), torch.zeros(1, 1, height, width)
    with torch.no_grad():
        for top in starts(height, window[0], step[0]):
            for left in starts(width, window[1], step[1]):
                part = image[..., top : top + window[0], left : left + window[1]]
                logits = functional.interpolate(model(part)["main"], part.shape[2:], mode="bilinear") * weights
                border = (left, width - left - window[1], top, height - top - window[0])
                total += functional.pad(logits, border)
                count += functional.pad(weights[None, None], border)
    protocol = build_protocol({"name": "sliding_window", "size": window, "stride": step, "blend": blend})
    found = protocol(Network(model), image, SIZE, [SCORES])[SCORES]
    torch.testing.assert_close(found, (total / count).softmax(1), atol=2e-5, rtol=0)


def test_overlap_is_the_share_of_a_window_that_is_seen_again() -> None:
    image = images()
    wanted = build_protocol({"name": "sliding_window", "size": [32, 48], "stride": [16, 24]})
    found = build_protocol({"name": "sliding_window", "size": [32, 48], "overlap": 0.5})
    network = NETWORKS["full"]()
    assert torch.equal(found(network, image, SIZE, [LABELS])[LABELS], wanted(network, image, SIZE, [LABELS])[LABELS])


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("size", [(70, 110), (512, 512)], ids=str)
def test_an_image_that_one_window_covers_gives_what_whole_gives(kind: str, size: tuple[int, int]) -> None:
    network, whole = NETWORKS[kind](), build_protocol("whole")
    for protocol in (
        build_protocol({"name": "sliding_window", "size": size}),
        build_protocol({"name": "multi_scale", "scales": [1.0], "flip": False}),
    ):
        found, wanted = (each(network, images(), SIZE, [LABELS, SCORES]) for each in (protocol, whole))
        for item in (LABELS, SCORES):
            torch.testing.assert_close(found[item], wanted[item], atol=0, rtol=0)


def test_many_windows_at_once_give_what_one_gives() -> None:
    network = NETWORKS["stride 4"]()
    one, many = (
        build_protocol({"name": "sliding_window", "size": [32, 48], "batch": batch})(network, images(), SIZE, [SCORES])
        for batch in (1, 3)
    )
    torch.testing.assert_close(one[SCORES], many[SCORES], atol=1e-6, rtol=0)


def test_windows_that_leave_gaps_are_refused() -> None:
    with pytest.raises(ConfigError, match="stride"):
        build_protocol({"name": "sliding_window", "size": [32, 32], "stride": [33, 10]})


# -- scales --------------------------------------------------------------------------------------------------------


def test_scales_and_flips_are_averaged_as_scores() -> None:
    model, image = Convolution(stride=4), images()
    total = torch.zeros(1, NUM_CLASSES, *SIZE)
    with torch.no_grad():
        for scale in (0.5, 1.0, 1.3):
            size = (round(SIZE[0] * scale), round(SIZE[1] * scale))
            seen = functional.interpolate(image, size, mode="bilinear")
            for flip in (False, True):
                logits = model(seen.flip(-1) if flip else seen)["main"]
                logits = logits.flip(-1) if flip else logits
                total += functional.interpolate(logits, SIZE, mode="bilinear").softmax(1) / 6
    found = small("multi_scale")(Network(model), image, SIZE, [SCORES])[SCORES]
    torch.testing.assert_close(found, total, atol=2e-5, rtol=0)


def test_one_scale_and_its_mirror_image_are_averaged() -> None:
    network, image = Network(Convolution()), images()
    plain, mirrored = (build_protocol("whole")(network, x, SIZE, [SCORES])[SCORES] for x in (image, image.flip(-1)))
    found = build_protocol({"name": "multi_scale", "scales": [1.0]})(network, image, SIZE, [SCORES])[SCORES]
    torch.testing.assert_close(found, (plain + mirrored.flip(-1)) / 2)
    assert not torch.allclose(found, plain, atol=1e-3)


def test_an_image_at_a_scale_has_the_nearest_size() -> None:
    network, sizes = Network(Convolution()), []

    def recorded(image: Tensor) -> Mapping[str, Tensor]:
        sizes.append(tuple(image.shape[2:]))
        return network.plain_forward(image)

    protocol = build_protocol({"name": "multi_scale", "scales": [0.53, 1.27], "flip": False})
    with network.with_forward(recorded):
        protocol(network, images(1, (62, 35)), (62, 35), [LABELS])
    assert sizes == [(33, 19), (79, 44)]  # 32.86 x 18.55 and 78.74 x 44.45


def test_the_budget_that_whole_asks_for_holds_all_that_it_makes() -> None:
    network, image, size, whole = Network(Convolution()), images(), (1500, 1500), build_protocol("whole")
    with pytest.raises(BudgetError) as raised:
        whole(network, image, size, [SCORES], 1)
    with LiveTensors() as live:
        whole(network, image, size, [SCORES])
    assert live.peak <= raised.value.needed < 6 * live.peak


# -- PyTorch-Encoding ------------------------------------------------------------------------------------------------

GRIDS: dict[tuple[tuple[int, int], int, int, float], tuple[tuple[int, int], list[list[int]]]] = {
    ((512, 683), 520, 480, 0.5): ((195, 260), []),
    ((512, 683), 520, 480, 1.0): ((390, 520), [[0, 480, 0, 480], [0, 480, 320, 520]]),
    ((512, 683), 520, 480, 1.75): (
        (682, 910),
        [
            *([0, 480, 0, 480], [0, 480, 320, 800], [0, 480, 640, 910]),
            *([320, 682, 0, 480], [320, 682, 320, 800], [320, 682, 640, 910]),
        ],
    ),
    ((683, 512), 520, 480, 1.25): (
        (650, 487),
        [[0, 480, 0, 480], [0, 480, 320, 487], [320, 650, 0, 480], [320, 650, 320, 487]],
    ),
    ((60, 93), 93, 40, 1.0): (  # a step of 26, as 26.67 is cut off
        (60, 93),
        [
            *([0, 40, 0, 40], [0, 40, 26, 66], [0, 40, 52, 92], [0, 40, 78, 93]),
            *([26, 60, 0, 40], [26, 60, 26, 66], [26, 60, 52, 92], [26, 60, 78, 93]),
        ],
    ),
    ((1024, 2048), 2048, 768, 0.75): ((768, 1536), [[0, 768, 0, 768], [0, 768, 512, 1280], [0, 768, 1024, 1536]]),
}
"""Printed by the reference, HEAD ac74841: by image, base, crop and scale, the resized image and its squares.

That of 60 x 93 pixels by hand, from its `int(crop_size * stride_rate)`.
"""


@pytest.mark.parametrize("case", GRIDS, ids=str)
def test_the_squares_are_those_of_the_reference(case: tuple[tuple[int, int], int, int, float]) -> None:
    size, base, crop, scale = case
    protocol = PyTorchEncoding(base_size=base, crop_size=crop)
    resized, squares = GRIDS[case]
    assert protocol.resized(size, scale) == resized
    padded = [max(side, crop) for side in resized]
    tops, lefts = (protocol.grid(side) for side in padded)
    found = [[top, min(top + crop, padded[0]), left, min(left + crop, padded[1])] for top in tops for left in lefts]
    assert found == (squares or [[0, crop, 0, crop]])


@pytest.mark.parametrize("size", [(60, 90), (90, 61), (48, 48), (30, 20)], ids=str)
@pytest.mark.parametrize("flip", [True, False])
def test_scores_are_those_of_the_reference(size: tuple[int, int], flip: bool) -> None:
    model, image, black = Convolution(stride=4), images(1, size), torch.tensor([-1.0, 0.5, -2.0])
    network = Network(model, black=black)
    scales = (0.5, 1.0, 1.75)
    protocol = PyTorchEncoding(base_size=90, crop_size=48, scales=scales, flip=flip)
    found = protocol(network, image, size, [LABELS, SCORES])
    with torch.no_grad():
        wanted = reference(model, image, black, 90, 48, scales, flip)
    torch.testing.assert_close(found[SCORES], wanted / wanted.sum(1, keepdim=True), atol=2e-5, rtol=0)
    two = wanted.topk(2, 1).values
    clear = two[:, 0] > 1.0001 * two[:, 1]
    assert torch.equal(found[LABELS][clear], wanted.argmax(1)[clear])
    assert clear.float().mean() > 0.99


def reference(
    model: ClassyModel, image: Tensor, black: Tensor, base: int, crop: int, scales: Sequence[float], flip: bool
) -> Tensor:
    """`MultiEvalModule.forward` of PyTorch-Encoding as it stands there, written down step by step."""

    def resize(x: Tensor, height: int, width: int) -> Tensor:
        return functional.interpolate(x, (height, width), mode="bilinear", align_corners=True)

    def pad(x: Tensor) -> Tensor:
        right, below = max(0, crop - x.shape[3]), max(0, crop - x.shape[2])
        return torch.stack(
            [functional.pad(x[:, i], (0, right, 0, below), value=float(black[i])) for i in range(x.shape[1])], 1
        )

    def inference(x: Tensor) -> Tensor:
        output = resize(model(x)["main"], *x.shape[2:])
        if flip:
            output = output + resize(model(x.flip(3))["main"], *x.shape[2:]).flip(3)
        return output.exp()

    _, _, h, w = image.shape
    scores = torch.zeros(1, NUM_CLASSES, h, w)
    stride = int(crop * (2.0 / 3.0))
    for scale in scales:
        long_size = math.ceil(base * scale)
        if h > w:
            height, width = long_size, int(1.0 * w * long_size / h + 0.5)
        else:
            height, width = int(1.0 * h * long_size / w + 0.5), long_size
        current = resize(image, height, width)
        if long_size <= crop:
            outputs = inference(pad(current))[:, :, :height, :width]
        else:
            padded = pad(current) if min(height, width) < crop else current
            _, _, ph, pw = padded.shape
            outputs, count = torch.zeros(1, NUM_CLASSES, ph, pw), torch.zeros(1, 1, ph, pw)
            for i in range(math.ceil(1.0 * (ph - crop) / stride) + 1):
                for j in range(math.ceil(1.0 * (pw - crop) / stride) + 1):
                    top, left = i * stride, j * stride
                    bottom, right = min(top + crop, ph), min(left + crop, pw)
                    output = inference(pad(padded[:, :, top:bottom, left:right]))
                    outputs[:, :, top:bottom, left:right] += output[:, :, : bottom - top, : right - left]
                    count[:, :, top:bottom, left:right] += 1
            outputs = (outputs / count)[:, :, :height, :width]
        scores += resize(outputs, h, w)
    return scores


# -- memory --------------------------------------------------------------------------------------------------------


def test_a_budget_is_kept_where_full_size_logits_would_take_ten_times_as_much() -> None:
    """640 x 1024 pixels of 80 classes are 210 MB in logits."""
    model = build_model(
        {
            "name": "resnet18",
            "depths": [1, 1, 1, 1],
            "heads": {"main": {"name": "fcn", "blocks": ["stage3"], "channels": 16}},
        },
        80,
    )
    options = {"classes": [str(i) for i in range(80)], "protocol": {"name": "sliding_window", "size": [256, 256]}}
    predictor = Predictor(model, **options, max_memory="110M")  # type: ignore[arg-type]
    image = (images(1, (640, 1024))[0] * 50 + 128).clamp(0, 255).byte()
    small_image = image[:, :256, :300]
    predictor.predict(small_image)  # what a first forward pass loads is no part of it
    with memory_within(110_000):
        found = predictor.predict(image)
    assert np.array_equal(found, Predictor(model, **options).predict(image))  # type: ignore[arg-type]
