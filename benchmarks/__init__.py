"""Benchmarks: ours beside a peer, in one run, as ratios. See RESULTS.md."""
