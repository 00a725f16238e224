"""How a training step is computed: parts of a batch, precision, several processes, the update. It knows no task."""

from classyseg.engine.engine import Engine
from classyseg.engine.runtime import RuntimeConfig
from classyseg.engine.step import BatchWork, Computed

__all__ = ["Computed", "Engine", "RuntimeConfig", "BatchWork"]
