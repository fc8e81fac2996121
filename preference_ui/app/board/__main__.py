"""``python -m preference_ui.app.board``."""

import sys

from preference_ui.app.board import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
