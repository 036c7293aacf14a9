"""The trainer: cached rows in, three stages, exports. An optional extra: `kiwi-cli[train]`."""
