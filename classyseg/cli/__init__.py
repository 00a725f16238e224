"""The command line. Its modules import slow packages, such as torch, inside functions, so that `--help` is fast."""
