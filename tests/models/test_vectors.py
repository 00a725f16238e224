"""A plugin's backbone may give vectors (N, count, channels) as well as maps, and its head may read them."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional

from classyseg.config import ConfigError
from classyseg.heads import ClassyHead
from classyseg.layers import ConvNormAct
from classyseg.models import ClassyModel, FeaturePyramid, FeatureSelector, build_model, create_backbone
from classyseg.models.memory.freezing import freeze
from classyseg.models.memory.recompute import checkpoint_activations
from classyseg.registry import HEADS, MODELS
from classyseg.structures import BlockInfo
from classyseg.trainer import Trainer
from runs import read_records, tiny_task

IMAGE = torch.rand(2, 3, 33, 65, generator=torch.Generator().manual_seed(0))


class Attention(nn.Module):
    """Learned queries that look at a map (N, C, h, w) and become vectors (N, count, C)."""

    def __init__(self, count: int, channels: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(count, channels))
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        queries = self.queries.expand(x.shape[0], -1, -1)
        return self.out(functional.scaled_dot_product_attention(queries, tokens, tokens))


class QueryNet(ClassyModel):
    """Maps `stage1` and `stage2`, and the vectors `queries`."""

    def __init__(self, *, num_queries: int = 6, channels: int = 16) -> None:
        super().__init__()
        self.stem = ConvNormAct(3, channels, stride=2)
        self.add_block("stage1", channels, 2, "stem")
        self.stage = ConvNormAct(channels, 2 * channels, stride=2)
        self.add_block("stage2", 2 * channels, 4, "stage")
        self.attention = Attention(num_queries, 2 * channels)
        self.add_block("queries", 2 * channels, 0, "attention")

    def extract_features(self, image: Tensor) -> dict[str, Tensor]:
        stage1 = self.run_layer(self.stem, image)
        stage2 = self.run_layer(self.stage, stage1)
        return {"stage1": stage1, "stage2": stage2, "queries": self.run_layer(self.attention, stage2)}


class QueryHead(ClassyHead):
    """Each query has a mask and shares of the classes; a pixel gets what its queries say."""

    reads_vectors = True

    def __init__(self, blocks: Sequence[BlockInfo], num_classes: int) -> None:
        super().__init__()
        vectors, fine = blocks
        self.embed = nn.Linear(vectors.channels, fine.channels)
        self.classify = nn.Linear(vectors.channels, num_classes)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        queries, fine = features
        masks = torch.einsum("nqc,nchw->nqhw", self.embed(queries), fine)
        return torch.einsum("nqk,nqhw->nkhw", self.classify(queries), masks.sigmoid())


@pytest.fixture(autouse=True)
def plugin(own_registries: None) -> None:
    """Registers the two for one test."""
    MODELS.register("query_net")(QueryNet)
    HEADS.register("query_head")(QueryHead)


def with_head() -> ClassyModel:
    torch.manual_seed(0)
    heads = {"main": {"name": "query_head", "blocks": ["queries", "stage1"]}}
    return build_model({"name": "query_net", "heads": heads}, num_classes=3)


def test_the_block_and_the_submodule_that_makes_it_are_described_alike() -> None:
    model = create_backbone("query_net")
    assert model.blocks["queries"] == BlockInfo("queries", 32, 0)
    assert model.block("attention") == BlockInfo("attention", 32, 0)
    assert model.block("attention.out") == BlockInfo("attention.out", 32, 0)
    features = model(IMAGE)
    assert {name: tuple(x.shape) for name, x in features.items()} == {
        "stage1": (2, 16, 17, 33),
        "stage2": (2, 32, 9, 17),
        "queries": (2, 6, 32),
    }
    assert model.classifier_block.name == "stage2"


def test_a_task_trains_it(tmp_path: Path) -> None:
    heads = {"main": {"name": "query_head", "blocks": ["queries", "stage1"]}}
    changes = {"model": {"name": "query_net", "heads": heads}, "num_epochs": 2, "optimizer.lr": 0.1}
    Trainer(tmp_path / "run").train(tiny_task(changes))
    losses = [record["loss"] for record in read_records(tmp_path / "run" / "metrics.jsonl")]
    assert losses[-1] < losses[0]


def test_it_learns_what_its_queries_can_tell() -> None:
    model = with_head()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    image = torch.rand(4, 3, 16, 16)
    target = functional.avg_pool2d(image, 2)[:, 0].gt(0.5).long()
    losses = []
    for _ in range(60):
        loss = functional.cross_entropy(model(image)["main"], target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert losses[-1] < 0.5 * losses[0]


def test_a_submodules_vectors_are_read_as_the_blocks_are() -> None:
    torch.manual_seed(0)
    heads = {"main": {"name": "query_head", "blocks": ["attention", "stage1"]}}
    tapped = build_model({"name": "query_net", "heads": heads}, num_classes=3).eval()
    assert torch.equal(tapped(IMAGE)["main"], with_head().eval()(IMAGE)["main"])


def test_a_model_with_it_compiles_exports_and_copies() -> None:
    model = with_head().eval()
    expected = model(IMAGE)["main"]
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(IMAGE)["main"], expected)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(IMAGE)["main"], expected)
    torch.compiler.reset()
    sizes = {"image": {2: Dim("height", min=33, max=512), 3: Dim("width", min=33, max=512)}}
    exported = torch.export.export(model, (torch.rand(2, 3, 64, 96),), dynamic_shapes=sizes).module()
    torch.testing.assert_close(exported(IMAGE)["main"], expected)


@pytest.mark.parametrize(
    ("read", "unused"), [(["stage2"], True), (["queries", "stage1"], False), (["queries", "stage2"], False)]
)
def test_what_gets_no_gradient_is_known_before(read: list[str], unused: bool) -> None:
    model = create_backbone("query_net")
    head = "query_head" if len(read) == 2 else "fcn"
    model.attach_head("main", HEADS.build(head, [model.block(name) for name in read], 3))
    model(IMAGE)["main"].sum().backward()
    assert any(parameter.grad is None for parameter in model.parameters()) == unused
    assert model.unused_in_training() == unused


@pytest.mark.parametrize("layers", [("side",), ()], ids=["told", "untold"])
def test_vectors_before_the_deepest_map_may_get_no_gradient_either(layers: tuple[str, ...]) -> None:
    class SideNet(ClassyModel):
        def __init__(self) -> None:
            super().__init__()
            self.side = Attention(2, 3)
            self.add_block("side", 3, 0, *layers)
            self.conv = nn.Conv2d(3, 8, 1)
            self.add_block("stage1", 8, 1, "conv")

        def extract_features(self, image: Tensor) -> dict[str, Tensor]:
            return {"side": self.side(image), "stage1": self.conv(image)}

    model = SideNet()
    model.attach_head("main", HEADS.build("fcn", [model.block("stage1")], 3))
    assert model.unused_in_training()


def test_freezing_and_computing_again_work_as_for_maps() -> None:
    plain, twin = with_head(), with_head()
    checkpoint_activations(twin, ["stage2", "queries"])
    for model in (plain, twin):
        model(IMAGE)["main"].square().sum().backward()
    for (name, expected), found in zip(plain.named_parameters(), twin.parameters(), strict=True):
        assert expected.grad is not None
        assert torch.equal(found.grad, expected.grad), name  # type: ignore[arg-type]
    freeze(plain, "queries")
    assert not any(parameter.requires_grad for parameter in plain.attention.parameters())  # type: ignore[union-attr]


def test_a_selector_gives_vectors_and_a_pyramid_leaves_them_out() -> None:
    model = create_backbone("query_net").eval()
    selector = FeatureSelector(model, [-1, "stage1"])
    assert [tuple(info) for info in selector.infos] == [("queries", 32, 0), ("stage1", 16, 2)]
    assert selector(IMAGE)["queries"].shape == (2, 6, 32)
    pyramid = FeaturePyramid(model)
    assert [info.name for info in pyramid.infos] == ["stage2"] * 4
    assert [tuple(level.shape[2:]) for level in pyramid(IMAGE)] == [(9, 17), (5, 9), (3, 5), (2, 3)]
    model.keep_blocks(["queries"])
    with pytest.raises(ConfigError, match="no block of QueryNet"):
        FeaturePyramid(model)


def test_a_head_that_was_built_for_a_map_is_refused_on_vectors() -> None:
    model = create_backbone("query_net")
    for name, stride, other in (("queries", 4, "stage1"), ("stage2", 0, "stage1")):
        head = QueryHead([BlockInfo(name, 32, stride), model.block(other)], 3)
        with pytest.raises(ConfigError, match=rf"heads\.main.*'{name}'"):
            model.attach_head("main", head)
