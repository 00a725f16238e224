"""`python -m classyseg` is the command `classyseg`."""

import sys

from classyseg.cli.main import main

sys.exit(main())
