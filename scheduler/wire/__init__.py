"""The only place where protocol messages and domain values meet."""
