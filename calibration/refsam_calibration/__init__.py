"""INT8 and FP8: ranges, quantised graphs and the accuracy gate."""
