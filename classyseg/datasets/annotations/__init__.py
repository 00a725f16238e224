"""Data sets of annotations as labelling tools write them: objects, drawn into masks when a sample is read."""
