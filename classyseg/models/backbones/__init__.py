"""The built-in backbones, a file for each family."""
