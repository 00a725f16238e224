"""Parameters in groups: by the patterns of a config, by the layers' depth, and by what they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated

from pydantic import Field
from torch import nn

from classyseg.config import ConfigRecord, Float, Text, closest
from classyseg.console import shown
from classyseg.errors import ConfigError
from classyseg.structures import Depths


class ParameterGroup(ConfigRecord):
    """The parameters whose names match `match`, a pattern with `*` and `?`, and factors for their options.

    A parameter belongs to the first group that matches it. A pattern that gets no parameter is an error.

    ```yaml
    optimizer:
      name: sgd
      lr: 0.01
      groups:
        - {match: "heads.*", lr_factor: 10}
        - {match: "layer1.*", lr_factor: 0}
    ```

    Args:
        match: A pattern with `*` and `?` for the whole name, such as `heads.*` or `layer1.*`.
        lr_factor: Multiplies the learning rate.
        weight_decay_factor: Multiplies the weight decay.
    """

    match: Text
    lr_factor: Annotated[Float, Field(ge=0, le=1e6)] = 1.0
    weight_decay_factor: Annotated[Float, Field(ge=0, le=1e6)] = 1.0


@dataclass
class NamedGroup:
    """The parameters of one group of torch's optimizer: they share all options."""

    names: list[str]
    lr_factor: float
    weight_decay: float
    kind: str
    label: str
    """What tells it apart: the pattern of its group, then what was split further."""


def split(
    groups: Sequence[ParameterGroup],
    parameters: Mapping[str, nn.Parameter],
    *,
    weight_decay: float,
    decay_vectors: bool,
    kind_of: Callable[[str, nn.Parameter], str],
    layer_decay: float | None = None,
    depths: Depths | None = None,
) -> list[NamedGroup]:
    """All parameters in groups of the same options. Raises: `ConfigError` for a pattern that gets no parameter."""
    found: dict[tuple[int, int, bool, str], NamedGroup] = {}
    for i, (group, names) in enumerate(_by_pattern(groups, parameters)):
        for name in names:
            depth = 0 if depths is None else depths.deepest - depths.of[name]
            is_vector = parameters[name].dim() <= 1
            key = (i, -depth, is_vector, kind_of(name, parameters[name]))
            if key not in found:
                factor = group.lr_factor * (1.0 if layer_decay is None else layer_decay**depth)
                decay = weight_decay * group.weight_decay_factor * (decay_vectors or not is_vector)
                further = (
                    f"depth {depths.of[name]}" if depths is not None else "",
                    "vectors" if is_vector else "",
                    key[-1],
                )
                label = ", ".join(filter(None, (group.match, *further)))
                found[key] = NamedGroup([], factor, decay, key[-1], label)
            found[key].names.append(name)
    return [found[key] for key in sorted(found)]


def _by_pattern(
    groups: Sequence[ParameterGroup], parameters: Mapping[str, nn.Parameter]
) -> list[tuple[ParameterGroup, list[str]]]:
    """Each group with the names that it gets; the rest is in a last group, without factors.

    Raises: `ConfigError` for a pattern that gets no parameter.
    """
    left = list(parameters)
    found = []
    for i, group in enumerate(groups):
        names = [name for name in left if fnmatchcase(name, group.match)]
        if not names:
            near = closest(group.match, {name.split(".")[0] + ".*" for name in parameters})
            raise ConfigError(
                f"groups[{i}].match",
                f"found {shown(group.match)}, which matches no parameter that is left"
                f"{f'; did you mean {near!r}?' if near else ''}; names are such as {next(iter(parameters))}",
            )
        left = [name for name in left if name not in set(names)]
        found.append((group, names))
    return [*found, (ParameterGroup(match="*"), left)]
