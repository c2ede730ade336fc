"""Writes ``tests/core/costs/sglang_decisions.json``: what SGLang's own planner decides.

python -m tests.runtime.steer.record_decisions      in the environment of ``nox -s steer``
"""

from __future__ import annotations

import json
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.core.costs.table_kinds import FILES, SHAPES
from tests.core.costs.test_sglang_decisions import STEPS

OUT = Path(__file__).parents[2] / "core" / "costs" / "sglang_decisions.json"
STATES_EACH = 30
SEED = 11


def asked(path: Path, confidences: list[list[int]]) -> dict[str, Any]:
    """SGLang's decision from the table at ``path``."""
    from sglang.srt.speculative.dspark_components import dspark_planner

    survival = torch.cumprod(torch.tensor(confidences, dtype=torch.float32) / STEPS, dim=1)
    decision = dspark_planner.compute_verify_token_budget(
        history_survival_probs=survival,
        sps_table=dspark_planner.load_sps_table_from_path(str(path)),
        cfg=dspark_planner.DSparkScheduleConfig(gamma=survival.shape[1]),
    )
    return {
        "confidences": confidences,
        "budget": decision.budget,
        "step_s": decision.predicted_step_seconds,
    }


def main() -> None:
    """Write the file."""
    rng = np.random.default_rng(SEED)
    tables = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.json"
        for kind, file in FILES.items():
            for shape in SHAPES:
                table = file(rng, shape)
                path.write_text(json.dumps(table))
                states = []
                for _ in range(STATES_EACH):
                    rows, gamma = int(rng.integers(1, 13)), int(rng.integers(1, 8))
                    mean = rng.uniform(0.2, 0.9)
                    chances = np.clip(rng.normal(mean, 0.2, (rows, gamma)), 0.0, 1.0)
                    states.append(asked(path, np.rint(chances * STEPS).astype(int).tolist()))
                tables.append({"kind": kind, "shape": shape, "table": table, "states": states})
    rows = ",\n".join(json.dumps(one, separators=(",", ":")) for one in tables)
    OUT.write_text(f'{{"sglang": "{version("sglang")}", "tables": [\n{rows}\n]}}\n')


if __name__ == "__main__":
    main()
