"""From a module to a graph of torch's operators whose batch, height and width are free."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from classyseg.inference.exported.contract import RefusedError
from classyseg.inference.exported.tools import first_line

MULTIPLES = (1, 2, 4, 8, 16, 32, 64, 128)
"""What sides may have to be multiples of. The first with which the graph is right for all sizes is taken."""
LARGEST_SIDE = 2**20
FIXED = ".size()[0] as dynamic but your code specialized it"
"""How torch says that the number of images became a constant."""


def traced(
    module: nn.Module,
    example_of: Callable[[int], Tensor],
    sizes_of: Callable[[int], Sequence[tuple[int, int]]],
    batch: int | None,
    largest: tuple[int, int] | None = None,
) -> tuple[ExportedProgram, Tensor, int]:
    """The graph of `module`, the example, and what sides must be multiples of.

    `example_of` and `sizes_of` give the example and the sizes of a comparison for such a multiple. `largest` bounds
    height and width.

    Raises: `RefusedError` for a module that torch cannot trace, such as one that branches on values, with the reason.
    """
    problem = ""
    for multiple in MULTIPLES:
        example = example_of(multiple)
        try:
            with torch.no_grad():
                program = torch.export.export(
                    module, (example,), dynamic_shapes=(_axes(example, multiple, batch, largest),)
                )
        except Exception as error:  # torch raises many kinds, and a plugin's model any
            problem = problem or reason_of(error)
            if FIXED in str(error) or (multiple == 1 and not _is_about_sizes(error)):
                break
            continue
        if all(_holds(program, example, size) for size in sizes_of(multiple)):
            return program, example, multiple
        problem = problem or "its graph is for some sizes alone"
    raise RefusedError(f"export: torch cannot trace this model with free sizes: {problem}")


def _axes(example: Tensor, multiple: int, batch: int | None, largest: tuple[int, int] | None) -> dict[int, Any]:
    axes = (example.dim() - 2, example.dim() - 1)
    free: dict[int, Any] = {} if batch is not None else {0: Dim.DYNAMIC}
    most = (LARGEST_SIDE, LARGEST_SIDE) if largest is None else largest
    if multiple > 1:
        sides = zip(axes, most, strict=True)
        return free | {axis: multiple * Dim(f"side{axis}", max=side // multiple) for axis, side in sides}
    if largest is None:
        return free | dict.fromkeys(axes, Dim.DYNAMIC)
    return free | {axis: Dim.DYNAMIC(max=side) for axis, side in zip(axes, most, strict=True)}


def _is_about_sizes(error: Exception) -> bool:
    """Whether other sizes may help: the trace fixed one, or found that it must be divisible."""
    return any(word in str(error) for word in ("Constraints violated", "specialized", "divisible", "Mod(", "% "))


def _holds(program: ExportedProgram, example: Tensor, size: tuple[int, int]) -> bool:
    """Whether the conditions under which torch traced the graph hold for images of `size`."""
    check = getattr(program.module(), "_guards_fn", None)
    if check is None:
        return True
    try:
        check(torch.empty(*example.shape[:-2], *size, dtype=example.dtype, device="meta"))
    except AssertionError:
        return False
    return True


def smallest_of(program: ExportedProgram) -> tuple[int, int]:
    """The smallest height and width that the graph is made for."""
    image = next(node for node in program.graph.nodes if node.name in program.graph_signature.user_inputs)
    low = []
    for side in image.meta["val"].shape[-2:]:
        if not isinstance(side, torch.SymInt):
            low.append(int(side))
            continue
        expression = side.node.expr  # a symbol, or a multiple of one
        bounds = {symbol: program.range_constraints.get(symbol) for symbol in expression.free_symbols}
        low.append(int(expression.subs({key: found.lower if found else 1 for key, found in bounds.items()})))
    return low[0], low[1]


def plain(program: ExportedProgram) -> ExportedProgram:
    """`program` without its example, without conditions in Python, and without traces of where its code stands.

    They are pickled, run as code, or name paths of this machine. The sizes are checked by us instead.
    """
    program.example_inputs = None
    program._guards_code = []
    program._module_call_graph = program.module_call_graph[:1]
    for node in program.graph.nodes:
        for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node", "custom"):
            node.meta.pop(key, None)
    return program


def reason_of(error: BaseException) -> str:
    """The reason in one line: what was raised, and the line of the model where it was."""
    if FIXED in str(error):
        return "the model fixes the number of images; write x.shape[0] where it says len(x), or give --batch"
    lines = map(str.strip, str(error).splitlines())
    places = [line for line in lines if line.startswith("File ") and "/torch/" not in line]
    told = first_line(error)
    return f"{told} ({places[-1][:200]})" if places else told
