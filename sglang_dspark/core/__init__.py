"""What the server and the simulator share: state in, plan out. numpy and numba only.

In order of import:

- ``state``: ``BatchState``, ``VerifyPlan``
- ``compiled``: numba with a cache that notices changes in called functions
- ``linking``: numba's compiler, told to optimise a program once, as a whole
- ``survival``: from confidence logits to prefix survival
- ``calibration``: what a logit is worth, and the files that say so
- ``ranking``: order tokens by survival, hand slots to the best
- ``costs``: what a step costs
- ``correction``: bounded changes of prices and confidences, learned from completed steps
- ``tables``: a policy as compiled code reads it, and the codes of the decisions
- ``goodput``: the policy of that name, whole
- ``history``: what an engine remembers for its policy
- ``decide``: what each budget policy decides
- ``axis``: what a tuner may vary of a policy
- ``policy``: what each budget policy is, and the file it travels in
- ``planner``: policy, cost model and calibration bound together
- ``corrected_planner``: the same, corrected online
"""

from sglang_dspark.core.calibration import Calibration, load_calibration
from sglang_dspark.core.costs.library import load_cost_model, shipped_cost_models
from sglang_dspark.core.costs.model import CostModel
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
