"""Run folders, records, and the loop over images."""
