"""These tests need vLLM, which wants other versions of other packages: ``make vllm-test`` gives it its own venv."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("vllm") else ["test_*.py"]
