"""RefSAM at run time: one frame in, its masks out, a track token per expression."""
