"""Parallel-R1 on an unmodified verl: forks drawn by its servers, scored in its engine, rewarded by our expressions.

`draw`, `structure`, `judge` and `config` know nothing of verl; `plugin`, `loop` and `engine` are what verl loads from
here; `stage` and `train` run the stages of a recipe with it. See docs/cluster.md.
"""

from __future__ import annotations

import importlib.metadata

from parallel_r1.errors import UserError

VERSIONS = ("0.9.1",)
"""The versions of verl that this plug-in was tested with. Interfaces of verl move between patch releases."""


def check_version() -> str:
    """The installed version of verl.

    Raises:
        UserError: verl is not installed, or in a version that this plug-in was not tested with.
    """
    expected = f"verl {' or '.join(VERSIONS)}"
    fix = f"pip install 'verl[vllm]=={VERSIONS[-1]}' in an environment of its own; see docs/cluster.md"
    try:
        version = importlib.metadata.version("verl")
    except importlib.metadata.PackageNotFoundError:
        raise UserError(expected, "no verl in this environment", fix) from None
    if version not in VERSIONS:
        raise UserError(expected, f"verl {version}, whose interfaces may differ", fix)
    return version
