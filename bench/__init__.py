"""Measurements of zmqraft: ``python -m bench`` for whole clusters, ``pytest bench/bench_*.py`` for single modules.

Not part of the package: it runs from a checkout or from the source archive, with the tools of the extra ``test``. The
rule: clusters are black boxes, driven over the wire by programs that know nothing of zmqraft, so that every system is
measured with the same rod.
"""
