"""What a source's times mean: the clock they were read on, and the unit they are written in.

Owns the one decision that is silently wrong a thousandfold: seconds, milliseconds, microseconds or
nanoseconds. A date is its own unit, and so is a time since 1970, by its size. Any other number is
told from the format that wrote it and the rate of requests it would mean, and where these leave two
answers open the sentence asks for ``--time-unit``. Knows no format.
"""

from __future__ import annotations

import datetime
import math
from dataclasses import dataclass
from typing import Any

from traces.columns import Floats, Where
from traces.importers.fields import MOST, as_number, called, given, shown

UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
"""Seconds in one."""
_WORDS = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}

_YEAR_2000, _YEAR_2100 = 946_684_800.0, 4_102_444_800.0
_SLOWEST, _FASTEST = 0.01, 100.0
"""Requests per second that a trace is expected within: 1000 apart, two units are both inside only
between 10 and 100 of the finer."""
_OWN_SLOWEST, _SAMPLE = 0.01, 10
"""Short samples of a format with names of its own may be slower."""
IMPOSSIBLE_REQ_S = 1000.0
"""A mean rate beyond it is a wrong unit, unless the unit was given."""
_LONGEST_S = 30 * 86400.0
"""Nobody counts so long from a start of his own."""
_ISO, _NUMBER = "a date and time", "a number"


@dataclass(kw_only=True)
class Clock:
    """Reads one source's times, and then says what unit they were in."""

    unit: str = "s"
    """What the format documents."""
    owner: str = "the format"
    """Who documents it, for the sentences."""
    shared: bool = False
    """Whether the fields' names do not vouch for it: others write them in another unit, or it is
    finer than seconds, which somebody may have written instead."""
    or_seconds: bool = False
    """Whether one of those writes seconds and has no field of its own to be told by."""
    certain: bool = False
    """Whether the unit is beyond doubt, whatever the rate."""
    asked: str | None = None
    """``--time-unit``."""
    kind: str | None = None
    """Whether its times are dates or numbers; None before the first."""
    zoned: bool | None = None
    """Whether its dates name their zone."""
    fractions: bool = False
    """Whether any number was no whole one."""

    def read(self, where: str, record: dict[str, Any], field: str) -> float:
        """The time in a field, in seconds where it is a date, else in the unit that is yet to tell.

        ``ValueError`` for what is no time, for a negative one, and for dates among numbers.
        """
        value = given(where, record, field)
        field = called(record, field)
        number = as_number(value)
        kind = _ISO if number is None else _NUMBER
        if number is None:
            number = self._date_s(where, field, value)
        elif not math.isfinite(number) or not 0 <= number < MOST:
            raise ValueError(
                f"{where}: {field} {shown(value)} must be a finite number, 0 or more; "
                "mend or remove the row"
            )
        elif not number.is_integer():
            self.fractions = True
        if self.kind not in (None, kind):
            raise ValueError(
                f"{where}: {field} {shown(value)} is {kind}, and those above it are not; write "
                "all times alike"
            )
        self.kind = kind
        return number

    def _date_s(self, where: str, field: str, value: Any) -> float:
        moment = date_and_time(where, value, field)
        zoned = moment.tzinfo is not None
        if self.zoned not in (None, zoned):
            raise ValueError(
                f"{where}: {field} {shown(value)} names {'a' if zoned else 'no'} time zone, unlike "
                "those above it; write all times alike"
            )
        self.zoned = zoned
        return _since_1970(moment)

    def seconds(self, path: str, times: Floats, where: Where) -> tuple[Floats, list[str]]:
        """(times in seconds, what was found of their unit). ``ValueError`` that asks for it."""
        if self.kind == _ISO:
            if self.asked not in (None, "s"):
                raise ValueError(
                    f"--time-unit {self.asked}: {path} writes its times as dates, which have no "
                    "unit; leave it out"
                )
            return times, []
        told = _since_1970_unit(times, where)
        if self.asked is not None:
            found = [f"times are read as {_WORDS[self.asked]}, as was said"]
            found = found if self.asked != self.unit else []
            if told not in (None, self.asked):
                found = [
                    f"times are read as {_WORDS[self.asked]}, as was said; by their size they are "
                    f"{_WORDS[told or 's']} since 1970"
                ]
            return times * UNITS[self.asked], found
        if told is not None:
            found = [] if told == self.unit else [f"times are {_WORDS[told]} since 1970"]
            self._check_rate(path, times, told)
            return times * UNITS[told], found
        unit = self._told(path, times)
        found = [f"times are read as {_WORDS[unit]}"] if unit != self.unit else []
        return times * UNITS[unit], found

    def _told(self, path: str, times: Floats) -> str:
        """The unit of times that count from a start of their own. ``ValueError`` that asks."""
        rates = rates_by_unit(times)
        if not rates or self.certain:
            return self.unit
        if _sure(rates, len(times), self.unit, shared=self.shared, fractions=self.fractions):
            return self.unit
        too_fast = rates[self.unit] > IMPOSSIBLE_REQ_S
        if self.or_seconds and self.fractions and too_fast and rates["s"] <= _FASTEST:
            return "s"
        raise ValueError(
            f"{path}: the unit of its times is not sure: {_choices(rates, len(times))}; "
            f"{self.owner} documents {_WORDS[self.unit]}; give --time-unit s, ms, us or ns"
        )

    def _check_rate(self, path: str, times: Floats, unit: str) -> None:
        rates = rates_by_unit(times)
        if rates and rates[unit] > IMPOSSIBLE_REQ_S and len(times) >= 2 * _SAMPLE:
            raise ValueError(
                f"{path}: {rates[unit]:,.0f} requests/s if its times are {_WORDS[unit]} since "
                f"1970, above {IMPOSSIBLE_REQ_S:,.0f}; give --time-unit if that is meant"
            )


def _sure(rates: dict[str, float], count: int, unit: str, *, shared: bool, fractions: bool) -> bool:
    """Whether the documented unit is the only one that the rates allow.

    A format with names of its own is believed unless it means a rate that traces do not have; one
    whose names others use in another unit needs that no other unit is a usual rate.
    """
    rate = rates[unit]
    if not shared:
        slowest = _OWN_SLOWEST if count < _SAMPLE else 10 * _SLOWEST
        return slowest <= rate <= IMPOSSIBLE_REQ_S
    if fractions and unit == "ms" and rate > _FASTEST:
        return False
    others = [
        other
        for other, r in rates.items()
        if other != unit and _SLOWEST <= r <= _FASTEST and (count - 1) / r <= _LONGEST_S
    ]
    return not others and _SLOWEST <= rate <= IMPOSSIBLE_REQ_S


def rates_by_unit(times: Floats) -> dict[str, float]:
    """Mean requests per second by the unit that ``times`` may be in; empty without a span."""
    span = float(times.max() - times.min()) if len(times) else 0.0
    if span <= 0:
        return {}
    return {unit: (len(times) - 1) / (span * seconds) for unit, seconds in UNITS.items()}


def _choices(rates: dict[str, float], count: int) -> str:
    """The readings that come into question, with what each would mean."""
    near = [unit for unit, rate in rates.items() if 1e-4 <= rate <= 1e5]
    parts = [
        f"{_rate(rates[unit])} over {_span((count - 1) / rates[unit])} if {_WORDS[unit]}"
        for unit in near or rates
    ]
    return ", ".join(parts)


def _rate(rate: float) -> str:
    return f"{rate:,.3g} requests/s" if rate < 100 else f"{rate:,.0f} requests/s"


def _span(seconds: float) -> str:
    for size, word in ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.3g} {word}"
    return f"{seconds:.3g} s"


def _since_1970_unit(times: Floats, where: Where) -> str | None:
    """The unit in which all times lie between 2000 and 2100; None where they count from elsewhere.

    ``ValueError`` where some do in one unit and some in another, or some in none.
    """
    inside = {
        unit: (times >= _YEAR_2000 / seconds) & (times < _YEAR_2100 / seconds)
        for unit, seconds in UNITS.items()
    }
    counts = {unit: int(rows.sum()) for unit, rows in inside.items()}
    most = max(counts, key=counts.__getitem__)
    if counts[most] == len(times) > 0:
        return most
    # Times from a start of their own pass through these sizes too, but begin below all of them.
    begun = float(times.min()) if len(times) else 0.0
    others = sum(count for unit, count in counts.items() if unit != most)
    if begun >= _YEAR_2000 and others:
        row = int((~inside[most]).argmax())
        raise ValueError(
            f"{where(row)}: time {times[row]:.0f} is not in {_WORDS[most]} since 1970, as "
            f"{counts[most]} of {len(times)} are; write all times alike"
        )
    if begun < _YEAR_2000 and counts[most] > len(times) / 2 and most != "s":
        stray = ~inside[most]
        if float(times[stray].max()) < 0.5 * _YEAR_2000:
            row = int(stray.argmax())
            raise ValueError(
                f"{where(row)}: time {times[row]:g} is not in {_WORDS[most]} since 1970, as "
                f"{counts[most]} of {len(times)} are; mend or remove the row"
            )
    return None


def date_and_time(where: str, value: Any, field: str = "") -> datetime.datetime:
    """An ISO date and time, or one that a Parquet file holds as such."""
    if isinstance(value, datetime.datetime):
        return value
    try:
        return datetime.datetime.fromisoformat(str(value).strip())
    except ValueError:
        raise ValueError(
            f"{where}: {field and f'{field} '}{str(value)[:60]!r} is not a date and time like "
            "2023-11-16 18:17:03.9799; mend or remove the row"
        ) from None


def _since_1970(moment: datetime.datetime) -> float:
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return moment.timestamp()
