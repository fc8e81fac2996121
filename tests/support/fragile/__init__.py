"""The real workers, with named states in which a fault may strike them.

A file for every role: a process that stands in for a dead one imports what its role needs and no more.
"""
