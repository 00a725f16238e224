"""Batch norm over several CPU processes: the numbers of one process with the whole batch."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from classyseg import distributed
from classyseg.layers import SyncBatchNorm, synchronize_batch_norm
from classyseg.models import build_model
from classyseg.models.memory.recompute import recomputed

CPU = torch.device("cpu")
KINDS: dict[int, type[nn.Module]] = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
SHAPES = [(6, 3), (6, 3, 5), (6, 3, 4, 5), (6, 3, 2, 3, 2)]
"""Whole batches of vectors, sequences or codes, maps and clips."""
SPLITS = [(2, 4), (6, 0), (0, 6), (1, 5)]
"""How many samples each of two processes has."""
OPTIONS: list[dict[str, Any]] = [
    {},
    {"momentum": None},
    {"affine": False},
    {"track_running_stats": False},
    {"momentum": 0.7, "eps": 0.1},
]
CASES = [
    *((shape, split, OPTIONS[0]) for shape in SHAPES for split in SPLITS),
    *(((6, 3, 4, 5), (2, 4), options) for options in OPTIONS[1:]),
]


def drawn(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def batch(shape: tuple[int, ...], step: int) -> Tensor:
    """Of channels with other means and widths."""
    channels = torch.arange(1.0, shape[1] + 1, dtype=torch.float64).view(1, -1, *[1] * (len(shape) - 2))
    return drawn(shape, step) * channels + 10 * channels


def norm_for(shape: tuple[int, ...], options: dict[str, Any]) -> nn.Module:
    norm = KINDS[len(shape)](shape[1], **options).double()
    for i, parameter in enumerate(norm.parameters()):
        nn.init.constant_(parameter, 0.5 + i)
    return norm


def measured(norm: nn.Module, shape: tuple[int, ...], images: slice, recompute: bool = False) -> dict[str, Tensor]:
    """What two training steps on these samples of the batches give and leave."""
    found: dict[str, Tensor] = {}
    for step in range(2):
        x = batch(shape, step)[images].clone().requires_grad_()
        output = recomputed(norm, x) if recompute else norm(x)
        (output * drawn(shape, 9)[images]).sum().backward()
        assert x.grad is not None
        found |= {f"output {step}": output.detach(), f"gradient {step}": x.grad}
    found |= {f"gradient of {name}": p.grad for name, p in norm.named_parameters() if p.grad is not None}
    return found | norm.state_dict()


def assert_equal_to_the_whole(name: str, whole: Tensor, parts: list[Tensor]) -> None:
    if name.startswith("gradient of"):
        found = parts[0] + parts[1]
    elif name.startswith(("output", "gradient")):
        found = torch.cat(parts)
    else:
        assert torch.equal(parts[0], parts[1]), name
        found = parts[0]
    torch.testing.assert_close(found, whole, rtol=1e-10, atol=1e-10, msg=lambda text: f"{name}: {text}")


# -- two processes -----------------------------------------------------------------------------------------------------


def share_of(rank: int, split: tuple[int, int]) -> slice:
    return slice(0, split[0]) if rank == 0 else slice(split[0], None)


def synchronized(norm: nn.Module) -> nn.Module:
    synchronize_batch_norm(norm, CPU)
    return norm


def message_for_one_value(rank: int) -> str:
    """What a job with one value for each channel says in process `rank`."""
    with pytest.raises(ValueError) as error:
        SyncBatchNorm(3)(torch.ones(1 - rank, 3, 1, 1))
    return str(error.value)


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found: dict[str, Any] = {"cases": [], "message": message_for_one_value(rank)}
    for shape, split, options in CASES:
        found["cases"].append(measured(synchronized(norm_for(shape, options)), shape, share_of(rank, split)))
    shape, images = SHAPES[2], share_of(rank, SPLITS[0])
    found["recomputed"] = measured(synchronized(norm_for(shape, {})), shape, images, recompute=True)
    copied = pickle.loads(pickle.dumps(copy.deepcopy(synchronized(norm_for(shape, {})))))
    found["copied"] = measured(copied, shape, images)
    norm = synchronized(norm_for(shape, {}))
    found["eval"] = norm.eval()(batch(shape, 0)[images])
    compiled = torch.compile(norm.train(), backend="aot_eager")
    found["compiled"] = compiled(batch(shape, 0)[images]).detach()
    with torch.autocast("cpu", torch.bfloat16):
        found["autocast"] = norm.float()(batch(shape, 0)[images].bfloat16()).detach()
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("two")
    mp.spawn(work, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda number: str(CASES[number]))
def test_two_processes_equal_one_with_the_whole_batch(number: int, two: list[dict[str, Any]]) -> None:
    shape, _, options = CASES[number]
    whole = measured(norm_for(shape, options), shape, slice(None))
    assert two[0]["cases"][number].keys() == whole.keys()
    for name, value in whole.items():
        assert_equal_to_the_whole(name, value, [found["cases"][number][name] for found in two])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["recomputed", "copied"])
def test_a_norm_that_is_computed_twice_or_copied_gives_the_same(kind: str, two: list[dict[str, Any]]) -> None:
    for found in two:
        expected = found["cases"][CASES.index((SHAPES[2], SPLITS[0], {}))]
        assert found[kind].keys() == expected.keys()
        assert all(torch.equal(found[kind][name], value) for name, value in expected.items())


@pytest.mark.slow
def test_compiled_training_and_eval_mode_give_the_numbers_of_one_process(two: list[dict[str, Any]]) -> None:
    norm, x = norm_for(SHAPES[2], {}), batch(SHAPES[2], 0)
    torch.testing.assert_close(torch.cat([found["eval"] for found in two]), norm.eval()(x).detach())
    torch.testing.assert_close(torch.cat([found["compiled"] for found in two]), norm.train()(x).detach())


@pytest.mark.slow
def test_autocast_keeps_the_type_and_loses_its_bits_alone(two: list[dict[str, Any]]) -> None:
    found = torch.cat([found["autocast"] for found in two])
    assert found.dtype == torch.bfloat16
    expected = norm_for(SHAPES[2], {}).float()(batch(SHAPES[2], 0).bfloat16().float())
    torch.testing.assert_close(found, expected.detach().bfloat16(), rtol=2**-7, atol=1e-2)


@pytest.mark.slow
def test_one_value_for_each_channel_in_the_whole_job_is_refused_in_every_process(two: list[dict[str, Any]]) -> None:
    for found in two:
        assert "Expected more than 1 value per channel when training, got input size" in found["message"]
        assert "1 values per channel in all 2 processes" in found["message"]


# -- one process -------------------------------------------------------------------------------------------------------


@pytest.fixture
def as_in_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """The synchronised form, which a single process does not take by itself."""
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "gather_over_processes", lambda own: own[None])
    monkeypatch.setattr(distributed, "sum_over_processes", lambda own: own)


def run(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    norm = SyncBatchNorm(x.shape[1], affine=weight is not None, track_running_stats=False)
    given = {name: value for name, value in (("weight", weight), ("bias", bias)) if value is not None}
    found: Tensor = torch.func.functional_call(norm, given, (x,))
    return found


@pytest.mark.usefixtures("as_in_a_job")
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_right_on_inputs_weight_and_bias(shape: tuple[int, ...]) -> None:
    inputs = drawn(shape, 0), drawn((3,), 1), drawn((3,), 2)
    assert torch.autograd.gradcheck(run, tuple(value.requires_grad_() for value in inputs))
    assert torch.autograd.gradcheck(lambda x: run(x, None, None), inputs[0])


@pytest.mark.usefixtures("as_in_a_job")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_the_variance_of_narrow_values_far_from_zero_keeps_its_digits(dtype: torch.dtype, offset: float) -> None:
    x = (drawn((8, 3, 32, 32), 0) * 4 + offset).to(dtype)
    norm = SyncBatchNorm(3, momentum=1.0, affine=False).double()
    norm(x)
    var, mean = torch.var_mean(x.double(), [0, 2, 3])
    torch.testing.assert_close(norm.running_mean, mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(norm.running_var, var, rtol=1e-5, atol=0)


@pytest.mark.usefixtures("as_in_a_job")
@pytest.mark.parametrize("parameters", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_outputs_and_gradients_of_half_precision_have_its_type(dtype: torch.dtype, parameters: torch.dtype) -> None:
    x = drawn((4, 3, 5, 5), 0, dtype).requires_grad_()
    weight, bias = (torch.tensor([1.0, 2.0, 3.0], dtype=parameters, requires_grad=True) for _ in range(2))
    found = run(x, weight, bias)
    found.float().square().sum().backward()
    wide = x.detach().float().requires_grad_()
    expected = nn.functional.batch_norm(wide, None, None, weight.detach().float(), bias.detach().float(), True)
    expected.square().sum().backward()
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected.detach().to(dtype), rtol=2**-7, atol=1e-3)
    assert x.grad is not None
    assert (x.grad.dtype, weight.grad.dtype) == (dtype, parameters)  # type: ignore[union-attr]


@pytest.mark.usefixtures("as_in_a_job")
def test_the_memory_format_of_a_map_stays() -> None:
    x = drawn((2, 3, 4, 5), 0).to(memory_format=torch.channels_last).requires_grad_()
    output = run(x, None, None)
    output.backward(drawn((2, 3, 4, 5), 1).to(memory_format=torch.channels_last))
    assert output.is_contiguous(memory_format=torch.channels_last)
    assert x.grad is not None
    assert x.grad.is_contiguous(memory_format=torch.channels_last)


@contextmanager
def group_of_one(folder: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_group_of_one_and_no_group_are_plain_batch_norm(options: dict[str, Any], tmp_path: Path) -> None:
    shape = SHAPES[2]
    expected = measured(norm_for(shape, options), shape, slice(None))
    alone = measured(synchronized(norm_for(shape, options)), shape, slice(None))
    with group_of_one(tmp_path):
        grouped = measured(synchronized(norm_for(shape, options)), shape, slice(None))
    for found in (alone, grouped):
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], value) for name, value in expected.items())


# -- conversion --------------------------------------------------------------------------------------------------------


class OwnNorm(nn.BatchNorm2d):
    """A plugin's, which never trains."""

    def train(self, mode: bool = True) -> OwnNorm:
        return super().train(False)


DEVICES = [("cpu", SyncBatchNorm), ("cuda", nn.SyncBatchNorm)]


@pytest.mark.parametrize(("device", "kind"), DEVICES)
def test_every_batch_norm_of_backbone_and_heads_is_converted_in_place(device: str, kind: type[nn.Module]) -> None:
    head = {"name": "encnet", "blocks": ["layer4.0.bn1"]}
    model = build_model({"name": "resnet18", "heads": {"main": head}, "frozen": "stage1"}, num_classes=3)
    norms = {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
    tensors, modes = model.state_dict(keep_vars=True), [module.training for module in norms.values()]
    expected = model.eval()(torch.ones(1, 3, 64, 64))["main"]
    model.train()

    synchronize_batch_norm(model, torch.device(device))

    assert {type(module) for module in norms.values()} == {kind}
    assert {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)} == norms
    assert [module.training for module in norms.values()] == modes
    after = model.state_dict(keep_vars=True)
    assert list(after) == list(tensors)
    assert all(after[key] is value for key, value in tensors.items())
    assert torch.equal(model.eval()(torch.ones(1, 3, 64, 64))["main"], expected)  # and the norm that it reads is tapped


@pytest.mark.parametrize(("device", "kind"), DEVICES)
def test_a_converted_norm_can_be_copied_pickled_and_loaded(device: str, kind: type[nn.Module]) -> None:
    model = nn.Sequential(nn.BatchNorm3d(3, momentum=None))
    synchronize_batch_norm(model, torch.device(device))
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(twin[0]) is kind
        x = drawn((2, 3, 2, 2, 2), 0, torch.float32)
        assert torch.equal(twin(x), nn.BatchNorm3d(3)(x))
        nn.BatchNorm3d(3).load_state_dict(twin[0].state_dict())


def test_a_norm_for_gpus_is_what_torch_makes_of_it() -> None:
    ours, theirs = nn.BatchNorm2d(3), nn.SyncBatchNorm.convert_sync_batchnorm(nn.BatchNorm2d(3))
    synchronize_batch_norm(ours, torch.device("cuda"))
    assert type(ours) is type(theirs)
    assert vars(ours).keys() == vars(theirs).keys()


@pytest.mark.parametrize("first", ["cpu", "cuda"])
@pytest.mark.parametrize(("device", "kind"), DEVICES)
def test_a_converted_norm_can_move_to_another_device(first: str, device: str, kind: type[nn.Module]) -> None:
    model = nn.Sequential(nn.BatchNorm2d(3))
    synchronize_batch_norm(model, torch.device(first))
    synchronize_batch_norm(model, torch.device(device))
    assert type(model[0]) is kind


def test_what_is_not_torchs_batch_norm_or_has_a_group_of_its_own_stays(tmp_path: Path) -> None:
    with group_of_one(tmp_path):
        own_group = nn.SyncBatchNorm(3, process_group=dist.new_group([0]))
    others = [OwnNorm(3), nn.InstanceNorm2d(3, track_running_stats=True), nn.GroupNorm(1, 3), own_group]
    kinds = [type(module) for module in others]
    synchronize_batch_norm(nn.Sequential(*others), CPU)
    assert [type(module) for module in others] == kinds


def test_in_eval_mode_a_converted_model_compiles_whole_and_exports() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    x = torch.randn(2, 3, 8, 8)
    expected = model(x)
    synchronize_batch_norm(model, CPU)
    torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(x), expected)
    exported = torch.export.export(model, (x,))
    torch.testing.assert_close(exported.module()(x), expected)


def test_an_input_without_channels_is_refused() -> None:
    with pytest.raises(ValueError, match="expected at least 2D input"):
        SyncBatchNorm(3)(torch.ones(3))
