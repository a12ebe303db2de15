"""What the trainings of the shipped models share; used by scripts/train_tiny.py and the scripts that draw the shipped sets."""
