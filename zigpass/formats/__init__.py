"""Checkpoint formats: each file recovers codes and scales of one representation, without requantizing."""
