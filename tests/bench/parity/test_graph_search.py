"""The search inside a graph against looking at every tensor, on random graphs with one fault."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from refsam_bench.parity.graph_search import GraphSearch, tensor_error
from refsam_bench.parity.graph_values import OnnxGraph, Polygraphy
from refsam_export.parity.figures import NOT_FINITE

WIDTH, NUM_NODES, TOLERANCE = 6, 70, 1e-4
INPUTS = {"x": np.linspace(-1.0, 1.0, WIDTH, dtype=np.float32)}


class RandomGraph:
    """Add and Max of earlier tensors and of weights; Max swallows many errors."""

    def __init__(self, seed: int, folder: Path) -> None:
        rng = np.random.default_rng(seed)
        names = ["x", *(f"t{i}" for i in range(NUM_NODES))]
        self.weights = {f"w{i}": rng.normal(size=WIDTH).astype("f") for i in range(NUM_NODES)}
        self.nodes = []
        for i in range(NUM_NODES):
            read = [names[j] for j in rng.integers(max(0, i - 6), i + 1, 2)]
            read[1] = f"w{i}" if rng.random() < 0.5 else read[1]
            self.nodes.append(("Add" if rng.random() < 0.8 else "Max", read, f"t{i}"))
        self.known = {f"t{i}" for i in range(NUM_NODES) if rng.random() < 0.8}
        self.known.add(f"t{NUM_NODES - 1}")
        self.faulty = dict(self.weights)
        used = [w for _, read, _ in self.nodes[: NUM_NODES // 2] for w in read if w in self.weights]
        damaged = str(rng.choice(used))
        self.faulty[damaged] = self.weights[damaged] + rng.normal(size=WIDTH).astype("f")
        self.path = folder / "graph.onnx"
        self._save()

    def _save(self) -> None:
        tensor = helper.make_tensor_value_info
        graph = helper.make_graph(
            [helper.make_node(op, read, [name]) for op, read, name in self.nodes],
            "random",
            [tensor("x", TensorProto.FLOAT, [WIDTH])],
            [tensor(f"t{NUM_NODES - 1}", TensorProto.FLOAT, [WIDTH])],
            [numpy_helper.from_array(value, name) for name, value in self.faulty.items()],
        )
        opset = [helper.make_opsetid("", 20)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=10)
        onnx.save_model(
            model, self.path, save_as_external_data=True, location="data", size_threshold=0
        )

    def run(self, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        values = {**INPUTS, **weights}
        for op, read, name in self.nodes:
            a, b = (values[r] for r in read)
            values[name] = a + b if op == "Add" else np.maximum(a, b)
        return values

    # What `GraphSearch` asks of a `TorchProgram`.
    def knows(self, name: str) -> bool:
        return name in self.known

    def module_path(self, name: str) -> None:
        return None

    def values(self, names: list[str], inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        values = self.run(self.weights)
        return {name: values[name] for name in names}

    def sources(self, tensor: str) -> set[str]:
        """Known tensors that `tensor` is computed from directly."""
        (read,) = (read for _, read, name in self.nodes if name == tensor)
        found = set()
        for name in read:
            if name.startswith("t"):
                found |= {name} if name in self.known else self.sources(name)
        return found

    def diverges(self) -> bool:
        last = f"t{NUM_NODES - 1}"
        return tensor_error(self.run(self.faulty)[last], self.run(self.weights)[last]) > TOLERANCE

    def origins(self) -> set[str]:
        """Known tensors that diverge although all they are computed from agrees: the slow way."""
        right, wrong = self.run(self.weights), self.run(self.faulty)
        bad = {n for n in self.known if tensor_error(wrong[n], right[n]) > TOLERANCE}
        return {name for name in bad if not self.sources(name) & bad}


@pytest.fixture(scope="module")
def polygraphy() -> Polygraphy:
    return Polygraphy.load()


@pytest.mark.parametrize("seed", range(20))
def test_what_is_found_diverges_and_its_sources_agree(seed, tmp_path, polygraphy):
    graph = RandomGraph(seed, tmp_path)
    lines: list[str] = []
    search = GraphSearch(OnnxGraph(graph.path, polygraphy), graph, INPUTS, TOLERANCE, lines.append)
    found = search.origin()
    right, wrong = graph.run(graph.weights), graph.run(graph.faulty)
    if not graph.diverges():
        assert found is None
        return
    assert found is not None
    assert found.tensor in graph.origins()
    assert found.relative_error == tensor_error(wrong[found.tensor], right[found.tensor])
    assert found.nodes[-1].tensor == found.tensor
    assert {n.tensor for n in found.nodes[:-1]}.isdisjoint(graph.known)
    (damaged,) = (n for n, v in graph.faulty.items() if not np.array_equal(v, graph.weights[n]))
    assert any(damaged in node.weights for node in found.nodes)
    assert len(lines) < 12


def test_most_random_graphs_diverge(tmp_path):
    # Otherwise the test above would say little.
    differing = 0
    for seed in range(20):
        graph = RandomGraph(seed, tmp_path)
        differing += graph.diverges()
    assert differing >= 12


def test_a_graph_that_agrees_has_no_origin(tmp_path, polygraphy):
    graph = RandomGraph(0, tmp_path)
    graph.weights = graph.faulty
    search = GraphSearch(OnnxGraph(graph.path, polygraphy), graph, INPUTS, TOLERANCE, print)
    assert search.origin() is None


class TestTensorError:
    def test_largest_difference_over_largest_value(self):
        expected = np.array([1.0, -4.0, 2.0], np.float32)
        found = np.array([1.0, -4.0, 2.5], np.float32)
        assert tensor_error(found, expected) == pytest.approx(0.125)

    def test_scores_of_masked_keys_hide_nothing(self):
        expected = np.array([[1.0, 2.0, -1e4], [0.5, -9999.0, -1e4]], np.float32)
        found = expected.copy()
        found[0, 0] += 0.02
        assert tensor_error(found, expected) == pytest.approx(0.01, rel=1e-4)

    def test_masked_scores_are_compared_too(self):
        expected = np.array([1.0, -1e4], np.float32)
        assert tensor_error(np.array([1.0, -9e3], np.float32), expected) == pytest.approx(0.1)

    def test_whole_numbers_and_truth_values(self):
        sizes = np.array([3, 4])
        assert tensor_error(sizes, sizes) == 0.0
        assert tensor_error(np.array([3, 5]), sizes) == 0.25
        assert tensor_error(np.array([True, False]), np.array([True, True])) == 1.0

    def test_another_shape_or_no_number(self):
        one = np.ones((2, 3), np.float32)
        assert tensor_error(one.T, one) == NOT_FINITE
        assert tensor_error(np.full_like(one, np.nan), one) == NOT_FINITE

    def test_nothing_to_compare(self):
        assert tensor_error(np.zeros((0, 3)), np.zeros((0, 3))) == 0.0
