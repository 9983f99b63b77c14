"""The public headers: what crosses a boundary between two domains, and nothing else.

Goals: small enough to read in one sitting; every message says its caller, its
errors and its promise; a meaning never changes under a number.
Non-goals: convenience. Code that *does* something lives elsewhere.

Imports nothing of the project outside this package.
"""
