"""The command `suanli`."""
