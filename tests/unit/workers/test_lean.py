"""A worker's imports leave out what no worker uses, and the process is as it was afterwards."""

from __future__ import annotations

import json
import subprocess
import sys

PROBE = """
import gc, json, sys
from rlhf.workers.lean import lean_imports
with lean_imports():
    import rlhf.workers.policy, rlhf.workers.sft
import torch
from bitsandbytes.nn import Linear4bit
loaded = sorted({"sklearn", "scipy", "torch._inductor.compile_fx"} & set(sys.modules))
import scipy
layer = Linear4bit(64, 64, quant_type="nf4").requires_grad_(False).to("cpu")
print(json.dumps({
    "loaded": loaded, "scipy": scipy.__version__ > "1", "compile": torch.compile.__module__, "collects": gc.isenabled(),
    "nf4": list(layer(torch.zeros(2, 64)).shape),
}))
"""


def test_nothing_unused_is_loaded_and_everything_is_there_afterwards() -> None:
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found == {"loaded": [], "scipy": True, "compile": "torch", "collects": True, "nf4": [2, 64]}
