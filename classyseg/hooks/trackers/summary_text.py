"""How a run ended, as text."""

from __future__ import annotations

from classyseg.hooks.trackers.entries import Summary
from classyseg.hooks.trackers.names import Names


def summary_table(summary: Summary, names: Names) -> str:
    """A table in Markdown with the last and the best value of each number that is not of a class."""
    lines = [f"{summary.outcome}: {summary.reason}", "", "| number | last | best | at step |", "|---|--:|--:|--:|"]
    for name, value in summary.last.items():
        if len(name) == 2:
            best = summary.best.get(name)
            cells = ("", "") if best is None else (f"{best[0]:.6g}", str(best[1]))
            text = names.of(name).replace("|", "\\|")
            lines.append(f"| {text} | {value:.6g} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines) + "\n"
