"""What each graph of a bundle is given, frame by frame, and what PyTorch makes of it.

The inputs are always the reference's own, so that an error in one graph shows in that graph alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from refsam_export.parity.inputs import joining, named_frames
from refsam_export.refsam.checkpoint import LoadedModel
from refsam_export.refsam.programs import Tensors, specs_of, split_graphs
from refsam_export.refsam.reference import ReferenceModel
from refsam_trt.contract.manifest import Manifest


@dataclass(frozen=True)
class GraphRun:
    """One run of one graph on the host: its inputs, and the outputs expected of it."""

    frame: int
    graph: str
    inputs: Mapping[str, np.ndarray]
    expected: Mapping[str, np.ndarray]


def reference_runs(
    loaded: LoadedModel, manifest: Manifest, variant: str, num_frames: int
) -> Iterator[GraphRun]:
    """Yield the runs of parity's chain in order; a frame is computed when it is asked for.

    Per frame the image encoder, the text encoder where an expression joins, the step for all
    expressions in one padded batch. The reference is in SAM's own attention, its step not split.

    Args:
        loaded: fp32.
        manifest: of the bundle made from it.
        variant: whose tensors are wanted.
        num_frames: length of the chain.
    """
    split: Any = manifest.variants[variant].split
    graphs, specs = manifest.variants[variant].graphs, specs_of(loaded.model, split)
    runs: list[GraphRun] = []

    def note(frame: int, graph: str, tensors: Tensors, outputs: Tensors) -> None:
        if graph in graphs:
            inputs = {t.name: tensors[t.name].numpy() for t in specs[graph].inputs}
            expected = {name: value.numpy() for name, value in outputs.items()}
            runs.append(GraphRun(frame, graph, inputs, expected))

    model = ReferenceModel.of(loaded, split_graphs(loaded.model, split), together=True)
    with model.open_video(observe=note) as video:
        for index, frame in enumerate(named_frames(num_frames)):
            for text in joining(index):
                video.add_expression(text)
            video.step(frame)
            yield from runs
            runs.clear()
