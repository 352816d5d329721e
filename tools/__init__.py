"""Development scripts; nothing here is part of the installed product."""
