"""Soft targets, class presence, sums and PyTorch-Encoding's combination."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from classyseg.errors import ConfigError, within
from classyseg.losses import BarronLoss, CrossEntropyLoss, PresenceLoss, SoftTargetCrossEntropyLoss, build_loss
from full_size_losses import IGNORED, full_size

GOLDEN_TARGET = [
    [[3, 0, 4, 2, 0, 0], [1, 4, 3, 3, 0, 3], [3, 3, 0, 2, -1, 4], [4, 2, 2, 2, 2, 1]],
    [[4, 1, 1, 4, 4, 3], [4, 4, 1, 0, 3, 2], [3, 3, -1, 4, 4, 1], [1, 3, -1, 2, 4, 1]],
]


def hashed(shape: tuple[int, ...], key: str) -> Tensor:
    """Numbers in -1..1 that depend on `key` alone: the recipe of the recorded numbers."""
    x = (np.arange(np.prod(shape), dtype=np.uint64) + zlib.crc32(key.encode())) & 0xFFFFFFFF
    for factor in (2654435761, 0x45D9F3B):
        x = (x * np.uint64(factor)) & np.uint64(0xFFFFFFFF)
        x ^= x >> np.uint64(16)
    return torch.from_numpy((x.astype(np.float64) / 2**31 - 1).reshape(shape))


GOLDEN_OUTPUTS = {
    "main": 3 * hashed((2, 5, 4, 6), "loss.p1"),
    "main.se": 3 * hashed((2, 5), "loss.se"),
    "aux": 3 * hashed((2, 5, 4, 6), "loss.p2"),
}


@pytest.mark.parametrize(
    ("outputs", "options", "expected"),
    [
        (["main"], {}, 2.539211210936),
        (["main", "aux"], {}, 3.593725970462),
        (["main", "aux"], {"aux_weight": 0.2}, 3.066468590699),
        (["main", "main.se"], {}, 2.689770084871),
        (["main", "main.se", "aux"], {}, 3.744284844398),
        (["aux", "main.se", "main"], {"main_head": "main"}, 3.744284844398),
        (["main"], {"class_weights": [1.0, 2.0, 3.0, 4.0, 5.0]}, 2.4732659795),
    ],
)
def test_the_segmentation_loss_is_pytorch_encodings(
    outputs: list[str], options: dict[str, Any], expected: float
) -> None:
    loss = build_loss({"name": "segmentation", **options}, -1)
    found = loss({name: GOLDEN_OUTPUTS[name] for name in outputs}, torch.tensor(GOLDEN_TARGET))
    assert found.item() == pytest.approx(expected, rel=1e-9)


def test_the_main_head_is_the_named_one_else_the_chosen_one_else_the_first() -> None:
    outputs, target = {name: GOLDEN_OUTPUTS[name] for name in ("aux", "main.se", "main")}, torch.tensor(GOLDEN_TARGET)
    loss, named = (build_loss({"name": "segmentation", **options}, -1) for options in ({}, {"main_head": "aux"}))
    first = loss(outputs, target)
    for each in (loss, named):
        each.choose_main_head("main")
    assert loss(outputs, target).item() == pytest.approx(3.744284844398, rel=1e-9)
    assert named(outputs, target) == first != loss(outputs, target)


@pytest.mark.parametrize("name", ["segmentation", "presence", "sum_arbitrary", "multi_output_sum"])
def test_gradcheck(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 3, 3, 4, dtype=torch.float64, generator=generator).requires_grad_()
    se = torch.randn(2, 3, dtype=torch.float64, generator=generator).requires_grad_()
    target = torch.randint(0, 3, (2, 7, 9), generator=generator)
    target[:, 2:4] = IGNORED
    options: dict[str, Any] = {
        "sum_arbitrary": {"losses": ["dice", "presence"], "weights": [0.5, 2.0]},
        "multi_output_sum": {"loss": "focal"},
    }
    loss = build_loss({"name": name, **options.get(name, {})}, IGNORED)
    assert torch.autograd.gradcheck(lambda a, b: loss({"main": a, "main.se": b}, target), (maps, se))


def test_presence_vectors_leave_out_what_is_ignored() -> None:
    loss = PresenceLoss(-1)
    masks = torch.tensor(GOLDEN_TARGET).where(torch.tensor([False, True]).view(2, 1, 1), -1)
    assert loss.present(masks, 5).int().tolist() == [[0] * 5, [1] * 5]
    assert PresenceLoss(IGNORED).present(torch.tensor([[[0, 3], [1, IGNORED]]]), 5).int().tolist() == [[1, 1, 0, 1, 0]]


def test_an_image_without_a_valid_pixel_says_nothing_about_presence() -> None:
    logits, target = torch.randn(2, 3), torch.tensor([[[0, 1]], [[IGNORED, IGNORED]]])
    expected = functional.binary_cross_entropy_with_logits(logits[0], torch.tensor([1.0, 1.0, 0.0]))
    torch.testing.assert_close(PresenceLoss()(logits, target), expected)
    assert PresenceLoss()(logits[1:], target[1:]) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_presence_is_finite_in_half_precision(dtype: torch.dtype) -> None:
    logits = torch.tensor([[3e4, -3e4, 0.0]]).to(dtype).requires_grad_()
    loss = PresenceLoss()(logits, torch.tensor([[[1, 1]]]))
    assert loss.isfinite()
    assert torch.autograd.grad(loss, logits)[0].isfinite().all()


def test_presence_without_an_output_to_read_is_an_error_in_training_and_nothing_else() -> None:
    loss, maps, target = PresenceLoss(), {"main": torch.zeros(1, 3, 2, 2)}, torch.zeros(1, 4, 4, dtype=torch.int64)
    with pytest.raises(ConfigError, match=r"no output \(N, C\) among main"):
        loss(maps, target)
    assert loss.eval()(maps, target) == 0


# -- which outputs -----------------------------------------------------------------------------------------------------


def outputs_and_target() -> tuple[dict[str, Tensor], Tensor]:
    torch.manual_seed(0)
    maps = {name: torch.randn(2, 3, 4, 4) for name in ("main", "main.coarse", "aux")}
    return {**maps, "main.se": torch.randn(2, 3)}, torch.randint(0, 3, (2, 8, 8))


def test_a_pixel_loss_reads_the_named_outputs_or_else_all_maps() -> None:
    outputs, target = outputs_and_target()
    alone = {name: CrossEntropyLoss()(output, target) for name, output in outputs.items() if output.dim() == 4}
    torch.testing.assert_close(CrossEntropyLoss()(outputs, target), sum(alone.values()))
    some = CrossEntropyLoss(heads=("aux", "main.coarse"), head_weights={"aux": 0.5})
    torch.testing.assert_close(some(outputs, target), 0.5 * alone["aux"] + alone["main.coarse"])


def test_a_named_output_that_does_not_fit_or_is_not_there_is_an_error() -> None:
    outputs, target = outputs_and_target()
    with pytest.raises(ConfigError, match=r"model\.heads\.main\.se.*\(2, 3\)"):
        CrossEntropyLoss(heads=("main.se",))(outputs, target)
    with pytest.raises(ConfigError, match=r"model\.heads\.main\.se.*\(2, 3\)"):
        CrossEntropyLoss(head_weights={"main.se": 5.0})(outputs, target)
    for options in ({"heads": ("main",)}, {"head_weights": {"main": 5.0}}):
        with pytest.raises(ConfigError, match=r"model\.heads\.main.*logits \(N, C\)"):
            PresenceLoss(**options)(outputs, target)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"loss\.heads\[0\].*'main'"):
        CrossEntropyLoss(heads=("mian",))(outputs, target)
    with pytest.raises(ConfigError, match=r"^head_weights\.aux: .*weight"):
        CrossEntropyLoss(heads=("main",), head_weights={"aux": 1.0})


def test_a_main_head_that_gives_no_map_is_an_error() -> None:
    outputs, target = outputs_and_target()
    with pytest.raises(ConfigError, match=r"loss\.main_head.*'main\.se'.*logits"):
        build_loss({"name": "segmentation", "main_head": "main.se"})(outputs, target)


@pytest.mark.parametrize("name", ["cross_entropy", "segmentation", "presence"])
def test_a_list_of_outputs_is_a_wrong_call(name: str) -> None:
    outputs, target = outputs_and_target()
    with pytest.raises(ValueError, match=r"logits.*list.*tensor"):
        build_loss(name)(list(outputs.values()), target)


# -- sums --------------------------------------------------------------------------------------------------------------


def test_a_sum_weighs_every_loss_also_the_first_and_each_has_its_own_count() -> None:
    outputs, target = outputs_and_target()
    weights = [2.0, 0.5, 0.25]
    names: list[Any] = [{"name": "cross_entropy", "class_weights": [1.0, 2.0, 3.0]}, "dice", "presence"]
    parts = [weight * build_loss(config)(outputs, target) for weight, config in zip(weights, names, strict=True)]
    loss = build_loss({"name": "sum_arbitrary", "losses": names, "weights": weights})
    torch.testing.assert_close(loss(outputs, target), torch.stack(parts).sum())
    expected = [CrossEntropyLoss(class_weights=(1, 2, 3)).count(target), 2, 2]
    assert loss.counts(outputs, target).tolist() == loss.terms(outputs, target).counts.tolist() == expected


def test_the_errors_of_a_sum_name_the_part() -> None:
    config: dict[str, Any] = {
        "name": "sum_arbitrary",
        "losses": ["dice", {"name": "focal", "class_weights": [1.0, 1.0], "heads": ["main"]}],
    }
    loss = build_loss(config)
    with pytest.raises(ConfigError, match=r"loss\.losses\[1\]\.class_weights.*2 weights.*3 classes"):
        loss.check_num_classes(3)
    assert list(loss.named_outputs()) == [("loss.losses[1].heads[0]", "main")]
    with pytest.raises(ConfigError, match="weights: found 1 for 2 losses"):
        build_loss({**config, "weights": [1.0]})
    with pytest.raises(ConfigError, match=r"losses\[0\].*did you mean 'dice'"):
        build_loss({"name": "sum_arbitrary", "losses": ["dise"]})


def test_one_loss_is_applied_to_every_output_and_to_lists() -> None:
    outputs, target = outputs_and_target()
    maps = [output for output in outputs.values() if output.dim() == 4]
    loss = build_loss({"name": "multi_output_sum", "loss": "dice"})
    expected = torch.stack([build_loss("dice")(output, target) for output in maps]).sum()
    torch.testing.assert_close(loss(outputs, target), expected)
    torch.testing.assert_close(loss(maps, target), expected)


@pytest.mark.parametrize(
    ("inner", "place"),
    [
        ({"name": "cross_entropy", "head_weights": {"main": 0.0}}, r"loss\.head_weights\.main"),
        ({"name": "dice", "heads": ["main"]}, r"loss\.heads\[0\]"),
        ({"name": "segmentation", "main_head": "main"}, r"loss\.main_head"),
        ({"name": "sum_arbitrary", "losses": [{"name": "dice", "heads": ["main"]}]}, r"loss\.losses\[0\]\.heads\[0\]"),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_a_loss_of_every_output_alone_names_none(inner: dict[str, Any], place: str) -> None:
    with pytest.raises(ConfigError, match=rf"^loss\.{place}.*'main'.*multi_output_sum"), within("loss"):
        build_loss({"name": "multi_output_sum", "loss": inner})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "cross_entropy", "heads": ["main", "main"]}, r"heads: found 'main' twice"),
        (
            {"name": "tversky", "false_positive_weight": 0.0, "false_negative_weight": 0.0},
            r"false_positive_weight: found 0, and false_negative_weight 0, too; one of them must be above 0",
        ),
    ],
    ids=["heads", "tversky"],
)
def test_options_that_have_no_effect_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_loss(config)


# -- soft targets ------------------------------------------------------------------------------------------------------


def test_shares_of_classes_are_compared_as_torch_does() -> None:
    torch.manual_seed(0)
    logits, shares = torch.randn(4, 3, requires_grad=True), torch.rand(4, 3).softmax(1)
    loss = SoftTargetCrossEntropyLoss()
    torch.testing.assert_close(loss(logits, shares), functional.cross_entropy(logits, shares))
    torch.testing.assert_close(loss(logits, 2 * shares), functional.cross_entropy(logits, shares))
    shares[1] = IGNORED
    expected = functional.cross_entropy(logits[[0, 2, 3]], shares[[0, 2, 3]])
    torch.testing.assert_close(loss(logits, shares), expected)


@pytest.mark.parametrize("name", ["soft_target_cross_entropy", "barron", "multi_label_smooth"])
def test_targets_of_a_number_for_each_class_and_pixel(name: str) -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    target = torch.rand(2, 3, 9, 11, dtype=torch.float64)
    target[:, :, 2:4] = IGNORED
    target[0, 1, 6] = IGNORED
    smooth = {"normalize_targets": False, "label_smoothing": 0.1} if name == "multi_label_smooth" else {}
    form = "soft_target_cross_entropy" if smooth else name
    expected, found = full_size(form, logits, target, **smooth), build_loss(name)(logits, target)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (found, expected)]
    torch.testing.assert_close(*gradients)
    assert build_loss(name)(logits, torch.full_like(target, IGNORED)) == 0


def test_multi_label_smoothing_is_for_training_and_plain_cross_entropy_in_evaluation() -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 7)
    shares = 0.7 * functional.one_hot(torch.tensor([0, 3, 6]), 7) + 0.3 * functional.one_hot(torch.tensor([1, 1, 2]), 7)
    loss = build_loss("multi_label_smooth")
    expected = functional.cross_entropy(logits, shares, label_smoothing=0.1)
    torch.testing.assert_close(loss(logits, shares), expected)
    loss.eval()
    torch.testing.assert_close(loss(logits, shares), functional.cross_entropy(logits, shares))
    labels = torch.tensor([0, 3, 6])
    torch.testing.assert_close(loss(logits, labels), functional.cross_entropy(logits, labels))


def test_label_smoothing_is_cross_entropy_with_a_tenth() -> None:
    logits, labels = torch.randn(4, 3), torch.tensor([0, 2, 1, 1])
    expected = functional.cross_entropy(logits, labels, label_smoothing=0.1)
    torch.testing.assert_close(build_loss("label_smoothing")(logits, labels), expected)


@pytest.mark.parametrize(
    ("alpha", "expected"),
    [(2.0, 2.0), (1.0, 5**0.5 - 1), (0.0, np.log(3.0)), (-2.0, 1.0), (None, 1 - np.exp(-2.0))],
)
def test_barrons_loss_of_an_error_of_two_scales(alpha: float | None, expected: float) -> None:
    loss = BarronLoss(alpha=alpha, scale=0.5)
    assert loss(torch.tensor([[3.0]]), torch.tensor([[2.0]])).item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("alpha", "limit"),
    [(1e-300, 0.0), (1e-8, 0.0), (-1e-6, 0.0), (1e-4, 0.0), (2 - 1e-8, 2.0), (-1e5, None), (-1e6, None)],
)
def test_barrons_loss_nears_its_limits_in_float32(alpha: float, limit: float | None) -> None:
    error = torch.tensor([[3.0]], requires_grad=True)
    values = [BarronLoss(alpha=each)(error, torch.zeros(1, 1)) for each in (alpha, limit)]
    torch.testing.assert_close(*values, rtol=1e-4, atol=0)
    torch.testing.assert_close(*(torch.autograd.grad(value, error)[0] for value in values), rtol=1e-3, atol=0)


@pytest.mark.parametrize("alpha", [float("nan"), float("-inf"), -1e7, 2.1])
def test_an_alpha_beyond_the_limits_is_refused(alpha: float) -> None:
    with pytest.raises(ConfigError, match="alpha"):
        build_loss({"name": "barron", "alpha": alpha})
