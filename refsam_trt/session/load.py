"""The way in: a bundle on disk, checked, becomes an engine on a backend."""

from __future__ import annotations

import logging
from pathlib import Path

from refsam_trt.backends.select import AUTO, open_backend, stored_precision
from refsam_trt.bundle.open import Bundle, Verify, open_bundle
from refsam_trt.bundle.plans import plans_for
from refsam_trt.bundle.shipped import bundle_folder
from refsam_trt.errors import UsageError
from refsam_trt.session.engine import Engine
from refsam_trt.session.fastest import auto_backend
from refsam_trt.session.variants import fitting_variants, only_variant
from refsam_trt.text.disk import TextCacheChoice, text_cache_folder
from refsam_trt.text.encoder import TextMode

_LOG = logging.getLogger("refsam_trt")


def load(
    path: str | Path | Bundle,
    *,
    backend: str = AUTO,
    text: TextMode = "lazy",
    text_cache: TextCacheChoice = "off",
    variant: str | None = None,
    precision: str | None = None,
    plans: str | Path | None = None,
    num_threads: int | None = None,
    expect_id: str | None = None,
    verify: Verify = "full",
) -> Engine:
    """Load a bundle. Close the engine, or use it in a `with`; its files must stay until then.

    Args:
        path: the bundle's folder; the string `nano` is the model that ships with the package. Or
            what `open_bundle` returned: nothing of it is checked a second time.
        backend: a name, or `auto`: ONNX Runtime on the CPU, or OpenVINO where it is installed and
            was measured to be faster (docs/deploy/cpu.md). A named one never falls back.
        text: `lazy` loads the text encoder at the first unknown expression and releases it at the
            next step; `resident` loads it now and keeps it; `cache-only` never loads it.
        text_cache: where text embeddings are kept for the next run, at most 256 MiB of them: `off`
            keeps none; `user` takes the user's cache folder; a Path is such a folder itself, which
            nobody else should be able to write to. Each holds the expression in plain text.
        variant: name of one set of graphs; None chooses by precision, and among forms of attention
            the one that suits the backend.
        precision: `fp32`, `fp16`, `bf16`, `int8` or `fp8`; None takes what the bundle has if that
            is one, or fp32. `bf16` on `openvino-cpu` computes the fp32 variant in bf16.
        plans: folder of `refsam-build`, whose plans run instead of the graphs, on their backend.
        num_threads: CPU threads inside one graph run, which GPUs refuse; None is the backend's
            default.
        expect_id: refuse every bundle but this one.
        verify: `full` checks every file now; `deferred` checks the graphs that are to run, and
            hashes each file when it is first used.

    Raises:
        BundleError: incomplete, altered, not the expected one, or of an unknown family.
        BackendError: no such backend, or it cannot load the graphs; `DeviceMemoryError` where the
            GPU has no room.
        PlanError: plans that are damaged, of another bundle, or not for this machine.
        MissingExtraError: the backend's library is not installed.
        UsageError: an unknown variant, precision or option, a text cache that can have no folder,
            or a name that stands for two bundles.
    """
    if num_threads is not None and num_threads < 1:
        raise UsageError(f"num_threads={num_threads}: at least 1 is needed, or None")
    embeddings = text_cache_folder(text_cache)
    bundle = _opened(path, expect_id, verify)
    plan_folder = None if plans is None else plans_for(bundle, Path(plans), variant)
    asked_for = plan_folder.manifest.variant if plan_folder else variant
    stored = stored_precision(backend, precision)
    arithmetic = None if stored == precision else precision
    fitting = fitting_variants(bundle.manifest, asked_for, stored)
    stored = bundle.manifest.variants[fitting[0]].precision
    if backend == AUTO and plan_folder is None:
        backend = auto_backend(bundle, only_variant(bundle.manifest, fitting, AUTO), num_threads)
    runs_on = open_backend(backend, num_threads, plan_folder, stored, arithmetic)
    try:
        name = only_variant(bundle.manifest, fitting, runs_on.name)
        engine = Engine(bundle, name, runs_on, text, embeddings, plan_folder, arithmetic)
    except BaseException:
        runs_on.close()
        raise
    if engine.is_random_init:
        seed = bundle.manifest.weights.random_init_seed
        _LOG.warning("%s: weights are random (seed %s): masks mean nothing", bundle.folder, seed)
    return engine


def _opened(path: str | Path | Bundle, expect_id: str | None, verify: Verify) -> Bundle:
    if not isinstance(path, Bundle):
        return open_bundle(bundle_folder(path), expect_id=expect_id, verify=verify)
    path.check_is(expect_id)
    if verify == "full":
        path.verify()
    return path
