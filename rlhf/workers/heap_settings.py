"""What a worker's environment says of its memory (``rlhf.workers.heap``), without torch.

Every worker process loads this before its imports are made lean (ADR 10).
"""

from __future__ import annotations

SHARED = "RLHF_SHARES_GPU"
"""Set to 1 in the environment of workers that have a fraction of a GPU."""
WITHIN_AN_ACT = {
    "MALLOC_TRIM_THRESHOLD_": str(1 << 32),
    "MALLOC_MMAP_THRESHOLD_": str(1 << 25),
    "MALLOC_TOP_PAD_": str(1 << 26),
}
"""Environment in which glibc returns nothing by itself but what was larger than 32 MiB. The last of the three is
address space; it keeps the heaps of threads from being given up one by one."""
