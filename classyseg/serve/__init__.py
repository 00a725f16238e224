"""A trained model as a web page and an HTTP address, on one machine. Needs `pip install 'classyseg[serve]'`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from classyseg.errors import ConfigError
from classyseg.serve.limits import Limits

if TYPE_CHECKING:
    from classyseg.serve.app import application
    from classyseg.serve.server import PredictionServer

__all__ = ["Limits", "PredictionServer", "application", "check_installed"]
_HOMES = {"application": "app", "PredictionServer": "server"}
NEEDED = ("starlette", "uvicorn", "h11")


def check_installed() -> None:
    """Raises: `ConfigError` with the command for pip, where a package is missing."""
    for name in NEEDED:
        try:
            importlib.import_module(name)
        except ImportError:
            raise ConfigError(f"serve: needs {name}, which is not installed: pip install 'classyseg[serve]'") from None


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        check_installed()
        return getattr(importlib.import_module(f"classyseg.serve.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'classyseg.serve' has no attribute '{name}'")
