"""Steps of `make prove` about quantised graphs: speed on this CPU, plans of TensorRT-RTX.

Random weights.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from refsam_prove import Step
from refsam_prove.exports import say
from refsam_prove.quantised.trial import adapter_speed, encoder_speed, rtx_plan
from refsam_trt.backends import cpu
from refsam_trt.command.in_process import in_process

NUM_THREADS = 2
VITB_SPEEDUP = 1.5
"""Of the int8 image encoder over the best fp32 form, on a CPU with VNNI."""
PLANS = ("int8-fp16", "fp8-fp16")


def speed(preset: str, num_rounds: int, min_speedup: float | None = None) -> dict[str, Any]:
    """Image encoder in int8 against fp32, in turn; the verdict of the speed gate is reported.

    `failures`: less than `min_speedup`. Skipped, with the reason, where the CPU has no VNNI.
    """
    if not has_vnni():
        reason = "this CPU has no VNNI, so integer products are not what they are made for"
        say(f"skipped: {reason}")
        return {"preset": preset, "skipped": reason}
    figures = in_process(encoder_speed, preset, num_rounds, NUM_THREADS)
    say(figures["gate"]["verdict"])
    return {**figures, "failures": speed_failures(figures, min_speedup)}


def speed_failures(figures: dict[str, Any], min_speedup: float | None) -> list[str]:
    """Return what is out of bounds."""
    gate = figures["gate"]
    if min_speedup is None or gate["speedup"]["p50"] >= min_speedup:
        return []
    return [
        f"{figures['preset']}: {gate['quantised']} is {gate['speedup']['p50']:.2f} times as fast "
        f"as {gate['next_best']}, at least {min_speedup} expected"
    ]


def adapters(preset: str, num_rounds: int) -> dict[str, Any]:
    """Image encoder in int8 with and without its adapters, in turn: whether they pay."""
    if not has_vnni():
        return {"preset": preset, "skipped": "this CPU has no VNNI"}
    figures = in_process(adapter_speed, preset, num_rounds, NUM_THREADS)
    say(f"with adapters in int8 {figures['speedup']['p50']:.2f} times as fast")
    return {**figures, "failures": []}


def plans(preset: str) -> dict[str, Any]:
    """Build the quantised image encoder for TensorRT-RTX (`failures`: what was not quantised)."""
    built = {precision: in_process(rtx_plan, preset, precision) for precision in PLANS}
    failures = [line for plan in built.values() for line in plan_failures(plan)]
    return {"preset": preset, "random_weights": True, "plans": built, "failures": failures}


def plan_failures(plan: dict[str, Any]) -> list[str]:
    """Return what does not hold of a plan: layers quantised, attention fused, no warnings."""
    graph, where = plan["graph"], f"{plan['preset']}, {plan['precision']}"
    lines = [f"{where}: {warning}" for warning in graph["precision_warnings"]]
    quantised = sum(graph["layers"].get("QUANTIZE", {}).values())
    if quantised != plan["num_layers"]:
        lines.append(f"{where}: {quantised} layers quantised, {plan['num_layers']} expected")
    if graph["num_fused_attention"] != graph["num_attention"]:
        lines.append(
            f"{where}: fused attention in {graph['num_fused_attention']} of "
            f"{graph['num_attention']} blocks"
        )
    return lines


def has_vnni() -> bool:
    """Say whether the CPU multiplies 8-bit integers four at a time, as far as Linux tells."""
    return not {"avx512_vnni", "avx_vnni"}.isdisjoint(cpu.features())


STEPS: dict[str, Step] = {
    "int8-speed-nano": partial(speed, "nano", 60),
    "int8-speed-vitb": partial(speed, "vitb", 8, VITB_SPEEDUP),
    "int8-adapters-vitb": partial(adapters, "vitb", 8),
    "int8-plans-nano": partial(plans, "nano"),
    "int8-plans-vitb": partial(plans, "vitb"),
}
