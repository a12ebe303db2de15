"""What reads run folders: tables of them, calibration, robustness, reports and figures."""
