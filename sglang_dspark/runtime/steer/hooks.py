"""The steer lane hung into SGLang's built-in DSPARK: decide the budget, hand out the slots, watch.

Owns the hooks and what happens when the policy fails: that step is verified in full, said in the
log and counted, and SGLang's own policy never decides in its place. Tensor-parallel ranks take rank
0's decision, and its failures: ``agreement``. One ``Steering`` serves a
process; a hook is one of its methods. ``prepare`` is what a launching process can check.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pkgutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from sglang_dspark.core.calibration import Calibration
from sglang_dspark.core.history import PrefillRate
from sglang_dspark.core.policy import choices
from sglang_dspark.core.state import Ints
from sglang_dspark.runtime.observers import Observers
from sglang_dspark.runtime.settings import Settings, flag, load
from sglang_dspark.runtime.settings import check as check_settings
from sglang_dspark.runtime.steer import self_check, targets
from sglang_dspark.runtime.steer.agreement import Ranks, ranks_of
from sglang_dspark.runtime.steer.decision import (
    NOTHING_GIVEN,
    Decider,
    Given,
    PolicyFailure,
    StepDecision,
)
from sglang_dspark.runtime.steer.observe import StepObserver

logger = logging.getLogger(__name__)

MODE = "SGLANG_RAGGED_VERIFY_MODE"
FAILED = "the policy failed"
NO_CONFIDENCES = "SGLang had no confidences yet"
FORCED = "SGLang's forced budget"
_WARN_EVERY_S = 60.0


class Steering:
    """The hooks of one process, and what they share: the planner, and the step that is under way.

    SGLang's scheduler runs a step's budget, lengths and outcome on one thread, one after another.
    """

    def __init__(self) -> None:
        self._decider: Decider | None = None
        self._observer: StepObserver | None = None
        self._observers: Observers | None = None
        self._step: StepDecision | None = None
        self._context_R: Ints | None = None
        self._prefills = PrefillRate()
        self._given = NOTHING_GIVEN
        self._ranks = Ranks()
        self._decision_type: Any = None
        self._ragged = False
        self._failures = 0
        self._warned_s = -_WARN_EVERY_S

    def built(self, _: None, planner: Any, *args: Any, **given: Any) -> None:
        """After ``DSparkVerifyPlanner.__init__``: build the policy, switch off SGLang's, check.

        A planner that took the missing SPS table for "verify all" would never ask for a budget.
        """
        try:
            self._build(planner, given["model_runner"], given["tp_rank"])
        except (ValueError, PolicyFailure) as error:
            raise SystemExit(f"sglang-dspark: {error}") from None
        except AttributeError as error:
            raise SystemExit(
                f"sglang-dspark: SGLang's {targets.PLANNER} has changed ({error}); {targets.REMEDY}"
            ) from None

    def decide_with(self, decider: Decider, ranks: Ranks | None = None) -> None:
        """From now on the hooks decide; until then they leave everything to SGLang."""
        self._decision_type = pkgutil.resolve_name(f"{targets.PLANNER}.VerifyBudgetDecision")
        self._decider = decider
        self._ranks = ranks or Ranks()

    def _build(self, planner: Any, model_runner: Any, tp_rank: int) -> None:
        settings = Settings.from_environment()
        server_args = model_runner.server_args
        most = _most_requests(server_args)
        deployed = check_settings(
            settings,
            gamma=planner.gamma,
            has_confidence_head=planner.carries_confidence,
            max_requests=most,
        )
        if planner._budget_planner is None:
            raise ValueError(f"SGLang runs in static verify mode; set {MODE}=compact")
        self._ragged = planner.is_compact_mode
        planner._is_verify_all = False
        decider = Decider(deployed.planner, lag_steps=planner.lag_steps)
        self.decide_with(decider)
        self_check.compare(planner, decider, deployed.cost_model)
        self._step, self._ranks = None, ranks_of(server_args)
        self._observers = Observers(
            settings,
            deployed,
            gamma=planner.gamma,
            max_requests=most,
            labels=_labels(server_args, tp_rank),
            # With data-parallel attention one tensor-parallel rank of all writes.
            sharing=1 if server_args.enable_dp_attention else server_args.dp_size,
        )
        self._observer = StepObserver(
            deployed.planner,
            self._observers,
            device=torch.device(planner.device),
            lag_steps=decider.lag_steps,
        )
        if tp_rank == 0:
            logger.info("DSPARK is steered by policy %s", settings.policy)

    def context(self, _: Any, batch: Any, future_map: Any) -> None:
        """Before ``prepare_verify_budget``, where overlap scheduling decides."""
        self._context_R = context_of(batch)

    def context_now(self, _: Any, **given: Any) -> None:
        """Before ``compute_budget_sync``, where a step is decided when its draft is known."""
        self._context_R = given["prefix_lens"].cpu().numpy().astype(np.int64)

    def budget_of_step(
        self,
        original: Callable[..., Any],
        planner: Any,
        *,
        resolved: Any,
        req_pool_indices_cpu: Any,
    ) -> int | None:
        """Around ``_budget_from_resolved``: a step without a relayed confidence gets a plan too."""
        decider = self._decider
        given = {"resolved": resolved, "req_pool_indices_cpu": req_pool_indices_cpu}
        answer: int | None
        if decider is None:
            answer = original(planner, **given)
            return answer
        return self._agreed(self._own_budget(decider, original, planner, **given))

    def _own_budget(
        self,
        decider: Decider,
        original: Callable[..., Any],
        planner: Any,
        *,
        resolved: Any,
        req_pool_indices_cpu: Any,
    ) -> int | None:
        """What this rank decides, ``_step`` with it."""
        given = {"resolved": resolved, "req_pool_indices_cpu": req_pool_indices_cpu}
        answer: int | None
        rows = len(req_pool_indices_cpu)
        forced = planner._budget_planner.forced_budget_frac is not None
        early = decider.planner.decides_early
        self._given = Given(context_tokens=self._context_R, prefills_per_step=self._prefills.step())
        self._step = None
        try:
            if not forced and (not early or (resolved is None and not decider.is_sglang)):
                self._step = decider.nothing_known(rows, self._given)
                return self._step.budget
            answer = original(planner, **given)
        except PolicyFailure as failure:
            self._fail(failure, rows)
            return None
        if self._step is None:
            self._step = StepDecision(
                stale_logits=decider.no_history(rows),
                budget=answer,
                degraded=FORCED if forced else NO_CONFIDENCES,
            )
        return answer

    def _agreed(self, own: int | None) -> int | None:
        """Rank 0's budget on every rank, and whether its policy failed."""
        step = self._step
        assert step is not None
        mine = [-1 if own is None else own, int(step.degraded == FAILED)]
        first = self._ranks.first_of(mine)
        if first == mine:
            return own
        # No other reason for verifying in full differs between ranks.
        step.degraded = FAILED if first[1] else "" if step.degraded == FAILED else step.degraded
        step.budget = None if first[0] < 0 else first[0]
        return step.budget

    def budget(self, original: Callable[..., Any], host: Any, **given: Any) -> int | None:
        """Around ``HostConfidenceBudgetPlanner.compute_budget``: the decision of a relayed step."""
        decider = self._decider
        if decider is None or host.forced_budget_frac is not None:
            answer: int = original(host, **given)
            return answer
        current = given.pop("current_generation")
        confidence, generation = host._shift_to_lag(**given)
        fresh = (current >= 1) & (generation == current)
        step = decider.from_history(confidence, fresh, self._given)
        self._step = step
        assert step.budget is not None
        host.last_decision = self._decision_type(
            budget=step.budget, predicted_step_seconds=step.predicted_step_s
        )
        return step.budget

    def layout(self, original: Callable[..., Any], planner: Any, **given: Any) -> Any:
        """Around ``schedule_layout``: policies that read the current confidences decide here.

        Whatever fails between here and SGLang's layout, the step is verified in full. Where other
        ranks have handed out their slots meanwhile, it ends the server instead of stopping it.
        """
        decider, step = self._decider, self._step
        if decider is None or step is None or given["confidence"] is None:
            return original(planner, **given)
        rows, agreed = len(given["confidence"]), True
        try:
            if not decider.planner.decides_early and not step.degraded:
                self._plan_late(decider, step, given["confidence"])
                given["budget"] = step.budget
            agreed = self._ranks.alone
            return original(planner, **given)
        except PolicyFailure as failure:
            if not agreed:
                raise RuntimeError(
                    f"DSPARK could not hand out the slots on this tensor-parallel rank: {failure}"
                ) from failure
            self._fail(failure, rows)
            return original(planner, **{**given, "budget": None})

    def _plan_late(self, decider: Decider, step: StepDecision, confidence_RK: Any) -> None:
        """Budget and lengths by rank 0's confidences; ``PolicyFailure`` where its policy failed."""
        rows, failure = len(confidence_RK), None
        try:
            decider.plan_late(step, confidence_RK)
            assert step.lengths is not None
            own = step.lengths.tolist()
        except PolicyFailure as error:
            failure, own = error, [-1] * rows
        lengths = self._ranks.first_of(own)
        if lengths and lengths[0] < 0:
            raise failure or PolicyFailure("on the first tensor-parallel rank; see its log")
        step.lengths = np.array(lengths, dtype=np.int64)
        step.budget = sum(lengths)

    def lengths(self, original: Callable[..., Any], cls: type, *args: Any, **given: Any) -> Any:
        """Around ``ScheduleVerifyLensTopk.execute``; the anchor counts there."""
        decider, step = self._decider, self._step
        if decider is None or decider.is_sglang or step is None or step.degraded:
            return original(cls, *args, **given)
        return decider.lengths(step, given["confidence"], given["budget"]) + 1

    def begin(self, _: Any) -> None:
        """Before ``begin_step``."""
        if self._observer is not None:
            self._observer.begin()

    def segment(self, original: Callable[..., Any], observers: Any, name: Any) -> Any:
        """Around ``segment``: SGLang's own timing and ours."""
        clock = self._observer.clock if self._observer is not None else None
        inner = original(observers, name)
        if clock is None:
            return inner
        return _both(inner, clock.part(str(getattr(name, "value", name))))

    def observe(self, _: None, observers: Any, **given: Any) -> None:
        """After ``observe_verify_step``."""
        step, self._step = self._step, None
        observer = self._observer
        if observer is None or step is None or given["confidence"] is None:
            return
        layout = given["layout"]
        try:
            observer.end(
                decision=step,
                request_ids=[request.rid for request in given["reqs"]],
                confidence_RK=given["confidence"],
                prefix_R=given["prefix_lens"],
                accepted_R=given["correct_len"],
                verified_R=None if layout is None else layout.verify_lens,
                ragged=self._ragged and layout is not None,
            )
        except Exception as error:
            self._stop_observing(error)

    def prefill(self, _: Any) -> None:
        """Before ``note_prefill_step``: what the last steps brought may have arrived."""
        self._prefills.prefill()
        self.collect()

    def collect(self) -> None:
        """Hand on the steps whose outcome is known."""
        if self._observer is None:
            return
        try:
            self._observer.collect()
        except Exception as error:
            self._stop_observing(error)

    def state(self, answer: Any, *args: Any, **given: Any) -> Any:
        """After ``Scheduler.get_internal_state``: the block ``dspark`` of /server_info."""
        self.collect()
        if self._observers is not None:
            answer.internal_state["dspark"] = self._observers.metrics.summary()
        return answer

    def _fail(self, failure: PolicyFailure, rows: int) -> None:
        """Say it, now and then, and have the step verified in full."""
        assert self._decider is not None
        self._step = StepDecision(stale_logits=self._decider.no_history(rows), degraded=FAILED)
        self._failures += 1
        now_s = time.monotonic()
        if now_s - self._warned_s >= _WARN_EVERY_S:
            logger.error(
                "DSPARK policy failed, %d steps verified in full so far: %s",
                self._failures,
                " ".join(str(failure).split()),
            )
            self._warned_s = now_s

    def _stop_observing(self, error: Exception) -> None:
        self._observer = None
        text = " ".join(str(error).split())
        logger.warning(
            "DSPARK steps are no longer recorded, the policy goes on: %s: %s",
            type(error).__name__,
            text,
        )


def context_of(batch: Any) -> Ints:
    """[R] tokens in the KV cache before the step, the same on every tensor-parallel rank.

    SGLang keeps no lengths on the host for attention that needs none there; then they are those of
    its requests, which overlap scheduling brings up to date a step late.
    """
    if batch.seq_lens_cpu is not None:
        return np.asarray(batch.seq_lens_cpu.numpy(), dtype=np.int64)
    lengths = [len(one.origin_input_ids) + len(one.output_ids) - 1 for one in batch.reqs]
    return np.array(lengths, dtype=np.int64)


@contextlib.contextmanager
def _both(first: Any, second: Any) -> Iterator[None]:
    with second, first:
        yield


def _most_requests(server_args: Any) -> int:
    """Requests that can run at once, as SGLang has resolved it."""
    most = server_args.max_running_requests
    try:
        from sglang.srt.runtime_context import get_schedule

        most = get_schedule().max_running_requests
    except (ImportError, AttributeError):
        pass  # before 0.5.19 the arguments themselves are resolved
    return int(most or 48)


def _labels(server_args: Any, tp_rank: int) -> dict[str, Any]:
    """The labels of SGLang's own scheduler metrics, so that both can be joined."""
    return {
        "model_name": server_args.served_model_name or server_args.model_path,
        "engine_type": "unified",
        "tp_rank": tp_rank,
        "pp_rank": 0,
        "moe_ep_rank": 0,
    }


def prepare(server_args: Any) -> None:
    """What can be said before SGLang looks at the arguments. ``ValueError`` names the remedy.

    ``targets.check`` comes before, and before this module is imported.
    """
    settings = Settings.from_environment()
    policy_file, _ = load(settings)
    policy = policy_file.policy
    if policy.as_sglang and policy_file.calibration != Calibration():
        raise ValueError(
            f"policy {policy.name} decides as SGLang does, by its confidences as they are; leave "
            "out the policy file's calibration and give --speculative-dspark-confidence-sts-path"
        )
    if policy_file.correction.on:
        raise ValueError(
            "the policy file's correction needs the worker of SGLang 0.5.15.post1, which tells the "
            "policy what came of each step; take the correction out"
        )
    mode = os.environ.get(MODE) or "static"
    if mode == "static":
        raise ValueError(
            f"{MODE} is static, in which SGLang reads no confidences and verifies everything; set "
            f"{MODE}=compact to trim, or SGLANG_PLUGINS=none for SGLang's own"
        )
    if getattr(server_args, "speculative_dspark_align_verify_tokens_to_graph_tier", False):
        raise ValueError(
            "--speculative-dspark-align-verify-tokens-to-graph-tier raises the budgets that the "
            "policy decides; leave it out, cost models know the tiers"
        )
    if getattr(server_args, "enable_dp_attention", False) and not policy.decides_early:
        raise ValueError(
            f"policy {policy.name} reads the current confidences, and with --enable-dp-attention "
            f"the budget is agreed on before; set {flag('policy')} to "
            f"{choices(lambda kind: kind.decides_early)}"
        )


def register() -> None:
    """Leave the hooks, once in a process."""
    if targets.INIT.path in HookRegistry._hooks:
        return
    if os.environ.get("SGLANG_USE_CPU_ENGINE") == "1":
        from sglang_dspark.runtime.steer import cpu

        cpu.register()
    steering = Steering()
    for target, hook, kind in (
        (targets.INIT, steering.built, HookType.AFTER),
        (targets.CONTEXT, steering.context, HookType.BEFORE),
        (targets.CONTEXT_NOW, steering.context_now, HookType.BEFORE),
        (targets.BUDGET_OF_STEP, steering.budget_of_step, HookType.AROUND),
        (targets.BUDGET, steering.budget, HookType.AROUND),
        (targets.LAYOUT, steering.layout, HookType.AROUND),
        (targets.LENGTHS, steering.lengths, HookType.AROUND),
        (targets.BEGIN, steering.begin, HookType.BEFORE),
        (targets.SEGMENT, steering.segment, HookType.AROUND),
        (targets.OBSERVE, steering.observe, HookType.AFTER),
        (targets.PREFILL, steering.prefill, HookType.BEFORE),
        (targets.STATE, steering.state, HookType.AFTER),
    ):
        HookRegistry.register(target.path, hook, kind)
