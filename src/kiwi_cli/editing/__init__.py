"""One edit, from the request to the file: planned, carried out, recorded."""
