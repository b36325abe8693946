"""The compiled twins of zmqraft's hot modules; installed as ``zmqraft._speedups``.

Chosen in `zmqraft._accel` and nowhere else: use the modules that it chooses between, never these by name.
"""
