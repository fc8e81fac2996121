"""``python -m rlhf``: what a Ray job runs."""

import sys

from rlhf.cli import main

sys.exit(main())
