"""Poly: skills shared by many tasks, and the routing between them."""
