"""Number formats of weights, and rounding into them. numpy alone; no files, no models."""
