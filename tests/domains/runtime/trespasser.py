"""A role whose code imports what no role may see."""

import kernel.core  # noqa: F401
