"""What saves memory or time in a model: freezing, recomputing, compressing, fusing, cached features."""
