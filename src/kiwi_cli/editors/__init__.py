"""What can edit a clip: found on this machine, loaded, and changed as a request says."""
