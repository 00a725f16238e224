"""A batch in parts, under a loss that must see the outputs of all of them at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from classyseg.errors import ConfigError

Outputs = Mapping[str, Tensor]


def whole_batch_step(
    network: nn.Module,
    run: Callable[[int], Outputs],
    num_parts: int,
    loss: Callable[[Outputs], Tensor],
    backward: Callable[[Tensor], None],
    exchanging: Callable[[bool], AbstractContextManager[None]] = lambda exchanges: nullcontext(),
) -> Tensor:
    """The loss of all parts' outputs together. Its gradients reach the parameters of `network` a part at a time.

    `run(i)` gives the outputs of part i and is called twice. The first call gives the values that the loss compares;
    nothing else of it is kept. The second call, with the same random numbers, gives the gradients. So a step takes one
    more forward pass, and the memory of one part. Buffers are as after one pass. `backward(loss)` starts the gradients.
    `network` may be a wrapper. Within `exchanging(True)`, a backward pass exchanges gradients with other processes;
    this is so for that of the last part alone.

    Source: Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", RepL4NLP 2021.
    Raises: `ConfigError` for an output that does not have one entry for each image.
    """
    device = next(network.parameters()).device
    buffers = [buffer.clone() for buffer in network.buffers()]
    states, parts = [], []
    for i in range(num_parts):
        states.append(_random_state(device))
        with exchanging(False):
            parts.append({name: output.detach() for name, output in run(i).items()})
    # The second round of passes updates running statistics again: they must start from the same values.
    with torch.no_grad():
        for buffer, before in zip(network.buffers(), buffers, strict=True):
            buffer.copy_(before)
    whole = {name: _joined(name, [part[name] for part in parts]) for name in parts[0]}
    value = loss(whole)
    backward(value)
    for i in range(num_parts):
        _set_random_state(states[i], device)
        with exchanging(i == num_parts - 1):
            again = run(i)
            wanted = [name for name in again if whole[name].grad is not None and again[name].requires_grad]
            gradients = [whole[name].grad.chunk(num_parts)[i] for name in wanted]  # type: ignore[union-attr]
            torch.autograd.backward([again[name] for name in wanted], gradients)
    return value.detach()


def _joined(name: str, parts: Sequence[Tensor]) -> Tensor:
    if any(part.dim() == 0 or part.shape != parts[0].shape for part in parts):
        raise ConfigError(
            "runtime.accumulate_steps",
            f"the parts of a batch give '{name}' as {[tuple(part.shape) for part in parts]}; "
            "this loss needs outputs (N, ...) of the N images of a part; set it to 1, and lower batch_size instead",
        )
    joined = torch.cat(list(parts))
    return joined.requires_grad_() if joined.is_floating_point() else joined


def _random_state(device: torch.device) -> list[Tensor]:
    own = [] if device.type == "cpu" else [torch.get_device_module(device).get_rng_state()]
    return [torch.get_rng_state(), *own]


def _set_random_state(states: Sequence[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    for state in states[1:]:
        torch.get_device_module(device).set_rng_state(state)
