"""The only home of Ray inside the library."""

import os
import sys

# Ray reads it when it is imported: every runtime that is started or joined from here asks for the token. After that
# moment it would only tell the runtime's other processes to ask for a token that this one does not send.
if "ray" not in sys.modules:
    os.environ.setdefault("RAY_AUTH_MODE", "token")
