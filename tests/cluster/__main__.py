"""Entry of the one-machine mesh: `python3 tests/cluster ARGUMENTS`, which is what the script `mesh` runs."""

from __future__ import annotations

import sys

from onemachine.cli import main

if __name__ == "__main__":
    sys.exit(main())
