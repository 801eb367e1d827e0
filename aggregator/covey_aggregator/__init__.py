"""The service that runs rounds over masked updates, with its operator command line and dashboard."""
