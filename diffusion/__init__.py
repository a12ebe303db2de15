"""Shared rooms of the suite; docs/design.md says what each one owns and what it may import."""
