"""`kiwi edit` and `kiwi ref-edit`."""
