"""Templated JSON, chat and code: prompt and answer pairs that a tiny target learns almost by heart.

Owns the sentences. Knows no tokenizer and no model. Text like this has a few free choices followed
by long forced runs, so drafters reach high acceptance on it, which is the regime of the paper's
maths and code columns; the standard library (``draft.data.corpus``) is the hard regime.
"""

from __future__ import annotations

import random
from collections.abc import Callable

_NAMES = ("Ada", "Boris", "Chiara", "Dmitri", "Elif", "Farid", "Grace", "Hugo", "Ines", "Jonas")
_CITIES = ("Lisbon", "Oslo", "Nairobi", "Quito", "Hanoi", "Prague", "Tunis", "Lima")
_ITEMS = ("lamp", "kettle", "desk", "mirror", "carpet", "shelf", "chair", "clock")
_COLOURS = ("red", "green", "blue", "white", "black", "yellow")
_STATES = ("open", "paid", "shipped", "returned", "cancelled")
_VERBS = ("count", "total", "filter", "sort", "merge", "split")
_FIELDS = ("price", "weight", "age", "score", "size", "rank")


def _json(rng: random.Random) -> tuple[str, str]:
    name, items = rng.choice(_NAMES), rng.sample(_ITEMS, rng.randint(2, 3))
    prompt = f"Give me the order of {name} as JSON."
    lines = [
        f'    {{"item": "{item}", "colour": "{rng.choice(_COLOURS)}", '
        f'"quantity": {rng.randint(1, 5)}, "in_stock": {rng.choice(("true", "false"))}}}'
        for item in items
    ]
    answer = (
        f'{{\n  "customer": {{"name": "{name}", "city": "{rng.choice(_CITIES)}"}},\n'
        f'  "status": "{rng.choice(_STATES)}",\n  "items": [\n' + ",\n".join(lines) + "\n  ]\n}"
    )
    return prompt, answer


def _chat(rng: random.Random) -> tuple[str, str]:
    city, item = rng.choice(_CITIES), rng.choice(_ITEMS)
    prompt = f"Where can I buy a {item} in {city}?"
    opening = rng.choice(
        (
            f"There are several shops in {city} that sell a good {item}.",
            f"Thank you for asking about {city}! You can find a {item} in many places there.",
            f"I would be happy to help you find a {item} in {city}.",
        )
    )
    middle = rng.choice(
        (
            f"The market in the old town is open every day, and a {rng.choice(_COLOURS)} {item} "
            f"costs about {rng.randint(2, 9)}0 euros.",
            f"Ask for {rng.choice(_NAMES)} at the station, who always keeps a "
            f"{rng.choice(_COLOURS)} {item} in the window.",
        )
    )
    closing = rng.choice(
        (
            "Please let me know if there is anything else that I can do for you.",
            "I hope that this helps, and I wish you a very pleasant day.",
        )
    )
    return prompt, f"{opening} {middle} {closing}"


def _code(rng: random.Random) -> tuple[str, str]:
    verb, field, item = rng.choice(_VERBS), rng.choice(_FIELDS), rng.choice(_ITEMS)
    prompt = f"Write a function to {verb} the {item}s by {field}."
    head = (
        f"def {verb}_{item}s_by_{field}({item}s, limit={rng.randint(1, 9)}):\n"
        f'    """Return the {item}s with a {field} that is large enough."""\n'
        "    result = []\n"
        f"    for {item} in {item}s:\n"
    )
    body = rng.choice(
        (
            f"        if {item}.{field} > limit:\n            result.append({item})\n",
            f"        if {item}.{field} is None:\n            continue\n"
            f"        result.append({item}.{field})\n",
            f"        try:\n            result.append(int({item}.{field}))\n"
            "        except ValueError:\n            continue\n",
        )
    )
    return prompt, head + body + "    return result"


DOMAINS: dict[str, Callable[[random.Random], tuple[str, str]]] = {
    "json": _json,
    "chat": _chat,
    "code": _code,
}


def templated_pairs(count: int, *, seed: int) -> list[tuple[str, str, str]]:
    """``count`` triples (domain, prompt, answer), domains in turn; the same for the same seed."""
    rng = random.Random(f"templates-{seed}")
    domains = list(DOMAINS)
    chosen = (domains[i % len(domains)] for i in range(count))
    return [(domain, *DOMAINS[domain](rng)) for domain in chosen]
