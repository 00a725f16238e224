"""Masks in MATLAB files, as the Pascal extensions are published; scipy reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from classyseg.errors import ConfigError, DataError


def require_scipy(path: Path) -> Any:
    """The module `scipy.io`. Raises: `ConfigError`, naming the file that needs it, where scipy is not installed."""
    try:
        import scipy.io
    except ImportError:
        raise ConfigError(
            "a MATLAB file, which scipy reads: install classyseg[mat], or convert the masks to PNG", file=path
        ) from None
    return scipy.io


def read_mat(path: Path) -> npt.NDArray[Any]:
    """The mask (H, W) of a `.mat` file: SBD's `GTcls.Segmentation`, or Pascal-Context's `LabelMap`.

    Raises: `DataError` for a file that holds neither, `ConfigError` without scipy.
    """
    scipy_io = require_scipy(path)
    try:
        contents = scipy_io.loadmat(str(path))  # for a missing file, scipy's message does not say that it is missing
    except FileNotFoundError:
        raise DataError("no such file", file=path) from None
    except Exception as error:  # scipy may raise anything for a broken file; the message must name the file
        raise DataError(f"cannot be read as a MATLAB file ({error})", file=path) from None
    if "LabelMap" in contents:
        values = contents["LabelMap"]
    elif (
        "GTcls" in contents and "Segmentation" in (contents["GTcls"].dtype.names or ()) and contents["GTcls"].size == 1
    ):
        values = contents["GTcls"]["Segmentation"].item()
    else:
        names = ", ".join(name for name in contents if not name.startswith("__"))
        raise DataError(f"holds {names or 'nothing'}; expected GTcls.Segmentation (SBD) or LabelMap", file=path)
    if not isinstance(values, np.ndarray) or values.ndim != 2 or values.dtype.kind not in "iu":
        raise DataError("its mask is no matrix of integers", file=path)
    return values
