"""PyTorch on the GPU: the reference as it is in fp32, and the fastest it can be made in fp16.

Both do the work in the runtime's order, the image once per frame and all expressions in one step,
so that what is compared is the execution, not the order (`refsam-bench speed` compares that).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from refsam_bench.trackers.reference import Frames, Masks
from refsam_export.precision.policy import POLICIES
from refsam_export.precision.typed_program import moved_program, typed_module
from refsam_export.refsam.checkpoint import LoadedModel
from refsam_export.refsam.graphs import build_graphs
from refsam_export.refsam.programs import GraphChain, specs_of, trace_graphs
from refsam_export.refsam.rewrites import DEFAULT_REWRITES
from refsam_trt.contract.refsam import DECODER_STEP, IMAGE_ENCODER, TEXT_ENCODER
from refsam_trt.image.postprocess import Postprocessor, mask_from_logits
from refsam_trt.image.preprocess import Preprocessor

EAGER, COMPILED = "pytorch-fp32-eager", "pytorch-fp16-compiled"
COMPILE_MODE = "reduce-overhead"
"""With CUDA graphs, as the plans have them."""
_INDUCTOR = "inductor"


@dataclass(frozen=True)
class TorchGraphs:
    """Three graphs of PyTorch on a device, and what belongs to their inputs and outputs.

    `has_captures`: they run as CUDA graphs, which write over the outputs of the frame before.
    """

    name: str
    chain: GraphChain
    loaded: LoadedModel
    device: torch.device
    has_captures: bool = False


def torch_device() -> torch.device:
    """Return the first GPU, with products in full fp32: TF32 would be another precision."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda", 0)


def eager_graphs(loaded: LoadedModel, device: torch.device) -> TorchGraphs:
    """Return the reference: SAM's own attention, fp32, operator by operator."""
    model = loaded.model.to(device)
    modules = build_graphs(model, "baseline", "reference")
    programs = {name: module.to(device) for name, module in modules.items()}
    chain = GraphChain(programs, specs_of(model, "baseline"))
    return TorchGraphs(EAGER, chain, loaded, device)


def compiled_graphs(
    loaded: LoadedModel, device: torch.device, backend: str = _INDUCTOR
) -> TorchGraphs:
    """Return our graphs with our fp16 policy, flash attention, compiled by `torch.compile`.

    The text encoder is fp32 and not compiled: it runs once per expression.

    Args:
        loaded: fp32, on the CPU.
        device: where they are to run.
        backend: of `torch.compile`.
    """
    policy, split = POLICIES["fp16"], "optimised"
    traced = trace_graphs(loaded.model, "optimised", "sdpa", DEFAULT_REWRITES)
    specs = specs_of(loaded.model, split)  # type: ignore[arg-type]
    programs: dict[str, Any] = {}
    for name, program in traced.items():
        is_half = name in policy.graphs
        typed = typed_module(program, policy) if is_half else program
        moved: fx.GraphModule = moved_program(typed, device)
        programs[name] = _compiled(moved, backend) if is_half else moved
    return TorchGraphs(COMPILED, GraphChain(programs, specs), loaded, device, backend == _INDUCTOR)


def _compiled(program: fx.GraphModule, backend: str) -> Callable[..., Any]:
    mode = COMPILE_MODE if backend == _INDUCTOR else None
    found: Callable[..., Any] = torch.compile(program, backend=backend, mode=mode, dynamic=False)
    return found


class TorchSession:
    """Some expressions in one video: as `Session`, but all of them from the first frame on."""

    def __init__(
        self, graphs: TorchGraphs, texts: Sequence[str], frame_hw: tuple[int, int]
    ) -> None:
        self.name = graphs.name
        self._graphs, config = graphs, graphs.loaded.model.config
        self._preprocessor = Preprocessor(frame_hw, config.preprocess)
        low_res_hw = (4 * config.grid_size,) * 2
        self._postprocessor = Postprocessor(self._preprocessor.geometry, low_res_hw)
        self._text = self._embedded(texts)
        self._token = torch.zeros(len(texts), self._text["sentence"].shape[-1]).to(graphs.device)
        self._has_track = torch.zeros(len(texts), dtype=torch.bool).to(graphs.device)

    def step(self, frame: NDArray[np.uint8]) -> Masks:
        """Return the masks, bool [H, W], of the next frame."""
        return [mask_from_logits(self._postprocessor.logits(one)) for one in self.logits(frame)]

    def logits(self, frame: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the logits of the next frame, float32 [B, 4h, 4w], on the host."""
        chain, device = self._graphs.chain, self._graphs.device
        if self._graphs.has_captures:
            torch.compiler.cudagraph_mark_step_begin()
        image = torch.from_numpy(self._preprocessor(frame)).to(device)
        state = {"track_token": self._token, "has_track": self._has_track}
        encoded = chain.run(IMAGE_ENCODER, {"image": image})
        out = chain.run(DECODER_STEP, {**encoded, **self._text, **state})
        logits: NDArray[np.float32] = out["low_res_logits"][:, 0].float().cpu().numpy()
        self._token = out["next_track_token"].clone()
        self._has_track = torch.ones_like(self._has_track)
        return logits

    def close(self) -> None:
        """Nothing to give back: memory goes with the last reference."""

    def _embedded(self, texts: Sequence[str]) -> dict[str, Tensor]:
        loaded = self._graphs.loaded
        rows = [loaded.tokenizer.encode(loaded.model.config.cleaned(text)).ids for text in texts]
        longest = max(map(len, rows))
        ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        given = {"input_ids": ids, "attention_mask": mask}
        given = {name: value.to(self._graphs.device) for name, value in given.items()}
        embedded = self._graphs.chain.run(TEXT_ENCODER, given)
        return {**embedded, "word_mask": given["attention_mask"] > 0}


class TorchTracker:
    """PyTorch on a device as a tracker, for scoring."""

    def __init__(self, graphs: TorchGraphs) -> None:
        self._graphs = graphs

    def track(self, frames: Frames, texts: Sequence[str], memory: str = "kept") -> Iterator[Masks]:
        """Yield the masks of every frame; memory is always kept."""
        session: TorchSession | None = None
        for frame in frames:
            session = session or TorchSession(self._graphs, texts, frame.shape[:2])
            yield session.step(frame)
