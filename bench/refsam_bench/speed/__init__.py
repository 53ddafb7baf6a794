"""Latency, throughput and memory, old and new interleaved."""
