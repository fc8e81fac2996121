"""Rules for Dockerfiles, after the best-known ones of hadolint; each is a reason and a test of the instructions."""

from __future__ import annotations

import re
from pathlib import Path

SECRET = re.compile(r"(TOKEN|SECRET|PASSWORD|API_KEY|CREDENTIAL)\w*\s*[= ]\s*\S", re.IGNORECASE)
ALLOWED_SETTINGS = ("RAY_AUTH_MODE=token",)


def instructions(text: str) -> list[tuple[str, str]]:
    """(instruction, arguments) with continued lines joined and comments left out."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [
        (word.upper(), rest.strip()) for word, _, rest in (s.partition(" ") for s in joined.splitlines() if s.strip())
    ]


def problems(text: str, root: Path) -> list[str]:
    """What a reviewer would send back."""
    found, steps = [], instructions(text)
    for base in (rest.split(" ")[0] for word, rest in steps if word == "FROM"):
        tag = base.rpartition(":")[2] if ":" in base else ""
        if not re.search(r"\d+\.\d+\.\d+", tag) and "@sha256:" not in base:
            found.append(f"FROM {base}: pin a full version")
    users = [rest for word, rest in steps if word == "USER"]
    if not users or users[-1].split(":")[0] in ("root", "0"):
        found.append("the last USER must not be root")
    if not any(word == "SHELL" and "pipefail" in rest for word, rest in steps):
        found.append("SHELL without pipefail hides failures in pipes")
    for word, rest in steps:
        found += _step_problems(word, rest, root)
    return found


def _step_problems(word: str, rest: str, root: Path) -> list[str]:
    found = []
    if word == "ADD":
        found.append(f"ADD {rest}: use COPY, and fetch nothing by URL")
    if word in ("ENV", "ARG", "LABEL"):
        plain = rest
        for allowed in ALLOWED_SETTINGS:
            plain = plain.replace(allowed, "")
        if SECRET.search(plain):
            found.append(f"{word} {rest}: a secret in an image is everybody's")
    if word == "RUN":
        if "apt-get install" in rest and "--no-install-recommends" not in rest:
            found.append("apt-get install without --no-install-recommends")
        if "apt-get install" in rest and "rm -rf /var/lib/apt/lists" not in rest:
            found.append("the package lists stay in the layer")
        if "apt-get install" in rest and not re.search(r"install [^&]*(--yes|-y)\b", rest):
            found.append("apt-get install waits for an answer")
        if "pip install" in rest and "--constraint" not in rest:
            found.append("pip install without the tested versions")
        if re.search(r"\b(curl|wget)\b[^|]*\|\s*(ba)?sh", rest) or "--extra-index-url" in rest:
            found.append(f"RUN {rest[:60]}: runs or installs what nobody has pinned")
        if re.search(r"\bsudo\b|chmod (-R )?777", rest):
            found.append(f"RUN {rest[:60]}: rights without need")
    if word == "COPY":
        sources = [s for s in rest.split()[:-1] if not s.startswith("--")]
        found += [f"COPY {s}: is not there" for s in sources if not (root / s).exists()]
        found += [f"COPY {s}: takes everything" for s in sources if s in (".", "./")]
    return found
