"""The compiled counting over texts (native/src/text), where it is built; None where it is not.

Whoever uses it has a twin in numpy or from a library beside it that gives the same numbers, and takes that where `core`
is None: a source tree that was never built, or a platform without a wheel. Not for choosing between the two by hand.
"""

from types import ModuleType

core: ModuleType | None
try:
    from headwater.data import _text as core
except ImportError:
    core = None
if core is not None and not hasattr(core, "Bags"):
    core = None  # built from an older source tree
