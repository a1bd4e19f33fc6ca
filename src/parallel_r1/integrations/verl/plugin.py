"""What verl loads from this package, by its entry-point group `verl.plugins`, whenever it is imported.

verl says nothing where a plug-in fails to load, so `check` does.
"""

from __future__ import annotations

from parallel_r1.errors import UserError
from parallel_r1.integrations.verl import check_version

check_version()

from parallel_r1.integrations.verl import engine  # noqa: E402


def check() -> None:
    """Check that verl has our engine.

    Raises:
        UserError: it has not.
    """
    from verl.workers.engine import EngineRegistry

    registered = EngineRegistry._engines["language_model"]["fsdp2"].values()
    if engine.ForkJoinEngine not in registered:
        raise UserError(
            "the engine of parallel_r1 in verl's registry",
            "none",
            "install parallel-r1 in the environment of verl, and leave VERL_USE_EXTERNAL_PLUGINS unset",
        )
