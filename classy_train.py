"""Train, evaluate and resume a task: `python classy_train.py --config task_configs/quickstart.yaml`."""

import sys

from classyseg.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
