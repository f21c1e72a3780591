"""Networks made smaller or faster."""
