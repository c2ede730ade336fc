"""What the server and the simulator share: state in, plan out. numpy and numba only.

In order of import:

- ``state``: ``BatchState``, ``VerifyPlan``
- ``compiled``: numba with a cache that notices changes in called functions
- ``survival``: from confidence logits to prefix survival
- ``calibration``: what a logit is worth, and the files that say so
- ``ranking``: order tokens by survival, hand slots to the best
- ``costs``: what a step costs
- ``correction``: bounded changes of prices and confidences, learned from completed steps
- ``goodput``: prices and choices of the policy of that name
- ``history``: what an engine remembers for its policy
- ``decide``: what each budget policy decides
- ``policy``: the policies as data, and the file they travel in
- ``planner``: policy, cost model and calibration bound together
- ``corrected_planner``: the same, corrected online
"""

from sglang_dspark.core.calibration import Calibration, load_calibration
from sglang_dspark.core.costs.model import CostModel, load_cost_model, shipped_cost_models
from sglang_dspark.core.planner import Planner
from sglang_dspark.core.policy import (
    POLICIES,
    Policy,
    PolicyFile,
    load_policy,
    parse_policy,
    save_policy,
)
from sglang_dspark.core.state import BatchState, VerifyPlan

__all__ = [
    "POLICIES",
    "BatchState",
    "Calibration",
    "CostModel",
    "Planner",
    "Policy",
    "PolicyFile",
    "VerifyPlan",
    "load_calibration",
    "load_cost_model",
    "load_policy",
    "parse_policy",
    "save_policy",
    "shipped_cost_models",
]
