"""The command line. Modules here import the heavy parts inside functions, so that `--help` answers at once."""
