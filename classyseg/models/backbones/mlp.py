"""MLP: fully connected layers over vectors."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from classyseg.errors import ConfigError
from classyseg.models.classy_model import ClassyModel
from classyseg.registry import MODELS

Count = Annotated[int, Field(ge=1)]


@MODELS.register("mlp")
class MLP(ClassyModel):
    """The block `output` of inputs (N, ...) with `input_dim` values each: a map (N, output_dim, 1, 1).

    `first_dropout` and `first_batchnorm` also treat the input. State-dict keys are ClassyVision's.

    Args:
        input_dim: Values of an input.
        output_dim: Values of the output.
        hidden_dims: Widths of the hidden layers.
        dropout: After each hidden layer.
        first_dropout: Of the input, too.
        use_batchnorm: After each hidden layer.
        first_batchnorm: Of the input, too.
    """

    def __init__(
        self,
        *,
        input_dim: Count,
        output_dim: Count,
        hidden_dims: tuple[Count, ...] = (),
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        first_dropout: bool = False,
        use_batchnorm: bool = False,
        first_batchnorm: bool = False,
    ) -> None:
        super().__init__()
        if first_batchnorm and not use_batchnorm:
            raise ConfigError("first_batchnorm", "found true with use_batchnorm: false; it needs use_batchnorm: true")
        self.in_channels = input_dim
        layers: list[nn.Module] = []
        if dropout and first_dropout:
            layers.append(nn.Dropout(dropout))
        if first_batchnorm:
            layers.append(nn.BatchNorm1d(input_dim))
        channels = input_dim
        for width in hidden_dims:
            layers.append(nn.Linear(channels, width))
            if use_batchnorm:
                layers.append(nn.BatchNorm1d(width))
            if dropout:
                layers.append(nn.Dropout(dropout))
            layers.append(nn.ReLU(inplace=True))
            channels = width
        layers.append(nn.Linear(channels, output_dim))
        self.mlp = nn.Sequential(*layers)
        self.add_block("output", output_dim, 1, "mlp")

    def input_shape(self, height: int, width: int) -> tuple[int, ...]:
        return (self.in_channels,)

    def extract_features(self, image: Tensor) -> dict[str, Tensor]:
        return {"output": self.run_layer(self.mlp, image.flatten(1))[:, :, None, None]}
