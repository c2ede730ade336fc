"""What SGLang loads by its entry-point group ``sglang.srt.plugins``: ``register``.

Owns the moments at which things are added and refused. SGLang logs and swallows what a plugin
raises, and loads plugins in every process and before it reads a command; so ``register`` only
leaves hooks on the server's arguments, and everything else happens once these ask for DSPARK: the
``worker`` is made known where SGLang has none, and where it has one, ``steer`` hooks it. A server
that does not ask is left alone, whatever its version. Imports nothing but the standard
library before it is called: an import that fails would be swallowed too.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import logging
import os
import pkgutil
import sys
from collections.abc import Callable, Sequence
from typing import Any

SERVER_ARGS = "sglang.srt.server_args.ServerArgs"
ARGUMENT_STAGE = "sglang.srt.arg_groups.speculative_hook.handle_speculative_decoding"
ACTIVE = "SPECULATIVE_DSPARK_ACTIVE"
"""Environment variable by which the launching process tells its children that DSPARK was asked."""
REQUEST_LOG = "SPECULATIVE_DSPARK_REQUEST_LOG"
"""Environment variable of the flag that records requests, with or without speculation."""


class StartRefused(ValueError):
    """The server cannot start as it was asked to; the text says why and what to do."""


def register() -> None:
    """Leave the hooks. ``SystemExit`` when that fails and the command asks for DSPARK."""
    try:
        _register()
    except Exception as error:
        if _on_command_line(sys.argv) or os.environ.get(ACTIVE):
            raise SystemExit(_line(error)) from error
        logging.getLogger(__name__).warning("DSPARK is not available: %s", error)


def _line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return f"sglang-dspark: {' '.join(text.split())}"


def _on_command_line(arguments: Sequence[str]) -> bool:
    """Whether a command names DSPARK; configuration files are not looked into."""
    words = " ".join(arguments).replace("=", " ").upper().split()
    return any(pair == ("--SPECULATIVE-ALGORITHM", "DSPARK") for pair in itertools.pairwise(words))


def _register() -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType
    from sglang.srt.server_args import ServerArgs

    # From 0.5.20 on the arguments are a record whose construction no hook reaches.
    first = "resolve_once" if hasattr(ServerArgs, "resolve_once") else "__post_init__"
    hooks: tuple[tuple[str, Callable[..., Any], Any], ...] = (
        ("add_cli_args", _add_flags, HookType.AFTER),
        ("from_cli_args", _read_flags, HookType.AROUND),
        (first, _before_arguments, HookType.BEFORE),
        ("check_server_args", _before_launch, HookType.BEFORE),
    )
    for method, _, _ in hooks:
        pkgutil.resolve_name(f"{SERVER_ARGS}.{method}")
    for method, hook, kind in hooks:
        HookRegistry.register(f"{SERVER_ARGS}.{method}", hook, kind)
    if os.environ.get(REQUEST_LOG):  # a child: the parent's flag is a variable by now
        from sglang_dspark.runtime import request_log

        request_log.register_times()
    if os.environ.get(ACTIVE):  # a child: its arguments come ready-made
        _install()
        _require_targets()


def _add_flags(_: None, parser: Any, *args: Any, **kwargs: Any) -> None:
    from sglang_dspark.runtime import settings

    settings.add_flags(parser)


def _read_flags(original: Callable[..., Any], cls: type, arguments: Any) -> Any:
    """Carry the flags into the environment, and turn refusals into one line and exit status 1."""
    from sglang_dspark.runtime import settings

    settings.carry(arguments, os.environ)
    try:
        server_args = original(cls, arguments)
        if hasattr(cls, "resolve_once"):  # called later, where a refusal would print a traceback
            _before_arguments(server_args)
        return server_args
    except StartRefused as refusal:
        raise SystemExit(_line(refusal)) from None


def _before_arguments(server_args: Any, *args: Any, **kwargs: Any) -> None:
    """The first moment at which it is known whether DSPARK is asked for."""
    if str(server_args.speculative_algorithm or "").upper() != "DSPARK":
        os.environ.pop(ACTIVE, None)
        return
    try:
        if _lane() == "steer":
            from sglang_dspark.runtime.steer import targets

            targets.check()
            from sglang_dspark.runtime.steer import hooks

            hooks.prepare(server_args)
        else:
            _check(server_args)
        _set_up()
    except ValueError as error:
        raise StartRefused(str(error)) from None
    except Exception as error:
        raise StartRefused(
            f"DSPARK could not be set up ({type(error).__name__}: {error}); reinstall sglang and "
            "sglang-dspark"
        ) from error
    os.environ[ACTIVE] = "1"


def _before_launch(server_args: Any, *args: Any, **kwargs: Any) -> None:
    """SGLang calls this where it takes requests, also with arguments that came ready-made."""
    _record_requests(server_args)
    if str(server_args.speculative_algorithm or "").upper() == "DSPARK":
        _set_up()
        os.environ[ACTIVE] = "1"


def _record_requests(server_args: Any) -> None:
    """Hook the logs that were asked for; ``SystemExit`` when a request log cannot be had."""
    from sglang_dspark.runtime.settings import Settings

    try:
        settings = Settings.from_environment()
        if settings.step_log is None and settings.request_log is None:
            return
        from sglang_dspark.files import make_folder
        from sglang_dspark.runtime import request_log

        if settings.request_log is not None:
            request_log.check(server_args)
            make_folder(settings.request_log)
        request_log.register(settings)
        _apply()
    except ValueError as error:
        raise SystemExit(_line(error)) from None


def _set_up() -> None:
    """Everything that a process which reads the command or takes the requests needs."""
    _install()
    if _lane() == "worker":
        _install_requests()
    _apply()


def _lane() -> str:
    """``worker`` or ``steer``; ``ValueError`` for a release that neither serves."""
    from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

    from sglang_dspark.runtime import versions

    built_in = "DSPARK" in SpeculativeAlgorithm.__members__
    return versions.lane(importlib.metadata.version("sglang"), built_in=built_in)


def _install() -> None:
    """Make DSPARK known to this process, or hook SGLang's own; once."""
    if _lane() == "steer":
        from sglang_dspark.runtime.steer import hooks

        hooks.register()
        return
    from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

    from sglang_dspark.runtime.worker import algorithm

    try:
        SpeculativeAlgorithm.from_string("DSPARK")
    except ValueError:
        algorithm.register()


def _install_requests() -> None:
    """What the scheduler's processes do without: the arguments' last checks, the refusals."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    from sglang_dspark.runtime import refusals

    if ARGUMENT_STAGE not in _ours():
        HookRegistry.register(ARGUMENT_STAGE, _argument_stage, HookType.AROUND)
        refusals.register()


def _is_ours(value: object) -> bool:
    return str(getattr(value, "__module__", "")).startswith("sglang_dspark.")


def _ours() -> list[str]:
    """Targets on which this project has left hooks."""
    from sglang.srt.plugins.hook_registry import HookRegistry

    return [
        target
        for target, hooks in HookRegistry._hooks.items()
        if any(_is_ours(hook) for _, hook, _ in hooks)
    ]


def _require_targets() -> None:
    """``ValueError`` when SGLang lacks what a hook is for: the registry would only log it."""
    for target in _ours():
        try:
            pkgutil.resolve_name(target)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"SGLang has no {target} ({error}); reinstall sglang") from None


def _apply() -> None:
    """Apply hooks that came after SGLang applied those of its plugins.

    ``ValueError`` where another plugin's hook is already on a target: the registry skips such a
    target without a word, and what this project refuses would be served.
    """
    from sglang.srt.plugins.hook_registry import HookRegistry

    _require_targets()
    HookRegistry.apply_hooks()
    for target in _ours():
        if not _is_applied(target):
            raise ValueError(
                f"another plugin already holds {target}; set SGLANG_PLUGINS=dspark to load this "
                "one alone"
            )


def _is_applied(target: str) -> bool:
    """Whether one of this project's hooks is in the chain of wrappers on ``target``."""
    found = pkgutil.resolve_name(target)
    while found is not None:
        cells = getattr(found, "__closure__", None) or ()
        if any(_is_ours(cell.cell_contents) for cell in cells):
            return True
        found = getattr(found, "__wrapped__", None)
    return False


def _check(server_args: Any) -> None:
    """Everything that can be said before SGLang looks at the arguments itself."""
    from sglang_dspark.runtime import refusals
    from sglang_dspark.runtime.settings import Settings, check
    from sglang_dspark.runtime.worker import algorithm

    refusals.check_server_args(server_args)
    drafter = algorithm.drafter_config(server_args)
    check(
        Settings.from_environment(),
        gamma=drafter.gamma,
        has_confidence_head=drafter.enable_confidence_head,
        max_requests=server_args.max_running_requests or algorithm.MOST_REQUESTS,
    )


def _argument_stage(original: Callable[..., Any], server_args: Any) -> Any:
    """SGLang's own look at the speculative arguments, and what only then is known: the target."""
    from sglang_dspark.runtime import refusals
    from sglang_dspark.runtime.worker import algorithm

    if not refusals.asks(server_args):
        return original(server_args)
    try:
        answer = original(server_args)
        model_config = server_args.get_model_config()
        refusals.check_target(model_config)
        drafter = algorithm.drafter_config(server_args)
        refusals.check_drafter(drafter, model_config.hf_text_config)
    except (ValueError, OSError) as error:
        raise StartRefused(str(error)) from None
    return answer
