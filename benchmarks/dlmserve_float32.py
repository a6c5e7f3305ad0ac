"""dlmserve with float32 weights on the CPU, which it has no setting for. Run on its own.

    python -P benchmarks/dlmserve_float32.py PORT

It loads bfloat16 by its own loader; the checkpoint's weights are such that widening them loses
nothing. Everything else is its own, by its own environment variables.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import torch


def main() -> None:
    torch.set_num_threads(1)
    engine: Any = importlib.import_module("dlmserve.engine")
    load = engine.load_model

    def load_float32(**options: Any) -> Any:
        loaded = load(**options)
        loaded.model.float()
        return loaded

    engine.load_model = load_float32
    importlib.import_module("uvicorn").run(
        "dlmserve.api.server:app", host="127.0.0.1", port=int(sys.argv[1]), log_level="warning"
    )


if __name__ == "__main__":
    main()
