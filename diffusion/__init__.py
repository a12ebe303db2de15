"""Shared rooms of the suite; docs/dev/design.md says what each one owns and what it may import."""

__version__ = "0.2.0"
