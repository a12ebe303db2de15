"""What Python imports by itself when it starts with this folder on PYTHONPATH."""

import inside  # noqa: F401
