"""Runs an application as one process or several: ports, workers, draining, the operations port."""
