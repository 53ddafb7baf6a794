"""A graph's exported program with a precision policy written into it.

Two forms of one rewrite: `typed_module` really computes in half and is what becomes an ONNX graph;
`rounded_module` computes in fp32 and rounds the same tensors to half, which tells on any machine
what half precision does to the results.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from refsam_export.onnx.export import example_inputs, is_variadic, quiet
from refsam_export.precision.policy import PrecisionPolicy, half_nodes, is_float, operator_name
from refsam_trt.contract.specs import GraphSpec

VIEWS = frozenset(
    (
        "_unsafe_view",
        "alias",
        "chunk",
        "clone",
        "expand",
        "getitem",
        "permute",
        "select",
        "slice",
        "split",
        "split_with_sizes",
        "squeeze",
        "t",
        "transpose",
        "unbind",
        "unsqueeze",
        "view",
    )
)
"""Operators that give values of their input and no others."""


def trace(module: nn.Module, spec: GraphSpec, limits: Mapping[str, int]) -> fx.GraphModule:
    """Return the fp32 program of a graph: flat inputs and outputs in the contract's order.

    Args:
        module: takes `spec.inputs` in order, returns `spec.outputs` in order.
        spec: the contract; its symbols become dynamic dims.
        limits: largest size of each symbol.
    """
    examples, shapes = example_inputs(spec, limits)
    with quiet(), torch.no_grad():
        program = torch.export.export(
            module,
            examples,
            dynamic_shapes=(shapes,) if is_variadic(module) else shapes,
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,  # as torch.onnx.export does
        )
        unlifted = program.module()
    graph = unlifted.graph
    for node in list(graph.nodes):
        # The exporter's own checks of sizes, and of types, which another precision has.
        if node.op == "call_module" or operator_name(node) == "_assert_tensor_metadata":
            graph.erase_node(node)
    # The exporter's own code packs and unpacks structures; plain code takes and returns tensors.
    graph.set_codegen(fx.graph.CodeGen())
    graph.eliminate_dead_code()
    flat = fx.GraphModule(unlifted, graph)
    _share_weights(flat, module)
    return flat


def typed_module(program: fx.GraphModule, policy: PrecisionPolicy) -> fx.GraphModule:
    """Return the program computing in the policy's types; weights that stay fp32 are shared."""

    def cast(x: fx.Node, dtype: torch.dtype) -> fx.Node:
        return x.graph.call_function(torch.ops.aten.to.dtype, (x, dtype))

    typed = _copy(program)
    half = half_nodes(typed.graph, policy)
    weights = _convert_weights(typed, half, lambda value: value.to(policy.dtype))
    _insert(typed.graph, half | weights, cast, policy.dtype, widen=True)
    return _done(typed)


def rounded_module(program: fx.GraphModule, policy: PrecisionPolicy) -> fx.GraphModule:
    """Return the program computing in fp32 with every half tensor rounded to half."""

    def round_node(x: fx.Node, dtype: torch.dtype) -> fx.Node:
        return x.graph.call_function(rounded, (x, dtype))

    rounding = _copy(program)
    half = half_nodes(rounding.graph, policy)
    weights = _convert_weights(rounding, half, lambda value: rounded(value, policy.dtype))
    _insert(rounding.graph, half | weights, round_node, policy.dtype, widen=False)
    for node in list(rounding.graph.nodes):
        if node.name in half and operator_name(node) not in VIEWS:
            with rounding.graph.inserting_after(node):
                after = round_node(node, policy.dtype)
            # The rounding node reads the node itself, or it would read its own result.
            node.replace_all_uses_with(
                after, delete_user_cb=lambda user, keep=after: user is not keep
            )
    return _done(rounding)


def rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return x with every value rounded to `dtype`; what does not fit becomes infinite."""
    return x.to(dtype).to(torch.float32)


def moved_program(program: fx.GraphModule, device: torch.device) -> fx.GraphModule:
    """Return a copy of a program on a device: weights, constants, and tensors that it makes."""

    def placed(argument: Any) -> Any:
        return device if isinstance(argument, torch.device) else argument

    moved = _copy(program)
    values = {
        str(node.target): weight(moved, node)
        for node in moved.graph.nodes
        if node.op == "get_attr" and isinstance(node.meta.get("val"), Tensor)
    }
    for target, value in values.items():
        _replace(moved, target, value.detach().to(device))
    for node in moved.graph.nodes:
        node.args = fx.node.map_aggregate(node.args, placed)
        node.kwargs = fx.node.map_aggregate(node.kwargs, placed)
    return _done(moved)


def weight(program: fx.GraphModule, node: fx.Node) -> Tensor:
    """Return the parameter or buffer that a `get_attr` node stands for."""
    parent, name = _holder(program, str(node.target))
    value: Tensor = getattr(parent, name)
    return value


def _share_weights(program: fx.GraphModule, module: nn.Module) -> None:
    """Replace the copies of weights that `torch.export` makes by the module's own."""
    own: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
    own.update(module.named_buffers(remove_duplicate=False))
    for node in program.graph.nodes:
        if node.op == "get_attr" and str(node.target) in own:
            _set(program, str(node.target), own[str(node.target)])


def _replace(program: fx.GraphModule, target: str, value: Tensor) -> None:
    """Set a new value, as a parameter where the old one is a parameter."""
    parent, name = _holder(program, target)
    is_parameter = name in parent._parameters
    _set(program, target, nn.Parameter(value, requires_grad=False) if is_parameter else value)


def _set(program: fx.GraphModule, target: str, value: Tensor) -> None:
    parent, name = _holder(program, target)
    delattr(parent, name)
    if isinstance(value, nn.Parameter):
        parent.register_parameter(name, value)
    else:
        parent.register_buffer(name, value)


def _copy(program: fx.GraphModule) -> fx.GraphModule:
    """Return a program with a graph and tables of weights of its own, the tensors shared."""
    graph = fx.Graph()
    output = graph.graph_copy(program.graph, {})
    graph.output(output)
    return fx.GraphModule(program, graph)


def _done(program: fx.GraphModule) -> fx.GraphModule:
    program.graph.lint()
    program.recompile()
    return program


def _convert_weights(
    program: fx.GraphModule, half: frozenset[str], convert: Callable[[Tensor], Tensor]
) -> frozenset[str]:
    """Convert the weights that only half nodes use; return the names of their nodes."""
    by_target: dict[str, list[fx.Node]] = {}
    for node in program.graph.nodes:
        if node.op == "get_attr" and is_float(node):
            by_target.setdefault(str(node.target), []).append(node)
    names: set[str] = set()
    for target, nodes in by_target.items():
        users = [user.name for node in nodes for user in node.users]
        if not half.issuperset(users):
            continue
        old = weight(program, nodes[0])
        _replace(program, target, convert(old.detach()))
        names.update(node.name for node in nodes)
    return frozenset(names)


def _holder(program: fx.GraphModule, target: str) -> tuple[nn.Module, str]:
    path, _, name = target.rpartition(".")
    return program.get_submodule(path), name


def _insert(
    graph: fx.Graph,
    half: frozenset[str],
    to: Callable[[fx.Node, torch.dtype], fx.Node],
    dtype: torch.dtype,
    *,
    widen: bool,
) -> None:
    """Put `to` where a float tensor enters half nodes and, if `widen`, where it leaves them."""
    conversions: dict[tuple[fx.Node, bool], fx.Node] = {}

    def converted(x: fx.Node, to_half: bool) -> fx.Node:
        # A value that several nodes read is converted once.
        if (x, to_half) not in conversions:
            with graph.inserting_after(_last_input(x)):
                conversions[x, to_half] = to(x, dtype if to_half else torch.float32)
        return conversions[x, to_half]

    for node in list(graph.nodes):
        is_half = node.name in half
        if node.op not in ("call_function", "output") or operator_name(node) == "getitem":
            continue
        if node.op == "call_function" and not is_float(node):
            continue
        for source in node.all_input_nodes:
            if is_float(source) and (source.name in half) != is_half and (is_half or widen):
                node.replace_input_with(source, converted(source, is_half))


def _last_input(node: fx.Node) -> fx.Node:
    """Return the node behind which a new one may stand: the last placeholder for placeholders."""
    if node.op != "placeholder":
        return node
    last: fx.Node = [other for other in node.graph.nodes if other.op == "placeholder"][-1]
    return last
