"""Planning beside requests that ended in the last step and are computed once more.

A server plans their rows like any other. Here they are no rows: a plan is asked of the living, at
prices of steps that hold so many tokens more, and leaves room for them below a graph tier or a
cliff. What returns views of arrays is for compiled callers: handed to Python, a compiled function's
array is the whole that the view is of.
"""

from __future__ import annotations

from sglang_dspark.core.compiled import compiled
from sglang_dspark.core.costs.tables import CostTables
from sglang_dspark.core.tables import PolicyTables


@compiled
def prices_beside(tables: CostTables, tokens: int) -> CostTables:
    """The prices of steps in which ``tokens`` more are computed than are asked for."""
    return CostTables(
        tables.verify_s[tokens:],
        tables.verify_slope_s,
        tables.request_s,
        tables.request_slope_s,
        tables.draft_s,
        tables.draft_slope_s,
        tables.context_s,
        tables.context_reference_tokens,
        tables.prefill_base_s,
        tables.prefill_token_s,
        tables.prefill_pair_s,
        tables.host_s,
        tables.ragged_s[tokens:],
        tables.ragged_slope_s,
        tables.plain_s[tokens:],
        tables.plain_slope_s,
        tables.measured_tokens,
        tables.measured_requests,
        tables.prefill_floor_s,
        tables.ragged_floor_s,
        tables.adaptive_s,
        tables.adaptive_request_s,
        tables.overlapped_s,
        tables.shaped,
    )


@compiled
def policy_beside(policy: PolicyTables, tokens: int) -> PolicyTables:
    """The policy where ``tokens`` more are computed in a step than it is asked about."""
    sps, theta_s = policy.steps_per_s, policy.theta_s
    return PolicyTables(
        policy.code,
        policy.drafts,
        policy.chooses_drafts,
        policy.as_sglang,
        policy.reads_confidences,
        policy.length,
        policy.threshold,
        policy.table,
        sps[min(tokens, sps.size - 1) :],
        policy.alpha_s,
        theta_s[min(tokens, theta_s.size - 1) :],
        policy.min_gain,
        policy.probe_rounds,
        policy.ttft_s,
        policy.tpot_s,
        policy.slack_weight,
        policy.priority_weight,
    )
