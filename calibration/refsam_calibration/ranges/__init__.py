"""What the inputs of layers hold on clips: histograms, clipping, smoothing."""
