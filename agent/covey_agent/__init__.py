"""The device: trains on data that never leaves it, masks and signs its update, installs verified releases."""
