"""Chaos: clusters of real processes under faults drawn from a seed, with clients whose histories are checked.

`schedule` draws the faults, `network` cuts the ways between processes, `cluster` starts and ends these, `faults` brings
the faults about, `client` is the program of the clients, `history` judges what they saw, `run` is one run, `command`
makes many.
"""
