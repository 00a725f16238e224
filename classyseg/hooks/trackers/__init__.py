"""Trackers: hooks that show a run in TensorBoard, Weights & Biases, MLflow or a spreadsheet.

Their contract is in `tracker_hook.py`, one file has each tracker.
"""
