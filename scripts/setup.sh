#!/usr/bin/env bash
# Makes .venv with the tested versions; nothing is compiled later, in the middle of a run.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=${VENV:-.venv}
export PIP_DISABLE_PIP_VERSION_CHECK=1
# tools that ask for a version in the range, in this order
find_python() {
    for candidate in "${PYTHON:-}" python3.12 python3.11 python3 python; do
        [ -n "$candidate" ] || continue
        if "$candidate" -c 'import sys; raise SystemExit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "Python 3.11 or 3.12 is needed; none was found. Install one, or run: make PYTHON=/path/to/python3.11 $*" >&2
    exit 2
}

python=$(find_python "$@")
echo "setting up $venv with $($python --version)"
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip=("$venv/bin/python" -m pip install --quiet --constraint constraints.txt)
# DeepSpeed comes as source and looks at the installed torch while it builds
"${pip[@]}" "torch>=2.11,<2.14" numpy setuptools wheel ninja packaging py-cpuinfo
"${pip[@]}" --no-build-isolation deepspeed
"${pip[@]}" --no-build-isolation --editable ".[dev]"
"$venv/bin/python" -m rlhf.models.kernels.build
touch "$venv/.ready"
