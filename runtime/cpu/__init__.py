"""CPU implementations of the zigpass ops."""
