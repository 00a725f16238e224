"""What schedules cannot do without, for tests of all of them."""

from __future__ import annotations

from typing import Any

NEEDED: dict[str, dict[str, Any]] = {
    "composite": {"schedules": ["constant", "cosine"], "lengths": [0.25]},
    "exponential": {"decay": 0.01},
    "multi_step": {"milestones": [3.0, 7.0]},
    "step": {"factors": [1.0, 0.3, 0.1]},
}
"""The options that a schedule cannot do without, in a run of 10 epochs."""
HAS_NO_WARM_UP = {"composite"}
HAS_NO_SCALING = {"composite", "constant"}
