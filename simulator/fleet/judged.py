"""Which requests of a replay are judged: those sent while it is in its steady state.

Owns the rule, for closed and open loops. What is read of them is ``study.metrics``'s. Knows no
scenario and no replica.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

WARM_UP = 0.05
"""Share of an open loop's time that is left out at each end, unless another is given."""
MOST_WARM_UP = 0.45


def steady_requests(arrival_s: Floats, *, concurrency: int | None, warm_up: float) -> slice:
    """Places in the trace of the requests that are judged; empty where there is no steady state.

    Closed loop of C clients: those sent after the C-th finish, when the clients have been answered
    once on average and the burst of first requests is through. From then on until the last one is
    sent, C requests are in flight. Open loop: those that arrive between the warm-up and the
    cool-down, each ``warm_up`` of the time from the first to the last arrival.
    """
    count = len(arrival_s)
    if concurrency is not None:
        return slice(min(2 * concurrency, count), count)
    since_s = arrival_s - arrival_s[0]
    left_out_s = warm_up * since_s[-1]
    first = int(np.searchsorted(since_s, left_out_s, side="left"))
    end = int(np.searchsorted(since_s, since_s[-1] - left_out_s, side="right"))
    return slice(first, max(first, end))


def open_window_s(judged: slice, arrival_s: Floats) -> tuple[float, float]:
    """(from, to) of an open loop: from the first judged arrival to the first one after them.

    To the last arrival where none comes after. ``arrival_s``: [N], of all requests.
    """
    if judged.start == judged.stop:
        return 0.0, 0.0
    last = len(arrival_s) - 1
    return float(arrival_s[judged.start]), float(arrival_s[min(judged.stop, last)])
