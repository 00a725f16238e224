"""The entry points of `torch.hub.load`: trained models, and models by name.

`torch.hub.load("path/of/a/clone", "load", "hf://owner/name", source="local")` gives a predictor,
`torch.hub.load("path/of/a/clone", "create_model", "resnet18", source="local")` a model.
"""

from classyseg import create_backbone, create_model, list_models, load

dependencies = ["torch", "torchvision", "numpy", "pydantic", "yaml", "safetensors", "PIL", "fvcore", "iopath", "tqdm"]

__all__ = ["create_backbone", "create_model", "list_models", "load"]
