"""Where the configs of the project are: in a clone, or where an installation has put its data."""

from __future__ import annotations

import sysconfig
from pathlib import Path

from rlhf.errors import ConfigError

CLONE = Path(__file__).parents[2]
INSTALLED = Path("share") / "rlhf"


def shipped_configs(section: str, clone: Path = CLONE, data: Path | None = None) -> Path:
    """The directory ``configs/SECTION``: a clone's own, else the copy that pip has installed from it.

    Args:
        data: where installed data lies; None: this environment's.

    Raises:
        ConfigError: neither is there.
    """
    installed = data or Path(sysconfig.get_path("data"))
    roots = (clone, clone / INSTALLED, installed / INSTALLED)  # the second: pip install --target
    places = [root / "configs" / section for root in roots]
    for place in places:
        if place.is_dir():
            return place
    raise ConfigError(
        f"no configs/{section} in {' or '.join(str(place.parent.parent) for place in places)}: install the project "
        "again (pip install .), or run from a clone"
    )
