"""Running Suanli on one machine."""
