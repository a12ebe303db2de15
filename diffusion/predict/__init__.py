"""Pictures without labels: predictions and the page."""
