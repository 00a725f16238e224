"""What every registered head holds, plugins' included, on a tiny backbone: a new head gets these tests free."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from head_blocks import ANY, CLASSIFIERS, NUM_BLOCKS, deepest
from torch import Tensor, nn
from torch.export import Dim

from classyseg.heads.classy_head import outputs_of
from classyseg.models import ClassyModel
from classyseg.registry import HEADS
from classyseg.structures import BlockInfo
from config_contract import assert_keeps_the_config_contract
from tiny_backbone import KINDS, TinyBackbone

NUM_CLASSES = 5
NAMES = HEADS.names()
COMPILED = ("linear", "psp", "unet", "ocr")
JOINING = [name for name in NAMES if max(NUM_BLOCKS.get(name, ANY)) > 1]
EXPORTED = [*((name, "halving") for name in NAMES), *((name, "rounding_down") for name in JOINING)]
"""Sizes that are rounded down matter to a head that joins maps."""
Outputs = dict[str, Tensor]


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    yield
    torch.compiler.reset()


def tiny(head: str, kind: str = "halving") -> TinyBackbone:
    """The backbone; for `identity`, one whose deepest features are logits."""
    return TinyBackbone(kind=kind, channels=(32, 32, 64, NUM_CLASSES if head == "identity" else 64))


def built(head: str, count: int | None = None, kind: str = "halving") -> ClassyModel:
    """The tiny backbone with the head `main` on `count` of its deepest blocks, in eval mode."""
    torch.manual_seed(0)
    model = tiny(head, kind)
    blocks = list(model.blocks.values())[-(count or max(counts_of(head))) :]
    model.attach_head("main", HEADS.build(head, blocks, NUM_CLASSES))
    for parameter in model.heads.parameters():
        if not parameter.any():  # a classifier that starts at zero gives nothing on
            nn.init.normal_(parameter, std=0.1)
    return model.eval()


def counts_of(head: str) -> tuple[int, ...]:
    """How many blocks the head may read; a plugin's any number."""
    return NUM_BLOCKS.get(head, ANY)


def drawn(height: int, width: int, count: int = 1) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(height * 1000 + width))


def run(model: Any, image: Tensor) -> Outputs:
    with torch.no_grad():
        return model(image)


def assert_same(found: Outputs, expected: Outputs, tolerance: float = 1e-5) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].shape == value.shape, name
        assert (found[name] - value).abs().max() <= tolerance * value.abs().max(), name


@pytest.mark.parametrize("name", NAMES)
def test_a_head_compiles_as_one_graph(name: str) -> None:
    """Down to torch's own operators, as every compiler gets them; that of C++ takes long, so it has few heads."""
    model, image = built(name), drawn(33, 65)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager_decomp_partition")
    assert_same(run(compiled, image), run(model, image), tolerance=1e-4)


@pytest.mark.slow
def test_the_default_compiler_equals_eager() -> None:
    """All of them in one graph: most of the time goes into the kernels, and they share some."""
    torch.manual_seed(0)
    model, image = tiny("linear"), drawn(64, 96)
    for name in COMPILED:
        model.attach_head(name, HEADS.build(name, deepest(name, list(model.blocks.values())), NUM_CLASSES))
    model.eval()
    assert_same(run(torch.compile(model, fullgraph=True), image), run(model, image), tolerance=1e-4)


@pytest.mark.parametrize(("name", "kind"), EXPORTED)
def test_an_export_with_free_height_and_width_equals_eager_at_other_sizes(name: str, kind: str) -> None:
    model = built(name, kind=kind)
    smallest = 64 if kind == "rounding_down" else 33  # a trace wants maps beyond 1 x 1
    sizes = {"image": {axis: Dim(f"side{axis}", min=smallest, max=4096) for axis in (2, 3)}}
    program = torch.export.export(model, (drawn(64, 96),), dynamic_shapes=sizes)
    assert_onnx_has_forms_for(program)
    exported = program.module()
    for height, width in [(smallest, 65), (97, smallest + 7)]:
        image = drawn(height, width)
        assert_same(run(exported, image), run(model, image))


def assert_onnx_has_forms_for(program: torch.export.ExportedProgram) -> None:
    """Torch's exporter has none for attention of three axes, nor for remainders by a size that is free."""
    for node in program.graph.nodes:
        if "scaled_dot_product" in str(node.target):
            assert {argument.meta["val"].dim() for argument in node.args[:3]} == {4}
        if "remainder" in str(node.target):
            assert isinstance(node.args[1], int), node


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_images_of_any_size_give_labels_and_scores_of_their_size(name: str, kind: str) -> None:
    for count in counts_of(name):
        model = built(name, count, kind)
        head = model.heads["main"]
        for size in [(32, 32), (32, 61), (129, 33)]:
            own = outputs_of(run(model, drawn(*size)), "main")
            labels, scores = head.labels(own, size), head.scores(own, size)  # type: ignore[operator]
            whole = name in CLASSIFIERS
            assert (labels.shape, labels.dtype) == ((1,) if whole else (1, *size), torch.int64)
            assert (scores.shape, scores.dtype) == ((1, NUM_CLASSES, *(() if whole else size)), torch.float32)
            torch.testing.assert_close(scores.sum(1), torch.ones(scores[:, 0].shape))
            given = scores.gather(1, labels[:, None])[:, 0]
            assert (given >= scores.amax(1) - 1e-5).all(), "the labels are where the scores are largest"


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_every_parameter_and_every_block(name: str) -> None:
    model = built(name).train()
    for module in model.modules():
        if hasattr(module, "p"):
            module.p = 0.0  # nothing drops out by chance
    head = model.heads["main"]
    features = [x.detach().requires_grad_() for x in blocks_of(model, drawn(65, 97, count=2), head.blocks)]  # type: ignore[arg-type]
    outputs = head.outputs("main", features)  # type: ignore[operator]
    generator = torch.Generator().manual_seed(1)
    total = torch.stack([(x * torch.randn(x.shape, generator=generator)).sum() for x in outputs.values()]).sum()
    parameters = dict(head.named_parameters())
    learn = {**parameters, **{block.name: x for block, x in zip(head.blocks, features, strict=True)}}  # type: ignore[arg-type]
    gradients = torch.autograd.grad(total, list(learn.values()), allow_unused=True)
    assert [key for key, x in zip(learn, gradients, strict=True) if x is None or not x.any()] == []


def blocks_of(model: ClassyModel, image: Tensor, blocks: tuple[BlockInfo, ...]) -> list[Tensor]:
    features = model.forward_features(image)
    return [features[block.name] for block in blocks]


@pytest.mark.parametrize("name", NAMES)
def test_the_state_makes_another_head_equal_and_so_do_copies(name: str) -> None:
    model, image = built(name), drawn(33, 65)
    expected = run(model, image)
    other = tiny(name)
    other.attach_head("main", HEADS.build(name, model.heads["main"].blocks, NUM_CLASSES))  # type: ignore[arg-type]
    other.load_state_dict(model.state_dict())
    for twin in (other.eval(), copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_same(run(twin, image), expected, tolerance=0)


@pytest.mark.parametrize("name", NAMES)
def test_the_resolved_config_builds_the_same_head(name: str) -> None:
    assert_keeps_the_config_contract("heads", name)
    blocks = deepest(name, list(tiny(name).blocks.values()))
    config = HEADS.validate({"name": name}).resolved()
    with torch.device("meta"):
        first, second = (shapes(HEADS.build(given, blocks, NUM_CLASSES)) for given in (name, config))
    assert first == second


def shapes(head: nn.Module) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in head.state_dict().items()}
