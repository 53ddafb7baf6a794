"""Values inside a graph, by tensor name: as ONNX Runtime computes them, and as PyTorch does.

The exporter names ONNX tensors after the operations of PyTorch's exported program, so most tensors
of a graph are known on both sides.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import fx, nn

from refsam_export.onnx.export import onnx_program
from refsam_trt.contract.specs import GraphSpec
from refsam_trt.errors import MissingExtraError

_DATA_FOLDER = "session.model_external_initializers_file_folder_path"


@dataclass(frozen=True)
class Polygraphy:
    """The two modules of Polygraphy that mark and run ONNX graphs."""

    onnx: Any
    onnxrt: Any

    @classmethod
    def load(cls) -> Polygraphy:
        """Import them.

        Raises:
            MissingExtraError: Polygraphy is not installed.
        """
        try:
            modules = [
                importlib.import_module(f"polygraphy.backend.{n}") for n in ("onnx", "onnxrt")
            ]
        except ImportError as error:
            raise MissingExtraError("dev", "parity --bisect", str(error)) from error
        return cls(*modules)


@dataclass(frozen=True)
class Sources:
    """What a tensor is computed from: known tensors, graph inputs; and the nodes that do it.

    Each list is in topological order; the last node makes the tensor.
    """

    tensors: list[str]
    inputs: list[str]
    nodes: list[Any]


class OnnxGraph:
    """The nodes of an ONNX file, and the values of any of its tensors.

    Weights are read by ONNX Runtime alone, from where they lie.
    """

    def __init__(self, path: Path, polygraphy: Polygraphy) -> None:
        self._model = onnx.load(path, load_external_data=False)
        self._folder = path.parent
        self._polygraphy = polygraphy
        graph = self._model.graph
        self.inputs = [value.name for value in graph.input]
        self.outputs = [value.name for value in graph.output]
        self.weights = frozenset(tensor.name for tensor in graph.initializer)
        self.nodes = list(graph.node)
        self.producers = {
            name: index for index, node in enumerate(self.nodes) for name in node.output if name
        }
        """Tensor -> index of the node that makes it, in topological order like the nodes."""

    def values(
        self, names: Sequence[str], inputs: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Run the graph with `names` marked as its outputs, and return those."""
        marked = self._polygraphy.onnx.modify_outputs(self._model, outputs=list(names), copy=True)
        onnxruntime: Any = importlib.import_module("onnxruntime")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry(_DATA_FOLDER, str(self._folder))
        session = onnxruntime.InferenceSession(
            marked.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        with self._polygraphy.onnxrt.OnnxrtRunner(session) as runner:
            return dict(runner.infer(dict(inputs)))

    def ancestors(self, tensor: str) -> list[str]:
        """Return the tensors that nodes make and `tensor` depends on, in topological order."""
        ancestors: set[str] = set()
        waiting = [tensor]
        while waiting:
            for name in self.nodes[self.producers[waiting.pop()]].input:
                if name in self.producers and name not in ancestors:
                    ancestors.add(name)
                    waiting.append(name)
        return [name for name in self.producers if name in ancestors]

    def sources(self, tensor: str, is_known: Callable[[str], bool]) -> Sources:
        """Return what `tensor` is computed from, going back to the nearest known tensors."""
        passed: set[int] = set()
        reached: set[str] = set()
        waiting = [tensor]
        while waiting:
            index = self.producers[waiting.pop()]
            if index in passed:
                continue
            passed.add(index)
            for name in self.nodes[index].input:
                is_inner = name in self.producers and not is_known(name)
                (waiting.append if is_inner else reached.add)(name)
        return Sources(
            [name for name in self.producers if name in reached],
            [name for name in self.inputs if name in reached],
            [self.nodes[index] for index in sorted(passed)],
        )


class TorchProgram:
    """PyTorch's exported program of a graph, run operation by operation."""

    def __init__(self, module: nn.Module, spec: GraphSpec, limits: Mapping[str, int]) -> None:
        program = onnx_program(module, spec, limits, optimize=False).exported_program
        nodes = [node for node in program.graph.nodes if node.op == "call_function"]
        self._inputs = [tensor.name for tensor in spec.inputs]
        self._module = program.module()
        outputs = program.graph_signature.user_outputs
        # The ONNX graph calls its outputs by their names in the contract.
        self._nodes = {node.name: node.name for node in nodes}
        self._nodes |= {t.name: node for t, node in zip(spec.outputs, outputs, strict=True)}
        self._paths = {node.name: _module_path(node) for node in nodes}

    def knows(self, name: str) -> bool:
        """Whether a tensor of the ONNX graph is known here."""
        return name in self._nodes

    def module_path(self, name: str) -> str | None:
        """Return the module of the model that computes a tensor; None if it is the graph itself."""
        return self._paths[self._nodes[name]]

    def values(
        self, names: Iterable[str], inputs: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Run the program and return the values of `names`."""
        recorder = _Recorder(self._module, {self._nodes[name] for name in names})
        with torch.no_grad():
            recorder.run(*(torch.from_numpy(inputs[name]) for name in self._inputs))
        return {name: np.asarray(recorder.values[self._nodes[name]]) for name in names}


class _Recorder(fx.Interpreter):
    """Keeps the values of some nodes; the interpreter frees all others after their last use."""

    def __init__(self, module: fx.GraphModule, names: set[str]) -> None:
        super().__init__(module)
        self._names = names
        self.values: dict[str, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name in self._names:
            self.values[n.name] = value
        return value


def _module_path(node: fx.Node) -> str | None:
    """Return the innermost module of the exporter's note; "" and made-up names are none."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    path = stack[-1][0] if stack else ""
    return None if not path or path.startswith("_") else str(path)
