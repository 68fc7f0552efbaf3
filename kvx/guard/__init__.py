"""KVGuard: per-token signals, catastrophe detectors, a hazard predictor and a controller.

Everything but `signals` is numpy on arrays: no torch, no Hydra, no file.
"""
