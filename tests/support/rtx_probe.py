"""Whether TensorRT-RTX is installed: it is in CI, which installs the extra `dev`."""

import pytest

from refsam_trt.backends.tensorrt.flavour import open_flavour
from refsam_trt.errors import RefsamError


def _is_installed() -> bool:
    try:
        open_flavour("tensorrt-rtx")
    except RefsamError:
        return False
    return True


needs_rtx = pytest.mark.skipif(not _is_installed(), reason="TensorRT-RTX is not installed here")
