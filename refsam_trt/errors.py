"""Exceptions of every package of this project.

What a user or a file can cause derives from `RefsamError`: its text names what was wrong, what was
found, what was expected and what to do. `InternalError` is a broken promise of our own code and has
its own root, so that `except RefsamError` never hides a bug.

    Exception
        RefsamError                     exit code 2
            UsageError
            MissingExtraError
            BundleError
            CheckpointError
            ExpressionError
            VideoError
                StreamLostError
            BackendError
                DeviceMemoryError
            PlanError
                PlanBuildError
                PlanDamagedError
                PlanVersionError
                PlanDeviceError
                PlanMemoryError
                PlanMismatchError       exit code 1
            StateError
            OutputError
            DatasetError
            ParityError                 exit code 1
            CalibrationError
                AccuracyGateError       exit code 1
        InternalError

`refsam_trt` itself has those that its own functions raise; commands raise the others.
"""

from __future__ import annotations

from pathlib import Path


class RefsamError(Exception):
    """Anything that a user, a file or a machine can cause; commands end with its `exit_code`.

    Args:
        problem: the text, without the path where there is one.
        path: the file or folder that it is about; stands before the problem.
    """

    exit_code = 2

    def __init__(self, problem: str = "", path: Path | None = None) -> None:
        super().__init__(problem if path is None else f"{path}: {problem}")
        self.problem, self.path = problem, path

    def moved(self, folder: Path, target: Path) -> RefsamError:
        """Return the error as it reads when what lies in `folder` is said to lie in `target`."""
        if self.path is None or not self.path.is_relative_to(folder):
            return self
        return type(self)(self.problem, target / self.path.relative_to(folder))


class UsageError(RefsamError):
    """A request that cannot be met: wrong option, wrong argument, wrong order of calls."""


class MissingExtraError(RefsamError):
    """An optional dependency is not installed; the text holds the exact `pip install` line."""

    def __init__(self, extra: str, needed_for: str, cause: str) -> None:
        remedy = f'pip install "refsam-trt[{extra}]"'
        super().__init__(f"{needed_for} needs an optional dependency: {remedy} ({cause})")
        self.extra = extra
        self._arguments = extra, needed_for, cause

    def __reduce__(self) -> tuple[type[MissingExtraError], tuple[str, str, str]]:
        """Pickle it by its arguments, which its text alone does not tell."""
        return type(self), self._arguments


class BundleError(RefsamError):
    """A bundle that is incomplete, altered, of an unknown schema, or points out of its folder."""


class CheckpointError(RefsamError):
    """Weights that cannot be read, do not fit the preset, or are not safe to unpickle."""


class ExpressionError(RefsamError):
    """A referring expression that is empty, too long or unknown to this bundle."""


class VideoError(RefsamError):
    """A video, an image folder or a frame that cannot be used."""


class StreamLostError(VideoError):
    """A camera or stream that failed after it had given frames; what was done stays valid."""


class BackendError(RefsamError):
    """A backend that is not available here, or that failed to load or run a graph."""


class DeviceMemoryError(BackendError):
    """The GPU has no room for what was asked for."""


class PlanError(RefsamError):
    """Plans of `refsam-build` that cannot be made or used; its subclasses tell what is wrong."""


class PlanBuildError(PlanError):
    """TensorRT refused a graph, or the graph is not of the precision that its bundle states."""


class PlanDamagedError(PlanError):
    """A folder of plans that is incomplete or altered, or of another bundle."""


class PlanVersionError(PlanError):
    """Plans that another TensorRT, another version of it, or another system has to run."""


class PlanDeviceError(PlanError):
    """Plans that were built for another GPU."""


class PlanMemoryError(PlanError):
    """Plans that need more GPU memory than is free."""


class PlanMismatchError(PlanError):
    """A plan that computes something else than the graph it was built from."""

    exit_code = 1


class StateError(RefsamError):
    """A saved session state that does not belong here."""


class OutputError(RefsamError):
    """A result that could not be written: no space, no permission, or something in the way."""


class DatasetError(RefsamError):
    """A data set folder or an annotation that is missing, misnamed or contradictory."""


class ParityError(RefsamError):
    """A check against the PyTorch reference that was asked for and failed."""

    exit_code = 1


class CalibrationError(RefsamError):
    """Clips, activations or ranges that a quantised bundle cannot be made from."""


class AccuracyGateError(CalibrationError):
    """Quantisation that would lose more accuracy than was allowed."""

    exit_code = 1


class InternalError(Exception):
    """An invariant of our own code does not hold: always a bug, never the user's doing."""


def shown(expression: str) -> str:
    """Return an expression as error texts have it: quoted, its end left out where it is long."""
    shortened = expression if len(expression) <= 40 else f"{expression[:40]}..."
    return repr(shortened)
