"""Models that ship with this package: what `load("nano")` and `refsam-run nano ...` open.

Such a name means the shipped bundle; a folder is meant by a path, such as `./nano` or `Path`.
"""

from __future__ import annotations

from pathlib import Path

from refsam_trt.bundle.folder import MANIFEST_FILE
from refsam_trt.errors import BundleError, UsageError

SHIPPED = ("nano",)
MODELS = Path(__file__).parents[1] / "models"
"""Where shipped bundles lie, one folder each; an installation may have none."""


def shipped_folder(name: str) -> Path | None:
    """Return the folder of the bundle that ships under this name, None if there is none here."""
    folder = MODELS / name
    return folder if name in SHIPPED and (folder / MANIFEST_FILE).is_file() else None


def bundle_folder(bundle: str | Path) -> Path:
    """Return the folder that is meant by a path or by the name of a shipped model.

    Raises:
        UsageError: the name of a shipped model, and a bundle of that name lies here too.
        BundleError: the name of a model that this installation does not have, and no such path.
    """
    if isinstance(bundle, Path) or bundle not in SHIPPED:
        return Path(bundle)
    shipped, here = shipped_folder(bundle), Path(bundle)
    if shipped is not None and (here / MANIFEST_FILE).is_file():
        raise UsageError(
            f"{bundle}: the name of the model that ships with refsam-trt, and of a bundle here; "
            f"write ./{bundle} for the one here, or {shipped} for the shipped one"
        )
    if shipped is not None:
        return shipped
    if here.exists():
        return here
    raise BundleError(
        f"{bundle}: this installation of refsam-trt ships no such model; install a version that "
        "does, or make a bundle of random weights with "
        f"`refsam-export --backbone {bundle} --random-init 0 --output {bundle}`"
    )
